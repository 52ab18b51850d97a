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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from blake3 import blake3

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.profile import INDEX_SUFFIX
from gdist.core.store_manifest import StoreTensor
from gdist.errors import CorruptError, InterruptedRun, RequestError, UnsupportedError, translate
from gdist.events import Event, Observer
from gdist.run.preflight import DOCUMENT_BYTES, check_free
from gdist.run.rebuild import Rebuilder, whole_boxes
from gdist.stores import Address, files_of
from gdist.stores import open as open_store
from gdist.stores.buffers import aligned_empty
from gdist.stores.store import Store

KINDS = ("payload", "safetensors")
WINDOW_BYTES = 32 * 2**20  # read, checked and written at once; at least one piece
FILE_BYTES = 5 * 10**9  # of a safetensors file: what Hugging Face's own tools choose
MAX_HEADER_BYTES = 100 * 10**6  # what the safetensors library reads
HASHERS = 4


@dataclass(frozen=True, slots=True)
class Exported(Event):
    """So many bytes of so many have been written."""

    nbytes: int
    total: int


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
    file_bytes: int = FILE_BYTES,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> ExportResult:
    """Writes the files of a store's torrent, or safetensors files of its tensors, below the directory `dest`.

    `dest` must be empty or not exist; files get their names when they are whole. `file_bytes` bounds a
    safetensors file, but for one tensor.

    Raises:
        RequestError: when `dest` is not empty, or the store does not hold what is asked for; names it.
        UnsupportedError: for types that safetensors has no name for.
        CorruptError: naming the pieces, or shards, that are damaged.
        SpaceError: when the disk cannot hold it.
    """
    if to not in KINDS:
        raise RequestError(f"export to {to!r} is none of {', '.join(KINDS)}")
    target = Path(os.fspath(dest))
    _check_empty(target)
    tell: Observer = observe or (lambda event: None)

    def check_stop() -> None:
        if stop is not None and stop.is_set():
            raise InterruptedRun("the export was asked to stop", hint="files that are whole are complete")

    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translate(error, f"making {target}") from error
    out = _Output(target, tell, check_stop)
    with contextlib.closing(out):
        if to == "payload":
            _export_payload(store, out)
        else:
            _export_safetensors(store, out, file_bytes)
    return ExportResult(str(target), tuple(out.files), out.nbytes)


def _check_empty(target: Path) -> None:
    try:
        there = sorted(os.listdir(target)) if target.exists() else []
    except OSError as error:
        raise translate(error, f"looking into {target}") from error
    if there:
        raise RequestError(
            f"{str(target)!r} is not empty ({', '.join(there[:5])})",
            hint="give a directory that is empty or does not exist",
        )


class _Output:
    """Files below a directory, written one after the other; what is not whole is removed at the end."""

    def __init__(self, root: Path, observe: Observer, check_stop: Callable[[], None]):
        self._root, self._observe, self._check_stop = root, observe, check_stop
        self._file: BinaryIO | None = None
        self._path = root
        self.files: list[str] = []
        self.nbytes = self.total = 0

    def expect(self, total: int) -> None:
        """Says how much is to come, before any of it is written.

        Raises:
            SpaceError: when the disk cannot hold it.
        """
        self.total = total
        check_free(self._root, total + DOCUMENT_BYTES, "export")

    def begin(self, path: str) -> None:
        """Starts a file."""
        self._path = self._root / path
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "xb")  # noqa: SIM115  closed by end() or close()
        except OSError as error:
            raise translate(error, f"making {self._path}") from error
        self.files.append(path)

    @property
    def _part(self) -> Path:
        # Beside the file, under a name of its own: a name may have all the bytes that a file system allows.
        return self._path.parent / f".gdist-{len(self.files)}.part"

    def write(self, data: bytes | memoryview) -> None:
        """Goes on with it."""
        assert self._file is not None, "no file was begun"
        self._check_stop()
        try:
            self._file.write(data)
        except OSError as error:
            raise translate(error, f"writing {self._path}") from error
        self.nbytes += len(data)
        self._observe(Exported(self.nbytes, max(self.total, self.nbytes)))

    def end(self) -> None:
        """The file is whole."""
        assert self._file is not None, "no file was begun"
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._file.name, self._path)
        except OSError as error:
            raise translate(error, f"writing {self._path}") from error
        self._file = None

    def close(self) -> None:
        """Removes a file that was not ended."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
                os.unlink(self._file.name)
            self.files.pop()


def _export_payload(store: Address | Sequence[Address], out: _Output) -> None:
    source = Rebuilder(store)
    with (
        contextlib.closing(source),
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
    source: Rebuilder, pieces: range, buffer: memoryview, pool: ThreadPoolExecutor
) -> tuple[Extent, memoryview]:
    """Some pieces, rebuilt and checked.

    Raises:
        CorruptError: naming those that differ from the torrent.
    """
    extents = [source.payload.extent_of(piece) for piece in pieces]
    window = Extent(extents[0].start, extents[-1].stop - extents[0].start)
    view = buffer[: window.length]
    faults = source.read(window, view)
    views = [view[extent.start - window.start : extent.stop - window.start] for extent in extents]
    right = list(pool.map(source.matches, pieces, views))
    wrong = [piece for piece, ok in zip(pieces, right, strict=True) if not ok]
    if wrong:
        why = f": {faults[0][1].message}" if faults else ""
        raise CorruptError(
            f"{source.describe(wrong)} rebuilt from {source.where} differ from the torrent{why}",
            hint="gdist verify --repair STORE fetches what is damaged",
            pieces=tuple(wrong),
        )
    return window, view


class _FileWriter:
    """Cuts the payload, in order, into the torrent's files."""

    def __init__(self, source: Rebuilder, out: _Output):
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


