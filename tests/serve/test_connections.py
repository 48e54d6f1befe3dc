"""Clients that misbehave on real connections: malformed, slow, silent, deaf, too many. /health is answered.

Limits of time never pass by themselves here: what got stuck in one would be seen, and a test that wants one to pass
says so (``pass_time``).
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Iterator

import pytest

from tests.serve.in_thread import FOR_EVER, PATIENCE, InThread, read_all, wait_for
from tests.serve.stand_ins import Seen, running
from wgllm.serve.server import Connection
from wgllm.serve.settings import Settings

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n"
POST = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\n"

MALFORMED = [
    b"\r\n\r\n\r\n\x00", b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", b"G\xe9T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 300_000, b" " * 100_000, b"A" * 100_000,
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n", POST + b"Content-Length: 5\r\n\r\n{}" ,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_limit_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_seconds", FOR_EVER)
    monkeypatch.setattr(Connection, "stalled_seconds", FOR_EVER)
    monkeypatch.setattr("wgllm.serve.server._KEEP_ALIVE_SECONDS", 100 * FOR_EVER)
    monkeypatch.setattr("wgllm.serve.limits._LINGER_SECONDS", FOR_EVER)


def heard(server: InThread, size: int) -> None:
    """Waits until the server's only connection has had ``size`` bytes."""
    wait_for(lambda: len(server.connections) == 1 and server.connections[0].heard >= size)  # type: ignore[attr-defined]


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections know how many bytes they have had."""
    receive = Connection.data_received

    def received(connection: Connection, data: bytes) -> None:
        receive(connection, data)
        connection.heard += len(data)  # type: ignore[attr-defined]

    monkeypatch.setattr(Connection, "heard", 0, raising=False)
    monkeypatch.setattr(Connection, "data_received", received)


def answers(data: bytes) -> list[bytes]:
    """The bodies of answers that end with the connection, which must all be JSON."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        lengths = [
            int(line.split(b":")[1])
            for line in head.splitlines()
            if line.lower().startswith(b"content-length")
        ]
        found.append(head.split()[1])
        json.loads(rest[: lengths[0]])
        data = rest[lengths[0] :]
    return found


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_end_with_an_error_in_json(data: bytes) -> None:
    with running() as server:
        with server.connect() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            codes = answers(read_all(connection))
        assert set(codes) <= {b"400", b"403", b"404", b"408", b"413", b"431", b"501"}
        server.check_health()


def test_300_random_requests_crash_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(3)
    whole = POST + b"Content-Type: application/json\r\nContent-Length: 2\r\n" + CLOSE + b"\r\n{}"
    codes: set[bytes] = set()
    with running() as server:
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                place = rng.randrange(len(data))
                data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            with server.connect() as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                codes.update(answers(read_all(connection)))
        server.check_health()
    assert codes <= {b"200", b"400", b"403", b"404", b"405", b"413", b"431", b"501"}
    assert not caplog.records


def test_pipelined_requests_are_answered_in_order() -> None:
    with running() as server:
        found = server.exchange((GET + b"\r\n") * 20 + GET + CLOSE + b"\r\n")
    assert answers(found) == [b"200"] * 21


def test_an_answer_is_sent_at_once() -> None:
    """Without Nagle's algorithm, by which a body that follows its head waits for 40 ms."""
    with running() as server, server.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        ours = server.connections[0].transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_request_in_pieces_is_one() -> None:
    with running() as server, server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in POST + CLOSE + b"Content-Length: 2\r\n\r\n{}":
            connection.sendall(bytes([byte]))
        assert answers(read_all(connection)) == [b"200"]


@contextlib.contextmanager
def many(connect: object, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect()) for _ in range(count)]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (b"", []),
        (b"GET /", [b"408"]),
        (GET, [b"408"]),
        (GET + b"\r\n" + GET, [b"200", b"408"]),
    ],
    ids=["silent", "in the line", "in headers", "in the second"],
)
@pytest.mark.usefixtures("_counted")
def test_who_never_finishes_a_request_is_let_go(begun: bytes, expected: list[bytes]) -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(begun)
        heard(server, len(begun))
        found = b""
        while b"200" in expected and b"}" not in found:
            found += connection.recv(1 << 16)
        server.pass_time(FOR_EVER)
        assert answers(found + read_all(connection)) == expected


