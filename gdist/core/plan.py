"""What one host will do: its shards, the pieces they need, in loading order, and what that costs.

Planner and placer intersect the same boxes, so they cannot disagree: the pieces planned here are exactly
those that `Placer` finds bytes in (a property test holds them to it).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gdist.core.box import Box, runs_of_box
from gdist.core.extent import Extent, coalesce
from gdist.core.grid import GridMaker, ShardGrid, shards_of
from gdist.core.layout import ShardLayout
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.payload import Payload
from gdist.core.profile import check_storable
from gdist.core.rules import Rules, check_used, complete_mesh, resolve_specs
from gdist.core.tensor import Order, StoredTensor
from gdist.core.view import chunk_indexes, not_viewed, view_grid, views_of


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to write: `tensor` is the index in the plan, `index` the shard's place in its grid."""

    tensor: int
    index: tuple[int, ...]
    box: Box


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor, how it is split and cut, and the shards of it that this host writes, in C order."""

    tensor: StoredTensor
    spec: PartitionSpec
    grid: ShardGrid
    shards: tuple[ShardTask, ...]

    def layout(self) -> ShardLayout:
        """Where bytes lie in the shard files."""
        return ShardLayout(self.grid, self.tensor.spec.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor that this host keeps."""
        return sum(self.tensor.spec.nbytes_of(shard.box) for shard in self.shards)

    def nbytes_wanted(self, shard: ShardTask) -> int:
        """Bytes of the payload that a shard is made of."""
        return sum(f.tensor.spec.nbytes_of(f.box_for(shard.box)) for f in self.tensor.sources)


_Known = dict[int, tuple[TensorPlan, tuple[range, ...]]]  # by identity: hashing a plan takes longer
_Index = tuple[int, ...]


