"""OpenAI's routes with clients that send nonsense, leave, read slowly, or come all at once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette

from tests.serve.engine_children import command
from tests.serve.in_thread import FOR_EVER, PATIENCE, wait_for
from tests.serve.running import FakeWorker, Named, Running, fake_host, running
from wgllm.engine import FinishReason, Request, Stats
from wgllm.sampling import SamplingOptions
from wgllm.serve import openai_routes
from wgllm.serve.engine_host import EngineHost
from wgllm.serve.openai_routes import chat_routes
from wgllm.serve.openai_types import ChatRequest, CompletionRequest, Sampled
from wgllm.serve.sse import EventStream, Outflow, SlowReader, while_there
from wgllm.worker import Events, Listener, Message

REPLY = "word " * 10_000
HI = [{"role": "user", "content": "Hi"}]
QUEUE = 3


class Watched(FakeWorker):
    """Notes which requests were cancelled, and how they ended."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener, command=command("counts_what_comes_after_a_cancel"))
        self.begun: set[int] = set()
        self.seen: set[int] = set()
        self.cancelled: set[int] = set()
        self.ended: dict[int, tuple[FinishReason, Stats]] = {}

    def generate(self, request: Request, listener: Listener | None = None) -> int:
        assert listener is not None

        def listen(message: Message) -> None:
            if isinstance(message, Events):
                last = message.events[-1]
                self.seen.add(message.request)
                if last.finish is not None and last.stats is not None:
                    self.ended[message.request] = last.finish, last.stats
            listener(message)

        number = super().generate(request, listen)
        self.begun.add(number)
        return number

    def cancel(self, request: int) -> None:
        self.cancelled.add(request)
        super().cancel(request)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Its replies take minutes, a token every 5 ms."""
    options = {"replies": [REPLY], "delay": 0.005, "ctx_size": 100_000}
    host = partial(EngineHost, "fake", options, queue_size=QUEUE, make_worker=Watched)
    with running(host, max_body_bytes=8 << 20, body_seconds=FOR_EVER) as server:
        server.do(server.host.start())
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        yield client


def idle(server: Running) -> None:
    """Waits until nobody is served."""
    wait_for(lambda: server.host.status()["running"] == server.host.status()["waiting"] == 0)


def ask(**options: Any) -> dict[str, Any]:
    return {"messages": HI, "max_tokens": 5, **options}


# Nonsense


NUMBERS = [
    "NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e999", "9" * 30, "-" + "9" * 30,
    '"1"', '""', "[]", "[1]", "{}", '{"a":1}',
]  # fmt: skip
NAMES = [*SamplingOptions.__annotations__, "max_tokens", "max_completion_tokens", "top_logprobs", "n"]
OWN_NAMES = {"mirostat_ent": "mirostat_tau", "mirostat_lr": "mirostat_eta"}
OTHERS: list[tuple[str, str]] = [
    *[("messages", raw) for raw in ("1", '"a"', "{}", "[]", "[1]", '["a"]', "[[]]", "[{}]", "null", "NaN")],
    *[
        ("messages", f'[{{"role": {role}, "content": "a"}}]')
        for role in ('"king"', '"USER"', '""', "1", "null", "[]", "{}", '"user "', '"\\u0000"', '"<|im_start|>"')
    ],
    *[
        ("messages", f'[{{"role": "user", "content": {content}}}]')
        for content in (
            "null", "1", "true", "{}", "[1]", "[[]]", "[null]", '["a"]', '[{"type": "text"}]', '[{"text": "a"}]',
            '[{"type": "text", "text": 1}]', '[{"type": "input_audio", "input_audio": {}}]',
            '[{"type": "image_url", "image_url": {"url": "data:"}}]', '"\\ud800"', '[{"type": 1, "text": "a"}]',
        )
    ],
    *[
        ("messages", f'[{{"role": "assistant", "content": null, "tool_calls": {calls}}}]')
        for calls in ("[]", "[1]", "[{}]", "{}", '[{"function": {}}]', '[{"type": "x", "function": {"name": "a"}}]',
                      '[{"function": {"name": "a", "arguments": 1}}]',
                      '[{"function": {"name": "a", "arguments": {"b": NaN}}}]')
    ],
    *[
        ("messages", f'[{{"role": "user", "content": "a", "token_ids": {ids}}}]')
        for ids in ('["a"]', "[-1]", "[1.5]", "[NaN]", "[99999999999]", "{}", "[[1]]", "1")
    ],
    *[("stop", raw) for raw in ("1", "{}", "[1]", "[[]]", "true", json.dumps(["a"] * 17), json.dumps("a" * 1001))],
    *[("logit_bias", raw) for raw in ("[]", '"a"', '{"a": 1}', '{"-1": 1}', '{"1": "a"}', '{"1": 1e308}',
                                      '{"1": NaN}', '{"99999999999": 1}', '{"\\u0661": 1}')],
    ("logit_bias", json.dumps({str(i): 1 for i in range(2000)})),
    *[("stream", raw) for raw in ("1", '"true"', "[]", "{}", "NaN")],
    *[("stream_options", raw) for raw in ("1", '"a"', "[]", '{"include_usage": 1}')],
    *[("tools", raw) for raw in ("1", "{}", "[1]", "[{}]", '[{"type": "x"}]', '[{"type": "function"}]',
                                 '[{"type": "function", "function": {"name": 1}}]',
                                 '[{"type": "function", "function": {"name": "a", "parameters": [1]}}]',
                                 '[{"type": "function", "function": {"name": "a", "parameters": {"b": 1e999}}}]',
                                 '[{"type": "function", "function": {"name": "a", "parameters": {"b": %s}}}]'
                                 % ("[" * 60 + "]" * 60),
                                 '[{"type": "function", "function": {"name": "a", "parameters": {"b": %s}}}]'
                                 % ("9" * 5000))],
    *[("tool_choice", raw) for raw in ('"required"', '"x"', "1", "[]",
                                       '{"type": "function", "function": {"name": "a"}}')],
    *[("response_format", raw) for raw in ('{"type": "json_object"}', '{"type": "json_schema"}', '"text"', "{}", "1")],
    *[(name, "1") for name in ("functions", "function_call", "audio", "grammar", "json_schema", "guided_regex",
                               "structured_outputs", "web_search_options", "chat_template_kwargs", "lora")],
    *[("modalities", raw) for raw in ('["audio"]', '["text", "audio"]', '"text"', "1")],
    *[("model", raw) for raw in ("1", "[]", "{}", json.dumps("a" * 1001))],
    *[("logprobs", raw) for raw in ("1", '"true"', "[]")],
    *[("samplers", raw) for raw in ("1", '["no such"]', "[1]", '"top_k"')],
    *[("seed", raw) for raw in ("1.5", "true")], ("n", "2"), ("n", "0"), ("temperature", "-1"), ("top_p", "-0.5"),
    ("min_p", "1.5"), ("max_tokens", "-2"), ("top_logprobs", "21"), ("top_logprobs", "1"), ("ignore_eos", "1"),
    ("progress", '"yes"'), ("dry_sequence_breakers", '[""]'), ("repeat_penalty", "0"),
]  # fmt: skip
BODIES: list[bytes] = [
    b"", b" ", b"null", b"1", b'"a"', b"[]", b"[{}]", b"{}", b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    b'{"messages"', b"NaN", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    b'{"messages": [{"role": "user", "content": "a\nb"}]}', b"{'messages': []}",
    b"[" * 100_000, b"[" * 250_000, b'{"a":' * 100_000, b'{"messages":' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"messages": [' + b"{}," * 150_000 + b"{}]}", b'{"messages": [' + b"1," * 900_000 + b"1]}",
    b'{"messages": [' + b'{"role":"user","content":"a"},' * 20_000 + b'{"role":"user","content":"a"}]}',
    b"messages=Hi", b"\x00" * 1000, b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
]  # fmt: skip
PROMPTS = ["null", "1", "{}", "[]", '["a", "b"]', "[[1], [2]]", '[1, "a"]', "[-1]", "[1.5]", "[NaN]", "[[[]]]",
           '[""]', '""', "true", '"\\ud800"']  # fmt: skip


def generated_bodies() -> Iterator[tuple[str, bytes]]:
    """(route, body) of bodies that are all wrong."""
    for name in NAMES:
        if name in ("logit_bias", "samplers", "dry_sequence_breakers"):
            continue
        for raw in NUMBERS:
            yield "chat/completions", field(OWN_NAMES.get(name, name), raw)
    for name, raw in OTHERS:
        yield "chat/completions", field(name, raw)
    for body in BODIES:
        yield "chat/completions", body
    for raw in PROMPTS:
        yield "completions", b'{"max_tokens": 1, "prompt": %s}' % raw.encode()
    for name in ("echo", "suffix", "best_of", "logprobs"):
        yield "completions", b'{"max_tokens": 1, "prompt": "a", "%s": "x"}' % name.encode()
    whole = json.dumps(ask(stop=["a"], logit_bias={"1": 1.0})).encode()
    for end in range(1, len(whole) - 1):
        yield "chat/completions", whole[:end]


def field(name: str, raw: str) -> bytes:
    """A good body with a field's JSON replaced."""
    rest = {key: value for key, value in ask().items() if key != name}
    return b'{"%s": %s, %s' % (name.encode(), raw.encode(), json.dumps(rest)[1:].encode())


