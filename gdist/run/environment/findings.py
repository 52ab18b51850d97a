"""What a look at this host's surroundings found: one `Finding` a question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from gdist.errors import GdistError, RequestError, TransferError


class Status(Enum):
    """How a finding bears on a fetch."""

    OK = "ok"
    WARN = "warn"  # it works, and may be slow, or may not when something else changes
    FAIL = "fail"  # it cannot work


@dataclass(frozen=True, slots=True)
class Finding:
    """One question and its answer: `what` was found, and in `hint` what to do about it.

    `family` is the error that a fetch would end with; only a failure has one.
    """

    check: str
    status: Status
    what: str
    hint: str = ""
    family: type[GdistError] | None = None

    def __post_init__(self) -> None:
        failed = self.status is Status.FAIL
        assert failed is (self.family is not None), f"{self.check}: {self.status} with {self.family}"
        assert self.status is Status.OK or self.hint, f"{self.check}: {self.what}, and nothing to do"

    def to_json(self) -> dict[str, str]:
        """The finding as one JSON object."""
        return {"check": self.check, "status": self.status.value, "what": self.what, "hint": self.hint}


def ok(check: str, what: str, hint: str = "") -> Finding:
    """All is well."""
    return Finding(check, Status.OK, what, hint)


def warn(check: str, what: str, hint: str) -> Finding:
    """Something to know."""
    return Finding(check, Status.WARN, what, hint)


def fail(check: str, family: type[GdistError], what: str, hint: str) -> Finding:
    """Something that has to be put right before a fetch."""
    return Finding(check, Status.FAIL, what, hint, family)


def error_of(findings: Iterable[Finding]) -> GdistError | None:
    """The error that a check ends with: of the first failure that asking again does not help, else the first.

    Its message counts the failures and names the one.
    """
    failures = [finding for finding in findings if finding.status is Status.FAIL]
    if not failures:
        return None
    lasting = [f for f in failures if f.family and not issubclass(f.family, TransferError)]
    worst = (lasting or failures)[0]
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return (worst.family or RequestError)(f"{worst.check}: {worst.what}{more}", hint=worst.hint)
