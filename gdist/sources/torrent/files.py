"""The payload's files on disk: reading pieces from them, and giving their disk space back."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
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

    Files are opened when first needed: libtorrent makes them when it first writes to them.
    """

    def __init__(self, payload: Payload, paths: tuple[Path, ...]) -> None:
        self._payload = payload
        self._paths = paths
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}
        self._writable: dict[int, int] = {}
        self._can_punch = True
        self._pending: list[Extent] = []
        self._pending_bytes = 0
        self._runs: dict[int, tuple[dict[int, int], dict[int, int]]] = {}  # released: start -> stop, and back

    def read(self, extent: Extent, buffer: memoryview) -> bool:
        """Fills `buffer` with the extent, zeros between files; False when a file is not that long yet."""
        if sum(segment.extent.length for segment in self._payload.segments(extent)) < extent.length:
            buffer[:] = bytes(len(buffer))  # padding between files
        for segment in self._payload.segments(extent):
            try:
                descriptor = self._descriptor(segment.file)
            except FileNotFoundError:
                return False
            start = self._payload.files[segment.file].offset + segment.extent.start - extent.start
            view = buffer[start : start + segment.extent.length]
            done = 0
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], segment.extent.start + done)
                if not count:
                    return False
                done += count
        return True

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
        for path in self._paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                raise translate(error, f"syncing {path}") from error
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Closes the files; nothing may be read afterwards."""
        with self._lock:
            for descriptor in (*self._descriptors.values(), *self._writable.values()):
                os.close(descriptor)
            self._descriptors.clear()
            self._writable.clear()

    def _merge(self, file: int, extent: Extent) -> Extent:
        """The extent, with up to a page before and after it where that was released too."""
        starts, stops = self._runs.setdefault(file, ({}, {}))
        start = stops.pop(extent.start, extent.start)
        stop = starts.pop(extent.stop, extent.stop)
        starts[start], stops[stop] = stop, start
        near = max(start, extent.start - _PAGE_BYTES)
        return Extent(near, min(stop, extent.stop + _PAGE_BYTES) - near)

    def _punch(self, file: int, start: int, length: int) -> None:
        try:
            descriptor = self._descriptor(file, writable=True)
        except FileNotFoundError:
            return
        if _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, length) != 0:
            code = ctypes.get_errno()
            if code not in _NO_HOLES:
                raise FilesystemError(f"cannot release space of {self._paths[file]}: {os.strerror(code)}")
            self._can_punch = False

    def _descriptor(self, file: int, *, writable: bool = False) -> int:
        table = self._writable if writable else self._descriptors
        with self._lock:
            if file not in table:
                mode = os.O_RDWR if writable else os.O_RDONLY
                table[file] = os.open(self._paths[file], mode | os.O_CLOEXEC | os.O_NOFOLLOW)
            return table[file]


def _load_fallocate() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_fallocate = _load_fallocate()
