"""The payload's files on disk: reading pieces from them, and giving their disk space back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from gdist.core.extent import Extent, coalesce
from gdist.core.payload import Payload
from gdist.errors import FilesystemError, translate

_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_PUNCH_HOLE = 0x02  # FALLOC_FL_PUNCH_HOLE
_PAGE_BYTES = 4096
RELEASED_BYTES = 16 * 2**20
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class PayloadFiles:
    """Reads and releases extents of a payload whose files lie at `paths`; safe from any thread.

    A file is opened for each use, which costs microseconds: a torrent may have more files than a process
    may keep open.
    """

    def __init__(self, payload: Payload, paths: tuple[Path, ...]) -> None:
        self._payload = payload
        self._paths = paths
        self._lock = threading.Lock()
        self._can_punch = True
        self._pending: list[Extent] = []
        self._pending_bytes = 0
        self._runs: dict[int, tuple[dict[int, int], dict[int, int]]] = {}  # released: start -> stop, and back

    def read(self, extent: Extent, buffer: memoryview) -> bool:
        """Fills `buffer` with the extent, zeros between files; False when a file is not that long yet.

        Raises:
            FilesystemError: the disk refused.
        """
        if sum(segment.extent.length for segment in self._payload.segments(extent)) < extent.length:
            buffer[:] = bytes(len(buffer))  # padding between files
        for segment in self._payload.segments(extent):
            start = self._payload.files[segment.file].offset + segment.extent.start - extent.start
            view = buffer[start : start + segment.extent.length]
            with self._open(segment.file, os.O_RDONLY) as descriptor:
                if descriptor < 0 or not _fill(descriptor, view, segment.extent.start):
                    return False
        return True

    def sizes(self) -> tuple[int, ...]:
        """Bytes of every file as it is now; 0 of one that is not there."""
        return tuple(path.stat().st_size if path.is_file() else 0 for path in self._paths)

    def reach(self, extent: Extent, sizes: Sequence[int]) -> bool:
        """True when files of these sizes are long enough to hold the extent."""
        return all(part.extent.stop <= sizes[part.file] for part in self._payload.segments(extent))

    def release(self, extent: Extent) -> None:
        """Gives the disk space of the extent back, soon; reads of it give zeros from then on.

        A hole is punched under the lock that libtorrent writes the file under, so extents are gathered until
        `RELEASED_BYTES` of them make fewer and longer holes. Only whole pages can be given back; those at
        the edges are when the neighbour is released too.
        """
        if not self._can_punch:
            return
        with self._lock:
            self._pending.append(extent)
            self._pending_bytes += extent.length
            if self._pending_bytes < RELEASED_BYTES:
                return
            pending, self._pending, self._pending_bytes = coalesce(self._pending), [], 0
        for run in pending:
            self._release(run)

    def _release(self, extent: Extent) -> None:
        for segment in self._payload.segments(extent):
            with self._lock:
                hole = self._merge(segment.file, segment.extent)
            size = self._payload.files[segment.file].length
            start = -(-hole.start // _PAGE_BYTES) * _PAGE_BYTES
            # The last page goes whole: only so does the file system give back what lies after the end.
            stop = (hole.stop + (_PAGE_BYTES - 1 if hole.stop == size else 0)) // _PAGE_BYTES * _PAGE_BYTES
            if start < stop:
                self._punch(segment.file, start, stop - start)

    def sync(self) -> None:
        """Returns once what was written to the files is on the disk.

        Raises:
            FilesystemError, SpaceError: the disk refused.
        """
        for file in range(len(self._paths)):
            with self._open(file, os.O_RDONLY) as descriptor:
                if descriptor >= 0:
                    os.fdatasync(descriptor)

    def _merge(self, file: int, extent: Extent) -> Extent:
        """The extent, with up to a page before and after it where that was released too."""
        starts, stops = self._runs.setdefault(file, ({}, {}))
        start = stops.pop(extent.start, extent.start)
        stop = starts.pop(extent.stop, extent.stop)
        starts[start], stops[stop] = stop, start
        near = max(start, extent.start - _PAGE_BYTES)
        return Extent(near, min(stop, extent.stop + _PAGE_BYTES) - near)

    def _punch(self, file: int, start: int, length: int) -> None:
        with self._open(file, os.O_RDWR) as descriptor:
            if descriptor < 0 or _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, length) == 0:
                return
            code = ctypes.get_errno()
        if code not in _NO_HOLES:
            raise FilesystemError(f"cannot release space of {self._paths[file]}: {os.strerror(code)}")
        self._can_punch = False

    @contextlib.contextmanager
    def _open(self, file: int, mode: int) -> Iterator[int]:
        """The file's descriptor, -1 before libtorrent made it; what the disk refuses is raised as ours."""
        path = self._paths[file]
        try:
            try:
                descriptor = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                descriptor = -1
            try:
                yield descriptor
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        except OSError as error:
            raise translate(error, f"using {path}") from error


def _fill(descriptor: int, view: memoryview, offset: int) -> bool:
    """Reads the whole view from the offset on; False when the file ends before."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            return False
        done += count
    return True


def _load_fallocate() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_fallocate = _load_fallocate()
