"""``wgllm pull``, ``list``, ``search`` and ``rm``: models by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from wgllm import hub
from wgllm.catalog import Catalog, Entry, HubEntry, load_catalog
from wgllm.cli.console import CONTEXT, say, use_utf8
from wgllm.cli.options import complete_models
from wgllm.errors import ModelNotFoundError, UsageError, printable
from wgllm.hub_progress import size_text


@click.command("pull", context_settings=CONTEXT)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_models)
@click.option(
    "-hf", "--hf-repo", multiple=True, metavar="USER/MODEL[:QUANT]", help="A repository on Hugging Face."
)
def pull_command(names: tuple[str, ...], hf_repo: tuple[str, ...]) -> None:
    """Download models and print where they lie.

    NAME is a name that `wgllm list` shows, or org/repo or org/repo:QUANT on Hugging Face (QUANT is Q4_K_M unless
    given). Without a name, the default model is downloaded. A download that was interrupted goes on where it stopped,
    and a file gets its name only when its SHA-256 is right.

    Models of Hugging Face lie in its cache, which other programs share. HF_TOKEN, HF_HOME, HF_ENDPOINT and
    HF_HUB_OFFLINE are honoured; all others lie where WGLLM_CACHE_DIR says.

    \b
    Examples:
      wgllm pull gemma3:270m
      wgllm pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0
      wgllm show $(wgllm pull smollm2)

    \b
    See also:
      wgllm search    what can be downloaded
      wgllm rm        delete it again
    """
    names = (*names, *(r if r.startswith("hf:") else f"hf:{r}" for r in hf_repo))
    names = names or (load_catalog().default.name,)
    for name in names:
        hub.identify(name)  # a typo in the last name is said before the first download
    for name in names:
        click.echo(hub.resolve(name))


@click.command("list", context_settings=CONTEXT)
@click.option("-i", "--installed", "only_here", is_flag=True, help="Only those that are here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; sizes are in bytes.")
def list_command(only_here: bool, as_json: bool) -> None:
    """List the models that are here or can be had with `wgllm pull`.

    Also those in the Hugging Face cache that other programs have fetched. A size of ? is one that the catalogue doesn't
    know; `wgllm pull` tells it before it begins. What this version can't run yet is marked.

    \b
    Examples:
      wgllm list
      wgllm list -i --json | jq -r '.[].path'

    \b
    See also:
      wgllm search    the same for some words
      wgllm show      what is in a model
    """
    use_utf8()
    catalog = load_catalog()
    here = hub.installed(catalog)
    entries = [i.entry for i in here if i.entry] if only_here else list(catalog)
    others = [i for i in here if i.entry is None]
    _print_models(catalog, entries, {i.name: i.path for i in here}, others, as_json)


@click.command("search", context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; sizes are in bytes.")
def search_command(words: tuple[str, ...], as_json: bool) -> None:
    """Find models in the catalogue by name, title, licence, quantization, family or repository.

    Every WORD must be found; without one, the whole catalogue is shown. Nothing is asked of the network. Any other
    repository on Hugging Face can be named as org/repo.

    \b
    Examples:
      wgllm search coder
      wgllm search llama 8b
      wgllm search apache --json | jq -r '.[].name'

    \b
    See also:
      wgllm pull    download what was found
      wgllm list    what is here
    """
    use_utf8()
    catalog = load_catalog()
    entries = catalog.matching(words)
    if not entries:
        raise ModelNotFoundError(
            f"nothing in the catalogue has {printable(' '.join(words))!r}; https://huggingface.co/models?library=gguf "
            "has more, and org/repo names them"
        )
    paths = {e.name: path for e in entries if (path := hub.find_installed(e))}
    _print_models(catalog, entries, paths, [], as_json)


@click.command("rm", context_settings=CONTEXT)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_models)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm_command(names: tuple[str, ...], yes: bool) -> None:
    """Delete downloaded models, and what an interrupted download left.

    Asks before it does; where nobody can answer, -y must be given. Of the Hugging Face cache, which other programs
    share, only the named model's files are deleted. Files of your own are never touched.

    \b
    Examples:
      wgllm rm gemma3:270m
      wgllm rm -y hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0

    \b
    See also:
      wgllm list -i    what is here
    """
    use_utf8()
    doomed = [(name, hub.files_of(name)) for name in names]
    for name, files in doomed:
        size = size_text(sum(f.stat().st_size for f in {f.resolve() for f in files}))
        place = files[-1].parent
        shared = ", where other programs may use it too" if "snapshots" in place.parts else ""
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(
                    f"rm asks before it deletes {printable(name)}; give -y where nobody can answer"
                )
            if not click.confirm(f"Delete {name} ({size}) in {place}{shared}?", err=True):
                continue
        say(f"{printable(name)}: {size_text(hub.remove(name))} freed")


def _print_models(
    catalog: Catalog,
    entries: Iterable[Entry],
    paths: dict[str, Path],
    others: list[hub.Installed],
    as_json: bool,
) -> None:
    if as_json:
        known = [_facts(catalog, e, paths.get(e.name)) for e in entries]
        found = [
            {
                "name": o.name,
                "size": o.size,
                "installed": True,
                "path": str(o.path),
                "source": "Hugging Face cache",
            }
            for o in others
        ]
        click.echo(json.dumps(known + found, indent=2))
        return
    rows = [("NAME", "SIZE", "QUANT", "LICENCE", "PLACE")]
    for e in entries:
        size = "?" if e.size is None else size_text(e.size)
        place = (
            str(paths[e.name])
            if e.name in paths
            else "-"
            if e.runs
            else f"- (can't run yet: {e.architecture})"
        )
        rows.append((e.name, size, e.quant, e.licence, place))
    rows += [(o.name, size_text(o.size), "", "", str(o.path)) for o in others]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        click.echo(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        )


def _facts(catalog: Catalog, entry: Entry, path: Path | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "aliases": entry.aliases,
        "title": entry.title,
        "chat": entry.chat,
        "default": entry is catalog.default,
        "quant": entry.quant,
        "architecture": entry.architecture,
        "runs": entry.runs,
        "size": entry.size,
        "download_size": entry.download_size,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "homepage": entry.homepage,
        "source": f"hf:{entry.repo}" if isinstance(entry, HubEntry) else "package index",
        "installed": path is not None,
        "path": None if path is None else str(path),
    }
