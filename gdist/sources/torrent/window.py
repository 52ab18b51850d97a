"""Which pieces libtorrent should fetch first.

libtorrent has eight priorities: 7 comes before all others whatever its rarity, below that rarity counts
too, 0 is not wanted. Giving every wanted piece its place would make all hosts of a swarm fetch the same
pieces at the same time, so only the next `WINDOW_BYTES` of the order get 7, of a small download the next
sixteenth; within them, and for all the rest, libtorrent picks what is rare.

    had   had  |-- window: 7 --|------ rest: 1 ------|  not wanted: 0
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

WINDOW_BYTES = 256 << 20
WINDOW_SHARE = 16  # of what is wanted, at most one in so many: small models have first layers too
MIN_WINDOW_PIECES = 16  # so that torrents of very large pieces do not wait for one peer at a time

FIRST, REST, UNWANTED = 7, 1, 0


class Window:
    """The order that is wanted and the part of it that is urgent now; methods return priorities to change."""

    def __init__(self, piece_length: int) -> None:
        self._most = WINDOW_BYTES // piece_length
        self._capacity = 0
        self._priorities: dict[int, int] = {}  # of wanted pieces that are not had yet
        self._waiting: Iterator[int] = iter(())
        self._inside: set[int] = set()

    @property
    def missing(self) -> int:
        """Wanted pieces that are not had yet."""
        return len(self._priorities)

    def want(
        self, ordered: Sequence[int], urgent: Collection[int], had: Collection[int]
    ) -> tuple[tuple[int, int], ...]:
        """Replaces what is wanted; `urgent` comes before `ordered`, what is had is left out."""
        row = tuple(dict.fromkeys(piece for piece in (*urgent, *ordered) if piece not in had))
        self._capacity = max(min(self._most, len(row) // WINDOW_SHARE), MIN_WINDOW_PIECES)
        inside = row[: max(self._capacity, len(urgent))]
        before, self._priorities = self._priorities, dict.fromkeys(row, REST) | dict.fromkeys(inside, FIRST)
        self._inside, self._waiting = set(inside), iter(row[len(inside) :])
        dropped = ((piece, UNWANTED) for piece in before if piece not in self._priorities)
        changed = ((p, value) for p, value in self._priorities.items() if before.get(p) != value)
        return (*dropped, *changed)

    def finished(self, pieces: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Takes out what has arrived and moves the window on."""
        for piece in pieces:
            self._priorities.pop(piece, None)
            self._inside.discard(piece)
        moved = []
        while len(self._inside) < self._capacity:
            following = next(self._waiting, None)
            if following is None:
                break
            if following in self._priorities:
                self._inside.add(following)
                self._priorities[following] = FIRST
                moved.append((following, FIRST))
        return tuple(moved)
