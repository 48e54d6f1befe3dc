"""What a server is not started with, keys in files, addresses and ports."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.stand_ins import KEY, OTHERS
from wgllm.errors import ServeError, UsageError
from wgllm.serve.network import PortTaken, is_loopback, listeners, parse_host, shown_address
from wgllm.serve.settings import KEY_VARIABLE, Settings, read_key


@pytest.mark.parametrize("host", ["0.0.0.0", "::", OTHERS, "192.168.1.5", "::ffff:192.168.1.5"])
def test_other_machines_are_let_in_only_with_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="--api-key-file") as raised:
        Settings(host=host)
    assert KEY_VARIABLE in str(raised.value) and "\n" not in str(raised.value)
    assert not Settings(host=host, api_key=KEY).loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_none(host: str) -> None:
    assert Settings(host=host).loopback


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(Settings(api_key=KEY))


@pytest.mark.parametrize("host", ["", "no such host", "host.invalid", "256.1.1.1", "a" * 300, "\ud800"])
def test_a_host_that_is_none_is_a_usage_error(host: str) -> None:
    with pytest.raises(UsageError, match="--host"):
        is_loopback(host)


@pytest.mark.parametrize(
    "origin", ["example.com", "https://example.com/x", "https://", "null", "ftp://x", "https://é.com"]
)
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin"):
        Settings(allowed_origins=(origin,))


def test_any_origin_needs_a_key() -> None:
    with pytest.raises(UsageError, match="key"):
        Settings(allowed_origins=("*",))


@pytest.mark.parametrize("name", ["", "a b", "http://example.com", "é.com", "*"])
def test_host_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="--allow-host"):
        Settings(allowed_hosts=(name,))


# Keys


def warned(path: Path) -> tuple[str | None, list[str]]:
    said: list[str] = []
    return read_key(path, said.append), said


def key_file(folder: Path, data: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("data", [f"{KEY}", f"{KEY}\n", f"  {KEY}\r\n\n"])
def test_a_key_is_read_without_what_stands_around_it(tmp_path: Path, data: str) -> None:
    assert warned(key_file(tmp_path, data.encode())) == (KEY, [])


BAD_KEYS = [
    b"", b"\n", b"short", b"two words of a key", f"{KEY}\n{KEY}".encode(), "ключ к серверу-0123".encode(),
    b"\xff" * 40, b"\0" * 40,
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_KEYS)
def test_a_key_that_is_none_is_refused_without_showing_it(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UsageError) as raised:
        warned(key_file(tmp_path, data))
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="--api-key-file"):
            warned(path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_what_a_message_says_makes_a_key_that_nobody_else_may_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        Settings(host="0.0.0.0")
    command = str(raised.value).split("`")[1]
    path = tmp_path / "key"
    command = command.replace("python", shlex.quote(sys.executable)).replace("FILE", shlex.quote(str(path)))
    subprocess.run(["sh", "-c", f"umask 022; {command}"], check=True)
    key, said = warned(path)
    assert key is not None and len(key) == 64 and said == []


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
@pytest.mark.parametrize(("mode", "said"), [(0o644, 1), (0o640, 1), (0o604, 1), (0o600, 0), (0o400, 0)])
def test_a_key_that_others_may_read_is_told(tmp_path: Path, mode: int, said: int) -> None:
    key, lines = warned(key_file(tmp_path, KEY.encode(), mode))
    assert key == KEY and len(lines) == said


def test_the_environments_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None, pytest.fail) is None
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert read_key(None, pytest.fail) is None
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")
    assert read_key(None, pytest.fail) == KEY
    assert read_key(key_file(tmp_path, b"another-key-of-a-file"), pytest.fail) == "another-key-of-a-file"
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(UsageError, match=KEY_VARIABLE):
        read_key(None, pytest.fail)


# Addresses


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1 is in use.*--port 0"):
            listeners("127.0.0.1", port)


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(ServeError, match="no such address"):
        listeners(OTHERS, 0)


def test_all_addresses_of_a_name_have_one_port() -> None:
    made = listeners("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in made}) == 1
    finally:
        for each in made:
            each.close()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("LocalHost:80", ("localhost", 80)), ("a.b.", ("a.b", None)), ("[::1]:8080", ("::1", 8080)),
        ("[0:0::1]", ("::1", None)), ("1.2.3.4", ("1.2.3.4", None)), ("a:", None), ("a:65536", None), ("", None),
        ("a\n", None), ("[::1", None), ("[x]", None), ("-a", None), (".a", None), ("a/b", None), ("é", None),
    ],
)  # fmt: skip
def test_hosts_are_parsed(text: str, parsed: tuple[str, int | None] | None) -> None:
    assert parse_host(text) == parsed


def test_the_address_that_is_shown_can_be_opened() -> None:
    assert shown_address("http", "127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert shown_address("https", "::1", 1) == "https://[::1]:1"
    assert not shown_address("http", "0.0.0.0", 1).startswith("http://0.0.0.0")
