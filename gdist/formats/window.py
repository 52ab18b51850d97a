"""A file read forward: for formats whose headers say only as one goes how long they are.

    window.data     | taken | not yet taken     |
                    base    position            base + len(data)

What is taken is let go. Reads are of `FIRST_BYTES` at first and double while they follow one another, so that
a header of megabytes is no thousand reads and a small one no megabyte; past a long skip they begin again.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NoReturn

from gdist.core.extent import Extent
from gdist.errors import CorruptError

FIRST_BYTES = 1 << 12
LARGEST_BYTES = 1 << 22

Reading = Generator[Extent, bytes, None]


class Window:
    """Bytes of a file from `position` on, up to `stop`; `at` is where `position` is in `data`."""

    def __init__(self, position: int, stop: int, what: str) -> None:
        self.stop = stop
        self._what = what
        self.data = b""
        self.at = 0
        self._base = position
        self._step = FIRST_BYTES

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._base + self.at

    def need(self, nbytes: int) -> Reading:
        """Reads on until so many bytes are at hand; asks nothing where they are.

        Raises:
            CorruptError: when the file has fewer.
        """
        lacking = nbytes - (len(self.data) - self.at)
        if lacking <= 0:
            return
        end = self._base + len(self.data)
        if lacking > self.stop - end:
            self.corrupt(f"{nbytes} bytes are to follow, {self.stop - self.position} do")
        length = min(max(lacking, self._step), self.stop - end)
        more = yield Extent(end, length)
        self.data, self._base, self.at = self.data[self.at :] + more, self.position, 0
        self._step = min(2 * self._step, LARGEST_BYTES)

    def take(self, nbytes: int) -> Generator[Extent, bytes, bytes]:
        """The next bytes."""
        yield from self.need(nbytes)
        taken = self.data[self.at : self.at + nbytes]
        self.at += nbytes
        return taken

    def skip(self, nbytes: int) -> Extent:
        """Passes over bytes, of which those that are not at hand are not read; where they lie.

        Raises:
            CorruptError: when the file has fewer.
        """
        skipped = Extent(self.position, nbytes)
        if skipped.stop > self.stop:
            self.corrupt(f"{nbytes} bytes are to follow, {self.stop - self.position} do")
        if self.at + nbytes <= len(self.data):
            self.at += nbytes
        else:
            far = self.at + nbytes - len(self.data) > self._step
            self.data, self.at, self._base = b"", 0, skipped.stop
            self._step = FIRST_BYTES if far else self._step
        return skipped

    def corrupt(self, what: str) -> NoReturn:
        """Raises a CorruptError that names the place."""
        raise CorruptError(f"{self._what}: {what} (at offset {self.position})", offset=self.position)
