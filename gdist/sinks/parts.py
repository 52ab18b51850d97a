"""Unfinished shards: files of their final size, into which pieces are written in place.

A part is preallocated, so a full disk shows before a byte is written, and a memory map of it is safe. Runs
of bytes go in by `pwrite`; a box that falls into very many short runs goes in through a memory map, since a
system call a run costs ten times the copy. The sharding index comes last. An inner chunk that is placed whole
is digested then, while it is in the processor's caches; others are read again when the part is sealed.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from gdist.core.box import Box, runs_of_box
from gdist.core.extent import Extent
from gdist.core.layout import ShardLayout
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan, ShardTask
from gdist.core.tensor import Order
from gdist.errors import FilesystemError, GdistError, translate

OPEN_FILES = 256  # kept open between writes; well below the usual limit of 1024 for a process
SHORT_RUN = 32 * 1024  # bytes; below it a system call costs more than copying through a map
FEW_RUNS = 8

Bytes = NDArray[np.uint8]
Regions = Callable[[ShardTask], Sequence[tuple[int, ShardLayout]]]


@dataclass(slots=True)
class _OpenFile:
    descriptor: int
    users: int = 0
    forgotten: bool = False


class PartFiles:
    """The unfinished shards of a plan, below one directory; thread-safe.

    `regions` says where in its file a shard's factors lie, and how, for tensors that are made of others.
    """

    def __init__(self, directory: Path, plan: HostPlan, regions: Regions | None = None):
        self._directory = directory
        self._layouts = [tensor.layout() for tensor in plan.tensors]
        self._digested = regions is None  # what others are made of is never sealed
        self._regions = regions or (lambda task: ((0, self._layouts[task.tensor]),))
        self._lock = threading.Lock()
        self._open: OrderedDict[ShardTask, _OpenFile] = OrderedDict()  # least recently used first
        self._dirty: set[ShardTask] = set()
        self._made: set[ShardTask] = set()  # parts that hold bytes: found here, or made by this run
        self._digests: dict[ShardTask, dict[int, str]] = {}  # by offset, of chunks that were placed whole
        self._sync_error: GdistError | None = None

    def layout(self, task: ShardTask) -> ShardLayout:
        """Where bytes lie in the shard's file."""
        return self._layouts[task.tensor]

    def _nbytes(self, task: ShardTask) -> int:
        start, layout = self._regions(task)[-1]
        return start + layout.file_nbytes

    def path(self, task: ShardTask) -> Path:
        """The part's file."""
        return self._directory / ("-".join(map(str, (task.tensor, *task.index))) + ".part")

    def present(self, tasks: Iterable[ShardTask]) -> set[ShardTask]:
        """Those of the shards that have a part of the right size here."""
        try:
            with os.scandir(self._directory) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise translate(error, f"reading {self._directory}") from error
        found = {task for task in tasks if sizes.get(self.path(task).name) == self._nbytes(task)}
        with self._lock:
            self._made |= found
        return found

    @contextlib.contextmanager
    def descriptor(self, task: ShardTask, *, create: bool = True) -> Iterator[int]:
        """The part's open file, made and preallocated at first use; -1 when not there and not to be made.

        Raises:
            SpaceError: when there is no room for all of it.
            FilesystemError: when a part that holds bytes is gone; a new one would hold zeros for them.
        """
        with self._lock:
            entry = self._open.get(task)
            if entry is None:
                self._evict()
                entry = _OpenFile(self._make(task) if create else self._existing(task))
                if entry.descriptor >= 0:
                    self._open[task] = entry
            else:
                self._open.move_to_end(task)
            entry.users += 1
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.users -= 1
                self._close(entry)

    def _close(self, entry: _OpenFile) -> None:
        if entry.forgotten and not entry.users and entry.descriptor >= 0:
            os.close(entry.descriptor)
            entry.descriptor = -1

    def _evict(self) -> None:
        while len(self._open) >= OPEN_FILES:
            idle = next((task for task, entry in self._open.items() if not entry.users), None)
            if idle is None:
                return
            self._forget(idle)

    def _forget(self, task: ShardTask) -> None:
        entry = self._open.pop(task, None)
        if entry:
            entry.forgotten = True  # the last user closes it
            self._close(entry)

    def _existing(self, task: ShardTask) -> int:
        try:
            return os.open(self.path(task), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1  # committed meanwhile
        except OSError as error:
            raise translate(error, f"opening {self.path(task)}") from error

    def _make(self, task: ShardTask) -> int:
        if task not in self._made:
            descriptor = self._create(task)
            self._made.add(task)
            return descriptor
        descriptor = self._existing(task)
        if descriptor < 0:
            raise FilesystemError(
                f"{self.path(task)} vanished while it was written",
                hint="leave the store's directory alone; the same command fetches that shard anew",
                path=str(self.path(task)),
            )
        return descriptor

    def _create(self, task: ShardTask) -> int:
        path, size = self.path(task), self._nbytes(task)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise translate(error, f"making {path}") from error
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, 0)
                os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            # A part of the wrong size would look like progress after a restart.
            path.unlink(missing_ok=True)
            raise translate(error, f"for {size} bytes of {path}") from error
        return descriptor

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        """Writes bytes of a piece where they belong."""
        data = np.frombuffer(piece, np.uint8)
        for placement in placements:
            start, layout = self._regions(placement.shard)[placement.factor]
            block = take(placement, data)
            with self.descriptor(placement.shard) as descriptor:
                with self._lock:
                    self._dirty.add(placement.shard)
                target, digest = placement.target, self._digested
                try:
                    if isinstance(target, Extent):
                        digests = _write_run(descriptor, start, layout, target, block, digest=digest)
                    else:
                        digests = _write_box(descriptor, start, layout, target, block, digest=digest)
                except OSError as error:
                    raise translate(error, f"writing {self.path(placement.shard)}") from error
                if digests:
                    with self._lock:
                        self._digests.setdefault(placement.shard, {}).update(digests)

    def sync(self) -> None:
        """Returns once everything placed before the call is on the disk.

        Raises:
            GdistError: also when an earlier sync of any part failed: the kernel tells each failure once, and
                then takes what it could not write for written.
        """
        if self._sync_error:
            raise self._sync_error
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        try:
            for task in tuple(dirty):
                with self.descriptor(task, create=False) as descriptor:
                    if descriptor >= 0:  # else it was committed meanwhile, and synced by that
                        self._sync(descriptor, task)
                dirty.discard(task)
        finally:
            with self._lock:
                self._dirty |= dirty  # what an error left unsynced is the next call's

    def _sync(self, descriptor: int, task: ShardTask) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self._sync_error = translate(error, f"syncing {self.path(task)}")
            raise self._sync_error from error

    def seal(self, task: ShardTask) -> tuple[str, ...]:
        """Digests of a whole part's inner chunks, in C order; its index is written and all of it synced."""
        layout = self.layout(task)
        assert task in self._made, f"nothing was ever placed in {self.path(task)}"
        with self.descriptor(task) as descriptor:
            known = self._digests.get(task, {})
            with mmap.mmap(descriptor, layout.data_nbytes, access=mmap.ACCESS_READ) as mapped:
                digests = tuple(
                    known.get(e.start) or blake3(memoryview(mapped)[e.start : e.stop]).hexdigest()
                    for _, e in layout.chunks()
                )
            index = layout.index_bytes()
            checksum = google_crc32c.value(index).to_bytes(4, "little")
            try:
                _pwrite(descriptor, memoryview(index + checksum), layout.data_nbytes)
            except OSError as error:
                raise translate(error, f"writing {self.path(task)}") from error
            self._sync(descriptor, task)
        return digests

    def forget(self, task: ShardTask) -> None:
        """Closes a part that was sealed; its file may be renamed or removed."""
        with self._lock:
            self._dirty.discard(task)
            self._digests.pop(task, None)
            self._forget(task)

    def map(self, task: ShardTask) -> Bytes:
        """All of a part, read-only; it is unmapped when the last array over it is gone."""
        with self.descriptor(task) as descriptor:
            return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)

    def remove(self, task: ShardTask) -> None:
        """Removes a part that has done its work."""
        self.forget(task)
        self.path(task).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes all files."""
        with self._lock:
            for task in tuple(self._open):
                self._forget(task)


def take(placement: Placement, data: Bytes) -> Bytes:
    """The bytes of a piece that a placement takes, as an array in the shard's dimensions, bytes last."""
    source = placement.source
    block = data[source.start : source.stop].reshape(placement.view)[placement.take.slices()]
    if placement.order is Order.F:
        block = block.transpose(*range(block.ndim - 1)[::-1], block.ndim - 1)
    return block


