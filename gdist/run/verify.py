"""Verifying a store offline: every byte of it against the digests in its manifest.

Nothing is trusted but the manifest, and its seal: shards against the digests of their inner chunks, the
sharding indexes, the Zarr documents that other readers go by, and assets. All faults are collected.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
from blake3 import blake3

from gdist.core.extent import Extent
from gdist.core.layout import ShardLayout, array_document, shard_key
from gdist.core.orbax import COMMIT_MARKER, orbax_documents
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import MANIFEST_NAME, StoreManifest, StoreTensor, tensor_attributes
from gdist.core.view import VIEW
from gdist.core.view_entries import view_entries
from gdist.errors import CorruptError, FilesystemError, GdistError, RequestError
from gdist.events import Event, Observer
from gdist.kvstore import local_path
from gdist.run.view_index import document_faults, small_documents
from gdist.run.view_pieces import ViewTorrent
from gdist.run.view_rest import Rest, in_words, wrong_rest
from gdist.stores import files_of, reader_of
from gdist.stores.buffers import workers_of
from gdist.stores.local import unreadable
from gdist.stores.manifests import Files, Manifests, read_manifests
from gdist.stores.views import ViewReader
from gdist.views.check import index_faults
from gdist.views.references import JSON_NAME, location_in

BLOCK_BYTES = 4 * 2**20  # read and hashed at once: what one worker holds

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong: `path` below the store, the tensor and inner chunk where it is in one, and `what`.

    `piece` is that of the torrent, where only its hash says so.
    """

    path: str
    what: str
    tensor: str = ""
    chunk: Index | None = None
    piece: int | None = None

    def __str__(self) -> str:
        name = f", {self.tensor!r}" if self.tensor and self.tensor not in self.path else ""
        chunk = f", chunk {self.chunk}" if self.chunk is not None else ""
        return f"{self.path}{name}{chunk}: {self.what}"


