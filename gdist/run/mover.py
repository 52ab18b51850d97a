"""The loop of a reshard: units of the source in, committed shards out.

One thread, the caller's, owns the ledger, the journal and the events. A few workers read a unit, check it,
and write it where it goes; a few more make whole shards durable. Memory is what the workers hold: what was
read of one unit each, where the source is not mapped, and one buffer to cut out what is written.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from math import prod
from typing import Any

import numpy as np

from gdist.core.box import Box
from gdist.core.journal import ShardRecord, shard_line
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.reshard import Ledger, Share, Unit, placement_of, units_of, writes_of
from gdist.errors import GdistError, InterruptedRun
from gdist.events import Binds, Observer, ReshardProgress, ShardCommitted, TensorReady
from gdist.run.journal_file import JournalFile
from gdist.run.memory import give_back
from gdist.run.timing import Timing
from gdist.sinks import Sink
from gdist.stores.buffers import Array, Bytes
from gdist.stores.origins import Held, Origin, raw

PROGRESS_SECONDS = 0.5
WAIT_SECONDS = 0.25  # how late a stop may be noticed; finished work wakes the wait at once
SYNC_BYTES = 256 * 2**20  # placed between syncs: the disk then writes all the time, not only at the end
MOST_COMMITTING = 64  # shards; more would only wait for the disk


class Mover:
    """Runs one host's plan to its end; see `run`."""

    def __init__(
        self,
        plan: HostPlan,
        origin: Origin,
        sink: Sink,
        journal: JournalFile,
        records: dict[ShardTask, tuple[str, ...]],
        *,
        share: Share,
        committers: int,
        observe: Observer,
        timing: Timing,
        stop: Callable[[], None],
    ):
        self._plan, self._origin, self._sink, self._journal = plan, origin, sink, journal
        self._records, self._share = records, share
        self._observe, self._timing, self._stop = observe, timing, stop
        self._ledger = Ledger(plan, records)
        self._pool = ThreadPoolExecutor(share.workers, "gdist-move")
        self._commits = ThreadPoolExecutor(committers, "gdist-commit")
        self._halt = threading.Event()
        self._buffers = threading.local()
        self._moving: dict[Future[int], Unit] = {}
        self._committing: dict[Future[ShardRecord], ShardTask] = {}
        self._syncing: Future[None] | None = None
        self._open_shards = [len(tensor.shards) for tensor in plan.tensors]
        self._tensors_ready = 0
        self._bytes_read = self._unsynced = 0
        self._last_progress = time.monotonic()

    def run(self) -> None:
        """Returns once every shard is committed and every tensor published.

        Raises:
            InterruptedRun: from `stop`, called again and again; what is committed is on disk.
            GdistError: from the origin or the sink; what is committed is on disk.
        """
        try:
            for tensor in self._plan.tensors:
                if not tensor.shards:
                    self._tensor_ready(tensor)
            self._shards_done(self._records)
            units = self._units()
            more = True
            while more or self._moving or self._committing:
                self._stop()
                more = self._fill(units)
                self._turn()
            if self._syncing:
                self._syncing.result()
        except BaseException:
            self._halt.set()
            self._pool.shutdown(cancel_futures=True)
            self._commits.shutdown(cancel_futures=True)
            self._save()
            raise
        self._pool.shutdown()
        self._commits.shutdown()

    def _units(self) -> Iterator[Unit]:
        """Units of as many tensors as there are workers in turn: two that write to one file wait for it."""
        done = frozenset(self._records)
        tensors = (
            units_of(self._plan, number, self._origin.grain(number), self._share.unit, done)
            for number in range(len(self._plan.tensors))
        )
        turns = deque(itertools.islice(tensors, self._share.workers))
        while turns:
            units = turns.popleft()
            unit = next(units, None)
            if unit is not None:
                turns.append(units)
                yield unit
            elif (following := next(tensors, None)) is not None:
                turns.append(following)

    def _fill(self, units: Iterator[Unit]) -> bool:
        """Gives the workers enough to do; False when there is no more."""
        while len(self._moving) <= self._share.workers and len(self._committing) < MOST_COMMITTING:
            unit = next(units, None)
            if unit is None:
                return False
            self._moving[self._pool.submit(self._move, unit)] = unit
        return True

    def _turn(self) -> None:
        waiting: list[Future[Any]] = [*self._moving, *self._committing]  # Any: of either kind
        wait(waiting, WAIT_SECONDS, FIRST_COMPLETED)
        for moved in [future for future in self._moving if future.done()]:
            self._settle(self._moving.pop(moved), moved.result())
        self._shards_done(self._record())
        for failed in [future for future in self._committing if future.done()]:
            failed.result()
        self._tick()

    def _move(self, unit: Unit) -> int:
        """On a worker: reads a unit and writes it to its shards; bytes read."""
        spec = self._plan.tensors[unit.tensor].tensor.spec
        itemsize = spec.dtype.itemsize
        with self._timing.measure("reading and checking"):
            held = self._origin.read(unit.tensor, unit.reads)
        with self._timing.measure("writing"):
            for task, box in writes_of(self._plan, unit, self._share.write):
                if self._halt.is_set():
                    raise InterruptedRun("the run was asked to stop")
                data = self._gather(held, box, itemsize)
                self._sink.place((placement_of(task, box, itemsize),), data.data)
        return sum(map(spec.nbytes_of, unit.reads))

    def _gather(self, held: Held, box: Box, itemsize: int) -> Bytes:
        """A box's bytes in C order: where they lie so, or put together in this worker's buffer."""
        parts = held.parts(box)
        first = next(parts)
        if first[0] == box and first[1].flags.c_contiguous:
            return _bytes_of(first[1])
        nbytes = prod(box.shape) * itemsize
        buffer: Bytes | None = getattr(self._buffers, "buffer", None)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers.buffer = np.empty(max(nbytes, self._share.write), np.uint8)
        whole = buffer[:nbytes].view(raw(itemsize)).reshape(box.shape)
        for part, values in (first, *parts):
            whole[part.slices_from(box.start)] = values
        return buffer[:nbytes]

    def _settle(self, unit: Unit, nbytes: int) -> None:
        before = self._ledger.missing_nbytes
        for task in self._ledger.settle(unit):
            self._committing[self._commits.submit(self._commit, task)] = task
        self._bytes_read += nbytes
        self._unsynced += before - self._ledger.missing_nbytes
        if self._ledger.read(unit.tensor):
            self._origin.release(unit.tensor)

    def _commit(self, task: ShardTask) -> ShardRecord:
        with self._timing.measure("committing shards"):
            return self._sink.commit(task)

    def _record(self) -> list[ShardTask]:
        """Writes down what is committed, all with one sync."""
        tasks, lines = [], []
        for future in [future for future in self._committing if _sound(future)]:
            task, record = self._committing.pop(future), future.result()
            self._records[task] = record.digests
            tasks.append(task)
            lines.append(shard_line(record))
        if lines:
            self._journal.append("\n".join(lines))
        return tasks

    def _shards_done(self, tasks: Collection[ShardTask]) -> None:
        for task in tasks:
            tensor = self._plan.tensors[task.tensor]
            spec = tensor.tensor.spec
            self._observe(ShardCommitted(spec.name, task.index, spec.nbytes_of(task.box)))
            self._open_shards[task.tensor] -= 1
            if not self._open_shards[task.tensor]:
                self._tensor_ready(tensor)

    def _tensor_ready(self, tensor: TensorPlan) -> None:
        self._sink.publish(tensor)
        self._tensors_ready += 1
        self._observe(TensorReady(tensor.tensor.spec.name, tensor.nbytes))

    def _tick(self) -> None:
        if self._syncing and self._syncing.done():
            self._syncing.result()
            self._syncing = None
        if self._unsynced > SYNC_BYTES and not self._syncing:
            self._unsynced = 0
            self._syncing = self._commits.submit(self._sink.sync)
        now = time.monotonic()
        if now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._observe(self._progress())
            give_back()

    def _progress(self) -> ReshardProgress:
        wanted = self._plan.bytes_wanted
        return ReshardProgress(
            seconds=self._timing.elapsed,
            bytes_read=self._bytes_read,
            bytes_placed=wanted - self._ledger.missing_nbytes,
            bytes_wanted=wanted,
            tensors_ready=self._tensors_ready,
            tensors=len(self._plan.tensors),
            binds=Binds.CONVERT if self._moving else Binds.DISK,
        )

    def _save(self) -> None:
        """After a failure: what is committed is written down, as far as the disk still lets us."""
        with contextlib.suppress(GdistError, OSError):  # the error that stopped the run is the one to tell
            self._record()


def _sound(future: Future[ShardRecord]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _bytes_of(array: Array) -> Bytes:
    flat: Bytes = array.reshape(-1).view(np.uint8)
    return flat
