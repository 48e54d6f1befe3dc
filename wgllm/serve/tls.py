"""TLS: the user's certificate, or one that is made here and kept, so that a browser needs to trust it but once."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wgllm.errors import ServeError, UsageError, printable
from wgllm.serve.network import ip_address, own_names, parse_host
from wgllm.serve.settings import TlsFiles

if TYPE_CHECKING:
    from cryptography import x509

FILE_NAME = "self-signed.pem"
# Browsers refuse certificates that live longer than 398 days, Apple's any longer than 825.
_DAYS = 365
_RENEW_DAYS = 30
_MOST_NAMES = 64


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """What a server needs to speak TLS 1.2 or newer with a certificate. Raises UsageError."""
    name = printable(str(files.certificate))
    for flag, file in (("--tls-cert", files.certificate), ("--tls-key", files.key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise UsageError(f"{flag} {printable(str(file))}: {error.strerror or error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def no_password() -> NoReturn:
        raise UsageError(f"--tls-key {printable(str(files.key))}: keys behind a password can't be used")

    try:
        context.load_cert_chain(files.certificate, files.key, no_password)
    except (ssl.SSLError, ValueError) as error:
        problem = getattr(error, "reason", None) or "no certificate and key in PEM form"
        said = str(problem).replace("_", " ").lower()
        raise UsageError(f"--tls-cert {name}: certificate and key can't be used: {said}") from error
    return context


def certificate_names(hosts: Iterable[str], addresses: Iterable[str]) -> frozenset[str]:
    """Names and addresses by which browsers may come: this machine's own, those given, and of its interfaces."""
    names = set(own_names()) | {"127.0.0.1", "::1"}
    for host in hosts:
        parsed = parse_host(f"[{host}]" if ":" in host else host)
        if parsed is not None:
            names.add(parsed[0])
    for address in addresses:
        known = ip_address(address)
        if known is not None and not known.is_unspecified:
            names.add(str(known))
    return frozenset(names - {"0.0.0.0", "::"})


def self_signed(folder: Path, names: frozenset[str], now: datetime.datetime | None = None) -> TlsFiles:
    """The certificate of ``folder``, made where there is none that holds for ``names`` and for some weeks.

    A new one also holds for the names of the last, so that a laptop that moves between networks keeps one in the end.
    Raises ServeError when it can't be written.
    """
    path = folder / FILE_NAME
    now = datetime.datetime.now(datetime.timezone.utc) if now is None else now
    files = TlsFiles(path, path, self_signed=True)
    known = _kept(path)
    before: frozenset[str] = frozenset()
    if known is not None:
        before = _names_of(known)
        left = known.not_valid_after_utc - now
        begun = known.not_valid_before_utc <= now
        if names <= before and begun and left > datetime.timedelta(days=_RENEW_DAYS):
            return files
    if len(before | names) <= _MOST_NAMES:
        names |= before
    try:
        _write(path, _made(names, now))
    except OSError as error:
        place = printable(str(path))
        raise ServeError(f"{place}: the certificate can't be written: {error.strerror or error}") from error
    return files


def fingerprint(path: Path) -> str:
    """The SHA-256 of a certificate, in the form in which browsers show it."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    digest = x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(SHA256())
    return digest.hex(":").upper()


def _kept(path: Path) -> x509.Certificate | None:
    """The certificate that lies there with its key, None where it is damaged or others could have read the key."""
    from cryptography import x509

    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            return None
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password=lambda: b"")
    except (OSError, ValueError):  # SSLError is an OSError
        return None
    return certificate


def _names_of(certificate: x509.Certificate) -> frozenset[str]:
    from cryptography import x509

    try:
        listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    found = listed.get_values_for_type(x509.IPAddress)
    return frozenset(listed.get_values_for_type(x509.DNSName)) | {str(each) for each in found}


def _made(names: frozenset[str], now: datetime.datetime) -> bytes:
    """A new key and its certificate, PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wgllm on this machine")])
    listed: list[x509.GeneralName] = []
    for name in sorted(names):
        address = ip_address(name)
        listed.append(x509.DNSName(name) if address is None else x509.IPAddress(address))
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(listed), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret + certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes) -> None:
    """The file as a whole or not at all; only its owner may read it, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    number, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        Path(staged).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(staged).unlink()
        raise
