"""From pieces to shards: the state machine of a fetch, without any I/O.

    placer = Placer(plan)
    placer.wanted()               pieces still to come, in loading order
    placer.accept(4711)           -> placements: which bytes of the piece go where
    ... the sink writes them ...
    placer.settle(4711)           -> shards that are now whole

Placements never overlap, so the number of bytes a shard still misses is all its state. After a restart
`done` shards are whole, and the bytes of `placed` pieces are in the shards listed in `partial` already.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from gdist.core.box import Box, boxes_of_run, runs_of_box, tiles_of
from gdist.core.extent import Extent, locate
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.tensor import Order, Part


@dataclass(frozen=True, slots=True)
class Placement:
    """Take bytes of a piece, see them as an array, put a box of it into a shard.

    `source` counts from the start of the piece. Seen as bytes (last dimension: the bytes of an element)
    they have shape `view`; `take` is a box of that view, `target` the same box in the shard, counted from
    its first element. With Fortran `order`, `view` and `take` have all but the last dimension reversed.
    Where bytes lie in the shard's file as they lie in the piece, `view` and `take` are just a row of bytes
    and `target` is their extent in the file.
    Where a tensor is made of others, `factor` says which of them the bytes are of, and `target` counts from
    the first of its elements that the shard needs.
    """

    shard: ShardTask
    source: Extent
    view: tuple[int, ...]
    take: Box
    target: Box | Extent
    order: Order
    factor: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that go into the shard."""
        return self.take.size


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes of the payload that lie in a shard's file as they come, from `offset` on."""

    extent: Extent
    shard: ShardTask
    offset: int


