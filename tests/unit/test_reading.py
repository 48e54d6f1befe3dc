"""Model files that are read where they are needed: the same as mapped ones, and a change of them is an error."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import DIRECTORIES, Tiny, tiny
from tests.unit.gguf_builder import rich_file
from tests.unit.test_views import check_parts
from wgllm.errors import ModelFileChanged, ModelFileError, ModelNotFoundError
from wgllm.formats.gguf_metadata import StringArray
from wgllm.formats.model_file import ModelFile
from wgllm.formats.reading import ReadFile
from wgllm.formats.views import DerivedView, TransposedView
from wgllm.models.opening import open_model

# Files of a tokenizer of each kind, planes, experts one by one and in stacks; fused and transposed tensors.
FILES = [tiny(name) for name in ("llama-q.q6_k", "gemma3.f32", "qwen3_moe.q8_0", "phi3-longrope.f16")]


def is_mapped(path: Path) -> bool:
    """Whether this process has the file mapped; where the system does not tell, it has not."""
    maps = Path("/proc/self/maps")
    return maps.exists() and str(path.resolve()) in maps.read_text(errors="replace")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny("qwen2.f32").path, tmp_path / "model.gguf"))


@pytest.fixture
def opened(copy: Path) -> Iterator[ModelFile]:
    with open_model(copy, mapped=False) as file:
        yield file


@pytest.mark.parametrize("model", [*FILES, *DIRECTORIES], ids=lambda t: t.id)
def test_what_is_read_is_what_is_mapped(model: Tiny) -> None:
    with open_model(model.path) as mapped, open_model(model.path, mapped=False) as read:
        assert read.tensors.keys() == mapped.tensors.keys() and read.conventions == mapped.conventions
        for name, tensor in mapped.tensors.items():
            found = read.tensors[name]
            assert (found.name, found.shape, found.format) == (tensor.name, tensor.shape, tensor.format)
            assert np.array_equal(found.data, tensor.data)
        assert [*read.metadata] == [*mapped.metadata]
        for key, value in mapped.metadata.items():
            found = read.metadata[key]
            if isinstance(value, StringArray):
                assert found.bytes_list() == value.bytes_list()
            else:
                assert np.array_equal(found, value) and type(found) is type(value)


def test_nothing_stays_mapped(copy: Path) -> None:
    with open_model(copy) as file:
        assert is_mapped(copy) or sys.platform != "linux"
    with open_model(copy, mapped=False) as file:
        assert not is_mapped(copy)
        assert file.tensors["output_norm.weight"].array().size
        assert not is_mapped(copy)


def test_metadata_of_all_kinds_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "rich.gguf"
    path.write_bytes(rich_file().build())
    with open_model_file(path, mapped=True) as mapped, open_model_file(path, mapped=False) as read:
        assert {key: _plain(value) for key, value in read.metadata.items()} == {
            key: _plain(value) for key, value in mapped.metadata.items()
        }
        assert not any(isinstance(v, np.ndarray) and v.flags.writeable for v in read.metadata.values())


def open_model_file(path: Path, *, mapped: bool) -> ModelFile:
    from wgllm.formats.gguf import open_gguf

    return open_gguf(path, mapped=mapped)


def _plain(value: object) -> object:
    if isinstance(value, StringArray):
        return value.bytes_list()
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_quantized_as_it_is_read(copy: Path) -> None:
    with open_model(copy, quantize="q4_0") as mapped, open_model(copy, quantize="q4_0", mapped=False) as read:
        for name, tensor in mapped.tensors.items():
            assert np.array_equal(read.tensors[name].data, tensor.data)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["llama-q.q6_k", "qwen2.f32"]))
def test_any_part(data: st.DataObject, name: str) -> None:
    with open_model(tiny(name).path, mapped=False) as file:
        view = file.tensors[data.draw(st.sampled_from(sorted(file.tensors)))]
        assert isinstance(view, DerivedView) and view.kept() is view
        check_parts(view, data)


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def written(path: Path) -> None:
    """By other bytes of the same number, at another time."""
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def cut_unnoticed(path: Path) -> None:
    """And told to be as old as before, as some tools for copying do."""
    before = path.stat().st_mtime_ns
    os.truncate(path, 5000)
    os.utime(path, ns=(before, before))


@pytest.mark.parametrize("change", [cut, appended, written, cut_unnoticed])
def test_a_file_that_changes_is_told(opened: ModelFile, copy: Path, change: Callable[[Path], None]) -> None:
    view = opened.tensors["token_embd.weight"]
    assert view.rows(0, 1).size
    change(copy)
    for read in (lambda: view.rows(0, 1), view.array, opened.files[0].check, lambda: view.sample(0, 9)):
        with pytest.raises(ModelFileChanged, match=r"model\.gguf: file: has changed"):
            read()


def test_a_file_that_changes_while_it_is_read_is_told(
    opened: ModelFile, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any look that could come before the reading."""
    (file,) = opened.files
    real = file._file

    class Late:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def seek(self, place: int) -> int:
            os.truncate(copy, 5000)
            return real.seek(place)

    monkeypatch.setattr(file, "_file", Late())
    with pytest.raises(ModelFileChanged):
        opened.tensors["output_norm.weight"].array()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the names of open files")
