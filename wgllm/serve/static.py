"""The page's files, as they lie in ``wgllm/web``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wgllm.serve.errors import error_response

FOLDER = Path(__file__).parents[1] / "web"

# What is served at all, and as what: a system's own table may know other types.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def static_routes(folder: Path = FOLDER) -> list[Route]:
    """``/``, everything under ``/static/``, and an icon that is none."""

    async def index(request: Request) -> Response:
        return await _answer(request, folder, "index.html")

    async def file(request: Request) -> Response:
        return await _answer(request, folder, request.path_params["path"])

    async def no_icon(request: Request) -> Response:
        """For browsers that ask whatever icon the page names."""
        return Response(status_code=204, headers={"Cache-Control": "max-age=86400"})

    return [Route("/", index), Route("/static/{path:path}", file), Route("/favicon.ico", no_icon)]


async def _answer(request: Request, folder: Path, path: str) -> Response:
    found = await run_in_threadpool(read_file, folder, path)
    if found is None:
        return error_response(404, "there is no such file", code="not_found")
    data, kind = found
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if _matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


def read_file(folder: Path, path: str) -> tuple[bytes, str] | None:
    """A file below the folder and its media type; None for all else, whatever the path tries."""
    parts = path.split("/")
    if len(path) > 300 or not all(map(_NAME.fullmatch, parts)):
        return None
    place = folder.joinpath(*parts)
    kind = _TYPES.get(place.suffix)
    if kind is None or not place.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        return place.read_bytes(), kind
    except OSError:
        return None


def _matches(wanted: str, tag: str) -> bool:
    known = {each.strip().removeprefix("W/") for each in wanted.split(",")}
    return "*" in known or tag in known
