"""``wgllm pull`` and ``wgllm list``."""

from __future__ import annotations

import json

import click

from wgllm import hub
from wgllm.catalog import load_catalog
from wgllm.hub_progress import size_text


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [e.name for e in load_catalog() if e.name.startswith(incomplete)]


@click.command("pull")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete)
def pull_command(names: tuple[str, ...]) -> None:
    """Download models and print where they lie.

    NAME is a name that `wgllm list` shows, or org/repo or org/repo:QUANT on Hugging Face. Without a name, the
    default model is downloaded. A download that was interrupted goes on where it stopped.
    """
    names = names or (load_catalog().default.name,)
    for name in names:
        hub.identify(name)  # a typo in the last name is said before the first download
    for name in names:
        click.echo(hub.resolve(name))


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; sizes are in bytes.")
def list_command(as_json: bool) -> None:
    """List the models that are here or can be had with `wgllm pull`."""
    catalog = load_catalog()
    paths = {i.entry.name: str(i.path) for i in hub.installed(catalog)}
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "name": e.name,
                        "aliases": e.aliases,
                        "title": e.title,
                        "chat": e.chat,
                        "default": e is catalog.default,
                        "quant": e.quant,
                        "size": e.size,
                        "download_size": e.download_size,
                        "licence": e.licence,
                        "licence_url": e.licence_url,
                        "homepage": e.homepage,
                        "installed": e.name in paths,
                        "path": paths.get(e.name),
                    }
                    for e in catalog
                ],
                indent=2,
            )
        )
        return
    rows = [("NAME", "SIZE", "QUANT", "LICENCE", "PLACE")]
    rows += [(e.name, size_text(e.size), e.quant, e.licence, paths.get(e.name, "-")) for e in catalog]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        click.echo(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        )
