"""Colours that people with any kind of colour vision tell apart, under black text.

Paul Tol's scheme `light` (SRON/EPS/TN/09-002, issue 3.2), made for filling labelled cells.
"""

from __future__ import annotations

PALETTE = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00")
SEVERAL = "#DDDDDD"  # for what belongs to no single one, under text
NEUTRAL = "#8B949E"  # the same without text


def colour(key: int | None) -> str:
    """The colour of a number; None is what belongs to no single one."""
    return SEVERAL if key is None else PALETTE[key % len(PALETTE)]