@dataclass(frozen=True)
class HostPlan:
    """All that one host will do; `tensors` are in loading order."""

    payload: Payload
    mesh: Mesh
    host: HostGroup
    tensors: tuple[TensorPlan, ...]
    identity: str = field(default="")
    _known: _Known = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def runs(self) -> tuple[tuple[range, ...], ...]:
        """For each tensor the runs of pieces that hold a byte of this host's shards of it."""
        for plan in self.tensors:  # hosts that were planned together share tensors' plans, and what is known
            if id(plan) not in self._known:
                self._known[id(plan)] = plan, tuple(piece_runs(plan, self.payload))
        return tuple(self._known[id(plan)][1] for plan in self.tensors)

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Pieces that hold a byte of this host's shards, in the order their tensors are loaded."""
        ordered: dict[int, None] = {}
        for runs in self.runs:
            for run in runs:
                ordered.update(dict.fromkeys(run))
        return tuple(ordered)

    @cached_property
    def bytes_wanted(self) -> int:
        """Bytes of the payload that this host's shards are made of."""
        return sum(plan.nbytes_wanted(shard) for plan in self.tensors for shard in plan.shards)

    @cached_property
    def bytes_touched(self) -> int:
        """Bytes of all the pieces that hold them."""
        return sum(self.payload.extent_of(piece).length for piece in self.pieces)

    @property
    def amplification(self) -> float:
        """Bytes touched over bytes wanted; 1.0 when every piece is wanted whole."""
        return self.bytes_touched / self.bytes_wanted if self.bytes_wanted else 1.0

    @cached_property
    def store_nbytes(self) -> int:
        """Bytes of the shard files, indexes and padding included."""
        return sum(len(plan.shards) * plan.layout().file_nbytes for plan in self.tensors if plan.shards)

    @cached_property
    def digest(self) -> str:
        """Names the plan: equal for the same torrent, tensors, grids, mesh and host; SHA-256, hex."""
        content = [
            self.identity,
            str(self.mesh),
            [self.host.index, self.host.count],
            [
                [
                    p.tensor.spec.name,
                    p.tensor.spec.dtype.name,
                    p.grid.shape,
                    p.grid.shard,
                    p.grid.slab,
                    p.grid.chunk,
                ]
                for p in self.tensors
            ],
            [
                [part.extent.start, part.extent.length, part.box.start, part.box.stop, part.order.value]
                for p in self.tensors
                for factor in p.tensor.sources
                for part in factor.tensor.parts
            ],
            *([self.mesh.order] if self.mesh.order else []),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def touched(plan: TensorPlan, gap: int) -> Iterator[Extent]:
    """Extents of the payload that cover this host's bytes of a tensor, joined where at most `gap` apart."""
    extents: list[Extent] = []
    for factor in plan.tensor.sources:
        itemsize = factor.tensor.spec.dtype.itemsize
        for part, shard in itertools.product(factor.tensor.parts, plan.shards):
            common = part.box.intersect(factor.box_for(shard.box))
            if common is None:
                continue
            inside = common.relative_to(part.box.start)
            shape = part.box.shape
            if part.order is Order.F:
                inside, shape = inside.reversed(), shape[::-1]
            for run in runs_of_box((*shape, itemsize), inside.with_bytes(itemsize), gap):
                extents.append(run.shift(part.extent.start))
    yield from coalesce(extents, gap)


def piece_order(payload: Payload, tensors: Sequence[StoredTensor]) -> tuple[int, ...]:
    """All pieces, first those with tensors, as these are loaded; the same whatever a host needs of them."""
    ordered: dict[int, None] = {}
    for tensor in tensors:
        for factor in tensor.sources:
            for part in factor.tensor.parts:
                ordered.update(dict.fromkeys(payload.pieces_of(part.extent)))
    ordered.update(dict.fromkeys(range(payload.pieces)))
    return tuple(ordered)


def piece_runs(plan: TensorPlan, payload: Payload) -> Iterator[range]:
    """Runs of the pieces that hold a byte of the plan's shards, in order, no piece twice."""
    return (payload.pieces_of(extent) for extent in touched(plan, payload.piece_length - 1))


def plan_host(
    payload: Payload,
    tensors: Sequence[StoredTensor],
    mesh: Mesh,
    rules: Rules | None,
    host: HostGroup | None = None,
    *,
    identity: str = "",
    shard_bytes: int | None = None,
    some: bool = False,
) -> HostPlan:
    """The plan of one host for tensors given in loading order.

    Axes that the rules name and the mesh lacks are added with size 1. `rules` None splits tensors
    automatically (`automatic_spec`); `identity` names the source (its info-hash) in the plan's digest;
    `shard_bytes` bounds a shard file, for targets that take it whole; `some` says that these are a choice of
    a model's tensors, so that rules for others are no mistake.

    Raises:
        RequestError: for every tensor without a rule or that the mesh does not divide, for rules of another
            model, and when the hosts do not divide the mesh.
        UnsupportedError: as `check_storable`.
    """
    hosts = (host or HostGroup(),)
    return plan_hosts(
        payload, tensors, mesh, rules, hosts, identity=identity, shard_bytes=shard_bytes, some=some
    )[0]


def plan_hosts(
    payload: Payload,
    tensors: Sequence[StoredTensor],
    mesh: Mesh,
    rules: Rules | None,
    hosts: Sequence[HostGroup],
    *,
    identity: str = "",
    shard_bytes: int | None = None,
    some: bool = False,
) -> tuple[HostPlan, ...]:
    """The plans of hosts of one cluster, each as `plan_host` makes it; what they share is one object.

    Raises:
        RequestError: as `plan_host`.
        UnsupportedError: as `check_storable`.
    """
    check_storable(tensors, payload)
    mesh = complete_mesh(mesh, rules)
    places = [host.devices(mesh) for host in hosts]
    specs = resolve_specs(mesh, rules, tensors)
    if not some:
        check_used(rules, tensors)
    maker = GridMaker(mesh, hosts[0].count, shard_bytes=shard_bytes)
    deals: dict[tuple[ShardGrid, PartitionSpec], list[tuple[_Index, ...]]] = {}
    plans: list[list[TensorPlan]] = [[] for _ in hosts]
    for number, (tensor, spec) in enumerate(zip(tensors, specs, strict=True)):
        grid = maker.grid(tensor.spec.shape, tensor.spec.dtype.itemsize, spec)
        if (grid, spec) not in deals:
            deals[grid, spec] = _deal(grid, mesh, spec, places)
        made: dict[int, TensorPlan] = {}
        for own, indices in zip(plans, deals[grid, spec], strict=True):
            if id(indices) not in made:
                shards = tuple(ShardTask(number, index, grid.box_of(index)) for index in indices)
                made[id(indices)] = TensorPlan(tensor, spec, grid, shards)
            own.append(made[id(indices)])
    known: _Known = {}
    return tuple(
        HostPlan(payload, mesh, host, tuple(own), identity, known)
        for host, own in zip(hosts, plans, strict=True)
    )


def plan_view(payload: Payload, tensors: Sequence[StoredTensor], *, identity: str = "") -> HostPlan:
    """The plan of a view: every chunk of every tensor, as it lies in the payload's files.

    Raises:
        UnsupportedError: for all tensors that do not lie there as they are, at once; and as `check_storable`.
    """
    check_storable(tensors, payload)
    plans, whole = [], PartitionSpec(())
    views, faults = views_of(tensors, payload)
    if faults:
        hint = "--select takes some of the others; --layout both makes shards of all, and views the others"
        raise not_viewed(faults, hint)
    for number, tensor in enumerate(tensors):
        view = views[number]
        grid = view_grid(tensor.spec.shape, view, tensor.spec.dtype.itemsize)
        shards = tuple(ShardTask(number, index, grid.box_of(index)) for index in chunk_indexes(grid))
        plans.append(TensorPlan(tensor, whole, grid, shards))
    return HostPlan(payload, Mesh((("model", 1),)), HostGroup(), tuple(plans), identity)


def _deal(
    grid: ShardGrid, mesh: Mesh, spec: PartitionSpec, places: Sequence[Sequence[int]]
) -> list[tuple[_Index, ...]]:
    """For each host the shards that hold its devices' slabs, in C order; equal ones are one object."""
    found: dict[tuple[_Index, ...], tuple[_Index, ...]] = {}
    deal = []
    for own in places:
        indices = shards_of(grid, mesh, spec, own)
        deal.append(found.setdefault(indices, indices))
    return deal
