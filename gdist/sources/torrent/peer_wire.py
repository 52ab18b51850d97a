"""The peer wire protocol, as far as a peer needs it that only serves: BEP 3, 6, 9, 10 and 52.

Messages are `length | number | content`; here they are read from and made as plain bytes. Everything that
comes in is hostile until it was checked: lengths are bounded before anything is read.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, BinaryIO

import libtorrent as lt

from gdist.sources.torrent.hashing import BLOCK_BYTES, zero_roots
from gdist.sources.torrent.metadata import Metadata

PROTOCOL = b"\x13BitTorrent protocol"
HANDSHAKE_BYTES = len(PROTOCOL) + 8 + 20 + 20
MAX_MESSAGE_BYTES = 1 << 20  # bitfields of eight million pieces; nothing else that we read is as long
MAX_REQUEST_BYTES = 128 * 1024  # what clients accept and ask; libtorrent asks for 16 KiB
UT_METADATA = 2  # our number for the extension, of our choosing
MAX_HASHES = 8192  # in one answer; libtorrent asks for 512
REQUEST_QUEUE = 500

_FAST, _EXTENDED, _V2 = 0x04, 0x10, 0x10  # bits of the reserved bytes 7, 5 and 7


class Message(IntEnum):
    """Numbers of messages."""

    CHOKE = 0
    UNCHOKE = 1
    INTERESTED = 2
    NOT_INTERESTED = 3
    HAVE = 4
    BITFIELD = 5
    REQUEST = 6
    PIECE = 7
    CANCEL = 8
    HAVE_ALL = 14
    REJECT = 16
    EXTENDED = 20
    HASH_REQUEST = 21
    HASHES = 22
    HASH_REJECT = 23


class Goodbye(Exception):
    """The connection ends."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a peer's handshake says: the hash it names the torrent by, and which extensions it knows."""

    info_hash: bytes
    fast: bool
    extended: bool


def read_greeting(stream: BinaryIO) -> Greeting:
    """A handshake.

    Raises:
        Goodbye: it is none, such as one that begins an encrypted connection.
    """
    data = stream.read(HANDSHAKE_BYTES)
    if len(data) < HANDSHAKE_BYTES or not data.startswith(PROTOCOL):
        raise Goodbye("not a plain handshake")
    reserved, info_hash = data[len(PROTOCOL) :][:8], data[len(PROTOCOL) + 8 :][:20]
    return Greeting(info_hash, bool(reserved[7] & _FAST), bool(reserved[5] & _EXTENDED))


def greeting(info_hash: bytes, peer_id: bytes, *, v2: bool) -> bytes:
    """Our handshake."""
    reserved = bytes([0, 0, 0, 0, 0, _EXTENDED, 0, _FAST | (_V2 if v2 else 0)])
    return PROTOCOL + reserved + info_hash + peer_id