def _write_run(
    descriptor: int, start: int, layout: ShardLayout, target: Extent, block: Bytes, *, digest: bool
) -> dict[int, str]:
    """Writes a run; gives the digests of the inner chunks that it holds whole, by their offsets."""
    _pwrite(descriptor, block.data, start + target.start)
    whole = layout.chunks_in(target) if digest else ()
    inside = ((chunk, chunk.shift(-target.start)) for chunk in whole)
    return {chunk.start: blake3(block[e.start : e.stop].data).hexdigest() for chunk, e in inside}


def _write_box(
    descriptor: int, start: int, layout: ShardLayout, target: Box, block: Bytes, *, digest: bool
) -> dict[int, str]:
    """Writes a box; gives the digests of the inner chunks that it holds whole, by their offsets."""
    chunk = layout.whole_chunk(target)
    if chunk is not None:
        values = np.ascontiguousarray(block).reshape(-1)
        _pwrite(descriptor, values.data, start + chunk.start)
        return {chunk.start: blake3(values.data).hexdigest()} if digest else {}
    digests = {}
    chunk_shape = (*layout.grid.chunk, layout.itemsize)
    for part, local, within in layout.targets(target):
        offset = start + within
        values = block[part.relative_to(target.start).slices()]
        runs = runs_of_box(chunk_shape, local)
        first = next(runs)
        count = local.size // first.length
        if count > FEW_RUNS and first.length < SHORT_RUN:
            _write_mapped(descriptor, chunk_shape, local, Extent(offset, layout.chunk_nbytes), values)
            continue
        flat = np.ascontiguousarray(values).reshape(count, first.length)
        for row, run in zip(flat, itertools.chain((first,), runs), strict=True):
            _pwrite(descriptor, row.data, offset + run.start)
        if digest and first.length == layout.chunk_nbytes:
            digests[within] = blake3(flat.data).hexdigest()
    return digests


def _pwrite(descriptor: int, data: memoryview[Any], offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _write_mapped(descriptor: int, shape: tuple[int, ...], box: Box, chunk: Extent, values: Bytes) -> None:
    skip = chunk.start % mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(descriptor, chunk.length + skip, offset=chunk.start - skip) as mapped:
        whole = np.frombuffer(mapped, np.uint8, chunk.length, skip).reshape(shape)
        whole[box.slices()] = values
        del whole  # a map with a live view cannot be closed