@dataclass(frozen=True, slots=True)
class ShardVerified(Event):
    """A shard was read: its tensor, its place in the grid, bytes of its chunks, and its number of faults."""

    tensor: str
    index: Index
    nbytes: int
    faults: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read and what is wrong; `nbytes` counts shard data, `absent_hosts` whose part is not here."""

    store: str
    shards: int
    nbytes: int
    assets: int
    faults: tuple[Fault, ...]
    absent_hosts: tuple[int, ...] = ()

    @property
    def ok(self) -> bool:
        """True when everything the manifests here list is here and right."""
        return not self.faults


@dataclass(frozen=True, slots=True)
class _Task:
    """One shard to read."""

    tensor: StoreTensor
    index: Index

    @property
    def path(self) -> str:
        return f"{self.tensor.name}/{shard_key(self.index)}"

    def fault(self, what: str, chunk: Index | None = None) -> Fault:
        return Fault(self.path, what, self.tensor.name, chunk)


_Checker = Callable[[_Task], tuple[int, list[Fault]]]


def verify(
    store: str | os.PathLike[str], *, workers: int | None = None, observe: Observer | None = None
) -> VerifyReport:
    """Reads a store, a directory or a URL, and compares every byte with its manifest.

    `workers` threads read (default: one a core), each holding a few MiB of a local store; `observe` gets a
    `ShardVerified` for each shard, in loading order, on the caller's thread.

    Raises:
        RequestError: when there is no store, or one without digests; there are no workers; or a server gives
            only whole files.
        FilesystemError: when its directory may not be read.
        TransferError: when a server does not answer.
        CorruptError: when its manifest itself is damaged; all other damage is in the report.
    """
    threads = workers_of(workers)
    check_access(store)
    files = files_of(store)
    manifests = read_manifests(files)
    manifest = manifests.joined
    if not manifest.digested:
        raise RequestError(
            f"{files.where} has no digests to be checked by: it was made without reading the payload",
            hint="run gdist view without --trust: it reads every byte",
        )
    documents = _index_faults if manifest.codec == VIEW else _document_faults
    faults = [*documents(files, manifests), *_asset_faults(files, manifest), *_unlisted(manifests)]
    tasks = [_Task(tensor, index) for tensor in manifest.tensors for index in sorted(tensor.shards)]
    nbytes = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="gdist-verify") as pool:
        check = _checker(store, manifests)
        try:
            for task, (size, found) in zip(tasks, pool.map(check, tasks), strict=True):
                nbytes += size
                faults.extend(found)
                if observe:
                    observe(ShardVerified(task.tensor.name, task.index, size, len(found)))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole store
            raise
    root = local_path(store)
    if root is not None and manifest.codec == VIEW:
        faults += _rest_faults(root, manifests, faults, threads)
    return VerifyReport(
        files.where, len(tasks), nbytes, len(manifest.assets), tuple(faults), manifests.absent
    )


def way_out(store: str | os.PathLike[str], faults: Iterable[Fault], mending: str) -> str:
    """What to do about these faults of a store; `mending` is the advice for what its torrent's pieces mend.

    No piece has the bytes of a tensor that was converted: it has to be made again. What is remote is not
    mended in place.
    """
    root = local_path(store)
    if root is None:
        mending = "delete the damaged files, and run the same gdist fetch or gdist reshard again"
    converted = {tensor.name for tensor in read_manifests(files_of(store)).joined.tensors if tensor.stored}
    made = [f.tensor in converted and not f.path.endswith("zarr.json") for f in faults]
    if not any(made):
        return mending
    kept = root is not None and (root / "payload").is_dir()
    what = "the store" if kept else "their damaged shards"
    again = (
        "tensors that were converted (--dtype) cannot be mended: "
        f"delete {what}, and run the same gdist fetch or gdist reshard again"
    )
    return again if all(made) else f"{mending}; {again}"


def check_access(store: str | os.PathLike[str]) -> None:
    """That a local store's directory may be read: what is not seen there must not look like no store.

    Raises:
        FilesystemError: when it may not.
    """
    root = local_path(store)
    try:
        if root is not None and root.is_dir():
            os.scandir(root).close()
            (root / MANIFEST_NAME).exists()
    except PermissionError as error:
        raise FilesystemError(
            f"cannot read {root}: permission denied", hint="check the permissions of the store"
        ) from error


def _checker(store: str | os.PathLike[str], manifests: Manifests) -> _Checker:
    root = local_path(store)
    if root is not None and manifests.joined.codec == VIEW:
        torrent = cache(lambda: _torrent_of(root, manifests))  # read once there is a fault
        return partial(_check_view, ViewReader(root, manifests, verify=True), torrent)
    if root is not None and manifests.joined.codec == "none":
        return partial(_check_local, root, threading.local())
    from gdist.stores.remote import RemoteReader  # TensorStore is imported for remote stores only

    reader = reader_of([store], manifests, verify=True)
    assert isinstance(reader, RemoteReader), store
    return partial(_check_remote, reader)


def _check_view(
    reader: ViewReader, torrent: Callable[[], ViewTorrent | None], task: _Task
) -> tuple[int, list[Fault]]:
    """One chunk of a view: a fault names its file, its place in it, the torrent's pieces and the tensor."""
    tensor, index = task.tensor, task.index
    path, offset = reader.place(tensor, index)
    fault = reader.fault(tensor, index)
    where = f"at byte {offset}"
    if fault and (pieces := reader.pieces(tensor, index)):
        source = torrent()
        known = [piece for piece in pieces if source and source.knows(piece)]
        wrong = [piece for piece in known if source and source.piece(piece) is None] or list(pieces)
        span = f"s {wrong[0]} to {wrong[-1]}" if len(wrong) > 1 else f" {wrong[0]}"
        where += f", piece{span},"
    nbytes = prod(tensor.grid.chunk) * tensor.dtype.itemsize
    if isinstance(fault, CorruptError):
        what = "differs from its digest" if "digest" in fault.message else fault.message
        below = path.relative_to(reader.root).as_posix()
        return nbytes, [Fault(below, f"{where} {what}", tensor.name, index)]
    if fault:
        return nbytes, [task.fault(fault.message)]
    return nbytes, []


