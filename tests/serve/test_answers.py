"""Errors of all kinds as JSON, the page's files, gzip."""

from __future__ import annotations

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from starlette.datastructures import Headers

from tests.serve.stand_ins import ask, ask_raw
from wgllm.serve.compression import accepts_gzip
from wgllm.serve.errors import error_response
from wgllm.serve.ranges import is_known
from wgllm.serve.settings import Settings
from wgllm.serve.static import static_routes

LOCAL = Settings()


def error_of(response: httpx.Response) -> dict[str, object]:
    assert response.headers["content-type"] == "application/json"
    return dict(response.json()["error"])


@pytest.mark.parametrize(
    "path", ["/nothing", "/api/nothing", "/v1/echo/", "/health/", "/API/model", "/%00", "/é"]
)
def test_an_unknown_address_is_404(path: str) -> None:
    response = ask(LOCAL, "GET", path)
    assert response.status_code == 404 and error_of(response)["code"] == "not_found"


def test_an_address_that_begins_with_two_slashes_is_404() -> None:
    status, content = ask_raw("GET", "//health")  # httpx would make another one of it
    assert status == 404 and b"not_found" in content


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/echo"), ("DELETE", "/health"), ("PUT", "/"), ("BREW", "/health")]
)
def test_a_wrong_method_is_405(method: str, path: str) -> None:
    response = ask(LOCAL, method, path)
    assert response.status_code == 405 and error_of(response)["code"] == "method_not_allowed"
    assert "allow" in response.headers


def test_an_unexpected_error_is_500_without_details_and_one_line_for_who_runs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "wgllm.serve"):
        response = ask(LOCAL, "GET", "/api/boom?text=private")
    assert response.status_code == 500 and error_of(response)["type"] == "server_error"
    assert "secret" not in response.text and "ZeroDivision" not in response.text
    (record,) = caplog.records
    assert "GET /api/boom: internal error: ZeroDivisionError: secret" in record.getMessage()
    assert "private" not in record.getMessage() and "\n" not in record.getMessage() and not record.exc_info


def test_with_debugging_the_traceback_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WGLLM_DEBUG", "1")
    with caplog.at_level(logging.INFO, "wgllm.serve"):
        assert ask(LOCAL, "GET", "/api/boom").status_code == 500
    assert caplog.records[0].exc_info


def test_what_was_asked_wrongly_is_400_and_what_failed_here_500_in_the_errors_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = ask(LOCAL, "GET", "/api/wrong")
    assert (wrong.status_code, error_of(wrong)["message"]) == (400, "temperature: must not be negative")
    assert not caplog.records
    failed = ask(LOCAL, "GET", "/api/no_device")
    assert [r.getMessage() for r in caplog.records] == ["GET /api/no_device: the graphics card was lost"]
    assert (failed.status_code, error_of(failed)["type"]) == (500, "server_error")
    assert error_of(failed)["message"] == "the graphics card was lost"


def test_an_exception_with_a_status_keeps_what_it_says() -> None:
    response = ask(LOCAL, "GET", "/api/refused")
    assert response.status_code == 404 and response.headers["retry-after"] == "7"
    assert error_of(response) == {
        "message": "unknown plan",
        "type": "not_here",
        "param": "id",
        "code": "unknown_plan",
    }


@pytest.mark.parametrize("message", ["a\nb\x1b[2J", "\ud800", "x" * 10_000, "ü"])
def test_any_message_becomes_one_line_of_json(message: str) -> None:
    said = json.loads(bytes(error_response(400, message).body))["error"]["message"]
    assert said.isprintable() and len(said) < 1100


def test_a_line_for_each_request_where_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "wgllm.serve"):
        ask(Settings(verbose=True), "GET", "/health?key=private")
        ask(Settings(), "GET", "/health")
    (record,) = caplog.records
    assert record.getMessage().startswith("GET /health 200 ")


# Files


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page's, in one with a secret."""
    folder = tmp_path / "web"
    (folder / "vendor").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "app.js").write_text("export const answer = 42;\n" * 100)
    (folder / "vendor" / "style.css").write_text("p {}")
    (folder / "__init__.py").write_text("secret")
    (folder / ".hidden.js").write_text("secret")
    (tmp_path / "secret.js").write_text("secret")
    (folder / "link.js").symlink_to(tmp_path / "secret.js")
    monkeypatch.setattr("wgllm.serve.app.static_routes", lambda: static_routes(folder))
    return folder


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/vendor/style.css", "text/css; charset=utf-8"),
    ],
)
def test_files_have_their_type_and_a_tag_by_which_they_are_kept(page: Path, path: str, kind: str) -> None:
    response = ask(LOCAL, "GET", path)
    assert response.status_code == 200 and response.headers["content-type"] == kind
    assert response.headers["cache-control"] == "no-cache"
    tag = response.headers["etag"]
    for wanted in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        again = ask(LOCAL, "GET", path, headers={"If-None-Match": wanted})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert ask(LOCAL, "GET", path, headers={"If-None-Match": '"x"'}).status_code == 200
    head = ask(LOCAL, "HEAD", path)
    assert head.content == b"" and head.headers["etag"] == tag


