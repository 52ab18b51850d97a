"""Files written below a directory, one after the other: all of them in the end, or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gdist.errors import RequestError, translate
from gdist.events import Event, Observer
from gdist.run.preflight import DOCUMENT_BYTES, check_free


@dataclass(frozen=True, slots=True)
class Exported(Event):
    """So many bytes of so many have been written."""

    nbytes: int
    total: int


def check_empty_directory(target: Path) -> None:
    """That a directory is empty or not there.

    Raises:
        RequestError: naming what is in it; or it is a file.
    """
    try:
        if target.exists() and not target.is_dir():
            raise RequestError(
                f"{str(target)!r} is a file", hint="give a directory that is empty or does not exist"
            )
        there = sorted(os.listdir(target)) if target.exists() else []
    except OSError as error:
        raise translate(error, f"looking into {target}") from error
    if there:
        raise RequestError(
            f"{str(target)!r} is not empty ({', '.join(there[:5])})",
            hint="give a directory that is empty or does not exist",
        )


class OutputFiles:
    """Files below the directory `root`, which is made, written one after the other, while it is entered.

    A file gets its name when it is whole. Where it is left by an error, nothing stays that was made here: so
    the same can be asked for again.
    """

    def __init__(self, root: Path, observe: Observer, check_stop: Callable[[], None], doing: str = "export"):
        self._root, self._observe, self._check_stop, self._doing = root, observe, check_stop, doing
        self._file: BinaryIO | None = None
        self._path = root
        self._made: list[Path] = []  # directories, the inner ones first
        self.files: list[str] = []
        self.nbytes = self.total = 0

    def __enter__(self) -> OutputFiles:
        self._make(self._root)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
                os.unlink(self._file.name)
            self._file = None
            self.files.pop()
        for name in self.files:
            with contextlib.suppress(OSError):
                os.unlink(self._root / name)
        self.files.clear()
        for directory in self._made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                directory.rmdir()

    def _make(self, directory: Path) -> None:
        self._made[:0] = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise translate(error, f"making {directory}") from error

    def expect(self, total: int) -> None:
        """Says how much is to come, before any of it is written.

        Raises:
            SpaceError: when the disk cannot hold it.
        """
        self.total = total
        check_free(self._root, total + DOCUMENT_BYTES, self._doing)

    def begin(self, path: str) -> None:
        """Starts a file."""
        self._path = self._root / path
        self._make(self._path.parent)
        try:
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
