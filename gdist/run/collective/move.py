"""From the even shares of all hosts to this host's shards: the whole way, in step with the others.

shares, target, what DEST holds ─▶ all well everywhere? ─▶ who has what, who wants what ─▶ rounds ─▶ manifest
of this host                       the same job?            told by each to all             parcels

A tensor that every host has committed is not moved again. Its shares go once that is so, and not before: a
host that fails finds everything that it still needs when the line is run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from gdist import __version__
from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.core.parcels import Deal, rounds_of
from gdist.core.plan import HostPlan, ShardTask
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import PLANNED_NAME, StoreManifest, store_manifest_to_json
from gdist.errors import CorruptError, InterruptedRun, RequestError
from gdist.events import AssetKept, Finished, MovePlanned, Observer, Stage, StageStarted, TensorsPlanned
from gdist.run.collective.dealing import Facts, deals_of, facts_of
from gdist.run.collective.landing import Landing, records_of
from gdist.run.collective.shares import Shares, plan_of, read_shares, shares_dir
from gdist.run.destination import (
    Destination,
    check_cut,
    clean,
    find_destination,
    job_of_manifest,
    neighbours_of,
)
from gdist.run.fetch import FetchResult
from gdist.run.journal_file import JournalFile, Lock
from gdist.run.manifest import finish
from gdist.run.preflight import DOCUMENT_BYTES, check_free, staging_needed
from gdist.run.reshard import COMMITTERS, STAGED_COMMITTERS, open_sink
from gdist.run.timing import Timing
from gdist.sinks import Sink
from gdist.sinks.local import write_atomically
from gdist.stores import files_of, reader_of
from gdist.stores.agreement import agree, gather_all
from gdist.stores.buffers import Array
from gdist.stores.local import LocalReader
from gdist.stores.manifests import read_manifests
from gdist.stores.rounds import HOSTS, Carrier, Rounds, parcel_limit

NOTE_BYTES = 8  # between rounds each host tells how many tensors it has committed


def move_shares(
    dest: str | os.PathLike[str],
    host: HostGroup,
    carrier: Carrier,
    *,
    memory: int = 2**30,
    work: Path | None = None,
    locked: bool = False,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> FetchResult:
    """Makes this host's shards of the shares that `fetch_shares` left on all hosts; all of them have to call.

    What is written is what a fetch would have written. `memory` bounds what is held of parcels; `locked` says
    that the caller has locked the destination. A run that ended is gone on with; when all is done the shares
    are gone, too.

    Raises:
        GdistError: the same on all hosts, when one has failed; what is done is kept for the next call.
        Unreachable: when another host is gone.
    """
    tell: Observer = observe or (lambda event: None)
    where = find_destination(os.fspath(dest), host, work)
    move = _Move(where, host, carrier, memory, tell, stop or threading.Event(), locked=locked)
    return move.run()


@dataclass
class _Open:
    """What is open while a host takes part."""

    shares: Shares
    plan: HostPlan
    reader: LocalReader
    journal: JournalFile
    sink: Sink
    records: dict[ShardTask, tuple[str, ...]]
    deleted: int = 0  # tensors, from the first on, whose shares are gone


class _Move:
    """One run on one destination."""

    def __init__(
        self,
        dest: Destination,
        host: HostGroup,
        carrier: Carrier,
        memory: int,
        observe: Observer,
        stop: threading.Event,
        *,
        locked: bool,
    ):
        self._dest, self._host, self._carrier, self._locked = dest, host, carrier, locked
        self._memory, self._observe, self._stop = memory, observe, stop
        self._timing = Timing()
        self._stack = contextlib.ExitStack()

    def run(self) -> FetchResult:
        with self._stack:
            there = self._prepare()
            mine = facts_of(there.shares, there.plan, there.records)
            told = [Facts.unpack(data) for data in gather_all(self._carrier.gathered, mine.pack())]
            limit = parcel_limit(self._memory, self._host.count)
            deals = deals_of(there.shares, told, limit)
            self._tell_plan(there, deals)
            landing = self._land(there)
            rounds = Rounds(
                self._carrier,
                [tensor.dtype.itemsize for tensor in there.shares.manifest.tensors],
                lambda number, box: self._view(there, number, box),
                landing.place,
                landed=landing.landed,
                note=lambda: self._note(landing),
                note_nbytes=NOTE_BYTES,
                heard=lambda notes: self._heard(there, notes),
            )
            rounds.run(rounds_of(self._begun(rounds, landing, deals), self._host.count, limit))
            rounds.attempt(landing.drain)
            rounds.agree()
            manifest = rounds.attempt(self._finish, there)
            rounds.agree()
        clean(self._dest)
        text, seconds, timing = self._dest.text, self._timing.elapsed, self._timing.table()
        self._observe(Finished(text, manifest.nbytes, seconds, already=False, timing=timing))
        return FetchResult(text, manifest, False, seconds, timing)

    # --- before the rounds ----------------------------------------------------------------------------

    def _prepare(self) -> _Open:
        """What is open on this host, once that went well on all of them, for one and the same job."""
        fault, there = None, None
        told = {"with another version of gdist": __version__, "with other --memory": str(self._memory)}
        told["another store"] = ""
        try:
            there = self._open()
            told["another store"] = _job(there.shares)
        except Exception as error:  # whatever it is, the others are waiting
            fault = error
        agree(self._carrier.gathered, range(self._carrier.count), fault, told, HOSTS)
        assert there is not None, "a fault was raised"
        return there

    def _open(self) -> _Open:
        host, dest = self._host, self._dest
        if (self._carrier.index, self._carrier.count) != (host.index, host.count):
            raise RequestError(
                f"this is process {self._carrier.index} of {self._carrier.count} of JAX, "
                f"and host {host.index} of {host.count}",
                hint="start one process on each host, with the host's own number",
            )
        if not self._locked:
            self._stack.callback(lock_of(dest).release)
        shares = read_shares(shares_dir(dest), host)
        target = shares.target
        self._observe(StageStarted(Stage.EXCHANGE))
        plan = plan_of(target)
        check_cut(neighbours_of(dest, target), plan)
        manifests = read_manifests(files_of(shares.root))
        reader = reader_of([shares.root], manifests, verify=True)
        assert isinstance(reader, LocalReader), "shares are in a directory"
        self._stack.callback(reader.close)
        journal = JournalFile(dest.work / "journal.jsonl", job_of_manifest(target))
        self._stack.callback(journal.close)
        if journal.progress.pieces:  # of a fetch that began here: parts are filled in another order now
            journal.forget(journal.progress.pieces)
        staged = dest.root is None or target.codec != "none"
        sink = open_sink(dest, plan, target.codec, staged=staged)
        self._stack.callback(sink.close)
        done, partial = sink.restore(journal.progress.shards.values())
        self._check_space(plan, {*done, *partial}, staged=staged)
        write_atomically(dest.work / PLANNED_NAME, store_manifest_to_json(target))
        return _Open(shares, plan, reader, journal, sink, records_of(plan, journal.progress.shards, done))

    def _check_space(self, plan: HostPlan, there: set[ShardTask], *, staged: bool) -> None:
        needed = plan.store_nbytes - sum(plan.tensors[t.tensor].layout().file_nbytes for t in there)
        if staged:
            needed = min(needed, staging_needed(plan))
        check_free(self._dest.work, needed + DOCUMENT_BYTES, "exchange")

    def _tell_plan(self, there: _Open, deals: Sequence[tuple[int, Deal]]) -> None:
        plan, me = there.plan, self._host.index
        own = received = 0
        for number, one in deals:
            itemsize = plan.tensors[number].tensor.spec.dtype.itemsize
            own += itemsize * sum(item.box.size for item in one.own[me])
            received += itemsize * sum(stage.elements_for(me, self._host.count) for stage in one.stages)
        self._observe(
            MovePlanned(
                tensors=len(plan.tensors),
                shards=sum(len(tensor.shards) for tensor in plan.tensors),
                bytes_wanted=plan.bytes_wanted,
                bytes_own=own,
                bytes_received=received,
                bytes_resumed=sum(plan.tensors[t.tensor].tensor.spec.nbytes_of(t.box) for t in there.records),
                store_nbytes=plan.store_nbytes,
                mesh=str(plan.mesh),
                host_index=me,
                host_count=self._host.count,
            )
        )
        self._observe(TensorsPlanned(tuple(tensor.tensor.spec.name for tensor in plan.tensors)))

    # --- in step with the others ----------------------------------------------------------------------

    def _land(self, there: _Open) -> Landing:
        staged = self._dest.root is None or there.shares.target.codec != "none"
        landing = Landing(
            there.plan,
            there.sink,
            there.journal,
            there.records,
            lambda number, item: self._view(there, number, item.box),
            committers=STAGED_COMMITTERS if staged else COMMITTERS,
            observe=self._observe,
            timing=self._timing,
            stop=self._check_stop,
        )
        self._stack.callback(landing.close)
        return landing

    def _begun(
        self, rounds: Rounds, landing: Landing, deals: Sequence[tuple[int, Deal]]
    ) -> Iterator[tuple[int, Deal]]:
        for number, one in deals:
            rounds.attempt(landing.begin, number, one)
            yield number, one

    def _view(self, there: _Open, number: int, box: Box) -> Array:
        tensor = there.shares.manifest.tensors[number]
        view = there.reader.view(tensor, box)
        assert view is not None, f"box {box} of {tensor.name!r} is in no one share"
        with self._timing.measure("checking shares"):
            there.reader.check([(tensor, box)])
        return view

    def _note(self, landing: Landing) -> bytes:
        self._check_stop()
        landing.turn()
        return landing.committed.to_bytes(NOTE_BYTES, "little")

    def _heard(self, there: _Open, notes: Sequence[bytes]) -> None:
        """Gives back the shares of tensors that are committed everywhere."""
        committed = min(int.from_bytes(note, "little") for note in notes)
        for tensor in there.shares.manifest.tensors[there.deleted : committed]:
            there.reader.forget(tensor)
            for index in tensor.shards:
                there.shares.path(tensor, index).unlink(missing_ok=True)
        there.deleted = max(there.deleted, committed)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="the same command goes on where this one stopped"
            )

    # --- the end --------------------------------------------------------------------------------------

    def _finish(self, there: _Open) -> StoreManifest:
        self._observe(StageStarted(Stage.FINISH))
        plan, source = there.plan, there.shares.manifest
        small = [("assets", asset) for asset in source.assets]
        for directory, file in (*small, *((DIRECTORY, file) for file in source.source_files)):
            data = (there.shares.root / directory / file.path).read_bytes()
            if blake3(data).hexdigest() != file.digest:
                raise CorruptError(
                    f"{directory}/{file.path} of the shares differs from its digest",
                    hint="delete the destination, and fetch again",
                )
            there.sink.write_document(f"{directory}/{file.path}", data)
            if directory == "assets":
                self._observe(AssetKept(file.path, file.nbytes))
        tensors = tuple(
            replace(tensor, shards={task.index: there.records[task] for task in planned.shards})
            for tensor, planned in zip(there.shares.target.tensors, plan.tensors, strict=True)
        )
        manifest = replace(
            there.shares.target, tensors=tensors, assets=source.assets, source_files=source.source_files
        )
        with self._timing.measure("manifest"):
            finish(there.sink, self._dest.text, plan, manifest)
        return manifest


def lock_of(dest: Destination) -> Lock:
    """That no other process of this host works on the destination.

    Raises:
        LockedError: one does.
    """
    return Lock(dest.work / "lock", dest.text)


def _job(shares: Shares) -> str:
    """What has to be the same on all hosts."""
    target = shares.target
    about = (target.source, target.mesh, target.host.count, target.codec, target.select, target.converted)
    grids = [[(t.name, t.dtype.name, t.grid, t.spec) for t in m.tensors] for m in (target, shares.manifest)]
    return hashlib.sha256(repr((about, sorted(target.ignored), grids)).encode()).hexdigest()
