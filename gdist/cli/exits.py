"""Exit codes: documented, distinct, stable; a test holds `docs/reference/exit-codes.md` to this table."""

from __future__ import annotations

from dataclasses import dataclass

from gdist.errors import (
    CorruptError,
    FilesystemError,
    GdistError,
    Gone,
    HostsMissing,
    InterruptedRun,
    LockedError,
    NoPeersError,
    PieceLost,
    RefusedError,
    RequestError,
    ResumeError,
    SpaceError,
    StalledError,
    TransferError,
    Unreachable,
    UnsupportedError,
)

DONE = 0
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
KEYBOARD = 130  # 128 + SIGINT, where there is nothing to resume
PIPE = 141  # 128 + SIGPIPE


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit code: the errors that end so, whether the same command may succeed later, what it means."""

    code: int
    errors: tuple[type[GdistError], ...]
    retry: bool
    meaning: str


EXITS = (
    Exit(2, (RequestError,), False, "usage: what was asked cannot be done; asking differently can"),
    Exit(10, (NoPeersError,), True, "no peers, or no metadata, in the time allowed"),
    Exit(
        11,
        (StalledError, TransferError, Unreachable, Gone, PieceLost),
        True,
        "nothing arrived for the stall window, or the transfer failed",
    ),
    Exit(12, (CorruptError,), False, "bytes are wrong and could not be repaired"),
    Exit(13, (SpaceError,), True, "no space; free some, and the same command resumes"),
    Exit(
        14, (UnsupportedError,), False, "the payload holds something gdist does not read, or that is not safe"
    ),
    Exit(
        15,
        (ResumeError, LockedError, RefusedError),
        False,
        "the destination holds another job's work, or hosts disagree on the plan or the secret",
    ),
    Exit(16, (HostsMissing,), True, "hosts of the cluster were missing at the deadline"),
    Exit(17, (FilesystemError,), False, "the target file system lacks something, or refuses access"),
    Exit(20, (InterruptedRun,), True, "asked to stop (Ctrl-C, SIGTERM); the same command goes on"),
)

_CODES = {error: entry for entry in EXITS for error in entry.errors}


def exit_of(error: GdistError) -> Exit:
    """How a command ends with this error: by its class, or the nearest above it."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return _CODES[RequestError]


def code_of(kind: type[GdistError]) -> int:
    """The exit code of a class of errors."""
    return exit_of(kind("")).code
