r"""Splits a pickle into opcodes without reading the payloads inside it.

A payload (the bytes of an array) is passed over by its length: the lexer reads the opcode and the length
and goes on behind it, so a file of 1.6 GB costs a few reads of `FIRST_WINDOW` bytes. It does no I/O:
`token` gives None when it needs bytes, `wanted` says which, `feed` takes them.

    \x95 FRAME 294 | \x8c 'numpy' | ... | B 1610612736 ~~~~ payload, not read ~~~~ | \x94 | ... | .

Only the opcodes that pickles of arrays consist of are known (protocols 3 to 5, PEP 307, 3154 and 574), and
for torch, whose payloads lie elsewhere, those of protocol 2 with numbers, texts of Python 2 and names of
storages (`TORCH`). The first other one ends the scan. The lists are of what is allowed, never of what is
dangerous.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from gdist.core.extent import Extent
from gdist.errors import CorruptError, UnsupportedError

FIRST_WINDOW = 512  # bytes read at once behind a payload; the opcodes around one array take about 300
LAST_WINDOW = 1 << 16  # bytes; windows double up to this while opcodes follow each other without a payload
MAX_TEXT_BYTES = 4096  # one string: a key of a tree, a module, a name
MAX_TEXT_TOTAL = 1 << 26  # bytes of all strings of one file, so that memory is bounded
MAX_GLOBAL_BYTES = 512  # "module name" with its two line ends
MAX_LONG_BYTES = 9  # an integer of a shape fits 63 bits

_PROTO, _FRAME, _STOP, _GLOBAL, _LONG1 = 0x80, 0x95, 0x2E, 0x63, 0x8A
_PLAIN = frozenset(b"N\x88\x89().t\x85\x86\x87}]sueaRb\x81\x93\x94")  # opcodes without an argument
_UNSIGNED = {  # opcode: bytes of its little-endian argument
    _PROTO: 1,
    _FRAME: 8,
    **dict.fromkeys(b"Kqh", 1),  # BININT1 BINPUT BINGET
    ord("M"): 2,  # BININT2
    **dict.fromkeys(b"rj", 4),  # LONG_BINPUT LONG_BINGET
}
_SIGNED = {ord("J"): 4}  # BININT
_TEXT = {0x8C: 1, ord("X"): 4}  # SHORT_BINUNICODE BINUNICODE: bytes of the length
_PAYLOAD = {ord("C"): 1, ord("B"): 4, 0x8E: 8, 0x96: 8}  # SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
_BINFLOAT = ord("G")
_DOUBLE = struct.Struct(">d")
_TORCH_PLAIN = frozenset(b"Q")  # BINPERSID
_TORCH_TEXT = {ord("U"): 1, ord("T"): 4}  # SHORT_BINSTRING BINSTRING: texts of Python 2
_NAMES = {ord(info.code): info.name for info in pickletools.opcodes}


def opcode_name(opcode: int) -> str:
    """The name of an opcode as pickletools knows it, with its value."""
    return f"{_NAMES.get(opcode, 'opcode')} (0x{opcode:02x})"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What may stand in a pickle: its protocols, and opcodes beside those of all pickles of arrays."""

    protocols: tuple[int, ...]
    refusal: str  # why no other protocol
    plain: frozenset[int] = _PLAIN
    unsigned: Mapping[int, int] = field(default_factory=lambda: _UNSIGNED)
    text: Mapping[int, int] = field(default_factory=lambda: _TEXT)


ARRAYS = Dialect((3, 4, 5), "protocols 0 to 2 encode arrays as text: no byte range of the file is the array")
TORCH = Dialect(
    (2, 3, 4, 5),
    "torch writes protocol 2 unless told otherwise",
    _PLAIN | _TORCH_PLAIN,
    {**_UNSIGNED, _BINFLOAT: 8},
    {**_TEXT, **_TORCH_TEXT},
)


@dataclass(frozen=True, slots=True)
class Token:
    """One opcode at `offset` of the file.

    `argument`: int, float, str, (module, name), or a payload's extent.
    """

    offset: int
    opcode: int
    argument: object = None


