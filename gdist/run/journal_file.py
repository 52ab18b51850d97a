"""The resume journal on disk: appended, synced, replayed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from gdist.core.journal import (
    Progress,
    asset_line,
    file_line,
    header_line,
    kind_of,
    parse_journal,
    pieces_line,
    rest_line,
    shard_line,
)
from gdist.errors import FilesystemError, LockedError, ResumeError, translate
from gdist.sinks.local import write_atomically

# A reader that looks whether a fetch is alive holds its lock for some microseconds, on a busy machine for
# longer (stores/growing.py).
LOCK_TRIES, LOCK_RETRY_SECONDS = 50, 0.02


class JournalFile:
    """An open journal; `progress` is what it said when it was opened.

    `job` names what is done: the plan and how it is written, so that two jobs never share a journal.

    Raises:
        ResumeError: when the directory's journal is of another job, or cannot be read.
    """

    def __init__(self, path: Path, job: str):
        self._path = path
        self._open()
        try:
            self._file.seek(0)
            progress, whole = parse_journal(self._file.read())
            if progress is not None and progress.plan != job:
                raise ResumeError(
                    f"the destination holds an unfinished {kind_of(progress.plan)} of another plan: "
                    f"{progress.plan}; this is {job}",
                    hint="use the same source, mesh, rules, host, codec, payload, select and dtype, "
                    "or another destination",
                )
            self._file.truncate(whole)  # a torn last line says nothing
            self.progress = progress or Progress(job)
            if progress is None:
                self.append(header_line(job))
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise translate(error, f"opening {self._path}") from error

    def append(self, *lines: str) -> None:
        """Adds lines and returns once they are on the disk; after an error the journal is as before."""
        data = memoryview("".join(f"{line}\n" for line in lines).encode())
        before = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]  # a disk that is nearly full takes a part
            os.fdatasync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), before)  # else the next line would go on in this one's middle
            raise translate(error, "writing the journal") from error

    def forget(self, pieces: Collection[int]) -> None:
        """Takes back that pieces were placed: some of the shards they went to are gone."""
        self.progress.pieces.difference_update(pieces)
        progress = self.progress
        lines = [header_line(progress.plan), pieces_line(progress.pieces)]
        lines += [shard_line(record) for record in progress.shards.values()]
        lines += [file_line(path) for path in sorted(progress.files)]
        lines += [asset_line(path, nbytes, digest) for path, (nbytes, digest) in progress.assets.items()]
        lines += [rest_line(path, data) for path, data in progress.rest.items()]
        self._file.close()
        try:
            write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())
        finally:
            self._open()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Lock:
    """That one process at a time works on a destination; the kernel frees it when the process ends.

    The file's time says since when.
    """

    def __init__(self, path: Path, doing: str):
        self._file = _open_lock(path)
        try:
            while not self._taken(path):
                # Whoever held it has finished and removed it: that file keeps nobody out any longer.
                self._file.close()
                self._file = _open_lock(path)
        except BlockingIOError as error:
            self._file.close()
            raise LockedError(
                f"another gdist is writing to {doing}", hint="wait for it, or choose another destination"
            ) from error
        except OSError:
            pass  # a file system without locks: the journal's plan still guards the destination
        with contextlib.suppress(OSError):  # it is for those who look at it only
            os.utime(self._file.fileno())

    def _taken(self, path: Path) -> bool:
        for attempt in range(LOCK_TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == LOCK_TRIES - 1:
                    raise
                time.sleep(LOCK_RETRY_SECONDS)
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Lets others in."""
        self._file.close()


def _open_lock(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError as error:
        for above in path.parents:
            if above.is_symlink() and not above.exists():
                raise FilesystemError(
                    f"{above} is a symbolic link to {os.readlink(above)}, which does not exist",
                    hint="make the directory it points to, or choose another destination",
                ) from error
        raise translate(error, f"opening {path}") from error
