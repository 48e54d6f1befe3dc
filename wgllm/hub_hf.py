"""Models from Hugging Face: names to files, with huggingface_hub's settings, token and offline switch.

GGUF files, and where a repository has none, its safetensors with the JSON files that belong to them.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from wgllm import hub_hf_cache as cache
from wgllm.errors import DownloadError, ModelNotFoundError, printable
from wgllm.hub_hf_quiet import quiet, small_pieces
from wgllm.hub_progress import Progress, SilentProgress, size_text

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

DEFAULT_QUANT = "Q4_K_M"

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_INDEX = "model.safetensors.index.json"
_WEIGHTS_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# What goes with weights in safetensors.
_BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "chat_templates/default.jinja", "additional_chat_templates/default.jinja",
)  # fmt: skip
# GGUF files that are no language model.
_OTHER = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_QUANT = re.compile(r"(?<![A-Za-z0-9])(I?Q\d\w*|BF16|F16|F32)(?![A-Za-z0-9_])", re.IGNORECASE)


@dataclass(frozen=True)
class Cached:
    """A model of a repository that is in the cache."""

    name: str
    """What ``wgllm.hub.resolve`` takes for it."""
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        return sum(f.stat().st_size for f in self.files)


@dataclass(frozen=True)
class _Remote:
    """A file of a repository, as Hugging Face describes it."""

    name: str
    size: int
    hash: str
    """SHA-256 or, of small files, git's SHA-1."""


@dataclass(frozen=True)
class Described:
    """What a download from Hugging Face would bring."""

    files: tuple[str, ...]
    size: int
    """Bytes of all files."""
    missing: int
    """How many of them are still to come."""
    licence: str


def find_cached(repo: str, quant: str | None, file: str | None = None) -> tuple[Path, ...]:
    """The files of the model that a name means, of main's revision or else of another that is in the cache.

    Empty when the cache has none, or main (else the first revision with any) has several.
    """
    return next(iter(_copies(repo, quant, file)), ())


def all_copies(repo: str, quant: str | None, file: str | None = None) -> tuple[Path, ...]:
    """What ``find_cached`` finds, and the same model's files of every other revision."""
    copies = _copies(repo, quant, file)
    return tuple(path for copy in copies for path in copy) if copies and copies[0] else ()


def all_cached() -> list[Cached]:
    """Every model in the Hugging Face cache; one that several revisions have, once."""
    found = []
    for repo in cache.repos():
        for names, files in _cached(repo).items():
            quants = _QUANT.findall(names[0].rpartition("/")[2])
            tag = f":{quants[-1]}" if quants else ""
            found.append(Cached(f"hf:{repo}{tag}", files))
    return found


def _copies(repo: str, quant: str | None, file: str | None) -> list[tuple[Path, ...]]:
    """The files of each revision that has what is meant; none where that is several models."""
    copies: list[tuple[Path, ...]] = []
    for folder in cache.snapshots(repo):
        models = _models(cache.file_names(folder))
        if found := _named(models, file) if file else _meant(models, quant):
            copies.append(tuple(folder / name for name in found[0]) if len(found) == 1 else ())
    return copies


def _cached(repo: str) -> dict[tuple[str, ...], tuple[Path, ...]]:
    """The names of each model in the cache, and its files, main's revision before the others."""
    found: dict[tuple[str, ...], tuple[Path, ...]] = {}
    for folder in cache.snapshots(repo):
        for names in _models(cache.file_names(folder)):
            found.setdefault(tuple(names), tuple(folder / n for n in names))
    return found


