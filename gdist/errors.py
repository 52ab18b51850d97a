"""Every exception gdist raises on purpose, under one root.

Four families answer a caller's two questions, whose fault it is and whether trying again can help:

    RequestError    ask differently          RequestError, UnsupportedError, FilesystemError
    CorruptError    the bytes are wrong      CorruptError
    TransferError   may pass; retrying helps NoPeersError, StalledError, SpaceError, HostsMissing,
                                             InterruptedRun
    ResumeError     another job's work       ResumeError


    TransferError   may pass; retrying helps NoPeersError, StalledError, SpaceError, InterruptedRun,
                                             HostsMissing, Unreachable, Gone
    ResumeError     another job's work       ResumeError, RefusedError

An error carries its facts as attributes, says them in one sentence, and may carry a `hint`: what to do
next. The exit code of each class is in `gdist.cli.exits` and in `docs/reference/exit-codes.md`.
"""

from __future__ import annotations

import errno


class GdistError(Exception):
    """Root of all errors gdist raises on purpose.

    `message` is one sentence with the values that disagree, lower case, no full stop; `hint` says what
    to do next (may be empty); keyword `facts` become attributes.
    """

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __getattr__(self, name: str) -> object:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)


class RequestError(GdistError):
    """What was asked cannot be done; asking differently can."""


class UnsupportedError(RequestError):
    """The payload holds something gdist does not read, or that would not be safe to read."""


class FilesystemError(RequestError):
    """The target file system lacks something that is needed, or refuses access."""


class CorruptError(GdistError):
    """Bytes are not what they must be, and could not be repaired."""


class TransferError(GdistError):
    """Network or storage failed in a way that may pass; what is done so far is kept."""


class NoPeersError(TransferError):
    """No peer, or no metadata, in the time allowed."""


class StalledError(TransferError):
    """Nothing arrived for the whole stall window."""


class SpaceError(TransferError):
    """The disk cannot hold the result; resumable once there is space."""


class HostsMissing(TransferError):
    """Hosts of the cluster were not there, or not done, at the deadline; `missing` are their indices."""


class InterruptedRun(TransferError):
    """The run was asked to stop; the same command goes on where it stopped."""


class PieceLost(TransferError):
    """A piece that could be read is not there any more; whoever gave it out gives it out again."""


class Unreachable(TransferError):
    """Another host of the cluster does not answer, or stopped in the middle of an answer."""


class Gone(TransferError):
    """Another host of the cluster does not have what was asked for, or not any more."""


class ResumeError(GdistError):
    """The destination holds another job's work, or its record cannot be read."""


class LockedError(ResumeError):
    """Another process of this host works on the destination."""


class RefusedError(ResumeError):
    """Another host of the cluster works by another plan, or was given another secret."""


def translate(error: OSError, doing: str) -> GdistError:
    """An operating system's error as ours; `doing` says what failed, with the path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(
            f"no space left {doing}",
            hint="free some space and run the same command again: it resumes",
            path=error.filename,
        )
    return FilesystemError(
        f"{error.strerror or error} {doing}", hint="check the destination and its permissions"
    )
