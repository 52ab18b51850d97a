"""The bytes of an OCDBT database whose values lie in files that were there before it.

OCDBT is TensorStore's key-value store, a B+tree in files; its format is published in TensorStore's
documentation (key-value store driver `ocdbt`, "Storage format") and versioned: 0 in every header here. A
value is inside a leaf, or a run `(file, offset, length)` of any file below the database's root. A database
without data of its own is therefore an index of a payload:

    manifest.ocdbt  ──▶  root node  ──▶  leaf: key "w/zarr.json"  = {...}
                         in d/<hex>            key "w/c/0/0"      ──▶  payload/ckpt-0/f [151, 16777367)

Nodes and manifest are each an envelope:

    u32be magic │ u64le length of all │ varint version 0 │ varint compression 0 │ body │ u32le crc32c of all

Inside, lists are columns: all prefix lengths, then all suffix lengths, and so on. A varint is unsigned
LEB128. Sorted byte strings share prefixes: each says how many bytes it has in common with the one before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import google_crc32c

from gdist.core.varint import varint
from gdist.core.view import Entry

MANIFEST_MAGIC, NODE_MAGIC = 0x0CDB3A2A, 0x0CDB20DE
ARITY = 1024  # entries of a node: a reader over HTTP takes one leaf of some 40 KB for a tensor's keys
INLINE_BYTES = 4096  # longer values lie beside the nodes; the format's own limit is 1 MiB
_NODE_BYTES = 2**23  # what the configuration allows a node; ARITY * INLINE_BYTES is half of it
_VERSIONS_LOG2 = 4  # TensorStore's default; we list one version, the newest

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is written, as its parent or the manifest names it: where it lies and what is below it."""

    key: bytes
    offset: int
    nbytes: int
    keys: int
    tree_nbytes: int
    value_nbytes: int  # of values outside leaves


def encode_database(
    entries: Iterable[Entry],
    data_path: str,
    *,
    uuid: bytes,
    generation: int,
    commit_ns: int,
    arity: int = ARITY,
) -> tuple[bytes, bytes]:
    """The content of the file of nodes, to be at `data_path` below the root, and of `manifest.ocdbt`.

    Readers know a database by its `uuid` (16 bytes), a state of it by its `generation` (from 1) and commit
    time (nanoseconds since 1970). A node has at most `arity` entries.
    """
    rows = sorted(((entry.key.encode(), entry) for entry in entries), key=lambda row: row[0])
    assert rows and all(a[0] != b[0] for a, b in pairwise(rows)), "no key, or one twice"
    assert len(uuid) == 16 and generation > 0, (uuid, generation)
    data = bytearray()
    nodes = [_append(data, *_leaf(data, data_path, batch)) for batch in _batches(rows, arity)]
    height = 0
    while len(nodes) > 1:
        height += 1
        nodes = [_append(data, *_interior(data_path, batch, height)) for batch in _batches(nodes, arity)]
    return bytes(data), _manifest(nodes[0], height, data_path, uuid, generation, commit_ns)


def _leaf(
    data: bytearray, data_path: str, rows: Sequence[tuple[bytes, Entry]]
) -> tuple[bytes, bytes, int, int, int]:
    """A leaf's first key, content, and counts; values too long for it are put into `data`."""
    values: list[tuple[int, bytes | None, str, int]] = []  # length, inline value, file, offset
    for _, entry in rows:
        if entry.data is None:
            _check_path(entry.path)
            values.append((entry.nbytes, None, entry.path, entry.offset))
        elif len(entry.data) <= INLINE_BYTES:
            values.append((len(entry.data), entry.data, "", 0))
        else:
            values.append((len(entry.data), None, data_path, len(data)))
            data += entry.data
    runs = [value for value in values if value[1] is None]
    table, number = _file_table(path for _, _, path, _ in runs)
    body = [
        b"\0",
        table,
        varint(len(rows)),
        *_keys([key for key, _ in rows]),
        _varints(length for length, *_ in values),
        bytes(inline is None for _, inline, *_ in values),
        _varints(number[path] for _, _, path, _ in runs),
        _varints(offset for *_, offset in runs),
        *(inline for _, inline, *_ in values if inline is not None),
    ]
    return rows[0][0], b"".join(body), len(rows), 0, sum(length for length, *_ in runs)


def _interior(data_path: str, nodes: Sequence[Node], height: int) -> tuple[bytes, bytes, int, int, int]:
    """As `_leaf`, of nodes."""
    table, _ = _file_table([data_path])
    prefixes, suffixes, keys = _keys([node.key for node in nodes])
    body = [
        bytes([height]),
        table,
        varint(len(nodes)),
        prefixes,
        suffixes,
        bytes(len(nodes)),  # no part of a key is left out below: keys in every node are whole
        keys,
        bytes(len(nodes)),  # all in the table's one file
        _varints(node.offset for node in nodes),
        _varints(node.nbytes for node in nodes),
        *_counts(nodes),
    ]
    return (
        nodes[0].key,
        b"".join(body),
        sum(node.keys for node in nodes),
        sum(node.tree_nbytes for node in nodes),
        sum(node.value_nbytes for node in nodes),
    )


