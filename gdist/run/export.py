"""Getting a checkpoint's files back out of a store: the torrent's own, or standard ones.

`payload` gives the original files byte for byte, each piece checked by the torrent's hash. `safetensors`
writes what the tensors are, in one file or several with the index that Hugging Face's tools read. Both
stream: memory is a few windows, whatever the store's size.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.profile import INDEX_SUFFIX
from gdist.core.rename import RenameTable
from gdist.core.store_manifest import StoreTensor
from gdist.core.view import VIEW
from gdist.errors import CorruptError, InterruptedRun, RequestError
from gdist.events import Observer
from gdist.formats.safetensors import ENCODINGS
from gdist.kvstore import local_path
from gdist.rename_files import RenameLike, read_rename
from gdist.run.output_files import OutputFiles, check_empty_directory
from gdist.run.rebuild import Rebuilder, whole_boxes
from gdist.run.safetensors_files import (
    FILE_BYTES,
    FORMAT,
    check_types,
    cut_files,
    file_name,
    header_of,
    index_of,
    parse_file_bytes,
)
from gdist.run.view_pieces import ViewTorrent
from gdist.stores import Address, files_of
from gdist.stores import open as open_store
from gdist.stores.buffers import aligned_empty
from gdist.stores.manifests import read_manifests
from gdist.stores.renamed import renamed_store
from gdist.stores.store import Store

KINDS = ("payload", "safetensors")
WINDOW_BYTES = 32 * 2**20  # read, checked and written at once; at least one piece
HASHERS = 4


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written: the directory, its files by path, their bytes."""

    path: str
    files: tuple[str, ...]
    nbytes: int


