"""What a failed run leaves tells others the same error, with the same exit code."""

from __future__ import annotations

import pytest

from gdist import errors
from gdist.core.failure import Failure, parse_failure
from gdist.errors import CorruptError, GdistError, StalledError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GdistError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_comes_back_as_it_was(kind: type[GdistError]) -> None:
    left = Failure.of(kind("größer\nals 3", hint="weniger", path="/x"), 12.5)
    assert parse_failure(left.to_json(), "f") == left
    again = left.error("the fetch into /data")
    assert type(again) is kind
    assert (again.message, again.hint) == ("the fetch into /data ended: größer\nals 3", "weniger")


def test_a_kind_of_somebody_elses_is_its_family() -> None:
    class Lost(StalledError):
        """A kind that only one program has."""

    assert type(Failure.of(Lost("gone"), 0).error("it")) is StalledError


def test_a_kind_of_a_newer_gdist_is_an_error_all_the_same() -> None:
    assert type(Failure(0, "MelteError", "hot").error("it")) is GdistError
    assert type(Failure(0, "errno", "a name in that module that is no class").error("it")) is GdistError


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"gdist_failed": 2, "time": 1, "kind": "a", "message": "b", "hint": ""}',
        b'{"gdist_failed": 1, "time": "x", "kind": "a", "message": "b", "hint": ""}',
        b'{"gdist_failed": 1, "time": 1, "kind": 3, "message": "b", "hint": ""}',
    ],
)
def test_what_is_no_failure_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptError, match="here cannot be read"):
        parse_failure(text, "here")
