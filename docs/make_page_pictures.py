"""Makes the pictures of the page in docs/pictures: ``wgllm serve`` and a headless Chromium, while the model writes.

    python docs/make_page_pictures.py [-m qwen2.5-coder:1.5b] [--folder docs/pictures] [--only page,page-phone]
                                      [--chromium-flags "..."]

The question is fixed and sampling is greedy, so that another run gives the same text. The model computes in the
browser, by default on the software that imitates a graphics card for it, which takes minutes; ``--chromium-flags ""``
takes the card that the browser has. Speeds are left out of the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.web.chromium import FLAGS, launched
from tests.web.wgllm_process import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PICTURES = Path(__file__).parent / "pictures"
QUESTION = "Write a Python function is_prime(n). Answer with the code only, without examples."
SIZES: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1100, "height": 700}, "device_scale_factor": 1.5, "color_scheme": "light"},
    "page-phone": {
        "viewport": {"width": 390, "height": 760},
        "device_scale_factor": 2,
        "color_scheme": "dark",
        "is_mobile": True,
        "has_touch": True,
    },
}
# Characters of the reply that are there when the picture is taken.
ENOUGH = 150
EARLIER = ("A regular expression for dates", "Explain this traceback", "Sort a table in SQL")
NOON = 1_767_268_800
PATIENCE_MS = 1_800_000


def conversation(title: str) -> dict[str, Any]:
    """A chat as the page imports it."""
    told = {"state": "complete", "created": NOON, "model": "", "finish_reason": "stop"}
    return {
        "format": "wgllm-conversation",
        "version": 1,
        "title": title,
        "named": True,
        "created": NOON,
        "updated": NOON,
        "model": "",
        "system_prompt": "",
        "messages": [{"role": "user", "content": title, "parent": None, **told}],
    }


def take(browser: Browser, url: str, name: str, folder: Path) -> Path:
    """One of SIZES, in the middle of the reply."""
    context = browser.new_context(reduced_motion="reduce", **SIZES[name])
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script(
        f"localStorage.setItem('wgllm.sampling', {json.dumps(json.dumps({'temperature': 0}))})"
    )
    page.goto(f"{url}?test")
    page.wait_for_selector('#where[data-phase="ready"]')
    page.set_input_files(
        "#import-file",
        [
            {
                "name": "chat.json",
                "mimeType": "application/json",
                "buffer": json.dumps(conversation(t)).encode(),
            }
            for t in EARLIER
        ],
    )
    page.wait_for_function("(n) => document.querySelectorAll('#chats button').length >= n", arg=len(EARLIER))
    page.wait_for_function(
        "(titles) => titles.includes(document.getElementById('title').innerText)", arg=EARLIER
    )
    page.evaluate("() => wgllmPage.app.chats.create()")
    page.focus("#input")
    page.keyboard.insert_text(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "(n) => (document.querySelector('.assistant .said')?.innerText.length ?? 0) > n", arg=ENOUGH
    )
    # The page's policy takes no style that is not its own; a picture is no measurement.
    page.evaluate(
        "() => { for (const id of ['figures', 'toasts']) document.getElementById(id).hidden = true; }"
    )
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    context.close()
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="qwen2.5-coder:1.5b")
    parser.add_argument("--folder", type=Path, default=PICTURES)
    parser.add_argument("--only", default=",".join(SIZES))
    parser.add_argument("--chromium-flags", default=" ".join(FLAGS))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    flags = options.chromium_flags.split()
    with serving("-m", options.model, "--lazy", "-c", "1024") as server, launched(flags) as chromium:
        for name in options.only.split(","):
            path = chromium.call(lambda browser, name=name: take(browser, server.url, name, options.folder))
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
