"""Tables that give tensors the names a model expects, and what comes of one: which tensors make which.

    layers.0.attention.wq.weight  (4096, 4096)  ─┐
    layers.1.attention.wq.weight  (4096, 4096)   ├─▶  decoder.layers.query.kernel  (4096, 32, 4096)
    ...                                         ─┘    each transposed, then stacked on axis 1

The first rule whose pattern is the whole name wins. A quantised pair goes by the pair's name, both halves
alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from gdist.core.box import Box
from gdist.core.tensor import Quantisation, check_name
from gdist.errors import RequestError, UnsupportedError

TABLE_KEYS = ("name", "title", "rename", "other")
RULE_KEYS = ("match", "to", "transpose", "stack", "axis", "drop")
MOST_RULES = 10_000  # far more than any model has roles
SHOWN = 200  # characters of what a message quotes
LISTED = 20  # names that a message spells out; all are in the error's facts
T = TypeVar("T", str, bool, int)
D = TypeVar("D")
HINT = r"""for example [[rename]] match = 'layers\.(\d+)\.wq\.weight' to = 'layer_\1.query.kernel'"""


@dataclass(frozen=True, slots=True)
class RenameRule:
    """What becomes of tensors whose whole name matches; `stack` is a named group of the pattern, or "".

    `to` is a template with the pattern's groups, as `re.Match.expand` takes it. `transpose` reverses all
    dimensions. `axis` is where the new dimension of a stack goes, among those of the result.
    """

    match: re.Pattern[str]
    to: str
    transpose: bool = False
    stack: str = ""
    axis: int = 0
    drop: bool = False


@dataclass(frozen=True, slots=True)
class RenameTable:
    """Rules in order; `keep_other`: names that none matches stay as they are, else they are an error."""

    name: str
    title: str
    rules: tuple[RenameRule, ...]
    keep_other: bool = False


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """What a plan has to know of a tensor; `dtype` is its type's name, `encoding` as of `FoundArray`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: Quantisation | None = None
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class Renamed:
    """A tensor under its new name: of one source, or of several, stacked on `axis` in their order.

    `transpose`: each source's dimensions are reversed first. `axis` is None where nothing is stacked.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    transpose: bool = False
    axis: int | None = None
    quantisation: Quantisation | None = None
    encoding: str = ""

    @property
    def is_same(self) -> bool:
        """True where elements are where they were."""
        return self.axis is None and not self.transpose

    def dims(self, of_source: Sequence[D], new: D) -> tuple[D, ...]:
        """What is said of each dimension of a source, for each dimension here; `new` of the stack's own."""
        dims = list(of_source[::-1] if self.transpose else of_source)
        if self.axis is not None:
            dims.insert(self.axis, new)
        return tuple(dims)

    def source_boxes(self, box: Box) -> tuple[tuple[str, int | None, Box], ...]:
        """The sources that a box meets: the name, the place along the stack, and the box of the source."""
        if self.axis is None:
            return ((self.sources[0], None, box.reversed() if self.transpose else box),)
        axis = self.axis
        rest = Box((*box.start[:axis], *box.start[axis + 1 :]), (*box.stop[:axis], *box.stop[axis + 1 :]))
        inner = rest.reversed() if self.transpose else rest
        return tuple((self.sources[place], place, inner) for place in range(box.start[axis], box.stop[axis]))


@dataclass(frozen=True, slots=True)
class RenamePlan:
    """What a table makes of tensors, in the order of their first sources; `unmatched` have no rule."""

    table: str
    tensors: tuple[Renamed, ...]
    dropped: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    def check_complete(self) -> None:
        """That every tensor has a rule.

        Raises:
            RequestError: naming those that have none.
        """
        if self.unmatched:
            raise RequestError(
                f"the table {self.table!r} has no rule for {len(self.unmatched)} tensors: "
                f"{', '.join(self.unmatched)}",
                hint="gdist inspect --rename shows what a table makes of all; [other] keep = true keeps them",
                unmatched=self.unmatched,
            )


