"""NumPy's array files (`.npy`): a magic, a version, a header that is a Python literal, and the elements.

    | 93 NUMPY | 1 0 | length | {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  ... | elements |

Versions differ in the length of the length and in the header's encoding. The literal is never evaluated: a
dict of these three keys is all it may be, and it is read by a pattern that knows nothing else.

Types that NumPy does not know itself (`ml_dtypes`) it writes by their size alone. `<V2`, in older files
`|V2`, is bfloat16: it is the only type of two bytes that is written so (float16 is `<f2`), and `<f1` is
float8_e5m2 likewise. `<V1` may be any of a dozen fp8, fp4 and int4 types, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from math import prod
from types import MappingProxyType
from typing import NoReturn

from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray, Order
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import Scan

NAME = "npy"
KEYS_ARE_NAMES = False  # a file has one array, and no name for it

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # what NumPy itself reads; longer ones are of structured types
MAX_DIMENSIONS = 32  # of a TensorStore array
MAX_LENGTH = (1 << 63) - 1
READ_BYTES = 256  # asked for at first: nearly all headers are of 128 bytes

_LENGTH_BYTES = MappingProxyType({1: 2, 2: 4, 3: 4})  # by version
_KINDS = MappingProxyType(
    {"int8": "|i1", "uint8": "|u1", "bool": "|b1", "bfloat16": "<V2", "float8_e5m2": "<f1"}
    | {f"{kind}{8 * n}": f"<{kind[0]}{n}" for kind in ("int", "uint") for n in (2, 4, 8)}
    | {f"float{8 * n}": f"<f{n}" for n in (2, 4, 8)}
    | {f"complex{8 * n}": f"<c{n}" for n in (8, 16)}
)
_TYPES: Mapping[str, DType] = MappingProxyType(
    {code: BY_NAME[name] for name, code in _KINDS.items()}
    | {code.replace("|", "<"): BY_NAME[name] for name, code in _KINDS.items() if code[0] == "|"}
    | {"|V2": BY_NAME["bfloat16"]}
)

_SPACE = r"[ \t\r\n]*"
_ENTRY = re.compile(
    rf"{_SPACE}(['\"])(?P<key>\w{{1,20}})\1{_SPACE}:{_SPACE}"
    r"(?:(?P<text>'[^'\\\n]*'|\"[^\"\\\n]*\")|(?P<flag>True|False)|\((?P<shape>[0-9L, \t]*)\)|(?P<list>\[))"
)
_SHAPE = re.compile(r"(?: *[0-9]{1,19}L? *,)*(?: *[0-9]{1,19}L?)? *")  # L: as Python 2 wrote it


def sniff(head: bytes, size: int) -> bool:
    """True for NumPy's magic."""
    return head.startswith(MAGIC)


def scan(size: int) -> Scan:
    """Finds the one array of a file of `size` bytes; its key is empty.

    Raises:
        UnsupportedError: for a type gdist does not store, big-endian files, an unknown version.
        CorruptError: for a header that is no such dict, or a file of another length than it says.
    """
    return ((yield from read_array(Extent(0, size), "")),)


def read_array(file: Extent, key: str) -> Generator[Extent, bytes, FoundArray]:
    """The array of an npy that takes all of an extent, under this key; see `scan`."""
    what = f"npy {key!r}" if key else "the npy"
    if file.length < len(MAGIC) + 4:
        _corrupt(f"{what} has {file.length} bytes, a header takes more", file.start)
    data = yield Extent(file.start, min(READ_BYTES, file.length))
    if not data.startswith(MAGIC):
        _corrupt(f"{what} starts with {data[:6]!r}, not with NumPy's magic", file.start)
    major, minor = data[6:8]
    if major not in _LENGTH_BYTES or minor:
        raise UnsupportedError(f"{what} is of version {major}.{minor}, which is not read", offset=file.start)
    begin = len(MAGIC) + 2 + _LENGTH_BYTES[major]
    stop = begin + int.from_bytes(data[8:begin], "little")
    if stop - begin > MAX_HEADER_BYTES:
        raise UnsupportedError(
            f"{what} has a header of {stop - begin} bytes, {MAX_HEADER_BYTES} are read", offset=file.start
        )
    if stop > file.length:
        _corrupt(f"{what} has a header up to {stop}, and {file.length} bytes", file.start)
    if stop > len(data):
        data = yield Extent(file.start, stop)
    shape, code, fortran = _parse(data[begin:stop], what, file.start + begin)
    dtype = _dtype(code, what, file.start + begin)
    elements = Extent(file.start + stop, file.length - stop)
    if prod(shape) * dtype.itemsize != elements.length:
        _corrupt(
            f"{what}: {dtype.name} {list(shape)} takes {prod(shape) * dtype.itemsize} bytes, "
            f"{elements.length} follow the header",
            file.start + stop,
        )
    order = Order.F if fortran and sum(n > 1 for n in shape) > 1 else Order.C
    return FoundArray(key, elements, shape, dtype, order)


