"""From the path of a target's leaf to the name of the tensor that fills it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

from gdist.core.rename import RenameTable
from gdist.errors import RequestError
from gdist.rename_files import read_rename

Rename = Mapping[str, str] | Iterable[tuple[str, str]] | Callable[[str], str]
RenameLike = Rename | RenameTable | str | os.PathLike[str] | None


def table_or_names(rename: RenameLike, target: object) -> tuple[RenameTable | None, Rename | None]:
    """A table that gives a store's tensors other names, or what finds a leaf's tensor; one of them is None.

    Raises:
        RequestError: when there is no such table, or no `target` that has leaves.
    """
    if isinstance(rename, RenameTable | str | os.PathLike):
        return read_rename(rename), None
    if rename is not None and target is None:
        raise RequestError(
            "rename= of paths needs target=; a renaming table does not",
            hint="give the tree whose leaves it is about, or name a table",
        )
    return None, rename


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
