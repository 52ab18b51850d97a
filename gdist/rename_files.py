"""Renaming tables as files of TOML: those shipped with gdist, by name, and a user's own.

Shipped ones lie in `gdist/_renames/NAME.toml`; a new one is a new file.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from gdist.core.rename import RenameTable, parse_table
from gdist.errors import RequestError, translate

FOLDER = Path(__file__).parent / "_renames"
MOST_BYTES = 2**20  # thousands of rules

RenameLike = RenameTable | str | os.PathLike[str]


def rename_names() -> tuple[str, ...]:
    """Names of all tables that gdist ships, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_rename(value: RenameLike) -> RenameTable:
    """A table: itself, a shipped one by its name, or a file (a text that ends in `.toml` or has a `/`).

    Raises:
        RequestError: when there is none, or it is no table.
        FilesystemError: when it cannot be read.
    """
    if isinstance(value, RenameTable):
        return value
    if isinstance(value, str) and not (value.endswith(".toml") or "/" in value):
        if value not in rename_names():
            raise RequestError(
                f"rename {value!r} is no table that gdist knows",
                hint=f"known: {', '.join(rename_names())}; a file's name ends in .toml or has a /",
            )
        return _read(FOLDER / f"{value}.toml")
    return _read(Path(value))


def _read(path: Path) -> RenameTable:
    where = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            hint = f"known names: {', '.join(rename_names())}"
            raise RequestError(f"there is no renaming table {where!r}", hint=hint) from error
        raise translate(error, f"reading the renaming table {where!r}") from error
    except ValueError as error:  # a NUL in the path
        raise RequestError(f"rename {where!r} is no path: {error}") from error
    if len(data) > MOST_BYTES:
        raise RequestError(f"the renaming table {where!r} is larger than {MOST_BYTES} bytes")
    try:
        value = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise RequestError(
            f"the renaming table {where!r} is no TOML: {error}",
            hint=r"put patterns in single quotes: 'layers\.(\d+)\.wq\.weight'",
        ) from error
    try:
        table = parse_table(value)
    except RequestError as error:
        raise RequestError(f"the renaming table {where!r}: {error.message}", hint=error.hint) from error
    return table if table.name else RenameTable(path.stem, table.title, table.rules, table.keep_other)
