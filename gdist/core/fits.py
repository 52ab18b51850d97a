"""Whether partition specs fit tensors on a mesh: all that does not, and the nearest meshes that do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import gcd, isqrt, log2, prod

from gdist.core.mesh import MOST_DEVICES, Mesh, PartitionSpec
from gdist.core.tensor import StoredTensor
from gdist.errors import RequestError

NAMED = 20  # names told for one cause; all are in the error's `tensors` and `faults`
ALIKE = 4  # so many names that differ in a number only are told as one
CAUSES = 12  # causes in the error's own sentence
NEAREST = 3  # meshes suggested
TRIED = 4096  # meshes looked at for them
NUMBER = re.compile(r"\d+")

Cut = tuple[int, tuple[str, ...]]
"""The size of a dimension, and the mesh axes that split it."""


class Kind(Enum):
    """What a spec does not fit: the size of a dimension, the number of dimensions, the mesh's axes."""

    SIZE = "size"
    DIMENSIONS = "dimensions"
    AXES = "axes"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a tensor cannot be split as its spec says; equal `before` and `after` are one cause."""

    tensor: str
    kind: Kind
    before: str
    after: str = ""

    def __str__(self) -> str:
        return f"{self.before} of {self.tensor!r}{self.after}"


def faults_of(mesh: Mesh, spec: PartitionSpec, name: str, shape: tuple[int, ...]) -> tuple[Fault, ...]:
    """All reasons why a spec cannot split a tensor evenly; none when it can."""
    sizes = dict(mesh.axes)
    unknown = [axis for dim in spec.dims for axis in dim if axis not in sizes]
    if unknown:
        after = f" names axis {unknown[0]!r}, mesh {mesh} has none of that name"
        return (Fault(name, Kind.AXES, f"partition spec {spec}", after),)
    if len(spec.dims) > len(shape):
        before = f"partition spec {spec} has {len(spec.dims)} dimensions, more than the {len(shape)}"
        return (Fault(name, Kind.DIMENSIONS, before),)
    found = []
    for dimension, size in enumerate(shape):
        count = prod(sizes[axis] for axis in spec.axes_of(dimension))
        if size % count:
            axes = ", ".join(spec.axes_of(dimension))
            before = f"mesh axis {axes!r} ({count}) does not divide dimension {dimension} ({size})"
            found.append(Fault(name, Kind.SIZE, before))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Fit:
    """How specs fit: tensors that have none, faults of the others, and the nearest meshes without any."""

    mesh: Mesh
    unmatched: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    nearest: tuple[Mesh, ...] = ()

    @property
    def ok(self) -> bool:
        """True when every tensor can be split as its spec says."""
        return not self.unmatched and not self.faults

    def causes(self, kind: Kind | None = None, most: int | None = None) -> list[str]:
        """The faults, one sentence for those of one cause; `most` of them."""
        alike: dict[tuple[str, str], list[str]] = {}
        for fault in self.faults:
            if kind in (None, fault.kind):
                alike.setdefault((fault.before, fault.after), []).append(fault.tensor)
        found = [f"{before} of {_listed(names)}{after}" for (before, after), names in alike.items()]
        if most and len(found) > most:
            found[most:] = [f"and {len(found) - most} more causes"]
        return found

    def error(self) -> RequestError:
        """Everything that does not fit, as one error."""
        sentences, hints = [], []
        if self.unmatched:
            sentences.append(f"no rule matches {_tensors(self.unmatched)}: {_listed(self.unmatched)}")
            hints.append('end the rules with [".*", []] to replicate what is left')
        says = {
            Kind.SIZE: (f"mesh {self.mesh} does not divide", self._nearest()),
            Kind.DIMENSIONS: (
                "rules do not fit",
                "give the rule of these tensors no more dimensions than they have",
            ),
            Kind.AXES: (
                "the mesh has not the axes for",
                "name the mesh's axes as the rules do, for example --mesh data=8,model=8",
            ),
        }
        for kind, (what, hint) in says.items():
            concerned = {fault.tensor for fault in self.faults if fault.kind is kind}
            if concerned:
                causes = "; ".join(self.causes(kind, CAUSES))
                sentences.append(f"{what} {_tensors(concerned)}: {causes}")
                hints.append(hint)
        return RequestError(
            "; ".join(sentences),
            hint="; ".join(hints),
            tensors=self.unmatched,
            faults=tuple(map(str, self.faults)),
            nearest=tuple(map(str, self.nearest)),
        )

    def _nearest(self) -> str:
        meshes = " or ".join(map(str, self.nearest))
        return f"the nearest meshes that do: {meshes}; or choose rules that split other dimensions"


def fit(mesh: Mesh, tensors: Iterable[StoredTensor], specs: Iterable[PartitionSpec | None]) -> Fit:
    """How specs fit tensors on a mesh; None is the spec of a tensor that no rule matches."""
    unmatched: list[str] = []
    faults: list[Fault] = []
    cuts: set[Cut] = set()
    for tensor, spec in zip(tensors, specs, strict=True):
        name, shape = tensor.spec.name, tensor.spec.shape
        if spec is None:
            unmatched.append(name)
            continue
        found = faults_of(mesh, spec, name, shape)
        faults += found
        scales = tensor.quantisation is not None and tensor.quantisation.role == "scales"
        if not scales and all(fault.kind is Kind.SIZE for fault in found):  # specs of scales follow the mesh
            cuts.update((size, spec.axes_of(d)) for d, size in enumerate(shape) if size and spec.axes_of(d))
    uneven = any(fault.kind is Kind.SIZE for fault in faults)
    return Fit(mesh, tuple(unmatched), tuple(faults), nearest_meshes(mesh, cuts) if uneven else ())


def nearest_meshes(mesh: Mesh, cuts: Iterable[Cut], most: int = NEAREST) -> tuple[Mesh, ...]:
    """Meshes with these axes that divide everything they split, nearest first.

    Near is a small sum of the factors by which axes change. One with as many devices is among them if there
    is one in reach.
    """
    cuts = set(cuts)
    ways = [_sizes(name, size, cuts) for name, size in mesh.axes]
    split = sum(len(way) > 1 for way in ways)
    each = max(int(TRIED ** (1 / split)), 2) if split else 1
    found = []
    for sizes in itertools.islice(itertools.product(*(_nearest(way, each) for way in ways)), TRIED):
        named = dict(zip(mesh.names, sizes, strict=True))
        even = all(size % prod(named[axis] for axis in axes) == 0 for size, axes in cuts)
        if even and prod(sizes) <= MOST_DEVICES:
            far = sum(abs(log2(a / b)) for a, b in zip(sizes, mesh.sizes, strict=True))
            found.append((round(far, 6), -prod(sizes), sizes))
    found.sort()
    chosen = found[:most]
    same = next((entry for entry in found if -entry[1] == mesh.devices), None)
    if same and same not in chosen:
        chosen = [*chosen[: most - 1], same]
    return tuple(Mesh(tuple(zip(mesh.names, sizes, strict=True))) for *_, sizes in chosen)


def _sizes(axis: str, size: int, cuts: Iterable[Cut]) -> list[int]:
    """Sizes an axis could have, nearest to its own first: what divides all that it splits."""
    common = gcd(*(length for length, axes in cuts if axis in axes))
    if not common:
        return [size]
    return sorted(_divisors(common), key=lambda d: (abs(log2(d / size)), -d))


def _nearest(ways: Sequence[int], most: int) -> list[int]:
    """The first of some sizes, and 1, which always fits."""
    kept = list(ways[:most])
    return kept if 1 in kept or len(ways) == 1 else [*kept[: most - 1], 1]


def _divisors(size: int) -> Iterator[int]:
    for low in range(1, isqrt(size) + 1):
        if size % low == 0:
            yield from {low, size // low}


def _listed(names: Iterable[str]) -> str:
    """Names for a message; many that differ in a number only are one, `'layer.*.w' (64)`."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(NUMBER.sub("*", name), []).append(name)
    shown: list[tuple[str, int]] = []
    for group in alike.values():
        many = len(group) >= ALIKE
        text = f"{_form(group)!r} ({len(group)})"
        shown += [(text, len(group))] if many else [(f"{n!r}", 1) for n in group]
    left = sum(count for _, count in shown[NAMED:])
    return ", ".join(text for text, _ in shown[:NAMED]) + (f" and {left} more" if left else "")


def _form(names: Sequence[str]) -> str:
    """Names that differ in numbers only as one: a `*` for each number that differs."""
    columns = zip(*map(NUMBER.findall, names), strict=True)
    shown = iter([column[0] if len(set(column)) == 1 else "*" for column in columns])
    return NUMBER.sub(lambda match: next(shown), names[0])


def _tensors(names: Iterable[str]) -> str:
    number = len(list(names))
    return "1 tensor" if number == 1 else f"{number} tensors"
