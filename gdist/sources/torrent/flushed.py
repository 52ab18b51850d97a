"""Which verified pieces are in their file: libtorrent announces a piece before it has written it.

Two ways to know, both from libtorrent itself. The state it would save for a restart names only pieces that
are written, and asking for it holds nothing up. A flush is certain but a fence: it waits for every disk job
of the torrent and lets none begin, which costs memory and time on a busy disk. So the state is asked for, a
few dozen times a second while pieces wait, and a flush only where the state cannot tell: for a torrent with
v2 hashes (its state carries all its merkle trees), when all pieces are verified (then the state says "all",
written or not), for a piece that is late, and when no other piece comes: then nothing is held back, and the
last pieces of what is wanted would be late for certain, since libtorrent keeps the newest blocks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

import libtorrent as lt

POLL_SECONDS = 0.02
LATE_SECONDS = 1.0
QUIET_SECONDS = 0.1  # without another piece


class FlushWatch:
    """Pieces that were announced and are not known to be in the file; used with the session's lock held."""

    def __init__(self, handle: lt.torrent_handle, *, fence_only: bool) -> None:
        self._handle = handle
        self._fence_only = fence_only
        self._waiting: deque[tuple[int, float]] = deque()  # piece and when it was announced
        self._fenced = 0  # how many of them, from the left, a flush that is under way covers
        self.asked = False  # the torrent's state was asked for, and is to come
        self._complete = False
        self._due = 0.0

    @property
    def busy(self) -> bool:
        """True while pieces wait: `step` must be called every `POLL_SECONDS`."""
        return bool(self._waiting)

    def announced(self, piece: int) -> None:
        """A piece was verified."""
        self._waiting.append((piece, time.monotonic()))

    def step(self) -> None:
        """Asks libtorrent, when it is time and no question is open."""
        now = time.monotonic()
        if not self._waiting or self._fenced or self.asked or now < self._due:
            return
        oldest, newest = self._waiting[0][1], self._waiting[-1][1]
        late = now - oldest > LATE_SECONDS or now - newest > QUIET_SECONDS
        if self._fence_only or self._complete or late:
            self._fenced = len(self._waiting)
            self._handle.flush_cache()
        else:
            self.asked = True
            self._handle.save_resume_data()

    def state(self, written: Sequence[bool]) -> list[int]:
        """The saved state came: the pieces that are readable by it. Empty for no usable answer."""
        self.asked, self._due = False, time.monotonic() + POLL_SECONDS
        if not written or all(written):
            self._complete = True
            return []
        return self._take(piece for piece, _ in self._waiting if written[piece])

    def flushed(self) -> list[int]:
        """The flush is done: the pieces that are readable by it."""
        count, self._fenced = self._fenced, 0
        self._due = time.monotonic() + POLL_SECONDS
        return self._take([piece for piece, _ in list(self._waiting)[:count]])

    def _take(self, pieces: Iterable[int]) -> list[int]:
        ready = set(pieces)
        taken = [piece for piece, _ in self._waiting if piece in ready]
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in ready)
        return taken
