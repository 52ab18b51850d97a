"""What ended a run, left in its work directory for those who wait for it.

It is of the last run when it is not older than that run's lock: a run that is killed leaves nothing, and what
an earlier one left then says nothing any more.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gdist.core.failure import FAILED_NAME, Failure, parse_failure
from gdist.errors import CorruptError, GdistError, ResumeError
from gdist.sinks.local import write_atomically


@contextlib.contextmanager
def left_behind(work: Path) -> Iterator[None]:
    """Leaves the error that ends the block in `work`, which this process has locked.

    It is there before the lock is free: who sees a run end can tell how. Nothing is left by a run that found
    another job's work, and nothing in it changes.
    """
    try:
        yield
    except GdistError as error:
        if type(error) is not ResumeError:
            # The error itself is the one to tell: on a disk that is full this may fail too.
            with contextlib.suppress(GdistError, OSError):
                write_atomically(work / FAILED_NAME, Failure.of(error, time.time()).to_json())
        raise


def last_failure(work: Path) -> Failure | None:
    """What ended the last run that worked there, where it could say so."""
    path = work / FAILED_NAME
    try:
        data, written = path.read_bytes(), os.stat(path).st_mtime_ns
        locked = os.stat(work / "lock").st_mtime_ns
    except OSError:
        return None
    with contextlib.suppress(CorruptError):  # it says how a run ended, and nothing of what is there
        return parse_failure(data, FAILED_NAME) if written >= locked else None
    return None
