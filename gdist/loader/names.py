"""From the path of a target's leaf to the name of the tensor that fills it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from gdist.errors import RequestError

Rename = Mapping[str, str] | Iterable[tuple[str, str]] | Callable[[str], str]


def renamer(rename: Rename | None) -> Callable[[str], str]:
    """A function from paths to names.

    A mapping leaves paths that it lacks as they are. Pairs of a regular expression and its replacement are
    substituted as by `re.sub`: every pair in turn, wherever it is found in what the one before left.

    Raises:
        RequestError: naming every pair that is not one.
    """
    if rename is None:
        return lambda path: path
    if callable(rename):
        return rename
    if isinstance(rename, Mapping):
        return lambda path: rename.get(path, path)
    steps, faults = [], []
    for pair in rename:
        try:
            pattern, replacement = pair
            step = re.compile(pattern)
            step.sub(replacement, "")  # a group that the pattern lacks is found on any text
            steps.append((step, replacement))
        except (re.error, TypeError, ValueError) as error:
            faults.append(f"{pair!r}: {error}")
    if faults:
        raise RequestError(
            f"rename has what is no (regular expression, replacement): {'; '.join(faults)}",
            hint=r'for example [(r"^params\.", ""), (r"layer_(\d+)", r"layers.\1")]',
            faults=tuple(faults),
        )

    def substituted(path: str) -> str:
        for step, replacement in steps:
            path = step.sub(replacement, path)
        return path

    return substituted