def export(
    store: Address | Sequence[Address],
    dest: Address,
    *,
    to: str = "payload",
    file_bytes: int | str = FILE_BYTES,
    rename: RenameLike | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> ExportResult:
    """Writes the files of a store's torrent, or safetensors files of its tensors, below the directory `dest`.

    `dest` must be empty or not exist; an export that ends with an error leaves nothing there. `file_bytes`,
    a number or a text like `5GB`, bounds a safetensors file, but for one tensor. `rename` is a renaming
    table, its name or its file: safetensors files then hold what it makes of the tensors.

    Raises:
        RequestError: when `dest` is not empty, the store does not hold what is asked for, or the table does
            not fit its tensors; names it.
        UnsupportedError: for types that safetensors has no name for.
        CorruptError: naming the pieces, or shards, that are damaged.
        SpaceError: when the disk cannot hold it.
    """
    if to not in KINDS:
        raise RequestError(f"export to {to!r} is none of {', '.join(KINDS)}")
    if rename is not None and to != "safetensors":
        raise RequestError(
            "the torrent's own files have the names that they have",
            hint="--rename goes with --to safetensors",
        )
    table = None if rename is None else read_rename(rename)
    most = parse_file_bytes(file_bytes)
    target = Path(os.fspath(dest))
    check_empty_directory(target)
    tell: Observer = observe or (lambda event: None)

    def check_stop() -> None:
        if stop is not None and stop.is_set():
            raise InterruptedRun(
                "the export was asked to stop", hint="nothing was kept; run the same command again"
            )

    with OutputFiles(target, tell, check_stop) as out:
        if to == "payload":
            _export_payload(store, out)
        else:
            _export_safetensors(store, out, most, table)
    return ExportResult(str(target), tuple(out.files), out.nbytes)


@contextlib.contextmanager
def _opened(store: Address | Sequence[Address]) -> Iterator[Rebuilder | ViewTorrent]:
    """What gives the payload: a view's own files, or the shards.

    Raises:
        RequestError: the store does not know its torrent.
    """
    places: Sequence[Address] = (store,) if isinstance(store, str | os.PathLike) else tuple(store)
    manifest = read_manifests(*map(files_of, places)).joined
    root = local_path(places[0]) if len(places) == 1 else None
    if manifest.codec == VIEW and root is not None:
        yield ViewTorrent(root, manifest)
        return
    with contextlib.closing(Rebuilder(places)) as source:
        yield source


def _export_payload(store: Address | Sequence[Address], out: OutputFiles) -> None:
    with (
        _opened(store) as source,
        ThreadPoolExecutor(HASHERS, "gdist-hash") as pool,
        ThreadPoolExecutor(1, "gdist-rebuild") as ahead,
    ):
        source.check_whole("its files cannot be made again")
        payload = source.payload
        out.expect(sum(file.length for file in payload.files))
        count = max(WINDOW_BYTES // payload.piece_length, 1)
        firsts = range(0, payload.pieces, count)
        buffers = [memoryview(bytearray(count * payload.piece_length)) for _ in range(2)]

        def rebuild(number: int) -> tuple[Extent, memoryview]:
            pieces = range(firsts[number], min(firsts[number] + count, payload.pieces))
            return _window(source, pieces, buffers[number % 2], pool)

        writer = _FileWriter(source, out)
        waiting = ahead.submit(rebuild, 0) if firsts else None
        for number in range(len(firsts)):
            assert waiting is not None, "a window was begun"
            window, data = waiting.result()
            if number + 1 < len(firsts):
                waiting = ahead.submit(rebuild, number + 1)
            writer.take(window, data)
        writer.finish()


def _window(
    source: Rebuilder | ViewTorrent, pieces: range, buffer: memoryview, pool: ThreadPoolExecutor
) -> tuple[Extent, memoryview]:
    """Some pieces, rebuilt or read, and checked.

    Raises:
        CorruptError: naming those that differ from the torrent.
    """
    extents = [source.payload.extent_of(piece) for piece in pieces]
    window = Extent(extents[0].start, extents[-1].stop - extents[0].start)
    view = buffer[: window.length]
    if isinstance(source, Rebuilder):
        faults, how = source.read(window, view), "rebuilt from"
    else:
        source.fill(window, view)
        faults, how = [], "of"  # what a view cannot read has not its hash
    views = [view[extent.start - window.start : extent.stop - window.start] for extent in extents]
    right = list(pool.map(source.matches, pieces, views))
    wrong = [piece for piece, ok in zip(pieces, right, strict=True) if not ok]
    if wrong:
        why = f": {faults[0][1].message}" if faults else ""
        verb = "differs" if len(wrong) == 1 else "differ"
        raise CorruptError(
            f"{source.describe(wrong)} {how} {source.where} {verb} from the torrent{why}",
            hint="gdist verify --repair STORE fetches what is damaged",
            pieces=tuple(wrong),
        )
    return window, view


class _FileWriter:
    """Cuts the payload, in order, into the torrent's files."""

    def __init__(self, source: Rebuilder | ViewTorrent, out: OutputFiles):
        self._payload, self._paths, self._out = source.payload, source.metadata.paths, out
        self._next = 0
        self._open = False

    def take(self, window: Extent, data: memoryview) -> None:
        """The next extent of the payload."""
        for segment in self._payload.segments(window):
            self._begin_until(segment.file)
            file = self._payload.files[segment.file]
            start = file.offset + segment.extent.start - window.start
            self._out.write(data[start : start + segment.extent.length])
            if segment.extent.stop == file.length:
                self._out.end()
                self._open = False

    def _begin_until(self, number: int) -> None:
        """Makes the files up to this one; those before it that are empty are whole at once."""
        while self._next <= number:
            self._out.begin(self._paths[self._next])
            self._open = True
            if not self._payload.files[self._next].length:
                self._out.end()
                self._open = False
            self._next += 1

    def finish(self) -> None:
        """Makes empty files at the end."""
        self._begin_until(len(self._paths) - 1)
        assert not self._open, "the payload ended inside a file"


def _export_safetensors(
    store: Address | Sequence[Address], out: OutputFiles, file_bytes: int, table: RenameTable | None
) -> None:
    places: Sequence[Address] = (store,) if isinstance(store, str | os.PathLike) else tuple(store)
    with open_store(places) as whole:
        opened = renamed_store(whole, table) if table else whole
        tensors = opened.manifest.tensors
        check_types(tensors, "export --to payload, or fetch with --dtype")
        opened.check_listed({name: [Box.whole(array.shape)] for name, array in opened.items()})
        files = cut_files(tensors, file_bytes)
        assets = [a for a in opened.manifest.assets if not a.path.endswith(INDEX_SUFFIX)]
        out.expect(opened.manifest.nbytes + sum(asset.nbytes for asset in assets))
        names = [file_name(number, len(files)) for number in range(len(files))]
        taken = {asset.path for asset in assets}
        if taken & {*names, "model" + INDEX_SUFFIX}:
            raise RequestError(f"the store has an asset {sorted(taken & {*names})[0]!r} of its own")
        for name, chosen in zip(names, files, strict=True):
            out.begin(name)
            out.write(header_of(chosen, _metadata(chosen)))
            for tensor in chosen:
                _write_tensor(opened, tensor, out)
            out.end()
        if len(files) > 1:
            where = {tensor.name: n for n, chosen in zip(names, files, strict=True) for tensor in chosen}
            out.begin("model" + INDEX_SUFFIX)
            out.write(index_of(where, opened.manifest.nbytes))
            out.end()
        for asset in assets:
            _write_whole(out, asset.path, _asset(places, opened.manifest.asset_key(asset), asset.digest))


def _metadata(tensors: Sequence[StoreTensor]) -> dict[str, str]:
    """What the header says beside the tensors: which of them are encoded, in JSON, by name."""
    encodings = {tensor.name: tensor.encoding for tensor in tensors if tensor.encoding}
    return {**FORMAT, **({ENCODINGS: json.dumps(encodings)} if encodings else {})}


def _asset(places: Sequence[Address], path: str, digest: str) -> bytes:
    for files in map(files_of, places):
        data = files.read(path)
        if data is not None and digest in ("", blake3(data).hexdigest()):
            return data
    raise CorruptError(
        f"{path} is missing or differs from its digest", hint="gdist verify --repair STORE fetches it"
    )


def _write_whole(out: OutputFiles, path: str, data: bytes) -> None:
    out.begin(path)
    out.write(data)
    out.end()


def _write_tensor(store: Store, tensor: StoreTensor, out: OutputFiles) -> None:
    array = store[tensor.name]
    for box in whole_boxes(tensor.shape, tensor.dtype.itemsize, WINDOW_BYTES):
        read = array.read(box, aligned_empty(box.shape, array.dtype))
        out.write(read.reshape(-1).view(np.uint8).data)
