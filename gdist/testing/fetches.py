"""What tests of a fetch need beside a swarm: options for loopback, and the comparison of stores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from gdist.core.journal import ShardRecord
from gdist.core.mesh import parse_host, parse_mesh
from gdist.core.plan import ShardTask
from gdist.errors import InterruptedRun
from gdist.events import Event, Observer, ShardCommitted
from gdist.run.coordinator import Coordinator
from gdist.run.options import FetchOptions
from gdist.sources.torrent import TorrentOptions
from gdist.stores import open as open_store
from gdist.testing.swarm import LOOPBACK

HELD_SECONDS = 60.0  # a guard against hangs
Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type
_Kind = TypeVar("_Kind", bound=Event)


def fetch_options(
    mesh: str = "1", host: str = "0/1", torrent: TorrentOptions = LOOPBACK, **changes: Any
) -> FetchOptions:
    """Options of a fetch that speaks to nobody outside this machine."""
    return replace(FetchOptions(mesh=parse_mesh(mesh), host=parse_host(host), torrent=torrent), **changes)


def assert_holds(store: Path | str, expected: Mapping[str, Array]) -> None:
    """That a store has exactly these tensors, equal to the bit."""
    with open_store(store) as found:
        assert set(found) == set(expected)
        for name, array in expected.items():
            got = found[name].read()
            assert (got.shape, got.dtype) == (array.shape, array.dtype), name
            assert got.tobytes() == np.ascontiguousarray(array).tobytes(), f"{name} differs"


def tree_of(root: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@dataclass
class Recorder:
    """An observer that keeps what it is told; `then` is called after each event."""

    events: list[Event] = field(default_factory=list)
    then: Callable[[Event], None] = lambda event: None

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        self.events.append(event)
        self.then(event)

    def of(self, kind: type[_Kind]) -> list[_Kind]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


def stopped_when(
    done: Callable[[Recorder], object], run: Callable[[Observer, threading.Event], object]
) -> Recorder:
    """What a fetch told that was asked to stop once something is `done`, and ended so before it was complete.

    `run` is the fetch, with this observer and this event. A shard is committed when the one before is told
    of: the thread that tells may wake late, and would find all of them there, and nothing left to stop.
    """
    recorder, stop, told, commit = Recorder(), threading.Event(), threading.Condition(), Coordinator._commit
    untold = 0

    def in_turn(coordinator: Coordinator, task: ShardTask) -> ShardRecord:
        nonlocal untold
        with told:
            told.wait_for(lambda: untold <= 0 or stop.is_set(), HELD_SECONDS)
            untold += 1
        return commit(coordinator, task)

    def observe(event: Event) -> None:
        nonlocal untold
        recorder(event)
        if done(recorder):
            stop.set()
        with told:
            if isinstance(event, ShardCommitted) and untold:  # else an earlier run committed it
                untold -= 1
            told.notify_all()

    with mock.patch.object(Coordinator, "_commit", in_turn):
        try:
            run(observe, stop)
        except InterruptedRun:
            return recorder
    raise AssertionError("it was complete before it was asked to stop")
