"""Models from Hugging Face, against a hub of a few lines on the loopback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.fake_hub import COMMIT, FakeHub
from wgllm import hub, hub_hf_cache
from wgllm.cli import main
from wgllm.errors import ModelNotFoundError
from wgllm.hub_hf import _choose, _models, _of_quant, all_cached, find_cached
from wgllm.hub_progress import SilentProgress

REPOS: dict[str, dict[str, bytes]] = {
    "org/many-GGUF": {
        "README.md": b"text",
        "many-Q4_K_M.gguf": b"GGUF four" * 100,
        "many-Q8_0.gguf": b"GGUF eight" * 100,
        "mmproj-many.gguf": b"GGUF other",
        "many-F16-00001-of-00002.gguf": b"GGUF first" * 100,
        "many-F16-00002-of-00002.gguf": b"GGUF second" * 100,
    },
    "org/one": {"only.gguf": b"GGUF one" * 100},
    "org/none": {"model.safetensors": b"no"},
    "org/weights": {
        ".gitattributes": b"x",
        "README.md": b"text",
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "pytorch_model.bin": b"\x80pickle",
        "consolidated.safetensors": b"no",
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "model-00001-of-00002.safetensors": b"first shard" * 100,
        "model-00002-of-00002.safetensors": b"second shard" * 100,
    },
    "org/both": {"config.json": b"{}", "model.safetensors": b"weights", "both-Q4_K_M.gguf": b"GGUF both" * 9},
    "org/swapped": {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"swapped weights"},
    "org/lying": {"lying.gguf": b"GGUF as promised"},
}


@pytest.fixture
def endpoint() -> Iterator[str]:
    with FakeHub(REPOS) as hub:
        hub.faults["org/lying"] = "wrong"
        hub.faults["org/swapped"] = "wrong"
        hub.faults["org/gated"] = "gated"
        yield hub.endpoint


SCRIPT = """
import sys
from wgllm import WgllmError, hub
for name in sys.argv[1:]:
    try:
        print("file", hub.resolve(name, progress=hub.SilentProgress()).read_bytes()[:11].decode())
    except WgllmError as error:
        print(error.exit_code, error)
