"""From a magnet to a store: the whole way on one host.

resolve ─▶ open the source ─▶ catalogue ─▶ plan ─▶ preflight ─▶ journal ─▶ coordinator ─▶ manifest
what was   metadata            tensors     shards,  disk and     what is    pieces to      the store
asked                          and files   pieces   memory       there      shards         is complete
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from gdist.core.convert import converted, parse_dtype
from gdist.core.even import plan_even
from gdist.core.journal import Progress as Journalled
from gdist.core.journal import file_line, parse_journal
from gdist.core.layout import CODECS
from gdist.core.magnet import InfoHash
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, ShardTask, plan_host, plan_view
from gdist.core.select import check_patterns
from gdist.core.store_manifest import (
    PLANNED_NAME,
    TARGET_NAME,
    StoreManifest,
    store_manifest_to_json,
)
from gdist.core.tensor import StoredTensor
from gdist.core.view import VIEW, StoreFile
from gdist.errors import (
    CorruptError,
    InterruptedRun,
    RequestError,
    ResumeError,
    UnsupportedError,
    translate,
)
from gdist.events import (
    Finished,
    Note,
    Observer,
    Planned,
    Stage,
    StageStarted,
    TensorsPlanned,
    Waiting,
)
from gdist.kvstore import check_utf8, kvstore_spec
from gdist.run.catalogue import Catalogue
from gdist.run.collect import Collector
from gdist.run.coordinator import Coordinator, Keep
from gdist.run.destination import (
    Destination,
    check_cut,
    check_empty,
    check_neighbours,
    clean,
    default_dest,
    find_destination,
    finished,
    job_of,
    lost_shards,
    reopen,
)
from gdist.run.directories import EncodedDirectory
from gdist.run.failures import left_behind
from gdist.run.journal_file import JournalFile, Lock
from gdist.run.keeping import SourceKeeper
from gdist.run.manifest import finish, source_of, store_manifest, store_source
from gdist.run.opening import Opener, Opening, PieceSource, open_alone
from gdist.run.options import PAYLOAD_CHOICES, FetchOptions, check_view
from gdist.run.preflight import check_free, check_space, shard_limit
from gdist.run.resolve import Resolved, resolve
from gdist.run.tensor_digests import check_digests
from gdist.run.timing import Timing
from gdist.sinks import Sink
from gdist.sinks.convert import ConvertingSink, check_convertible
from gdist.sinks.local import LocalSink, write_atomically
from gdist.sources.torrent import TorrentOptions, magnet_of
from gdist.stores import files_of

WAITING_SECONDS = 5.0  # between signs of life in stages that have few events of their own
_QUIET = (Stage.METADATA, Stage.HEADERS)


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A complete store: where, its manifest, whether it was there already, how long until it was complete.

    `timing` has seconds by kind of work, of all threads together.
    """

    path: str
    manifest: StoreManifest
    already: bool
    seconds: float
    timing: tuple[tuple[str, float], ...] = ()


