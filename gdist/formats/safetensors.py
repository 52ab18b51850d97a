"""safetensors: eight bytes of header length, a JSON header, and the payloads in the order of their offsets.

Read by the format's own description rather than through its package: the header alone says where every
tensor lies. Stricter than the package in what its text forbids and it accepts: a key given twice, and
anything before the opening brace.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from math import prod
from typing import NoReturn

from gdist.core.dtypes import BY_NAME, BY_SAFETENSORS
from gdist.core.extent import Extent
from gdist.core.tensor import UNREAD, FoundArray
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import Scan

NAME = "safetensors"
KEYS_ARE_NAMES = True

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_DIMENSIONS = 32
MAX_LENGTH = (1 << 63) - 1
ENCODINGS = "gdist.encodings"  # metadata that `gdist export` writes: JSON, encodings by tensor name
_FIELDS = {"dtype", "shape", "data_offsets"}


def sniff(head: bytes, size: int) -> bool:
    """True when a header length that fits the file is followed by an opening brace."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return 2 <= int.from_bytes(head[:8], "little") <= size - 8


def scan(size: int) -> Scan:
    """Finds the tensors of a file of `size` bytes, in the order of their payloads; keys are their names.

    Asks for 8 bytes, then for the header, whole. Of a tensor whose element type gdist does not store the
    bytes are found, with `UNREAD` in its encoding.

    Raises:
        UnsupportedError: for an unknown field.
        CorruptError: for anything the format's description forbids.
    """
    if size < 8:
        _corrupt(f"the file has {size} bytes, the header's length alone takes 8")
    length = int.from_bytes((yield Extent(0, 8)), "little")
    if length > MAX_HEADER_BYTES:
        _corrupt(f"the header has {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    if not 2 <= length <= size - 8:
        _corrupt(f"the header has {length} bytes, {size - 8} follow its length")
    header, encodings = _parse((yield Extent(8, length)))
    found = _arrays(header, 8 + length, size - 8 - length)
    return tuple(replace(array, encoding=array.encoding or encodings.get(array.key, "")) for array in found)


def _parse(data: bytes) -> tuple[dict[str, object], dict[str, str]]:
    """The tensors' entries, and their encodings."""
    if data[:1] != b"{":
        _corrupt(f"the header starts with {data[:1]!r}, not with an opening brace")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"the safetensors header is not JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        _corrupt(f"the header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _corrupt("the metadata is not a map of strings")
    return header, _encodings(metadata.get(ENCODINGS, "{}"))


def _encodings(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"the metadata {ENCODINGS} is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _corrupt(f"the metadata {ENCODINGS} is not a map of strings")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        _corrupt(f"the header has {len(twice)} keys twice: {', '.join(map(repr, twice[:20]))}")
    return result


def _no_constant(text: str) -> NoReturn:
    _corrupt(f"the header holds {text}")


def _arrays(header: dict[str, object], start: int, available: int) -> tuple[FoundArray, ...]:
    """The tensors, checked to lie end to end in the `available` bytes from `start`."""
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda entry: entry[1:3])
    position = 0
    for name, begin, end, _, _ in entries:
        if begin != position:
            what = "overlaps what comes before it" if begin < position else "leaves a hole before it"
            _corrupt(f"tensor {name!r} at {begin} {what}, which ends at {position}")
        position = end
    if position != available:
        _corrupt(f"the tensors end at {position}, the file has {available} bytes for them")
    found = []
    for name, begin, end, code, shape in entries:
        if code not in BY_SAFETENSORS:  # only who wants it has to know the type
            extent = Extent(start + begin, end - begin)
            kind = UNREAD + code
            found.append(FoundArray(name, extent, (extent.length,), BY_NAME["uint8"], encoding=kind))
            continue
        dtype = BY_SAFETENSORS[code]
        expected = prod(shape) * dtype.itemsize
        if expected != end - begin:
            _corrupt(
                f"{code} {list(shape)} of {name!r} takes {expected} bytes, its offsets give {end - begin}"
            )
        found.append(FoundArray(name, Extent(start + begin, end - begin), shape, dtype))
    return tuple(found)


def _entry(name: str, value: object) -> tuple[str, int, int, str, tuple[int, ...]]:
    """(name, begin, end, dtype, shape) of one entry of the header."""
    if not isinstance(value, dict) or not value.keys() >= _FIELDS:
        _corrupt(f"tensor {name!r} is not an object with {', '.join(sorted(_FIELDS))}")
    if value.keys() != _FIELDS:
        extra = ", ".join(map(repr, sorted(value.keys() - _FIELDS)))
        raise UnsupportedError(f"tensor {name!r} has fields gdist does not know: {extra}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not re.fullmatch(r"[A-Z0-9_]{1,40}", dtype):
        _corrupt(f"tensor {name!r} has an element type that is no name of one")
    if not _lengths(shape):
        _corrupt(f"tensor {name!r} has a shape that is no list of lengths")
    if len(shape) > MAX_DIMENSIONS:
        raise UnsupportedError(f"tensor {name!r} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if not _lengths(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _corrupt(f"tensor {name!r} has data_offsets that are no begin and end")
    return name, offsets[0], offsets[1], dtype, tuple(shape)


def _lengths(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_LENGTH for item in value)


def _corrupt(what: str) -> NoReturn:
    hint = "it may be cut short, damaged or something else: get it again"
    raise CorruptError(f"not a safetensors file: {what}", hint=hint)
