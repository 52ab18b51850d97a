"""GGUF: key-values and a table of tensors, then the tensors, each at a multiple of an alignment.

    "GGUF" version tensors keys | (key, type, value) ... | (name, shape, type, offset) ... | pad | data ...

Read by the format's own description (`docs/gguf.md` of ggml) rather than through its package. Values are
passed over, whatever they hold (tokens, chat templates): only `general.alignment` is looked at. All numbers
are little-endian; shapes are written innermost dimension first.

Block-quantised tensors have no element type: they are found as `uint8`, the last dimension being the bytes of
a row, as the `gguf` package shapes them, and their `encoding` says which blocks these are.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.gguf_blocks import BLOCKS
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import Scan
from gdist.formats.gguf_header import UINT32, Header, corrupt, limit, read_name, skip_value

NAME = "gguf"
KEYS_ARE_NAMES = True

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # which differ in nothing for little-endian files
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20  # in use are 32 to 4096
MAX_KEYS = 1 << 16  # in use are some dozens
MAX_TENSORS = 1 << 17  # a model whose experts are apart has some 50,000
MAX_DIMENSIONS = 4  # ggml's own limit
MAX_LENGTH = (1 << 63) - 1
LISTED = 20  # faults that a message names

PLAIN: Mapping[int, DType] = MappingProxyType(
    {
        number: BY_NAME[name]
        for number, name in (
            (0, "float32"),
            (1, "float16"),
            (24, "int8"),
            (25, "int16"),
            (26, "int32"),
            (27, "int64"),
            (28, "float64"),
            (30, "bfloat16"),
        )
    }
)


def sniff(head: bytes, size: int) -> bool:
    """True when the magic is followed by a version of either byte order; a text that begins so has none."""
    return head.startswith(MAGIC) and len(head) >= 8 and (head[6:8] == b"\0\0" or head[4:6] == b"\0\0")


def scan(size: int) -> Scan:
    """Finds the tensors of a file of `size` bytes, in the order of its table; keys are their names.

    Asks for the header in growing steps, and passes over long values.

    Raises:
        UnsupportedError: for other versions, big-endian files, types that ggml has removed (with the tensors
            that have them), and a header beyond the limits.
        CorruptError: for tensors that overlap, are not aligned, or lie outside the file, names given twice,
            and whatever else contradicts itself.
    """
    header = Header(size)
    _check_version((yield from header.take(8, "its version")))
    tensors, keys = struct.unpack("<QQ", (yield from header.take(16, "its counts")))
    limit(tensors, MAX_TENSORS, "tensors")
    limit(keys, MAX_KEYS, "keys")
    alignment = yield from _alignment(header, keys)
    infos: list[_Info] = []
    for _ in range(tensors):
        infos.append((yield from _info(header)))
    return _arrays(infos, -(-header.at // alignment) * alignment, alignment, size)


def _check_version(data: bytes) -> None:
    if data[:4] != MAGIC:
        corrupt(f"it starts with {data[:4]!r}")
    version, swapped = struct.unpack("<I", data[4:])[0], struct.unpack(">I", data[4:])[0]
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and swapped:  # as ggml tells byte orders apart
        raise UnsupportedError(
            f"a big-endian GGUF file (version {swapped}) is not read",
            hint="convert it with gguf-convert-endian of the gguf package",
        )
    raise UnsupportedError(
        f"GGUF version {version} is not read, only {' and '.join(map(str, VERSIONS))}",
        hint="write it again with a current llama.cpp",
    )


def _alignment(header: Header, keys: int) -> Generator[Extent, bytes, int]:
    """Passes over all keys and values; the alignment that one of them may give."""
    alignment, seen = DEFAULT_ALIGNMENT, set[bytes]()
    for _ in range(keys):
        start = header.at
        key = yield from read_name(header, "a key")
        if key in seen:
            corrupt(f"key {key[:200]!r} at {start} is given twice")
        seen.add(key)
        kind = yield from header.number(4, "a value's type")
        if key != b"general.alignment":
            yield from skip_value(header, kind)
            continue
        if kind != UINT32:
            corrupt(f"general.alignment at {start} has type {kind}, not {UINT32} (uint32)")
        alignment = yield from header.number(4, "general.alignment")
        if not alignment or alignment & (alignment - 1):
            corrupt(f"general.alignment is {alignment}, no power of two")
        limit(alignment, MAX_ALIGNMENT, "bytes of alignment")
    return alignment


@dataclass(frozen=True, slots=True)
class _Info:
    """A row of the table: `shape` in elements, innermost last; `offset` from where the data starts."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def found(self, data: int) -> FoundArray:
        """The array; `data` is where data starts."""
        if dtype := PLAIN.get(self.kind):
            extent = Extent(data + self.offset, prod(self.shape) * dtype.itemsize)
            return FoundArray(self.name, extent, self.shape, dtype)
        block = BLOCKS[self.kind]
        shape = (*self.shape[:-1], self.shape[-1] // block.elements * block.nbytes)
        extent = Extent(data + self.offset, prod(shape))
        return FoundArray(self.name, extent, shape, BY_NAME["uint8"], encoding=block.encoding)


def _info(header: Header) -> Generator[Extent, bytes, _Info]:
    start = header.at
    raw = yield from read_name(header, "a tensor's name")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"not a GGUF file: the name {raw[:200]!r} at {start} is not UTF-8") from error
    ndim = yield from header.number(4, "a tensor's dimensions")
    if ndim > MAX_DIMENSIONS:
        raise UnsupportedError(f"tensor {name!r} has {ndim} dimensions, more than {MAX_DIMENSIONS}")
    row = yield from header.take(8 * ndim + 12, "a tensor's shape")
    *lengths, kind, offset = struct.unpack(f"<{ndim}QIQ", row)
    return _Info(name, tuple(reversed(lengths)), kind, offset)


