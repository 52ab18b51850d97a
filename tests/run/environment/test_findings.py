from __future__ import annotations

import pytest

from gdist.errors import FilesystemError, RequestError, SpaceError, TransferError
from gdist.run.environment.clock import Instant, about_clock
from gdist.run.environment.findings import Finding, Status, error_of, fail, ok, warn


def test_without_a_failure_there_is_no_error() -> None:
    assert error_of([ok("a", "fine"), warn("b", "slow", "do this")]) is None
    assert error_of([]) is None


def test_a_failure_that_asking_again_does_not_help_comes_first() -> None:
    passes = fail("coordinator", TransferError, "h0 does not answer", "look")
    lasts = fail("destination", FilesystemError, "no locks", "another one")
    error = error_of([passes, lasts])
    assert isinstance(error, FilesystemError)
    assert error.message == "destination: no locks (and 1 more)" and error.hint == "another one"
    assert isinstance(error_of([passes, fail("disk space", SpaceError, "full", "free some")]), TransferError)


def test_what_is_not_well_says_what_to_do() -> None:
    for status, family in ((Status.WARN, None), (Status.FAIL, RequestError)):
        with pytest.raises(AssertionError, match="nothing to do"):
            Finding("a", status, "what", "", family)
    with pytest.raises(AssertionError, match=r"Status\.OK"):
        Finding("a", Status.OK, "what", "hint", RequestError)


@pytest.mark.parametrize(
    ("wall", "skews", "status", "says"),
    [
        (2.0, (), Status.OK, "nobody to compare"),
        (2.1, (0.1, -0.4), Status.OK, "at most 0.40 s from those of 2 other hosts"),
        (2.0, (0.1, -3.0), Status.WARN, "at most 3.0 s from those of 2"),
        (5.0, (), Status.WARN, "was moved by 3.0 s"),
        (-3.0, (), Status.WARN, "was moved by 5.0 s"),
        (-1.7e9, (), Status.WARN, "before 2024"),
    ],
)
def test_clocks(wall: float, skews: tuple[float, ...], status: Status, says: str) -> None:
    now = 1.8e9
    found = about_clock(Instant(now, 10.0), Instant(now + wall, 12.0), skews)
    assert found.status is status and says in found.what