def parse_table(value: object) -> RenameTable:
    """A table as TOML has it: `name`, `title`, a list of `rename`, and `other.keep`.

    Raises:
        RequestError: naming every rule that is not one.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("rename"), list):
        raise RequestError("there is no list of [[rename]] in it", hint=HINT)
    faults = [f"{key[:SHOWN]!r} is none of {', '.join(TABLE_KEYS)}" for key in value if key not in TABLE_KEYS]
    name, title, other = value.get("name", ""), value.get("title", ""), value.get("other", {})
    faults += [f"{key} is no text" for key in ("name", "title") if not isinstance(value.get(key, ""), str)]
    keep = other.get("keep", False) if isinstance(other, Mapping) and set(other) <= {"keep"} else None
    if not isinstance(keep, bool):
        faults.append("[other] has keep = true or false, and nothing else")
    if len(value["rename"]) > MOST_RULES:
        raise RequestError(f"there are more than {MOST_RULES} rules in it")
    rules = []
    for number, item in enumerate(value["rename"], 1):
        try:
            rules.append(_parse_rule(item))
        except RequestError as error:
            faults.append(f"rename {number}: {error.message}")
    if faults:
        raise RequestError("; ".join(faults), hint=HINT, faults=tuple(faults))
    return RenameTable(name, title, tuple(rules), keep is True)


def _parse_rule(item: object) -> RenameRule:
    if not isinstance(item, Mapping) or not isinstance(item.get("match"), str):
        raise RequestError("it has no match = 'PATTERN'")
    strange = [str(key)[:SHOWN] for key in item if key not in RULE_KEYS]
    if strange:
        raise RequestError(f"{', '.join(strange)} is none of {', '.join(RULE_KEYS)}")
    try:
        pattern = re.compile(item["match"])
    except (re.error, OverflowError, RecursionError) as error:
        raise RequestError(f"match {item['match'][:SHOWN]!r} is no regular expression: {error}") from error
    rule = RenameRule(
        pattern,
        _typed(item, "to", ""),
        _typed(item, "transpose", False),
        _typed(item, "stack", ""),
        _typed(item, "axis", 0),
        _typed(item, "drop", False),
    )
    if rule.drop and set(item) - {"match", "drop"}:
        raise RequestError("what is dropped becomes nothing else")
    if not rule.drop:
        _check_rule(rule, item)
    return rule


def _typed(item: Mapping[str, object], key: str, default: T) -> T:
    value = item.get(key, default)
    if not isinstance(value, type(default)) or type(value) is not type(default):  # True is an int, no place
        raise RequestError(f"{key} is {repr(value)[:SHOWN]}, no {type(default).__name__}")
    return value


def _check_rule(rule: RenameRule, item: Mapping[str, object]) -> None:
    if not rule.to:
        raise RequestError("it has neither to = 'NAME' nor drop = true")
    try:
        rule.match.sub(rule.to, "")  # a group that the pattern lacks is found on any text
    except (re.error, IndexError) as error:
        raise RequestError(f"to {rule.to[:SHOWN]!r} does not fit the pattern: {error}") from error
    if "axis" in item and not rule.stack:
        raise RequestError("axis is of a stack, and there is none")
    if rule.axis < 0:
        raise RequestError(f"axis {rule.axis} is no place; the first is 0")
    if rule.stack and rule.stack not in rule.match.groupindex:
        raise RequestError(rf"stack {rule.stack[:SHOWN]!r} is no group: write (?P<{rule.stack[:SHOWN]}>\d+)")
    if rule.stack and rf"\g<{rule.stack}>" in rule.to:
        raise RequestError(f"to has the group {rule.stack!r}, which is what is stacked")


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor, its rule (None: it stays), its new name, and its place in a stack."""

    tensor: NamedTensor
    rule: RenameRule | None
    name: str
    place: int = 0


