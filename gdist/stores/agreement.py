"""Processes that do something together: all of them do it, or all of them raise the same error.

A process that gives up leaves the others waiting in the next collective, for minutes or for ever. So what a
process found is told to all before that, in one small gather: a digest of what it is about to do, and what
went wrong, if anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gdist import errors
from gdist.errors import GdistError, RequestError

MOST_TEXT = 8000  # characters of a message that are told
DIGEST_BYTES = 16
LENGTH_BYTES = 4

Gather = Callable[[bytes, int], list[bytes]]
"""Everybody's bytes, padded to a length that is the same for all (0: all are of one length)."""


@dataclass(frozen=True, slots=True)
class Words:
    """How the messages speak: of `who` does what, and what to do where they would not do the same."""

    who: str = "process"
    plural: str = "processes"
    doing: str = "load"
    hint: str = "call gdist.load with the same arguments, and parts of one store, on every process"

    def name(self, members: Sequence[int]) -> str:
        """These members, for a message."""
        return f"{self.plural if len(members) > 1 else self.who} {', '.join(map(str, members))}"


def agree(
    gather: Gather,
    members: Sequence[int],
    fault: Exception | None,
    told: Mapping[str, str],
    words: Words,
    note: bytes = b"",
) -> list[bytes]:
    """Everybody's `note`, in the order of members, when all is well; all notes are of one length.

    `told` has to be the same on all. Every member has to call this.

    Raises:
        GdistError: of the kind of the first failure, with the messages of all, on every member; `is_agreed`.
        RequestError: naming those that would do something else than the first.
    """
    text = text_of(fault)
    digests = [_digest(value) for value in told.values()]
    rows = gather(len(text).to_bytes(LENGTH_BYTES, "little") + b"".join(digests) + note, 0)
    lengths = [int.from_bytes(row[:LENGTH_BYTES], "little") for row in rows]
    if any(lengths):
        texts = [row[:n] for row, n in zip(gather(text, max(lengths)), lengths, strict=True)]
        raise error_of(members, texts, words) from fault
    for number, what in enumerate(told):
        start = LENGTH_BYTES + number * DIGEST_BYTES
        other = [row[start : start + DIGEST_BYTES] for row in rows]
        strange = [m for m, digest in zip(members, other, strict=True) if digest != other[0]]
        if strange:
            raise RequestError(
                f"{words.name(strange)} would {words.doing} {what} than {words.who} {members[0]}",
                hint=words.hint,
                processes=tuple(strange),
                agreed=True,
            )
    start = LENGTH_BYTES + len(told) * DIGEST_BYTES
    return [row[start : start + len(note)] for row in rows]


def is_agreed(error: Exception) -> bool:
    """True for an error that all members raise at the same place: it needs not be told again."""
    return isinstance(error, GdistError) and "agreed" in error.facts


def gather_all(gather: Gather, said: bytes) -> list[bytes]:
    """Everybody's bytes, of any length."""
    lengths = [int.from_bytes(row, "little") for row in gather(len(said).to_bytes(8, "little"), 0)]
    return [row[:n] for row, n in zip(gather(said, max(lengths)), lengths, strict=True)]


def _digest(value: str) -> bytes:
    return hashlib.blake2b(value.encode(), digest_size=DIGEST_BYTES).digest()


def error_of(members: Sequence[int], texts: Sequence[bytes], words: Words) -> GdistError:
    """The failures that members told, as one error; a text is empty where there was none."""
    found = {member: json.loads(text) for member, text in zip(members, texts, strict=True) if text}
    first: dict[str, Any] = next(iter(found.values()))
    by_message: dict[str, list[int]] = {}
    for member, said in found.items():
        by_message.setdefault(said["message"], []).append(member)
    said = "; ".join(f"{words.name(who)} cannot {words.doing}: {what}" for what, who in by_message.items())
    kind = getattr(errors, first["kind"], RequestError)
    error: GdistError = kind(said, hint=first["hint"], processes=tuple(found), agreed=True)
    return error


def text_of(fault: Exception | None) -> bytes:
    """A failure as it is told to others; nothing where there is none."""
    if fault is None:
        return b""
    ours = isinstance(fault, GdistError)
    message = fault.message if isinstance(fault, GdistError) else f"{type(fault).__name__}: {fault}"
    said = {
        "kind": type(fault).__name__ if ours else "RequestError",
        "message": message[:MOST_TEXT] + (" ..." if len(message) > MOST_TEXT else ""),
        "hint": fault.hint if isinstance(fault, GdistError) else "",
    }
    return json.dumps(said).encode()
