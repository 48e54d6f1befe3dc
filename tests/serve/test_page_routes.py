"""What a page gets by HTTP: facts, words, plans, shaders, weights; and what it gets for nonsense."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

import wgllm
from tests.serve.in_thread import PATIENCE
from tests.tiny import CTX, tiny
from wgllm.backends.fills import packed_file
from wgllm.errors import ModelFileError
from wgllm.plan import Plan
from wgllm.serve import page_routes as routes_module
from wgllm.serve.bodies import read_body
from wgllm.serve.errors import EXCEPTION_HANDLERS
from wgllm.serve.model import ServedModel
from wgllm.serve.page_bodies import ChatTokens, Detokenize, PlanWish, SchedulesWish
from wgllm.serve.page_routes import page_routes
from wgllm.serve.plans import LIMITS
from wgllm.serve.weights import PieceStore

MODEL = str(tiny("qwen2.f32").path)
OTHER = str(tiny("gpt2.f32").path)
PIECE = 50_000
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <|im_end|> there"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Bye"},
]
WISH = {"limits": {}, "features": [], "subgroup_size": 0, "software": False, "ctx_size": None}


def served(path: str = MODEL, **options: Any) -> ServedModel:
    model = ServedModel.open(path, offline=True, **options)
    model.plans.store = PieceStore(piece=PIECE)
    return model


def client_of(model: ServedModel) -> TestClient:
    """Exceptions of the server's are raised: none is expected, whatever is asked."""
    return TestClient(Starlette(routes=page_routes(model), exception_handlers=dict(EXCEPTION_HANDLERS)))


@pytest.fixture(scope="module")
def model() -> Iterator[ServedModel]:
    made = served(chat_template="chatml")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(model: ServedModel) -> Iterator[TestClient]:
    with client_of(model) as made:
        yield made


@pytest.fixture
def plan(client: TestClient) -> dict[str, Any]:
    answer = client.post("/api/plans", json=WISH)
    assert answer.status_code == 200
    return answer.json()


