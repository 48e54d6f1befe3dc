"""Who may ask the server: names that it was called by, pages that ask, keys. Attacks are 403 or 401, never 500."""

from __future__ import annotations

import random

import httpx
import pytest

from tests.serve.stand_ins import KEY, OTHERS, ask
from wgllm.serve import security
from wgllm.serve.network import own_names
from wgllm.serve.security import POLICY
from wgllm.serve.settings import Settings, TlsFiles

LOCAL = Settings()
OPEN = Settings(host="0.0.0.0", api_key=KEY, allowed_hosts=("chat.example.com",))
WITH_KEY = Settings(api_key=KEY)
APP = "https://app.example.com"
ALLOWING = Settings(api_key=KEY, allowed_origins=(APP,))
BEARER = {"Authorization": f"Bearer {KEY}"}


def error_of(response: httpx.Response) -> dict[str, object]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and "\n" not in error["message"]
    return dict(error)


# Host

OWN = [
    "localhost",
    "localhost:8080",
    "LOCALHOST:1",
    "localhost.",
    "127.0.0.1:8080",
    "127.8.8.8",
    "[::1]:8080",
    "[::1]",
]
FOREIGN = [
    "", "evil.com", "evil.com:8080", "localhost.evil.com", "evil-localhost", "127.0.0.1.nip.io", "127.0.0.1.evil.com",
    "localhost:8080:80", "localhost:99999", "localhost:", "localhost:x", "user@localhost", "localhost@evil.com",
    "localhost/evil", "localhost, evil.com", "localhost evil.com", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1",
    "0.0.0.0", "[::]", "[::1", "::1", "[::1].evil.com", "[localhost]", "[fe80::1%25eth0]", "192.168.1.5",
    "[2001:db8::1]",
    "locałhost", "localhost\x00", "*", "null", "a" * 300, "[::ffff:8.8.8.8]",
]  # fmt: skip


@pytest.mark.parametrize("called", OWN)
def test_names_of_this_machine_are_answered(called: str) -> None:
    assert ask(LOCAL, "GET", "/health", headers={"Host": called}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/static/app.js", "/api/model", "/v1/echo"])
@pytest.mark.parametrize("called", FOREIGN)
def test_a_rebound_name_is_refused(called: str, path: str) -> None:
    response = ask(LOCAL, "GET", path, headers={b"Host": called.encode("utf-8", "surrogateescape")})  # type: ignore[dict-item]
    assert response.status_code == 403
    assert error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "called",
    ["192.168.1.5:8080", "[2001:db8::1]:8080", "localhost", "chat.example.com", *sorted(own_names())],
)
def test_where_others_may_ask_addresses_and_own_names_are_known(called: str) -> None:
    assert ask(OPEN, "GET", "/health", headers={"Host": called}).status_code == 200


@pytest.mark.parametrize(
    "called", ["evil.com", "chat.example.com.evil.com", "192.168.1.5.nip.io", "xchat.example.com"]
)
def test_where_others_may_ask_foreign_names_are_refused(called: str) -> None:
    assert ask(OPEN, "GET", "/health", headers={"Host": called, **BEARER}).status_code == 403


# Origin

