"""What ended a run, left in its work directory for those who wait for it; gone when the next run starts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from gdist.core.failure import FAILED_NAME, Failure
from gdist.errors import GdistError, translate
from gdist.sinks.local import write_atomically


@contextlib.contextmanager
def left_behind(work: Path) -> Iterator[None]:
    """Leaves the error that ends the block in `work`, which this process has locked.

    It is there before the lock is free: who sees a run end can tell how.
    """
    path = work / FAILED_NAME
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise translate(error, f"removing {path}") from error
    try:
        yield
    except GdistError as error:
        # The error itself is the one to tell: on a disk that is full this may fail too.
        with contextlib.suppress(GdistError, OSError):
            write_atomically(path, Failure.of(error, time.time()).to_json())
        raise
