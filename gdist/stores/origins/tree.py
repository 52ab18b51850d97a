"""The files below a directory that a checkpoint is: none of them elsewhere, none changed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

from gdist.core.profile import listed
from gdist.errors import UnsupportedError
from gdist.stores.local import unreadable

Marks = dict[str, tuple[int, int]]  # by path below the root: length, and time of change in nanoseconds


def files_below(root: Path) -> Marks:
    """Every file below a directory.

    Links to directories are not followed.

    Raises:
        UnsupportedError: naming symbolic links that lead out of the directory.
        FilesystemError: when something cannot be read.
    """
    marks: Marks = {}
    strays: list[str] = []
    home = os.path.realpath(root)
    waiting = [""]
    try:
        while waiting:
            above = waiting.pop()
            with os.scandir(root / above) as entries:
                for entry in entries:
                    path = f"{above}/{entry.name}" if above else entry.name
                    if entry.is_symlink() and not _inside(root / path, home):
                        strays.append(path)
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif entry.is_file():
                        status = entry.stat()
                        marks[path] = (status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise unreadable(root, error) from error
    if strays:
        raise UnsupportedError(
            f"{len(strays)} links in {root} lead out of it: {listed(sorted(strays))}",
            hint="copy what they lead to into the directory, if it is yours",
        )
    return marks


def _inside(link: Path, home: str) -> bool:
    target = os.path.realpath(link)
    return target == home or target.startswith(home.rstrip(os.sep) + os.sep)
