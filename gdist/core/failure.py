"""What ended a run that failed, as the small document that it leaves beside its journal.

    {"gdist_failed": 1, "time": 1700000000.1, "kind": "StalledError", "message": "...", "hint": "..."}

Who waits for the run ends as the run did: with an error of the same class, so with the same exit code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from gdist import errors
from gdist.errors import CorruptError, GdistError

FORMAT = 1
FAILED_NAME = "failed.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """When a run failed (seconds since the epoch), the class of its error, and what that said."""

    time: float
    kind: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: GdistError, time: float) -> Failure:
        """What is left of an error."""
        return cls(time, _kind_of(type(error)).__name__, error.message, error.hint)

    def error(self, doing: str) -> GdistError:
        """The error for somebody else; `doing` says what it ended: `the fetch into /data`."""
        return _KINDS.get(self.kind, GdistError)(f"{doing} ended: {self.message}", hint=self.hint)

    def to_json(self) -> bytes:
        """The document that `parse_failure` reads."""
        return json.dumps({"gdist_failed": FORMAT, **asdict(self)}, ensure_ascii=False).encode() + b"\n"


def parse_failure(data: bytes, where: str) -> Failure:
    """The failure in a document; `where` names it in messages.

    Raises:
        CorruptError: when it is none.
    """
    try:
        row = json.loads(data)
        if row["gdist_failed"] != FORMAT:
            raise ValueError(f"version {row['gdist_failed']!r}")
        return Failure(float(row["time"]), *(_text(row[key]) for key in ("kind", "message", "hint")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{where} cannot be read: {error!r:.200}", hint="delete it") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


def _kind_of(kind: type[GdistError]) -> type[GdistError]:
    """The nearest class that everybody has: a program may have made kinds of its own."""
    return next(base for base in kind.__mro__ if base in _KINDS.values())


_KINDS: dict[str, type[GdistError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, GdistError)
}
