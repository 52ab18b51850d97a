"""From the grid of a source to the grid of a store: what is read together, and where it goes.

A source is read in *chunks*: those of its own grid, which have to be read whole to be checked, or, in a
plain file, any box. A *unit* is a box of a tensor, made of whole source chunks, that is read at once, by one
worker, and written to all the shards it meets. It is grown until it holds whole chunks of the new grid too:

    source chunks    | a | b | c | d | e | f |
    new chunks       |   0   |   1   |   2   |     a unit may be ab, cd, ef, or abcdef: each chunk of both
                                                   grids is in one unit, read once, written once

Where memory does not allow that, a unit is as much of it as fits; a new chunk is then written in parts.
Every source chunk is in exactly one unit, so nothing is read twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import lcm, prod

from gdist.core.box import Box, tiles_of
from gdist.core.extent import Extent
from gdist.core.grid import row_block
from gdist.core.mesh import PartitionSpec
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan, ShardTask
from gdist.core.rules import Rule, Rules
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.tensor import Order, Part, StoredTensor, TensorSpec

UNIT_BYTES = 32 * 2**20  # small chunks are gathered up to this: what a unit costs by itself is then nothing


@dataclass(frozen=True, slots=True)
class Grain:
    """How a tensor can be read: in chunks of this shape, which are read `whole` or in any part."""

    chunk: tuple[int, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of a unit, where its source allows it (a chunk at least), and of one write; how many workers."""

    unit: int
    write: int
    workers: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A box of the tensor with this number in the plan: boxes to read, and the shards they are written to."""

    tensor: int
    box: Box
    reads: tuple[Box, ...]
    shards: tuple[ShardTask, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes that are read, and how many of them no shard of this host wants; in how many reads."""

    nbytes: int
    beyond: int
    reads: int


