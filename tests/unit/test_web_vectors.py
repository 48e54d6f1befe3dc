"""What the page's modules are tested with is what Python's make of it today."""

from __future__ import annotations

from pathlib import Path

from tests.data.make_web_vectors import vectors

FOLDER = Path(__file__).parents[1] / "data" / "web"


def test_the_files_are_what_python_makes() -> None:
    made = vectors()
    assert {path.name for path in FOLDER.iterdir()} == made.keys()
    for name, text in made.items():
        # Not by assert: nobody wants to read how a hundred kilobytes differ.
        same = (FOLDER / name).read_text(encoding="utf-8") == text
        assert same, f"{name} is old: python tests/data/make_web_vectors.py"
