"""Certificates: the user's, and one that is made here, kept, renewed and refused where it can't be used."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.serve.in_thread import FOR_EVER, PATIENCE
from tests.serve.stand_ins import running
from wgllm.errors import ServeError, UsageError
from wgllm.serve.network import own_names
from wgllm.serve.settings import TlsFiles
from wgllm.serve.tls import certificate_names, fingerprint, self_signed, server_context

NAMES = certificate_names(
    ("127.0.0.1", "chat.example.com"), ("192.168.1.5", "fd00::5", "0.0.0.0", "nonsense")
)
NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.timezone.utc)


@pytest.fixture(autouse=True)
def _handshakes_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.serve.server.HANDSHAKE_SECONDS", FOR_EVER)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path: Path) -> set[str]:
    listed = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(listed.get_values_for_type(x509.DNSName)) | {
        str(a) for a in listed.get_values_for_type(x509.IPAddress)
    }


def test_names_and_addresses_of_this_machine_stand_in_it(tmp_path: Path) -> None:
    files = self_signed(tmp_path / "tls", NAMES)
    expected = {"127.0.0.1", "::1", "192.168.1.5", "fd00::5", "chat.example.com", *own_names()}
    assert names(files.certificate) == expected == NAMES


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_nobody_else_may_read_the_key(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        files = self_signed(tmp_path / "tls", NAMES)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.key.parent.stat().st_mode) == 0o700
    assert [f.name for f in files.key.parent.iterdir()] == [files.key.name]
    before = fingerprint(files.certificate)
    files.key.chmod(0o644)
    assert fingerprint(self_signed(tmp_path / "tls", NAMES).certificate) != before
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600


def test_it_is_kept_until_it_ends_or_does_not_fit(tmp_path: Path) -> None:
    def made(day: int, wanted: frozenset[str] = NAMES) -> str:
        return fingerprint(self_signed(tmp_path, wanted, NOW + datetime.timedelta(days=day)).certificate)

    first = made(0)
    assert made(1) == made(300) == made(300, frozenset({"127.0.0.1"})) == first
    renewed = made(340)
    assert renewed != first
    moved = made(341, NAMES | {"10.0.0.9"})
    assert moved != renewed
    assert made(342) == moved == made(342, NAMES | {"10.0.0.9"})
    assert made(-5) != moved  # not valid yet: the clock was wrong


def test_it_does_not_collect_names_for_ever(tmp_path: Path) -> None:
    for number in range(90):
        files = self_signed(tmp_path, frozenset({f"10.0.0.{number}", "127.0.0.1"}), NOW)
    assert len(names(files.certificate)) <= 64 and "10.0.0.89" in names(files.certificate)


@pytest.mark.parametrize(
    "damage", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cut"]
)
def test_a_damaged_one_is_made_anew(tmp_path: Path, damage: bytes | str) -> None:
    files = self_signed(tmp_path, NAMES)
    data = files.key.read_bytes()
    files.key.write_bytes(data[: len(data) // 2] if isinstance(damage, str) else damage)
    server_context(self_signed(tmp_path, NAMES))


def test_where_it_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServeError, match="can't be written"):
        self_signed(tmp_path / "file" / "tls", NAMES)


def test_its_fingerprint_is_what_browsers_show(tmp_path: Path) -> None:
    files = self_signed(tmp_path, NAMES)
    shown = fingerprint(files.certificate)
    der = certificate(files.certificate).public_bytes(serialization.Encoding.DER)
    import hashlib

    assert shown.replace(":", "").lower() == hashlib.sha256(der).hexdigest() and shown.count(":") == 31


def test_a_client_that_trusts_it_speaks_tls_and_others_do_not(tmp_path: Path) -> None:
    files = self_signed(tmp_path, NAMES)
    trusting = ssl.create_default_context(cafile=str(files.certificate))
    with running(context=server_context(files)) as server:
        for host in ("127.0.0.1", "localhost"):
            url = f"https://{host}:{server.port}/health"
            own = {"Origin": f"https://{host}:{server.port}"}
            answer = httpx.get(url, verify=trusting, headers=own, timeout=PATIENCE)
            assert answer.json()["status"] == "ok"
            assert "strict-transport-security" not in answer.headers
            wrong = {"Origin": f"http://{host}:{server.port}"}
            assert httpx.get(url, verify=trusting, headers=wrong, timeout=PATIENCE).status_code == 403
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(f"https://127.0.0.1:{server.port}/health", timeout=PATIENCE)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{server.port}/health", timeout=PATIENCE)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain,
            pytest.raises((ssl.SSLError, OSError)),
        ):
            old.wrap_socket(plain)
        assert (
            httpx.get(
                f"https://127.0.0.1:{server.port}/health", verify=trusting, timeout=PATIENCE
            ).status_code
            == 200
        )


def test_100_handshakes_that_never_end_hold_nobody_up(tmp_path: Path) -> None:
    files = self_signed(tmp_path, NAMES)
    trusting = ssl.create_default_context(cafile=str(files.certificate))
    with running(context=server_context(files)) as server:
        silent = [server.connect() for _ in range(100)]
        assert (
            httpx.get(
                f"https://127.0.0.1:{server.port}/health", verify=trusting, timeout=PATIENCE
            ).status_code
            == 200
        )
        server.pass_time(FOR_EVER)
        for connection in silent:
            assert connection.recv(1) == b""
            connection.close()


def test_connections_that_never_begin_the_handshake_make_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wgllm.serve.server._MOST_CONNECTIONS", 10)
    files = self_signed(tmp_path, NAMES)
    trusting = ssl.create_default_context(cafile=str(files.certificate))
    with running(context=server_context(files)) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(60)]
        url = f"https://127.0.0.1:{server.port}/health"
        assert httpx.get(url, verify=trusting, timeout=PATIENCE).status_code == 200
        for connection in silent[:49]:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        assert len(server.server.server_state.connections) <= 10
        # Which is not one of those that have been idle for longest.
        with httpx.Client(verify=trusting, timeout=PATIENCE) as client:
            for _ in range(3):
                assert client.get(url).status_code == 200


def test_what_comes_with_the_end_of_the_handshake_is_answered(tmp_path: Path) -> None:
    files = self_signed(tmp_path, NAMES)
    trusting = ssl.create_default_context(cafile=str(files.certificate))
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with running(context=server_context(files)) as server:
        for whole in (True, False):
            sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting.wrap_bio(received, sent, server_hostname="127.0.0.1")
            with server.connect() as connection:
                while True:
                    try:
                        client.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        connection.sendall(sent.read())
                        received.write(connection.recv(65536))
                if not whole:
                    connection.sendall(sent.read())
                client.write(request)
                connection.sendall(sent.read())  # with the handshake's last message, or after it
                answer = b""
                while b"}" not in answer:
                    data = connection.recv(65536)
                    assert data, answer
                    received.write(data)
                    with contextlib.suppress(ssl.SSLWantReadError):
                        while text := client.read(65536):
                            answer += text
                assert answer.startswith(b"HTTP/1.1 200 ")
    assert not server.server.server_state.connections


# The user's own


def split(files: TlsFiles, folder: Path, password: bytes | None = None) -> TlsFiles:
    """Certificate and key as two files."""
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    kind: serialization.KeySerializationEncryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    folder.mkdir()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kind)
    )
    (folder / "cert.pem").write_bytes(certificate(files.certificate).public_bytes(serialization.Encoding.PEM))
    return TlsFiles(folder / "cert.pem", folder / "key.pem")


def test_files_of_the_user(tmp_path: Path) -> None:
    server_context(split(self_signed(tmp_path / "a", NAMES), tmp_path / "b"))


def test_files_that_can_not_be_used_are_told_in_a_line(tmp_path: Path) -> None:
    one = split(self_signed(tmp_path / "a", NAMES), tmp_path / "one")
    two = split(self_signed(tmp_path / "b", NAMES), tmp_path / "two")
    locked = split(self_signed(tmp_path / "a", NAMES), tmp_path / "locked", b"secret")
    (tmp_path / "nonsense").write_bytes(b"\xff\x00nonsense")
    (tmp_path / "empty").write_bytes(b"")
    wrong = [
        (one.certificate, two.key, "--tls-cert"), (one.key, one.certificate, "--tls-cert"),
        (one.certificate, one.certificate, "--tls-cert"), (locked.certificate, locked.key, "password"),
        (tmp_path / "nonsense", one.key, "--tls-cert"), (one.certificate, tmp_path / "empty", "--tls-cert"),
        (tmp_path / "none", one.key, "No such file"), (one.certificate, tmp_path / "none", "--tls-key"),
        (tmp_path, tmp_path, "directory"),
    ]  # fmt: skip
    for cert, key, said in wrong:
        with pytest.raises(UsageError, match=said) as raised:
            server_context(TlsFiles(cert, key))
        assert "\n" not in str(raised.value)


def test_cryptography_is_not_loaded_without_tls() -> None:
    code = "import sys; import wgllm.serve.app, wgllm.serve.server; print('cryptography' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
