"""From a store, or a checkpoint, to a store on another mesh: the whole way on one host.

what SRC is ─▶ plan ─▶ what DEST holds ─▶ preflight ─▶ journal ─▶ mover ─▶ manifest
tensors,       shards,  another job?       is all of     what is   chunks    the store
chunks         units    complete?          SRC there?    there     to shards is complete

Hosts know nothing of each other: the plan follows from the source, the mesh and the host's number alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from gdist.core.layout import CODECS
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload
from gdist.core.plan import HostPlan, ShardTask, plan_host
from gdist.core.reshard import Cost, cost_of
from gdist.core.rules import Rules
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import StoreAsset, StoreManifest
from gdist.errors import CorruptError, InterruptedRun, RequestError
from gdist.events import (
    AssetKept,
    Finished,
    Note,
    Observer,
    ReshardPlanned,
    Stage,
    StageStarted,
    TensorsPlanned,
)
from gdist.kvstore import check_utf8, kvstore_spec
from gdist.run.destination import (
    Destination,
    check_empty,
    clean,
    find_destination,
    lost_shards,
    reopen,
)
from gdist.run.failures import left_behind
from gdist.run.journal_file import JournalFile, Lock
from gdist.run.manifest import finish, store_manifest
from gdist.run.mover import Mover
from gdist.run.origins import check_apart, open_origin
from gdist.run.preflight import check_rest, shard_limit
from gdist.run.reshard_checks import check_neighbours, finished, share_memory
from gdist.run.timing import Timing
from gdist.sinks import Sink
from gdist.sinks.local import LocalSink
from gdist.stores import Address
from gdist.stores.origins import Origin

COMMITTERS = 4  # of small shards each waits for the disk, which syncs several at once
STAGED_COMMITTERS = 2  # each holds a shard


@dataclass(frozen=True, slots=True)
class ReshardOptions:
    """How to reshard.

    `mesh` and `rules` cut the new store (rules None: as the source was cut, else its profile's, else
    automatic); `host` is this host among those that share the work. `memory` bounds, in bytes, what is held
    while converting. `profile` and `ignore` are for plain files, as in a fetch. `work` is where unfinished
    shards of a bucket wait. `codec` is "none" or "zstd".
    """

    mesh: Mesh = field(default_factory=Mesh)
    rules: Rules | None = None
    host: HostGroup = field(default_factory=HostGroup)
    memory: int = 2**30
    codec: str = "none"
    profile: str | None = None
    ignore: tuple[str, ...] = ()
    work: Path | None = None


@dataclass(frozen=True, slots=True)
class ReshardResult:
    """A complete store: where, its manifest, whether it was there already, seconds by kind of work.

    `bytes_read` are read for it, `bytes_beyond` of them in vain, as far as it was not done before.
    """

    path: str
    manifest: StoreManifest
    already: bool
    seconds: float
    timing: tuple[tuple[str, float], ...] = ()
    bytes_read: int = 0
    bytes_beyond: int = 0


def reshard(
    source: Address | Sequence[Address],
    dest: Address,
    options: ReshardOptions | None = None,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> ReshardResult:
    """Writes a source to a store on another mesh, or goes on where an earlier call stopped.

    `source` is a store (a directory, a URL, or the places of several hosts' parts of one), a checkpoint's
    files, or an Orbax checkpoint. `observe` gets events on this thread; setting `stop` ends the run with its
    progress on disk. Safe to repeat: a complete store returns at once.

    Raises:
        GdistError: of the family that says whose fault it is; what is done is kept for the next call.
    """
    asked, text = options or ReshardOptions(), os.fspath(dest)
    if asked.codec not in CODECS:
        raise RequestError(f"codec {asked.codec!r} is none of {', '.join(CODECS)}")
    places = (source,) if isinstance(source, str | os.PathLike) else tuple(source)
    if not places:
        raise RequestError("no source was given", hint="give a store, or a checkpoint's directory")
    for place in places:
        check_utf8(place, "which the manifest of a store cannot hold")
    check_apart(places, text)
    where = find_destination(text, asked.host, asked.work)
    tell: Observer = observe or (lambda event: None)
    timing = Timing()
    tell(StageStarted(Stage.HEADERS))
    origin, rules = open_origin(places, asked.profile, asked.ignore)
    with contextlib.closing(origin):
        run = _Reshard(origin, rules, where, asked, tell, timing, stop or threading.Event())
        manifest, already = run.run()
    if already:
        tell(TensorsPlanned(tuple(tensor.name for tensor in manifest.tensors)))
    tell(Finished(text, manifest.nbytes, timing.elapsed, already, timing.table()))
    return ReshardResult(
        text, manifest, already, timing.elapsed, timing.table(), run.cost.nbytes, run.cost.beyond
    )


def reshard_from(
    origin: Origin,
    rules: Rules | None,
    dest: Destination,
    options: ReshardOptions,
    observe: Observer,
    timing: Timing,
    stop: threading.Event,
) -> tuple[StoreManifest, bool]:
    """The same from an origin that is open; the manifest, and whether the store was complete before."""
    return _Reshard(origin, rules, dest, options, observe, timing, stop).run()


def open_sink(dest: Destination, plan: HostPlan, codec: str, *, staged: bool) -> Sink:
    """Where the shards of a plan go."""
    if dest.root is not None and not staged:
        return LocalSink(dest.root, dest.work, plan)
    from gdist.sinks.tensorstore import TensorStoreSink  # loaded where it is asked for

    return TensorStoreSink(kvstore_spec(dest.text), dest.work, plan, codec)


class _Reshard:
    """One run from an origin that is open to one destination."""

    def __init__(
        self,
        origin: Origin,
        rules: Rules | None,
        dest: Destination,
        options: ReshardOptions,
        observe: Observer,
        timing: Timing,
        stop: threading.Event,
    ):
        self._origin, self._dest, self._options = origin, dest, options
        self._observe, self._timing, self._stop = observe, timing, stop
        self._staged = dest.root is None or options.codec != "none"
        observe(StageStarted(Stage.PLAN))
        if origin.contents.checked and rules is None and options.rules is None and options.mesh.devices > 1:
            observe(Note("the source is cut along no mesh axis: tensors are split automatically"))
        self._plan = plan_host(
            Payload((), 1, 0),  # plans of pieces know more of their source; shards and grids do not need it
            origin.contents.tensors,
            options.mesh,
            options.rules or rules,
            options.host,
            identity=origin.contents.state,
            shard_bytes=shard_limit(options.memory, staged=self._staged),
            some=bool(origin.contents.select),
        )
        self._job = f"reshard {options.codec} {self._plan.mesh} {self._plan.digest[:32]}"
        self._grains = [origin.grain(number) for number in range(len(self._plan.tensors))]
        self._share = share_memory(
            self._plan, self._grains, options.memory, maps=origin.maps, staged=self._staged
        )
        self.cost = Cost(0, 0, 0)

    def run(self) -> tuple[StoreManifest, bool]:
        """The manifest of the complete store, and whether it was complete before."""
        job = (self._dest, self._plan, self._options.codec, self._origin.contents.steps)
        done = finished(*job)
        if done and not (lost := lost_shards(self._dest, done)):
            clean(self._dest)  # of what a run left that was killed after its last line
            return done, True
        if done:
            text = f"{len(lost)} shards of the complete store are missing or cut short: they are made again"
            self._observe(Note(text))
        else:
            check_empty(self._dest)
        check_neighbours(*job)
        self._origin.check((task.tensor, task.box) for p in self._plan.tensors for task in p.shards)
        lock = Lock(self._dest.work / "lock", self._dest.text)
        try:
            done = finished(*job)  # by the one that held the lock a moment ago
            lost = lost_shards(self._dest, done) if done else []
            if done and not lost:
                clean(self._dest)
                return done, True
            if done:
                reopen(self._dest, done, lost, self._job)
            with left_behind(self._dest.work):
                manifest = self._write()
            clean(self._dest)
            return manifest, False
        finally:
            lock.release()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="the same command goes on where this one stopped"
            )

    def _write(self) -> StoreManifest:
        plan, options = self._plan, self._options
        journal = JournalFile(self._dest.work / "journal.jsonl", self._job)
        sink = open_sink(self._dest, plan, options.codec, staged=self._staged)
        try:
            shards = journal.progress.shards
            done, partial = sink.restore(shards.values())
            records = {
                task: shards[plan.tensors[task.tensor].tensor.spec.name, task.index].digests for task in done
            }
            self.cost = cost_of(plan, self._grains, done)
            self._tell_plan(done)
            check_rest(self._dest.work, plan, {*done, *partial}, "reshard", staged=self._staged)
            self._observe(StageStarted(Stage.RESHARD))
            Mover(
                plan,
                self._origin,
                sink,
                journal,
                records,
                share=self._share,
                committers=STAGED_COMMITTERS if self._staged else COMMITTERS,
                observe=self._observe,
                timing=self._timing,
                stop=self._check_stop,
            ).run()
            self._observe(StageStarted(Stage.FINISH))
            with self._timing.measure("manifest"):
                return self._finish(sink, records)
        finally:
            sink.close()
            journal.close()

    def _finish(self, sink: Sink, records: dict[ShardTask, tuple[str, ...]]) -> StoreManifest:
        contents = self._origin.contents
        assets = {}
        for path in contents.assets:
            data = self._origin.asset(path)
            sink.write_document(f"assets/{path}", data)
            assets[path] = (len(data), blake3(data).hexdigest())
            self._observe(AssetKept(path, len(data)))
        if self._origin.still() != contents.state:
            raise CorruptError(
                f"{self._origin.where} changed while it was read",
                hint="delete the destination, and run again when nothing writes to the source",
            )
        manifest = store_manifest(
            contents.source,
            self._plan,
            records,
            assets,
            ignored=contents.ignored,
            codec=self._options.codec,
            select=contents.select,
            converted=contents.converted,
            stored=contents.stored,
            resharded=contents.steps,
        )
        kept = []
        for path in contents.source_files:
            data = self._origin.asset(path, DIRECTORY)
            sink.write_document(f"{DIRECTORY}/{path}", data)
            kept.append(StoreAsset(path, len(data), blake3(data).hexdigest()))
        manifest = replace(manifest, source_files=tuple(kept))
        finish(sink, self._dest.text, self._plan, manifest)
        return manifest

    def _tell_plan(self, done: Iterable[ShardTask]) -> None:
        plan, cost = self._plan, self.cost
        resumed = sum(plan.tensors[task.tensor].tensor.spec.nbytes_of(task.box) for task in done)
        if not self._origin.contents.checked:
            self._observe(Note(f"{self._origin.where} has no digests: what is read is taken as it is"))
        self._observe(
            ReshardPlanned(
                tensors=len(plan.tensors),
                shards=sum(len(tensor.shards) for tensor in plan.tensors),
                reads=cost.reads,
                bytes_wanted=plan.bytes_wanted,
                bytes_read=cost.nbytes,
                bytes_beyond=cost.beyond,
                bytes_resumed=resumed,
                store_nbytes=plan.store_nbytes,
                mesh=str(plan.mesh),
                host_index=plan.host.index,
                host_count=plan.host.count,
            )
        )
        self._observe(TensorsPlanned(tuple(tensor.tensor.spec.name for tensor in plan.tensors)))
