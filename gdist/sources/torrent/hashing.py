r"""Checking the bytes of a piece against the torrent's hashes, by ourselves.

v1 and hybrid: the SHA-1 of the piece, padding included (BEP 3). v2: each file has a merkle tree of SHA-256
over 16 KiB blocks (BEP 52); the node above a piece's blocks is in the file's *piece layer*, and for a file
of one piece it is the root. The layers are in a .torrent file; for a magnet they come from peers, a part
at a time, and libtorrent has checked them against the root when a piece is announced as finished.

            root                    in the info dictionary
          /      \
        n0        n1                piece layer
       /  \      /  \
      b0  b1    b2   0              SHA-256 of blocks, then zeros up to a power of two
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from gdist.core.payload import Payload
from gdist.sources.torrent.metadata import Metadata

BLOCK_BYTES = 1 << 14
_HASH_BYTES = 32
_ZERO_HASH = bytes(_HASH_BYTES)


class PieceHashes:
    """The expected hash of every piece, as far as it is known; `matches` may be called from any thread.

    For v2, `layers` (by file of the payload) is filled by `add_layers` and `add_tree`.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._nodes: dict[int, bytes] = {}  # v2: piece -> its node; written once, so no lock is needed
        if metadata.roots:
            for file, root in zip(metadata.payload.files, metadata.roots, strict=True):
                if 0 < file.length <= metadata.payload.piece_length:
                    self._nodes[file.offset // metadata.payload.piece_length] = root

    def knows(self, piece: int) -> bool:
        """True when the piece can be checked; always for v1."""
        return not self._metadata.roots or piece in self._nodes

    def matches(self, piece: int, data: memoryview) -> bool:
        """True when `data`, the whole extent of the piece, has the hash the torrent names."""
        if not self._metadata.roots:
            expected = self._metadata.piece_hashes[20 * piece : 20 * piece + 20]
            return hashlib.sha1(data, usedforsecurity=False).digest() == expected
        return piece_node(self._metadata.payload, piece, data) == self._nodes.get(piece)

    def add_layers(self, layers: Mapping[bytes, bytes]) -> None:
        """Takes piece layers by root, as in a .torrent file, if they do give the root."""
        for number, root in enumerate(self._metadata.roots):
            if root in layers:
                self._add_layer(number, layers[root])

    def add_tree(self, number: int, hashes: bytes, mask: bytes) -> None:
        """Takes what libtorrent's resume data has of the merkle tree of file `number` of the payload.

        `mask` has a bit, the highest first, per node of the whole tree in level order; `hashes` has the
        nodes whose bit is set. While a file is fetched that includes its piece layer; once all of it is
        there, libtorrent keeps only the hashes of its blocks.
        """
        pieces = self._pieces_of_file(number)
        if len(pieces) < 2:
            return
        payload = self._metadata.payload
        width = _power_of_two(len(pieces))
        blocks = payload.piece_length // BLOCK_BYTES  # of a whole piece
        leaves = -(-payload.files[number].length // BLOCK_BYTES)
        layer = _nodes(hashes, mask, width - 1, len(pieces))
        for place, (piece, node) in enumerate(zip(pieces, layer, strict=True)):
            if node:
                self._nodes.setdefault(piece, node)
            elif piece not in self._nodes:
                first = place * blocks
                row = _nodes(hashes, mask, width * blocks - 1 + first, min(blocks, leaves - first))
                if all(row):
                    self._nodes[piece] = _root([*row, *[_ZERO_HASH] * (blocks - len(row))])

    def layers(self) -> dict[bytes, bytes]:
        """The piece layers that are wholly known, by root, for the .torrent file."""
        known = {}
        for number, root in enumerate(self._metadata.roots):
            nodes = [self._nodes.get(piece, b"") for piece in self._pieces_of_file(number)]
            if len(nodes) > 1 and all(nodes):
                known[root] = b"".join(nodes)
        return known

    def _add_layer(self, number: int, layer: bytes) -> None:
        pieces = self._pieces_of_file(number)
        nodes = [layer[i : i + _HASH_BYTES] for i in range(0, len(layer), _HASH_BYTES)]
        blocks = self._metadata.payload.piece_length // BLOCK_BYTES
        empty = _root([_ZERO_HASH] * blocks)
        if len(nodes) == len(pieces) and _root(nodes, empty) == self._metadata.roots[number]:
            self._nodes.update(zip(pieces, nodes, strict=True))

    def _pieces_of_file(self, number: int) -> range:
        return self._metadata.payload.pieces_of(self._metadata.payload.files[number].extent)


def piece_node(payload: Payload, piece: int, data: memoryview) -> bytes:
    """The merkle node of a v2 piece: the bytes of its file, without the gap after it."""
    extent = payload.extent_of(piece)
    segment = next(payload.segments(extent))
    file = payload.files[segment.file]
    leaves = [
        hashlib.sha256(data[i : min(i + BLOCK_BYTES, segment.extent.length)]).digest()
        for i in range(0, segment.extent.length, BLOCK_BYTES)
    ]
    alone = file.length <= payload.piece_length
    width = _power_of_two(len(leaves)) if alone else payload.piece_length // BLOCK_BYTES
    return _root(leaves + [_ZERO_HASH] * (width - len(leaves)))


def zero_roots(height: int) -> bytes:
    """The root of a tree of that height over blocks that are not there."""
    return _root([_ZERO_HASH] * (1 << height))


def _nodes(hashes: bytes, mask: bytes, first: int, count: int) -> list[bytes]:
    """Nodes `[first, first + count)` of a sparse tree; empty where the mask has no bit."""
    if first + count > 8 * len(mask):
        return [b""] * count
    head, rest = divmod(first, 8)
    rank = int.from_bytes(mask[:head], "big").bit_count() + (mask[head] >> (8 - rest)).bit_count()
    found = []
    for node in range(first, first + count):
        present = bool(mask[node >> 3] & 0x80 >> (node & 7))
        found.append(hashes[rank * _HASH_BYTES : (rank + 1) * _HASH_BYTES] if present else b"")
        rank += present
    return found


def _power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def _root(nodes: Sequence[bytes], filler: bytes = _ZERO_HASH) -> bytes:
    """The root above a row of nodes, filled up to a power of two."""
    level = list(nodes) + [filler] * (_power_of_two(len(nodes)) - len(nodes))
    while len(level) > 1:
        level = list(_parents(level))
    return level[0]


def _parents(level: Sequence[bytes]) -> Iterator[bytes]:
    for left, right in zip(level[::2], level[1::2], strict=True):
        yield hashlib.sha256(left + right).digest()
