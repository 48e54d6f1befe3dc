"""A model's file that is cut off, written to, replaced or removed while it is served."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.serve.in_thread import PATIENCE
from tests.serve.stand_ins import StandInHost
from tests.tiny import tiny
from tests.unit.test_reading import cut, is_mapped, written
from wgllm.serve.app import create_app
from wgllm.serve.errors import EXCEPTION_HANDLERS
from wgllm.serve.model import ServedModel
from wgllm.serve.page_routes import Broken, page_routes
from wgllm.serve.settings import Settings
from wgllm.serve.weights import PieceStore

PIECE = 20_000
WISH: dict[str, Any] = {"limits": {}, "features": [], "subgroup_size": 0, "software": False, "ctx_size": None}
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


def served(path: Path) -> ServedModel:
    model = ServedModel.open(str(path), offline=True, chat_template="chatml")
    model.plans.store = PieceStore(kept_bytes=0, piece=PIECE)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny("qwen2.f32").path, tmp_path / "model.gguf"))


@pytest.fixture
def model(path: Path) -> Iterator[ServedModel]:
    made = served(path)
    yield made
    made.close()


@pytest.fixture
def client(model: ServedModel) -> TestClient:
    return TestClient(Starlette(routes=page_routes(model), exception_handlers=dict(EXCEPTION_HANDLERS)))


@pytest.mark.parametrize("change", [cut, written])
def test_weights_are_refused_and_all_else_goes_on(
    path: Path, model: ServedModel, client: TestClient, change: Callable[[Path], None]
) -> None:
    assert not is_mapped(path)  # what comes now would end this process
    plan = client.post("/api/plans", json=WISH).json()
    change(path)
    url = f"/api/plans/{plan['id']}"
    for answer in (
        client.get(f"{url}/weights"),
        client.get(f"{url}/weights", headers={"Range": "bytes=0-9"}),
        client.head(f"{url}/weights"),
        client.get(f"{url}/pieces"),
        client.post("/api/plans", json=WISH),
        client.post("/api/plans", json={**WISH, "ctx_size": 64}),
    ):
        assert answer.status_code == 409
        if answer.content:
            error = answer.json()["error"]
            assert error["code"] == "model_changed"
            expected = "model.gguf: file: has changed since the server opened it; start the server again"
            assert error["message"] == expected
    # A page that has its weights goes on with them.
    widths = [{"part": "body", "rows": 1, "cells": 1}]
    assert client.post(f"{url}/schedules", json={"widths": widths}).status_code == 200
    assert client.get("/api/model").json()["id"] == "model"
    tokens = client.post("/api/chat_tokens", json=CHAT).json()["tokens"]
    assert "Hello" in client.post("/api/detokenize", json={"tokens": tokens}).json()["text"]
    assert client.get("/api/vocabulary").status_code == 200


def streamed(app: Any, path: str, after_first: Callable[[], None]) -> list[bytes]:
    """The parts of an answer, during which something happens after the first of them."""
    bodies: list[bytes] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
        else:
            bodies.append(message["body"])
            if len(bodies) == 1:
                after_first()

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def answer() -> None:
        await asyncio.wait_for(app(scope, receive, send), PATIENCE)

    try:
        asyncio.run(answer())
    except Broken as error:
        assert "model.gguf: file: has changed" in str(error)
        bodies.append(b"cut")
    return bodies


@pytest.mark.parametrize("change", [cut, written])
@pytest.mark.parametrize("what", ["pieces", "weights"])
def test_under_way(
    path: Path, model: ServedModel, client: TestClient, what: str, change: Callable[[Path], None]
) -> None:
    """A list ends with the error's line, weights by a connection that breaks: nobody takes them for whole."""
    plan = client.post("/api/plans", json=WISH).json()
    app = create_app(model, StandInHost(), Settings(), page_routes(model))
    first, *rest = streamed(app, f"/api/plans/{plan['id']}/{what}", lambda: change(path))
    if what == "weights":
        assert 0 < len(first) <= PIECE and rest == [b"cut"]
    else:
        assert "sha256" in json.loads(first)
        said = b"".join(rest).splitlines()
        assert [*json.loads(said[0])] == ["error"] and len(said) == 1
        assert "model.gguf: file: has changed" in said[0].decode()


def weights(client: TestClient) -> tuple[dict[str, Any], str]:
    """A plan, and the hash of its weights."""
    plan = client.post("/api/plans", json=WISH)
    assert plan.status_code == 200
    answer = client.get(f"/api/plans/{plan.json()['id']}/weights")
    assert answer.headers["ETag"] == plan.json()["file_etag"]
    return plan.json(), hashlib.sha256(answer.content).hexdigest()


def other_weights(path: Path) -> Path:
    """A file that differs from the one at ``path`` in a few numbers alone."""
    made = Path(shutil.copy(path, path.with_name("other")))
    data = bytearray(made.read_bytes())
    data[-64:-60] = b"\0\0\x80\x3f"
    made.write_bytes(data)
    os.utime(made, ns=(0, path.stat().st_mtime_ns + 1))
    return made


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the names of open files")
def test_a_file_that_is_replaced_before_the_first_plan(
    path: Path, model: ServedModel, client: TestClient
) -> None:
    """The old weights are served, under the old name."""
    original = served(Path(shutil.copy2(path, path.with_name("kept.gguf"))))
    ((_, expected),) = [weights(TestClient(Starlette(routes=page_routes(original))))]
    other_weights(path).replace(path)
    plan, found = weights(client)
    new = served(path)
    new_plan, new_found = weights(TestClient(Starlette(routes=page_routes(new))))
    assert found == expected != new_found
    assert plan["id"] != new_plan["id"] and plan["file_etag"] != new_plan["file_etag"]
    for each in (original, new):
        each.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the names of open files")
def test_a_file_that_is_removed_before_the_first_plan(path: Path, client: TestClient) -> None:
    path.unlink()
    plan, _ = weights(client)
    assert plan["weights_bytes"] > 0


def test_weights_of_a_configuration_have_a_name_of_their_own(tmp_path: Path) -> None:
    """Rope's factors lie in no file of weights."""
    source = tiny("phi3-longrope.f16").path.parent / "hf"
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    shutil.copy(tiny("llama-tied.f32").path.parent / "hf" / "tokenizer.json", folder)
    etags = set()
    for factor in (None, 1.25):
        if factor is not None:
            config = json.loads((folder / "config.json").read_text())
            factors = config["rope_parameters"]["short_factor"]
            factors[:] = [factor] * len(factors)
            (folder / "config.json").write_text(json.dumps(config))
        model = ServedModel.open(str(folder), offline=True)
        etags.add(model.plan({}, software=False, ctx_size=64).file.etag)
        model.close()
    assert len(etags) == 2