def read_message(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Number and content of the next message; None for one that only keeps the connection alive.

    Raises:
        Goodbye: the other side has gone, or its message is too long.
    """
    head = stream.read(4)
    if len(head) < 4:
        raise Goodbye("gone")
    (length,) = struct.unpack(">I", head)
    if not length:
        return None
    if length > MAX_MESSAGE_BYTES:
        raise Goodbye(f"a message of {length} bytes")
    data = stream.read(length)
    if len(data) < length:
        raise Goodbye("gone")
    return data[0], data[1:]


def message(number: Message, content: bytes = b"") -> bytes:
    """A message."""
    return struct.pack(">IB", 1 + len(content), number) + content


def block_head(piece: int, begin: int, length: int) -> bytes:
    """What comes before a block's bytes."""
    return struct.pack(">IBII", 9 + length, Message.PIECE, piece, begin)


def all_pieces(count: int, *, fast: bool) -> bytes:
    """That we have every piece."""
    if fast:
        return message(Message.HAVE_ALL)
    bits = bytearray(b"\xff" * (count // 8))
    if count % 8:
        bits.append(0xFF << (8 - count % 8) & 0xFF)
    return message(Message.BITFIELD, bytes(bits))


def parse_request(content: bytes) -> tuple[int, int, int]:
    """Piece, place in it, and length of a block that is asked for.

    Raises:
        Goodbye: it is no request, or too long.
    """
    if len(content) != 12:
        raise Goodbye("a request of another length")
    piece, begin, length = struct.unpack(">III", content)
    if not 0 < length <= MAX_REQUEST_BYTES:
        raise Goodbye(f"a request for {length} bytes")
    return piece, begin, length


def extension_greeting(metadata: Metadata, port: int) -> bytes:
    """The handshake of the extension protocol (BEP 10)."""
    known: Any = {  # the stub's dictionaries are invariant
        b"m": {b"ut_metadata": UT_METADATA},
        b"metadata_size": len(metadata.info),
        b"p": port,
        b"reqq": REQUEST_QUEUE,
        b"upload_only": 1,
        b"v": b"gdist",
    }
    return message(Message.EXTENDED, b"\0" + lt.bencode(known))


def decode(data: bytes) -> Mapping[bytes, Any]:
    """A bencoded dictionary at the start of some bytes.

    Raises:
        Goodbye: it is none.
    """
    try:
        value: object = lt.bdecode(data)
    except RuntimeError as error:
        raise Goodbye("not bencoded") from error
    if not isinstance(value, dict):
        raise Goodbye("no dictionary")
    return value


def metadata_answer(metadata: Metadata, request: Mapping[bytes, Any], number: int) -> bytes | None:
    """The answer to a request for a part of the info dictionary (BEP 9), under the peer's own number."""
    part = request.get(b"piece")
    if request.get(b"msg_type") != 0 or not isinstance(part, int) or not 0 < number < 256:
        return None
    start = part * BLOCK_BYTES
    if not 0 <= start < len(metadata.info):
        reject: Any = {b"msg_type": 2, b"piece": part}
        return message(Message.EXTENDED, bytes([number]) + lt.bencode(reject))
    head: Any = {b"msg_type": 1, b"piece": part, b"total_size": len(metadata.info)}
    data = metadata.info[start : start + BLOCK_BYTES]
    return message(Message.EXTENDED, bytes([number]) + lt.bencode(head) + data)


class HashTrees:
    """The merkle trees of a v2 torrent above its piece layers, to answer requests for hashes (BEP 52)."""

    def __init__(self, layers: Mapping[bytes, bytes], piece_length: int):
        self._base = (piece_length // BLOCK_BYTES).bit_length() - 1
        self._layers = layers
        self._trees: dict[bytes, list[list[bytes]]] = {}

    def answer(self, content: bytes) -> bytes:
        """The answer to a request: hashes of the piece layer and their uncles, or that there are none.

        Raises:
            Goodbye: it is no request.
        """
        if len(content) != 48:
            raise Goodbye("a request for hashes of another length")
        root = content[:32]
        base, index, count, proof = struct.unpack(">IIII", content[32:])
        hashes = self._hashes(root, base, index, count, proof)
        if hashes is None:
            return message(Message.HASH_REJECT, content)
        return message(Message.HASHES, content + b"".join(hashes))

    def _hashes(self, root: bytes, base: int, index: int, count: int, proof: int) -> list[bytes] | None:
        if base != self._base or root not in self._layers or not 0 < count <= MAX_HASHES:
            return None
        tree = self._tree(root)
        if count & (count - 1) or index % count or index + count > len(tree[0]) or proof >= len(tree):
            return None
        found = tree[0][index : index + count]
        place = index
        for level in range(1, proof + 1):
            place //= 2
            if level >= count.bit_length() - 1:  # lower ones follow from the hashes themselves
                if len(tree[level]) < 2:
                    break
                found.append(tree[level][place ^ 1])
        return found

    def _tree(self, root: bytes) -> list[list[bytes]]:
        """Levels from the piece layer, filled up to a power of two, to the root."""
        if root not in self._trees:
            layer = self._layers[root]
            level = [layer[i : i + 32] for i in range(0, len(layer), 32)]
            width = 1 << max(len(level) - 1, 0).bit_length()
            level += [zero_roots(self._base)] * (width - len(level))
            levels = [level]
            while len(level) > 1:
                pairs = zip(level[::2], level[1::2], strict=True)
                level = [hashlib.sha256(left + right).digest() for left, right in pairs]
                levels.append(level)
            self._trees[root] = levels
        return self._trees[root]
