"""A cap on bytes per second, shared by many connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_SECONDS = 0.25  # how much unused time may be made up for at once
STEPS_PER_SECOND = 20  # each connection sends in steps, so that all move on
LEAST_STEP = 16 * 2**10
MOST_STEP = 2**20
URGENT_BYTES = 4096  # so little is counted, and does not wait: polls go past the queue of bulk data


class Limiter:
    """A token bucket: `take` returns once so many bytes may go.

    Whoever asks is given its place in line at once and sleeps until its turn, so nobody starves, and the
    bytes of any span of time are at most `rate * seconds + burst`.
    """

    def __init__(self, rate: float | None, *, clock: Callable[[], float] = time.monotonic):
        assert rate is None or rate > 0, rate
        self._rate = rate
        self._clock = clock
        self._free = clock() - BURST_SECONDS  # when all that was promised so far has gone
        self._lock = threading.Lock()

    @property
    def rate(self) -> float | None:
        """Bytes per second; None: no cap. May be set at any time."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        assert rate is None or rate > 0, rate
        with self._lock:
            self._rate = rate
            self._free = min(self._free, self._clock())

    @property
    def step(self) -> int:
        """How many bytes to ask for at once."""
        if self._rate is None:
            return MOST_STEP
        return min(MOST_STEP, max(LEAST_STEP, int(self._rate / STEPS_PER_SECOND)))

    def take(self, nbytes: int, wait: Callable[[float], object] = time.sleep) -> None:
        """Returns once `nbytes` may go; `wait` sleeps, and may return early to give up waiting."""
        delay = self.reserve(nbytes)
        if delay > 0 and nbytes > URGENT_BYTES:
            wait(delay)

    def reserve(self, nbytes: int) -> float:
        """Takes a place in line for `nbytes`; how many seconds from now its turn is."""
        with self._lock:
            if self._rate is None:
                return 0.0
            now = self._clock()
            start = max(self._free, now - BURST_SECONDS)
            self._free = start + nbytes / self._rate
            return max(0.0, self._free - now)
