"""Sizes, rates and durations as people write them."""

from __future__ import annotations

import pytest

from gdist.core.units import (
    format_bytes,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_memory,
    parse_rate,
    parse_seconds,
)
from gdist.errors import RequestError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 * 2**30),
        ("4g", 4 * 2**30),  # as GNU tools
        ("500MB", 500_000_000),
        ("1.5 kB", 1500),
        ("1048576", 2**20),
        (7, 7),
        ("12B", 12),
        ("0", 0),
    ],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["0", 0, "0GiB", "7", "32767"])
def test_memory_in_which_nothing_can_be_done_is_refused(text: str | int) -> None:
    with pytest.raises(RequestError, match="too little for any payload") as error:
        parse_memory(text)
    assert error.value.hint == "give 32KiB or more"
    assert parse_memory("32KiB") == 2**15


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10Gb/s", 1_250_000_000),
        ("10Gbps", 1_250_000_000),
        ("10 Gbit/s", 1_250_000_000),
        ("100MB/s", 100_000_000),
        ("1GiB/s", 2**30),
        ("5000", 5000),
        (0, 0),
    ],
)
def test_rates(text: str | int, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("12", 12), (2.5, 2.5)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "4XB", "1 2", "GiB", "4iB!", "1e9", "nan"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    for parse in (parse_bytes, parse_rate, parse_seconds):
        with pytest.raises(RequestError, match="speed"):
            parse(text, "speed")


def test_a_rate_of_a_bare_prefix_could_be_bits_or_bytes() -> None:
    with pytest.raises(RequestError):
        parse_rate("10G")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (318239886140, "318.24 GB")]
)
def test_bytes_are_written_in_decimal_units(value: int, text: str) -> None:
    assert format_bytes(value) == text


def test_no_number_is_written_as_a_thousand_of_its_unit() -> None:
    for nbytes in (999_499, 999_500, 999_999, 10**6, 10**9 - 1, 10**18):
        assert len(format_bytes(nbytes).split()[0]) <= 6


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B/s"), (1234, "1.2 kB/s"), (611e6, "611 MB/s"), (1.25e9, "1.2 GB/s")]
)
def test_rates_are_written_short(value: float, text: str) -> None:
    assert format_rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04, "0.04 s"),
        (1.23, "1.2 s"),
        (59.4, "59 s"),
        (59.6, "1m 00s"),
        (250, "4m 10s"),
        (3720, "1h 02m"),
        (90000, "1d 01h"),
    ],
)
def test_durations_are_written_in_two_units(value: float, text: str) -> None:
    assert format_seconds(value) == text