def _torrent_of(root: Path, manifests: Manifests) -> ViewTorrent | None:
    """What a view knows of its torrent; None where it knows none, or its .torrent file is not here."""
    if not manifests.joined.source.info_hash:
        return None
    try:
        return ViewTorrent(root, manifests.joined)
    except RequestError:
        return None


def _rest_faults(root: Path, manifests: Manifests, faults: Iterable[Fault], workers: int) -> Iterator[Fault]:
    """Of a view that knows its torrent: pieces that are wrong although all digests in them are right."""
    manifest, source = manifests.joined, _torrent_of(root, manifests)
    if source is None:
        return
    tensors = {tensor.name: tensor for tensor in manifest.tensors}
    assets = {manifest.asset_key(asset) for asset in manifest.assets}
    reader, known = ViewReader(root, manifests, verify=False), set[int]()
    for fault in faults:
        if fault.chunk is not None:
            known.update(reader.pieces(tensors[fault.tensor], fault.chunk))
        elif fault.path in assets and (extent := source.extent_of_file(fault.path)):
            known.update(source.payload.pieces_of(extent))
    rest = Rest(source)
    for piece in wrong_rest(rest, source, known, workers):
        path, what = in_words(rest.gaps(piece), piece, source)
        yield Fault(path, what, piece=piece)


def check_shard(root: Path, tensor: StoreTensor, index: Index) -> tuple[Fault, ...]:
    """What is wrong with an uncompressed shard of a store in a directory."""
    _, faults = _check_local(root, threading.local(), _Task(tensor, index))
    return tuple(faults)


