"""How fast a run goes and how long it will take, smoothed so that the numbers can be read."""

from __future__ import annotations

import math

WINDOW_SECONDS = 15.0  # half the weight is on the last ten seconds


class Pace:
    """A rate that follows what is done, with exponentially fading memory."""

    def __init__(self) -> None:
        self._rate: float | None = None
        self._last: tuple[float, int] | None = None

    def update(self, seconds: float, done: int) -> None:
        """`done` bytes at `seconds` since the start; what was there at the first call is not counted."""
        if self._last is not None and seconds > self._last[0]:
            span = seconds - self._last[0]
            rate = max(done - self._last[1], 0) / span
            keep = math.exp(-span / WINDOW_SECONDS)
            self._rate = rate if self._rate is None else keep * self._rate + (1 - keep) * rate
        if self._last is None or seconds > self._last[0]:
            self._last = seconds, done

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self._rate or 0.0

    def remaining(self, nbytes: int) -> float | None:
        """Seconds that `nbytes` will take at this rate; None while there is no rate."""
        if not nbytes:
            return 0.0
        return nbytes / self._rate if self._rate else None
