"""Checkpoints saved in slices, joined by a declared profile: what each rank's array is of the whole.

    consolidated.00.pth  wq (2048, 4096) ─┐ concatenate, dimension 0
    consolidated.01.pth  wq (2048, 4096) ─┴──▶ wq (4096, 4096)        parts, shifted by their corner
    consolidated.00.pth  norm (4096,) ─┐ replicated
    consolidated.01.pth  norm (4096,) ─┴──▶ norm (4096,)              copies, compared as they arrive

One profile is one TOML file (`docs/reference/profiles.md`). Nothing is guessed: a key that no rule matches,
a rank that is missing and a shape that contradicts another, or the model's own document, is an error.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import prod

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.profile import FileArrays, in_order, listed, tensors_of
from gdist.core.tensor import Combine, Factor, FoundArray, Order, Part, StoredTensor, TensorSpec
from gdist.errors import CorruptError, UnsupportedError

MOST_KEY = 1024  # characters; a regular expression may take the square of it


class Join(Enum):
    """How the arrays of one key in the files of several ranks make one tensor."""

    CONCATENATE = "concatenate"
    REPLICATED = "replicated"
    AVERAGED = "averaged"
    STACKED = "stacked"
    DISJOINT = "disjoint"


@dataclass(frozen=True, slots=True)
class JoinRule:
    """What becomes of the keys that `pattern` matches whole.

    `dimension` is that of a concatenation. `name` is a template of the match; `shape` has numbers, names of
    lengths that must agree everywhere, and "*". `split` cuts dimension 0 of the joined tensor in so many (a
    number or a name of a length) tensors, `{index}` in their names; `transpose` reverses the dimensions.
    """

    pattern: str
    join: Join = Join.DISJOINT
    dimension: int = 0
    name: str = ""
    shape: tuple[str | int, ...] = ()
    split: str | int = 0
    transpose: bool = False
    drop: bool = False


@dataclass(frozen=True, slots=True)
class JoinProfile:
    """How the files of a kind of checkpoint are joined.

    `files` is searched for at the end of a path; its group `shard` is the rank, further named groups tell
    sets of files apart that are joined by themselves, and fill in `prefix`, which goes before their keys.
    `document` is the name of a JSON file beside them, `sizes` the lengths in it by name: paths of its keys,
    joined by `*` and `/` from left to right.
    """

    name: str
    title: str
    files: str
    rules: tuple[JoinRule, ...]
    aliases: tuple[str, ...] = ()
    prefix: str = ""
    document: str = ""
    sizes: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All names it goes by."""
        return (self.name, *self.aliases)

    def may_be(self, files: Iterable[FileArrays]) -> bool:
        """True when every file is named like its own."""
        return all(self.match(file.path) for file in files)

    def match(self, path: str) -> re.Match[str] | None:
        """The end of a path that is named like its files."""
        return re.search(rf"(?:^|(?<=/))(?:{self.files})$", path)

    def rule_for(self, key: str) -> tuple[JoinRule, re.Match[str]] | None:
        """The first rule that matches a key, of a length that a tensor's name can have."""
        if len(key) > MOST_KEY:
            return None
        for rule in self.rules:
            if found := re.fullmatch(rule.pattern, key):
                return rule, found
        return None


@dataclass(frozen=True, slots=True)
class _Set:
    """The files of all ranks that are joined with one another; `prefix` goes before their keys."""

    prefix: str
    files: tuple[FileArrays, ...]


def join_files(
    profile: JoinProfile, files: Sequence[FileArrays], documents: Mapping[str, bytes]
) -> tuple[StoredTensor, ...]:
    """The tensors of a checkpoint; `documents` are small JSON files of the payload by path.

    Raises:
        UnsupportedError: when the files are not those of the profile; says why.
        CorruptError: when ranks are missing, or shapes contradict each other or the document.
    """
    folder, sets = _sets(profile, files)
    lengths = _lengths(profile, folder, documents)
    joined: list[tuple[JoinRule, StoredTensor]] = []
    faults: list[str] = []
    unmatched: list[str] = []
    for group in sets:
        by_key: defaultdict[str, dict[int, FoundArray]] = defaultdict(dict)
        for rank, file in enumerate(group.files):
            for array in file.arrays:
                if array.role:
                    raise UnsupportedError(
                        f"{file.path!r} holds a quantised pair; profiles join plain arrays"
                    )
                by_key[array.key][rank] = array
        for key, arrays in by_key.items():
            matched = profile.rule_for(group.prefix + key)
            if matched is None:
                unmatched.append((group.prefix + key)[:200])
                continue
            rule, match = matched
            if rule.drop:
                continue
            name = match.expand(rule.name) if rule.name else group.prefix + key
            stored = [
                tensors_of(name, [array], group.files[rank].offset, group.files[rank].path)[0]
                for rank, array in sorted(arrays.items())
            ]
            try:
                joined.append((rule, _join(rule, name, stored, len(group.files))))
            except ValueError as error:
                faults.append(str(error))
    if unmatched:
        raise UnsupportedError(f"keys that profile {profile.name!r} does not know: {listed(unmatched)}")
    faults += _contradictions(joined, lengths)
    if faults:
        raise CorruptError(f"the files do not join by profile {profile.name!r}: {listed(faults)}")
    return in_order(
        (tensor, folder + profile.name)
        for rule, whole in joined
        for tensor in _finished(rule, whole, lengths)
    )