def _arrays(infos: Sequence[_Info], data: int, alignment: int, size: int) -> tuple[FoundArray, ...]:
    """The tensors, checked one by one and against each other; `data` is where their offsets count from."""
    known = PLAIN.keys() | BLOCKS.keys()
    unknown = [f"{info.name!r} (type {info.kind})" for info in infos if info.kind not in known]
    if unknown:
        raise UnsupportedError(
            f"{len(unknown)} tensors have types that ggml does not have, or no more: {_listed(unknown)}",
            hint="quantise it again with a current llama.cpp",
            tensors=tuple(unknown),
        )
    faults = [fault for info in infos for fault in _faults(info, data, alignment, size)]
    names: set[str] = set()
    for info in infos:
        if info.name in names:
            faults.append(f"tensor {info.name!r} is there twice")
        names.add(info.name)
    found = () if faults else tuple(info.found(data) for info in infos)
    faults += _overlaps(found)
    if faults:
        corrupt(_listed(faults, "; "))
    return found


def _faults(info: _Info, data: int, alignment: int, size: int) -> Iterator[str]:
    """What is wrong with a tensor by itself."""
    if prod(length or 1 for length in info.shape) > MAX_LENGTH:
        yield f"tensor {info.name!r} has a shape that overflows: {list(info.shape)}"
        return
    block = BLOCKS.get(info.kind)
    row = info.shape[-1] if info.shape else 1
    if block and row % block.elements:
        yield f"rows of {row} of {info.name!r} are no whole blocks of {block.elements} ({block.name})"
        return
    if info.offset % alignment:
        yield f"tensor {info.name!r} at {info.offset} is not at a multiple of {alignment}"
        return
    nbytes = prod(info.shape) * (PLAIN[info.kind].itemsize if not block else 1)
    if block:
        nbytes = nbytes // block.elements * block.nbytes
    if data + info.offset + nbytes > size:
        yield f"tensor {info.name!r} is to end at {data + info.offset + nbytes}, the file has {size} bytes"


def _overlaps(found: Sequence[FoundArray]) -> Iterator[str]:
    position, before = 0, ""
    for array in sorted(found, key=lambda array: array.extent.start):
        if not array.extent.length:
            continue
        if array.extent.start < position:
            yield f"{array.key!r} at {array.extent.start} overlaps {before!r}, which ends at {position}"
        if array.extent.stop > position:
            position, before = array.extent.stop, array.key


def _listed(items: Sequence[str], between: str = ", ") -> str:
    return between.join(items[:LISTED]) + (f" and {len(items) - LISTED} more" if len(items) > LISTED else "")