ATTACKS = [
    {"Origin": "null"}, {"Origin": ""}, {"Origin": "https://evil.com"}, {"Origin": "http://evil.com:8080"},
    {"Origin": "https://localhost:8080"}, {"Origin": "http://localhost"}, {"Origin": "http://localhost:8081"},
    {"Origin": "http://127.0.0.1:8080"}, {"Origin": "http://localhost:8080.evil.com"}, {"Origin": "file://"},
    {"Origin": "http://localhost:8080/"}, {"Origin": "http://localhost:8080, http://evil.com"},
    {"Origin": "chrome-extension://abcdef"}, {"Origin": "http://app.example.com"}, {"Origin": f"{APP}.evil.com"},
    {"Origin": f"{APP}:444"}, {"Origin": "https://evil.com@app.example.com"}, {"Origin": "http://[::1"},
    {"Origin": "*"}, {"Origin": "http://localhost:8080\xe9"}, {"Origin": "x" * 5000},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/echo"), ("GET", "/api/model"), ("OPTIONS", "/v1/echo")]
)
@pytest.mark.parametrize("headers", ATTACKS, ids=str)
def test_other_pages_are_refused(headers: dict[str, str], method: str, path: str) -> None:
    raw = {name.encode(): value.encode("latin-1") for name, value in {**headers, **BEARER}.items()}
    response = ask(ALLOWING, method, path, headers=raw)
    assert response.status_code == 403
    assert error_of(response)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_two_origins_are_refused() -> None:
    headers = [("Origin", "http://localhost:8080"), ("Origin", "https://evil.com")]
    assert ask(LOCAL, "POST", "/v1/echo", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://localhost:8080", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_the_own_page_and_programs_are_answered(headers: dict[str, str]) -> None:
    assert ask(LOCAL, "POST", "/v1/echo", headers=headers, content=b"{}").json() == {"size": 2}


def test_a_link_from_another_website_opens_the_page() -> None:
    assert ask(LOCAL, "GET", "/health", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    ("base", "origin"),
    [("http://localhost", "http://localhost:80"), ("https://localhost:443", "https://localhost")],
)
def test_a_default_port_may_be_left_out(base: str, origin: str) -> None:
    assert ask(LOCAL, "POST", "/v1/echo", base=base, headers={"Origin": origin}).status_code == 200


PROXIED = Settings(allowed_hosts=("chat.example.com", "other.example.com:8443"))


@pytest.mark.parametrize(
    ("called", "origin", "status"),
    [
        ("chat.example.com", "https://chat.example.com", 200),
        ("chat.example.com", "https://CHAT.example.com:443", 200),
        ("127.0.0.1:8080", "https://chat.example.com", 200),  # a proxy may pass on its own address for it
        ("other.example.com:8443", "https://other.example.com:8443", 200),
        ("chat.example.com", "http://chat.example.com", 200),
        ("127.0.0.1:8080", "http://chat.example.com", 403),
        ("chat.example.com", "https://chat.example.com:8443", 403),
        ("other.example.com:8443", "https://other.example.com", 403),
        ("chat.example.com", "https://evil.chat.example.com", 403),
        ("chat.example.com", "https://evil.com", 403),
        ("chat.example.com", "null", 403),
        ("127.0.0.1:8080", "https://127.0.0.1:8080", 403),
    ],
)
def test_behind_a_proxy_that_speaks_https(called: str, origin: str, status: int) -> None:
    headers = {"Host": called, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
    response = ask(PROXIED, "POST", "/v1/echo", headers=headers, content=b"{}")
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    if status == 403:
        assert "--allow-host" in str(error_of(response)["message"])


def test_an_allowed_application_may_read_answers_also_errors() -> None:
    headers = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
    answered = ask(ALLOWING, "POST", "/v1/echo", headers={**headers, **BEARER})
    refused = ask(ALLOWING, "POST", "/v1/echo", headers=headers)
    assert (answered.status_code, refused.status_code) == (200, 401)
    for response in (answered, refused):
        assert response.headers["access-control-allow-origin"] == APP
        assert "Origin" in response.headers["vary"]
        assert "access-control-allow-credentials" not in response.headers


def test_a_preflight_of_an_allowed_application_needs_no_key() -> None:
    headers = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    response = ask(ALLOWING, "OPTIONS", "/v1/echo", headers=headers)
    assert response.status_code == 204
    assert response.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-private-network"] == "true"


def test_headers_of_a_preflight_that_are_none_are_not_repeated() -> None:
    headers = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "a; b\t<script>",
    }
    response = ask(ALLOWING, "OPTIONS", "/v1/echo", headers=headers)
    assert response.status_code == 204 and "access-control-allow-headers" not in response.headers


def test_all_websites_are_let_in_only_with_a_key() -> None:
    everyone = Settings(api_key=KEY, allowed_origins=("*",))
    answered = ask(everyone, "POST", "/v1/echo", headers={"Origin": "https://any.example", **BEARER})
    assert answered.headers["access-control-allow-origin"] == "https://any.example"
    assert ask(everyone, "POST", "/v1/echo", headers={"Origin": "null", **BEARER}).status_code == 403


# Key

WRONG_KEYS = [
    b"", b"Bearer", b"Bearer ", b"Bearer x", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer " + KEY.encode()[:-1],
    b"Bearer " + KEY.encode() + b"x", b"Bearer " + KEY.upper().encode(), b"Bearer \xff\xfe\xe9",
    b"Bearer " + "ключ".encode(),
    b"\xff" * 100, b"Bearer " + b"k" * 20000, b"Bearer " + KEY.encode() + b" x", b"Bearer\t" + KEY.encode(),
]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/api/model", "/v1/echo", "/v1/nothing", "/api", "/v1", "/metrics", "//static/x", "/%61pi/model"]
)
def test_without_the_key_nothing_is_answered(path: str) -> None:
    for given in (None, *WRONG_KEYS):
        headers = {} if given is None else {b"Authorization": given}
        response = ask(WITH_KEY, "POST", path, headers=headers)
        assert response.status_code == 401, given
        assert error_of(response)["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"


def test_two_authorizations_are_none() -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer x")]
    assert ask(WITH_KEY, "POST", "/v1/echo", headers=headers).status_code == 401


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_with_the_key_it_is(given: str) -> None:
    assert ask(WITH_KEY, "POST", "/v1/echo", headers={"Authorization": given}).status_code == 200


def test_500_random_keys_are_refused_by_a_comparison_that_takes_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = security.hmac.compare_digest

    def recording(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return compare(given, known)

    monkeypatch.setattr(security.hmac, "compare_digest", recording)
    check = security.KeyCheck(lambda *_: None, WITH_KEY)  # type: ignore[arg-type,return-value]
    rng = random.Random(1)
    for _ in range(500):
        given = rng.randbytes(rng.randrange(60))
        assert not check._authorized({"headers": [(b"authorization", b"Bearer " + given)]})
    assert check._authorized({"headers": [(b"authorization", b"Bearer " + KEY.encode())]})
    assert len(compared) == 501 and {known for _, known in compared} == {KEY.encode()}


def test_health_tells_strangers_nothing() -> None:
    assert ask(WITH_KEY, "GET", "/health").json() == {"status": "ok"}
    assert set(ask(WITH_KEY, "GET", "/health", headers=BEARER).json()) == {
        "status",
        "version",
        "model",
        "engine",
    }
    assert set(ask(LOCAL, "GET", "/health").json()) == {"status", "version", "model", "engine"}


# Headers


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/nothing"), ("POST", "/v1/echo"), ("DELETE", "/health"), ("GET", "/api/boom")],
)
@pytest.mark.parametrize("host", ["localhost", "evil.com"])
def test_every_answer_has_the_headers_of_safety(method: str, path: str, host: str) -> None:
    headers = ask(LOCAL, method, path, headers={"Host": host}).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "strict-transport-security" not in headers
    assert "server" not in headers


@pytest.mark.parametrize("self_signed", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", OTHERS])
def test_browsers_are_told_to_stay_with_tls_where_the_certificate_is_the_users(
    host: str, self_signed: bool, tmp_path: pytest.TempPathFactory
) -> None:
    files = TlsFiles(tmp_path, tmp_path, self_signed)  # type: ignore[arg-type]
    settings = Settings(host=host, api_key=KEY, tls=files)
    headers = ask(settings, "GET", "/health", base="https://localhost").headers
    assert ("strict-transport-security" in headers) == (host == OTHERS and not self_signed)
