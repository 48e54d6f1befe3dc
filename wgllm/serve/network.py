"""Addresses: what may be listened on, what a ``Host`` header says, under which names this machine is known."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket

from wgllm.errors import ServeError, UsageError, printable

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})))(?::(?P<port>[0-9]{1,5}))?"
)
_HIGHEST_PORT = 65535
_TRIES = 20


def parse_host(text: str) -> tuple[str, int | None] | None:
    """The name in small letters (or the address, without brackets) and the port of ``name:port``, else None."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    port = None if match["port"] is None else int(match["port"])
    if port is not None and port > _HIGHEST_PORT:
        return None
    if match["six"] is not None:
        address = ip_address(match["six"])
        return None if address is None else (str(address), port)
    name = match["name"].lower()
    return name.removesuffix("."), port


def ip_address(text: str) -> IpAddress | None:
    """The address that the text is, in its usual form; None for names and for forms such as 127.1."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_loopback_name(name: str) -> bool:
    """Whether a name or address of a ``Host`` header is this machine's own, whatever a name server says."""
    address = ip_address(name)
    return name == "localhost" if address is None else address.is_loopback


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``. Raises UsageError for a name that is none."""
    return all(ipaddress.ip_address(_plain(address)).is_loopback for _, address in addresses(host))


def addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses to listen on. Raises UsageError."""
    if not host:
        raise UsageError("--host must name an address, as 127.0.0.1, or 0.0.0.0 for all of this machine's")
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"--host {printable(host, 60)}: there is no such host") from None
    families = (socket.AF_INET, socket.AF_INET6)
    return list(dict.fromkeys((family, str(at[0])) for family, _, _, _, at in found if family in families))


def listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of ``host``, all at one port, that do not listen yet; port 0 is a free one.

    Raises ServeError when a port is taken or may not be had, UsageError when there is no such host.
    """
    if port:
        return _bound_to_all(host, port)
    for _ in range(_TRIES):  # what is free at one address may be taken at another
        with contextlib.suppress(PortTaken):
            return _bound_to_all(host, 0)
    return _bound_to_all(host, 0)


def _bound_to_all(host: str, port: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    problem: OSError | None = None
    for family, address in addresses(host):
        try:
            made.append(_bound(family, address, port))
        except OSError as error:
            # A machine without IPv6 may still know that localhost is ::1.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                problem = problem or error
                continue
            for each in made:
                each.close()
            raise _explained(host, port, error) from error
        port = made[0].getsockname()[1]
    if not made:
        raise _explained(host, port, problem or OSError(errno.EADDRNOTAVAIL, "no address"))
    return made


def own_names() -> frozenset[str]:
    """Names that other machines may know this one by, besides its addresses."""
    name = socket.gethostname().lower().removesuffix(".")
    if parse_host(name) is None:
        return frozenset({"localhost"})
    short = name.partition(".")[0]
    return frozenset({"localhost", name, short, f"{short}.local"})


def interface_addresses() -> list[str]:
    """The addresses of this machine, but those that hold on one wire only."""
    import psutil

    found = [a.address for each in psutil.net_if_addrs().values() for a in each]
    return [a for a in found if ip_address(a) is not None and not a.lower().startswith("fe80")]


def shown_address(scheme: str, host: str, port: int) -> str:
    """The address to open in a browser; where the server listens on all of them, one that other machines know."""
    address = ip_address(host)
    if address is not None and address.is_unspecified:
        others = [a for a in interface_addresses() if not is_loopback_name(a)]
        # Those with dots are shorter to type.
        host = min(others, key=lambda a: ":" in a, default=socket.gethostname())
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    # By this number asyncio knows that Nagle's algorithm must be off, or each answer would wait for 40 ms.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:  # where that would let two programs listen on one port
            made.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", 0), 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


def _explained(host: str, port: int, error: OSError) -> ServeError:
    where = f"port {port} of {printable(host, 60)}"
    number = error.errno
    if number == errno.EADDRINUSE:
        return PortTaken(f"{where} is in use by another program; --port 0 takes a free one")
    if number in (errno.EACCES, errno.EPERM):
        return ServeError(f"{where} may not be used by this user; take one from 1024 on")
    if number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return ServeError(f"--host {printable(host, 60)}: this machine has no such address")
    return ServeError(f"{where} can't be listened on: {error.strerror or error}")


class PortTaken(ServeError):
    """Another program listens there."""


def _plain(address: str) -> str:
    """Without the interface that may stand behind %."""
    return address.partition("%")[0]
