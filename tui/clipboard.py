"""Copying: through the desktop's own program where there is one, else by asking the terminal."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textual.app import App

_SECONDS = 2.0


def _program() -> list[str] | None:
    if sys.platform == "darwin":
        names = [["pbcopy"]]
    elif os.name == "nt":
        names = [["clip"]]
    else:
        names = []
        if os.environ.get("WAYLAND_DISPLAY"):
            names.append(["wl-copy"])
        if os.environ.get("DISPLAY"):
            names += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    return next((name for name in names if shutil.which(name[0])), None)


async def copy(app: App[Any], text: str, what: str) -> None:
    """Copies ``text`` and says so; ``what`` names it."""
    program = _program()
    if program is not None and await _copied(program, text):
        app.notify(f"Copied {what}", markup=False, timeout=2)
        return
    app.copy_to_clipboard(text)
    app.notify(
        f"Copied {what} through the terminal (OSC 52); a few terminals, such as Terminal.app, ignore that",
        markup=False,
        timeout=4,
    )


async def _copied(program: list[str], text: str) -> bool:
    encoding = "utf-16" if program == ["clip"] else "utf-8"
    null = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=asyncio.subprocess.PIPE, stdout=null, stderr=null
        )
        await asyncio.wait_for(process.communicate(text.encode(encoding, "replace")), _SECONDS)
    except (OSError, asyncio.TimeoutError):
        return False
    return process.returncode == 0
