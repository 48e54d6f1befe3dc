"""Who may ask: the name that the server was called by, the page that asks, and the key.

A website that someone visits can make the browser ask any server of the visitor's machine or network. Reading the
answers it can't, but asking may do harm enough, and where a name of the website's own leads to this machine (DNS
rebinding) it could read them, too. So a request must call the server by a name that is this machine's, and may come
from no other page than the server's own.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wgllm.errors import printable
from wgllm.serve.errors import error_response
from wgllm.serve.network import ip_address, is_loopback_name, own_names, parse_host
from wgllm.serve.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types wgllm"
)
"""The page's Content-Security-Policy. Its one policy of trusted types is for the address of the page's worker, which
Chromium takes from no plain text where trusted types are required."""

AUTHORIZED = "wgllm.authorized"
"""In a request's scope: whether it brought the key, or none is needed."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), serial=(), hid=()",
}
_METHODS = "GET, HEAD, POST, DELETE"
_EXPOSED = "ETag, Content-Range, Accept-Ranges, Retry-After"
_PREFLIGHT_SECONDS = 600
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def security_headers(settings: Settings) -> Mapping[str, str]:
    """The headers of every answer.

    Browsers are told to come back by TLS only where the certificate is the user's own: they let nobody past the
    warning of a self-signed one after that, and on this machine it would hold for every other server of localhost.
    """
    if settings.tls is None or settings.tls.self_signed or settings.loopback:
        return _HEADERS
    return {**_HEADERS, "Strict-Transport-Security": "max-age=31536000"}


def is_public(path: str) -> bool:
    """Whether a path is for all who may reach the server, without a key: the page's files, and whether it lives."""
    return path in ("/", "/health", "/favicon.ico") or path.startswith("/static/")


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header that must not stand there twice; several become one text that no rule takes."""
    found = [value for key, value in scope["headers"] if key == name]
    return b"\n".join(found) if found else None


def text_header(scope: Scope, name: bytes) -> str | None:
    value = header(scope, name)
    return None if value is None else value.decode("latin-1")


class HostCheck:
    """403 unless ``Host`` is a name of this machine's own: its loopback names, and where other machines may ask, any
    address (a rebound name is none), its own name, and those that were allowed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._loopback = settings.loopback
        parsed = [parse_host(name) for name in (*settings.allowed_hosts, settings.host)]
        allowed = {name for name, _ in filter(None, parsed)}
        self._names = allowed if self._loopback else allowed | own_names()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._known(called := text_header(scope, b"host") or ""):
            message = f"this server is not known as {printable(called, 60)!r}; --allow-host makes it known"
            refusal = error_response(403, message, kind="permission_error", code="host_not_allowed")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _known(self, called: str) -> bool:
        parsed = parse_host(called)
        if parsed is None:
            return False
        name = parsed[0]
        if is_loopback_name(name) or name in self._names:
            return True
        return not self._loopback and ip_address(name) is not None


class OriginCheck:
    """403 for what another page asks, unless it was allowed; those that were get what browsers want for it (CORS).

    Pages that come by https from a name of ``allowed_hosts`` are the server's own: where a proxy speaks TLS for it, its
    own scheme is another, and ``Host`` may be.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._any = "*" in settings.allowed_origins
        self._allowed = {_origin(each) for each in settings.allowed_origins} - {None}
        self._proxied = {_origin(f"https://{name}") for name in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = text_header(scope, b"origin")
        if origin is None:
            site = text_header(scope, b"sec-fetch-site")
            if site in ("cross-site", "same-site") and not is_public(scope["path"]):
                await self._refuse(scope, receive, send)
                return
            await self._app(scope, receive, send)
            return
        parsed = _origin(origin)
        if parsed is not None and (parsed == _own_origin(scope) or parsed in self._proxied):
            await self._app(scope, receive, send)
            return
        if parsed is None or not (self._any or parsed in self._allowed):
            await self._refuse(scope, receive, send)
            return
        granted = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}

        async def grant(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(granted)
                headers.add_vary_header("Origin")
            await send(message)

        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
            await _preflight(scope)(scope, receive, grant)
            return
        await self._app(scope, receive, grant)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
        message = (
            "pages of other websites may not ask this server; --allow-origin lets one in, and --allow-host makes known"
            " by which name the server's own page comes through a proxy"
        )
        refusal = error_response(403, message, kind="permission_error", code="origin_not_allowed")
        refusal.headers.add_vary_header("Origin")
        await refusal(scope, receive, send)


def _preflight(scope: Scope) -> Response:
    """What an allowed page may send: any headers, of which clients have many."""
    wanted = text_header(scope, b"access-control-request-headers") or ""
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    if _TOKENS.fullmatch(wanted):
        headers["Access-Control-Allow-Headers"] = wanted
    if header(scope, b"access-control-request-private-network") == b"true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=headers)


class KeyCheck:
    """401 without the key, where there is one, for all that is not public."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[AUTHORIZED] = self._authorized(scope)
            if not scope[AUTHORIZED] and not is_public(scope["path"]):
                given = header(scope, b"authorization") is not None
                refusal = error_response(
                    401,
                    "the key is wrong" if given else "a key is needed: Authorization: Bearer KEY",
                    kind="authentication_error",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        scheme, _, given = (header(scope, b"authorization") or b"").partition(b" ")
        # Takes the same time wherever the two differ.
        return hmac.compare_digest(given.strip(), self._key) and scheme.lower() == b"bearer"


def _origin(text: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an origin; None for ``null`` and all that is no website's."""
    scheme, separator, host = text.partition("://")
    parsed = parse_host(host)
    if not separator or scheme not in _DEFAULT_PORTS or parsed is None:
        return None
    return scheme, parsed[0], _DEFAULT_PORTS[scheme] if parsed[1] is None else parsed[1]


def _own_origin(scope: Scope) -> tuple[str, str, int] | None:
    return _origin(f"{scope['scheme']}://{text_header(scope, b'host') or ''}")
