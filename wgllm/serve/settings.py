"""What a server is told when it starts, and what of it would be unsafe."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from wgllm.errors import UsageError, printable
from wgllm.serve.network import is_loopback, parse_host

KEY_VARIABLE = "WGLLM_API_KEY"
SHORTEST_KEY = 16
_MAKE_KEY = "`(umask 077; python -c 'import secrets; print(secrets.token_hex())' > FILE)` makes one"
_ORIGIN = re.compile(r"https?://[^/?#@\s]+")


@dataclass(frozen=True)
class TlsFiles:
    """A certificate and its key, both PEM; one file may hold both."""

    certificate: Path
    key: Path
    self_signed: bool = False
    """Made by us: browsers warn of it until it is trusted."""


@dataclass(frozen=True)
class Settings:
    """How a server listens and whom it answers. Raises UsageError for what must not be started."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    allowed_hosts: tuple[str, ...] = ()
    """Names that may stand in ``Host`` beside this machine's own, and from which the page may come by https."""
    allowed_origins: tuple[str, ...] = ()
    """Other web applications that may ask, as ``https://example.com``; ``*`` is all of them."""
    max_body_bytes: int = 16 << 20
    body_seconds: float = 30.0
    """How long a request's body may take to arrive."""
    max_requests: int = 128
    """Requests that are answered at a time, beside those for /health."""
    queue_size: int = 8
    """Requests that wait for the engine."""
    load_at_start: bool = False
    """The engine loads its model when the server starts, not when it is first needed."""
    verbose: bool = False
    """Each request is logged."""

    def __post_init__(self) -> None:
        if not self.loopback and self.api_key is None:
            raise UsageError(
                f"--host {printable(self.host, 60)} lets other machines in, which needs a key: give --api-key-file FILE"
                f" or set {KEY_VARIABLE} ({_MAKE_KEY})"
            )
        if "*" in self.allowed_origins and self.api_key is None:
            raise UsageError(
                "--allow-origin '*' lets every website in, which needs a key: give --api-key-file FILE"
                f" or set {KEY_VARIABLE}"
            )
        for origin in self.allowed_origins:
            if origin != "*" and (_ORIGIN.fullmatch(origin) is None or not origin.isascii()):
                raise UsageError(
                    f"--allow-origin {printable(origin, 60)}: it must be like https://example.com, without a path"
                )
        for name in self.allowed_hosts:
            if parse_host(name) is None:
                raise UsageError(f"--allow-host {printable(name, 60)}: it must be a name such as example.com")

    @cached_property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


def read_key(path: Path | None, warn: Callable[[str], None]) -> str | None:
    """The key in a file, else that of the environment, else None. Raises UsageError when it can't be one.

    ``warn`` is told of a file that others on this machine may read.
    """
    if path is None:
        text = os.environ.get(KEY_VARIABLE, "")
        return _checked(KEY_VARIABLE, text.strip()) if text else None
    name = printable(str(path))
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):  # a pipe: `<(pass show wgllm)`
                raise UsageError(f"--api-key-file {name}: not a file")
            data = file.read(65536)
    except OSError as error:
        raise UsageError(f"--api-key-file {name}: {error.strerror or error}") from error
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
        warn(f"{name}: other users of this machine may read the key; `chmod 600` ends that")
    try:
        return _checked(name, data.decode("ascii").strip())
    except UnicodeDecodeError:
        raise UsageError(f"{name}: a key is one line of ASCII letters and digits; {_MAKE_KEY}") from None


def _checked(origin: str, key: str) -> str:
    if not key:
        raise UsageError(f"{origin}: there is no key in it; {_MAKE_KEY}")
    if not all("!" <= c <= "~" for c in key):
        raise UsageError(f"{origin}: a key is one line of ASCII letters and digits; {_MAKE_KEY}")
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"{origin}: the key is too short, it needs at least {SHORTEST_KEY} characters; {_MAKE_KEY}"
        )
    return key