def _sets(profile: JoinProfile, files: Sequence[FileArrays]) -> tuple[str, tuple[_Set, ...]]:
    """The folder the files lie in, and the sets of them."""
    folders: set[str] = set()
    found: defaultdict[str, dict[int, FileArrays]] = defaultdict(dict)
    strange: list[str] = []
    for file in files:
        match = profile.match(file.path)
        if match is None:
            strange.append(repr(file.path))
            continue
        groups = match.groupdict()
        rank = int(groups.pop("shard", None) or 0)
        folders.add(file.path[: match.start()])
        ranks = found[profile.prefix.format(**groups)]
        if rank in ranks:
            strange.append(f"{file.path!r} beside {ranks[rank].path!r}")
        ranks[rank] = file
    if strange and len(folders) <= 1:
        raise UnsupportedError(f"files that are not those of profile {profile.name!r}: {listed(strange)}")
    if len(folders) != 1:
        raise UnsupportedError(
            f"profile {profile.name!r} joins the files of one folder; there are {listed(sorted(folders))}",
            hint="leave the others out with --ignore 'FOLDER/*'",
        )
    count = max(len(ranks) for ranks in found.values())
    gaps = [
        f"{next(iter(ranks.values())).path!r} and its like have ranks {', '.join(map(str, sorted(ranks)))}"
        for ranks in found.values()
        if sorted(ranks) != list(range(max(count, max(ranks) + 1)))
    ]
    if gaps:
        raise CorruptError(f"files of a rank are missing: {listed(gaps)}")
    return folders.pop(), tuple(
        _Set(prefix, tuple(ranks[rank] for rank in sorted(ranks))) for prefix, ranks in found.items()
    )


def _lengths(profile: JoinProfile, folder: str, documents: Mapping[str, bytes]) -> dict[str, int]:
    """Lengths that the model's own document tells; what is not in it stays unknown."""
    data = documents.get(folder + profile.document) if profile.document else None
    if data is None:
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{folder}{profile.document} is not JSON: {str(error)[:200]}") from error
    found = {name: _calculate(formula, document) for name, formula in profile.sizes.items()}
    return {name: value for name, value in found.items() if value is not None}


def _calculate(formula: str, document: object) -> int | None:
    """`a * b / c`, from left to right; None where a key is missing or is no positive number."""
    value = None
    operator = "*"
    for word in formula.split():
        if word in ("*", "/"):
            operator = word
            continue
        operand: object = document
        for key in word.split("."):
            operand = operand.get(key) if isinstance(operand, dict) else None
        if type(operand) is not int or operand <= 0:
            return None
        if operator == "/" and value is not None and value % operand:
            return None
        value = operand if value is None else value * operand if operator == "*" else value // operand
    return value


def _join(rule: JoinRule, name: str, stored: Sequence[StoredTensor], ranks: int) -> StoredTensor:
    """One tensor of the arrays of one key, by rank.

    Raises:
        ValueError: saying what does not fit.
    """
    first = stored[0].spec
    if rule.join is Join.DISJOINT:
        if len(stored) > 1:
            raise ValueError(f"{name!r} is in {len(stored)} files, not in one")
        return stored[0]
    if len(stored) != ranks:
        raise ValueError(f"{name!r} is in {len(stored)} of {ranks} files")
    axis = rule.dimension if rule.join is Join.CONCATENATE else None
    for other in stored[1:]:
        pairs = zip(other.spec.shape, first.shape, strict=False)
        same = all(a == b for d, (a, b) in enumerate(pairs) if d != axis)
        if other.spec.dtype != first.dtype or len(other.spec.shape) != len(first.shape) or not same:
            raise ValueError(
                f"{name!r} is {_described(first)} in one file and {_described(other.spec)} in another"
            )
    if rule.join is Join.STACKED:
        return _stack(name, stored)
    if ranks == 1:
        return stored[0]
    if rule.join is Join.CONCATENATE:
        return _concatenate(rule, name, stored)
    factors = tuple(
        Factor(replace(one, spec=replace(one.spec, name=f"{name}@{rank}"))) for rank, one in enumerate(stored)
    )
    combine = Combine.MEAN if rule.join is Join.AVERAGED else Combine.EQUAL
    return StoredTensor(first, (), factors=factors, combine=combine)


