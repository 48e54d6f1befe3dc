"""The page's files, as they lie in ``wgllm/web``."""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wgllm.serve.compression import accepts_gzip
from wgllm.serve.errors import error_response
from wgllm.serve.ranges import is_known

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


@dataclass(frozen=True)
class StaticFile:
    data: bytes
    packed: bytes
    """By gzip; nothing where that is no smaller."""
    tag: str
    media_type: str


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
    headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
    if is_known(request.headers.get("If-None-Match"), found.tag):
        return Response(status_code=304, headers=headers)
    if not found.packed or not accepts_gzip(request.headers):
        return Response(found.data, media_type=found.media_type, headers=headers)
    headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(found.packed, media_type=found.media_type, headers=headers)


def read_file(folder: Path, path: str) -> StaticFile | None:
    """A file below the folder; None for all else, whatever the path tries."""
    parts = path.split("/")
    if len(path) > 300 or not all(map(_NAME.fullmatch, parts)):
        return None
    place = folder.joinpath(*parts)
    kind = _TYPES.get(place.suffix)
    if kind is None or not place.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        return _read(place, kind, place.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(maxsize=256)
def _read(place: Path, media_type: str, written: int) -> StaticFile:
    """Kept until it is written again, at ``written`` in ns: a page has dozens of files."""
    data = place.read_bytes()
    packed = gzip.compress(data, mtime=0)
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    return StaticFile(data, packed if len(packed) < len(data) else b"", tag, media_type)
