"""A destination with this host's even shares, open to become its store: what the move needs, and its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.core.plan import HostPlan, ShardTask
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import PLANNED_NAME, TARGET_NAME, StoreManifest, store_manifest_to_json
from gdist.errors import CorruptError
from gdist.events import AssetKept, Finished, Observer, Stage, StageStarted
from gdist.run.collective.landing import records_of
from gdist.run.collective.shares import Shares, plan_of, read_shares, shares_dir
from gdist.run.destination import (
    Destination,
    check_cut,
    clean,
    find_destination,
    job_of_manifest,
    neighbours_of,
    read_manifest,
)
from gdist.run.fetch import FetchResult
from gdist.run.journal_file import JournalFile, Lock
from gdist.run.manifest import finish
from gdist.run.preflight import check_rest
from gdist.run.reshard import open_sink
from gdist.run.timing import Timing
from gdist.sinks import Sink
from gdist.sinks.local import write_atomically
from gdist.stores import files_of, reader_of
from gdist.stores.buffers import Array
from gdist.stores.local import LocalReader
from gdist.stores.manifests import read_manifests


@dataclass
class Opened:
    """What is open of a destination: the shares there, the plan of its store, and what of it is committed."""

    dest: Destination
    shares: Shares
    plan: HostPlan
    reader: LocalReader
    journal: JournalFile
    sink: Sink
    records: dict[ShardTask, tuple[str, ...]]
    timing: Timing
    observe: Observer
    given_back: int = 0  # tensors, from the first on, whose shares are gone

    @property
    def complete(self) -> bool:
        """True when every shard is committed."""
        return all(task in self.records for tensor in self.plan.tensors for task in tensor.shards)

    @property
    def staged(self) -> bool:
        """True where shards are made in the work directory first."""
        return _staged(self.dest, self.shares.target)

    def view(self, number: int, box: Box) -> Array:
        """A box of this host's share of a tensor, checked.

        Raises:
            CorruptError: the share differs from its digest.
        """
        tensor = self.shares.manifest.tensors[number]
        view = self.reader.view(tensor, box)
        assert view is not None, f"box {box} of {tensor.name!r} is in no one share"
        with self.timing.measure("checking shares"):
            self.reader.check([(tensor, box)])
        return view

    def give_back(self, committed: int) -> None:
        """Deletes the shares of the first tensors, which are committed everywhere."""
        for tensor in self.shares.manifest.tensors[self.given_back : committed]:
            self.reader.forget(tensor)
            for index in tensor.shards:
                self.shares.path(tensor, index).unlink(missing_ok=True)
        self.given_back = max(self.given_back, committed)

    def finish(self) -> StoreManifest:
        """Writes what is no tensor, and the manifest; every shard is committed.

        Raises:
            CorruptError: a small file of the shares differs from its digest.
            GdistError: of the destination.
        """
        self.observe(StageStarted(Stage.FINISH))
        source = self.shares.manifest
        small = [("assets", asset) for asset in source.assets]
        for directory, file in (*small, *((DIRECTORY, file) for file in source.source_files)):
            data = (self.shares.root / directory / file.path).read_bytes()
            if blake3(data).hexdigest() != file.digest:
                raise CorruptError(
                    f"{directory}/{file.path} of the shares differs from its digest",
                    hint="delete the destination, and fetch again",
                )
            self.sink.write_document(f"{directory}/{file.path}", data)
            if directory == "assets":
                self.observe(AssetKept(file.path, file.nbytes))
        tensors = tuple(
            replace(tensor, shards={task.index: self.records[task] for task in planned.shards})
            for tensor, planned in zip(self.shares.target.tensors, self.plan.tensors, strict=True)
        )
        manifest = replace(
            self.shares.target, tensors=tensors, assets=source.assets, source_files=source.source_files
        )
        with self.timing.measure("manifest"):
            finish(self.sink, self.dest.text, self.plan, manifest)
        return manifest


@contextlib.contextmanager
def opened(
    dest: Destination, host: HostGroup, timing: Timing, observe: Observer, *, locked: bool
) -> Iterator[Opened]:
    """Opens a destination that `fetch_shares` has filled; `locked` says that the caller has locked it.

    Raises:
        LockedError: another process of this host works on it.
        GdistError: of the shares there, or of the destination.
    """
    with contextlib.ExitStack() as stack:
        if not locked:
            stack.callback(lock_of(dest).release)
        shares = read_shares(shares_dir(dest), host)
        target = shares.target
        observe(StageStarted(Stage.EXCHANGE))
        plan = plan_of(target)
        check_cut(neighbours_of(dest, target), plan)
        reader = reader_of([shares.root], read_manifests(files_of(shares.root)), verify=True)
        assert isinstance(reader, LocalReader), "shares are in a directory"
        stack.callback(reader.close)
        journal = JournalFile(dest.work / "journal.jsonl", job_of_manifest(target))
        stack.callback(journal.close)
        if journal.progress.pieces:  # of a fetch that began here: parts are filled in another order now
            journal.forget(journal.progress.pieces)
        sink = open_sink(dest, plan, target.codec, staged=_staged(dest, target))
        stack.callback(sink.close)
        done, partial = sink.restore(journal.progress.shards.values())
        check_rest(dest.work, plan, {*done, *partial}, "exchange", staged=_staged(dest, target))
        write_atomically(dest.work / PLANNED_NAME, store_manifest_to_json(target))
        records = records_of(plan, journal.progress.shards, done)
        yield Opened(dest, shares, plan, reader, journal, sink, records, timing, observe)


def all_here(dest: str | os.PathLike[str], host: HostGroup, work: Path | None = None) -> bool:
    """True when this host needs nothing more from the others: its shards are all committed, or the store is.

    When that is so on every host no move is needed; where it is not so on one, all take part. The caller has
    locked the destination.

    Raises:
        GdistError: as `opened`.
    """
    where = find_destination(os.fspath(dest), host, work)
    if not (shares_dir(where) / TARGET_NAME).exists():
        return read_manifest(where) is not None
    with opened(where, host, Timing(), lambda event: None, locked=True) as there:
        return there.complete


def finish_alone(
    dest: str | os.PathLike[str],
    host: HostGroup,
    *,
    work: Path | None = None,
    locked: bool = False,
    observe: Observer | None = None,
) -> FetchResult:
    """Ends a move of which only the end is missing, as `all_here` says: this host died before its manifest.

    No other host has to take part, but all of them must have their shards: the shares here go.

    Raises:
        GdistError: as `opened` and `Opened.finish`.
    """
    timing, where = Timing(), find_destination(os.fspath(dest), host, work)
    tell: Observer = observe or (lambda event: None)
    with opened(where, host, timing, tell, locked=locked) as there:
        assert there.complete, "who looked with `all_here` holds the lock"
        for tensor in there.plan.tensors:
            there.sink.publish(tensor)
        manifest = there.finish()
    clean(where)
    tell(Finished(where.text, manifest.nbytes, timing.elapsed, already=False, timing=timing.table()))
    return FetchResult(where.text, manifest, False, timing.elapsed, timing.table())


def lock_of(dest: Destination) -> Lock:
    """That no other process of this host works on the destination.

    Raises:
        LockedError: one does.
    """
    return Lock(dest.work / "lock", dest.text)


def _staged(dest: Destination, target: StoreManifest) -> bool:
    return dest.root is None or target.codec != "none"