class Lexer:
    """Reads the tokens of one pickle, in order, that takes a file from `start` up to `stop`.

    After STOP there is nothing to read; where the pickle is not `alone`, other things may follow it.
    """

    def __init__(self, stop: int, start: int = 0, *, dialect: Dialect = ARRAYS, alone: bool = True) -> None:
        self._size = stop
        self._dialect = dialect
        self._alone = alone
        self._position = start
        self._buffer = b""
        self._base = start  # where the buffer starts in the file
        self._need = 1
        self._window = FIRST_WINDOW
        self._frame_stop: int | None = None
        self._text_total = 0
        self._started = False

    @property
    def position(self) -> int:
        """Where in the file the next token starts."""
        return self._position

    def wanted(self) -> Extent:
        """The bytes `token` is waiting for."""
        contiguous = self._position <= self._base + len(self._buffer)
        self._window = min(2 * self._window, LAST_WINDOW) if contiguous and self._buffer else FIRST_WINDOW
        return Extent(self._position, min(max(self._need, self._window), self._size - self._position))

    def feed(self, data: bytes) -> None:
        """Takes the bytes of `wanted`."""
        self._base, self._buffer = self._position, data

    def token(self) -> Token | None:
        """The next token, or None when bytes are wanted.

        Raises:
            UnsupportedError: for an opcode that is not allowed, a text or number that is too long.
            CorruptError: for bytes that are no pickle: cut short, frames or lengths that do not fit.
        """
        offset = self._position
        if not self._have(1):
            return None
        opcode = self._buffer[offset - self._base]
        if not self._started and opcode != _PROTO:
            self._corrupt(f"starts with {opcode_name(opcode)}, not with PROTO")
        if opcode in self._dialect.plain:
            return self._advance(Token(offset, opcode), 1)
        width = self._dialect.unsigned.get(opcode) or _SIGNED.get(opcode)
        if width:
            if not self._have(1 + width):
                return None
            number = self._integer(1, width, signed=opcode in _SIGNED)
            argument = _DOUBLE.unpack(number.to_bytes(8, "little"))[0] if opcode == _BINFLOAT else number
            return self._advance(Token(offset, opcode, argument), 1 + width)
        if opcode in self._dialect.text or opcode == _LONG1:
            return self._sized(opcode, self._dialect.text.get(opcode, 1))
        if opcode in _PAYLOAD:
            return self._payload(opcode, _PAYLOAD[opcode])
        if opcode == _GLOBAL:
            return self._global()
        raise UnsupportedError(
            f"{opcode_name(opcode)} at offset {offset} is not allowed in a pickle of arrays",
            hint="gdist reads plain pickles of arrays and runs none; convert the file where you trust it",
            offset=offset,
            opcode=opcode,
        )

    def _have(self, count: int) -> bool:
        if self._position + count > self._size:
            self._corrupt(f"ends after {self._size} bytes, in the middle of an opcode")
        self._need = count
        start = self._position - self._base
        return start >= 0 and start + count <= len(self._buffer)

    def _integer(self, skip: int, width: int, *, signed: bool = False) -> int:
        start = self._position - self._base + skip
        return int.from_bytes(self._buffer[start : start + width], "little", signed=signed)

    def _sized(self, opcode: int, width: int) -> Token | None:
        offset = self._position
        if not self._have(1 + width):
            return None
        length = self._integer(1, width)
        limit = MAX_LONG_BYTES if opcode == _LONG1 else MAX_TEXT_BYTES
        self._text_total += length
        if length > limit or self._text_total > MAX_TEXT_TOTAL:
            what = f"{opcode_name(opcode)} of {length} bytes"
            self._too_much(f"{what}, of which {limit} are read")
        if not self._have(1 + width + length):
            self._text_total -= length  # this token is read again when its bytes are there
            return None
        argument: object
        if opcode == _LONG1:
            argument = self._integer(1 + width, length, signed=True)
        else:
            start = offset - self._base + 1 + width
            argument = self._decode(self._buffer[start : start + length])
        return self._advance(Token(offset, opcode, argument), 1 + width + length)

    def _payload(self, opcode: int, width: int) -> Token | None:
        offset = self._position
        if not self._have(1 + width):
            return None
        length = self._integer(1, width)
        start = offset + 1 + width
        if length > self._size - start:
            self._corrupt(f"has a payload of {length} bytes at {start}, the file ends at {self._size}")
        return self._advance(Token(offset, opcode, Extent(start, length)), 1 + width + length)

    def _global(self) -> Token | None:
        offset = self._position
        limit = min(MAX_GLOBAL_BYTES, self._size - offset)
        start = offset - self._base
        lines = self._buffer[start + 1 : start + limit].split(b"\n", 2)
        if len(lines) < 3:
            if not self._have(limit):
                return None
            self._too_much(f"a GLOBAL without two lines in {limit} bytes")
        self._text_total += len(lines[0]) + len(lines[1])
        if self._text_total > MAX_TEXT_TOTAL:
            self._too_much(f"more than {MAX_TEXT_TOTAL} bytes of text")
        names = (self._decode(lines[0]), self._decode(lines[1]))
        return self._advance(Token(offset, _GLOBAL, names), 3 + len(lines[0]) + len(lines[1]))

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self._corrupt("has a text that is not UTF-8")

    def _advance(self, token: Token, length: int) -> Token:
        """Goes past a token, which must lie in its frame whole."""
        self._position += length
        if self._frame_stop is not None and self._position > self._frame_stop:
            what = f"{opcode_name(token.opcode)} across the end of its frame at {self._frame_stop}"
            self._corrupt(f"has {what}", token)
        self._check_structure(token)
        if self._position == self._frame_stop:
            self._frame_stop = None
        return token

    def _check_structure(self, token: Token) -> None:
        if token.opcode == _PROTO:
            if self._started:
                self._corrupt("has a second PROTO", token)
            if token.argument not in self._dialect.protocols:
                *most, last = map(str, self._dialect.protocols)
                raise UnsupportedError(
                    f"pickle protocol {token.argument} is not read, only {', '.join(most)} and {last}",
                    hint=self._dialect.refusal,
                    offset=token.offset,
                )
            self._started = True
        elif token.opcode == _FRAME:
            if self._frame_stop is not None:
                self._corrupt("has a frame inside a frame", token)
            assert isinstance(token.argument, int)
            self._frame_stop = self._position + token.argument
            if self._frame_stop > self._size:
                self._corrupt(f"has a frame up to {self._frame_stop}, the file ends at {self._size}", token)
        elif token.opcode == _STOP:
            if self._frame_stop not in (None, self._position):
                self._corrupt(f"stops before the end of its frame at {self._frame_stop}", token)
            if self._alone and self._position != self._size:
                raise UnsupportedError(
                    f"{self._size - self._position} bytes follow the end of the pickle at {self._position}",
                    hint="a second pickle or other data may hide there; split the file where you trust it",
                    offset=self._position,
                )

    def _too_much(self, what: str) -> NoReturn:
        raise UnsupportedError(f"the pickle has {what} (at offset {self._position})", offset=self._position)

    def _corrupt(self, what: str, token: Token | None = None) -> NoReturn:
        offset = token.offset if token else self._position
        raise CorruptError(f"the pickle {what} (at offset {offset})", offset=offset)
