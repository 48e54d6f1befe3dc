"""What a model file tells of itself, for people: texts come without control characters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from wgllm.errors import ModelFileError, printable
from wgllm.formats.model_file import ModelFile


@dataclass(frozen=True)
class FileFacts:
    name: str
    """``general.name``, else the file's without its ending."""
    architecture: str
    quantization: str
    """The format of most bytes: ``Q4_K``."""
    parameters: int
    nbytes: int
    """Of all tensors as they lie in the file."""
    license: str | None


def file_facts(file: ModelFile) -> FileFacts:
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.format.name] += tensor.nbytes
    return FileFacts(
        name=_text(file, "general.name") or file_stem(file),
        architecture=printable(file.architecture),
        quantization=sizes.most_common(1)[0][0] if sizes else "",
        parameters=sum(tensor.size for tensor in file.tensors.values()),
        nbytes=sizes.total(),
        license=_text(file, "general.license"),
    )


def file_stem(file: ModelFile) -> str:
    """The file's name without its ending, or the directory's."""
    return printable(file.path.name if file.path.is_dir() else file.path.stem)


def _text(file: ModelFile, key: str) -> str | None:
    try:
        value = file.metadata.get(key)
    except ModelFileError:  # text that is not UTF-8 harms nothing unless it is needed
        return None
    return printable(value) if isinstance(value, str) else None
