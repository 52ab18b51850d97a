"""Checkpoint formats: from the bytes of a file to the arrays in it.

A format does no I/O. Its `scan` is a generator that asks for extents of the file, is sent their bytes,
and returns what it found; so one scan runs over a local file, over a torrent whose pieces are still
coming, or, for hundreds of files at once, over all of them side by side, waiting for none.

    scan = grok_pickle.scan(size)
    wanted = next(scan)                 # Extent
    wanted = scan.send(data)            # bytes of it, exactly `wanted.length` long
    ...  StopIteration.value            # tuple[FoundArray, ...]

A new format is one new module here with `NAME`, `KEYS_ARE_NAMES`, `sniff` and `scan`, listed in `FORMATS`.

A container holds whole files of any format. It has `NAME`, `sniff` and `members`, is listed in `CONTAINERS`,
and its members are then sniffed and scanned as files of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray

Scan = Generator[Extent, bytes, tuple[FoundArray, ...]]


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a container: its path there, plain and relative, and where in the container its bytes lie."""

    path: str
    extent: Extent


Members = Generator[Extent, bytes, tuple[Member, ...]]

SNIFF_BYTES = (
    512  # enough for every magic number, the first opcodes of a pickle, a safetensors header's start
)


class Format(Protocol):
    """What a format module offers."""

    NAME: str
    KEYS_ARE_NAMES: bool  # whether the key of an array is its name, wherever the file lies

    def sniff(self, head: bytes, size: int) -> bool:
        """True when a file of `size` bytes that starts with `head` (of `SNIFF_BYTES`) is of this format."""
        ...

    def scan(self, size: int) -> Scan:
        """Finds the arrays of a file of `size` bytes.

        Raises:
            UnsupportedError: the file holds something that is not allowed or not read; says what, and at
                which offset.
            CorruptError: the file contradicts itself (lengths, shapes, offsets).
        """
        ...


class Container(Protocol):
    """What a container's module offers: a file of files, none of them compressed."""

    NAME: str

    def sniff(self, head: bytes, size: int) -> bool:
        """True when a file of `size` bytes that starts with `head` (of `SNIFF_BYTES`) is such a container."""
        ...

    def members(self, size: int) -> Members:
        """Finds the files in a container of `size` bytes, no two of one path, none sharing a byte.

        Raises:
            UnsupportedError, CorruptError: as a format's `scan`.
        """
        ...


def drive(scan: Scan, read: Callable[[Extent], bytes]) -> tuple[FoundArray, ...]:
    """Runs one scan to its end over `read`, which gives the bytes of an extent of the file."""
    try:
        wanted = next(scan)
        while True:
            wanted = scan.send(read(wanted))
    except StopIteration as stop:
        found: tuple[FoundArray, ...] = stop.value
        return found
