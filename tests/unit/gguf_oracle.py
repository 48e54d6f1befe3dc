"""A second GGUF reader, written apart from the first and for no other end than to judge it."""

from __future__ import annotations

from itertools import pairwise

from wgllm.quant import format_by_id

MAX = 2**63 - 1


class Invalid(Exception):
    """What the oracle holds against a file."""


class Oracle:
    """Reads a GGUF file from front to back in the plainest way, remembering where the integers are."""

    WIDTHS = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self.integers: list[tuple[int, int]] = []
        self.strings = 0

    def judge(self) -> dict[str, tuple[tuple[int, ...], int, bytes]] | str:
        """name → (shape, type, bytes), or what is wrong with the file."""
        try:
            return self._read()
        except Invalid as error:
            return str(error)

    def header_end(self) -> int:
        """Where the last tensor's entry ends, after a judgement or with one."""
        if not self.integers:
            self.judge()
        return self.end_of_header

    def need(self, condition: bool, complaint: str) -> None:
        if not condition:
            raise Invalid(complaint)

    def integer(self, size: int) -> int:
        piece = self.raw[self.at : self.at + size]
        self.need(len(piece) == size, "cut off in an integer")
        self.integers.append((self.at, size))
        self.at += size
        return int.from_bytes(piece, "little")

    def string(self, least: int, most: int, utf8: bool) -> bytes:
        size = self.integer(8)
        self.need(least <= size <= most, f"string of {size}")
        piece = self.raw[self.at : self.at + size]
        self.need(len(piece) == size, "cut off in a string")
        self.at += size
        if utf8:
            try:
                piece.decode()
            except UnicodeDecodeError:
                raise Invalid("not UTF-8") from None
        return piece

    def value(self, kind: int, key: str) -> int | bytes:
        self.need(kind <= 12 and kind != 9, f"value type {kind}")
        if kind == 8:
            return self.string(0, 2**30, utf8=False)
        return self.integer(self.WIDTHS[kind])

    def array(self, key: str) -> None:
        kind, count = self.integer(4), self.integer(8)
        self.need(kind <= 12 and kind != 9, f"array of type {kind}")
        self.need(count <= 2**30, "array length")
        if kind == 8:
            self.strings += count
            self.need(self.strings <= 2**22, "strings in all")
            self.need(count * 8 <= len(self.raw) - self.at, "array beyond the file")
            for _ in range(count):
                self.string(0, 2**30, utf8=False)
        else:
            self.at += count * self.WIDTHS[kind]
            self.need(self.at <= len(self.raw), "array beyond the file")

    def _read(self) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
        self.need(self.raw[:4] == b"GGUF", "magic")
        self.at = 4
        self.need(self.integer(4) in (2, 3), "version")
        n_tensors, n_keys = self.integer(8), self.integer(8)
        self.need(n_tensors <= 2**17 and n_keys <= 2**16, "counts")
        alignment = 32
        keys = set()
        for _ in range(n_keys):
            key = self.string(1, 2**16 - 1, utf8=True).decode()
            self.need(key not in keys, "key twice")
            keys.add(key)
            kind = self.integer(4)
            if kind == 9:
                self.need(key != "general.alignment", "alignment is an array")
                self.array(key)
                continue
            value = self.value(kind, key)
            if key == "general.alignment":
                self.need(kind == 4, "alignment type")
                assert isinstance(value, int)
                self.need(value.bit_count() == 1, "alignment value")
                alignment = value
            if key == "general.architecture" and isinstance(value, bytes):
                self.need(len(value) < 64, "architecture")
                try:
                    value.decode()
                except UnicodeDecodeError:
                    raise Invalid("architecture is not UTF-8") from None
        infos = [self.tensor(alignment) for _ in range(n_tensors)]
        self.end_of_header = self.at
        self.need(len({info[0] for info in infos}) == len(infos), "tensor twice")
        begin = self.at + -self.at % alignment
        size = len(self.raw)
        result, taken = {}, []
        for name, shape, type_id, offset, nbytes in infos:
            start = begin + offset
            if nbytes:
                self.need(start + nbytes <= size, f"{name} beyond the file")
                taken.append((start, start + nbytes))
            else:
                self.need(offset == 0 or start <= size, f"{name} beyond the file")
            result[name] = (shape, type_id, self.raw[start : start + nbytes])
        taken.sort()
        for (_, stop), (start, _) in pairwise(taken):
            self.need(stop <= start, "overlap")
        if taken and size > taken[-1][1]:
            padded = -(-taken[-1][1] // alignment) * alignment
            self.need(size >= padded, "cut in the padding")
        return result

    def tensor(self, alignment: int) -> tuple[str, tuple[int, ...], int, int, int]:
        name = self.string(1, 63, utf8=True).decode()
        n_dims = self.integer(4)
        self.need(n_dims <= 4, "dimensions")
        dims = [self.integer(8) for _ in range(n_dims)]
        type_id, offset = self.integer(4), self.integer(8)
        count, product = 1, 1
        for dim in dims:
            self.need(dim <= MAX, "negative dimension")
            count *= dim
            product *= dim if dim else 1
        self.need(product <= MAX, "elements")
        fmt = format_by_id(type_id)
        self.need(fmt is not None, "type")
        assert fmt is not None
        per_block, block_bytes = fmt.block_size, fmt.type_size
        self.need((dims[0] if dims else 1) % per_block == 0, "row")
        nbytes = count // per_block * block_bytes
        self.need(nbytes <= MAX, "bytes")
        self.need(offset <= MAX and offset % alignment == 0, "offset")
        self.need(offset + -(-nbytes // alignment) * alignment <= MAX, "end")
        return name, tuple(dims[::-1]) if dims else (1,), type_id, offset, nbytes