def fetch_from_hub(
    repo: str, quant: str | None, file: str | None = None, *, download: bool, progress: Progress
) -> Path:
    """The model's file (the first, when it is split) in the Hugging Face cache, fetched when it is not there.

    ``file`` is a file's name, else ``quant`` says which is meant. A sound copy in the cache is used without asking the
    network. Raises ``ModelNotFoundError``, ``DownloadError``.
    """
    from huggingface_hub import HfApi, constants

    offline = constants.HF_HUB_OFFLINE or not download
    found = find_cached(repo, quant, file)
    if not found and offline and quant is None and file is None and (cached := _cached(repo)):
        # Without the network, the only model of the repository that is here is what was meant.
        found = cached[tuple(_choose([list(names) for names in cached], repo, None))]
    damaged = [path for path in found if not cache.is_sound(path, progress)]
    if found and not damaged:
        return found[0]
    if offline:
        shown = repo if quant is None else f"{repo}:{quant}"
        problem = "in the Hugging Face cache is damaged" if found else "is not in the Hugging Face cache"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"`wgllm pull hf:{shown}` fetches it"
        raise ModelNotFoundError(f"{shown} {problem}; {why}")
    for path in damaged:
        progress.message(f"{printable(path.name)} is damaged: its SHA-256 differs; fetching it again")
    with quiet(), _explained(repo):
        info = HfApi().model_info(repo, files_metadata=True)
    chosen = _remote_files(info, repo, quant, file)
    _announce(repo, chosen, _licence(info, repo), progress)
    total = sum(remote.size for remote in chosen)
    missing = sum(cache.missing_bytes(repo, remote.hash, remote.size) for remote in chosen)
    paths: list[Path] = []
    with quiet(), cache.cache_errors():
        progress.start(repo, total, total - missing)
        try:
            before = 0
            for remote in chosen:
                paths.append(_fetch(repo, str(info.sha), remote, before, progress))
                before += remote.size
        finally:
            progress.finish()
    return paths[0]


def describe(repo: str, quant: str | None, file: str | None = None) -> Described:
    """Asks Hugging Face what ``fetch_from_hub`` would fetch, without fetching it.

    Raises ``ModelNotFoundError``, with the candidates where a name means several models, and ``DownloadError``.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise ModelNotFoundError(f"{repo} is not in the Hugging Face cache; HF_HUB_OFFLINE is set")
    with quiet(), _explained(repo):
        info = HfApi().model_info(repo, files_metadata=True)
    chosen = _remote_files(info, repo, quant, file)
    return Described(
        tuple(remote.name for remote in chosen),
        sum(remote.size for remote in chosen),
        sum(cache.missing_bytes(repo, remote.hash, remote.size) for remote in chosen),
        _licence(info, repo),
    )


def _licence(info: ModelInfo, repo: str) -> str:
    licence = getattr(info.card_data, "license", None)
    return printable(licence) if isinstance(licence, str) else f"see https://huggingface.co/{repo}"


def _remote_files(info: ModelInfo, repo: str, quant: str | None, file: str | None) -> list[_Remote]:
    """What to fetch. Nothing of the answer is believed but sizes and hashes, which the file is held against."""
    files = {s.rfilename: s for s in info.siblings or ()}
    models = _models(files)
    names = _choose(_named(models, file) if file else models, repo, None if file else quant)
    chosen = []
    for name in names:
        lfs, size, blob = files[name].lfs, files[name].size, files[name].blob_id
        small = name in (_INDEX, *_BESIDE)
        found = lfs.sha256 if lfs is not None else str(blob) if small else ""
        if not re.fullmatch(r"[0-9a-f]{64}" if lfs is not None else r"[0-9a-f]{40}", found) or not size:
            raise DownloadError(f"{repo}: Hugging Face tells no SHA-256 of {printable(name)}")
        chosen.append(_Remote(name, size, found))
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise DownloadError(f"{repo}: Hugging Face tells no commit")
    return chosen


def _models(names: Iterable[str]) -> list[list[str]]:
    """The names of each model's files: GGUF, split models in order and only if complete; else safetensors."""
    names = list(names)
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
    return whole or _safetensors(set(names))


def _safetensors(names: set[str]) -> list[list[str]]:
    """The files of the model in safetensors, if it is complete: its weights or their index, then all others."""
    if "config.json" not in names:
        return []
    if "model.safetensors" in names:
        weights = ["model.safetensors"]
    elif _INDEX in names:
        shards = sorted(name for name in names if _WEIGHTS_SHARD.fullmatch(name))
        expected = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        if not shards or shards != expected:
            return []
        weights = [_INDEX, *shards]
    else:
        return []
    return [[*weights, *(name for name in _BESIDE if name in names)]]


def _named(models: list[list[str]], file: str) -> list[list[str]]:
    return [m for m in models if m[0].casefold() == file.casefold()]


def _of_quant(models: list[list[str]], quant: str) -> list[list[str]]:
    # In the file's own name, since a folder named after one quantization may hold files of others.
    pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = [m for m in models if pattern.search(m[0].rpartition("/")[2])]
    # Some repositories have the same model whole and split.
    whole = {m[0].lower().removesuffix(".gguf") for m in found if len(m) == 1}
    return [m for m in found if not ((s := _SHARD.fullmatch(m[0])) and s[1].lower() in whole)]