def test_nonsense_is_refused_by_name(server: Running, client: httpx.Client) -> None:
    bodies = list(generated_bodies())
    assert len(bodies) >= 500
    for route, body in bodies:
        response = client.post(route, content=body)
        shown = (body[:200], response.status_code, response.text[:300])
        assert 400 <= response.status_code < 500, shown
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error" and error["message"].isprintable(), shown
        assert len(error["message"]) < 500, shown
    assert client.post("chat/completions", json=ask()).status_code == 200
    assert server.host.status()["restarts"] == 0  # none of them ended the process


def test_errors_name_the_field(client: httpx.Client) -> None:
    for name, raw, param in (
        ("temperature", "1e308", "temperature"),
        ("messages", '[{"role": "user", "content": "a"}, {"role": "x", "content": "a"}]', "messages[1].role"),
        ("messages", '[{"role": "user", "content": [{"type": "text", "text": 1}]}]', "messages[0].content[0].text"),
        ("stop", "[1]", "stop[0]"),
        ("logit_bias", '{"1": "a"}', "logit_bias[1]"),
        ("guided_json", "{\"type\": 1}", "guided_json"),
        ("messages", '[{"role": "user", "content": 5}]', "messages[0].content"),
        ("messages", '[{"role": "user", "content": [5]}]', "messages[0].content[0]"),
        ("samplers", '["no such"]', "samplers"),
        ("dry_sequence_breakers", '["a", ""]', "dry_sequence_breakers[1]"),
        ("logit_bias", '{"2147483647": 1}', "logit_bias"),
        ("logit_bias", json.dumps({str(i): "a" for i in range(2000)}), "logit_bias"),
        ("messages", json.dumps([{"role": "user", "content": "a" * (3 << 20)}] * 2), "messages"),
    ):  # fmt: skip
        error = client.post("chat/completions", content=field(name, raw)).json()["error"]
        assert error["param"] == param and param in error["message"], (raw[:100], error)
    for raw, param in (("[true]", "prompt[0]"), ("true", "prompt"), ("[[1, null]]", "prompt[0][1]")):
        error = client.post("completions", content=b'{"prompt": %s}' % raw.encode()).json()["error"]
        assert error["param"] == param and "str]" not in error["message"], (raw, error)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": HI, "logit_bias": {str(i): "a" for i in range(250_000)}}),
        (ChatRequest, {"messages": [{"role": 1}] * 90_000}),
        (ChatRequest, {"messages": HI, "stop": [1] * 250_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": "a", "token_ids": ["a"] * 250_000}]}),
        (CompletionRequest, {"prompt": [None] * 250_000}),
        (CompletionRequest, {"prompt": [[None]] * 90_000}),
    ],
)
def test_a_large_wrong_body_has_few_errors(model: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    assert caught.value.error_count() < 20


def test_every_sampling_option_has_a_field() -> None:
    names = {OWN_NAMES.get(name, name) for name in SamplingOptions.__annotations__}
    assert names <= Sampled.model_fields.keys()
    everything = ChatRequest.model_validate_json(
        b'{"messages": [{"role": "user", "content": "a"}], "mirostat_tau": 4, "seed": 1, "logit_bias": {"3": -1}}'
    )
    assert everything.sampling == {"mirostat_ent": 4.0, "seed": 1, "logit_bias": {3: -1.0}}
    assert CompletionRequest.model_validate_json(b'{"prompt": [[1, 2]]}').only_prompt == [1, 2]


def test_bodies_beyond_the_limit_are_not_read(server: Running, client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(65):
            yield b"a" * (1 << 20)

    # Without a length it is read up to the limit. The client may still be sending when the answer comes.
    try:
        assert client.post("chat/completions", content=pieces()).status_code == 413
    except httpx.TransportError as error:
        assert isinstance(error, (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError))
    # With one not at all.
    with socket.create_connection(address(server), PATIENCE) as raw:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 68157440\r\n\r\n{"
        raw.sendall(head.encode())
        answer = ""
        while "}}" not in answer:
            data = raw.recv(65536)
            assert data, answer
            answer += data.decode()
    assert answer.startswith("HTTP/1.1 413 ") and "body_too_large" in answer
    assert client.post("chat/completions", json=ask()).status_code == 200


# Clients that leave


def address(server: Running) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


def connect(server: Running, **options: Any) -> socket.socket:
    """A client that has asked for a reply of minutes."""
    body = json.dumps({"messages": HI, **options}).encode()
    connection = socket.create_connection(address(server), timeout=PATIENCE)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_ends_the_reply_within_a_token(server: Running, stream: bool) -> None:
    worker = server.worker
    assert isinstance(worker, Watched)
    rng = random.Random(stream)
    for _ in range(5):
        known, seen = set(worker.ended), len(worker.seen)
        connection = connect(server, stream=stream)
        wait_for(lambda: len(worker.seen) > seen)  # noqa: B023
        time.sleep(rng.uniform(0, 0.1))
        connection.close()
        idle(server)
        wait_for(lambda: worker.begun == set(worker.ended))
        (request,) = set(worker.ended) - known
        reason, stats = worker.ended[request]
        assert reason is FinishReason.CANCELLED and request in worker.cancelled
        assert stats.cached_tokens <= 1  # made after the cancel: the one that was being made


def test_who_leaves_the_queue_is_not_answered(server: Running) -> None:
    worker = server.worker
    assert isinstance(worker, Watched)
    known = len(worker.seen)
    first = connect(server, stream=True)
    wait_for(lambda: len(worker.seen) == known + 1)
    others = [connect(server, stream=bool(i % 2)) for i in range(QUEUE)]
    wait_for(lambda: server.host.status()["waiting"] == QUEUE)
    for other in others:
        other.close()
    wait_for(lambda: server.host.status()["waiting"] == 0)
    first.close()
    idle(server)
    assert len(worker.seen) == known + 1


def test_who_leaves_in_the_middle_of_a_body(server: Running, client: httpx.Client) -> None:
    with socket.create_connection(address(server), PATIENCE) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
    assert client.post("chat/completions", json=ask()).status_code == 200


# All at once


def test_a_full_queue(server: Running, client: httpx.Client) -> None:
    running_ones = []
    for i in range(QUEUE + 1):
        running_ones.append(connect(server, stream=True))
        wait_for(lambda: sum(server.host.status()[key] for key in ("running", "waiting")) == i + 1)  # noqa: B023
    for options in ({}, {"stream": True}):
        response = client.post("chat/completions", json=ask(**options))
        assert response.status_code == 503 and response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 600
    with (
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
        ) as official,
        pytest.raises(openai.InternalServerError, match="busy"),
    ):
        official.chat.completions.create(model="m", messages=HI)  # type: ignore[arg-type]
    for connection in running_ones:
        connection.close()
    idle(server)
    assert client.post("chat/completions", json=ask()).status_code == 200


def test_progress_of_the_queue(server: Running, client: httpx.Client) -> None:
    first = connect(server, stream=True)
    wait_for(lambda: server.host.status()["running"] == 1)
    told: list[dict[str, Any]] = []

    def listen() -> None:
        with client.stream("POST", "chat/completions", json=ask(stream=True, progress=True)) as response:
            for line in response.iter_lines():
                if "wgllm.progress" in line:
                    told.append(json.loads(line.removeprefix("data: ")))

    thread = threading.Thread(target=listen)
    thread.start()
    wait_for(lambda: bool(told))
    assert {key: told[0][key] for key in ("stage", "done", "total", "label", "choices")} == {
        "stage": "queue", "done": 0, "total": 1, "label": "", "choices": [],
    }  # fmt: skip
    first.close()
    thread.join(PATIENCE)
    assert told[-1]["stage"] == "prefill"


# Clients that read slowly


class Client:
    """The other end of an ASGI application."""

    def __init__(self, body: bytes | None = None) -> None:
        """``body``: what it has still to say."""
        self._said = body
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        if self._said is not None:
            said, self._said = self._said, None
            return {"type": "http.request", "body": said, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def stream_to(client: Client, stream: EventStream) -> Any:
    return asyncio.wait_for(stream({"type": "http"}, client.receive, client.send), PATIENCE)


def test_who_takes_nothing_is_left_and_the_maker_never_waits() -> None:
    async def work() -> None:
        made, cancelled = 0, False

        async def make(flow: Outflow) -> None:
            nonlocal made, cancelled
            try:
                for made in range(1000):
                    flow.put({"n": made})
                await asyncio.sleep(FOR_EVER)
            except asyncio.CancelledError:
                cancelled = True
                raise

        client = Client()
        client.reads.clear()
        await stream_to(client, EventStream(make, comment_seconds=FOR_EVER, stall_seconds=0.05))
        assert (made, cancelled, client.sent) == (999, True, [])

    asyncio.run(work())


def test_who_leaves_too_much_unread_is_left() -> None:
    async def work() -> None:
        flow = Outflow(1000)
        with pytest.raises(SlowReader):
            for i in range(1000):
                flow.put({"n": i})
        assert len(await flow.take(0)) <= 1000
        flow.put({"n": 1})  # there is room again

        client = Client()
        client.reads.clear()

        async def make(flow: Outflow) -> None:
            try:
                for i in range(1000):
                    flow.put({"n": i})
                    await asyncio.sleep(0)
            finally:
                client.reads.set()

        await stream_to(client, EventStream(make, limit=1000))
        assert client.body.endswith(b"\n\n") and b"does not read" in client.body

    asyncio.run(work())


def test_comments_keep_a_silent_stream_open() -> None:
    async def work() -> None:
        client = Client()

        async def make(flow: Outflow) -> None:
            while client.body.count(b"\n\n") < 3:
                await asyncio.sleep(0.01)
            flow.put({"n": 1})

        await stream_to(client, EventStream(make, comment_seconds=0.01))
        assert client.sent[0]["status"] == 200
        comments, _, rest = client.body.partition(b"data: ")
        assert comments.startswith(b": ") and comments.count(b"\n\n") >= 3
        assert rest == b'{"n":1}\n\ndata: [DONE]\n\n'

    asyncio.run(work())


def test_an_error_after_a_comment_is_the_last_event() -> None:
    async def work() -> None:
        client = Client()

        async def late(flow: Outflow) -> None:
            while not client.body:
                await asyncio.sleep(0.01)
            raise SlowReader("so")

        async def early(flow: Outflow) -> None:
            raise SlowReader("so")

        await stream_to(client, EventStream(late, comment_seconds=0.01))
        assert client.sent[0]["status"] == 200 and not client.sent[-1]["more_body"]
        last = client.body.strip().split(b"\n\n")[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "so"
        client = Client()
        await stream_to(client, EventStream(early, comment_seconds=FOR_EVER))
        assert client.sent[0]["status"] == 400

    asyncio.run(work())


def test_an_error_that_nobody_foresaw_is_told_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async def make(flow: Outflow) -> None:
            flow.put({"n": 1})
            raise ZeroDivisionError("secret")

        client = Client()
        scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
        await EventStream(make)(scope, client.receive, client.send)
        last = json.loads(client.body.strip().split(b"\n\n")[-1].removeprefix(b"data: "))["error"]
        assert (last["message"], last["type"]) == ("internal error of the server", "server_error")

    asyncio.run(asyncio.wait_for(work(), PATIENCE))
    (record,) = caplog.records
    assert "POST /v1/completions: internal error: ZeroDivisionError: secret" in record.getMessage()
    assert not record.exc_info


def test_nothing_is_lost_however_making_and_sending_meet() -> None:
    async def work(seed: int) -> None:
        rng = random.Random(seed)

        async def make(flow: Outflow) -> None:
            for i in range(20):
                flow.put({"n": i})
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)

        class Sleepy(Client):
            async def send(self, message: Any) -> None:
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                await super().send(message)

        client = Sleepy()
        await stream_to(client, EventStream(make, comment_seconds=FOR_EVER))
        expected = b"".join(b'data: {"n":%d}\n\n' % i for i in range(20)) + b"data: [DONE]\n\n"
        assert client.body == expected

    for seed in range(60):
        asyncio.run(work(seed))


def test_work_is_cancelled_with_its_caller() -> None:
    async def work() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def long() -> None:
            begun.set()
            try:
                await asyncio.sleep(FOR_EVER)
            finally:
                ended.set()

        caller = asyncio.create_task(while_there(Client().receive, long()))
        await begun.wait()
        caller.cancel()
        await asyncio.wait({caller})
        assert ended.is_set() and caller.cancelled()

    asyncio.run(work())


def test_a_reader_that_stops_does_not_hold_up_others() -> None:
    async def work() -> None:
        host = fake_host("Q" * 500)
        app = Starlette(routes=list(chat_routes(host, Named("fake"))))
        body = json.dumps({"messages": HI, "stream": True}).encode()
        stopped = Client(body)
        stopped.reads.clear()
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        asking = asyncio.create_task(app(scope, stopped.receive, stopped.send))
        try:
            while host.status()["state"] != "ready" or host.status()["running"]:
                await asyncio.sleep(0.01)
            assert not asking.done() and stopped.sent == []
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://a", timeout=PATIENCE
            ) as client:
                answer = await client.post("/v1/chat/completions", json=ask())
            assert answer.json()["choices"][0]["message"]["content"] == "QQQQQ"
            stopped.reads.set()
            await asking
            assert stopped.body.count(b"Q") == 500  # when it reads again, all is there
        finally:
            await host.aclose()

    asyncio.run(asyncio.wait_for(work(), PATIENCE))


def test_the_official_client_reads_over_comments(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_routes, "EventStream", partial(EventStream, comment_seconds=0.001))
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
    ) as official:
        chunks = official.chat.completions.create(
            model="m",
            messages=HI,
            stream=True,
            max_tokens=10,  # type: ignore[arg-type]
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == REPLY[:10]