def plan_renames(table: RenameTable, tensors: Iterable[NamedTensor]) -> RenamePlan:
    """What a table makes of these tensors.

    Raises:
        RequestError: naming all that cannot be: two tensors of one name, stacks that lack a layer or whose
            tensors differ, numbers that are none, names that no store may hold, encoded blocks to be turned.
    """
    groups: dict[str, list[_Found]] = {}
    dropped, unmatched, faults = [], [], []
    for tensor in tensors:
        try:
            found = _match(table, tensor)
        except (RequestError, UnsupportedError) as error:
            faults.append(error.message)
            continue
        if found is None:
            unmatched.append(tensor.name)
        elif found.rule and found.rule.drop:
            dropped.append(tensor.name)
        else:
            groups.setdefault(found.name, []).append(found)
    made = []
    for group in groups.values():
        try:
            made.append(_made(group))
        except RequestError as error:
            faults.append(error.message)
    if faults:
        more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise RequestError(
            f"the table {table.name!r} does not fit: {'; '.join(faults[:LISTED])}{more}",
            hint="select= or --select takes part of the tensors when they are fetched; else change the table",
            faults=tuple(faults),
        )
    return RenamePlan(table.name, tuple(made), tuple(dropped), tuple(unmatched))


def _match(table: RenameTable, tensor: NamedTensor) -> _Found | None:
    half = tensor.quantisation
    old = half.pair if half else tensor.name
    matches = ((rule, rule.match.fullmatch(old)) for rule in table.rules)
    rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
    if rule is None or match is None:
        return _Found(tensor, None, tensor.name) if table.keep_other else None
    if rule.drop:
        return _Found(tensor, rule, "")
    if tensor.encoding and (rule.transpose or rule.axis):
        raise RequestError(
            f"{tensor.name!r} is blocks of {tensor.encoding}, which cannot be transposed, or stacked but on 0"
        )
    new = match.expand(rule.to)
    place = 0
    if rule.stack:
        text = match[rule.stack] or ""
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise RequestError(
                f"{tensor.name!r} has {text[:SHOWN]!r} where the number in the stack should be"
            )
        place = int(text)
    if half:
        tensor = replace(tensor, quantisation=replace(half, pair=new))
        new = f"{new}.{half.role}"
    check_name(new)
    return _Found(tensor, rule, new, place)


def _made(group: Sequence[_Found]) -> Renamed:
    """One tensor of the result, of all that go by its name."""
    first = group[0]
    rule, tensor = first.rule, first.tensor
    if rule is None or not rule.stack:
        if len(group) > 1:
            raise RequestError(f"{first.name!r} is what {_list(f.tensor.name for f in group)} become")
        transpose = rule is not None and rule.transpose
        return _of(tensor, Renamed(first.name, (), tensor.dtype, (tensor.name,), transpose))
    if any(found.rule is not rule for found in group):
        raise RequestError(
            f"{first.name!r} is what several rules make of {_list(f.tensor.name for f in group)}"
        )
    ordered = sorted(group, key=lambda found: found.place)
    places = [found.place for found in ordered]
    if places != list(range(len(places))):
        twice = [a for a, b in pairwise(places) if a == b]
        if twice:
            raise RequestError(f"{first.name!r} has several tensors number {twice[0]}")
        lacking = next(n for n, place in enumerate(places) if n != place)
        raise RequestError(f"{first.name!r} is stacked of {len(places)}, and number {lacking} is missing")
    kind = tensor.shape, tensor.dtype, tensor.encoding
    of_all = [(f.tensor.name, (f.tensor.shape, f.tensor.dtype, f.tensor.encoding)) for f in ordered]
    unlike = [name for name, its in of_all if its != kind]
    if unlike:
        raise RequestError(
            f"{first.name!r}: {_list(unlike)} are of other shapes or types than {tensor.name!r}"
        )
    if rule.axis > len(tensor.shape):
        raise RequestError(
            f"{first.name!r}: axis {rule.axis} is past the {len(tensor.shape)} of {tensor.name!r}"
        )
    sources = tuple(found.tensor.name for found in ordered)
    return _of(tensor, Renamed(first.name, (), tensor.dtype, sources, rule.transpose, rule.axis))


def _of(tensor: NamedTensor, made: Renamed) -> Renamed:
    """What is made of tensors like this one, with its shape, and with the dimension of groups of a pair."""
    half = tensor.quantisation
    if half:
        dimension = made.dims(range(len(tensor.shape)), -1).index(half.dimension)
        half = replace(half, dimension=dimension)
    shape = made.dims(tensor.shape, len(made.sources))
    return replace(made, shape=shape, quantisation=half, encoding=tensor.encoding)


def _list(names: Iterable[str]) -> str:
    names = tuple(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more