def refused(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and error["type"] == "invalid_request_error"
    return error


def weights_of(model: ServedModel, plan: dict[str, Any]) -> bytes:
    found = model.plans.find(plan["id"])
    assert found is not None
    return b"".join(p.tobytes() for p in packed_file(found.plan, found.file._weights))


# Facts and words


def test_facts(client: TestClient, model: ServedModel) -> None:
    facts = client.get("/api/model").json()
    assert facts == model.facts
    assert set(facts) == {
        "id", "name", "architecture", "quantization", "parameters", "nbytes", "license", "n_ctx_train", "vocab_size",
        "end_ids", "has_template", "has_system", "sampling", "ctx_size", "version",
    }  # fmt: skip
    assert (facts["id"], facts["architecture"], facts["quantization"]) == ("qwen2.f32", "qwen2", "F32")
    assert facts["end_ids"] == sorted(model.tokenizer.eog_ids) != []
    assert (facts["ctx_size"], facts["n_ctx_train"], facts["has_template"]) == (CTX, CTX, True)
    assert facts["has_system"] is True
    assert facts["sampling"] == {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def test_facts_of_other_templates_and_settings() -> None:
    without = served(chat_template="gemma", ctx_size=128, overrides={"general.sampling.temp": 0.25})
    silent = served(chat_template="{{ messages[-1].content }}")
    broken = served(chat_template="{{ gone.x }}", overrides={"general.sampling.temp": "hot"})
    assert [m.facts["has_system"] for m in (without, silent, broken)] == [True, False, False]
    assert without.facts["ctx_size"] == 128 and without.facts["sampling"]["temperature"] == 0.25
    assert broken.facts["sampling"]["temperature"] == 0.8
    answer = client_of(broken).post("/api/chat_tokens", json={"messages": CHAT})
    assert "the chat template: line 1: 'gone' is undefined" in refused(answer)["message"]


def test_the_vocabulary_and_its_copy(client: TestClient, model: ServedModel) -> None:
    answer = client.get("/api/vocabulary")
    assert answer.content == model.vocabulary().data
    tag = answer.headers["ETag"]
    again = client.get("/api/vocabulary", headers={"If-None-Match": f'"x", W/{tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/api/vocabulary", headers={"If-None-Match": '"x"'}).status_code == 200


def test_words(client: TestClient, model: ServedModel) -> None:
    text = "Hello <|im_end|> wörld 🙂"
    for special in (False, True):
        for parse in (False, True):
            body = {"text": text, "add_special": special, "parse_special": parse}
            tokens = client.post("/api/tokenize", json=body).json()["tokens"]
            assert tokens == model.tokenizer.tokenize(text, add_special=special, parse_special=parse)
    tokens = client.post("/api/tokenize", json={"text": text}).json()["tokens"]
    assert client.post("/api/detokenize", json={"tokens": tokens}).json() == {
        "text": model.detokenize(tokens)
    }
    half = model.tokenizer.tokenize("🙂", add_special=False)[:1]
    assert client.post("/api/detokenize", json={"tokens": half}).json() == {"text": model.detokenize(half)}
    assert (
        "outside the vocabulary"
        in refused(client.post("/api/detokenize", json={"tokens": [10**6]}))["message"]
    )


def test_a_chat_is_the_one_that_python_makes(client: TestClient, model: ServedModel) -> None:
    with wgllm.load(MODEL, backend="numpy", chat_template="chatml", offline=True) as llm:
        assert client.post("/api/chat_tokens", json={"messages": CHAT}).json()["tokens"] == llm.chat_tokens(
            CHAT
        )
        for ids in (
            [],
            [0],
            model.tokenizer.tokenize("Hi!"),
            [model.tokenizer.tokenize(c)[0] for c in "Hi!"],
        ):
            chat = [*CHAT[:2], {**CHAT[2], "token_ids": ids}, CHAT[3]]
            expected = llm.chat_tokens(chat)
            assert client.post("/api/chat_tokens", json={"messages": chat}).json()["tokens"] == expected
    tools = [{"type": "function", "function": {"name": "add"}}]
    with_tools = served(chat_template="{{ tools | tojson }}{{ messages[0].extra }}{{ messages[0].content }}")
    answer = client_of(with_tools).post(
        "/api/chat_tokens", json={"messages": [{"role": "user", "content": "x", "extra": 7}], "tools": tools}
    )
    assert with_tools.detokenize(answer.json()["tokens"]).endswith('"add"}}]7x')


def test_a_chat_for_another_models_plan_has_no_tokens(client: TestClient, plan: dict[str, Any]) -> None:
    body = {"messages": CHAT, "plan": plan["id"]}
    plain = client.post("/api/chat_tokens", json={"messages": CHAT}).json()
    assert client.post("/api/chat_tokens", json=body).json() == plain
    restarted = client_of(served(chat_template="chatml"))
    assert refused(restarted.post("/api/chat_tokens", json=body), 409)["code"] == "other_model"
    # The same model: the page asks for the context that it has.
    assert (
        restarted.post("/api/plans", json={**WISH, "ctx_size": plan["ctx_size"]}).json()["id"] == plan["id"]
    )
    assert restarted.post("/api/chat_tokens", json=body).json() == plain
    other = client_of(served(path=OTHER))
    assert other.post("/api/plans", json=WISH).json()["id"] != plan["id"]
    assert refused(other.post("/api/chat_tokens", json=body), 409)["code"] == "other_model"


def test_models_without_a_template() -> None:
    mute = served(overrides={"tokenizer.chat_template": None})
    answer = client_of(mute).post("/api/chat_tokens", json={"messages": CHAT})
    assert "no chat template" in refused(answer)["message"]
    assert mute.facts["has_template"] is False and mute.facts["has_system"] is False


def test_a_model_without_a_tokenizer_is_not_served() -> None:
    with pytest.raises(ModelFileError, match="the file has no tokenizer"):
        served(overrides={"tokenizer.ggml.model": None})


def held(
    monkeypatch: pytest.MonkeyPatch, model: ServedModel, method: str
) -> tuple[threading.Event, threading.Event]:
    """Set when a method of the model has begun, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()
    real = getattr(model, method)

    def waits(*arguments: Any, **options: Any) -> Any:
        begun.set()
        go_on.wait(PATIENCE)
        return real(*arguments, **options)

    monkeypatch.setattr(model, method, waits)
    return begun, go_on


def test_facts_do_not_wait_for_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(chat_template="chatml")
    begun, go_on = held(monkeypatch, model, "chat_tokens")
    with client_of(model) as client, ThreadPoolExecutor(1) as pool:
        chat = pool.submit(client.post, "/api/chat_tokens", json={"messages": CHAT})
        assert begun.wait(PATIENCE)
        assert client.get("/api/model").json() == model.facts
        assert not chat.done()
        go_on.set()
        assert chat.result().status_code == 200
    model.close()


def test_schedules_do_not_wait_for_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    model = served()
    with client_of(model) as client, ThreadPoolExecutor(3) as pool:
        plan = client.post("/api/plans", json=WISH).json()
        begun, go_on = held(monkeypatch, model, "plan")
        plans = [pool.submit(client.post, "/api/plans", json=WISH) for _ in range(3)]
        assert begun.wait(PATIENCE)
        widths = [{"part": "body", "rows": 1, "cells": 1}]
        answer = client.post(f"/api/plans/{plan['id']}/schedules", json={"widths": widths})
        assert answer.status_code == 200
        assert not any(each.done() for each in plans)
        go_on.set()
        assert {each.result().json()["id"] for each in plans} == {plan["id"]}
    model.close()


def test_plans_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are all Python's: two at once would take twice as long each, and all others would wait for both."""
    model = served()
    at_once: list[int] = []
    lock = threading.Lock()
    real = model.plan

    def counted(*arguments: Any, **options: Any) -> Any:
        at_once.append(lock.acquire(blocking=False))
        try:
            return real(*arguments, **options)
        finally:
            lock.release()

    monkeypatch.setattr(model, "plan", counted)
    with client_of(model) as client, ThreadPoolExecutor(4) as pool:
        wishes = [{**WISH, "ctx_size": 300 + i} for i in range(4)]
        answers = list(pool.map(lambda wish: client.post("/api/plans", json=wish), wishes))
    assert [answer.status_code for answer in answers] == [200] * 4 and at_once == [True] * 4
    model.close()


def test_a_template_that_takes_forever_does_not_hold_up_others() -> None:
    loops = "{% for a in range(999) %}" * 3 + "{% endfor %}" * 3
    slow = served(chat_template=loops)
    with client_of(slow) as client:
        answers: list[Any] = []
        chats = [
            threading.Thread(
                target=lambda: answers.append(client.post("/api/chat_tokens", json={"messages": CHAT}))
            )
            for _ in range(3)
        ]
        for chat in chats:
            chat.start()
        assert client.post("/api/tokenize", json={"text": "hi"}).status_code == 200
        assert client.post("/api/plans", json=WISH).status_code == 200
        for chat in chats:
            chat.join()
    assert all("takes too" in refused(answer)["message"] for answer in answers) and len(answers) == 3


# Plans


def test_a_plan_and_its_schedules(client: TestClient, model: ServedModel, plan: dict[str, Any]) -> None:
    assert client.post("/api/plans", json=WISH).json() == plan
    widths = [{"part": "body", "rows": 3, "cells": 5}, {"part": "tail", "rows": 1, "cells": 0}]
    widths += [{"part": "greedy", "rows": 1, "cells": 0}, {"part": "draw", "rows": 1, "cells": 7}]
    answer = client.post(f"/api/plans/{plan['id']}/schedules", json={"widths": widths}).json()
    assert [(s["part"], s["rows"], s["cells"]) for s in answer["schedules"]] == [
        ("body", 4, 256), ("tail", 1, 0), ("greedy", 1, 0), ("draw", 1, 0)
    ]  # fmt: skip
    found = model.plans.find(plan["id"])
    assert found is not None
    assert Plan.from_json({**plan["plan"], **answer}).nodes == found.plan.nodes
    for width in ({"part": "body", "rows": 99, "cells": 1}, {"part": "body", "rows": 1, "cells": CTX + 1}):
        refused(client.post(f"/api/plans/{plan['id']}/schedules", json={"widths": [width]}))


def test_plans_that_can_t_be(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**WISH, "limits": {"maxStorageBuffersPerShaderStage": 4}}
    assert refused(client.post("/api/plans", json=small), 422)["code"] == "too_large"
    long = {**WISH, "ctx_size": 2**31 - 1}
    assert refused(client.post("/api/plans", json=long), 422)["code"] == "too_large"
    monkeypatch.setattr("wgllm.serve.plans.has_shader", lambda node: False)
    fresh = client_of(served())
    assert refused(fresh.post("/api/plans", json=WISH), 422)["code"] == "no_shader"


@pytest.mark.parametrize("plan_id", ["x", "0" * 32, "..", "%00", "ü", "a" * 5000, "..%2f..%2fetc"])
@pytest.mark.parametrize("what", ["schedules", "pieces", "weights"])
def test_plans_that_nobody_made(client: TestClient, plan_id: str, what: str) -> None:
    url = f"/api/plans/{plan_id}/{what}"
    answer = client.post(url, json={"widths": []}) if what == "schedules" else client.get(url)
    if plan_id in ("..", "..%2f..%2fetc"):
        assert answer.status_code in (404, 405)
    else:
        assert refused(answer, 404)["code"] == "unknown_plan"


# Weights


def test_pieces_and_weights(client: TestClient, model: ServedModel, plan: dict[str, Any]) -> None:
    whole = weights_of(model, plan)
    answer = client.get(f"/api/plans/{plan['id']}/pieces")
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    *pieces, last = [json.loads(line) for line in answer.text.splitlines()]
    assert last == {"done": True, "size": len(whole)} and len(pieces) > len(whole) / PIECE
    starts = [0]
    for fill in plan["plan"]["fills"]:
        starts.append(starts[-1] + fill["region"][2])
    at = 0
    for piece in pieces:
        assert piece["at"] == at == starts[piece["fill"]] + piece["offset"]
        data = whole[at : at + piece["size"]]
        assert len(data) == piece["size"] <= PIECE and piece["sha256"] == hashlib.sha256(data).hexdigest()
        at += piece["size"]
    assert at == len(whole)
    answer = client.get(f"/api/plans/{plan['id']}/weights")
    assert answer.content == whole and answer.status_code == 200
    assert answer.headers["ETag"] == plan["file_etag"] and answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Length"] == str(len(whole)) == str(plan["weights_bytes"])


BAD, WHOLE = "416", "200"
RANGES: list[tuple[str, str | tuple[int | None, int | None]]] = [
    ("bytes=0-0", (0, 1)),
    ("bytes=0-", (0, None)),
    ("bytes=1-49999", (1, 50000)),
    ("bytes=49999-50000", (49999, 50001)),
    ("bytes=12345-234567", (12345, 234568)),
    ("BYTES = 5-9", (5, 10)),
    ("bytes=-1", (-1, None)),
    ("bytes=-70000", (-70000, None)),
    ("bytes=-99999999999999999999999999", (0, None)),
    ("bytes=7-99999999999999999999999999", (7, None)),
    ("bytes=000000000000000000000000000000007-8", (7, 9)),
    ("bytes=99999999999-", BAD),
    ("bytes=" + "9" * 5000 + "-", BAD),
    ("bytes=9-8", BAD),
    ("bytes=-0", BAD),
    ("bytes=-", BAD),
    ("bytes=", BAD),
    ("bytes=x-9", BAD),
    ("bytes=--5", BAD),
    ("bytes=+1-5", BAD),
    ("bytes=1.5-9", BAD),
    ("bytes=0x1-9", BAD),
    ("bytes=1-2-3", BAD),
    ("bytes=0-1,5-6", WHOLE),
    ("bytes 0-1", WHOLE),
    ("lines=0-1", WHOLE),
    ("", WHOLE),
]


@pytest.mark.parametrize(("header", "expected"), RANGES, ids=[h[:30] for h, _ in RANGES])
def test_ranges(
    client: TestClient, model: ServedModel, plan: dict[str, Any], header: str, expected: Any
) -> None:
    whole = weights_of(model, plan)
    url = f"/api/plans/{plan['id']}/weights"
    answer = client.get(url, headers={"Range": header})
    if expected == BAD:
        refused(answer, 416)
        assert answer.headers["Content-Range"] == f"bytes */{len(whole)}"
        return
    if expected == WHOLE:
        assert answer.status_code == 200 and answer.content == whole and "Content-Range" not in answer.headers
        return
    first, last, _ = slice(*expected).indices(len(whole))
    assert answer.status_code == 206 and answer.content == whole[first:last]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(whole)}"
    assert answer.headers["Content-Length"] == str(last - first)
    assert answer.headers["ETag"] == plan["file_etag"]


def test_ranges_of_another_copy_and_heads(
    client: TestClient, model: ServedModel, plan: dict[str, Any]
) -> None:
    url, tag, size = f"/api/plans/{plan['id']}/weights", plan["file_etag"], plan["weights_bytes"]
    mine = client.get(url, headers={"Range": "bytes=3-9", "If-Range": tag})
    assert (mine.status_code, len(mine.content)) == (206, 7)
    for other in ('"other"', f"W/{tag}", "Mon, 23 Nov 2026 00:00:00 GMT", ""):
        answer = client.get(url, headers={"Range": "bytes=3-9", "If-Range": other})
        assert (answer.status_code, len(answer.content)) == (200, size)
    packed = model.plans.store.packed
    head = client.head(url, headers={"Range": "bytes=3-9"})  # which counts for GET alone
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(size))
    assert head.headers["ETag"] == tag and head.headers["Accept-Ranges"] == "bytes"
    assert client.head(url.replace("weights", "pieces")).content == b""
    same = client.get(url, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    assert model.plans.store.packed == packed


def test_weights_that_can_t_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = served()
    client = client_of(model)
    plan = client.post("/api/plans", json=WISH).json()
    asked = []

    def fails(*arguments: Any) -> Any:
        asked.append(arguments)
        raise OSError("the disk\nis gone")

    monkeypatch.setattr("wgllm.serve.weights.fill_bytes", fails)

    async def asked_for() -> str:
        transport = httpx.ASGITransport(client.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as reader:
            return (await reader.get(f"/api/plans/{plan['id']}/pieces")).text

    # Not by TestClient, which before Starlette 1.1 forgets what came before an error.
    *_, last = asyncio.run(asked_for()).splitlines()
    assert json.loads(last) == {"error": "OSError: the disk is gone"}
    assert len(asked) == 1


@pytest.mark.parametrize("what", ["pieces", "weights"])
def test_a_client_that_leaves_stops_the_work(what: str) -> None:
    model = served()
    app = Starlette(routes=page_routes(model), exception_handlers=dict(EXCEPTION_HANDLERS))
    plan = client_of(model).post("/api/plans", json=WISH).json()
    path = f"/api/plans/{plan['id']}/{what}"

    async def leave() -> int:
        gone = asyncio.Event()
        bodies = 0

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal bodies
            bodies += message["type"] == "http.response.body"
            if bodies == 2:
                gone.set()
            await asyncio.sleep(0.001)

        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), PATIENCE)
        return bodies

    bodies = asyncio.run(leave())
    assert 2 <= bodies <= 4 < len(model.plans.find(plan["id"]).file.pieces)  # type: ignore[union-attr]
    assert model.plans.store.packed <= 5


# Nonsense


VALUES: list[Any] = [
    None, True, -1, 0, 1, 64, 1.5, 1e308, -(2**63), 2**53, 2**64, 10**30, "", "x", "8", "\x00", "\ud800", "é" * 300, [],
    {}, [[]], [None], [-1], [2**40], ["x"], [1.5], [True], {"x": 1}, {"role": "user"}, [{"role": 5}],
    [{"role": "user", "content": {}}], [{"role": "user\n<|im_start|>", "content": "x"}], [{"part": "body"}],
    [{"part": "head", "rows": 1}], [{"part": "body", "rows": 0, "cells": 1}],
    [{"role": "user", "content": [[[[]]]] * 50}],
    [{"role": "user", "content": "x", "token_ids": [-5]}], [{"role": "user", "content": "x", "token_ids": "no"}],
    [{"role": "user", "content": [{"type": "image"}]}], dict.fromkeys(LIMITS, 2 ** 70), dict.fromkeys(LIMITS, 0),
    dict.fromkeys(LIMITS, "big"), dict.fromkeys(LIMITS, 1e309),
]  # fmt: skip
ENDPOINTS = {
    "/api/tokenize": {"text": "hi", "add_special": True, "parse_special": False},
    "/api/detokenize": {"tokens": [1, 2]},
    "/api/chat_tokens": {"messages": CHAT, "tools": None, "plan": None},
    "/api/plans": WISH,
    "schedules": {"widths": [{"part": "body", "rows": 1, "cells": 1}]},
}


def nonsense() -> Iterator[tuple[str, bytes]]:
    """Endpoints and bodies: each field with each value, alone and among good ones, and what is no JSON at all."""
    for endpoint, good in ENDPOINTS.items():
        text = json.dumps(good).encode()
        for field in good:
            for value in VALUES:
                yield endpoint, json.dumps({**good, field: value}).encode()
            yield endpoint, json.dumps({k: v for k, v in good.items() if k != field}).encode()
        for raw in (
            b"", b"null", b"[]", b"5", b'"x"', b"{", b"\xff\xfe", b'{"text": "\xff"}', text[:-1], text + b"x", b"NaN",
            text.replace(b":", b": NaN //", 1), b"[" * 100_000, b'{"messages":' * 5000, text.replace(b'"', b"'"),
            b'{"tokens": [NaN]}', b'{"text": "\\ud800"}', b'{"text": "\\u0000"}', b'{"tokens": [1e999]}',
            b'{"limits": {"maxBufferSize": ' + b"9" * 10_000 + b"}}", b'{"limits": {"maxBufferSize": 1e9}}',
            b'{"messages": [{"role": "user", "content": "x", "y": ' + b"[" * 150 + b"]" * 150 + b"}]}",
            b'{"messages": [{"role": "user", "content": "x", "y": NaN, "z": -Infinity}]}',
            json.dumps({"messages": [{"role": "user", "content": [0] * 30_000}]}).encode(),
            json.dumps({"messages": [{"role": "user", "content": "x"}] * 10_001}).encode(),
            json.dumps({"widths": [{"part": "body", "rows": 1, "cells": 1}] * 65}).encode(),
            json.dumps({"limits": {str(i): i for i in range(1000)}}).encode(),
            json.dumps({"text": "x" * ((4 << 20) + 1)}).encode(),
        ):  # fmt: skip
            yield endpoint, raw


def test_nonsense_is_refused_and_never_an_error_of_the_server(
    client: TestClient, model: ServedModel, plan: dict[str, Any]
) -> None:
    cases = list(nonsense())
    assert len(cases) > 600
    answered: dict[int, int] = {}
    for endpoint, body in cases:
        url = f"/api/plans/{plan['id']}/schedules" if endpoint == "schedules" else endpoint
        answer = client.post(url, content=body)
        answered[answer.status_code] = answered.get(answer.status_code, 0) + 1
        if answer.status_code == 200:
            json.loads(body, parse_constant=pytest.fail)  # nothing is taken that is not JSON
        else:
            assert answer.status_code in (400, 409, 422), (endpoint, body[:200])
            refused(answer, answer.status_code)
    assert answered[400] > 400 and answered.keys() == {200, 400, 409, 422}
    # And all is as before.
    assert client.post("/api/plans", json=WISH).json() == plan


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (Detokenize, {"tokens": ["a"] * 250_000}),
        (ChatTokens, {"messages": [1] * 250_000}),
        (ChatTokens, {"messages": [{"role": "user", "token_ids": ["a"] * 250_000}]}),
        (ChatTokens, {"messages": CHAT, "tools": [1] * 250_000}),
        (PlanWish, {"limits": {str(i): "x" for i in range(250_000)}}),
        (PlanWish, {"limits": {}, "features": [1] * 250_000}),
        (SchedulesWish, {"widths": [1] * 250_000}),
    ],
)
def test_a_large_wrong_body_has_few_errors(model: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    assert caught.value.error_count() < 20


@pytest.mark.parametrize("count", [3000, 400_000])
def test_a_body_with_very_many_errors_or_values_is_refused_in_a_line(count: int) -> None:
    class Open(BaseModel):
        """Nothing of what it holds is bounded."""

        values: dict[str, int]

    async def body(request: Request) -> Response:
        await read_body(request, Open)
        return Response()

    app = Starlette(routes=[Route("/", body, methods=["POST"])], exception_handlers=dict(EXCEPTION_HANDLERS))
    answer = TestClient(app).post("/", json={"values": {str(i): "a" for i in range(count)}})
    expected = "the body: 3,000 values are wrong" if count == 3000 else "the body holds too many values"
    assert refused(answer)["message"] == expected


def test_random_limits_make_plans_that_fit_or_are_refused(client: TestClient) -> None:
    rng = random.Random(0)
    counts = {200: 0, 422: 0, 400: 0}
    for _ in range(60):
        limits = {
            name: rng.choice([rng.randrange(2**8), 2 ** rng.randrange(12, 50), 2**28]) for name in LIMITS
        }
        body = {**WISH, "limits": limits if rng.random() < 0.5 else {}, "software": rng.random() < 0.3}
        body["ctx_size"] = rng.choice([None, rng.randrange(1, 2**12), rng.randrange(2**31), 0])
        answer = client.post("/api/plans", json=body)
        counts[answer.status_code] += 1
        if answer.status_code == 200:
            made = answer.json()["plan"]["limits"]
            believed = body["limits"] or {}
            assert all(made[ours] <= believed[name] for name, ours in LIMITS.items() if name in believed)
            assert max(b["size"] for b in answer.json()["plan"]["buffers"]) <= made["buffer"]
    assert counts[200] > 5 and counts[422] > 5


def test_chunks_are_small(client: TestClient, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "_CHUNK", 1000)
    with client.stream("GET", f"/api/plans/{plan['id']}/weights") as answer:
        assert sum(map(len, answer.iter_raw())) == plan["weights_bytes"]
