"""``wgllm serve`` and ``wgllm web``: the server, and the server with its page opened in the browser."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wgllm import debug
from wgllm.cli.console import CONTEXT, say, use_utf8
from wgllm.cli.options import chat_options, combined, load_arguments, model_options
from wgllm.cli.signals import INTERRUPTED, Interrupts, Terminated, ending
from wgllm.errors import UsageError, WgllmError, printable
from wgllm.user_paths import user_path

if TYPE_CHECKING:
    import socket

    from wgllm.serve.settings import Settings, TlsFiles

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PORT = 8080
_PORT = click.IntRange(0, 65535)

_how_options = combined(
    click.option("--queue", "queue_size", type=click.IntRange(min=0), default=8, show_default=True, metavar="N",
                 help="Requests that wait while the engine is at another; more are told to come again."),
    click.option("-v", "--verbose", is_flag=True, help="A line on stderr for each request."),
)  # fmt: skip


_address_options = combined(
    click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
                 help="Where to listen; 0.0.0.0 lets other machines in, for which a key is needed."),
    click.option("--port", type=_PORT, default=DEFAULT_PORT, show_default=True, metavar="N",
                 help="0 takes a free one."),
    click.option("--api-key-file", default=None, metavar="FILE",
                 help="A file with the key that clients must send.  [default: $WGLLM_API_KEY]"),
    click.option("--tls", is_flag=True, help="Speak https with a certificate that is made here and kept."),
    click.option("--tls-cert", default=None, metavar="FILE", help="Speak https with this certificate (PEM)."),
    click.option("--tls-key", default=None, metavar="FILE", help="Its key, if that is not in the same file."),
    click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME",
                 help="Another name by which browsers may call this server, as that of a proxy that speaks https for"
                 " it. May be repeated."),
    click.option("--allow-origin", "allowed_origins", multiple=True, metavar="URL",
                 help="A web application elsewhere that may ask, as https://example.com. May be repeated."),
)  # fmt: skip


_page_options = combined(
    click.option("--port", type=_PORT, default=DEFAULT_PORT, metavar="N",
                 help="The port of the page; 0 takes a free one.  [default: 8080, or a free one where that is taken]"),
    click.option("--no-open", is_flag=True, help="Only tell the address."),
    click.option("--eager", is_flag=True,
                 help="Load the engine at the start, not when the page first asks this machine to compute."),
)  # fmt: skip


@click.command("serve", context_settings=CONTEXT)
@_address_options
@click.option("--lazy", is_flag=True, help="Load the engine when it is first asked, not at the start.")
@_how_options
@chat_options
@model_options
def serve_command(
    host: str,
    port: int,
    api_key_file: str | None,
    tls: bool,
    tls_cert: str | None,
    tls_key: str | None,
    allowed_hosts: tuple[str, ...],
    allowed_origins: tuple[str, ...],
    lazy: bool,
    queue_size: int,
    verbose: bool,
    **arguments: Any,
) -> int:
    """Serve a model: the page, on which it runs on each visitor's own graphics card, and OpenAI's interface, for which
    it runs here.

    Only this machine can ask unless --host says otherwise. Then a key is needed, and with --tls too, since browsers
    lend their graphics card to no page that comes by plain http from another machine.

    \b
    Examples:
      wgllm serve -m gemma3:270m
      wgllm serve --host 0.0.0.0 --tls --api-key-file key.txt
      curl http://127.0.0.1:8080/v1/models

    \b
    See also:
      wgllm web     the same for this machine alone, with the page opened
      wgllm chat    in the terminal
    """  # fmt: skip
    use_utf8()
    from wgllm.serve.settings import Settings, read_key

    def settings() -> Settings:
        checked = Settings(
            host=host,
            port=port,
            api_key=read_key(None if api_key_file is None else user_path(api_key_file), _warn),
            allowed_hosts=allowed_hosts,
            allowed_origins=tuple(origin.rstrip("/") for origin in allowed_origins),
            queue_size=queue_size,
            load_at_start=not lazy,
            verbose=verbose,
        )
        # A certificate is made only for a server that may be started.
        return dataclasses.replace(checked, tls=_tls_files(tls, tls_cert, tls_key, host, allowed_hosts))

    return _serve(settings, arguments, any_port=False, open_page=False)


@click.command("web", context_settings=CONTEXT)
@_page_options
@_how_options
@chat_options
@model_options
def web_command(
    port: int, no_open: bool, eager: bool, queue_size: int, verbose: bool, **arguments: Any
) -> int:
    """Open a page on which a model runs: on the graphics card that the browser has, or else by this program.

    Nobody but this machine can reach it, and it asks no other server for anything.

    \b
    Examples:
      wgllm web
      wgllm web -m gemma3:270m --no-open

    \b
    See also:
      wgllm serve    for other machines and programs
      wgllm chat     in the terminal
    """  # fmt: skip
    use_utf8()
    from wgllm.serve.settings import Settings

    def settings() -> Settings:
        # No key, whatever the environment says: the page that is opened would have to ask for it.
        return Settings(port=port, queue_size=queue_size, load_at_start=eager, verbose=verbose)

    source = click.get_current_context().get_parameter_source("port")
    any_port = source is None or source.name == "DEFAULT"
    return _serve(settings, arguments, any_port=any_port, open_page=not no_open)


def _serve(
    make_settings: Callable[[], Settings], arguments: dict[str, Any], *, any_port: bool, open_page: bool
) -> int:
    """Runs the server until it is interrupted: what can be wrong is found before a model is downloaded."""
    name, options = load_arguments(**arguments)
    from wgllm.serve.network import shown_address
    from wgllm.serve.tls import server_context

    with Interrupts() as interrupts, contextlib.ExitStack() as undo:
        settings = make_settings()
        context = None if settings.tls is None else server_context(settings.tls)
        sockets = _listeners(settings, any_port)
        for each in sockets:
            undo.callback(each.close)
        from wgllm.serve.app import create_app
        from wgllm.serve.engine_host import EngineHost
        from wgllm.serve.model import ServedModel
        from wgllm.serve.openai_routes import chat_routes
        from wgllm.serve.page_routes import page_routes
        from wgllm.serve.server import Server

        model = ServedModel.open(name, **options)
        undo.callback(model.close)
        host = EngineHost(name, options, queue_size=settings.queue_size)
        failures: list[WgllmError] = []

        def on_engine(status: Mapping[str, Any], error: WgllmError | None) -> None:
            if error is None:
                say(_where(status))
            else:
                failures.append(error)
                server.stop()

        routes = [*page_routes(model), *chat_routes(host, model)]
        server = Server(create_app(model, host, settings, routes, on_engine=on_engine), sockets, context)
        address = shown_address(settings.scheme, settings.host, sockets[0].getsockname()[1])
        for each in sockets:
            each.listen(1024)
        _tell_of_requests()
        code = 0
        try:
            with ending(server.stop), interrupts.cancelling(server.stop):
                say(f"Serving {printable(model.id)} at {address} (Ctrl-C ends it)")
                _tell_more(settings)
                if open_page:
                    _open_page(address)
                server.run()
        except Terminated as terminated:
            code = terminated.exit_code
        if interrupts.seen:
            code = INTERRUPTED
            with contextlib.suppress(OSError):
                click.echo(err=True)
        if server.busy_threads:
            sys.stderr.flush()
            os._exit(code)  # Python would wait for what can't be ended
        if code == 0 and failures:
            raise failures[0]
        return code


def _listeners(settings: Settings, any_port: bool) -> list[socket.socket]:
    from wgllm.serve.network import PortTaken, listeners

    try:
        return listeners(settings.host, settings.port)
    except PortTaken:
        if not any_port:
            raise
        return listeners(settings.host, 0)


def _tls_files(
    made_here: bool, certificate: str | None, key: str | None, host: str, allowed_hosts: tuple[str, ...]
) -> TlsFiles | None:
    from wgllm.serve.settings import TlsFiles

    if made_here and (certificate is not None or key is not None):
        raise UsageError("--tls makes a certificate, --tls-cert names one; give one of them")
    if certificate is not None:
        file = user_path(certificate)
        return TlsFiles(file, file if key is None else user_path(key))
    if key is not None:
        raise UsageError("--tls-key is the key of a certificate; give --tls-cert, too")
    if not made_here:
        return None
    from wgllm.serve.network import interface_addresses, is_loopback
    from wgllm.serve.tls import certificate_names, self_signed
    from wgllm.sessions_db import data_folder

    addresses = [] if is_loopback(host) else interface_addresses()
    return self_signed(data_folder() / "tls", certificate_names((host, *allowed_hosts), addresses))


def _where(status: Mapping[str, Any]) -> str:
    where = printable(str(status.get("where") or "this machine"))
    return f"Computing for /v1: {where}; for the page: the visitor's graphics card"


def _tell_more(settings: Settings) -> None:
    if not settings.load_at_start:
        say(
            "Computing for the page: the visitor's graphics card; the engine here is loaded when it is first asked"
        )
    if settings.tls is not None and settings.tls.self_signed:
        from wgllm.serve.tls import fingerprint

        say(f"Browsers will warn of its certificate; its SHA-256 is {fingerprint(settings.tls.certificate)}")
    if settings.tls is None and not settings.loopback:
        say(
            "Keys and chats go through the network unencrypted, and browsers hide WebGPU from pages that come by plain"
            " http from another machine; --tls ends both"
        )


def _tell_of_requests() -> None:
    """The server's own words go to stderr as this command's."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("wgllm: %(message)s"))
    log = logging.getLogger("wgllm.serve")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug.level() else logging.INFO)


def _warn(message: str) -> None:
    say(f"wgllm: {message}")


def _open_page(address: str) -> None:
    """Asks for a browser, if there is a desktop; elsewhere a text browser might take the terminal."""
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME")
    ):
        return
    import webbrowser

    def show() -> None:
        with contextlib.suppress(Exception):  # the address is told in any case
            webbrowser.open(address)

    threading.Thread(target=show, daemon=True).start()
