"""The move in a process of its own: the only one that uses JAX.

So devices are free again when it ends; what XLA's libraries print stays off this process's streams; and
where JAX ends a process because another is gone, or a collective never ends, this one says so and goes on.

    this process  ── request, stop ──▶  python -m gdist.collective  ◀── XLA ──▶  those of other hosts
                  ◀─ events, result ──
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, BinaryIO

from gdist.core.failure import Failure
from gdist.core.mesh import HostGroup
from gdist.errors import InterruptedRun, StalledError, Unreachable
from gdist.events import Event, Observer
from gdist.run.collective.opened import lock_of
from gdist.run.destination import find_destination
from gdist.run.fetch import FetchResult

POLL_SECONDS = 0.25  # how late a stop may be noticed
STOP_SECONDS = 6.0  # to end what it is at and tell the others; then it is killed
LEAVE_SECONDS = 15.0  # to leave JAX, after it has said how it went
TAIL_BYTES = 4000  # of what it printed, where it ended without a word
_WORTH = re.compile(rb"^[EF]\d{4} .*|^\w*(?:Error|Exception)\b.*", re.MULTILINE)
_PRINTED_BY = re.compile(rb"^[EF]\d{4} [\d:. ]+\S+\] ")


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """What a process is to do: move this host's part to `dest`, together with those of all other hosts.

    `coordinator` is where host 0's process listens for the others (`HOST:PORT`), a port that is free there.
    Not all there after `join_seconds`, one silent for `silence_seconds`, nothing done for `stall_seconds`:
    each ends it; not done after `most_seconds` stops it. `platform` is one of JAX's (`cpu`, `cuda`, `tpu`;
    "": as JAX chooses), `rails` the devices used of each host (None: all, on CPU one).
    """

    dest: str
    host: HostGroup
    coordinator: str
    memory: int = 2**30
    work: Path | None = None
    join_seconds: float = 300.0
    silence_seconds: float = 30.0
    stall_seconds: float = 300.0
    most_seconds: float = float("inf")
    platform: str = ""
    rails: int | None = None
    python: str = field(default_factory=lambda: sys.executable)


def start_move(
    request: MoveRequest,
    *,
    locked: bool = False,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> FetchResult:
    """Runs `gdist.run.collective.move_shares` in a process that joins those of the other hosts.

    Events come on this thread. Setting `stop` ends it on all hosts, with what is done on disk. `locked` says
    that the caller has locked the destination.

    Raises:
        LockedError: another process of this host works on the destination.
        GdistError: what it ended with.
        Unreachable: another host is gone, or did not come.
        StalledError: nothing moved for `stall_seconds`.
    """
    with contextlib.ExitStack() as stack:
        if not locked:
            dest = find_destination(request.dest, request.host, request.work)
            stack.callback(lock_of(dest).release)
        process = stack.enter_context(_Process(request))
        return process.follow(observe or (lambda event: None), stop or threading.Event())


class _Process:
    """The other process; it ends when this one does."""

    def __init__(self, request: MoveRequest):
        self._request, self._told = request, False
        self._log: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._ours, theirs = Pipe()
        with contextlib.closing(theirs):
            self._process = subprocess.Popen(
                [request.python, "-m", "gdist.collective", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=environment(request.platform),
                start_new_session=True,  # Ctrl-C is for this process, which passes it on
            )
        with contextlib.suppress(OSError):  # it has ended already: `follow` finds that
            self._ours.send(request)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        if self._told:  # it leaves the others, who are not to lose it before they have told how it went
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_SECONDS)
        self._kill()
        self._ours.close()
        self._log.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def follow(self, observe: Observer, stop: threading.Event) -> FetchResult:
        """Passes on what it tells, until it has said how it went."""
        moved = began = time.monotonic()
        stopped: float | None = None
        limit = self._request.stall_seconds + self._request.join_seconds  # first the others have to come
        while True:
            ended = self._process.poll() is not None  # first: what it said before is still to be read
            for message in self._messages():
                match message:
                    case Event():
                        observe(message)
                    case FetchResult():
                        self._told = True
                        return message
                    case Failure():
                        self._told = True
                        raise message.error("the exchange")
                moved, limit = time.monotonic(), self._request.stall_seconds
            now = time.monotonic()
            if ended:
                raise self._ended()
            asked = stop.is_set() or now - began > self._request.most_seconds
            if asked and stopped is None:
                stopped = now
                with contextlib.suppress(OSError):
                    self._ours.send("stop")
            if stopped is not None and now - stopped > STOP_SECONDS:
                self._kill()
                raise InterruptedRun(
                    "the run was asked to stop", hint="the same command goes on where this one stopped"
                )
            if now - moved > limit:
                self._kill()
                raise StalledError(
                    f"the exchange moved nothing for {now - moved:.0f} seconds",
                    hint="look at the network between hosts and their disks; the same command goes on",
                )

    def _messages(self) -> Iterator[Any]:
        """What it has said; waits a little for the first."""
        try:
            more = self._ours.poll(POLL_SECONDS)
            while more:
                yield self._ours.recv()
                more = self._ours.poll(0)
        except (EOFError, OSError):  # it has ended, or is about to
            time.sleep(POLL_SECONDS)

    def _ended(self) -> Unreachable:
        """It ended without a word: as a rule JAX ended it, since another host is gone."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(self._log.tell() - TAIL_BYTES, 0))
        tail = self._log.read()
        lines = [_PRINTED_BY.sub(b"", line) for line in _WORTH.findall(tail)] or tail.splitlines()[-1:]
        said = lines[0].decode(errors="replace").strip() if lines else "it printed nothing"
        return Unreachable(
            f"the process of the exchange ended with {self._process.returncode}: {said}",
            hint="another host may be gone: see what the others say; the same command goes on",
            returncode=self._process.returncode,
            printed=tail.decode(errors="replace"),
        )


def environment(platform: str) -> dict[str, str]:
    """The environment of a process that uses JAX together with others."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy")  # gRPC would ask it for the other hosts
    }
    kept.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # most of a GPU's memory is not needed
    if platform:
        kept["JAX_PLATFORMS"] = platform
    return kept
