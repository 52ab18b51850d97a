"""A sink in front of another: tensors that are made of others are made here, shard by shard.

    piece ─▶ place ─▶ staged/SHARD.part   weight | scales, as they are stored
                          │ commit: all bytes are there
                          ▼ block by block: product in float32, rounded to nearest even
                      the target's place, and its commit ─▶ the part is removed

What needs no conversion goes straight to the target. A shard's part is the only record of it before its
commit, so a run that is killed at any moment makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import floordiv, mul
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 and its kin with NumPy, by name
import numpy as np
from numpy.typing import NDArray

from gdist.core.box import Box, tiles_of
from gdist.core.convert import staging
from gdist.core.extent import Extent
from gdist.core.journal import ShardRecord
from gdist.core.layout import ShardLayout
from gdist.core.placer import Placement
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.store_manifest import StoreManifest
from gdist.core.tensor import Combine, Factor, Order
from gdist.errors import CorruptError
from gdist.sinks import Sink
from gdist.sinks.parts import PartFiles

BLOCK_BYTES = 4 * 2**20  # of float32 made at once: what a commit holds, a few times over

Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type


class ConvertingSink:
    """Makes what `plan` says is made (see `gdist.core.convert`), and gives it to `target`.

    `work` is a local directory; what is made of waits there.
    """

    def __init__(self, target: Sink, work: Path, plan: HostPlan):
        self._target = target
        self._plan = plan
        self._made = {task for p in plan.tensors if p.tensor.factors for task in p.shards}
        self._staged = PartFiles(work / "staged", plan, lambda task: staging(plan.tensors[task.tensor], task))

    def restore(self, records: Iterable[ShardRecord]) -> tuple[set[ShardTask], set[ShardTask]]:
        """After a restart: the shards of `records` that the target has, and those of which bytes are here."""
        done, partial = self._target.restore(records)
        # A shard half written there was being made: what it is made of is still here, or has to come again.
        return done, (partial - self._made) | self._staged.present(self._made - done)

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        """Writes bytes of a piece to where they are used or wait; thread-safe."""
        made: dict[bool, list[Placement]] = {False: [], True: []}
        for placement in placements:
            made[placement.shard in self._made].append(placement)
        self._target.place(made[False], piece)
        self._staged.place(made[True], piece)

    def commit(self, task: ShardTask) -> ShardRecord:
        """Makes the shard where it has to be made, and commits it to the target; thread-safe."""
        if task not in self._made:
            return self._target.commit(task)
        for block in self._blocks(task):
            self._target.place(*block)
        record = self._target.commit(task)
        self._staged.remove(task)
        return record

    def _blocks(self, task: ShardTask) -> Iterator[tuple[tuple[Placement], memoryview]]:
        """The shard block by block, made one at a time: each the placement of a piece that holds just it."""
        plan = self._plan.tensors[task.tensor]
        dtype, content = np.dtype(plan.tensor.spec.dtype.name), self._staged.map(task)
        parts = [
            _Staged(factor, task.box, layout, content[start : start + layout.data_nbytes])
            for factor, (start, layout) in zip(plan.tensor.factors, staging(plan, task), strict=True)
        ]
        tile = _block(plan.grid.chunk, BLOCK_BYTES // 4)
        for chunk, _ in plan.layout().chunks():
            corner = tuple(map(mul, chunk, plan.grid.chunk))
            for _, inside in tiles_of(Box.whole(plan.grid.chunk), tile):
                box = inside.shift(corner)
                values = _COMBINED[plan.tensor.combine]([part.read(box) for part in parts], dtype)
                if values is None:
                    raise _differ(plan, task)
                data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                take = Box.whole(box.shape).with_bytes(dtype.itemsize)
                target = box.with_bytes(dtype.itemsize)
                yield (Placement(task, Extent(0, take.size), take.shape, take, target, Order.C),), data

    def publish(self, plan: TensorPlan) -> None:
        """Writes the tensor's documents."""
        self._target.publish(plan)

    def sync(self) -> None:
        """Returns once what was placed before the call is on the disk."""
        self._staged.sync()
        self._target.sync()

    def write_document(self, path: str, data: bytes) -> None:
        """Puts a small file in place."""
        self._target.write_document(path, data)

    def finish(self, manifest: StoreManifest, documents: Mapping[str, bytes]) -> None:
        """Root documents, then the manifest."""
        self._target.finish(manifest, documents)

    def close(self) -> None:
        """Closes what waits, which stays for the next run, and the target."""
        self._staged.close()
        self._target.close()


