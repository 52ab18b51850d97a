"""Small files that are there whole or not at all, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from gdist.errors import translate


def write_atomically(path: Path, data: bytes, *, sync: bool = True, aside: Path | None = None) -> None:
    """Puts a file in place whole: written aside, synced, renamed, its directory synced.

    `aside` is a directory on the same file system; default: the file's own.

    Raises:
        GdistError: translated from what the file system said.
    """
    # Random: hosts that share a directory may have the same process number. Short: a name has 255 bytes.
    unfinished = (aside or path.parent) / f".{secrets.token_hex(8)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.rename(unfinished, path)
        if not sync:
            return
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise translate(error, f"writing {path}") from error
    sync_directory(path.parent)


def size_of(path: Path) -> int:
    """Bytes of a plain file; -1 where there is none, or it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def sync_directory(path: Path) -> None:
    """Returns once the names in a directory are on the disk."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Returns once a file's content is on the disk."""
    _sync(path, 0)


def _sync(path: Path, kind: int) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | kind)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translate(error, f"syncing {path}") from error
