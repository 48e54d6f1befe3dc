"""GGUF files from Hugging Face, through huggingface_hub: its cache, its token, its offline switch."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wgllm.errors import DownloadError, ModelNotFoundError, printable
from wgllm.hub_progress import Progress, SilentProgress, size_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

DEFAULT_QUANT = "Q4_K_M"

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
# GGUF files that are no language model.
_OTHER = re.compile(r"mmproj|imatrix", re.IGNORECASE)


def fetch_from_hub(repo: str, quant: str | None, *, download: bool, progress: Progress) -> Path:
    """The model's file (the first, when it is split) in the Hugging Face cache, fetched when it is not there.

    A copy in the cache is used without asking the network. Raises ``ModelNotFoundError``, ``DownloadError``.
    """
    from huggingface_hub import HfApi, constants

    folder = _cached_snapshot(Path(constants.HF_HUB_CACHE), repo)
    cached = _models(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    matching = _of_quant(cached, quant or DEFAULT_QUANT)
    if len(matching) == 1:
        return folder / matching[0][0]
    if not download or constants.HF_HUB_OFFLINE:
        # Without the network, the only model of the repository that is here is what was meant.
        if cached and quant is None:
            return folder / _choose(cached, repo, None)[0]
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"`wgllm pull hf:{repo}` fetches it"
        shown = repo if quant is None else f"{repo}:{quant}"
        raise ModelNotFoundError(f"{shown} is not in the Hugging Face cache; {why}")
    with _explained(repo):
        info = HfApi().model_info(repo, files_metadata=True)
    files = {s.rfilename: s for s in info.siblings or ()}
    chosen = [files[name] for name in _choose(_models(files), repo, quant)]
    _announce(repo, chosen, getattr(info.card_data, "license", None), Path(constants.HF_HUB_CACHE), progress)
    with _quiet(isinstance(progress, SilentProgress)):
        paths = [_fetch(repo, file) for file in chosen]
    return paths[0]


def _cached_snapshot(cache: Path, repo: str) -> Path:
    """The folder of the repository's main revision in the cache; it need not exist."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    return folder / "snapshots" / (commit if re.fullmatch(r"[0-9a-f]{40}", commit) else "none")


def _models(names: Iterable[str]) -> list[list[str]]:
    """The names of GGUF files, one list for each model, split models in order and only if complete."""
    whole: list[list[str]] = []
    shards: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(names):
        unsafe = "\\" in name or ":" in name or any(piece in ("", ".", "..") for piece in name.split("/"))
        if unsafe or not name.lower().endswith(".gguf") or _OTHER.search(name):
            continue
        if match := _SHARD.fullmatch(name):
            shards.setdefault((match[1], int(match[3])), {})[int(match[2])] = name
        else:
            whole.append([name])
    for (_, count), found in shards.items():
        if sorted(found) == list(range(1, count + 1)):
            whole.append([found[i] for i in sorted(found)])
    return whole


def _of_quant(models: list[list[str]], quant: str) -> list[list[str]]:
    # In the file's own name, since a folder named after one quantization may hold files of others.
    pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return [m for m in models if pattern.search(m[0].rpartition("/")[2])]


def _choose(models: list[list[str]], repo: str, quant: str | None) -> list[str]:
    found = _of_quant(models, quant or DEFAULT_QUANT)
    if not found and quant is None:
        found = models
    if len(found) == 1:
        return found[0]
    if not models:
        raise ModelNotFoundError(f"{repo} on Hugging Face has no GGUF file; a repository named ...-GGUF may")
    shown = ", ".join(printable(m[0]) for m in (found or models)[:20])
    if found:
        raise ModelNotFoundError(f"{repo} has several models; name one as hf:{repo}:QUANT, of {shown}")
    raise ModelNotFoundError(f"{repo} has no {printable(quant or '')}; it has {shown}")


def _announce(repo: str, files: list[RepoSibling], licence: object, cache: Path, progress: Progress) -> None:
    size = sum(file.size or 0 for file in files)
    names = printable(", ".join(file.rfilename for file in files))
    shown = printable(licence) if isinstance(licence, str) else f"see https://huggingface.co/{repo}"
    progress.message(f"Fetching {repo}: {names}, {size_text(size)}")
    progress.message(f"  licence: {shown}")
    progress.message(f"  place: {cache}")
    existing = next(p for p in (cache, *cache.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise DownloadError(
            f"not enough space in {cache}: {size_text(size)} are needed, {size_text(free)} are free; "
            "HF_HOME names another place"
        )


def _fetch(repo: str, file: RepoSibling) -> Path:
    from huggingface_hub import hf_hub_download

    with _explained(repo):
        # By the branch's name, not its commit: only then does the cache note which commit the branch is at.
        path = Path(hf_hub_download(repo, file.rfilename))
        expected = file.lfs.sha256 if file.lfs is not None else None
        if expected is None:
            return path
        digest = hashlib.sha256()
        with path.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    if digest.hexdigest() != expected:
        # The blob, too, or the next run would find it and take it for whole.
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DownloadError(f"{repo}: {printable(file.rfilename)} came with the wrong SHA-256; try again")
    return path


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    utils = importlib.import_module("huggingface_hub.utils")
    if not quiet or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its conditions at {page} and give your token in HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"Hugging Face has no repository {repo} (or it is private and HF_TOKEN holds no token for it)"
        ) from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        hint = {401: "HF_TOKEN is not valid", 403: "access denied", 429: "too many requests; wait a little"}
        raise DownloadError(
            f"{repo}: Hugging Face answers {code}: {hint.get(code, 'try again later')}"
        ) from error
    # Versions of huggingface_hub differ in the network library below, and so in what that raises.
    except Exception as error:
        raise DownloadError(f"{repo}: {type(error).__name__}: {printable(str(error))}") from error
