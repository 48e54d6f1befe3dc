"""Bodies that are too large, too slow or nonsense, and too many requests at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.serve.in_thread import FOR_EVER, PATIENCE, read_all, wait_for
from tests.serve.stand_ins import Seen, application, ask, running
from wgllm.serve.settings import Settings

SMALL = Settings(max_body_bytes=1000)
IMPATIENT = Settings(body_seconds=0.2)


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_body_within_the_limit_arrives_whole(size: int) -> None:
    seen = Seen()
    body = random.Random(size).randbytes(size)
    assert ask(SMALL, "POST", "/v1/echo", seen=seen, content=body).json() == {"size": size}
    assert seen.bodies == [body]


def in_pieces(*pieces: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    async def produced() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(pause)

    return produced()


def test_a_body_beyond_the_limit_is_413_before_it_is_read() -> None:
    seen = Seen()
    response = ask(SMALL, "POST", "/v1/echo", seen=seen, content=bytes(1001))
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"
    assert response.headers["connection"] == "close"
    assert seen.bodies == []


@pytest.mark.parametrize("said", ["5", "1e3", "-1", "99999999999999999999", "0x10", "+1", "1_0", "٣"])
def test_a_length_that_lies_or_is_none_lets_nothing_larger_in(said: str) -> None:
    seen = Seen()
    headers = {b"Content-Length": said.encode()}
    response = ask(
        SMALL, "POST", "/v1/echo", seen=seen, content=in_pieces(bytes(600), bytes(600)), headers=headers
    )
    assert response.status_code in (400, 413)
    assert seen.bodies == []


def test_a_slow_body_is_408() -> None:
    seen = Seen()
    response = ask(IMPATIENT, "POST", "/v1/echo", seen=seen, content=in_pieces(b"a", b"b", b"c", pause=0.15))
    assert response.status_code == 408 and response.json()["error"]["code"] == "timeout"
    assert response.headers["connection"] == "close"
    assert seen.bodies == []


def test_2000_random_bodies_are_answered_without_a_failure() -> None:
    rng, seen = random.Random(7), Seen()

    async def all_of_them() -> list[int]:
        transport = httpx.ASGITransport(application(SMALL, seen))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            sizes = [rng.choice((0, 1, 50, 999, 1000, 1001, 5000)) for _ in range(2000)]
            return [(await client.post("/v1/echo", content=rng.randbytes(n))).status_code for n in sizes]

    codes = asyncio.run(all_of_them())
    assert set(codes) == {200, 413}
    assert len(seen.bodies) == codes.count(200)


def test_65_megabytes_are_refused_on_a_real_connection_and_the_answer_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wgllm.serve.limits._LINGER_SECONDS", FOR_EVER)
    seen = Seen()
    with running(Settings(body_seconds=FOR_EVER), seen) as server:
        url = f"http://127.0.0.1:{server.port}/v1/echo"
        assert httpx.post(url, content=bytes(65 << 20), timeout=PATIENCE).status_code == 413
        chunked = (bytes(1 << 20) for _ in range(65))
        assert httpx.post(url, content=chunked, timeout=PATIENCE).status_code == 413
        assert httpx.post(url, content=bytes(16 << 20), timeout=PATIENCE).json() == {"size": 16 << 20}
    assert [len(body) for body in seen.bodies] == [16 << 20]


def test_a_client_that_goes_in_the_middle_of_a_body_leaves_nothing_behind() -> None:
    seen = Seen()
    with running(seen=seen) as server:
        for _ in range(20):
            with server.connect() as connection:
                connection.sendall(
                    b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345"
                )
        assert server.get("/health").status_code == 200
    assert seen.bodies == []


def test_headers_that_are_too_many_are_431() -> None:
    headers = {f"X-{number}": "y" * 4000 for number in range(10)}
    assert ask(SMALL, "GET", "/health", headers=headers).status_code == 431


def test_requests_beyond_those_that_run_are_503_but_health_is_not() -> None:
    seen = Seen()
    with running(Settings(max_requests=2), seen) as server:
        connections = [server.connect() for _ in range(2)]
        for connection in connections:
            connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100)
        refused = server.get("/api/model")
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "overloaded"
        assert server.get("/health").status_code == 200
        for connection in connections:
            connection.close()
        assert seen.cancelled.wait(PATIENCE)
        wait_for(lambda: server.get("/api/model").status_code == 200)
        assert server.get("/api/model").status_code == 200


def test_length_and_chunks_together_are_refused() -> None:
    with running() as server, server.connect() as connection:
        head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"0\r\n\r\n")
        assert b" 400 " in read_all(connection).splitlines()[0]