class _StoredPart:
    """A part of a tensor: `tensor` in the plan, `factor` of it, and how its bytes come to the shards."""

    def __init__(self, tensor: int, factor: int, part: Part, plan: TensorPlan):
        self.tensor, self.factor, self.part, self._plan = tensor, factor, part, plan

    @cached_property
    def runs(self) -> tuple[_Run, ...] | None:
        """All of the part that this host keeps, as runs in payload order; None when it is more than runs.

        The usual case, and the cheap one: a piece in it is one or two runs, where as boxes it is five, each
        cut again into chunks.
        """
        plan, part = self._plan, self.part
        if plan.tensor.factors or part.order is not Order.C:
            return None
        layout, found = plan.layout(), []
        slab = tuple(map(min, plan.grid.shard, plan.grid.slab))
        for task in plan.shards:
            common = part.box.intersect(task.box)
            for _, box in tiles_of(common.relative_to(task.box.start), slab) if common else ():
                target = layout.run_of(box)
                stored = box.shift(task.box.start).relative_to(part.box.start)
                source, *others = itertools.islice(runs_of_box(part.box.shape, stored), 2)
                if target is None or others:
                    return None
                start = part.extent.start + source.start * layout.itemsize
                found.append(_Run(Extent(start, target.length), task, target.start))
        return tuple(_join(sorted(found, key=lambda run: run.extent.start)))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in the payload the runs start."""
        return tuple(run.extent.start for run in self.runs or ())


class Placer:
    """Where the bytes of each piece go, and which shards are whole; see the module's text."""

    def __init__(
        self,
        plan: HostPlan,
        *,
        done: Collection[ShardTask] = (),
        placed: Iterable[int] = (),
        partial: Collection[ShardTask] = (),
    ):
        self._plan = plan
        self._tasks = {(task.tensor, task.index): task for p in plan.tensors for task in p.shards}
        self._missing = {
            key: plan.tensors[task.tensor].nbytes_wanted(task) for key, task in self._tasks.items()
        }
        self._sources = [tensor.tensor.sources for tensor in plan.tensors]
        self._parts: dict[int, list[_StoredPart]] = {}  # by piece
        for number, tensor in enumerate(plan.tensors):
            for ordinal, factor in enumerate(self._sources[number] if tensor.shards else ()):
                for part in factor.tensor.parts:
                    stored = _StoredPart(number, ordinal, part, tensor)
                    for piece in plan.payload.pieces_of(part.extent):
                        self._parts.setdefault(piece, []).append(stored)
        self._settled: set[int] = set()
        self._pending: dict[int, tuple[Placement, ...]] = {}
        self._partial: frozenset[tuple[int, tuple[int, ...]]] = frozenset()
        self._placed: set[int] = set()
        for task in done:
            self._missing[task.tensor, task.index] = 0
        if done or placed:
            self._replay(set(placed), frozenset((task.tensor, task.index) for task in partial))
        self._missing_nbytes = sum(self._missing.values())

    def _replay(self, placed: set[int], partial: frozenset[tuple[int, tuple[int, ...]]]) -> None:
        for piece in sorted(placed & set(self._plan.pieces)):
            for placement in self._find(piece):
                key = placement.shard.tensor, placement.shard.index
                if key in partial:
                    self._missing[key] -= placement.nbytes
        self._partial, self._placed = partial, placed
        open_tensors = {number for (number, _), missing in self._missing.items() if missing}
        for piece in self._plan.pieces:
            touches_open = any(stored.tensor in open_tensors for stored in self._parts[piece])
            if not touches_open or not self._find(piece):
                self._settled.add(piece)

    def wanted(self) -> tuple[int, ...]:
        """Pieces that still have bytes to place, in loading order."""
        return tuple(piece for piece in self._plan.pieces if piece not in self._settled)

    @property
    def missing_nbytes(self) -> int:
        """Bytes of this host's shards that are not placed yet."""
        return self._missing_nbytes

    def whole(self) -> tuple[ShardTask, ...]:
        """Shards that miss nothing, in plan order."""
        return tuple(task for key, task in self._tasks.items() if not self._missing[key])

    def accept(self, piece: int) -> tuple[Placement, ...]:
        """Where the bytes of a verified piece go; empty when none of them is wanted any more."""
        if piece in self._settled:
            return ()
        if piece not in self._pending:
            self._pending[piece] = self._find(piece)
        return self._pending[piece]

    def _find(self, piece: int) -> tuple[Placement, ...]:
        extent = self._plan.payload.extent_of(piece)
        known = self._partial if piece in self._placed else ()
        placements: list[Placement] = []
        for stored in self._parts.get(piece, ()):
            number = stored.tensor
            placements.extend(
                p
                for p in (self._of_part if stored.runs is None else _runs_in)(stored, extent)
                if self._missing[number, p.shard.index] and (number, p.shard.index) not in known
            )
        return tuple(placements)

    def _of_part(self, stored_part: _StoredPart, piece: Extent) -> Iterable[Placement]:
        number, ordinal, part = stored_part.tensor, stored_part.factor, stored_part.part
        plan, factor = self._plan.tensors[number], self._sources[number][ordinal]
        itemsize, ratio = factor.tensor.spec.dtype.itemsize, factor.ratio and (*factor.ratio, 1)
        common = part.extent.intersect(piece)
        assert common is not None, f"piece {piece} has nothing of part {part}"
        fortran = part.order is Order.F
        stored = (*(part.box.shape[::-1] if fortran else part.box.shape), itemsize)
        position = common.start - piece.start
        first = common.start - part.extent.start
        for view in boxes_of_run(stored, first, first + common.length):
            source = Extent(position, view.size)
            position += view.size
            logical = Box((*view.start[:-1][::-1], view.start[-1]), (*view.stop[:-1][::-1], view.stop[-1]))
            inside = (logical if fortran else view).shift((*part.box.start, 0))
            for index, served in tiles_of(
                inside.times(ratio) if ratio else inside, (*plan.grid.shard, itemsize)
            ):
                task = self._tasks.get((number, index[:-1]))
                if task is None:
                    continue
                piece_box = served.over(ratio) if ratio else served
                take = piece_box.relative_to(inside.start)
                if fortran:
                    take = Box(
                        (*take.start[:-1][::-1], take.start[-1]), (*take.stop[:-1][::-1], take.stop[-1])
                    )
                target = piece_box.relative_to((*factor.box_for(task.box).start, 0))
                yield Placement(task, source, view.shape, take, target, part.order, ordinal)

    def settle(self, piece: int) -> tuple[ShardTask, ...]:
        """Records that a piece's placements are written; gives the shards that are whole since.

        Raises:
            AssertionError: if it places more than was missing.
        """
        whole = []
        for placement in self.accept(piece):
            key = placement.shard.tensor, placement.shard.index
            self._missing[key] -= placement.nbytes
            self._missing_nbytes -= placement.nbytes
            assert self._missing[key] >= 0, (
                f"shard {key} of {self._plan.identity} overfilled by piece {piece}"
            )
            if not self._missing[key]:
                whole.append(placement.shard)
        self._settled.add(piece)
        self._pending.pop(piece, None)
        return tuple(whole)


def _join(runs: Iterable[_Run]) -> list[_Run]:
    """Sorted runs, joined where one goes on where the last one ends, in the payload and in the shard."""
    joined: list[_Run] = []
    for run in runs:
        last = joined[-1] if joined else run
        end = last.extent.stop, last.shard, last.offset + last.extent.length
        if end == (run.extent.start, run.shard, run.offset):
            run = _Run(Extent(last.extent.start, run.extent.stop - last.extent.start), run.shard, last.offset)
            joined.pop()
        joined.append(run)
    return joined


def _runs_in(stored: _StoredPart, piece: Extent) -> Iterator[Placement]:
    """The placements of a piece's bytes of a part that is runs."""
    assert stored.runs is not None, "a part of runs"
    for run in itertools.islice(stored.runs, max(locate(stored.starts, piece.start), 0), None):
        if run.extent.start >= piece.stop:
            return
        common = run.extent.intersect(piece)
        if common is not None:
            target = Extent(run.offset + common.start - run.extent.start, common.length)
            row = Box((0,), (common.length,))
            yield Placement(run.shard, common.shift(-piece.start), row.stop, row, target, Order.C)