@pytest.mark.parametrize("another", [True, False])
def test_a_file_whose_name_is_taken_stays_what_it_was(opened: ModelFile, copy: Path, another: bool) -> None:
    before = {name: view.data for name, view in opened.tensors.items()}
    if another:
        new = Path(shutil.copy(tiny("gemma3.f32").path, copy.with_name("new")))
        new.replace(copy)
    else:
        copy.unlink()
    opened.files[0].check()
    assert all(np.array_equal(opened.tensors[name].data, data) for name, data in before.items())


def test_a_transposed_tensor_is_read_once_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its pieces has a little of every row."""
    with open_model(next(d for d in DIRECTORIES if "gpt2" in d.id).path, mapped=False) as file:
        reads: list[int] = []
        read = ReadFile.read

        def counted(self: ReadFile, start: int, stop: int) -> object:
            reads.append(stop - start)
            return read(self, start, stop)

        monkeypatch.setattr(ReadFile, "read", counted)
        view = next(v for v in file.tensors.values() if isinstance(v, TransposedView))
        whole = view.data
        for at in range(0, view.n_blocks - 9, view.n_blocks // 5):
            assert np.array_equal(view.blocks(at, at + 9).reshape(-1), whole[at * 4 : at * 4 + 36])
        assert reads == [view.nbytes]
        view.forget()
        view.rows(0, 1)
        assert reads == [view.nbytes] * 2


def test_many_at_once(opened: ModelFile) -> None:
    views = [*opened.tensors.values()] * 8
    expected = [view.data for view in views]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda view: view.data, views))
    assert all(map(np.array_equal, found, expected))


def test_after_the_end_nothing_is_read(copy: Path) -> None:
    with open_model(copy, mapped=False) as file:
        view, (source,) = file.tensors["output_norm.weight"], file.files
    with pytest.raises(ModelFileError, match=r"model\.gguf: file: cannot be read"):
        view.array()
    source.close()  # again


def test_files_that_are_none(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.gguf", tmp_path / "broken.gguf"
    empty.touch()
    broken.write_bytes(rich_file().build()[:100])
    for path, error in (
        (tmp_path / "gone.gguf", ModelNotFoundError),
        (empty, ModelFileError),
        (broken, ModelFileError),
    ):
        expected = pytest.raises(error)
        with expected as of_mapped:
            open_model(path)
        with expected as of_read:
            open_model(path, mapped=False)
        assert str(of_read.value) == str(of_mapped.value)
    assert not is_mapped(broken)