def fetch(
    source: str,
    dest: str | os.PathLike[str] | None = None,
    options: FetchOptions | None = None,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    opener: Opener = open_alone,
    again: Callable[[Destination], bool] | None = None,
) -> FetchResult:
    """Fetches a release into a store, or goes on where an earlier call stopped.

    `source` is a release's name, a magnet, an info-hash, a .torrent file or URL; `dest` a directory or a
    URL (default: the source's name, here). `observe` gets events on this thread; setting `stop` ends the
    run with its progress on disk. Safe to repeat: a complete store returns at once. `opener` is how it comes
    to its pieces; of a store that was complete it is entered only where `again` says so, for others' sake.

    Raises:
        GdistError: of the family that says whose fault it is; what is done is kept for the next call.
    """
    asked = options or FetchOptions()
    if asked.payload not in PAYLOAD_CHOICES:
        raise RequestError(f"payload {asked.payload!r} is none of {', '.join(PAYLOAD_CHOICES)}")
    if asked.codec not in (*CODECS, VIEW):
        raise RequestError(f"codec {asked.codec!r} is none of {', '.join(CODECS)}")
    if asked.codec == VIEW:
        check_view(asked)
    if asked.dtype is not None:
        parse_dtype(asked.dtype)
    check_patterns(asked.select)
    resolved = resolve(source, asked.manifest, asked.verify_key)
    text = os.fspath(dest) if dest is not None else default_dest(resolved)
    where = find_destination(text, asked.host, asked.work, keep=asked.payload == "keep")
    check_utf8(where.root or where.work, "where libtorrent cannot write")
    timing = Timing()
    tell: Observer = observe or (lambda event: None)

    def result(manifest: StoreManifest, already: bool, seconds: float | None = None) -> FetchResult:
        seconds = timing.elapsed if seconds is None else seconds
        if already:
            tell(TensorsPlanned(tuple(tensor.name for tensor in manifest.tensors)))
        tell(Finished(text, manifest.nbytes, seconds, already, timing.table()))
        return FetchResult(text, manifest, already, seconds, timing.table())

    done = finished(where, resolved, asked)
    lost = lost_shards(where, done) if done else []
    if done and not lost and again is None:
        clean(where)  # of what a run left that was killed after its last line
        return result(done, already=True)
    if lost:
        tell(
            Note(f"{len(lost)} shards of the complete store are missing or cut short: they are fetched again")
        )
    elif not done:
        check_empty(where)
    neighbours = check_neighbours(where, resolved, asked)
    lock = Lock(where.work / "lock", text)
    try:
        done = finished(where, resolved, asked)  # by the one that held the lock a moment ago
        lost = lost_shards(where, done) if done else []
        if done and lost:
            reopen(where, done, lost, job_of(asked, done.mesh, done.plan))
        run = _Fetch(
            resolved,
            where,
            asked,
            tell,
            timing,
            stop or threading.Event(),
            neighbours=neighbours,
            opener=opener,
        )
        if done and not lost:
            if again and again(where):
                run.open_again()
            clean(where)
            return result(done, already=True)
        with left_behind(where.work):
            try:
                manifest = run.run()
            except EncodedDirectory as found:
                manifest = run.convert_directory(found)
        clean(where)
        return result(manifest, already=False, seconds=run.seconds)
    finally:
        lock.release()


