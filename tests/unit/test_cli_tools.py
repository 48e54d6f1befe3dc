"""tokenize, perplexity, devices, completion, --version, search, rm, and the options that change a model."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import wgllm
from tests.tiny import tiny
from wgllm import hub, hub_hf_cache
from wgllm.backends import device
from wgllm.catalog import load_catalog
from wgllm.cli import COMMANDS, devices, main
from wgllm.cli.options import parse_overrides
from wgllm.errors import UsageError
from wgllm.perplexity import measure

ROOT = Path(__file__).parents[2]
MODEL = str(tiny("llama-tied.f32").path)
CHAT_MODEL = str(tiny("qwen2.f32").path)
GEMMA = str(tiny("gemma3.f32").path)
TEXT = "Once upon a time there was a small model that knew nothing. " * 12

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            for module in ("tokenize", "perplexity"):
                monkeypatch.setattr(f"wgllm.cli.{module}.stdin_is_piped", lambda: True)
        code = main(arguments)
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return call


# tokenize


def test_tokenize_there_and_back(run: Run, tmp_path: Path) -> None:
    tokenizer = wgllm.load_tokenizer(MODEL)
    ids = tokenizer.tokenize("hello there")
    assert run("tokenize", "-m", MODEL, "--ids", "hello there") == (0, f"{ids}\n", "")
    file = tmp_path / "x.txt"
    file.write_text("hello there", encoding="utf-8")
    assert run("tokenize", "-m", MODEL, "--ids", "-f", str(file))[1] == f"{ids}\n"
    assert run("tokenize", "-m", MODEL, "--ids", stdin="hello there")[1] == f"{ids}\n"
    lines = run("tokenize", "-m", MODEL, "hello there")[1].splitlines()
    assert [int(line.split()[0]) for line in lines] == ids
    for given in (str(ids), " ".join(map(str, ids)), "\n".join(map(str, ids))):
        assert run("tokenize", "-m", MODEL, "--decode", given)[1] == "hello there"


def test_tokenize_special_tokens(run: Run) -> None:
    tokenizer = wgllm.load_tokenizer(CHAT_MODEL)
    name = next(text for text, i in tokenizer.special_tokens.items() if tokenizer.is_control(i))
    as_text = json.loads(run("tokenize", "-m", CHAT_MODEL, "--ids", name)[1])
    as_token = json.loads(run("tokenize", "-m", CHAT_MODEL, "--ids", "--parse-special", name)[1])
    assert tokenizer.special_tokens[name] in as_token and len(as_text) > len(as_token)
    assert run("tokenize", "-m", CHAT_MODEL, "--decode", str(as_token))[1] == ""
    assert run("tokenize", "-m", CHAT_MODEL, "--decode", "--parse-special", str(as_token))[1].endswith(name)
    bos = wgllm.load_tokenizer(MODEL).bos_id
    assert json.loads(run("tokenize", "-m", MODEL, "--ids", "x")[1])[0] == bos
    assert bos not in json.loads(run("tokenize", "-m", MODEL, "--ids", "--no-special", "x")[1])


def test_tokenize_json_has_the_bytes_of_every_piece(run: Run) -> None:
    facts = json.loads(run("tokenize", "-m", MODEL, "--json", "--no-special", "a 🎉")[1])
    data = b"".join(bytes(t["bytes"]) for t in facts["tokens"])
    assert data.decode().lstrip() == "a 🎉"
    assert facts["ids"] == [t["id"] for t in facts["tokens"]]


def test_tokenize_json_gives_a_terminal_no_control_characters(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("tokenize", "-m", MODEL, "--json", "é\x9b31m")[1]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    shown = run("tokenize", "-m", MODEL, "--json", "é\x9b31m")[1]
    assert "\x9b" in plain and shown.isascii() and json.loads(shown) == json.loads(plain)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--decode", "1 x"], "'x' is no token id"),
        (["--decode", "512"], "from 0 to 511"),
        (["--decode", "1 -1"], "is no token id"),
        (["a", "-f", "b"], "twice"),
        (["-f", "no-such-file"], "no-such-file"),
        ([], "there is no text"),
    ],
)
def test_tokenize_errors(run: Run, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgllm.cli.tokenize.stdin_is_piped", lambda: False)
    code, out, err = run("tokenize", "-m", MODEL, *arguments)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


# perplexity


def losses(llm: wgllm.Llm, ids: list[int]) -> np.ndarray[Any, Any]:
    logits = llm.logits(ids).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_probabilities[np.arange(len(ids) - 1), ids[1:]]


def test_perplexity_counts_the_second_half_of_each_chunk(run: Run) -> None:
    code, out, err = run("perplexity", "-m", MODEL, "-c", "64", "--json", stdin=TEXT)
    assert code == 0, err
    facts = json.loads(out)
    with wgllm.load(MODEL, ctx_size=64) as llm:
        tokens = llm.tokenize(TEXT)
        expected = []
        for i in range(len(tokens) // 64):
            chunk = tokens[64 * i : 64 * i + 64]
            chunk[0] = llm.tokenizer.bos_id or chunk[0]
            expected.append(losses(llm, chunk)[32:])
        all_losses = np.concatenate(expected)
        everything = list(measure(llm.engine, tokens, 64, every_token=True))[-1]  # type: ignore[arg-type]
    assert facts["chunks"] == len(tokens) // 64 >= 3
    assert facts["tokens"] == len(all_losses) == 31 * facts["chunks"]
    assert facts["nll"] == pytest.approx(all_losses.mean(), abs=1e-5)
    assert facts["perplexity"] == pytest.approx(math.exp(all_losses.mean()), rel=1e-5)
    error = all_losses.std() / math.sqrt(len(all_losses) - 1)
    assert facts["error"] == pytest.approx(error * facts["perplexity"], rel=1e-4)
    assert everything.tokens == 63 * facts["chunks"]
    assert f"chunk {facts['chunks']} of {facts['chunks']}" in err


def test_perplexity_stops_and_refuses(run: Run) -> None:
    assert (
        json.loads(run("perplexity", "-m", MODEL, "-c", "64", "--chunks", "2", "--json", stdin=TEXT)[1])[
            "chunks"
        ]
        == 2
    )
    code, out, err = run("perplexity", "-m", MODEL, stdin="")
    assert (code, out) == (2, "") and "nothing to foretell" in err


@pytest.mark.model("smollm2")
def test_perplexity_of_a_real_model_is_the_references(
    run: Run, tmp_path: Path, model_path: Callable[[str], Path], reference: Callable[[str], Any]
) -> None:
    case = reference("smollm2")["long"]
    file = tmp_path / "long.txt"
    file.write_text(case["text"], encoding="utf-8", newline="\n")
    code, out, _ = run("perplexity", "-m", str(model_path("smollm2")), "-f", str(file), "--json")
    facts = json.loads(out)
    assert code == 0 and facts["tokens"] == len(case["ids"]) - 1
    assert abs(facts["nll"] - case["nll"]) < 1e-3


@pytest.mark.parametrize("term", ["xterm", "dumb", "unknown"])
def test_perplexity_redraws_only_where_that_works(
    run: Run, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
    code, _, err = run("perplexity", "-m", MODEL, "-c", "64", "--json", stdin=TEXT)
    assert code == 0 and "chunk" in err
    assert ("\x1b" in err) == ("\r" in err) == (term == "xterm")


# devices, --version, completion


SILENT = "import time; time.sleep(600)"


def test_devices_never_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = {
        "info": {"device": "Imaginary 9000", "adapter_type": "DiscreteGPU", "backend_type": "Vulkan"},
        "limits": {"max-buffer-size": 1 << 31, "max-compute-invocations-per-workgroup": 1024, "other": 1},
        "features": ["shader-f16"],
    }  # fmt: skip
    programs = {
        f"print('noise'); print('\\n' + {json.dumps(json.dumps([adapter]))}, end='')": "Imaginary 9000",
        "print('[]', end='')": "No adapter: no Vulkan",
        "import os; os.abort()": "asking the graphics drivers failed",
        "raise OSError('libvulkan is missing')": "libvulkan is missing",
        SILENT: "did not answer",
    }
    for program, says in programs.items():
        monkeypatch.setattr(devices, "_SECONDS", 1 if program == SILENT else 60)
        monkeypatch.setattr(devices, "_ASK", program)
        code, out, err = run("devices")
        assert (code, err) == (0, "") and says in out
        assert out.startswith("Used unless --backend or --device says otherwise: ") and "NumPy" in out
    monkeypatch.setattr(devices, "_ASK", next(iter(programs)))
    facts = json.loads(run("devices", "--json")[1])
    assert facts["used"] == 0 and facts["cpu"]["cores"] >= 1
    assert (
        facts["adapters"][0]["device"] == "Imaginary 9000" and facts["adapters"][0]["type"] == "DiscreteGPU"
    )


def test_devices_have_the_indexes_of_the_gpu_backend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [("OpenGL", "Same"), ("Vulkan", "First"), ("D3D12", ""), ("OpenGL", "First"), ("Metal", "Last")]
    found = [
        {"info": {"device": name, "description": "driver", "adapter_type": "CPU", "backend_type": backend},
         "limits": {}, "features": []}
        for backend, name in cards
    ]  # fmt: skip
    monkeypatch.setattr(devices, "_ASK", f"print({json.dumps(json.dumps(found))}, end='')")
    gpu = SimpleNamespace(enumerate_adapters_sync=lambda: [SimpleNamespace(info=f["info"]) for f in found])
    monkeypatch.setattr(device, "_wgpu", lambda: SimpleNamespace(gpu=gpu))
    shown = json.loads(run("devices", "--json")[1])["adapters"]
    assert [a["device"] for a in shown] == ["First", "driver", "Last"]
    assert [(a["device"], a["backend"]) for a in shown] == [(a.name, a.interface) for a in device.adapters()]


def test_list_devices_is_an_option_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_ASK", "print('[]', end='')")
    code, out, err = run("generate", "--list-devices")
    assert (code, err) == (0, "") and "No adapter" in out


def test_version_tells_what_it_stands_on(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"wgllm, version {wgllm.__version__}"
    assert lines[1].startswith(f"Python {sys.version.split()[0]}")
    assert lines[2].startswith(f"numpy {np.__version__} with BLAS ")
    assert {line.split()[0] for line in lines[3:]} >= {"wgpu", "tokenizers", "sentencepiece"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0 and "_WGLLM_COMPLETE" in out and "wgllm" in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True, timeout=60)


def complete(line: str) -> list[str]:
    """What the shell is told for the last word of ``line``."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from wgllm.cli import main; sys.argv = ['wgllm']; main()"],
        env=os.environ
        | {"_WGLLM_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return [answer.partition(",")[2] for answer in done.stdout.split()]


def test_completion_of_commands_options_and_models() -> None:
    assert set(complete("wgllm ")) >= set(COMMANDS)
    assert complete("wgllm tok") == ["tokenize"]
    assert "--ctx-size" in complete("wgllm generate --ctx")
    for line in ("wgllm generate -m gemma3:", "wgllm show gemma3:", "wgllm pull gemma3:", "wgllm rm gemma3:"):
        assert {"gemma3:270m", "gemma3:1b"} <= set(complete(line))


@pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="no bash")
def test_bash_completes_names_with_colons(run: Run, tmp_path: Path) -> None:
    (tmp_path / "complete").write_text(run("completion", "bash")[1], encoding="utf-8")
    program = tmp_path / "wgllm"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m wgllm "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = """
        source complete
        COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
        COMP_LINE="wgllm pull gemma3:27"; COMP_POINT=${#COMP_LINE}
        COMP_WORDS=(wgllm pull gemma3 : 27); COMP_CWORD=4
        _wgllm_completion ./wgllm
        echo "${COMPREPLY[*]}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["270m", "270m-it", "27b"], done.stderr


# search and rm


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(hub_hf_cache, "hub_folder", lambda: tmp_path / "hf")
    return tmp_path


def test_search(run: Run, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    entries = tuple(replace(e, runs=e.architecture != "qwen3moe") for e in catalog)
    monkeypatch.setattr("wgllm.cli.models.load_catalog", lambda: replace(catalog, entries=entries))
    code, out, _ = run("search", "QWEN3", "30b")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["qwen3:30b-a3b"]
    assert "can't run yet: qwen3moe" in out and "?" in out
    found = json.loads(run("search", "mit", "phi", "--json")[1])
    assert {"phi3:mini", "phi4:14b"} <= {e["name"] for e in found} and all(e["runs"] for e in found)
    code, out, err = run("search", "no-such-model")
    assert (code, out) == (3, "") and "no-such-model" in err
    assert len(run("search")[1].splitlines()) > 30


def test_what_other_programs_fetched_is_listed_and_can_be_removed(run: Run, caches: Path) -> None:
    folder = caches / "hf" / "models--org--some-GGUF"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    for quant in ("Q8_0", "Q4_K_M"):
        (snapshot / f"some-{quant}.gguf").write_bytes(b"GGUF" * 1000)
    (caches / "hf" / "models--org--no-gguf").mkdir()
    listed = {m["name"]: m for m in json.loads(run("list", "-i", "--json")[1])}
    assert set(listed) == {"hf:org/some-GGUF:Q8_0", "hf:org/some-GGUF:Q4_K_M"}
    code, _, err = run("rm", "hf:org/some-GGUF:Q8_0")
    assert code == 2 and "give -y" in err
    code, _, err = run("rm", "-y", "hf:org/some-GGUF:Q8_0")
    assert code == 0 and "4 kB freed" in err
    assert [p.name for p in snapshot.iterdir()] == ["some-Q4_K_M.gguf"]
    code, _, err = run("rm", "-y", "hf:org/some-GGUF:Q8_0")
    assert code == 3 and "is not here" in err
    code, _, err = run("rm", "-y", MODEL)
    assert code == 2 and "file of your own" in err and Path(MODEL).exists()


def test_rm_asks_on_a_terminal(run: Run, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = hub.place(hub.identify("gemma3:270m"))  # type: ignore[arg-type]
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF" * 1000)
    for answer, left in (("n\n", True), ("y\n", False)):
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = run("rm", "gemma3:270m")
        assert code == 0 and "Delete gemma3:270m (4 kB)" in err
        assert place.exists() == left


# Options that change a model


def test_overrides() -> None:
    parsed = parse_overrides(("a.b=int:0x10,c=bool:True", "d=str:x, y=z", "e=float:1e-3"))
    assert parsed == {"a.b": 16, "c": True, "d": "x, y=z", "e": 0.001}
    for bad in ("a", "a=int", "a=int:", "a=int:1.5", "a=bool:1", "a=text:x", "=int:1", "a=float:x"):
        with pytest.raises(UsageError, match="--override-kv"):
            parse_overrides((bad,))


def test_overrides_stand_in_place_of_the_files_metadata(run: Run) -> None:
    with wgllm.load(MODEL, overrides={"tokenizer.ggml.add_bos_token": False}) as llm:
        assert llm.tokenizer.bos_id not in llm.tokenize("hello")
    with wgllm.load(MODEL, overrides={"llama.context_length": 99}) as llm:
        assert llm.ctx_size == 99
    facts = json.loads(run("show", MODEL, "--json", "--override-kv", "general.name=str:Other")[1])
    assert facts["metadata"]["general.name"] == "Other"
    code, _, err = run("generate", "-m", MODEL, "--override-kv", "llama.block_count=int:0", "hi")
    assert code == 4 and "llama.block_count" in err


def last_logits(**options: Any) -> np.ndarray[Any, Any]:
    with wgllm.load(options.pop("model", MODEL), ctx_size=64, **options) as llm:
        return llm.logits(list(range(3, 43)), [-1])[0]


def test_rope_options_are_the_files_own_keys() -> None:
    plain = last_logits()
    scaled = last_logits(rope_scale=4.0)
    assert np.abs(scaled - plain).max() > 1e-3
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert np.array_equal(scaled, last_logits(overrides=keys))
    assert np.array_equal(plain, last_logits(overrides=keys, rope_scaling="none"))
    assert np.array_equal(plain, last_logits(rope_freq_base=10000.0))
    assert np.abs(last_logits(rope_freq_base=500.0) - plain).max() > 1e-3
    yarn = last_logits(rope_scale=4.0, rope_scaling="yarn")
    keys["llama.rope.scaling.type"] = "yarn"
    assert np.array_equal(yarn, last_logits(overrides=keys))
    assert min(np.abs(yarn - other).max() for other in (plain, scaled)) > 1e-3
    for bad in ({"rope_scaling": "dynamic"}, {"rope_scale": 0.0}, {"rope_scale": math.nan},
                {"rope_scaling": "none", "rope_scale": 2.0}):  # fmt: skip
        with pytest.raises(UsageError, match="rope"):
            wgllm.load(MODEL, **bad)


def test_keys_and_values_round_by_themselves() -> None:
    plain, both = last_logits(model=GEMMA), last_logits(model=GEMMA, kv_type="f16")
    keys, values = (
        last_logits(model=GEMMA, kv_type=k, kv_type_v=v) for k, v in (("f16", "f32"), ("f32", "f16"))
    )
    for a, b in ((plain, keys), (plain, values), (keys, both), (values, both), (keys, values)):
        assert 0 < np.abs(a - b).max() < 0.05
    assert np.array_equal(both, last_logits(model=GEMMA, kv_type="f16", kv_type_v="f16"))


def test_attention_with_all_scores_at_once_is_the_same() -> None:
    with wgllm.load(MODEL, flash_attention=False) as llm:
        program = llm.engine.pipeline.programs[0]  # type: ignore[attr-defined]
        assert not any(node.op == "attention" for node in program.graph.nodes)
    assert np.abs(last_logits(flash_attention=False) - last_logits()).max() < 1e-4


def test_chat_templates_by_name_file_and_text(run: Run, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with wgllm.load(CHAT_MODEL, chat_template="phi3") as llm:
        assert llm.template.render(messages) == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    with wgllm.load(MODEL, chat_template="{{ word }}", chat_template_kwargs={"word": "once"}) as llm:
        assert llm.has_template
        assert llm.chat_tokens(messages) == llm.tokenize("once")
    file = tmp_path / "chatml"
    file.write_text("{{ messages[0].content }}", encoding="utf-8")
    options = ("generate", "-m", MODEL, "-n", "4", "--temp", "0", "-q")
    plain = run(*options, "-no-cnv", "hello")[1]
    assert run(*options, "-cnv", "--chat-template-file", str(file), "hello")[1] == plain
    assert run(*options, "-cnv", "--chat-template", str(file), "hello")[1] == plain
    for arguments, says in (
        (["--chat-template", "no-such"], "built in are chatml"),
        (["--chat-template", "{% if %}"], "the chat template: line 1"),
        (["--chat-template-kwargs", "[1]"], "no JSON object"),
        (["--chat-template-kwargs", "{"], "no JSON"),
        (["--chat-template", "phi3", "--chat-template-file", "x"], "give one of them"),
        (["-hf", "org/repo"], "-m and -hf"),
        (["--rope-scale", "2", "--rope-freq-scale", "0.5"], "say the same"),
    ):
        code, out, err = run(*options, *arguments, "hello")
        assert (code, out) == (2, "") and says in err, arguments


def test_offline_downloads_nothing(run: Run, caches: Path) -> None:
    code, out, err = run("generate", "--offline", "hi")
    assert (code, out) == (3, "") and "`wgllm pull smollm2` fetches it" in err
    code, _, err = run("tokenize", "--offline", "-hf", "org/repo", "hi")
    assert code == 3 and "is not in the Hugging Face cache" in err
