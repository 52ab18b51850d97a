"""Profiles that join checkpoints saved in slices, as TOML files: those shipped with gdist, and a user's own.

Shipped ones lie in `gdist/_profiles/NAME.toml`; a new one is a new file. `docs/reference/profiles.md` says
what they hold.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from gdist.core.joins import Join, JoinProfile, JoinRule
from gdist.core.profiles import PROFILES
from gdist.errors import RequestError, translate

FOLDER = Path(__file__).parent / "_profiles"
MOST_BYTES = 2**18
_HINT = "docs/reference/profiles.md describes profiles; gdist/_profiles has those that gdist knows"
_FIELDS = frozenset({"name", "title", "files", "aliases", "prefix", "document", "sizes", "tensor"})
_RULE = frozenset({"match", "join", "dimension", "name", "shape", "split", "transpose", "drop"})


@cache
def join_profiles() -> tuple[JoinProfile, ...]:
    """The profiles shipped with gdist, by name."""
    return tuple(read_profile(path) for path in sorted(FOLDER.glob("*.toml")))


def profile_named(name: str) -> JoinProfile | None:
    """The profile of that name, or in that file (a path that ends in `.toml`); None for other names.

    Raises:
        RequestError, FilesystemError: as `read_profile`.
    """
    if name.endswith(".toml"):
        return read_profile(Path(name))
    return next((profile for profile in join_profiles() if name in profile.names), None)


def check_profile(name: str | None) -> None:
    """That there is a profile of that name, or in that file.

    Raises:
        RequestError, FilesystemError: when there is none, or it cannot be used.
    """
    if name is not None and name not in PROFILES and profile_named(name) is None:
        known = ", ".join(sorted({*PROFILES, *(n for p in join_profiles() for n in p.names)}))
        raise RequestError(
            f"profile {name!r} is not known",
            hint=f"known profiles: {known}; a file of your own ends in .toml",
            profile=name,
        )


def read_profile(path: Path) -> JoinProfile:
    """The profile in a file.

    Raises:
        RequestError: when there is no such file, or it is none; says what is wrong.
        FilesystemError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        return _profile(tomllib.loads(data.decode("utf-8-sig")))
    except FileNotFoundError as error:
        raise RequestError(f"there is no profile {str(path)!r}", hint=_HINT) from error
    except OSError as error:
        raise translate(error, f"reading {path}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a NUL in the path
        raise RequestError(f"profile {str(path)!r} cannot be used: {error}", hint=_HINT) from error


def _profile(body: dict[str, Any]) -> JoinProfile:  # Any: checked field by field
    _known(body, _FIELDS, {"name", "files", "tensor"}, "it")
    texts = {key: _text(body, key) for key in ("name", "title", "files", "prefix", "document")}
    _pattern(texts["files"], "files")
    sizes = body.get("sizes", {})
    if not isinstance(sizes, dict) or not all(isinstance(value, str) for value in sizes.values()):
        _wrong("sizes is no table of texts")
    aliases = body.get("aliases", [])
    rows = body["tensor"]
    if not isinstance(rows, list) or not isinstance(aliases, list) or not all(map(_is_table, rows)):
        _wrong("tensor is no array of tables, or aliases no list")
    groups = re.compile(texts["files"]).groupindex
    try:
        texts["prefix"].format(**dict.fromkeys(groups, "0"))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"prefix {texts['prefix']!r} names {error}, which is no group of files") from error
    return JoinProfile(
        rules=tuple(_rule(row) for row in rows),
        aliases=tuple(map(str, aliases)),
        sizes=sizes,
        **texts,
    )


def _rule(row: dict[str, Any]) -> JoinRule:  # Any: checked field by field
    _known(row, _RULE, {"match"}, "a tensor")
    pattern = _text(row, "match")
    compiled = _pattern(pattern, "match")
    kind = row.get("join", Join.DISJOINT.value)
    if kind not in [join.value for join in Join]:
        _wrong(f"join {kind!r} is none of {', '.join(join.value for join in Join)}")
    shape, split, dimension = row.get("shape", []), row.get("split", 0), row.get("dimension", 0)
    if not isinstance(shape, list) or not all(type(item) in (int, str) for item in shape):
        _wrong(f"shape {shape!r} is no list of numbers and names")
    if type(split) not in (int, str) or type(dimension) is not int or not 0 <= dimension < 32:
        _wrong(f"split {split!r} or dimension {dimension!r}")
    name = _text(row, "name")
    if name:
        try:
            re.compile(f"(?:{pattern})|").fullmatch("").expand(name)  # type: ignore[union-attr]  # it matches
        except (re.error, IndexError) as error:
            raise ValueError(f"name {name!r} of {pattern!r}: {error}") from error
    if split and "{index}" not in (name or pattern):
        _wrong(f"the tensors that {pattern!r} is split in have no {{index}} in their name")
    for key in ("transpose", "drop"):
        if type(row.get(key, False)) is not bool:
            _wrong(f"{key} is neither true nor false")
    assert compiled is not None
    return JoinRule(
        pattern,
        Join(kind),
        dimension,
        name,
        tuple(shape),
        split,
        row.get("transpose", False),
        row.get("drop", False),
    )


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _known(row: dict[str, Any], fields: frozenset[str], required: set[str], what: str) -> None:
    wrong = sorted(row.keys() - fields) + sorted(required - row.keys())
    if wrong:
        _wrong(f"{what} has or lacks {', '.join(wrong)}")


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str):
        _wrong(f"{key} is no text")
    return value


def _pattern(pattern: str, what: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(f"{what} {pattern!r} is no regular expression: {error}") from error


def _wrong(what: str) -> NoReturn:
    raise ValueError(what)
