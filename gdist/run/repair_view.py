"""Mending a view: the pieces of damaged chunks are hashed in place, and the wrong ones fetched again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from gdist.core.extent import Extent
from gdist.core.source_map import DIRECTORY
from gdist.core.store_manifest import StoreManifest
from gdist.core.view_entries import view_entries
from gdist.durable import size_of, sync_file, write_atomically
from gdist.errors import translate
from gdist.events import Observer
from gdist.run.repair_sources import Fetcher, RepairReport, open_copy
from gdist.run.verify import Fault, VerifyReport, verify
from gdist.run.view_index import small_documents, write_index
from gdist.run.view_pieces import ViewTorrent
from gdist.sources.torrent import TorrentOptions
from gdist.stores import Address, files_of
from gdist.stores.manifests import read_manifests
from gdist.stores.views import ViewReader


class ViewRepair:
    """One repair of a view, whose index follows from the manifest and whose bytes are the torrent's."""

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
        self._fetcher = Fetcher(options, swarm, observe, check_stop)

    def run(self, copies: Sequence[Address], work: Path) -> RepairReport:
        """Mends what it can; what was wrong is verified again."""
        faults = self._report.faults
        damaged = {fault.path for fault in faults if self._is_index(fault)}
        location = str(self._root.absolute())
        for path, data in small_documents(self._manifest, location) if damaged else ():
            if path in damaged:
                write_atomically(self._root / path, data)
                damaged.discard(path)
        if damaged:  # the index itself
            write_index(self._root, view_entries(self._manifest))
        if any(not self._is_index(fault) for fault in faults):
            self._mend(faults, copies, work)
        again = verify(self._root)
        there = set(map(str, again.faults))
        mended = [str(fault).partition(":")[0] for fault in faults if str(fault) not in there]
        return RepairReport(
            self._report.store,
            self._report,
            tuple(dict.fromkeys(mended)),
            self._fetcher.table(),
            self._fetcher.nbytes,
            again.faults,
        )

    def _is_index(self, fault: Fault) -> bool:
        """True for what is no byte of the payload."""
        small = {self._manifest.asset_key(asset) for asset in self._manifest.assets}
        of_payload = fault.chunk is not None or fault.piece is not None or fault.path in small
        return not of_payload and not fault.path.startswith(f"{DIRECTORY}/")

    def _mend(self, faults: Sequence[Fault], copies: Sequence[Address], work: Path) -> None:
        source = ViewTorrent(self._root, self._manifest)
        touched = _set_lengths(source, {self._root / fault.path for fault in faults})
        buffer = memoryview(bytearray(source.payload.piece_length))
        pieces = self._pieces(faults, source, whole=touched)
        bad = [piece for piece in pieces if source.piece(piece, buffer) is None]
        found = self._fetcher.bring(
            bad,
            [open_copy(copy, source.metadata) for copy in copies],
            source.payload.extent_of,
            source.matches,
            source.torrent,
            self._manifest.source.magnet,
            work / "swarm",
        )
        for piece, data in found:
            touched |= _write(source, piece, data)
        for path in touched:
            sync_file(path)

    def _pieces(self, faults: Sequence[Fault], source: ViewTorrent, whole: Collection[Path]) -> list[int]:
        """Pieces that hold a byte of what is damaged; all of the files in `whole`."""
        reader = ViewReader(self._root, read_manifests(files_of(self._root)), verify=True)
        tensors = {tensor.name: tensor for tensor in self._manifest.tensors}
        small = {self._manifest.asset_key(asset) for asset in self._manifest.assets}
        pieces: set[int] = set()
        for fault in faults:
            if fault.piece is not None:
                pieces.add(fault.piece)
                continue
            if fault.chunk is not None:
                tensor = tensors[fault.tensor]
                path, offset = reader.place(tensor, fault.chunk)
                key = os.path.relpath(path, self._root)
                file = source.extent_of_file(key)
                if file is None:
                    continue
                nbytes = tensor.dtype.itemsize
                for length in tensor.grid.chunk:
                    nbytes *= length
                intact = size_of(path) == file.length and path not in whole
                extent = Extent(file.start + offset, nbytes) if intact else file
            elif fault.path in small:
                found = source.extent_of_file(fault.path)
                if found is None:
                    continue
                extent = found
            else:
                continue
            pieces.update(source.payload.pieces_of(extent))
        reader.close()
        return sorted(pieces)


def _set_lengths(source: ViewTorrent, damaged: Collection[Path]) -> set[Path]:
    """Cuts damaged files that are too long, whose own bytes may be right, makes empty ones; gives them."""
    changed = set[Path]()
    for path, file in zip(source.paths, source.payload.files, strict=True):
        size = size_of(path)
        if path not in damaged or (size <= file.length and (file.length or size == 0)):
            continue
        with _sized(path, file.length):
            changed.add(path)
    return changed


def _write(source: ViewTorrent, piece: int, data: memoryview) -> set[Path]:
    """Puts a piece's bytes where they belong: nothing else of the files changes."""
    extent, written = source.payload.extent_of(piece), set()
    for segment in source.payload.segments(extent):
        file, path = source.payload.files[segment.file], source.paths[segment.file]
        start = file.offset + segment.extent.start - extent.start
        with _sized(path, file.length) as descriptor:
            os.pwrite(descriptor, data[start : start + segment.extent.length], segment.extent.start)
        written.add(path)
    return written


@contextlib.contextmanager
def _sized(path: Path, length: int) -> Iterator[int]:
    """A file of the payload, open for writing and of its length; made where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size != length:
                os.ftruncate(descriptor, length)
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translate(error, f"writing {path}") from error
