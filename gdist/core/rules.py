"""Partition rules: which PartitionSpec a tensor gets, by its name.

The convention of EasyLM and of Grok-1's own table: a list of `(regex, spec)`, the regex is searched in the
tensor's name, the first match wins. gdist joins names by `.` where EasyLM joins them by `/`: a pattern with
a `/` is searched in the name with `/` for its dots, too. Both halves of a quantised pair go by the pair's
name; what the spec means for the scales is worked out in `spec_for_tensor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from gdist.core.fits import fit
from gdist.core.mesh import AXIS, Mesh, PartitionSpec, split_counts
from gdist.core.tensor import StoredTensor
from gdist.errors import RequestError

KEYS = ("axes", "rules")
SHOWN = 200  # characters of what is no rule in messages
NOBODYS_NAME = "\x01"  # only a pattern that matches everything is found in it


@dataclass(frozen=True, slots=True)
class Rule:
    """`spec` for the tensors in whose name the regular expression `pattern` is found."""

    pattern: str
    spec: PartitionSpec

    def matches(self, name: str) -> bool:
        """True when the pattern is found in a tensor's name, or, with a `/` in it, in the name so joined."""
        if re.search(self.pattern, name):
            return True
        return "/" in self.pattern and re.search(self.pattern, name.replace(".", "/")) is not None

    @property
    def matches_all(self) -> bool:
        """True for a pattern like `.*`, which every name has."""
        return re.search(self.pattern, NOBODYS_NAME) is not None


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in order, and the mesh axes they speak of."""

    axes: tuple[str, ...]
    rules: tuple[Rule, ...]

    def find(self, name: str) -> int | None:
        """The index of the first rule that matches, or None."""
        return next((number for number, rule in enumerate(self.rules) if rule.matches(name)), None)

    def spec_for(self, name: str) -> PartitionSpec | None:
        """The spec of the first rule that matches, or None."""
        number = self.find(name)
        return None if number is None else self.rules[number].spec

    @property
    def named(self) -> tuple[str, ...]:
        """The axes, and where none were listed those that the specs name."""
        named = (axis for rule in self.rules for dim in rule.spec.dims for axis in dim)
        return self.axes or tuple(dict.fromkeys(named))

    def to_json(self) -> dict[str, object]:
        """The form `parse_rules` reads."""
        return {"axes": list(self.axes), "rules": [[r.pattern, r.spec.to_json()] for r in self.rules]}


def parse_spec(value: object) -> PartitionSpec:
    """Reads `[null, "model", ["data", "model"]]`.

    Raises:
        RequestError: for anything else.
    """
    shown = repr(value)[:SHOWN]
    if not isinstance(value, list | tuple):
        raise RequestError(f"partition spec {shown} is not a list", hint='for example [null, "model"]')
    dims: list[tuple[str, ...]] = []
    for item in value:
        if item is None:
            dims.append(())
        elif isinstance(item, str):
            dims.append((item,))
        elif isinstance(item, list | tuple) and all(isinstance(name, str) for name in item):
            dims.append(tuple(item))
        else:
            raise RequestError(
                f"partition spec {shown} has {repr(item)[:SHOWN]}, which is no axis name, list or null"
            )
    return PartitionSpec(tuple(dims))


def parse_rules(value: object) -> Rules:
    """Reads `{"axes": ["data", "model"], "rules": [[REGEX, SPEC], ...]}`.

    Raises:
        RequestError: naming every rule that is not one.
    """
    hint = 'rules look like {"axes": ["data", "model"], "rules": [["wq$", [null, "model"]], [".*", []]]}'
    if not isinstance(value, Mapping) or not isinstance(value.get("rules"), list):
        raise RequestError("rules are not an object with a list named 'rules'", hint=hint)
    axes = value.get("axes", [])
    if not isinstance(axes, list) or not all(isinstance(axis, str) for axis in axes):
        raise RequestError(f"axes of the rules are {repr(axes)[:SHOWN]}, not a list of names", hint=hint)
    faults = [f"{repr(key)[:SHOWN]} is none of {', '.join(KEYS)}" for key in value if key not in KEYS]
    faults += [f"axis {axis[:SHOWN]!r} is no name" for axis in axes if not re.fullmatch(AXIS, axis)]
    if len(set(axes)) != len(axes):
        faults.append(f"axes {', '.join(axes)} name one twice")
    rules = []
    for number, item in enumerate(value["rules"]):
        try:
            rules.append(_parse_rule(item, axes))
        except RequestError as error:
            faults.append(f"rule {number}: {error.message}")
    if faults:
        raise RequestError("; ".join(faults), hint=hint)
    return Rules(tuple(axes), tuple(rules))


def _parse_rule(item: object, axes: list[str]) -> Rule:
    if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[0], str):
        raise RequestError(f"{repr(item)[:SHOWN]} is not [REGEX, SPEC]")
    pattern, spec = item[0], parse_spec(item[1])
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RequestError(f"{pattern[:SHOWN]!r} is not a regular expression ({error})") from error
    for name in (name for dim in spec.dims for name in dim):
        if not re.fullmatch(AXIS, name):
            raise RequestError(f"axis {name[:SHOWN]!r} is no name")
        if axes and name not in axes:
            raise RequestError(f"axis {name!r} is not among the axes {', '.join(axes)}")
    return Rule(pattern, spec)


def automatic_spec(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """A spec for a tensor nobody wrote a rule for: fully sharded on its largest dimension that allows it.

    The whole mesh's axes split the largest dimension they divide; else the most axes that divide any
    dimension; vectors and scalars, and what nothing divides, are replicated.
    """
    if len(shape) < 2:
        return PartitionSpec()
    names = [name for name, size in mesh.axes if size > 1]
    sizes = dict(mesh.axes)
    best: tuple[int, int, int, tuple[str, ...]] | None = None
    for dimension, size in enumerate(shape):
        for first in range(len(names)):
            axes = tuple(names[first:])
            count = prod(sizes[name] for name in axes)
            if size and size % count == 0:
                candidate = (count, size, -dimension, axes)
                best = max(best, candidate) if best else candidate
    if best is None:
        return PartitionSpec()
    return PartitionSpec(((),) * -best[2] + (best[3],))


def spec_for_tensor(
    mesh: Mesh, rules: Rules | None, tensor: StoredTensor, shape: tuple[int, ...] | None = None
) -> PartitionSpec | None:
    """The spec of one tensor on a mesh, or None when no rule matches.

    `shape` is that of the weight when the tensor is the scales of a quantised pair: without rules both are
    split by it. A rule that matches the pair speaks of the weight; see `spec_for_scales`.
    """
    if rules is None:
        spec = automatic_spec(mesh, shape or tensor.spec.shape)
    else:
        found = rules.spec_for(tensor.rule_name)
        if found is None:
            return None
        spec = found
    known = all(name in mesh.names for dim in spec.dims for name in dim)
    scales = tensor.quantisation is not None and tensor.quantisation.role == "scales"
    if scales and known and len(spec.dims) <= len(tensor.spec.shape):
        spec = spec_for_scales(mesh, spec, tensor.spec.shape)
    return spec


def spec_for_scales(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    """The spec of scales of this shape whose weight has `spec`: every device gets the groups of its rows.

    Each dimension is split by as many of the weight's axes, from the first, as divide it. By all: a device
    has just the groups of its rows. By fewer, or none, where one group serves the rows of several devices:
    they share groups, each device's own among them. So it is right on every mesh, also where the groups are
    tied to another one, as those of Grok-1 are to 8-way splits.

    Raises:
        RequestError: when the spec names an axis the mesh lacks, or more dimensions than there are.
    """
    split_counts(mesh, spec, len(shape))
    sizes = dict(mesh.axes)
    dims = []
    for dimension, size in enumerate(shape):
        axes = spec.axes_of(dimension) if size > 1 else ()
        while size % prod(sizes[name] for name in axes):
            axes = axes[:-1]
        dims.append(axes)
    return PartitionSpec(tuple(dims))


def kept_specs(
    mesh: Mesh, tensors: Iterable[tuple[StoredTensor, PartitionSpec]]
) -> tuple[PartitionSpec, ...]:
    """A store's own specs, on any mesh; they may not fit.

    Scales go by their weight's, as in a fetch: on the store's own mesh they may be split less.
    """
    tensors = tuple(tensors)
    weights = {
        t.quantisation.pair: spec for t, spec in tensors if t.quantisation and t.quantisation.role == "weight"
    }
    specs = []
    for tensor, spec in tensors:
        asked = weights.get(tensor.quantisation.pair, spec) if tensor.quantisation else spec
        found = spec_for_tensor(mesh, Rules((), (Rule("", asked),)), tensor)
        assert found is not None, "the empty pattern matches every name"
        specs.append(found)
    return tuple(specs)


def complete_mesh(mesh: Mesh, rules: Rules | None) -> Mesh:
    """The mesh with the axes that the rules speak of and it lacks, each of size 1.

    So one device, or `--mesh 8`, works with rules for `data` and `model`.

    Raises:
        RequestError: when the mesh has other axes of its own besides, which is more likely a misspelt name.
    """
    axes = rules.named if rules else ()
    missing = tuple(axis for axis in axes if axis not in mesh.names)
    strange = [name for name, size in mesh.axes if size > 1 and name not in axes]
    if missing and strange:
        raise RequestError(
            f"mesh {mesh} has an axis {strange[0]!r} that the rules do not know, and lacks {missing[0]!r}",
            hint=f"the rules split tensors over {', '.join(axes)}: for example --mesh "
            + ",".join(f"{axis}=8" for axis in axes),
        )
    return Mesh((*((axis, 1) for axis in missing), *mesh.axes), mesh.order)


def check_used(rules: Rules | None, tensors: Iterable[StoredTensor]) -> None:
    """That the rules speak of these tensors at all.

    Raises:
        RequestError: when no rule but one for everything matches any tensor: they are another model's.
    """
    own = [rule for rule in rules.rules if not rule.matches_all] if rules else []
    names = dict.fromkeys(tensor.rule_name for tensor in tensors)
    if own and names and not any(rule.matches(name) for name in names for rule in own):
        shown = ", ".join(list(names)[:3])
        raise RequestError(
            f"the rules match none of the {len(names)} names ({shown}, ...), but for the rule for everything",
            hint="choose this model's rules; gdist inspect shows its names",
            patterns=tuple(rule.pattern for rule in own),
        )


def specs_of(
    mesh: Mesh, rules: Rules | None, tensors: Iterable[StoredTensor]
) -> tuple[PartitionSpec | None, ...]:
    """The spec of every tensor, in order; None where no rule matches. They may not fit."""
    tensors = tuple(tensors)
    weights = {
        t.quantisation.pair: t.spec.shape
        for t in tensors
        if t.quantisation and t.quantisation.role == "weight"
    }
    return tuple(
        spec_for_tensor(mesh, rules, t, weights.get(t.quantisation.pair if t.quantisation else ""))
        for t in tensors
    )


def resolve_specs(
    mesh: Mesh, rules: Rules | None, tensors: Iterable[StoredTensor]
) -> tuple[PartitionSpec, ...]:
    """The spec of every tensor, in order.

    Raises:
        RequestError: naming every tensor without a rule, and every one that the mesh does not divide, with
            the nearest meshes that do.
    """
    tensors = tuple(tensors)
    specs = specs_of(mesh, rules, tensors)
    found = fit(mesh, tensors, specs)
    if not found.ok:
        raise found.error()
    return tuple(spec for spec in specs if spec is not None)
