"""Help texts as they are meant to be, and the exit code of every kind of error."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgllm import cli as cli_module
from wgllm.cli import COMMANDS, cli, main
from wgllm.errors import (
    DeviceError,
    DownloadError,
    ModelFileError,
    ModelNotFoundError,
    NumericError,
    UsageError,
    WgllmError,
)

HELP = Path(__file__).parents[1] / "data" / "help"


def help_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*arguments, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


@pytest.mark.parametrize("command", ["wgllm", *COMMANDS])
def test_help_is_as_it_was(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    text = help_of([] if command == "wgllm" else [command], monkeypatch, capsys)
    file = HELP / f"{command}.txt"
    if request.config.getoption("--update-help"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
    # Versions of click break lines in other places; the words count.
    assert text.split() == file.read_text(encoding="utf-8").split(), "if this is meant: pytest --update-help"
    assert max(map(len, text.splitlines())) <= 100


def test_no_help_of_a_command_that_is_gone() -> None:
    assert {f.stem for f in HELP.iterdir()} == {"wgllm", *COMMANDS}


@pytest.mark.parametrize("command", [*COMMANDS])
def test_help_describes_shows_and_points_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of([command], monkeypatch, capsys)
    examples = text.partition("Examples:\n")[2].partition("See also:\n")[0]
    assert f"wgllm {command}" in examples
    pointed = text.partition("See also:\n")[2].partition("Options:\n")[0].strip()
    assert pointed
    for line in pointed.splitlines():
        program, name = line.split()[:2]
        assert program == "wgllm" and name in COMMANDS and name != command


ERRORS: list[tuple[BaseException, int]] = [
    (WgllmError("something"), 1),
    (NumericError("a NaN in layer 3"), 1),
    (UsageError("no such thing"), 2),
    (ModelNotFoundError("no model"), 3),
    (DownloadError("the line is dead"), 3),
    (ModelFileError("x.gguf", "header", "is no header"), 4),
    (DeviceError("no GPU"), 5),
    (MemoryError(), 1),
    (ZeroDivisionError("division by zero"), 1),
    (KeyboardInterrupt(), 130),
]


def every_class(kind: type[WgllmError]) -> set[type[WgllmError]]:
    return {kind}.union(*map(every_class, kind.__subclasses__()))


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda e: type(e).__name__)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "main", fail)
    assert main([]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    assert shown.err.count("\n") == 1
    assert isinstance(error, KeyboardInterrupt) or shown.err.startswith("wgllm: ")


def test_every_error_has_a_code_of_the_table() -> None:
    assert {kind.exit_code for kind in every_class(WgllmError)} == {1, 2, 3, 4, 5}
    assert cli_module.INTERRUPTED == 130
