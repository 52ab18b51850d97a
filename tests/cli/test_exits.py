"""Exit codes: every error of ours has one, and the page says the same as the program."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from gdist import errors
from gdist.cli import exits
from gdist.errors import GdistError

PAGE = Path(__file__).parents[2] / "docs/reference/exit-codes.md"
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GdistError) and kind is not GdistError
]


def section(title: str) -> dict[int, tuple[set[str], str]]:
    """Code, errors and meaning of the rows under a heading."""
    text = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    return {int(code): (set(re.findall(r"`(\w+)`", kinds)), meaning) for code, kinds, meaning in rows}


@pytest.mark.parametrize(
    ("title", "retry"),
    [
        ("Running the same command again may help", True),
        ("Running the same command again will not help", False),
    ],
)
def test_the_page_and_the_program_agree(title: str, retry: bool) -> None:
    rows = section(title)
    rows.pop(exits.INTERNAL, None)
    expected = {
        entry.code: ({kind.__name__ for kind in entry.errors}, entry.meaning)
        for entry in exits.EXITS
        if entry.retry is retry
    }
    assert rows == expected


def test_the_page_names_the_codes_that_are_no_errors_of_ours() -> None:
    text = PAGE.read_text()
    for code in (exits.DONE, exits.INTERNAL, exits.KEYBOARD, exits.PIPE):
        assert f"| {code} |" in text


def test_codes_are_distinct_and_none_has_another_meaning_already() -> None:
    codes = [entry.code for entry in exits.EXITS]
    assert len(set(codes)) == len(codes)
    assert not {*codes} & {exits.DONE, 1, exits.INTERNAL, exits.KEYBOARD, exits.PIPE}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_its_own_entry(kind: type[GdistError]) -> None:
    assert any(kind in entry.errors for entry in exits.EXITS)


def test_an_error_that_is_made_later_goes_by_its_family() -> None:
    class Lost(errors.StalledError):
        """A kind that the table does not know."""

    assert exits.code_of(Lost) == 11
