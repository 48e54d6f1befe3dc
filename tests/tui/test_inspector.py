"""The token inspector: moving over a reply, candidates, branching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Static

from tests.tui import panels
from tests.tui.panels import HOSTILE, NARROW, USUAL, Panel, Steps, assert_harmless, click, shown, text_of
from wgllm.engine import Event, FinishReason
from wgllm.tui.inspector import Branch, Candidate, Candidates, Token, TokenInspector, TokenText, tokens_of
from wgllm.tui.tokens import lay_out, visible

sizes = pytest.mark.parametrize("size", [USUAL, NARROW], ids=["80x24", "40x24"])


def token(text: str, token_id: int, p: float = 0.5, *others: tuple[int, str, float], **more: Any) -> Token:
    own = Candidate(token_id, text, p, kept=more.pop("kept", None), chance=more.pop("chance", None))
    rest = tuple(Candidate(i, t, q, kept=None if own.kept is None else q > 0.1) for i, t, q in others)
    candidates = sorted((own, *rest), key=lambda c: -c.probability)
    return Token(text, token_id, math.log(p), tuple(candidates), **more)


CAT = (
    token("The", 1, 0.99),
    token(" cat", 2, 0.25, (3, " dog", 0.5), (4, " axolotl", 0.05), kept=True, chance=0.375, n_kept=2),
    token(" sat", 5, 0.01, (6, " ran", 0.75)),
    token(".\n", 7, 0.5),
    token("\n", 8, 0.5),
    token("It", 9, 0.9),
)


def play(inspector: TokenInspector, steps: Steps, size: tuple[int, int] = USUAL) -> list[Any]:
    def ready() -> object:
        return inspector.query(TokenText) and str(inspector.query_one("#about", Static).content)

    return panels.play(inspector, ready, steps, size)


def at(inspector: TokenInspector) -> int:
    return inspector.query_one(TokenText).index


@sizes
def test_arrows_move_and_show_what_might_have_been(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert "token 1 of 6, id 1" in text_of(app, "#about")
        await pilot.press("left", "right")
        about, screen = text_of(app, "#about"), shown(app)
        assert "␣cat" in about and "surprise 2.0 · entropy ≥ 1.7 bits" in about and "samplers left 2" in about
        lines = {
            name: next(line for line in screen.split("\n") if name in line) for name in ("␣dog", "␣axolotl")
        }
        own = next(line for line in screen.split("\n") if "● ␣cat" in line)
        assert "25.0 %" in own and "→ 37.5 %" in own
        assert "50.0 %" in lines["␣dog"] and "kept" in lines["␣dog"]
        assert "5.0 %" in lines["␣axolotl"] and "cut" in lines["␣axolotl"]
        if size == USUAL:
            assert [line.count("█") for line in (lines["␣dog"], own, lines["␣axolotl"])] == [15, 7, 1]
        rest = next(line for line in screen.split("\n") if "all others" in line)
        assert "20.0 %" in rest
        await pilot.press("n")
        assert at(inspector) == 2 and "what the samplers kept is not known" in text_of(app, "#about")
        await pilot.press("end")
        assert at(inspector) == 5
        await pilot.press("p")
        assert at(inspector) == 2
        await pilot.press("down")
        assert at(inspector) == 4
        await pilot.press("down", "up", "up", "home", "left")
        assert at(inspector) == 0

    inspector = TokenInspector(CAT)
    play(inspector, steps, size)


def test_another_candidate_branches() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("enter", "enter")
        assert not app.answers and "it was taken; another one branches" in text_of(app, "#about")
        await pilot.press("right", "left")
        assert at(inspector) == 1 and "it was taken" not in text_of(app, "#about")
        await pilot.press("up", "enter")

    inspector = TokenInspector(CAT, index=1)
    assert play(inspector, steps) == [Branch(1, 3)]


@sizes
def test_by_mouse(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        await pilot.click(TokenText, offset=(5, 0))
        assert at(inspector) == 1
        await pilot.click(TokenText, offset=(30, 0))
        assert at(inspector) == 3
        await pilot.click(TokenText, offset=(1, 2))
        assert at(inspector) == 5
        await pilot.click(TokenText, offset=(1, 4))  # below the text
        assert at(inspector) == 5
        await pilot.click(TokenText, offset=(9, 0))
        await pilot.click(Candidates, offset=(5, 0))

    inspector = TokenInspector(CAT)
    assert play(inspector, steps, size) == [Branch(2, 6)]

    async def buttons(pilot: Pilot[None], app: Panel) -> None:
        await pilot.press("tab", "up")
        await click(pilot, "#branch")

    assert play(TokenInspector(CAT, index=1), buttons) == [Branch(1, 3)]

    async def close(pilot: Pilot[None], app: Panel) -> None:
        await click(pilot, "#close")

    assert play(TokenInspector(CAT), close) == [None]


def test_surprise_is_seen_without_colour() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        text = inspector.query_one(TokenText)
        seen = []
        for segment in text.render_line(0):
            style = segment.style
            assert style is not None
            if segment.text.strip():
                how = (style.bold, style.italic, style.underline, style.reverse)
                seen.append((segment.text, *map(bool, how)))
        assert seen == [
            ("a", True, False, False, True),  # where the reader is
            ("b", False, False, False, False),
            ("c", False, True, False, False),
            ("d", False, False, True, False),
            ("e", True, False, True, False),
            ("f", False, False, False, False),
        ]
        assert all(name in text_of(app, "#legend") for name in ("sure", "likely", "unsure", "surprising"))

    made = [Token(t, 0, -bits * math.log(2)) for t, bits in zip("abcde", (0, 0.5, 2, 4, 8), strict=True)]
    inspector = TokenInspector([*made, Token("f", 0)])
    play(inspector, steps)


def test_a_reply_without_probabilities_says_so() -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert "not recorded" in text_of(app, "#about")
        await pilot.press("enter", "enter", "right", "escape")

    assert play(TokenInspector([Token("a", 1), Token("b", 2)]), steps) == [None]
    with pytest.raises(ValueError, match="without tokens"):
        TokenInspector([])


def test_long_replies_draw_only_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    render = TokenText.render_line

    def counted(self: TokenText, y: int) -> Any:
        drawn.append(y)
        return render(self, y)

    async def steps(pilot: Pilot[None], app: Panel) -> None:
        text = inspector.query_one(TokenText)
        assert len(text._lines) > 150
        drawn.clear()
        await pilot.press("right")
        assert len(drawn) <= 2 * text.size.height
        await pilot.press("end")
        assert at(inspector) == 1999 and "token 2,000 of 2,000" in text_of(app, "#about")
        assert "word1999" in shown(app)
        await pilot.press("pageup", "pageup")
        assert 1800 < at(inspector) < 1999
        await pilot.press("pagedown", "pagedown", "pagedown", "home")
        assert at(inspector) == 0 and text.scroll_offset.y == 0

    monkeypatch.setattr(TokenText, "render_line", counted)
    inspector = TokenInspector([token(f" word{i}", i, 0.5, (9999, " x", 0.25)) for i in range(2000)])
    play(inspector, steps)


@sizes
def test_hostile_tokens_give_no_orders(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[None], app: Panel) -> None:
        assert_harmless(shown(app))
        await pilot.press("right")
        assert_harmless(shown(app))
        assert "[bold" in shown(app)

    made = [token(HOSTILE, 1, 0.5, (2, HOSTILE, 0.25)), token("\x1b", 3), token("\ud800", 4)]
    play(TokenInspector(made), steps, size)


def test_tokens_are_laid_out_in_lines() -> None:
    def texts(given: Sequence[str], width: int) -> list[str]:
        lines = lay_out(given, width)
        for line in lines:
            ends = [p.start + cell_len(p.text) for p in line]
            assert [p.start for p in line] == [0, *ends[:-1]][: len(line)] and max(ends, default=0) <= max(
                width, 2
            )
        assert {p.token for line in lines for p in line} == set(range(len(given)))
        return ["".join(p.text for p in line) for line in lines]

    assert texts(["ab", " cd", " ef"], 6) == ["ab cd", " ef"]
    assert texts(["a\n\nb"], 9) == ["a⏎", "⏎", "b"]
    assert texts(["漢字漢字"], 5) == ["漢字", "漢字"]
    assert texts(["", "\t", "x" * 7], 3) == ["◌⇥", "xxx", "xxx", "x"]
    assert visible(" a\n\x1b") == "␣a⏎" and visible("\x00") == "◌"


def test_tokens_of_a_replys_events() -> None:
    events = [
        Event(
            0, "", 7, logprob=math.log(0.2), top_logprobs=((8, math.log(0.6)),), kept=((7, 1.0),), n_kept=1
        ),
        Event(0, "x", 9, logprob=0.0, top_logprobs=((9, 0.0),)),
        Event(0, "", None, FinishReason.STOP),
    ]
    first, second = tokens_of(events, lambda i: f"t{i}")
    assert [(c.token_id, c.text) for c in first.choices] == [(8, "t8"), (7, "t7")]
    assert [(c.kept, c.chance) for c in first.choices] == [(False, None), (True, 1.0)] and first.n_kept == 1
    assert [c.kept for c in second.choices] == [None]
    assert first.rest == pytest.approx(0.2) and first.level == 1 and second.level == 0
    assert first.surprise == pytest.approx(math.log2(5)) and second.surprise == 0
    assert first.entropy == pytest.approx(0.6 * math.log2(1 / 0.6) + 2 * 0.2 * math.log2(5))
    assert second.entropy == 0 and second.rest == 0