def _parse(raw: bytes, what: str, offset: int) -> tuple[tuple[int, ...], str, bool]:
    """(shape, type code, whether in Fortran order) of a header."""
    if not raw.isascii():
        raise UnsupportedError(f"{what} has a header that is not ASCII: a structured type", offset=offset)
    text = raw.decode("ascii").strip(" \t\r\n\0")
    if not (text.startswith("{") and text.endswith("}")):
        _corrupt(f"{what} has a header that is no dict: {text[:80]!r}", offset)
    inside, position = text[1:-1].rstrip(" \t\r\n,"), 0
    found: dict[str, re.Match[str]] = {}
    while position < len(inside):
        match = _ENTRY.match(inside, position)
        if match is None:
            _corrupt(f"{what} has a header with {inside[position : position + 80]!r}", offset)
        if match["list"]:
            _refuse_type(f"{what} is of a structured type", offset)
        if match["key"] in found:
            _corrupt(f"{what} has {match['key']!r} twice in its header", offset)
        found[match["key"]] = match
        position = match.end()
        gap = re.compile(rf"{_SPACE}(,|$)").match(inside, position)
        if gap is None:
            _corrupt(f"{what} has a header with {inside[position : position + 80]!r}", offset)
        position = gap.end()
    if found.keys() != {"descr", "fortran_order", "shape"}:
        _corrupt(f"{what} has a header of {', '.join(sorted(found)) or 'nothing'}", offset)
    code, flag, lengths = found["descr"]["text"], found["fortran_order"]["flag"], found["shape"]["shape"]
    if code is None or flag is None or lengths is None or not _SHAPE.fullmatch(lengths):
        _corrupt(f"{what} has a header with values of other kinds: {text[:200]!r}", offset)
    return _shape(lengths, what, offset), code[1:-1], flag == "True"


def _shape(text: str, what: str, offset: int) -> tuple[int, ...]:
    if text.strip() and "," not in text:
        _corrupt(f"{what} has a shape that is no tuple: ({text[:80]})", offset)
    shape = tuple(int(part.strip().rstrip("L")) for part in text.split(",") if part.strip())
    if len(shape) > MAX_DIMENSIONS:
        raise UnsupportedError(
            f"{what} has {len(shape)} dimensions, {MAX_DIMENSIONS} are read", offset=offset
        )
    if max(shape, default=0) > MAX_LENGTH:
        _corrupt(f"{what} has the shape {list(shape)}", offset)
    return shape


def _dtype(code: str, what: str, offset: int) -> DType:
    if code not in _TYPES:
        _refuse_code(code, what, offset)
    return _TYPES[code]


def _refuse_code(code: str, what: str, offset: int) -> NoReturn:
    kind, size = code[1:2], code[2:]
    if kind == "O":
        _refuse_type(f"{what} holds Python objects (a pickle)", offset)
    if code[:1] == ">" and kind in "biufcV":
        _refuse_type(f"{what} is big-endian ({code})", offset)
    if kind == "V" and size == "1":
        _refuse_type(f"{what} is of a type of one byte that its header does not name ({code})", offset)
    _refuse_type(f"{what} is of type {code[:40]!r}, which gdist does not store", offset)


def _refuse_type(what: str, offset: int) -> NoReturn:
    raise UnsupportedError(
        what,
        hint="load it where you trust it, and save it as little-endian numbers, or as safetensors",
        offset=offset,
    )


def _corrupt(what: str, offset: int) -> NoReturn:
    raise CorruptError(f"{what} (at offset {offset})", offset=offset)