@pytest.mark.usefixtures("_counted")
def test_an_answered_request_whose_body_never_ends_is_let_go() -> None:
    with running() as server, server.connect() as connection:
        head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"x" * 100)
        heard(server, len(head) + 100)
        server.pass_time(FOR_EVER)
        read_all(connection)
        assert not server.connections


async def unread(connection: Connection) -> int:
    """How many bytes wait for the client, beside those that its machine has taken already."""
    return connection.transport.get_write_buffer_size()


def test_who_reads_nothing_is_let_go() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(b"GET /api/flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(10)

        def gone() -> bool:
            server.pass_time(FOR_EVER)  # again, since it may still have been writing
            return not server.connections

        wait_for(gone)
        server.check_health()


def test_who_reads_slowly_is_kept() -> None:
    with running() as server, server.connect() as client:
        client.sendall(b"GET /api/flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(10)
        (connection,) = server.connections
        for _ in range(12):
            waiting = server.do(unread(connection))
            while server.do(unread(connection)) == waiting:
                assert client.recv(1 << 16)
            server.pass_time(FOR_EVER)
        assert server.connections == [connection] and client.recv(10)


@pytest.mark.parametrize(
    "begun",
    [b"", GET, POST + b"Content-Length: 100\r\n\r\nx", b"GET /api/flood HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=["silent", "slow headers", "slow body", "deaf"],
)
def test_health_is_answered_beside_200_slow_clients(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.serve.server._MOST_CONNECTIONS", 100)
    with running(Settings(max_requests=40)) as server, many(server.connect, 200) as connections:
        for connection in connections:
            with contextlib.suppress(ConnectionError):  # the oldest made room for the others
                connection.sendall(begun)
        for _ in range(5):
            server.check_health()
        assert len(server.connections) <= 101


def test_a_connection_that_is_answered_never_makes_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.serve.server._MOST_CONNECTIONS", 10)
    with running() as server, server.connect() as stream:
        stream.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stream.recv(100)
        with many(server.connect, 50):
            server.check_health()
            for _ in range(20):
                assert stream.recv(1000)


def test_who_goes_ends_what_was_made_for_them() -> None:
    seen = Seen()
    with running(seen=seen) as server:
        with server.connect() as connection:
            connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100)
        assert seen.cancelled.wait(PATIENCE)


def test_an_answer_that_fails_in_the_middle_is_cut_off() -> None:
    with running() as server:
        found = server.exchange(b"GET /api/cut HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"begun" in found and not found.endswith(b"0\r\n\r\n")
        assert server.get("/health").status_code == 200


def test_the_end_waits_for_nothing_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.serve.server._THREAD_SECONDS", PATIENCE)
    seen = Seen()
    with running(seen=seen, daemon=False) as server, many(server.connect, 20) as connections:
        begun = [
            b"",
            GET,
            b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
            POST + b"Content-Length: 9\r\n\r\n",
        ]
        for number, connection in enumerate(connections):
            connection.sendall(begun[number % len(begun)])
        assert seen.waiting.wait(PATIENCE)
        server.end()
        assert seen.cancelled.is_set() and not server.server.busy_threads


def test_a_request_that_waits_is_told_that_the_server_ends() -> None:
    seen = Seen()
    with running(seen=seen) as server, server.connect() as connection:
        connection.sendall(b"GET /api/wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert seen.waiting.wait(PATIENCE)
        server.server.stop()
        assert answers(read_all(connection)) == [b"503"]


def test_a_thread_that_computes_does_not_hold_up_the_end() -> None:
    seen = Seen()
    with running(seen=seen, daemon=False) as server, server.connect() as connection:
        connection.sendall(b"GET /api/compute HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert seen.waiting.wait(PATIENCE)
        try:
            server.end()
            assert server.server.busy_threads
        finally:
            seen.released.set()
