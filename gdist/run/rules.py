"""How rules split a source or a store before anything is fetched: slabs, shares, and what does not fit."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.fits import Fit, fit
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, slab_indices, split_counts
from gdist.core.reshard import rules_of
from gdist.core.rules import Rules, check_used, complete_mesh, kept_specs, specs_of
from gdist.core.select import chosen_names
from gdist.core.store_manifest import StoreManifest
from gdist.core.tensor import Part, StoredTensor, TensorSpec
from gdist.events import Observer
from gdist.run.inspect import look
from gdist.run.survey import Survey, SurveyOptions

NAMED = 3  # rules that match nothing, by pattern; more go by number


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """`mesh` None is a store's own, else one device; `rules` None those of the release, else automatic."""

    mesh: Mesh | None = None
    rules: Rules | None = None
    host: HostGroup = field(default_factory=HostGroup)
    survey: SurveyOptions = field(default_factory=SurveyOptions)


@dataclass(frozen=True, slots=True)
class TensorSplit:
    """A tensor: `rule` is the index of its rule, `slab` what a device holds, `host_nbytes` the host's.

    `spec` is None where no rule matches; `slab` and what follows are None where the tensor does not fit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    rule: int | None
    spec: PartitionSpec | None
    slab: tuple[int, ...] | None = None
    slab_nbytes: int | None = None
    host_nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class RuleUse:
    """A rule, and how many names it is the first for; `shadowed` are those an earlier rule takes from it."""

    pattern: str
    spec: PartitionSpec
    names: int
    shadowed: int


@dataclass(frozen=True, slots=True)
class RulesReport:
    """What the rules make of every tensor; `rules` is empty where the split is automatic or the store's."""

    name: str
    mesh: Mesh
    host: HostGroup
    tensors: tuple[TensorSplit, ...]
    rules: tuple[RuleUse, ...]
    fit: Fit
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when every tensor has a rule and is split evenly."""
        return self.fit.ok

    @property
    def device_nbytes(self) -> int:
        """Bytes that each device holds."""
        return sum(tensor.slab_nbytes or 0 for tensor in self.tensors)

    @property
    def host_nbytes(self) -> int:
        """Bytes that the host holds."""
        return sum(tensor.host_nbytes or 0 for tensor in self.tensors)


def check(
    source: str | os.PathLike[str],
    options: CheckOptions | None = None,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> RulesReport:
    """How each tensor of a source, a store or a local checkpoint is split; of a torrent, headers are fetched.

    Raises:
        RequestError: when the mesh has other axes than the rules, the hosts do not divide it, or the rules
            are another model's.
        GdistError: when the source cannot be found or read.
    """
    asked = options or CheckOptions()
    found = look(source, asked.survey, observe=observe, stop=stop)
    rules = asked.rules
    notes: list[str] = []
    if isinstance(found, Survey):
        name, tensors, mesh, rules = found.name, found.tensors, asked.mesh or Mesh(), rules or found.rules
        notes += found.notes
    else:
        manifest = _chosen(found.joined, asked.survey.select)
        name, tensors, mesh = manifest.source.name, _tensors_of(manifest), asked.mesh or manifest.mesh
    mesh = complete_mesh(mesh, rules)
    places = asked.host.devices(mesh)
    # On another mesh a store that no axis cut says nothing of how to split it, here as in a reshard.
    kept = not isinstance(found, Survey) and (asked.mesh is None or rules_of(found.joined) is not None)
    if rules is None and kept:
        stored = zip(tensors, manifest.tensors, strict=True)
        specs: Sequence[PartitionSpec | None] = kept_specs(
            mesh, [(own, tensor.spec) for own, tensor in stored]
        )
        notes.append("no rules: split as the store is")
    else:
        specs = specs_of(mesh, rules, tensors)
        if rules is None:
            notes.append(
                "no rules: split automatically, each tensor along its largest dimension that divides"
            )
    fits = fit(mesh, tensors, specs)
    if fits.ok and not asked.survey.select:
        check_used(rules, tensors)
    uses = _uses(rules, tensors)
    notes += _doubts(uses)
    unfit = {fault.tensor for fault in fits.faults}
    return RulesReport(
        name,
        mesh,
        asked.host,
        tuple(
            _split(mesh, places, rules, tensor, spec, tensor.spec.name not in unfit)
            for tensor, spec in zip(tensors, specs, strict=True)
        ),
        uses,
        fits,
        tuple(notes),
    )


def _chosen(manifest: StoreManifest, select: tuple[str, ...]) -> StoreManifest:
    names = [t.quantisation.pair if t.quantisation else t.name for t in manifest.tensors]
    kept = chosen_names(names, select)
    return replace(
        manifest,
        tensors=tuple(t for t, name in zip(manifest.tensors, names, strict=True) if name in kept),
    )


def _tensors_of(manifest: StoreManifest) -> tuple[StoredTensor, ...]:
    """The tensors of a store in the terms of rules; where their bytes lie is of no matter there."""
    found = []
    for tensor in manifest.tensors:
        spec = TensorSpec(tensor.name, tensor.shape, tensor.dtype, tensor.encoding)
        part = Part(Extent(0, spec.nbytes), Box.whole(spec.shape))
        found.append(StoredTensor(spec, (part,), tensor.quantisation))
    return tuple(found)


def _split(
    mesh: Mesh,
    places: Sequence[int],
    rules: Rules | None,
    tensor: StoredTensor,
    spec: PartitionSpec | None,
    fits: bool,
) -> TensorSplit:
    own = tensor.spec
    rule = rules.find(tensor.rule_name) if rules else None
    if spec is None or not fits:
        return TensorSplit(own.name, own.shape, own.dtype.name, own.nbytes, rule, spec)
    counts = split_counts(mesh, spec, len(own.shape))
    slab = tuple(size // count for size, count in zip(own.shape, counts, strict=True))
    nbytes = prod(slab) * own.dtype.itemsize
    held = len(slab_indices(mesh, spec, len(own.shape), places))
    return TensorSplit(
        own.name, own.shape, own.dtype.name, own.nbytes, rule, spec, slab, nbytes, held * nbytes
    )


def _uses(rules: Rules | None, tensors: Sequence[StoredTensor]) -> tuple[RuleUse, ...]:
    names = dict.fromkeys(tensor.rule_name for tensor in tensors)
    first = [rules.find(name) for name in names] if rules else []
    return tuple(
        RuleUse(
            rule.pattern,
            rule.spec,
            first.count(number),
            sum(
                rule.matches(name)
                for name, winner in zip(names, first, strict=True)
                if winner is not None and winner < number
            ),
        )
        for number, rule in enumerate(rules.rules if rules else ())
    )


def _doubts(uses: Sequence[RuleUse]) -> list[str]:
    """What is odd about rules: those that no tensor goes by."""
    idle = [(number, use) for number, use in enumerate(uses) if not use.names]
    notes = [
        f"rule {number} ({use.pattern}) is never reached: earlier rules take all it matches ({use.shadowed})"
        for number, use in idle
        if use.shadowed
    ]
    unmatched = [(number, use) for number, use in idle if not use.shadowed]
    if len(unmatched) > NAMED:  # as in a table for a family of models
        return [*notes, f"rules {', '.join(str(number) for number, _ in unmatched)} match nothing"]
    return notes + [f"rule {number} ({use.pattern}) matches nothing" for number, use in unmatched]
