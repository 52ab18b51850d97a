"""Where the time of a run went: seconds by kind of work, summed over threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator


class Timing:
    """Seconds by name; thread-safe. Work of several threads adds up to more than the wall's."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of its block to `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def add(self, table: Iterable[tuple[str, float]]) -> None:
        """Takes over what another measured."""
        with self._lock:
            for name, seconds in table:
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def table(self) -> tuple[tuple[str, float], ...]:
        """Name and seconds, the longest first."""
        with self._lock:
            return tuple(sorted(self._seconds.items(), key=lambda item: -item[1]))