def _export_safetensors(store: Address | Sequence[Address], out: _Output, file_bytes: int) -> None:
    places: Sequence[Address] = (store,) if isinstance(store, str | os.PathLike) else tuple(store)
    with open_store(places) as opened:
        tensors = opened.manifest.tensors
        _check_types(tensors)
        opened.check_listed({name: [Box.whole(array.shape)] for name, array in opened.items()})
        files = _cut(tensors, file_bytes)
        assets = [a for a in opened.manifest.assets if not a.path.endswith(INDEX_SUFFIX)]
        out.expect(opened.manifest.nbytes + sum(asset.nbytes for asset in assets))
        names = [_file_name(number, len(files)) for number in range(len(files))]
        taken = {asset.path for asset in assets}
        if taken & {*names, "model" + INDEX_SUFFIX}:
            raise RequestError(f"the store has an asset {sorted(taken & {*names})[0]!r} of its own")
        for name, chosen in zip(names, files, strict=True):
            out.begin(name)
            out.write(_header(chosen))
            for tensor in chosen:
                _write_tensor(opened, tensor, out)
            out.end()
        if len(files) > 1:
            where = {tensor.name: n for n, chosen in zip(names, files, strict=True) for tensor in chosen}
            index = {
                "metadata": {"total_size": opened.manifest.nbytes},
                "weight_map": dict(sorted(where.items())),
            }
            _write_whole(out, "model" + INDEX_SUFFIX, json.dumps(index, indent=2).encode() + b"\n")
        for asset in assets:
            _write_whole(out, asset.path, _asset(places, opened.manifest.asset_key(asset), asset.digest))


def _asset(places: Sequence[Address], path: str, digest: str) -> bytes:
    for files in map(files_of, places):
        data = files.read(path)
        if data is not None and digest in ("", blake3(data).hexdigest()):
            return data
    raise CorruptError(
        f"{path} is missing or differs from its digest", hint="gdist verify --repair STORE fetches it"
    )


def _write_whole(out: _Output, path: str, data: bytes) -> None:
    out.begin(path)
    out.write(data)
    out.end()


def _check_types(tensors: Sequence[StoreTensor]) -> None:
    unknown = [t for t in tensors if t.dtype.safetensors is None]
    if unknown:
        named = ", ".join(f"{t.name!r} ({t.dtype.name})" for t in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise UnsupportedError(
            f"safetensors has no name for the type of {named}{more}",
            hint="export --to payload, or fetch with --dtype",
        )


def _cut(tensors: Sequence[StoreTensor], file_bytes: int) -> list[list[StoreTensor]]:
    """Tensors for each file, in loading order; a file has at least one."""
    files: list[list[StoreTensor]] = [[]]
    held = 0
    for tensor in tensors:
        nbytes = _nbytes(tensor)
        if files[-1] and held + nbytes > file_bytes:
            files.append([])
            held = 0
        files[-1].append(tensor)
        held += nbytes
    return files


def _nbytes(tensor: StoreTensor) -> int:
    return int(np.prod(tensor.shape, dtype=object)) * tensor.dtype.itemsize


def _file_name(number: int, count: int) -> str:
    if count == 1:
        return "model.safetensors"
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def _header(tensors: Sequence[StoreTensor]) -> bytes:
    """The length and the JSON of a safetensors file, padded so that data starts at a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + _nbytes(tensor)
        entries[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UnsupportedError(
            f"a header of {len(text)} bytes is more than readers of safetensors take",
            hint="give a smaller --file-size",
        )
    return len(text).to_bytes(8, "little") + text


def _write_tensor(store: Store, tensor: StoreTensor, out: _Output) -> None:
    array = store[tensor.name]
    for box in whole_boxes(tensor.shape, tensor.dtype.itemsize, WINDOW_BYTES):
        read = array.read(box, aligned_empty(box.shape, array.dtype))
        out.write(read.reshape(-1).view(np.uint8).data)
