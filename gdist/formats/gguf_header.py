"""The header of a GGUF file, walked as it arrives: numbers, names, and values that are passed over.

Nothing is believed before there is room for it: every count and length is compared with the file's size, and
with limits, before anything of it is asked for or kept. What is passed over is not kept and, where it is
long, not asked for.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NoReturn

from gdist.core.extent import Extent
from gdist.errors import CorruptError, UnsupportedError

MAX_HEADER_BYTES = 1 << 28  # the largest tokenizers make it tens of megabytes
MAX_ITEMS = 1 << 22  # texts and arrays inside arrays; the largest tokenizers have under a million
MAX_NAME_BYTES = 1024  # of a key or a tensor's name; ggml itself takes 64 for a name
MAX_DEPTH = 4  # of arrays in arrays, which ggml does not write at all
FIRST_STEP, LAST_STEP = 1 << 16, 1 << 22  # bytes of the header that are asked for at once, growing

UINT32 = 4
_STRING, _ARRAY = 8, 9
# Bytes of a value, by its type.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Header:
    """The header as far as it has arrived: a window that moves over the file; `at` is what comes next."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at = 0
        self._start, self._data, self._step = 0, b"", FIRST_STEP
        self._items = 0

    def take(self, count: int, what: str) -> Generator[Extent, bytes, bytes]:
        """The next `count` bytes, few enough to be kept."""
        if count and self.at + count > self._start + len(self._data):
            yield from self._fill(count, what)
        first = self.at - self._start
        self.at += count
        return self._data[first : first + count]

    def number(self, nbytes: int, what: str) -> Generator[Extent, bytes, int]:
        """The next unsigned number."""
        return int.from_bytes((yield from self.take(nbytes, what)), "little")

    def skip(self, count: int, what: str) -> None:
        """Passes over bytes, which need not arrive."""
        self._check(count, what)
        self.at += count

    def skip_texts(self, count: int) -> Generator[Extent, bytes, None]:
        """Passes over texts, each with its length before it; in bulk, for tokenizers have many."""
        self.enter(count)
        while count:
            count -= self._texts_here(count)
            if count:
                yield from self._fill(8, "a text's length")
        self.skip(0, "a text")

    def enter(self, items: int) -> None:
        """Counts what has to be looked at one by one; each takes 8 bytes at least."""
        self._check(8 * items, f"an array of {items} items")
        self._items += items
        limit(self._items, MAX_ITEMS, "texts and arrays in values")

    def _texts_here(self, most: int) -> int:
        """Passes over up to `most` texts whose lengths are in the window; how many."""
        data, at, passed = self._data, self.at - self._start, 0
        while passed < most and at <= len(data) - 8:
            at += 8 + int.from_bytes(data[at : at + 8], "little")
            passed += 1
        self.at = self._start + at
        return passed

    def _fill(self, count: int, what: str) -> Generator[Extent, bytes, None]:
        self._check(count, what)
        kept = self._data[self.at - self._start :]
        begin = self.at + len(kept)
        wanted = min(max(count - len(kept), self._step), self.size - begin)
        self._data = kept + (yield Extent(begin, wanted))
        self._start = self.at
        self._step = min(2 * self._step, LAST_STEP)

    def _check(self, count: int, what: str) -> None:
        stop = self.at + count
        if stop > self.size:
            corrupt(f"the file has {self.size} bytes, {what} at {min(self.at, self.size)} takes it to {stop}")
        if stop > MAX_HEADER_BYTES:
            raise UnsupportedError(
                f"the GGUF header has more than {MAX_HEADER_BYTES} bytes: {what} at {self.at}"
            )


def skip_value(header: Header, kind: int, depth: int = 0) -> Generator[Extent, bytes, None]:
    """Passes over a value of that type, arrays in arrays up to `MAX_DEPTH`."""
    if kind in _WIDTHS:
        header.skip(_WIDTHS[kind], "a value")
    elif kind == _STRING:
        yield from header.skip_texts(1)
    elif kind == _ARRAY:
        limit(depth + 1, MAX_DEPTH, "levels of arrays in arrays")
        inner = yield from header.number(4, "an array's type")
        count = yield from header.number(8, "an array's length")
        if inner in _WIDTHS:
            header.skip(count * _WIDTHS[inner], f"an array of {count} items")
        elif inner == _STRING:
            yield from header.skip_texts(count)
        elif inner == _ARRAY:
            header.enter(count)
            for _ in range(count):
                yield from skip_value(header, inner, depth + 1)
        else:
            _unknown(inner, header.at)
    else:
        _unknown(kind, header.at)


def _unknown(kind: int, at: int) -> NoReturn:
    raise UnsupportedError(f"a GGUF value before offset {at} has the unknown type {kind}")


def read_name(header: Header, what: str) -> Generator[Extent, bytes, bytes]:
    """The bytes of a key, or of a tensor's name."""
    length = yield from header.number(8, f"the length of {what}")
    limit(length, MAX_NAME_BYTES, f"bytes in {what}")
    return (yield from header.take(length, what))


def limit(count: int, most: int, what: str) -> None:
    """That a count is not more than is read.

    Raises:
        UnsupportedError: when it is.
    """
    if count > most:
        raise UnsupportedError(f"the GGUF header has {count} {what}, more than the {most} that are read")


def corrupt(what: str) -> NoReturn:
    """Raises `CorruptError`."""
    raise CorruptError(f"not a GGUF file: {what}")
