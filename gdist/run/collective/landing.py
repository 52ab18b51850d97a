"""What arrives in an exchange: placed into shards, committed, written down; see `Landing`.

The caller's thread owns the journal and the events. What a host has itself is placed by a few threads beside
the rounds, what others send by the rounds' own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from gdist.core.journal import ShardRecord, shard_line
from gdist.core.parcels import Deal, Item, Round, sent_nbytes, wire_nbytes
from gdist.core.plan import HostPlan, ShardTask
from gdist.core.reshard import placement_of
from gdist.errors import GdistError
from gdist.events import Binds, MoveProgress, Observer, ShardCommitted, TensorReady
from gdist.run.journal_file import JournalFile
from gdist.run.memory import give_back
from gdist.run.timing import Timing
from gdist.sinks import Sink
from gdist.stores.buffers import Array, Bytes

OWN_WORKERS = 2
MOST_OWN = 64  # boxes that wait to be placed: more would only be held
MOST_COMMITTING = 64  # shards; more would only wait for the disk
PROGRESS_SECONDS = 0.5
WAIT_SECONDS = 0.25


class Landing:
    """Takes what a host gets of each tensor, and makes its shards of it; not thread-safe but for `place`.

    `tensors` are opened in order with `begin`; a tensor is committed when all its rounds have landed.
    """

    def __init__(
        self,
        plan: HostPlan,
        sink: Sink,
        journal: JournalFile,
        records: dict[ShardTask, tuple[str, ...]],
        view: Callable[[int, Item], Array],
        *,
        committers: int,
        observe: Observer,
        timing: Timing,
        stop: Callable[[], None],
    ):
        self._plan, self._sink, self._journal, self._records = plan, sink, journal, records
        self._view, self._observe, self._timing, self._stop = view, observe, timing, stop
        self._own = ThreadPoolExecutor(OWN_WORKERS, "gdist-own")
        self._commits = ThreadPoolExecutor(committers, "gdist-commit")
        self._placing: dict[Future[int], int] = {}
        self._committing: dict[Future[ShardRecord], ShardTask] = {}
        self._left = [0] * len(plan.tensors)  # boxes and stages of a tensor that are still to come
        self._begun = 0
        self._ready = [not any(task not in records for task in t.shards) for t in plan.tensors]
        self._placed = sum(plan.tensors[t.tensor].tensor.spec.nbytes_of(t.box) for t in records)
        self._rounds = self._wire = self._sent = self._received = 0
        self._last_progress = time.monotonic()
        for tensor, ready in zip(plan.tensors, self._ready, strict=True):
            if ready:
                sink.publish(tensor)

    @property
    def committed(self) -> int:
        """The number of tensors, from the first on, of which all shards are committed."""
        return next((n for n, ready in enumerate(self._ready) if not ready), len(self._ready))

    def begin(self, number: int, deal: Deal) -> None:
        """Opens a tensor: what this host has of it is placed, what others send is waited for."""
        if self._ready[number]:
            return
        own = deal.own[self._plan.host.index]
        self._left[number] = len(own) + len(deal.stages)
        for item in own:
            while len(self._placing) >= MOST_OWN:
                wait(self._placing, WAIT_SECONDS, FIRST_COMPLETED)
                self.turn()
            self._placing[self._own.submit(self._place_own, number, item)] = number

    def _place_own(self, number: int, item: Item) -> int:
        with self._timing.measure("placing own shares"):
            data = np.ascontiguousarray(self._view(number, item)).reshape(-1).view(np.uint8)
            return self._place(number, item, data)

    def place(self, number: int, item: Item, data: Bytes) -> None:
        """Takes a box that another host sent; from any thread."""
        if not self._ready[number]:
            with self._timing.measure("placing what came"):
                self._place(number, item, data)

    def _place(self, number: int, item: Item, data: Bytes) -> int:
        tensor = self._plan.tensors[number]
        task = tensor.shards[item.target]
        if task in self._records:
            return 0
        placement = placement_of(task, item.box, tensor.tensor.spec.dtype.itemsize)
        self._sink.place((placement,), data.data)
        return data.nbytes

    def landed(self, one: Round) -> None:
        """A round is placed."""
        me = self._plan.host.index
        self._rounds += 1
        self._wire += wire_nbytes(one, me)
        self._sent += sent_nbytes(one, me)
        for number, stage in one.stages:
            itemsize = self._plan.tensors[number].tensor.spec.dtype.itemsize
            nbytes = itemsize * stage.elements_for(me, one.hosts)
            self._received += nbytes
            if not self._ready[number]:
                self._placed += nbytes
                self._one_less(number)
        self.turn()
        while len(self._committing) > MOST_COMMITTING:
            wait(self._committing, WAIT_SECONDS, FIRST_COMPLETED)
            self.turn()

    def _one_less(self, number: int) -> None:
        self._left[number] -= 1
        assert self._left[number] >= 0, f"more came of tensor {number} than was to come"
        if not self._left[number]:
            for task in self._plan.tensors[number].shards:
                if task not in self._records:
                    self._committing[self._commits.submit(self._commit, task)] = task

    def _commit(self, task: ShardTask) -> ShardRecord:
        with self._timing.measure("committing shards"):
            return self._sink.commit(task)

    def turn(self) -> None:
        """Takes note of what the threads have done.

        Raises:
            GdistError: what one of them failed with.
        """
        self._stop()
        for done in [future for future in self._placing if future.done()]:
            number = self._placing.pop(done)
            self._placed += done.result()
            self._one_less(number)
        self._record()
        for failed in [future for future in self._committing if future.done()]:
            failed.result()
        now = time.monotonic()
        if now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._observe(self._progress())
            give_back()

    def _record(self) -> None:
        """Writes down what is committed, all with one sync."""
        tasks, lines = [], []
        for future in [future for future in self._committing if _sound(future)]:
            task, record = self._committing.pop(future), future.result()
            self._records[task] = record.digests
            tasks.append(task)
            lines.append(shard_line(record))
        if lines:
            self._journal.append("\n".join(lines))
        for task in tasks:
            tensor = self._plan.tensors[task.tensor]
            spec = tensor.tensor.spec
            self._observe(ShardCommitted(spec.name, task.index, spec.nbytes_of(task.box)))
            if all(other in self._records for other in tensor.shards):
                self._ready[task.tensor] = True
                self._sink.publish(tensor)
                self._observe(TensorReady(spec.name, tensor.nbytes))

    def drain(self) -> None:
        """Returns when every shard of every tensor is committed.

        Raises:
            GdistError: what one of the threads failed with.
        """
        while self._placing or self._committing:
            waiting: list[Future[Any]] = [*self._placing, *self._committing]  # Any: of either kind
            wait(waiting, WAIT_SECONDS, FIRST_COMPLETED)
            self.turn()
        assert all(self._ready), f"tensor {self.committed} is not complete"
        self._observe(self._progress())

    def _progress(self) -> MoveProgress:
        return MoveProgress(
            seconds=self._timing.elapsed,
            rounds=self._rounds,
            bytes_received=self._received,
            bytes_wire=self._wire,
            bytes_sent=self._sent,
            bytes_placed=self._placed,
            bytes_wanted=self._plan.bytes_wanted,
            tensors_ready=sum(self._ready),
            tensors=len(self._ready),
            binds=Binds.DISK if len(self._committing) > MOST_COMMITTING // 2 else Binds.LAN,
        )

    def close(self) -> None:
        """Ends the threads; what is committed is written down, as far as the disk lets us."""
        self._own.shutdown(cancel_futures=True)
        self._commits.shutdown(cancel_futures=True)
        with contextlib.suppress(GdistError, OSError):  # after a failure that one is to be told
            self._record()


def _sound(future: Future[ShardRecord]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def records_of(
    plan: HostPlan, done: Mapping[tuple[str, tuple[int, ...]], ShardRecord], there: set[ShardTask]
) -> dict[ShardTask, tuple[str, ...]]:
    """The digests of shards that are there, as the journal has them."""
    return {task: done[plan.tensors[task.tensor].tensor.spec.name, task.index].digests for task in there}