def _check_local(root: Path, worker: threading.local, task: _Task) -> tuple[int, list[Fault]]:
    layout = ShardLayout(task.tensor.grid, task.tensor.dtype.itemsize)
    if not hasattr(worker, "block"):
        worker.block = bytearray(BLOCK_BYTES)
    try:
        descriptor = os.open(root / task.path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return 0, [task.fault("is missing")]
    except PermissionError as error:  # nothing is known to be damaged, and nothing to be mended
        raise unreadable(root / task.path, error) from error
    except OSError as error:
        return 0, [task.fault(f"cannot be read: {error.strerror}")]
    try:
        size = os.fstat(descriptor).st_size
        if size != layout.file_nbytes:
            return 0, [task.fault(f"has {size} bytes, not {layout.file_nbytes}")]
        return layout.data_nbytes, list(_shard_faults(descriptor, layout, task, memoryview(worker.block)))
    except OSError as error:
        return 0, [task.fault(f"cannot be read: {error.strerror}")]
    finally:
        os.close(descriptor)


def _shard_faults(descriptor: int, layout: ShardLayout, task: _Task, block: memoryview) -> Iterator[Fault]:
    digests = task.tensor.shards[task.index]
    for (chunk, extent), expected in zip(layout.chunks(), digests, strict=True):
        digest = blake3()
        for data in _blocks(descriptor, extent, block):
            digest.update(data)
        if digest.hexdigest() != expected:
            yield task.fault("differs from its digest", chunk)
    index = layout.index_bytes()
    tail = os.pread(descriptor, layout.index_nbytes, layout.data_nbytes)
    if tail[: len(index)] != index:
        yield task.fault("has another sharding index than its layout")
    elif tail[len(index) :] != google_crc32c.value(index).to_bytes(4, "little"):
        yield task.fault("has a wrong checksum over its sharding index")


def _blocks(descriptor: int, extent: Extent, block: memoryview) -> Iterator[memoryview]:
    position = extent.start
    while position < extent.stop:
        count = os.preadv(descriptor, [block[: extent.stop - position]], position)
        if not count:
            return  # cut meanwhile: the digest will differ
        yield block[:count]
        position += count


def _check_remote(reader: Any, task: _Task) -> tuple[int, list[Fault]]:  # Any: its home is not imported
    tensor, grid = task.tensor, task.tensor.grid
    origin = grid.box_of(task.index).start
    nbytes, faults = 0, []
    try:
        for chunk, data, error in reader.chunks(tensor, grid.box_of(task.index)):
            nbytes += data.nbytes
            if error and not isinstance(error, CorruptError):
                raise error
            if error:
                index = tuple(
                    a // c for a, c in zip(chunk.relative_to(origin).start, grid.chunk, strict=True)
                )
                faults.append(task.fault(error.message, index))
    except CorruptError as error:  # the array cannot be opened; a network that fails is no fault of the store
        faults.append(task.fault(error.message))
    return nbytes, faults


def _unlisted(manifests: Manifests) -> Iterator[Fault]:
    """Shards that a host whose part is here should have, and does not list."""
    for tensor in manifests.joined.tensors:
        if 0 in tensor.grid.shape:
            continue
        for index in itertools.product(*map(range, tensor.grid.shards)):
            if index in tensor.shards:
                continue
            error: GdistError = manifests.unlisted(tensor, index)
            if isinstance(error, CorruptError):
                yield _Task(tensor, index).fault(error.message)


def _index_faults(files: Files, manifests: Manifests) -> Iterator[Fault]:
    """An index, references or Orbax documents that disagree with the manifest: other readers go by them."""
    manifest = manifests.joined
    found = index_faults(files.read, view_entries(manifest))
    location = location_in(files.read(JSON_NAME)) or files.where  # a view that was moved may say where it was
    beside = document_faults(files.read, small_documents(manifest, location))
    return (Fault(path, what) for path, what in itertools.chain(found, beside))


def _document_faults(files: Files, manifests: Manifests) -> Iterator[Fault]:
    """Zarr and Orbax documents that disagree with the manifest: other readers go by them."""
    yield from _orbax_faults(files, manifests)
    manifest = manifests.joined
    root = _document(files, "zarr.json")
    if isinstance(root, str):
        yield Fault("zarr.json", root)
    inline = None if isinstance(root, str) else root.get("consolidated_metadata")
    consolidated = inline.get("metadata") if isinstance(inline, dict) else None
    for tensor in manifest.tensors:
        path = f"{tensor.name}/zarr.json"
        found = _document(files, path)
        if isinstance(found, str):
            yield Fault(path, found, tensor.name)
        else:
            for what in _disagreements(tensor, found, manifest.codec):
                yield Fault(path, what, tensor.name)
        if (
            isinstance(consolidated, dict)
            and not isinstance(found, str)
            and consolidated.get(tensor.name) != found
        ):
            yield Fault("zarr.json", f"has another document for {tensor.name!r} than {path}", tensor.name)


def _orbax_faults(files: Files, manifests: Manifests) -> Iterator[Fault]:
    documents = orbax_documents(tensor.name for tensor in manifests.joined.tensors)
    if manifests.count > 1 and files.read(COMMIT_MARKER) is None:
        del documents[COMMIT_MARKER]  # it comes from the last host, and only where all parts lie together
    return (Fault(path, what) for path, what in document_faults(files.read, documents.items()))


def _disagreements(tensor: StoreTensor, found: dict[str, object], codec: str) -> Iterable[str]:
    attributes = tensor_attributes(tensor.spec, tensor.quantisation, tensor.encoding)
    document = array_document(tensor.grid, tensor.dtype, attributes, codec)
    expected = json.loads(json.dumps(document))
    for key in ("node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"):
        if found.get(key) != expected[key]:
            yield f"says {key} {json.dumps(found.get(key))}, the manifest {json.dumps(expected[key])}"


def _document(files: Files, path: str) -> dict[str, object] | str:
    """A JSON document, or, as a string, why there is none."""
    data = files.read(path)
    if data is None:
        return "is missing"
    try:
        document = json.loads(data)
    except ValueError:
        return "is not JSON"
    return document if isinstance(document, dict) else "is not a JSON object"


def _asset_faults(files: Files, manifest: StoreManifest) -> Iterator[Fault]:
    named = [(manifest.asset_key(asset), asset) for asset in manifest.assets]
    named += [(f"{DIRECTORY}/{file.path}", file) for file in manifest.source_files]
    for path, asset in named:
        data = files.read(path)
        if data is None:
            yield Fault(path, "is missing")
        elif len(data) != asset.nbytes:
            yield Fault(path, f"has {len(data)} bytes, not {asset.nbytes}")
        elif blake3(data).hexdigest() != asset.digest:
            yield Fault(path, "differs from its digest")
