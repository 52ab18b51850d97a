"""Ranges that say exactly which numbers, in the room there is; names that cannot act."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.text import numbers, printable, shorten


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), ""),
        ((3,), "3"),
        ((1, 0), "0-1"),
        (range(8), "0-7"),
        (range(0, 64, 8), "0,8..56"),
        ((0, 1, 8, 9, 16, 17), "0-1,8-9..16-17"),
        ((1, 2, 5), "1-2,5"),
        ((0, 2), "0,2"),  # two make no series
        ((0, 1, 8, 16, 17), "0-1,8,16-17"),  # runs of unequal length neither
        ((7, 7, 7), "7"),
    ],
)
def test_ranges_read_as_people_write_them(values: tuple[int, ...], text: str) -> None:
    assert numbers(values) == text


def expand(text: str) -> set[int]:
    """What the notation means, read back."""
    found: set[int] = set()
    items = text.split(",")
    for place, item in enumerate(items):
        first, _, last = item.partition("..")
        a, b = (
            (int(end) for end in (first.split("-") * 2)[:2])
            if "-" not in first
            else map(int, first.split("-"))
        )
        if not last:
            found |= set(range(a, b + 1))
            continue
        step = a - int(items[place - 1].split("-")[0])
        for start in range(a, int(last.split("-")[0]) + 1, step):
            found |= set(range(start, start + b - a + 1))
    return found


@given(st.sets(st.integers(0, 80), min_size=1))
def test_ranges_mean_exactly_the_numbers(values: set[int]) -> None:
    assert expand(numbers(values)) == values


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=60), st.integers(9, 40))
def test_ranges_keep_to_a_width_and_name_the_first_and_the_last(values: set[int], width: int) -> None:
    text = numbers(values, width)
    assert len(text) <= width
    found = [int(digits) for digits in re.findall(r"\d+", text)]
    assert (found[0], found[-1]) == (min(values), max(values))
    assert ("…" in text) == (len(numbers(values)) > width)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layers.0.wq", "layers.0.wq"),
        ("größe/模型", "größe/模型"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\ufffeb", "a\\ufffeb"),
        ("a\ud800b", "a\\ud800b"),
        ("a\nb", "a\\nb"),
    ],
)
def test_what_does_not_print_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=40), st.integers(1, 50))
def test_a_shortened_text_keeps_its_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert len(short) <= width
    if len(text) <= width:
        assert short == text
    else:
        head, tail = short.split("…") if "…" not in text else (short[: (width - 1) // 2], "")
        assert text.startswith(head) and text.endswith(tail)
