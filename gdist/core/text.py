"""Numbers and names as people read them: ranges, counts, names cut to a width, text that cannot act."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """The text with everything that does not print as an escape.

    Names from torrents are hostile: a control character acts on a terminal, a direction mark turns a line
    around, and XML has no place for some code points at all.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, width: int) -> str:
    """The text in at most `width` characters; what is left out of its middle is an ellipsis."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def numbers(values: Iterable[int], width: int | None = None) -> str:
    """Distinct numbers as ranges, in ascending order.

        3   0-7   0,8..56   0-1,8-9..56-57   1,2,5-6

    `a,b..c` goes on from `b` in equal steps. What is longer than `width` is its beginning, `…`, and the last.
    """
    runs: list[tuple[int, int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1]:
            runs[-1] = (runs[-1][0], value + 1)
        else:
            runs.append((value, value + 1))
    return ranges(runs, width)


def ranges(runs: Sequence[tuple[int, int]], width: int | None = None) -> str:
    """Half-open runs of numbers, ascending and apart, as `numbers` writes them."""
    texts = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in runs]
    steps = {b[0] - a[0] for a, b in itertools.pairwise(runs)}
    even = len(runs) > 2 and len(steps) == 1 and len({b - a for a, b in runs}) == 1
    text = f"{texts[0]},{texts[1]}..{texts[-1]}" if even else ",".join(texts)
    if width is None or len(text) <= width:
        return text
    start, last = str(runs[0][0]), str(runs[-1][1] - 1)
    for n in range(1, len(texts)):
        longer = ",".join(texts[:n])
        if len(longer) + 1 + len(last) > width:
            break
        start = longer
    return f"{start}…{last}"


def count(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shape(dims: Sequence[int]) -> str:
    """`8x6144x32768`; a scalar is `scalar`."""
    return "x".join(map(str, dims)) or "scalar"
