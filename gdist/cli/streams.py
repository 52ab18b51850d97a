"""Standard output and error whose reader may have gone.

Whoever reads the result ends the run by leaving; a run whose progress nobody reads any more goes on.
"""

from __future__ import annotations

import os
import sys

from gdist.errors import translate


class ReaderGone(BaseException):
    """Whoever read standard output is gone; no `Exception`, so that nothing takes it for its own."""


def open_streams() -> None:
    """Gives streams that were closed at the start (`>&-`) a place to go: no file may get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number: often this one already
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def drop(number: int) -> None:
    """Sends what is still written to a stream nowhere, what is buffered too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def put(text: str) -> None:
    """Writes to standard output.

    Raises:
        ReaderGone: when nobody reads it any more.
        SpaceError, FilesystemError: when it cannot be written to; what follows goes nowhere.
    """
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:  # a path that this encoding has no letters for: its own bytes
            sys.stdout.buffer.write(os.fsencode(text))
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        drop(1)
        raise translate(error, "writing to standard output") from error


def say(text: str) -> None:
    """Writes to standard error, if it can be written to."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        drop(2)