HOSTILE_PATHS = [
    "../secret.js", "..%2fsecret.js", "%2e%2e/secret.js", "vendor/../../secret.js", "..\\secret.js",
    "%5c..%5csecret.js",
    "/etc/passwd", "//etc/passwd", "./app.js", "vendor//style.css", "app.js/", "app.js%00", "__init__.py", ".hidden.js",
    "link.js", "vendor", "", ".", "..", "C:/secret.js", "CON.js%20", "a" * 5000 + ".js", "%ff.js",
    "app", "app.JS", "%2e%2e%2fsecret.js", "....//secret.js", "app.js:stream", "~/secret.js",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_nothing_else_is_served_whatever_the_path(page: Path, path: str) -> None:
    decoded = unquote(f"/static/{path}")
    status, content = ask_raw("GET", decoded)
    assert status == 404
    assert b"secret" not in content and b"root:" not in content


def test_the_files_of_the_page_are_served_as_they_lie() -> None:
    response = ask(LOCAL, "GET", "/static/runtime.js")
    assert response.status_code == 200 and "javascript" in response.headers["content-type"]
    assert ask(LOCAL, "GET", "/static/__init__.py").status_code == 404


def test_a_file_is_read_and_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is written again."""
    packed: list[bytes] = []
    compress = gzip.compress

    def counted(data: bytes, **options: Any) -> bytes:
        packed.append(data)
        return compress(data, **options)

    monkeypatch.setattr("wgllm.serve.static.gzip.compress", counted)
    monkeypatch.setattr("wgllm.serve.app.static_routes", lambda: static_routes(tmp_path))
    path = tmp_path / "app.js"
    tags = set()
    for number, text in enumerate((b"one" * 1000, b"two" * 1000)):
        path.write_bytes(text)
        os.utime(path, ns=(0, number))
        for accepted in ("gzip", "", "gzip"):
            answer = ask(LOCAL, "GET", "/static/app.js", headers={"Accept-Encoding": accepted})
            assert answer.content == text and answer.headers["vary"] == "Accept-Encoding"
            assert ("content-encoding" in answer.headers) == bool(accepted)
            tags.add(answer.headers["etag"])
    assert packed == [b"one" * 1000, b"two" * 1000] and len(tags) == 2


def test_a_file_that_gzip_makes_no_smaller_goes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wgllm.serve.app.static_routes", lambda: static_routes(tmp_path))
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    answer = ask(LOCAL, "GET", "/static/a.png", headers={"Accept-Encoding": "gzip"})
    assert answer.content == b"\x89PNG" and "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (None, False), ("", False), ('"x"', True), ('W/"x"', True), ('"a", W/"x" ,"b"', True), ("*", True),
        ("x", False), ('"X"', False), ('"xx"', False), ('W/ "x"', False),
    ],
)  # fmt: skip
def test_the_copy_that_a_client_has(header: str | None, known: bool) -> None:
    assert is_known(header, '"x"') == known


# gzip


def test_json_lines_and_scripts_are_compressed(page: Path) -> None:
    for path in ("/api/large", "/api/lines", "/static/app.js"):
        plain = ask(LOCAL, "GET", path, headers={"Accept-Encoding": "identity"})
        packed = ask(LOCAL, "GET", path, headers={"Accept-Encoding": "gzip, br"})
        assert "content-encoding" not in plain.headers and packed.headers["content-encoding"] == "gzip"
        assert plain.content == packed.content
        assert "Accept-Encoding" in plain.headers["vary"] and "Accept-Encoding" in packed.headers["vary"]
    assert ask(LOCAL, "GET", "/api/vocabulary").headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-2047"}])
def test_weights_and_ranges_never_are(headers: dict[str, str]) -> None:
    response = ask(LOCAL, "GET", "/api/plans/x/weights", headers={"Accept-Encoding": "gzip", **headers})
    assert response.status_code == (206 if headers else 200)
    assert "content-encoding" not in response.headers and len(response.content) == (2048 if headers else 4096)


def test_small_answers_and_not_modified_ones_are_left_alone(page: Path) -> None:
    assert "content-encoding" not in ask(LOCAL, "GET", "/health").headers
    tag = ask(LOCAL, "GET", "/static/app.js").headers["etag"]
    assert (
        "content-encoding" not in ask(LOCAL, "GET", "/static/app.js", headers={"If-None-Match": tag}).headers
    )


def test_each_piece_of_a_stream_can_be_read_when_it_was_sent() -> None:
    import asyncio
    import zlib

    from wgllm.serve.compression import Compression

    sent: list[bytes] = []

    async def app(scope: object, receive: object, send: object) -> None:
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/x-ndjson")],
        }
        await send(start)  # type: ignore[operator]
        for piece in (b"first\n", b"second\n", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": piece != b""})  # type: ignore[operator]

    async def send(message: dict[str, object]) -> None:
        sent.append(bytes(message.get("body", b"")))  # type: ignore[arg-type]

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"accept-encoding", b"gzip")]}
    asyncio.run(Compression(app)(scope, None, send))  # type: ignore[arg-type]
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert [unpacker.decompress(piece) for piece in sent] == [b"", b"first\n", b"second\n", b""]
    assert gzip.decompress(b"".join(sent)) == b"first\nsecond\n"


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("gzip", True), ("GZIP", True), ("br, gzip;q=0.5", True), ("*", True), ("", False), ("identity", False),
        ("gzip;q=0", False), ("gzip; q=0.000", False), ("*;q=0", False), ("gzip;q=0, *", False), ("xgzip", False),
    ],
)  # fmt: skip
def test_who_takes_gzip(text: str, accepted: bool) -> None:
    assert accepts_gzip(Headers({"accept-encoding": text})) == accepted
