"""Waiting for what others fetch: until it is ready, until it has failed, or until nobody works on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gdist.core.mesh import HostGroup
from gdist.core.ready import check_ready
from gdist.errors import TransferError
from gdist.run.watch import Sight, Watch, all_ready

POLL_SECONDS = 0.25  # a look is a few `stat`s and the new lines of a journal
REMOTE_POLL_SECONDS = 5.0  # in a bucket a manifest is looked for over the network

Show = Callable[[Sequence[Sight]], None]


def wait(
    dest: str,
    what: Sequence[str] = (),
    *,
    host: HostGroup | None = None,
    work: Path | None = None,
    timeout: float | None = None,
    start_seconds: float = 60.0,
    show: Show = lambda sights: None,
) -> tuple[Sight, ...]:
    """Returns once all of `what` can be read at a destination (without: once it is complete); what is seen.

    Of `dest` the part of one `host` is meant, or every part that is seen there. Looks again and again and
    calls `show` with what it sees. What an earlier run left is not taken for the end of this one: for
    `start_seconds` a run may begin, or begin again.

    Raises:
        GdistError: the run failed, with the class that its error had.
        TransferError: no run is at work for `start_seconds`, or it took longer than `timeout` seconds.
        RequestError: what is waited for will never be there, or the directory is somebody else's.
    """
    for each in what:
        check_ready(each)
    watch = Watch(dest, host, work)
    try:
        return _Waiter(watch, dest, what, timeout, start_seconds, show).run()
    finally:
        watch.close()


class _Waiter:
    """One wait."""

    def __init__(
        self,
        watch: Watch,
        dest: str,
        what: Sequence[str],
        timeout: float | None,
        start_seconds: float,
        show: Show,
    ):
        self._watch, self._dest, self._what = watch, dest, what
        self._timeout, self._start_seconds, self._show = timeout, start_seconds, show
        self._start = time.monotonic()
        self._alive: dict[str, float] = {}  # when each run was last seen at work
        self._stale: dict[str, float] = {}  # when each failure was written that was there at the start

    def run(self) -> tuple[Sight, ...]:
        poll = POLL_SECONDS if self._watch.local else REMOTE_POLL_SECONDS
        first = True
        while True:
            sights = self._watch.look()
            if first:
                self._stale = {s.manifest: s.failure.time for s in sights if s.failure}
                first = False
            if sights and self._reached(sights):
                return sights
            self._show(sights)
            self._check(sights)
            time.sleep(poll)

    def _reached(self, sights: Sequence[Sight]) -> bool:
        if not self._what:
            return all(sight.complete for sight in sights)
        return all(all_ready(sights, each).ready for each in self._what)

    def _check(self, sights: Sequence[Sight]) -> None:
        """That there is hope.

        Raises:
            GdistError: there is none.
        """
        now = time.monotonic()
        for sight in sights:
            hope = self._alive.setdefault(sight.manifest, self._start)
            if sight.running or sight.complete:
                self._alive[sight.manifest] = now
                continue
            late = now - hope > self._start_seconds
            if sight.failure and (late or sight.failure.time != self._stale.get(sight.manifest)):
                raise sight.failure.error(f"the run that wrote to {self._dest}")
            if late:
                self._nobody(
                    now - hope, f"{sight.status.tensors_ready} of {sight.status.tensors} tensors are ready"
                )
        if not sights and now - self._start > self._start_seconds:
            self._nobody(now - self._start, "nothing is there")
        if self._timeout is not None and now - self._start > self._timeout:
            wanted = " and ".join(self._what) or "all of it"
            raise TransferError(
                f"waited {now - self._start:.0f} seconds for {wanted} at {self._dest}",
                hint="gdist status says how far it is",
                path=self._dest,
            )

    def _nobody(self, seconds: float, what: str) -> None:
        raise TransferError(
            f"no run was at work on {self._dest} for {seconds:.0f} seconds, and {what}",
            hint="run the same gdist fetch again: it goes on where it stopped",
            path=self._dest,
        )