def _described(spec: TensorSpec) -> str:
    return f"{spec.dtype.name} {list(spec.shape)}"


def _concatenate(rule: JoinRule, name: str, stored: Sequence[StoredTensor]) -> StoredTensor:
    first, d = stored[0].spec, rule.dimension
    if d >= len(first.shape):
        raise ValueError(f"{name!r} of {_described(first)} has no dimension {d}")
    parts: list[Part] = []
    position = 0
    for one in stored:
        corner = tuple(position if n == d else 0 for n in range(len(first.shape)))
        parts += [replace(part, box=part.box.shift(corner)) for part in one.parts]
        position += one.spec.shape[d]
    shape = (*first.shape[:d], position, *first.shape[d + 1 :])
    return StoredTensor(replace(first, shape=shape), tuple(parts))


def _stack(name: str, stored: Sequence[StoredTensor]) -> StoredTensor:
    parts = [
        replace(part, box=Box((rank, *part.box.start), (rank + 1, *part.box.stop)))
        for rank, one in enumerate(stored)
        for part in one.parts
    ]
    spec = stored[0].spec
    return StoredTensor(replace(spec, name=name, shape=(len(stored), *spec.shape)), tuple(parts))


def _contradictions(
    joined: Iterable[tuple[JoinRule, StoredTensor]], lengths: dict[str, int]
) -> Iterator[str]:
    """Shapes that are not as the rules say; learns the lengths that nobody has told."""
    for rule, tensor in joined:
        if not rule.shape:
            continue
        shape, name = tensor.spec.shape, tensor.spec.name
        if len(shape) != len(rule.shape):
            yield f"{name!r} of shape {list(shape)} has not {len(rule.shape)} dimensions"
            continue
        for have, want in zip(shape, rule.shape, strict=True):
            due = lengths.setdefault(want, have) if isinstance(want, str) and want != "*" else want
            if due not in ("*", have):
                yield f"{name!r} has shape {list(shape)}, where {want} is {due}"


def _finished(rule: JoinRule, whole: StoredTensor, lengths: Mapping[str, int]) -> Iterator[StoredTensor]:
    """The tensors that a joined one becomes: split, then transposed."""
    count = lengths.get(rule.split, 0) if isinstance(rule.split, str) else rule.split
    pieces = _split(whole, count) if rule.split else (whole,)
    for piece in pieces:
        yield _transposed(piece) if rule.transpose else piece


def _split(whole: StoredTensor, count: int) -> Iterator[StoredTensor]:
    name, shape = whole.spec.name, whole.spec.shape
    c_ordered = all(part.order is Order.C for part in whole.parts) and not whole.factors
    if not count or not shape or shape[0] % count or not c_ordered:
        raise UnsupportedError(f"{name!r} of shape {list(shape)} cannot be split in {count}")
    rows = shape[0] // count
    for index in range(count):
        parts = []
        for part in whole.parts:
            low = max(part.box.start[0], index * rows)
            high = min(part.box.stop[0], (index + 1) * rows)
            if low >= high:
                continue
            row = prod(part.box.shape[1:]) * whole.spec.dtype.itemsize
            extent = Extent(part.extent.start + (low - part.box.start[0]) * row, (high - low) * row)
            box = Box((low - index * rows, *part.box.start[1:]), (high - index * rows, *part.box.stop[1:]))
            parts.append(Part(extent, box))
        spec = replace(whole.spec, name=name.replace("{index}", str(index)), shape=(rows, *shape[1:]))
        yield StoredTensor(spec, tuple(parts))


def _transposed(tensor: StoredTensor) -> StoredTensor:
    """The same bytes with the dimensions reversed: C order becomes Fortran's."""
    turned = {Order.C: Order.F, Order.F: Order.C}
    parts = tuple(Part(p.extent, p.box.reversed(), turned[p.order]) for p in tensor.parts)
    factors = tuple(replace(f, tensor=_transposed(f.tensor)) for f in tensor.factors)
    spec = replace(tensor.spec, shape=tensor.spec.shape[::-1])
    return replace(tensor, spec=spec, parts=parts, factors=factors)