def _meant(models: list[list[str]], quant: str | None) -> list[list[str]]:
    """Those of a quantization; without one the default, or the model in safetensors."""
    weights = [] if quant else [m for m in models if m[0].startswith("model.safetensors")]
    return _of_quant(models, quant or DEFAULT_QUANT) or weights


def _choose(models: list[list[str]], repo: str, quant: str | None) -> list[str]:
    found = _meant(models, quant)
    if not found and quant is None:
        found = models
    if len(found) == 1:
        return found[0]
    if not models:
        raise ModelNotFoundError(
            f"{repo} on Hugging Face has no GGUF file, and no config.json with safetensors; a repository named "
            "...-GGUF may"
        )
    shown = ", ".join(printable(m[0]) for m in (found or models)[:20])
    if found:
        raise ModelNotFoundError(f"{repo} has several models; name one as hf:{repo}:QUANT, of {shown}")
    raise ModelNotFoundError(f"{repo} has no {printable(quant or '')}; it has {shown}")


def _announce(repo: str, files: list[_Remote], licence: str, progress: Progress) -> None:
    size = sum(file.size for file in files)
    missing = sum(cache.missing_bytes(repo, file.hash, file.size) for file in files)
    names = printable(", ".join(file.name for file in files))
    progress.message(f"Fetching {repo}: {names}, {size_text(size)}")
    progress.message(f"  licence: {licence}")
    progress.message(f"  place: {cache.hub_folder()}")
    if missing < size:
        progress.message(f"  already here: {size_text(size - missing)}")
    cache.check_space(missing)


def _fetch(repo: str, commit: str, file: _Remote, before: int, progress: Progress) -> Path:
    """Fetches a file, going on with what an earlier run left, and names it only when its SHA-256 is right.

    ``before`` bytes of other files have come already.
    """
    blob = cache.repo_folder(repo) / "blobs" / file.hash
    partial = cache.partial(repo, file.hash)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with cache.lock(repo, file.hash, progress):
        if not (blob.is_file() and cache.hash_of(blob, file.hash) == file.hash):
            try:
                _download(repo, commit, file, partial, lambda n: progress.update(before + n))
            except KeyboardInterrupt:
                progress.message("Stopped; what has come is kept, the same command goes on from there")
                raise
            if cache.hash_of(partial, file.hash) != file.hash:
                partial.unlink()
                raise DownloadError(f"{repo}: {printable(file.name)} came with the wrong SHA-256; try again")
            partial.replace(blob)
        path = cache.publish(repo, commit, file.name, file.hash)
        cache.is_sound(path, SilentProgress())  # notes that it has been checked
        progress.update(before + file.size)
        return path


class _Counting:
    """The file that huggingface_hub writes to: tells after each piece how many bytes there are."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file = file
        self._report = report

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._report(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _download(repo: str, commit: str, file: _Remote, partial: Path, report: Callable[[int], None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    headers = importlib.import_module("huggingface_hub.utils").build_hf_headers()
    partial.touch()
    with partial.open("r+b") as target:
        here = target.seek(0, 2)
        if here > file.size:
            here = target.seek(0)
            target.truncate()
        if here == file.size:
            return
        try:
            with _explained(repo), small_pieces():
                url = hf_hub_url(repo, file.name, revision=commit)
                http_get(
                    url, cast(BinaryIO, _Counting(target, report)), resume_size=here, headers=headers,
                    expected_size=file.size, displayed_filename=file.name,
                )  # fmt: skip
        except DownloadError as error:
            n_bytes = target.seek(0, 2)
            if n_bytes > file.size:  # the server has ignored where to go on, or lies
                target.truncate(0)
            if isinstance(error.__cause__, OSError) and "Consistency check" in str(error):
                problem = f"{n_bytes:,} bytes came instead of {file.size:,}; try again"
                raise DownloadError(f"{repo}: {printable(file.name)}: {problem}") from error
            raise


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
        if cache.is_disk_error(error):
            raise
        problem = f"{type(error).__name__}: {printable(' '.join(str(error).split()))}"
        raise DownloadError(
            f"{repo}: the connection to Hugging Face failed ({problem}); the same command goes on where it stopped"
        ) from error
