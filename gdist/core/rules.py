"""Partition rules: which PartitionSpec a tensor gets, by its name.

The convention of EasyLM and of Grok-1's own table: a list of `(regex, spec)`, the regex is searched in the
tensor's name, the first match wins. Both halves of a quantised pair go by the pair's name; what the spec
means for the scales is worked out in `spec_for_tensor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from gdist.core.mesh import Mesh, PartitionSpec, misfit, split_counts
from gdist.core.tensor import StoredTensor
from gdist.errors import RequestError

NAMED = 20  # tensors without a rule in the error's own sentence; all are in its `tensors`


@dataclass(frozen=True, slots=True)
class Rule:
    """`spec` for the tensors in whose name the regular expression `pattern` is found."""

    pattern: str
    spec: PartitionSpec


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in order, and the mesh axes they speak of."""

    axes: tuple[str, ...]
    rules: tuple[Rule, ...]

    def spec_for(self, name: str) -> PartitionSpec | None:
        """The spec of the first rule that matches, or None."""
        for rule in self.rules:
            if re.search(rule.pattern, name):
                return rule.spec
        return None

    def to_json(self) -> dict[str, object]:
        """The form `parse_rules` reads."""
        return {"axes": list(self.axes), "rules": [[r.pattern, r.spec.to_json()] for r in self.rules]}


def parse_spec(value: object) -> PartitionSpec:
    """Reads `[null, "model", ["data", "model"]]`.

    Raises:
        RequestError: for anything else.
    """
    if not isinstance(value, list | tuple):
        raise RequestError(f"partition spec {value!r} is not a list", hint='for example [null, "model"]')
    dims: list[tuple[str, ...]] = []
    for item in value:
        if item is None:
            dims.append(())
        elif isinstance(item, str):
            dims.append((item,))
        elif isinstance(item, list | tuple) and all(isinstance(name, str) for name in item):
            dims.append(tuple(item))
        else:
            raise RequestError(f"partition spec {value!r} has {item!r}, which is no axis name, list or null")
    return PartitionSpec(tuple(dims))


def parse_rules(value: object) -> Rules:
    """Reads `{"axes": ["data", "model"], "rules": [[REGEX, SPEC], ...]}`.

    Raises:
        RequestError: naming every rule that is not one.
    """
    hint = 'rules look like {"axes": ["data", "model"], "rules": [["wq$", [null, "model"]], [".*", []]]}'
    if not isinstance(value, dict) or not isinstance(value.get("rules"), list):
        raise RequestError("rules are not an object with a list named 'rules'", hint=hint)
    axes = value.get("axes", [])
    if not isinstance(axes, list) or not all(isinstance(axis, str) for axis in axes):
        raise RequestError(f"axes of the rules are {axes!r}, not a list of names", hint=hint)
    rules, faults = [], []
    for number, item in enumerate(value["rules"]):
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[0], str):
            faults.append(f"rule {number} ({item!r}) is not [REGEX, SPEC]")
            continue
        try:
            re.compile(item[0])
            rules.append(Rule(item[0], parse_spec(item[1])))
        except re.error as error:
            faults.append(f"rule {number}: {item[0]!r} is not a regular expression ({error})")
        except RequestError as error:
            faults.append(f"rule {number}: {error}")
    if faults:
        raise RequestError("; ".join(faults), hint=hint)
    return Rules(tuple(axes), tuple(rules))


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
    if (
        tensor.quantisation
        and tensor.quantisation.role == "scales"
        and len(spec.dims) <= len(tensor.spec.shape)
    ):
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


def complete_mesh(mesh: Mesh, rules: Rules | None) -> Mesh:
    """The mesh with the axes that the rules speak of and it lacks, each of size 1.

    So one device, or `--mesh 8`, works with rules for `data` and `model`.

    Raises:
        RequestError: when the mesh has other axes of its own besides, which is more likely a misspelt name.
    """
    axes = rules.axes if rules else ()
    missing = tuple(axis for axis in axes if axis not in mesh.names)
    strange = [name for name, size in mesh.axes if size > 1 and name not in axes]
    if missing and strange:
        raise RequestError(
            f"mesh {mesh} has an axis {strange[0]!r} that the rules do not know, and lacks {missing[0]!r}",
            hint=f"the rules split tensors over {', '.join(axes)}: for example --mesh "
            + ",".join(f"{axis}=8" for axis in axes),
        )
    return Mesh((*((axis, 1) for axis in missing), *mesh.axes))


def resolve_specs(
    mesh: Mesh, rules: Rules | None, tensors: Iterable[StoredTensor]
) -> tuple[PartitionSpec, ...]:
    """The spec of every tensor, in order.

    Raises:
        RequestError: naming every tensor without a rule, and every one that the mesh does not divide.
    """
    specs, unmatched = [], []
    misfits: list[str] = []
    deep: list[str] = []
    faults: list[str] = []
    tensors = tuple(tensors)
    weights = {
        t.quantisation.pair: t.spec.shape
        for t in tensors
        if t.quantisation and t.quantisation.role == "weight"
    }
    for tensor in tensors:
        pair = tensor.quantisation.pair if tensor.quantisation else ""
        spec = spec_for_tensor(mesh, rules, tensor, weights.get(pair))
        if spec is None:
            unmatched.append(tensor.spec.name)
            continue
        fault = misfit(mesh, spec, tensor.spec.name, tensor.spec.shape)
        if fault:
            faults.append(fault)
            (deep if len(spec.dims) > len(tensor.spec.shape) else misfits).append(fault)
        specs.append(spec)
    if unmatched or misfits or deep:
        sentences, hints = [], []
        if unmatched:
            more = f" and {len(unmatched) - NAMED} more" if len(unmatched) > NAMED else ""
            names = ", ".join(unmatched[:NAMED])
            sentences.append(f"no rule matches {_tensors(len(unmatched))}: {names}{more}")
            hints.append('end the rules with [".*", []] to replicate what is left')
        if misfits:
            sentences.append(f"mesh {mesh} does not divide {_tensors(len(misfits))}: {'; '.join(misfits)}")
            hints.append("choose a mesh whose axes divide these dimensions, or rules that split others")
        if deep:
            sentences.append(f"rules do not fit {_tensors(len(deep))}: {'; '.join(deep)}")
            hints.append("give the rule of these tensors no more dimensions than they have")
        raise RequestError(
            "; ".join(sentences), hint="; ".join(hints), tensors=tuple(unmatched), faults=tuple(faults)
        )
    return tuple(specs)


def _tensors(number: int) -> str:
    return "1 tensor" if number == 1 else f"{number} tensors"