"""


def ask(names: list[str], **env: str) -> list[str]:
    # A process of its own, since huggingface_hub reads the environment when it is imported.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env=os.environ | env | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_hub_names(endpoint: str, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    answers = ask(
        [
            "org/many-GGUF",
            "hf:org/many-GGUF:q8_0",
            "org/many-GGUF:F16",
            "hf:org/one",
            "hf:org/many-GGUF:Q2_K",
            "org/none",
            "org/gated",
            "org/absent",
            "org/lying",
            "org/lying",
        ],
        **env,
    )
    assert answers[:4] == ["file GGUF fourGG", "file GGUF eightG", "file GGUF firstG", "file GGUF oneGGU"]
    assert answers[4].startswith("3 org/many-GGUF has no Q2_K; it has many-Q4_K_M.gguf, many-Q8_0.gguf")
    assert answers[5].startswith("3 org/none on Hugging Face has no GGUF file")
    assert answers[6].startswith(
        "3 org/gated is gated: accept its conditions at https://huggingface.co/org/gated"
    )
    assert answers[7].startswith("3 Hugging Face has no repository org/absent")
    # What came with a wrong hash is not found in the cache by the next try.
    assert answers[8].startswith("3 org/lying: lying.gguf came with the wrong SHA-256")
    assert answers[9] == answers[8]

    offline = ask(["org/many-GGUF", "org/one", "org/many-GGUF:Q2_K", "org/absent"], **env, HF_HUB_OFFLINE="1")
    assert offline[:2] == ["file GGUF fourGG", "file GGUF oneGGU"]
    assert offline[2] == "3 org/many-GGUF:Q2_K is not in the Hugging Face cache; HF_HUB_OFFLINE is set"
    assert offline[3] == "3 org/absent is not in the Hugging Face cache; HF_HUB_OFFLINE is set"


def test_a_repository_without_gguf_gives_its_safetensors(endpoint: str, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    answers = ask(["org/weights", "org/both", "org/swapped", "org/weights:Q8_0"], **env)
    assert answers[0] == 'file {"weight_ma' and answers[1] == "file GGUF bothGG"
    assert answers[2].startswith("3 org/swapped: model.safetensors came with the wrong SHA-256")
    assert answers[3].startswith("3 org/weights has no Q8_0; it has model.safetensors.index.json")
    folder = tmp_path / "hub" / "models--org--weights" / "snapshots" / COMMIT
    wanted = set(REPOS["org/weights"]) - {
        ".gitattributes", "README.md", "pytorch_model.bin", "consolidated.safetensors",
    }  # fmt: skip
    assert {p.name for p in folder.iterdir()} == wanted
    assert all((folder / name).read_bytes() == REPOS["org/weights"][name] for name in wanted)
    # Without the network it is found again; a damaged file is noticed, by git's SHA-1 as well.
    assert ask(["org/weights"], **env, HF_HUB_OFFLINE="1") == answers[:1]
    (folder / "config.json").resolve().write_bytes(b"{}")
    assert "damaged" in ask(["org/weights"], **env, HF_HUB_OFFLINE="1")[0]


def test_what_is_cached_needs_no_network_and_no_hub_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--one"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "one-Q4_K_M.gguf").write_bytes(b"GGUF cached")
    # Nothing listens on the discard port.
    answers = ask(
        ["org/one", "org/two"], HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), NO_PROXY="*"
    )
    assert answers[0] == "file GGUF cached"
    assert answers[1].startswith("3 org/two: ")


def test_choosing() -> None:
    models = _models(REPOS["org/many-GGUF"])
    assert ["many-F16-00001-of-00002.gguf", "many-F16-00002-of-00002.gguf"] in models
    assert _of_quant(models, "Q4_K") == []
    assert _of_quant(models, "q8_0") == [["many-Q8_0.gguf"]]
    with pytest.raises(ModelNotFoundError, match="several models; name one as hf:o/r:QUANT"):
        _choose([["a-Q8_0.gguf"], ["a-F16.gguf"]], "o/r", None)
    with pytest.raises(ModelNotFoundError, match="several models"):
        _choose([["a-Q8_0.gguf"], ["b-Q8_0.gguf"]], "o/r", "Q8_0")


def test_safetensors_must_be_complete() -> None:
    shards = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    index = "model.safetensors.index.json"
    assert _models(["config.json", index, *shards, "tokenizer.json", "x.bin", "sub/config.json"]) == [
        [index, *shards, "config.json", "tokenizer.json"]
    ]
    assert _models(["config.json", "model.safetensors", index, *shards]) == [
        ["model.safetensors", "config.json"]
    ]
    assert _models(["config.json", index, *shards[:2]]) == []
    assert _models([index, *shards]) == []
    assert _models(["config.json", "model.safetensors", "m-Q8_0.gguf"]) == [["m-Q8_0.gguf"]]


def test_hostile_file_names_and_incomplete_splits_are_left_out() -> None:
    names = [
        "../x.gguf",
        "/abs.gguf",
        "a/../../x.gguf",
        "C:\\x.gguf",
        "c:x.gguf",
        "a\\..\\x.gguf",
        "a//x.gguf",
    ]
    assert _models(names) == []
    assert _models(["x-00001-of-00003.gguf", "x-00003-of-00003.gguf"]) == []


# Revisions

OLD, NEW, NEWEST = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Path]:
    """Puts a file (of 1000 bytes, by its hash) into a commit of o/r in an empty cache; main is then there."""
    monkeypatch.setattr(hub_hf_cache, "hub_folder", lambda: tmp_path)
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(tmp_path / "own"))

    def put(commit: str, name: str, letter: str) -> Path:
        blob = tmp_path / "models--o--r" / "blobs" / (letter * 64)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(letter.encode() * 1000)
        return hub_hf_cache.publish("o/r", commit, name, letter * 64)

    return put


def test_what_was_fetched_at_an_older_commit_stays_known(publish: Callable[[str, str, str], Path]) -> None:
    four, eight = publish(OLD, "m-Q4_K_M.gguf", "1"), publish(NEW, "m-Q8_0.gguf", "2")
    assert find_cached("o/r", "Q4_K_M") == (four,)
    assert find_cached("o/r", None) == (four,)
    assert find_cached("o/r", None, "m-q8_0.gguf") == (eight,)
    assert {m.name: m.files for m in all_cached()} == {"hf:o/r:Q4_K_M": (four,), "hf:o/r:Q8_0": (eight,)}
    assert hub.remove("hf:o/r:Q4_K_M") == 1000
    assert [m.files for m in all_cached()] == [(eight,)]


def test_main_comes_before_other_commits(publish: Callable[[str, str, str], Path]) -> None:
    newest = publish(NEWEST, "m-Q8_0.gguf", "3")
    publish(OLD, "m-Q8_0.gguf", "1")
    main = publish(NEW, "m-Q8_0.gguf", "2")
    os.utime(newest.parent, (2e9, 2e9))
    assert find_cached("o/r", "Q8_0") == (main,)
    assert [m.files for m in all_cached()] == [(main,)]
    main.unlink()
    assert find_cached("o/r", "Q8_0") == (newest,)


def test_safetensors_of_the_cache_are_listed_and_removed(publish: Callable[[str, str, str], Path]) -> None:
    weights, config = publish(NEW, "model.safetensors", "1"), publish(NEW, "config.json", "2")
    publish(NEW, "README.md", "3")
    assert find_cached("o/r", None) == (weights, config)
    assert {m.name: m.files for m in all_cached()} == {"hf:o/r": (weights, config)}
    assert hub.remove("hf:o/r") == 2000
    assert all_cached() == []


def test_rm_takes_a_model_out_of_every_commit(publish: Callable[[str, str, str], Path]) -> None:
    publish(OLD, "m-Q8_0.gguf", "1")
    publish(NEW, "m-Q8_0.gguf", "1")
    publish(NEWEST, "m-Q8_0.gguf", "2")
    kept = publish(NEW, "m-F16.gguf", "3")
    assert len(hub.files_of("hf:o/r:Q8_0")) == 3
    assert hub.remove("hf:o/r:Q8_0") == 2000
    assert [m.files for m in all_cached()] == [(kept,)]


def test_rm_counts_a_shared_blob_once(
    publish: Callable[[str, str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    publish(OLD, "m-Q8_0.gguf", "1")
    publish(NEW, "m-Q8_0.gguf", "1")
    stdin = io.StringIO("y\n")
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["rm", "hf:o/r:Q8_0"]) == 0
    said = capfd.readouterr().err
    assert "(1 kB)" in said and "1 kB freed" in said


def test_offline_takes_the_only_model_of_any_commit(
    publish: Callable[[str, str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_hf_cache, "is_sound", lambda path, progress: True)
    only = publish(OLD, "m-Q8_0.gguf", "1")
    publish(NEW, "README.md", "2")
    assert hub.resolve("hf:o/r", download=False, progress=SilentProgress()) == only
    publish(NEW, "m-F16.gguf", "3")
    with pytest.raises(ModelNotFoundError, match="several models"):
        hub.resolve("hf:o/r", download=False, progress=SilentProgress())
