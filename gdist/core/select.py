"""Part of the tensors, by regular expressions that are searched in their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gdist.errors import RequestError

SHOWN = 5  # names in the message about a pattern that none has


def check_patterns(patterns: Iterable[str]) -> None:
    """That patterns can be searched for.

    Raises:
        RequestError: naming every one that is no regular expression.
    """
    faults = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            faults.append(f"{pattern[:200]!r} ({error})")
    if faults:
        raise RequestError(
            f"select is no regular expression: {', '.join(faults)}",
            hint=r"for example decoder_layer_[0-7]\. for the first eight layers",
            patterns=tuple(faults),
        )


def chosen_names(names: Iterable[str], patterns: Sequence[str]) -> frozenset[str]:
    """The names in which any of the patterns is found; all names without a pattern.

    Raises:
        RequestError: for patterns that are no regular expressions, or that no name has.
    """
    check_patterns(patterns)
    names = tuple(dict.fromkeys(names))
    found = [{name for name in names if re.search(pattern, name)} for pattern in patterns]
    idle = [pattern for pattern, some in zip(patterns, found, strict=True) if not some]
    if idle:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise RequestError(
            f"select {', '.join(map(repr, idle))} is found in no tensor's name: "
            f"{', '.join(names[:SHOWN])}{more}",
            hint="gdist inspect lists the names; both halves of a quantised pair go by the pair's",
            patterns=tuple(idle),
        )
    return frozenset().union(*found) if patterns else frozenset(names)
