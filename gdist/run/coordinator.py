"""The loop of a fetch: verified pieces in, committed shards out.

One thread, the caller's, owns the placer, the journal and the events. A few workers read a piece, write it
where it goes and take what is collected from it; a few more make whole shards durable. Memory is what the
workers hold: one piece each, and its parts while they are cut.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gdist.core.journal import ShardRecord, asset_line, pieces_line, shard_line
from gdist.core.placer import Placement, Placer
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.errors import GdistError, PieceLost
from gdist.events import (
    AssetKept,
    Binds,
    Observer,
    Progress,
    ShardCommitted,
    TensorReady,
)
from gdist.run.collect import Collector
from gdist.run.journal_file import JournalFile
from gdist.run.memory import give_back
from gdist.run.opening import PieceSource
from gdist.run.preflight import in_flight_limit
from gdist.run.timing import Timing
from gdist.sinks import Sink

# What a kill may cost: pieces placed since the last checkpoint are fetched again. How soon the next one
# follows is the disk's affair: one that takes its time is busy with syncs for no more than a tenth of it.
CHECKPOINT_SECONDS = 10.0  # at most
LEAST_SECONDS = 1.0
SYNC_SHARE = 0.1
PROGRESS_SECONDS = 0.5
WAIT_SECONDS = 0.25  # how late a stop may be noticed; pieces and finished work wake the wait at once
QUEUED_PER_WORKER = 8  # so that a worker never waits for the coordinator's turn; what waits holds no bytes
COMMIT_WORKERS = 2  # syncing waits for the disk, so two keep it busy

_Collected = list[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class Keep:
    """What to do with collected files, by index in the payload: those kept whole, and the others.

    `asset` gives path and digest of a file that was kept; `other` the lines that the journal gets for a file
    that was looked at.
    """

    asset: Callable[[int, bytes], tuple[str, str]]
    other: Callable[[int], tuple[str, ...]]
    assets: frozenset[int]


class Coordinator:
    """Runs one host's plan to its end; see `run`."""

    def __init__(
        self,
        plan: HostPlan,
        source: PieceSource,
        sink: Sink,
        placer: Placer,
        collector: Collector,
        journal: JournalFile,
        keep: Keep,
        *,
        workers: int,
        release: bool,
        observe: Observer,
        timing: Timing,
        stop: Callable[[], None],
        records: dict[ShardTask, tuple[str, ...]],
        seed_pieces: Iterable[int] = (),
        arrived: Iterable[int] = (),
    ):
        self._plan, self._source, self._sink, self._placer = plan, source, sink, placer
        self._collector, self._journal, self._keep = collector, journal, keep
        self._observe, self._timing, self._stop = observe, timing, stop
        self._workers, self._records, self._release = workers, records, release
        self._pool = ThreadPoolExecutor(workers, "gdist-place")
        self._commits = ThreadPoolExecutor(COMMIT_WORKERS, "gdist-commit")
        self._buffers = threading.local()
        self._payload_only = set(seed_pieces)  # kept in the payload's files, in no shard of this host
        self._ready: deque[int] = deque()
        self._placing: dict[Future[_Collected], int] = {}
        self._committing: dict[Future[ShardRecord], ShardTask] = {}
        self._syncing: tuple[Future[bool], frozenset[int]] | None = None
        self._sync_failed = False
        self._unsynced: set[int] = set()
        self._verified_bytes = 0
        self._open_shards = [len(tensor.shards) for tensor in plan.tensors]
        self._tensors_ready = 0
        self._last_progress = self._last_checkpoint = time.monotonic()
        self._rest_seconds = min(LEAST_SECONDS, CHECKPOINT_SECONDS)  # from one checkpoint to the next
        self._arrive(arrived)

    def run(self) -> None:
        """Returns once every shard is committed and every file collected.

        Raises:
            InterruptedRun: from `stop`, called again and again; progress is on disk.
            GdistError: from the source or the sink; progress is on disk.
        """
        try:
            for task in self._placer.whole():
                if task in self._records:
                    self._shard_done(task)
                else:  # the last run ended between its last piece and its commit
                    self._start_commit(task)
            for tensor in self._plan.tensors:
                if not tensor.shards:
                    self._tensor_ready(tensor)
            for file in self._collector.empty_files():
                self._file_whole(file)
            self._want()
            while self._busy():
                self._turn()
            self._observe(self._progress())  # a host that serves others for long shows this as its last
        except BaseException:
            self._source.halt()
            self._pool.shutdown(cancel_futures=True)
            self._commits.shutdown(cancel_futures=True)
            self._save()
            raise
        self._pool.shutdown()
        self._commits.shutdown()

    def _want(self) -> None:
        wanted = (*self._placer.wanted(), *self._collector.pieces, *sorted(self._payload_only))
        self._source.expect(self._plan)
        if self._release:
            self._source.limit_backlog(in_flight_limit(self._plan))
        self._source.want(tuple(dict.fromkeys(wanted)))

    def _busy(self) -> bool:
        return bool(
            self._placer.missing_nbytes
            or self._collector.pieces
            or self._payload_only
            or self._placing
            or self._committing
            or self._ready
        )

    def _turn(self) -> None:
        self._stop()
        while self._ready and len(self._placing) < QUEUED_PER_WORKER * self._workers:
            piece = self._ready.popleft()
            placing = self._pool.submit(self._place, piece, self._placer.accept(piece))
            self._placing[placing] = piece
            placing.add_done_callback(self._wake)
        idle = not (self._placing or self._committing)
        with self._timing.measure("waiting for pieces" if idle else "waiting for workers"):
            self._arrive(self._source.verified(WAIT_SECONDS))
        for placed in [future for future in self._placing if future.done()]:
            with contextlib.suppress(PieceLost):
                self._settle(self._placing.pop(placed), placed.result())
        self._finish_commits()
        if idle:
            self._source.check_alive()
        self._tick()

    def _wake(self, done: Future[Any]) -> None:  # Any: whatever finished, the coordinator looks at all
        self._source.wake()

    def _arrive(self, pieces: Iterable[int]) -> None:
        for piece in pieces:
            self._verified_bytes += self._plan.payload.extent_of(piece).length
            self._payload_only.discard(piece)
            if self._placer.accept(piece) or self._collector.wants(piece):
                self._ready.append(piece)
            else:
                self._unsynced.add(piece)
                if self._release:  # such as one that was fetched for its header alone
                    self._source.release(piece)

    def _place(self, piece: int, placements: tuple[Placement, ...]) -> _Collected:
        """On a worker: the piece's bytes, to wherever they go."""
        if not hasattr(self._buffers, "piece"):
            self._buffers.piece = bytearray(self._plan.payload.piece_length)
        with self._timing.measure("reading and checking pieces"):
            buffer = memoryview(self._buffers.piece)
            data = self._source.read_piece(piece, buffer, placements, self._collector.extents(piece))
        with self._timing.measure("placing pieces"):
            self._sink.place(placements, data)
        collected = self._collector.take(piece, data)
        if self._release:
            self._source.release(piece)
        return collected

    def _settle(self, piece: int, collected: _Collected) -> None:
        for task in self._placer.settle(piece):
            self._start_commit(task)
        for file in self._collector.add(piece, collected):
            self._file_whole(file)
        self._unsynced.add(piece)

    def _start_commit(self, task: ShardTask) -> None:
        committing = self._commits.submit(self._commit, task)
        self._committing[committing] = task
        committing.add_done_callback(self._wake)

    def _commit(self, task: ShardTask) -> ShardRecord:
        with self._timing.measure("committing shards"):
            return self._sink.commit(task)

    def _finish_commits(self) -> None:
        done = {task: future.result() for future, task in self._committing.items() if future.done()}
        if not done:
            return
        self._record(done)
        self._committing = {future: task for future, task in self._committing.items() if task not in done}
        for task in done:
            self._shard_done(task)

    def _record(self, done: Mapping[ShardTask, ShardRecord]) -> None:
        """Writes durable shards down, all in one sync: while this thread waits, workers run out of work."""
        self._records.update((task, record.digests) for task, record in done.items())
        self._journal.append(*map(shard_line, done.values()))

    def _shard_done(self, task: ShardTask) -> None:
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

    def _file_whole(self, file: int) -> None:
        path = self._plan.payload.files[file].path
        if file in self._keep.assets:
            data = self._collector.pop(file)
            name, digest = self._keep.asset(file, data)
            self._journal.append(asset_line(name, len(data), digest))
            self._observe(AssetKept(path, len(data)))
        else:
            if lines := self._keep.other(file):
                self._journal.append(*lines)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._syncing and self._syncing[0].done():
            self._syncing[0].result()
            self._journal.append(pieces_line(self._syncing[1]))
            self._syncing = None
            busy = now - self._last_checkpoint
            self._rest_seconds = min(max(busy / SYNC_SHARE, LEAST_SECONDS), CHECKPOINT_SECONDS)
        if now - self._last_checkpoint > self._rest_seconds and not self._syncing and self._unsynced:
            self._last_checkpoint = now
            pieces, self._unsynced = frozenset(self._unsynced), set()
            syncing = self._commits.submit(self._sync)
            self._syncing = (syncing, pieces)
            syncing.add_done_callback(self._wake)
        if now - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = now
            self._observe(self._progress())
            give_back()

    def _sync(self) -> bool:
        """True once what was placed, and what is kept of the payload, survives a crash of the machine."""
        if self._sync_failed:  # the kernel tells a failure once, and then takes what is lost for written
            return False
        self._sync_failed = True
        self._sink.sync()
        if not self._release:
            self._source.sync()
        self._sync_failed = False
        return True

    def _progress(self) -> Progress:
        stats = self._source.stats()
        wanted = self._plan.bytes_wanted
        binds = Binds.NETWORK
        if self._ready:
            binds = Binds.CONVERT
        elif len(self._committing) > 2 * COMMIT_WORKERS:
            binds = Binds.DISK
        return Progress(
            seconds=self._timing.elapsed,
            bytes_verified=self._verified_bytes,
            bytes_placed=wanted - self._placer.missing_nbytes,
            bytes_wanted=wanted,
            tensors_ready=self._tensors_ready,
            tensors=len(self._plan.tensors),
            download_rate=stats.download_rate,
            upload_rate=stats.upload_rate,
            downloaded=stats.downloaded,
            uploaded=stats.uploaded,
            peers=stats.peers,
            seeds=stats.seeds,
            wasted=stats.waste,
            binds=binds,
        )

    def _save(self) -> None:
        """After a failure: what is done is written down, as far as the disk still lets us."""
        for placed, piece in self._placing.items():
            if placed.done() and not placed.cancelled() and not placed.exception():
                self._unsynced.add(piece)
        pieces = self._unsynced | (self._syncing[1] if self._syncing else frozenset())
        with contextlib.suppress(GdistError, OSError):  # the error that stopped the run is the one to tell
            done = {future: task for future, task in self._committing.items() if future.done()}
            good = [future for future in done if not future.cancelled() and not future.exception()]
            if good:
                self._record({done[future]: future.result() for future in good})
            if pieces and self._sync():
                self._journal.append(pieces_line(pieces))
