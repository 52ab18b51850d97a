"""The resume journal on disk: appended, synced, replayed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gdist.core.journal import Progress, header_line, parse_journal
from gdist.errors import ResumeError, translate


class JournalFile:
    """An open journal; `progress` is what it said when it was opened.

    Raises:
        ResumeError: when the directory's journal is of another plan.
    """

    def __init__(self, path: Path, plan: str):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise translate(error, f"opening {path}") from error
        self._file.seek(0)
        progress, whole = parse_journal(self._file.read())
        if progress is not None and progress.plan != plan:
            self._file.close()
            raise ResumeError(
                f"the destination holds an unfinished fetch of another plan: {progress.plan[:12]}, this one is {plan[:12]}",
                hint="use the same source, mesh, rules and host as before, or another destination",
            )
        self._file.truncate(whole)  # a torn last line says nothing
        self.progress = progress or Progress(plan)
        if progress is None:
            self.append(header_line(plan))

    def append(self, line: str) -> None:
        """Adds a line and returns once it is on the disk."""
        try:
            self._file.write(line.encode() + b"\n")
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise translate(error, "writing the journal") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Lock:
    """That one process at a time works on a destination; the kernel frees it when the process ends."""

    def __init__(self, path: Path, doing: str):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115  closed by release()
        except OSError as error:
            raise translate(error, f"opening {path}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ResumeError(
                f"another gdist is writing to {doing}", hint="wait for it, or choose another destination"
            ) from error
        except OSError:
            pass  # a file system without locks: the journal's plan still guards the destination

    def release(self) -> None:
        """Lets others in."""
        self._file.close()