def _append(data: bytearray, key: bytes, body: bytes, keys: int, tree_nbytes: int, value_nbytes: int) -> Node:
    """Puts a node at the end of the file of nodes; `tree_nbytes` is what lies below it."""
    content, offset = _envelope(NODE_MAGIC, body), len(data)
    data += content
    return Node(key, offset, len(content), keys, tree_nbytes + len(content), value_nbytes)


def _manifest(root: Node, height: int, data_path: str, uuid: bytes, generation: int, commit_ns: int) -> bytes:
    configuration = [
        uuid,
        varint(0),  # everything is in this one file
        varint(INLINE_BYTES),
        varint(_NODE_BYTES),
        bytes([_VERSIONS_LOG2]),
        varint(0),  # nothing is compressed
    ]
    table, _ = _file_table([data_path])
    version = [
        varint(1),
        varint(generation),
        bytes([height]),
        varint(0),
        varint(root.offset),
        varint(root.nbytes),
        *_counts([root]),
        struct.pack("<Q", commit_ns),
    ]
    older = varint(0)
    return _envelope(MANIFEST_MAGIC, b"".join([*configuration, table, *version, older]))


def parse_state(manifest: bytes) -> tuple[bytes, int] | None:
    """Identity and newest generation in a `manifest.ocdbt`; None when it is damaged or not as we write it."""
    if manifest[:4] != struct.pack(">I", MANIFEST_MAGIC) or manifest[12:14] != b"\0\0":
        return None
    if google_crc32c.value(manifest[:-4]) != int.from_bytes(manifest[-4:], "little"):
        return None
    uuid, at = manifest[14:30], 30
    (kind, _, _, _, compression), at = _read_varints(manifest, at, 5)
    if kind or compression:
        return None
    (files,), at = _read_varints(manifest, at, 1)
    _, at = _read_varints(manifest, at, files - 1)
    suffixes, at = _read_varints(manifest, at, files)
    _, at = _read_varints(manifest, at, files)
    (versions,), at = _read_varints(manifest, at + sum(suffixes), 1)
    generations, _ = _read_varints(manifest, at, versions)
    return uuid, generations[-1]


def _counts(nodes: Sequence[Node]) -> Iterator[bytes]:
    yield _varints(node.keys for node in nodes)
    yield _varints(node.tree_nbytes for node in nodes)
    yield _varints(node.value_nbytes for node in nodes)


def _keys(keys: Sequence[bytes]) -> tuple[bytes, bytes, bytes]:
    """Sorted byte strings as three columns: prefix lengths (none for the first), suffix lengths, suffixes."""
    shared = [_shared(a, b) for a, b in pairwise(keys)]
    suffixes = [key[length:] for key, length in zip(keys, [0, *shared], strict=False)]
    return _varints(shared), _varints(map(len, suffixes)), b"".join(suffixes)


def _shared(a: bytes, b: bytes) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _file_table(paths: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    """The table of files of a node, and the number of each in it."""
    ordered = sorted(set(paths), key=str.encode)
    prefixes, lengths, suffixes = _keys([path.encode() for path in ordered])
    bases = bytes(len(ordered))  # no base path: every path is relative to the database's root
    table = varint(len(ordered)) + prefixes + lengths + bases + suffixes
    return table, {path: number for number, path in enumerate(ordered)}


def _check_path(path: str) -> None:
    """What TensorStore's file driver refuses, and what would leave the root, is never written."""
    assert path and not set(path.split("/")) & {"", ".", ".."}, f"{path!r} is no path below a root"


def _batches(rows: Sequence[_T], arity: int) -> Iterator[Sequence[_T]]:
    return (rows[start : start + arity] for start in range(0, len(rows), arity))


def _envelope(magic: int, body: bytes) -> bytes:
    content = struct.pack(">I", magic) + struct.pack("<Q", len(body) + 18) + b"\0\0" + body
    return content + struct.pack("<I", google_crc32c.value(content))


def _varints(numbers: Iterable[int]) -> bytes:
    return b"".join(map(varint, numbers))


def _read_varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Numbers at a position, and the position after them."""
    numbers = []
    for _ in range(count):
        number = shift = 0
        while True:
            number |= (data[at] & 0x7F) << shift
            at, shift, more = at + 1, shift + 7, data[at] & 0x80
            if not more:
                break
        numbers.append(number)
    return numbers, at
