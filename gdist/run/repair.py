"""Mending a store in place: what is damaged is mapped to pieces of its torrent, and just those are fetched.

verify ─▶ damage ─▶ its pieces ─▶ those that the store itself rebuilds right ─▶ the others ─▶ put in place
faults    chunks,   of the torrent     are not fetched               copies, then      checked by digest
          files                                                      the swarm

A chunk is written where it lies once its new bytes have its digest: until then it is as bad as before, and no
good byte is touched. A shard that is too long is cut. One that is missing or too short is made anew beside
the store, and renamed. So is every damaged one of a compressed store: its chunks have no place of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
from blake3 import blake3

from gdist.core.layout import ShardLayout, shard_key, to_document
from gdist.core.mesh import HostGroup
from gdist.core.orbax import COMMIT_MARKER, METADATA, orbax_documents
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import StoreAsset, StoreManifest, StoreTensor
from gdist.core.tensor import StoredTensor, TensorSpec
from gdist.core.view import VIEW
from gdist.durable import size_of, sync_file, write_atomically
from gdist.errors import GdistError, InterruptedRun, RequestError, translate
from gdist.events import Observer
from gdist.kvstore import kvstore_spec, local_path
from gdist.run.destination import WORK
from gdist.run.journal_file import Lock
from gdist.run.manifest import array_files, group_files
from gdist.run.rebuild import Rebuilder
from gdist.run.repair_sources import Copy, Fetcher, FilesCopy, RepairReport, known_source, open_copy
from gdist.run.repair_view import ViewRepair
from gdist.run.verify import Fault, VerifyReport, check_shard, verify
from gdist.sinks.parts import PartFiles
from gdist.sources.torrent import TorrentOptions
from gdist.stores import Address, files_of
from gdist.stores.manifests import read_manifests

if TYPE_CHECKING:
    from gdist.sinks.tensorstore import TensorStoreSink

Index = tuple[int, ...]


@dataclass(slots=True)
class _Damage:
    """What is to be mended: chunks and ends of shard files, small files by path, and documents."""

    chunks: dict[tuple[str, Index], list[Index]] = field(default_factory=dict)  # by shard; lost: lacking
    lost: set[tuple[str, Index]] = field(default_factory=set)  # shards: missing, or of another length
    tails: list[tuple[str, Index]] = field(default_factory=list)
    small: dict[str, StoreAsset] = field(default_factory=dict)
    documents: list[str] = field(default_factory=list)
    cut: dict[str, tuple[Fault, ...]] = field(default_factory=dict)  # shards that were too long; what is left
    beyond: list[Fault] = field(default_factory=list)  # nothing here can mend it


def repair(
    store: Address,
    *,
    copies: Sequence[Address] = (),
    swarm: bool = True,
    torrent: TorrentOptions | None = None,
    workers: int | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> RepairReport:
    """Verifies a store in a directory, and mends what is damaged by fetching the pieces it was made of.

    Pieces are taken from `copies` (stores of the same torrent, or directories with its files) and, with
    `swarm`, from the torrent's peers and web seeds. Every piece is checked by its hash, every chunk by its
    digest. What cannot be mended is in the report.

    Raises:
        RequestError: the store is not in a directory, or does not know its torrent.
        TransferError: nobody brings what is needed; what was mended stays mended.
    """
    root = local_path(store)
    report = verify(store, workers=workers, observe=observe)
    if report.ok:
        return RepairReport(report.store, report)
    if root is None:
        raise RequestError(
            f"{report.store} is not in a directory: it is not repaired in place",
            hint="delete what is damaged and fetch again",
        )
    manifest = read_manifests(files_of(store)).joined
    tell: Observer = observe or (lambda event: None)

    def check_stop() -> None:
        if stop is not None and stop.is_set():
            raise InterruptedRun("the repair was asked to stop", hint="the same command goes on")

    asked = torrent or TorrentOptions()
    work = root / WORK / "repair"
    lock = Lock(root / WORK / "lock", report.store)
    try:
        if manifest.codec == VIEW:
            return ViewRepair(root, manifest, report, asked, swarm, tell, check_stop).run(copies, work)
        return _Repair(root, manifest, report, asked, swarm, tell, check_stop).run(copies, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):
            (root / WORK / "lock").unlink()
            (root / WORK).rmdir()  # a fetch's own work stays
        lock.release()


class _Repair:
    """One repair of a store of shards."""

    def __init__(
        self,
        root: Path,
        manifest: StoreManifest,
        report: VerifyReport,
        options: TorrentOptions,
        swarm: bool,
        observe: Observer,
        check_stop: Callable[[], None],
    ):
        self._root, self._manifest, self._report = root, manifest, report
        self._tensors = {tensor.name: tensor for tensor in manifest.tensors}
        self._fetcher = Fetcher(options, swarm, observe, check_stop)
        self._mended: list[str] = []
        self._copied: dict[str, list[str]] = {}
        self._coded = manifest.codec != "none"

    def run(self, copies: Sequence[Address], work: Path) -> RepairReport:
        """Mends what it can."""
        damage = self._sort()
        self._write_documents(damage)
        self._copy_small(damage, copies)
        for name, index in damage.lost:
            self._save_chunks(name, index, damage, work)
        if any(damage.chunks.values()) or (self._coded and damage.chunks) or damage.small:
            source = self._source(copies)
            try:
                kept = FilesCopy(self._root / "payload", source.metadata)  # of --payload keep
                places = [open_copy(copy, source.metadata, source.kept, self._root) for copy in copies]
                self._mend(damage, source, [kept, *places] if kept.found else places, work)
            finally:
                source.close()
        for name, index in damage.lost:
            if not damage.chunks[name, index]:
                self._finish_lost(name, index, work)
        for name, index in damage.tails:
            self._write_tail(self._root / name / shard_key(index), self._layout(name))
            self._mended.append(f"{name}/{shard_key(index)}")
        for path, faults in damage.cut.items():
            if all(map(self._is_mended, faults)):
                self._mended.append(path)
        left = [fault for fault in self._report.faults if not self._is_mended(fault)]
        return RepairReport(
            self._report.store,
            self._report,
            tuple(dict.fromkeys(self._mended)),
            self._fetcher.table(),
            self._fetcher.nbytes,
            tuple(left),
            tuple((name, tuple(paths)) for name, paths in self._copied.items()),
        )

    def _source(self, copies: Sequence[Address]) -> Rebuilder:
        """What the store itself still has of its torrent; which bytes it has, a copy may have to tell.

        Raises:
            RequestError: neither the store nor a copy knows.
        """
        try:
            return Rebuilder(self._root)
        except GdistError as error:
            known = known_source(self._manifest, copies)
            if known:
                return Rebuilder(self._root, known)
            if not isinstance(error, RequestError):
                raise
            raise RequestError(
                error.message,
                hint="give --from a store of the torrent that has it, as the first host's directory does, or "
                "the torrent's files with the .torrent beside them; else fetch the store again",
            ) from error

    def _is_mended(self, fault: Fault) -> bool:
        place = f"{fault.path}, chunk {fault.chunk}" if fault.chunk is not None else fault.path
        return place in self._mended or fault.path in self._mended

    # --- what is damaged ------------------------------------------------------------------------------

    def _sort(self) -> _Damage:
        damage = _Damage()
        small = {self._manifest.asset_key(asset): asset for asset in self._manifest.assets}
        small |= {f"{DIRECTORY}/{file.path}": file for file in self._manifest.source_files}
        for fault in self._report.faults:
            tensor = self._tensors.get(fault.tensor)
            if fault.path in small:
                damage.small[fault.path] = small[fault.path]
            elif fault.path.endswith("zarr.json") or fault.path in (METADATA, COMMIT_MARKER):
                damage.documents.append(fault.path)
            elif tensor is not None and tensor.stored:
                damage.beyond.append(fault)  # its values were made of pieces: none of them has its bytes
            elif tensor is None or (index := _index_in(fault.path, tensor)) not in tensor.shards:
                damage.beyond.append(fault)
            elif self._coded:
                damage.chunks[tensor.name, index] = []
            elif size_of(self._root / fault.path) > self._layout(tensor.name).file_nbytes:
                damage.cut[fault.path] = self._cut(tensor, index)
                for found in damage.cut[fault.path]:
                    self._sort_shard(damage, found, index)
            else:
                self._sort_shard(damage, fault, index)
        return damage

    def _sort_shard(self, damage: _Damage, fault: Fault, index: Index) -> None:
        name, layout = fault.tensor, self._layout(fault.tensor)
        if fault.chunk is not None:
            damage.chunks.setdefault((name, index), []).append(fault.chunk)
        elif size_of(self._root / fault.path) == layout.file_nbytes:
            damage.tails.append((name, index))
        else:
            damage.lost.add((name, index))
            damage.chunks[name, index] = [chunk for chunk, _ in layout.chunks()]

    def _cut(self, tensor: StoreTensor, index: Index) -> tuple[Fault, ...]:
        """Cuts a shard that is too long back to its length; gives what is wrong with it then."""
        path = self._root / tensor.name / shard_key(index)
        try:
            os.truncate(path, self._layout(tensor.name).file_nbytes)
        except OSError as error:
            raise translate(error, f"writing {path}") from error
        sync_file(path)
        return check_shard(self._root, tensor, index)

    def _layout(self, name: str) -> ShardLayout:
        tensor = self._tensors[name]
        return ShardLayout(tensor.grid, tensor.dtype.itemsize)

    def _write_documents(self, damage: _Damage) -> None:
        """Zarr and Orbax documents follow from the manifest."""
        if not damage.documents:
            return
        documents = group_files(self._manifest)
        documents |= {
            f"{name}/zarr.json": to_document(document)
            for name, document in array_files(self._manifest).items()
        }
        documents |= orbax_documents(tensor.name for tensor in self._manifest.tensors)
        for path in dict.fromkeys(damage.documents):
            if path in documents:
                write_atomically(self._root / path, documents[path])
                self._mended.append(path)

    def _copy_small(self, damage: _Damage, copies: Iterable[Address]) -> None:
        """Small files that another store has as they must be; the torrent's files give those of `source/`."""
        for copy in copies:
            files, known = files_of(copy), {}
            if any(path.startswith(f"{DIRECTORY}/") for path in damage.small):
                known = known_source(self._manifest, [copy])
            for path, entry in list(damage.small.items()):
                found = files.read(path), known.get(path.removeprefix(f"{DIRECTORY}/"))
                data = next((d for d in found if d is not None and _is(d, entry)), None)
                if data is not None:
                    write_atomically(self._root / path, data)
                    self._mended.append(path)
                    self._copied.setdefault(os.fspath(copy), []).append(path)
                    del damage.small[path]

    # --- pieces ---------------------------------------------------------------------------------------

    def _mend(self, damage: _Damage, source: Rebuilder, copies: Sequence[Copy], work: Path) -> None:
        plan, places = self._plan(damage, source)
        placer, sink = Placer(plan), self._sink(plan, work)
        small = _SmallFiles(damage.small, source)
        wanted = tuple(dict.fromkeys((*placer.wanted(), *small.pieces())))
        bad = []
        try:

            def settle(piece: int, data: memoryview) -> None:
                sink.place(placer.accept(piece), data)
                small.take(piece, data)
                for task in placer.settle(piece):
                    if isinstance(sink, PartFiles):
                        self._put(places[task], sink, task, damage, work)
                    else:
                        self._commit(sink, task)

            buffer = memoryview(bytearray(source.payload.piece_length))
            for piece in wanted:
                right = source.piece(piece, buffer)
                if right is None:
                    bad.append(piece)
                else:
                    settle(piece, right)
            payload = source.payload
            for piece, data in self._fetcher.bring(
                bad,
                copies,
                payload.extent_of,
                source.matches,
                source.torrent,
                self._manifest.source.magnet,
                work / "swarm",
            ):
                settle(piece, data)
        finally:
            sink.close()
        for path, content in small.whole():
            if _is(bytes(content), damage.small[path]):
                write_atomically(self._root / path, bytes(content))
                self._mended.append(path)

    def _sink(self, plan: HostPlan, work: Path) -> PartFiles | TensorStoreSink:
        """Where pieces are put together: chunks in files of their own, or whole shards to be compressed."""
        if not self._coded:
            return PartFiles(work / "parts", plan)
        from gdist.sinks.tensorstore import TensorStoreSink  # loaded where it is needed

        return TensorStoreSink(kvstore_spec(self._root), work, plan, self._manifest.codec)

    def _commit(self, sink: TensorStoreSink, task: ShardTask) -> None:
        """A shard of a compressed store is whole."""
        record = sink.commit(task)
        if self._tensors[record.tensor].shards[record.index] == record.digests:
            self._mended.append(f"{record.tensor}/{shard_key(record.index)}")

    def _plan(
        self, damage: _Damage, source: Rebuilder
    ) -> tuple[HostPlan, dict[ShardTask, tuple[str, Index, Index]]]:
        """Damaged chunks as shards of their own, and where each belongs: tensor, shard, chunk.

        Of a compressed store it is the shards themselves.
        """
        by_tensor: dict[str, list[tuple[Index, Index]]] = {}
        for (name, index), chunks in damage.chunks.items():
            if name in source.map.tensors and (chunks or self._coded):
                whole = [tuple(0 for _ in index)] if self._coded else chunks
                by_tensor.setdefault(name, []).extend((index, chunk) for chunk in whole)
        plans: list[TensorPlan] = []
        places: dict[ShardTask, tuple[str, Index, Index]] = {}
        for name, listed in by_tensor.items():
            tensor, tasks = self._tensors[name], []
            grid = tensor.grid if self._coded else replace(tensor.grid, shard=tensor.grid.chunk)
            per_shard = [s // c for s, c in zip(tensor.grid.shard, grid.shard, strict=True)]
            for index, chunk in listed:
                place = tuple(i * n + c for i, n, c in zip(index, per_shard, chunk, strict=True))
                task = ShardTask(len(plans), place, grid.box_of(place))
                places[task] = (name, index, chunk)
                tasks.append(task)
            spec = TensorSpec(name, tensor.shape, tensor.dtype, tensor.encoding)
            stored = StoredTensor(spec, source.map.tensors[name], tensor.quantisation)
            plans.append(TensorPlan(stored, tensor.spec, grid, tuple(tasks)))
        plan = HostPlan(source.payload, self._manifest.mesh, HostGroup(), tuple(plans))
        return plan, places

    def _put(
        self,
        place: tuple[str, Index, Index],
        parts: PartFiles,
        task: ShardTask,
        damage: _Damage,
        work: Path,
    ) -> None:
        """A chunk is whole: to where it belongs, if it has its digest."""
        name, index, chunk = place
        with parts.descriptor(task) as descriptor:
            data = os.pread(descriptor, self._layout(name).chunk_nbytes, 0)
        parts.path(task).unlink(missing_ok=True)
        parts.forget(task)
        if (name, index) in damage.lost:
            if self._write_chunk(name, index, chunk, data, _beside(work, name, index)):
                damage.chunks[name, index].remove(chunk)
        elif self._write_chunk(name, index, chunk, data, self._root / name / shard_key(index)):
            self._mended.append(f"{name}/{shard_key(index)}, chunk {chunk}")

    def _save_chunks(self, name: str, index: Index, damage: _Damage, work: Path) -> None:
        """The good chunks of a shard that was cut short go into the one that is made anew."""
        path, layout = self._root / name / shard_key(index), self._layout(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # it is missing, or cannot be read
        try:
            size, lacking = os.fstat(descriptor).st_size, []
            for chunk, extent in layout.chunks():
                data = os.pread(descriptor, extent.length, extent.start) if extent.stop <= size else b""
                if not self._write_chunk(name, index, chunk, data, _beside(work, name, index)):
                    lacking.append(chunk)
            damage.chunks[name, index] = lacking
        except OSError as error:
            raise translate(error, f"reading {path}") from error
        finally:
            os.close(descriptor)

    def _write_chunk(self, name: str, index: Index, chunk: Index, data: bytes, target: Path) -> bool:
        """Puts a chunk into a shard's file, if it has its digest."""
        layout = self._layout(name)
        if blake3(data).hexdigest() != _digest_of(self._tensors[name], index, chunk):
            return False  # the manifest is wrong about it, or the map: the fault stays
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.fstat(descriptor).st_size != layout.file_nbytes:
                    os.posix_fallocate(descriptor, 0, layout.file_nbytes)
                os.pwrite(descriptor, data, layout.extent_of(chunk).start)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate(error, f"writing {target}") from error
        return True

    def _finish_lost(self, name: str, index: Index, work: Path) -> None:
        key = f"{name}/{shard_key(index)}"
        made, path = _beside(work, name, index), self._root / key
        self._write_tail(made, self._layout(name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(made, path)
        except OSError as error:
            raise translate(error, f"making {path}") from error
        self._mended.append(key)

    def _write_tail(self, path: Path, layout: ShardLayout) -> None:
        """The sharding index and its checksum, which follow from the layout."""
        index = layout.index_bytes()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                tail = index + google_crc32c.value(index).to_bytes(4, "little")
                os.pwrite(descriptor, tail, layout.data_nbytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate(error, f"writing {path}") from error


class _SmallFiles:
    """Small files of the store, put together from pieces."""

    def __init__(self, listed: dict[str, StoreAsset], source: Rebuilder):
        self._source = source
        self._runs = {path: [run for run in source.runs if run.path == path] for path in listed}
        self._data = {
            path: bytearray(listed[path].nbytes)
            for path, runs in self._runs.items()
            if sum(run.extent.length for run in runs) == listed[path].nbytes
        }
        self._left = {path: self._pieces_of(path) for path in self._data}

    def _pieces_of(self, path: str) -> set[int]:
        payload = self._source.payload
        return {piece for run in self._runs[path] for piece in payload.pieces_of(run.extent)}

    def pieces(self) -> list[int]:
        """All pieces that hold a byte of them."""
        return sorted({piece for pieces in self._left.values() for piece in pieces})

    def take(self, piece: int, data: memoryview) -> None:
        """Takes a piece's bytes that belong here."""
        extent = self._source.payload.extent_of(piece)
        for path, left in self._left.items():
            if piece not in left:
                continue
            left.discard(piece)
            for run in self._runs[path]:
                common = run.extent.intersect(extent)
                if common:
                    start = run.offset + common.start - run.extent.start
                    inside = data[common.start - extent.start : common.stop - extent.start]
                    self._data[path][start : start + common.length] = inside

    def whole(self) -> Iterator[tuple[str, bytearray]]:
        """Those of which every piece has come."""
        return ((path, data) for path, data in self._data.items() if not self._left[path])


def _index_in(path: str, tensor: StoreTensor) -> Index:
    """The shard's index in the path of its file."""
    inside = path.removeprefix(f"{tensor.name}/c").strip("/")
    with contextlib.suppress(ValueError):
        return tuple(map(int, inside.split("/"))) if inside else ()
    return (-1,)


def _is(data: bytes, entry: StoreAsset) -> bool:
    return blake3(data).hexdigest() == entry.digest


def _digest_of(tensor: StoreTensor, index: Index, chunk: Index) -> str:
    ordinal = 0
    for i, s, c in zip(chunk, tensor.grid.shard, tensor.grid.chunk, strict=True):
        ordinal = ordinal * (s // c) + i
    return tensor.shards[index][ordinal]


def _beside(work: Path, name: str, index: Index) -> Path:
    key = blake3(f"{name}\n{index}".encode()).hexdigest()[:24]
    return work / "shards" / key
