"""The smallest Parquet file that holds a table of file ranges: three columns, uncompressed, one row group.

    "PAR1" │ page of `path` │ page of `offset` │ page of `size` │ footer │ u32le length of the footer │ "PAR1"

A page is a header, then its values one after the other (encoding PLAIN). `path` may be null, so its values
come after their definition levels, in runs. Headers and footer are Thrift structs in the compact protocol
(Apache Parquet format, `parquet.thrift`): fields in order, each with the distance to the field before and its
type. Written here, since an engine for Parquet would be the largest of our dependencies.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from gdist.core.varint import varint

Row = tuple[str | None, int, int]  # path, offset, size; a row without a path says that there is no such range

_MAGIC = b"PAR1"
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # Thrift's compact types
_INT64, _BYTE_ARRAY = 2, 6  # Parquet's types
_REQUIRED, _OPTIONAL = 0, 1
_UTF8 = 0
_PLAIN, _RLE = 0, 3

_Field = tuple[int, int, bytes]  # number, compact type, content


def parquet_table(rows: Sequence[Row]) -> bytes:
    """The file of these rows."""
    count = len(rows)
    paths = b"".join(_text(path) for path, _, _ in rows if path is not None)
    columns = (
        ("path", _BYTE_ARRAY, _OPTIONAL, _levels(path is not None for path, _, _ in rows) + paths),
        ("offset", _INT64, _REQUIRED, struct.pack(f"<{count}q", *(offset for _, offset, _ in rows))),
        ("size", _INT64, _REQUIRED, struct.pack(f"<{count}q", *(size for _, _, size in rows))),
    )
    out = bytearray(_MAGIC)
    chunks = []
    schema = [_struct([_binary(4, b"schema"), _int32(5, len(columns))])]
    for name, kind, repetition, values in columns:
        start, nulls = len(out), sum(path is None for path, _, _ in rows) if repetition == _OPTIONAL else 0
        out += _page_header(count, len(values)) + values
        chunks.append(_column_chunk(name, kind, count, nulls, start, len(out) - start))
        text = [_int32(6, _UTF8)] if kind == _BYTE_ARRAY else []
        schema.append(_struct([_int32(1, kind), _int32(3, repetition), _binary(4, name.encode()), *text]))
    group = _struct([_list(1, _STRUCT, chunks), _int64(2, len(out) - len(_MAGIC)), _int64(3, count)])
    footer = _struct(
        [
            _int32(1, 1),  # version
            _list(2, _STRUCT, schema),
            _int64(3, count),
            _list(4, _STRUCT, [group]),
            _binary(6, b"gdist"),
        ]
    )
    return bytes(out) + footer + struct.pack("<I", len(footer)) + _MAGIC


def _page_header(count: int, nbytes: int) -> bytes:
    data = _struct([_int32(1, count), _int32(2, _PLAIN), _int32(3, _RLE), _int32(4, _RLE)])
    return _struct([_int32(1, 0), _int32(2, nbytes), _int32(3, nbytes), (5, _STRUCT, data)])


def _column_chunk(name: str, kind: int, count: int, nulls: int, start: int, nbytes: int) -> bytes:
    about = _struct(
        [
            _int32(1, kind),
            _list(2, _I32, [_zigzag(_PLAIN), _zigzag(_RLE)]),
            _list(3, _BINARY, [_counted(name.encode())]),
            _int32(4, 0),  # uncompressed
            _int64(5, count),
            _int64(6, nbytes),
            _int64(7, nbytes),
            _int64(9, start),
            (12, _STRUCT, _struct([_int64(3, nulls)])),  # without it fastparquet reads integers as floats
        ]
    )
    return _struct([_int64(2, start), (3, _STRUCT, about)])


def _levels(present: Iterable[bool]) -> bytes:
    """Definition levels, 1 where a value is present: runs, each its length shifted left and its level."""
    runs = (varint(sum(1 for _ in run) << 1) + bytes([level]) for level, run in itertools.groupby(present))
    content = b"".join(runs)
    return struct.pack("<I", len(content)) + content


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _struct(fields: Iterable[_Field]) -> bytes:
    out, last = bytearray(), 0
    for number, kind, content in fields:
        out.append((number - last) << 4 | kind)
        out += content
        last = number
    return bytes(out) + b"\0"


def _list(number: int, kind: int, items: Sequence[bytes]) -> _Field:
    assert len(items) < 15, "longer lists have another header"
    return number, _LIST, bytes([len(items) << 4 | kind]) + b"".join(items)


def _integer(kind: int, number: int, value: int) -> _Field:
    return number, kind, _zigzag(value)


_int32: Callable[[int, int], _Field] = partial(_integer, _I32)
_int64: Callable[[int, int], _Field] = partial(_integer, _I64)


def _binary(number: int, data: bytes) -> _Field:
    return number, _BINARY, _counted(data)


def _counted(data: bytes) -> bytes:
    return varint(len(data)) + data


def _zigzag(number: int) -> bytes:
    return varint(number << 1)  # none of ours is negative
