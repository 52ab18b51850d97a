"""Which pieces libtorrent should fetch first.

libtorrent has eight priorities: 7 comes before all others whatever its rarity, below that rarity counts
too, 0 is not wanted. Giving every wanted piece its place would make all hosts of a swarm fetch the same
pieces at the same time, so the next `WINDOW_BYTES` of the order get 7 alike, of a small download the next
sixteenth; within them, and for all the rest, libtorrent picks what is rare.

    had   had  |-- window: 7 --|-- 6 --|-- 5 --|-- 4 --|-- 3 --|-- 2 --|------ rest: 1 ------|  not wanted: 0

libtorrent asks a fast peer for the next five seconds in advance, which may be more than the window, and what
it has asked for it does not change: the bands behind it keep that from being anything at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence

WINDOW_BYTES = 256 << 20
WINDOW_SHARE = 16  # of what is wanted, at most one in so many: small models have first layers too
MIN_WINDOW_PIECES = 16  # so that torrents of very large pieces do not wait for one peer at a time

FIRST, REST, UNWANTED = 7, 1, 0
BANDS = tuple(range(FIRST, REST, -1))  # the window and the bands behind it, each as wide


class Window:
    """The order that is wanted and how urgent which part of it is; methods return priorities to change."""

    def __init__(self, piece_length: int) -> None:
        self._most = WINDOW_BYTES // piece_length
        self._capacity = 0
        self._priorities: dict[int, int] = {}  # of wanted pieces that are not had yet
        self._waiting: Iterator[int] = iter(())
        self._bands: dict[int, OrderedDict[int, None]] = {}

    @property
    def missing(self) -> int:
        """Wanted pieces that are not had yet."""
        return len(self._priorities)

    def priorities(self) -> tuple[tuple[int, int], ...]:
        """Those of all wanted pieces that are not had yet."""
        return tuple(self._priorities.items())

    def want(
        self, ordered: Sequence[int], urgent: Collection[int], had: Collection[int]
    ) -> tuple[tuple[int, int], ...]:
        """Replaces what is wanted; `urgent` comes before `ordered`, what is had is left out."""
        row = tuple(dict.fromkeys(piece for piece in (*urgent, *ordered) if piece not in had))
        self._capacity = max(min(self._most, len(row) // WINDOW_SHARE), MIN_WINDOW_PIECES)
        inside = row[: max(self._capacity, len(urgent))]
        before, self._priorities = self._priorities, dict.fromkeys(row, REST) | dict.fromkeys(inside, FIRST)
        self._bands = {band: OrderedDict() for band in BANDS} | {FIRST: OrderedDict.fromkeys(inside)}
        self._waiting = iter(row[len(inside) :])
        self._fill()
        dropped = ((piece, UNWANTED) for piece in before if piece not in self._priorities)
        changed = ((p, value) for p, value in self._priorities.items() if before.get(p) != value)
        return (*dropped, *changed)

    def finished(self, pieces: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Takes out what has arrived and moves the window on."""
        for piece in pieces:
            self._bands.get(self._priorities.pop(piece, REST), OrderedDict()).pop(piece, None)
        return tuple(self._fill().items())

    def _fill(self) -> dict[int, int]:
        """Fills each band from those behind it; the priorities that change by that."""
        moved: dict[int, int] = {}
        for band, inside in self._bands.items():
            while len(inside) < self._capacity:
                piece = self._next(band)
                if piece is None:
                    break
                inside[piece] = None
                self._priorities[piece] = moved[piece] = band
        return moved

    def _next(self, band: int) -> int | None:
        """The first piece behind a band."""
        for behind in BANDS[FIRST - band + 1 :]:
            if self._bands[behind]:
                return self._bands[behind].popitem(last=False)[0]
        return next((piece for piece in self._waiting if piece in self._priorities), None)