@dataclass(frozen=True, slots=True)
class _Staged:
    """What one shard needs of a factor: `content` are its bytes, `shard` is the shard's box."""

    factor: Factor
    shard: Box
    layout: ShardLayout
    content: NDArray[np.uint8]

    def read(self, box: Box) -> Array:
        """Elements for a box of the shard that is inside one of its chunks, ready to be multiplied."""
        wanted = self.factor.box_for(box.shift(self.shard.start))
        inside = wanted.relative_to(self.factor.box_for(self.shard).start)
        chunk = self.layout.grid.chunk
        index = tuple(map(floordiv, inside.start, chunk))
        extent = self.layout.extent_of(index)
        stored = self.content[extent.start : extent.stop].view(np.dtype(self.factor.tensor.spec.dtype.name))
        found: Array = stored.reshape(chunk)[inside.relative_to(tuple(map(mul, index, chunk))).slices()]
        for dimension, ratio in enumerate(self.factor.ratio):
            if ratio > 1 and found.shape[dimension] > 1:  # a single one goes for all as it is
                first = self.shard.start[dimension] + box.start[dimension]
                served = np.arange(first, first + box.shape[dimension]) // ratio - wanted.start[dimension]
                found = np.take(found, served, axis=dimension)
        return found


def mean(copies: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    """The mean in float32, rounded to nearest even."""
    with np.errstate(all="ignore"):
        total = copies[0].astype(np.float32)
        for copy in copies[1:]:
            total += copy.astype(np.float32)
        total /= np.float32(len(copies))
        return total.astype(dtype)


def equal(copies: Sequence[Array], dtype: np.dtype[Any]) -> Array | None:
    """One of copies that are equal byte for byte, cast; None where two differ."""
    first = copies[0].tobytes()
    if any(copy.tobytes() != first for copy in copies[1:]):
        return None
    with np.errstate(all="ignore"):
        return copies[0].astype(dtype)


def _differ(plan: TensorPlan, task: ShardTask) -> CorruptError:
    name = plan.tensor.spec.name
    return CorruptError(
        f"the {len(plan.tensor.factors)} copies of {name!r} are not equal (shard {task.index})",
        hint="the profile calls it replicated: the files are of two models, or of another profile",
        tensor=name,
    )


def product(factors: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    """The product in float32, rounded to nearest even; a single factor is cast as NumPy and ml_dtypes do.

    As JAX computes it, but for subnormal numbers, which XLA on CPU takes for zeros.
    """
    with np.errstate(all="ignore"):  # what is too large becomes infinite, as everywhere
        first, *others = factors
        if not others:
            return first.astype(dtype)
        value = first.astype(np.float32)
        for other in others:
            value *= other.astype(np.float32)
        return value.astype(dtype)


_COMBINED: Mapping[Combine, Callable[[Sequence[Array], np.dtype[Any]], Array | None]] = MappingProxyType(
    {Combine.PRODUCT: product, Combine.MEAN: mean, Combine.EQUAL: equal}
)


def _block(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """A row block of an array, of about `most` elements at most; at least a row."""
    block = list(shape)
    for dimension in range(len(block)):
        if prod(block) <= most:
            break
        block[dimension] = max(most // prod(block[dimension + 1 :]), 1)
    return tuple(block)
