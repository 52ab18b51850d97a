"""A fetch beside the program that asked for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gdist.errors import InterruptedRun
from gdist.run.fetch import FetchResult


class FetchJob:
    """A fetch that runs on a thread of its own; `gdist.fetching` makes one.

    It is a path, that of its store: `gdist.stream(job)` follows it, `gdist.load(job)` loads what it wrote.
    """

    def __init__(self, path: str, run: Callable[[], FetchResult], stop: threading.Event):
        self.path = path
        self._stop = stop
        pool = ThreadPoolExecutor(1, "gdist-fetch")
        self._running = pool.submit(run)
        pool.shutdown(wait=False)  # its thread ends with the fetch

    def __fspath__(self) -> str:
        """Where it writes to."""
        return self.path

    @property
    def done(self) -> bool:
        """True once the store is complete, or the fetch has failed."""
        return self._running.done()

    def check(self) -> None:
        """Returns while all is well.

        Raises:
            GdistError: what ended the fetch.
        """
        if self._running.done():
            self._running.result()

    def result(self) -> FetchResult:
        """Waits until the store is complete.

        Raises:
            GdistError: what ended the fetch.
        """
        return self._running.result()

    def stop(self) -> None:
        """Ends the fetch, its progress on disk, and returns when it has ended; of one that is done nothing.

        Raises:
            GdistError: what ended the fetch before it was asked to.
        """
        self._stop.set()
        try:
            self._running.result()
        except InterruptedRun:
            return