def unit_shape(
    shape: Sequence[int], source: Sequence[int], target: Sequence[int], itemsize: int, limit: int
) -> tuple[int, ...]:
    """The shape of a tensor's units: whole source chunks, and whole target chunks as far as `limit` allows.

    Dimensions are closed from the last one on, since that makes long runs in both; then small units are
    grown to `UNIT_BYTES`. A unit is one source chunk at least.
    """
    unit = [min(chunk, size) for chunk, size in zip(source, shape, strict=True)]
    for closing in (True, False):
        for d in reversed(range(len(unit))):
            others = prod(unit) // unit[d] * itemsize
            if closing:
                wanted = lcm(source[d], target[d])
            else:
                wanted = unit[d] * (min(limit, UNIT_BYTES) // (others * unit[d]))
            wanted = min(wanted, shape[d])
            if unit[d] < wanted and others * wanted <= limit:
                unit[d] = wanted
            if not closing and unit[d] < shape[d]:
                break  # rows before planes: a unit stays one run of the tensor as long as it can
    return tuple(unit)


def units_of(
    plan: HostPlan, number: int, grain: Grain, limit: int, done: Collection[ShardTask] = ()
) -> Iterator[Unit]:
    """The units of one tensor, in C order, that meet shards of this host which are not `done`."""
    tensor = plan.tensors[number]
    if not tensor.shards:
        return
    spec = tensor.tensor.spec
    shape = unit_shape(spec.shape, grain.chunk, tensor.grid.chunk, spec.dtype.itemsize, limit)
    meeting: dict[tuple[int, ...], list[ShardTask]] = {}
    for task in tensor.shards:
        if task not in done:
            for index, _ in tiles_of(task.box, shape):
                meeting.setdefault(index, []).append(task)
    for index, tasks in sorted(meeting.items()):
        box = _cell(index, shape, spec.shape)
        wanted = [common for task in tasks if (common := task.box.intersect(box))]
        yield Unit(number, box, _reads(wanted, grain, spec.shape), tuple(tasks))


def _cell(index: Sequence[int], cell: Sequence[int], shape: Sequence[int]) -> Box:
    """A cell of a regular grid, cut where the tensor ends."""
    start = tuple(i * c for i, c in zip(index, cell, strict=True))
    return Box(start, tuple(min(a + c, size) for a, c, size in zip(start, cell, shape, strict=True)))


def _reads(wanted: Sequence[Box], grain: Grain, shape: Sequence[int]) -> tuple[Box, ...]:
    if not grain.whole:
        return tuple(wanted)
    met = {index for box in wanted for index, _ in tiles_of(box, grain.chunk)}
    return tuple(_cell(index, grain.chunk, shape) for index in sorted(met))


def writes_of(plan: HostPlan, unit: Unit, limit: int) -> Iterator[tuple[ShardTask, Box]]:
    """The boxes a unit is written in, in coordinates of the tensor: each lies in one inner chunk of a shard.

    Whole inner chunks, or the part of one that is in the unit; a larger one in row blocks of `limit` bytes.
    """
    tensor = plan.tensors[unit.tensor]
    itemsize = tensor.tensor.spec.dtype.itemsize
    for task in unit.shards:
        common = task.box.intersect(unit.box)
        assert common is not None, f"shard {task} is not in unit {unit.box}"
        for _, part in tiles_of(common, tensor.grid.chunk):
            if part.size * itemsize <= limit:
                yield task, part
                continue
            block = row_block(part.shape, itemsize, limit)
            for _, local in tiles_of(Box.whole(part.shape), block):
                yield task, local.shift(part.start)


def placement_of(task: ShardTask, box: Box, itemsize: int) -> Placement:
    """That bytes which are just this box, in C order, go where it lies in the shard."""
    shape = (*box.shape, itemsize)
    inside = box.relative_to(task.box.start).with_bytes(itemsize)
    return Placement(task, Extent(0, prod(shape)), shape, Box.whole(shape), inside, Order.C)


class Ledger:
    """What is still to come; all its state is the number of bytes that each shard misses.

    The units it is told of must be those of `units_of`, each once.
    """

    def __init__(self, plan: HostPlan, done: Collection[ShardTask] = ()):
        self._plan = plan
        self._missing = {
            task: tensor.tensor.spec.nbytes_of(task.box)
            for tensor in plan.tensors
            for task in tensor.shards
            if task not in done
        }
        self._of_tensor = [0] * len(plan.tensors)
        for task, nbytes in self._missing.items():
            self._of_tensor[task.tensor] += nbytes
        self.missing_nbytes = sum(self._of_tensor)

    def settle(self, unit: Unit) -> tuple[ShardTask, ...]:
        """Records that a unit is written; the shards that are whole since."""
        spec = self._plan.tensors[unit.tensor].tensor.spec
        whole = []
        for task in unit.shards:
            common = task.box.intersect(unit.box)
            assert common is not None, f"shard {task} is not in unit {unit.box}"
            nbytes = spec.nbytes_of(common)
            self._missing[task] -= nbytes
            self._of_tensor[unit.tensor] -= nbytes
            self.missing_nbytes -= nbytes
            assert self._missing[task] >= 0, f"shard {task} overfilled by unit {unit.box}"
            if not self._missing[task]:
                whole.append(task)
        return tuple(whole)

    def read(self, tensor: int) -> bool:
        """True when nothing more of a tensor is to be read."""
        return not self._of_tensor[tensor]


def cost_of(plan: HostPlan, grains: Sequence[Grain], done: Collection[ShardTask] = ()) -> Cost:
    """What the units of all tensors read together; it is the same for any limit of a unit."""
    nbytes = wanted = count = 0
    for tensor, grain in zip(plan.tensors, grains, strict=True):
        spec = tensor.tensor.spec
        boxes = [task.box for task in tensor.shards if task not in done]
        reads = _reads(boxes, grain, spec.shape)
        nbytes += sum(map(spec.nbytes_of, reads))
        wanted += sum(map(spec.nbytes_of, boxes))
        count += len(reads)
    return Cost(nbytes, nbytes - wanted, count)


# --- a store as a source -------------------------------------------------------------------------------


def identity_of(manifest: StoreManifest) -> str:
    """What tells a store from others, on all hosts that read the same.

    An info-hash says what the bytes are, and a part of a store has the identity of all of it. Without one
    the digests say it, where all shards are here; of less, only what the store was made from.
    """
    source = manifest.source
    tensors = [[t.name, t.dtype.name, t.shape, t.grid.shard, t.grid.chunk] for t in manifest.tensors]
    about = [source.info_hash_v1, source.info_hash_v2, str(manifest.mesh), manifest.codec, manifest.steps]
    whole = all(len(tensor.shards) == prod(tensor.grid.shards) for tensor in manifest.tensors)
    digests = [contents_of(manifest)] if whole and not source.info_hash else []
    return hashlib.sha256(json.dumps([*about, tensors, *digests]).encode()).hexdigest()


def contents_of(manifest: StoreManifest) -> str:
    """A digest of all digests that are listed: what shards and assets hold."""
    found = hashlib.sha256(json.dumps(sorted([a.path, a.digest] for a in manifest.assets)).encode())
    for tensor in manifest.tensors:
        found.update(json.dumps([tensor.name, sorted(tensor.shards.items())]).encode())
    return found.hexdigest()


def stored_tensor(tensor: StoreTensor) -> StoredTensor:
    """The tensor as plans and rules know it; where its bytes lie is of no matter to them."""
    spec = TensorSpec(tensor.name, tensor.shape, tensor.dtype, tensor.encoding)
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),), tensor.quantisation)


def rules_of(manifest: StoreManifest) -> Rules | None:
    """Rules that cut as the store was cut; None where no mesh axis cut anything, which says nothing.

    Both halves of a quantised pair go by the weight's spec, from which the scales' follows on any mesh.
    """
    specs = {}
    for tensor in manifest.tensors:
        pair = tensor.quantisation
        if not pair or pair.role == "weight" or pair.pair not in specs:
            specs[pair.pair if pair else tensor.name] = tensor.spec
    if not any(any(spec.dims) for spec in specs.values()):
        return None
    names: dict[PartitionSpec, list[str]] = {}
    for name, spec in specs.items():
        names.setdefault(spec, []).append(re.escape(name))
    rules = (Rule(f"^(?:{'|'.join(alike)})$", spec) for spec, alike in names.items())
    return Rules(manifest.mesh.names, tuple(rules))
