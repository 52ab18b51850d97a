"""Sizes, rates and durations as people write and read them."""

from __future__ import annotations

import math
import re

from gdist.errors import RequestError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_SIZE = re.compile(_NUMBER + r"\s*(?:([kmgtp])(i?)(b?)|(b?))", re.IGNORECASE)
_RATE = re.compile(_NUMBER + r"\s*([kmgtp]?)(i?)(b|B|bit|byte)?(?:/s|ps)?", re.IGNORECASE)
_DURATION = re.compile(rf"(?:{_NUMBER}\s*(ms|s|m|h|d)\s*)+", re.IGNORECASE)
LEAST_MEMORY = 2 * 2**14  # bytes: two of the smallest pieces
_DURATION_PART = re.compile(rf"{_NUMBER}\s*(ms|s|m|h|d)", re.IGNORECASE)


def parse_bytes(value: str | int, what: str = "size") -> int:
    """Bytes of `4GiB`, `500MB`, `4G` (as GNU tools: binary), `1048576`; `what` names the value in messages.

    Raises:
        RequestError: anything else, or less than 0.
    """
    match = _SIZE.fullmatch(str(value).strip())
    if not match:
        raise RequestError(
            f"{what} {value!r} is not a number of bytes", hint="for example 4GiB, 500MB or 1048576"
        )
    number, prefix, binary, byte, _ = match.groups()
    prefix = (prefix or "").lower()
    factor = _BINARY[prefix] if prefix and (binary or not byte) else _DECIMAL[prefix]
    return int(float(number) * factor)


def parse_some_bytes(value: str | int, what: str, example: str) -> int:
    """The same, where none at all would leave room for nothing.

    Raises:
        RequestError: as `parse_bytes`, and for 0.
    """
    nbytes = parse_bytes(value, what)
    if not nbytes:
        raise RequestError(f"{what} {value!r} holds nothing", hint=f"for example {example}")
    return nbytes


def parse_memory(value: str | int) -> int:
    """Bytes that may be held at a time.

    Raises:
        RequestError: as `parse_bytes`, and for less than any payload can be converted in.
    """
    nbytes = parse_bytes(value, "memory")
    if nbytes < LEAST_MEMORY:
        raise RequestError(
            f"memory {value!r} is too little for any payload", hint=f"give {LEAST_MEMORY >> 10}KiB or more"
        )
    return nbytes


def parse_rate(value: str | float, what: str = "rate") -> int:
    """Bytes a second of `10Gb/s` (bits), `100MB/s`, `1GiB/s`; a bare number is bytes a second.

    A small `b` is a bit, a large one a byte, as network and disk vendors write them.

    Raises:
        RequestError: anything else; a prefix alone (`10G`) could mean either and is refused.
    """
    match = _RATE.fullmatch(str(value).strip())
    if not match or ((match[2] or match[3]) and not match[4]):
        raise RequestError(
            f"{what} {value!r} is not a rate",
            hint="for example 10Gb/s (bits), 100MB/s (bytes), or bytes a second",
        )
    number, prefix, binary, unit = match.groups()
    factor = (_BINARY if binary and prefix else _DECIMAL)[prefix.lower()]
    bits = unit is not None and (unit == "b" or unit.lower() == "bit")
    return int(float(number) * factor / (8 if bits else 1))


def parse_seconds(value: str | float, what: str = "duration") -> float:
    """Seconds of `90s`, `5m`, `1h30m`, `500ms`; a bare number is seconds.

    Raises:
        RequestError: anything else.
    """
    text = str(value).strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise RequestError(f"{what} {value!r} is not a duration", hint="for example 90s, 5m or 1h30m")
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in _DURATION_PART.findall(text))


def format_bytes(nbytes: float) -> str:
    """`318.24 GB`: decimal units, three to five digits."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":
            break
        value /= 1000
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.2f} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def format_rate(rate: float) -> str:
    """`611 MB/s`: three digits are all that a rate is worth."""
    value, unit = format_bytes(rate).split()
    number = float(value)
    digits = 0 if number >= 100 or unit == "B" else 1
    return f"{number:.{digits}f} {unit}/s"


def format_seconds(seconds: float) -> str:
    """`0.04 s`, `1.2 s`, `12 s`, `4m 10s`, `1h 02m`, `3d 04h`."""
    if not math.isfinite(seconds):
        return "forever"
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"
