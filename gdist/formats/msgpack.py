"""Heads of msgpack values, read from a file that is walked forward (the msgpack specification, 2017).

A head says what follows and how much: entries of a map, items of an array, bytes of a text. Values are never
built: who walks takes what it wants and skips the rest.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import NamedTuple, NoReturn

from gdist.core.extent import Extent
from gdist.formats.window import Window


class Kind(Enum):
    """What a value is."""

    MAP = "a map"
    ARRAY = "an array"
    TEXT = "text"
    BYTES = "bytes"
    EXTENSION = "an extension"
    NUMBER = "a whole number"
    OTHER = "nil, a boolean or a float"


class Head(NamedTuple):
    """`number`: of entries, items or bytes, or a whole number itself. `code`: an extension's, or the byte."""

    kind: Kind
    number: int
    code: int


# By first byte: the kind, and bytes of the length (or the number) that follows.
_SIZED = {
    0xC4: (Kind.BYTES, 1),
    0xC5: (Kind.BYTES, 2),
    0xC6: (Kind.BYTES, 4),
    0xC7: (Kind.EXTENSION, 1),
    0xC8: (Kind.EXTENSION, 2),
    0xC9: (Kind.EXTENSION, 4),
    0xCC: (Kind.NUMBER, 1),
    0xCD: (Kind.NUMBER, 2),
    0xCE: (Kind.NUMBER, 4),
    0xCF: (Kind.NUMBER, 8),
    0xD0: (Kind.NUMBER, 1),
    0xD1: (Kind.NUMBER, 2),
    0xD2: (Kind.NUMBER, 4),
    0xD3: (Kind.NUMBER, 8),
    0xD9: (Kind.TEXT, 1),
    0xDA: (Kind.TEXT, 2),
    0xDB: (Kind.TEXT, 4),
    0xDC: (Kind.ARRAY, 2),
    0xDD: (Kind.ARRAY, 4),
    0xDE: (Kind.MAP, 2),
    0xDF: (Kind.MAP, 4),
}
_SIGNED = range(0xD0, 0xD4)
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_OTHER = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}  # and bytes that follow
_WITH_BYTES = (Kind.TEXT, Kind.BYTES)
_PLAIN = (Kind.NUMBER, Kind.OTHER, *_WITH_BYTES)
NEVER = 0xC1
TRUE = 0xC3
LONGEST_HEAD = 9


def parse_head(data: bytes, at: int) -> tuple[Head, int] | None:
    """The head at a place and where it ends; None where bytes are lacking, or the first is `NEVER`."""
    if at >= len(data):
        return None
    code = data[at]
    if code in _SIZED:
        kind, width = _SIZED[code]
        stop = at + 1 + width + (kind is Kind.EXTENSION)
        if stop > len(data):
            return None
        count = int.from_bytes(data[at + 1 : at + 1 + width], "big", signed=code in _SIGNED)
        if kind is Kind.EXTENSION:
            return Head(kind, count, _signed(data[stop - 1])), stop
        return Head(kind, count, code), stop
    if code in _FIXED_EXTENSIONS:
        if at + 2 > len(data):
            return None
        return Head(Kind.EXTENSION, _FIXED_EXTENSIONS[code], _signed(data[at + 1])), at + 2
    if code in _OTHER:
        stop = at + 1 + _OTHER[code]
        return (Head(Kind.OTHER, 0, code), stop) if stop <= len(data) else None
    return None if code == NEVER else (_SHORT[code], at + 1)


def _short(code: int) -> Head:
    """The head that is one byte."""
    if code < 0x80 or code >= 0xE0:
        return Head(Kind.NUMBER, _signed(code), code)
    if code < 0x90:
        return Head(Kind.MAP, code & 0x0F, code)
    if code < 0xA0:
        return Head(Kind.ARRAY, code & 0x0F, code)
    return Head(Kind.TEXT, code & 0x1F, code)


def _signed(byte: int) -> int:
    return byte - 256 if byte >= 128 else byte


_SHORT = tuple(map(_short, range(256)))  # made once: most heads are one byte


class Msgpack:
    """A file of msgpack, walked forward."""

    def __init__(self, size: int, what: str) -> None:
        self._window = Window(0, size, what)

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._window.position

    def head(self) -> Generator[Extent, bytes, Head]:
        """The head that follows."""
        window = self._window
        found = parse_head(window.data, window.at)
        if found is None:
            yield from window.need(1)
            if window.data[window.at] == NEVER:
                self.corrupt("the byte c1 is no msgpack")
            yield from window.need(min(LONGEST_HEAD, window.stop - window.position))
            found = parse_head(window.data, window.at)
            if found is None:
                self.corrupt("the file ends inside a value")
        head, window.at = found
        return head

    def pass_plain(self) -> bool:
        """Passes over a number, text, bytes or nil whose head is at hand; False where it is none."""
        window = self._window
        found = parse_head(window.data, window.at)
        if found is None or found[0].kind not in _PLAIN:
            return False
        head, window.at = found
        if head.kind in _WITH_BYTES:
            window.skip(head.number)
        return True

    def text(self, nbytes: int) -> Generator[Extent, bytes, str]:
        """So many bytes of text."""
        raw = yield from self._window.take(nbytes)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.corrupt(f"a text is not UTF-8: {raw[:80]!r}")

    def skip(self, nbytes: int) -> Extent:
        """Passes over bytes unread; where they lie."""
        return self._window.skip(nbytes)

    def room(self, nbytes: int) -> None:
        """That so many bytes follow."""
        if nbytes > self._window.stop - self.position:
            self.corrupt(f"{nbytes} bytes are to follow, {self._window.stop - self.position} do")

    def corrupt(self, what: str) -> NoReturn:
        """Raises a CorruptError that names the place."""
        self._window.corrupt(what)