class _Fetch:
    """One run on one destination that is locked."""

    def __init__(
        self,
        resolved: Resolved,
        dest: Destination,
        options: FetchOptions,
        observe: Observer,
        timing: Timing,
        stop: threading.Event,
        *,
        neighbours: Sequence[StoreManifest],
        opener: Opener,
    ):
        self._resolved, self._dest, self._options = resolved, dest, options
        self._neighbours, self._opener = neighbours, opener
        self._observe, self._timing, self._stop = observe, timing, stop
        self._keep = options.payload == "keep"
        self._journal_path = dest.work / "journal.jsonl"
        self._stage = Stage.METADATA
        self._entered = self._told = time.monotonic()
        self.seconds: float | None = None  # until the store was complete; a cluster's host serves others then

    def run(self) -> StoreManifest:
        for note in self._resolved.notes:
            self._observe(Note(note))
        with self._opener(self._opening()) as (source, catalogue):
            return self._convert(source, catalogue.select(self._options.select))

    def open_again(self) -> None:
        """Opens the source of a store that is complete, for those whom the opener gives pieces."""
        with self._opener(self._opening()):
            pass

    def _opening(self) -> Opening:
        spec = self._cached() or self._resolved.spec
        return Opening(
            self._resolved,
            self._dest,
            self._options,
            self._torrent_options(),
            spec,
            self._pieces_kept(),
            self._observe,
            self._timing,
            self._check_stop,
            self._enter,
        )

    def _cached(self) -> bytes | None:
        """The .torrent that an earlier run left here; one that is damaged is learnt anew."""
        path = self._dest.work / "source.torrent"
        if not path.exists():
            return None
        kept = path.read_bytes()
        try:
            found = magnet_of(kept).info_hash
        except (CorruptError, UnsupportedError):
            path.unlink(missing_ok=True)
            return None
        self._check_identity(found)
        return kept

    def convert_directory(self, found: EncodedDirectory) -> StoreManifest:
        """What it takes instead where the torrent's arrays must be decoded from whole files."""
        from gdist.run.fetch_directory import Asked, fetch_directory  # TensorStore comes with it

        torrent = (self._dest.work / "source.torrent").read_bytes()
        asked = Asked(found, torrent, self._torrent_options(), self._dest, self._options)
        if not self._keep:
            shutil.rmtree(self._dest.work / "payload", ignore_errors=True)  # headers alone
        return fetch_directory(asked, store_source, self._observe, self._timing, self._stop, self._check_stop)

    def _enter(self, stage: Stage) -> None:
        self._stage, self._entered = stage, time.monotonic()
        self._told = self._entered
        self._observe(StageStarted(stage))

    def _check_stop(self) -> None:
        now = time.monotonic()
        if self._stage in _QUIET and now - self._told > WAITING_SECONDS:
            self._told = now
            self._observe(Waiting(self._stage, now - self._entered))
        if self._stop.is_set():
            raise InterruptedRun(
                "the run was asked to stop", hint="the same command goes on where this one stopped"
            )

    def _torrent_options(self) -> TorrentOptions:
        """Asked for, and what the magnet and the release's manifest know beside a cached .torrent."""
        asked, magnet, manifest = self._options.torrent, self._resolved.magnet, self._resolved.manifest
        known = manifest.all_trackers if manifest else ()
        return replace(
            asked,
            trackers=(*asked.trackers, *magnet.trackers, *known),
            peers=(*asked.peers, *magnet.peers),
            web_seeds=(*asked.web_seeds, *magnet.web_seeds),
            upload=asked.upload and self._keep,  # what was given back to the disk cannot be served
        )

    def _check_identity(self, found: InfoHash) -> None:
        """That what an earlier run began here is the torrent that was asked for."""
        asked = self._resolved.info_hash
        if not asked.names(found):
            raise ResumeError(
                f"{self._dest.text} holds an unfinished fetch of {found.hex}, not of {asked.hex}",
                hint="finish that one first, or choose another destination",
            )

    def _pieces_kept(self) -> frozenset[int]:
        """Pieces that the journal knows to be in the payload's files.

        Raises:
            ResumeError: when what is unfinished here is fetched with another payload or codec.
        """
        if not self._journal_path.exists():
            return frozenset()
        progress, _ = parse_journal(self._journal_path.read_bytes())
        manner = f"{self._options.payload} {self._options.codec} "
        if progress and not progress.plan.startswith(manner):
            payload, codec = progress.plan.split(" ")[:2]
            other = "reshard" if payload == "reshard" else f"fetch with --payload {payload} --codec {codec}"
            raise ResumeError(
                f"{self._dest.text} holds an unfinished {other}",
                hint="go on with the same, or delete the destination",
            )
        return frozenset(progress.pieces) if progress and self._keep else frozenset()

    def _convert(self, source: PieceSource, catalogue: Catalogue) -> StoreManifest:
        options = self._options
        self._enter(Stage.PLAN)
        if options.codec == VIEW and self._dest.root is None:
            raise RequestError(
                f"a view cannot lie at {self._dest.text}: it is the torrent's own files on a disk",
                hint="fetch to a local directory, and serve or copy that",
            )
        staged = self._dest.root is None or options.codec == "zstd"
        plan = self._plan(source, catalogue, staged)
        check_cut(self._neighbours, plan)
        check_convertible(plan)
        journal = JournalFile(self._journal_path, job_of(options, plan.mesh, plan.digest))
        sink = self._sink(source, catalogue, plan, staged)
        try:
            progress = journal.progress
            if self._keep and not progress.pieces <= source.had:  # files of the payload are gone
                journal.forget(progress.pieces - source.had)
            done, partial = sink.restore(progress.shards.values())
            placer = Placer(plan, done=done, placed=progress.pieces, partial=partial)
            lost = progress.pieces.intersection(placer.wanted())
            if lost:  # parts are gone that they were placed in; said now, or new parts would pass for filled
                journal.forget(lost)
            self._tell_plan(plan, placer)
            payload_nbytes = plan.bytes_touched
            if self._takes_all():
                payload_nbytes = sum(file.length for file in catalogue.payload.files)
            check_space(
                plan, placer, options.payload, payload_nbytes, self._dest.work, partial, staged=staged
            )
            assets = self._assets_there(progress)
            keeper = SourceKeeper(catalogue, options, progress.rest, self._observe)
            records = _records(plan, done, progress)
            planned = self._manifest(source, catalogue, plan, None, {})
            write_atomically(self._dest.work / PLANNED_NAME, store_manifest_to_json(planned))
            self._enter(Stage.FETCH)
            self._coordinate(plan, source, sink, placer, catalogue, journal, records, assets, keeper)
            self._enter(Stage.FINISH)
            if self._keep:
                _make_empty_files(source)
                # So that `gdist seed` needs nothing but this directory.
                target = self._dest.payload / f"{source.name}.torrent"
                write_atomically(target, source.torrent_file, aside=self._dest.work)
            with self._timing.measure("manifest"):
                kept = keeper.write(sink, source.torrent_file, self._tensors(catalogue))
                known = self._resolved.manifest
                if known and not options.dtype and options.codec == "none":
                    check_digests(known, plan, records)
                manifest = self._manifest(source, catalogue, plan, records, assets)
                manifest = replace(manifest, source_files=kept)
                finish(sink, self._dest.text, plan, manifest)
            self.seconds = self._timing.elapsed
            return manifest
        finally:
            sink.close()
            journal.close()

    def _plan(self, source: PieceSource, catalogue: Catalogue, staged: bool) -> HostPlan:
        options, target = self._options, self._options.target
        if options.codec == VIEW:
            return plan_view(catalogue.payload, catalogue.chosen, identity=source.info_hash.hex)
        plan = plan_host(
            catalogue.payload,
            self._tensors(catalogue),
            target.mesh if target else options.mesh,
            (target or options).rules or catalogue.rules,
            options.host,
            identity=source.info_hash.hex,
            shard_bytes=target.shard_bytes if target else shard_limit(options.memory, staged=staged),
            some=bool(options.select),
        )
        if target is None:
            return plan
        assert self._dest.root is not None, "even shares lie in a directory"
        even = plan_even(plan)
        if target.shard_bytes is None and not self._journal_path.exists():  # both are on this disk at the end
            check_free(self._dest.work, plan.store_nbytes + even.store_nbytes, "fetch")
        planned = replace(self._manifest(source, catalogue, plan, None, {}), codec=target.codec)
        write_atomically(self._dest.root / TARGET_NAME, store_manifest_to_json(planned))
        return even

    def _tensors(self, catalogue: Catalogue) -> tuple[StoredTensor, ...]:
        """What the store is to hold."""
        dtype = self._options.dtype
        return converted(catalogue.chosen, parse_dtype(dtype)) if dtype is not None else catalogue.chosen

    def _manifest(
        self,
        source: PieceSource,
        catalogue: Catalogue,
        plan: HostPlan,
        records: dict[ShardTask, tuple[str, ...]] | None,
        assets: dict[str, tuple[int, str]],
    ) -> StoreManifest:
        asked = self._options
        return store_manifest(
            source_of(source, catalogue),
            plan,
            records,
            assets,
            ignored=asked.ignore,
            codec=asked.codec,
            select=asked.select,
            converted=asked.dtype,
            files=self._files(source) if asked.codec == VIEW else (),
        )

    def _files(self, source: PieceSource) -> tuple[StoreFile, ...]:
        """The torrent's files, as they lie below the view."""
        root = self._dest.root
        assert root is not None, "views are local"
        paths = [
            source.path_of(number).relative_to(root).as_posix() for number in range(len(source.payload.files))
        ]
        return tuple(
            StoreFile(p, f.length, f.offset) for p, f in zip(paths, source.payload.files, strict=True)
        )

    def _assets_there(self, progress: Journalled) -> dict[str, tuple[int, str]]:
        """The assets of earlier runs that are still what they were; together they are small."""
        files = files_of(self._dest.text) if progress.assets else None
        there = {}
        for path, entry in progress.assets.items():
            data = files.read(f"assets/{path}") if files else None
            if data is not None and blake3(data).hexdigest() == entry[1]:
                there[path] = entry
        return there

    def _takes_all(self) -> bool:
        """True when all of the torrent is kept, also what is in no shard."""
        return self._keep and self._options.host.count == 1 and not self._options.select

    def _sink(self, source: PieceSource, catalogue: Catalogue, plan: HostPlan, staged: bool) -> Sink:
        if self._options.codec == VIEW and self._dest.root is not None:
            from gdist.run.view_sink import ViewSink  # loaded where it is asked for

            return ViewSink(self._dest.root, plan, self._manifest(source, catalogue, plan, None, {}))
        if any(tensor.tensor.factors for tensor in plan.tensors):
            return ConvertingSink(self._target(plan, staged), self._dest.work, plan)
        return self._target(plan, staged)

    def _target(self, plan: HostPlan, staged: bool) -> Sink:
        if self._dest.root is not None and not staged:
            return LocalSink(self._dest.root, self._dest.work, plan)
        from gdist.sinks.tensorstore import TensorStoreSink  # loaded where it is asked for

        return TensorStoreSink(kvstore_spec(self._dest.text), self._dest.work, plan, self._options.codec)

    def _tell_plan(self, plan: HostPlan, placer: Placer) -> None:
        self._observe(
            Planned(
                tensors=len(plan.tensors),
                shards=sum(len(tensor.shards) for tensor in plan.tensors),
                pieces=len(plan.pieces),
                bytes_wanted=plan.bytes_wanted,
                bytes_touched=plan.bytes_touched,
                bytes_resumed=plan.bytes_wanted - placer.missing_nbytes,
                store_nbytes=plan.store_nbytes,
                mesh=str(plan.mesh),
                host_index=plan.host.index,
                host_count=plan.host.count,
                bytes_kept=sum(tensor.nbytes for tensor in plan.tensors),
            )
        )
        self._observe(TensorsPlanned(tuple(tensor.tensor.spec.name for tensor in plan.tensors)))

    def _coordinate(
        self,
        plan: HostPlan,
        source: PieceSource,
        sink: Sink,
        placer: Placer,
        catalogue: Catalogue,
        journal: JournalFile,
        records: dict[ShardTask, tuple[str, ...]],
        assets: dict[str, tuple[int, str]],
        keeper: SourceKeeper,
    ) -> None:
        payload, progress = catalogue.payload, journal.progress
        unchecked = {n for n in catalogue.unchecked if payload.files[n].path not in progress.files}
        missing = [n for n in catalogue.assets if payload.files[n].path not in assets]
        collector = Collector(payload, catalogue.tensors, {*missing, *unchecked, *keeper.files})

        def keep_asset(file: int, data: bytes) -> tuple[str, str]:
            path, digest = payload.files[file].path, blake3(data).hexdigest()
            sink.write_document(f"assets/{path}", data)
            assets[path] = (len(data), digest)
            return path, digest

        def check_headers(file: int) -> tuple[str, ...]:
            path, lines = payload.files[file].path, []
            if file in unchecked:
                assert catalogue.manifest is not None, "only files of a manifest are checked"
                catalogue.manifest.check_file(path, collector.scan(file))
                lines.append(file_line(path))
            elif file in catalogue.computed:
                collector.scan(
                    file, "its headers say", "the file contradicts itself: leave it out with --ignore"
                )
            data = collector.pop(file)
            if file in keeper.files:
                lines.append(keeper.take(path, data))
            return tuple(lines)

        everything = range(payload.pieces) if self._takes_all() else ()
        Coordinator(
            plan,
            source,
            sink,
            placer,
            collector,
            journal,
            Keep(keep_asset, check_headers, frozenset(catalogue.assets)),
            workers=_workers(self._options.memory, payload.piece_length, source.readers),
            release=not self._keep,
            observe=self._observe,
            timing=self._timing,
            stop=self._check_stop,
            records=records,
            seed_pieces=[piece for piece in everything if piece not in progress.pieces],
            arrived=catalogue.arrived,
        ).run()


def _records(
    plan: HostPlan, done: Collection[ShardTask], progress: Journalled
) -> dict[ShardTask, tuple[str, ...]]:
    return {
        task: progress.shards[plan.tensors[task.tensor].tensor.spec.name, task.index].digests for task in done
    }


def _make_empty_files(source: PieceSource) -> None:
    """The torrent's files of no bytes: no piece brings them."""
    for number, file in enumerate(source.payload.files):
        if not file.length:
            path = source.path_of(number)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                raise translate(error, f"making {path}") from error


def _workers(memory: int, piece_length: int, most: int) -> int:
    """Threads that place pieces: each holds a piece and, while a column is cut out, its parts again."""
    return max(1, min(most, memory // (4 * piece_length)))
