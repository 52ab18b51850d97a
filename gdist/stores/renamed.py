"""A store under other names: its tensors renamed, transposed and stacked as they are read.

Nothing is written and nothing is kept: a box of a tensor is a box of one stored tensor, its dimensions
reversed where it is transposed, or a box of each of several, laid beside one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gdist.core.box import Box
from gdist.core.grid import ShardGrid
from gdist.core.mesh import PartitionSpec
from gdist.core.rename import NamedTensor, Renamed, RenamePlan, RenameTable, plan_renames
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.stores.buffers import Array, copy_arrays
from gdist.stores.store import LazyArray, Store


def renamed_store(store: Store, table: RenameTable) -> Store:
    """The store as a table names it, whole; reading goes through `store`, which stays open.

    A tensor's spec goes with its dimensions, a new one of a stack is whole on every device.

    Raises:
        RequestError: naming the tensors that the table has no rule for, or all that cannot be.
    """
    plan = plan_of(table, store.manifest.tensors)
    plan.check_complete()
    described = _Described(store, plan)
    return Store(store.where, described, _Reader(store, plan), described.opened)


def plan_of(table: RenameTable, tensors: Iterable[StoreTensor]) -> RenamePlan:
    """What a table makes of a store's tensors.

    Raises:
        RequestError: naming all that cannot be.
    """
    named = (NamedTensor(t.name, t.shape, t.dtype.name, t.quantisation, t.encoding) for t in tensors)
    return plan_renames(table, named)


def renamed_tensor(renamed: Renamed, stored: StoreTensor) -> StoreTensor:
    """The tensor of the result, of its first source.

    Its grid is the source's as it lies in the result: the new dimension is cut between the sources.
    """
    grid, count = stored.grid, len(renamed.sources)
    dims = range(len(stored.shape))
    spec = renamed.dims([stored.spec.axes_of(dimension) for dimension in dims], ())
    cut = ShardGrid(
        renamed.dims(grid.shape, count),
        renamed.dims(grid.shard, 1),
        renamed.dims(grid.slab, count),
        renamed.dims(grid.chunk, 1),
    )
    return StoreTensor(
        renamed.name,
        stored.dtype,
        cut,
        PartitionSpec(spec),
        renamed.quantisation,
        encoding=renamed.encoding,
    )


class _Described:
    """What a renamed store says of itself."""

    def __init__(self, store: Store, plan: RenamePlan):
        self._store = store
        self._renamed = {renamed.name: renamed for renamed in plan.tensors}
        stored = {tensor.name: tensor for tensor in store.manifest.tensors}
        tensors = tuple(renamed_tensor(r, stored[r.sources[0]]) for r in plan.tensors)
        self.joined: StoreManifest = replace(store.manifest, tensors=tensors)
        self.absent = store.absent_hosts

    def check_listed(self, requests: Iterable[tuple[StoreTensor, Box]]) -> None:
        """That the manifests list every shard that the boxes meet."""
        self._store.check_listed(_sources(self._renamed, requests))

    def opened(self, tensor: StoreTensor) -> Any:  # Any: TensorStore ships no types
        """The tensor as a `tensorstore.TensorStore`."""
        renamed = self._renamed[tensor.name]
        arrays = [self._store[source].tensorstore() for source in renamed.sources]
        arrays = [array.T for array in arrays] if renamed.transpose else arrays
        if renamed.axis is None:
            return arrays[0]
        import tensorstore as ts

        return ts.stack(arrays, renamed.axis)


class _Reader:
    """Reads boxes of renamed tensors out of those they are made of; thread-safe."""

    def __init__(self, store: Store, plan: RenamePlan):
        self._store = store
        self._renamed = {renamed.name: renamed for renamed in plan.tensors}
        self._arrays = {name: store[name] for renamed in plan.tensors for name in renamed.sources}

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """That all boxes of the sources can be read."""
        self._store.check(_sources(self._renamed, requests), workers=workers)

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        """The box without a copy, where it is of one source that has one."""
        renamed = self._renamed[tensor.name]
        sources = renamed.source_boxes(box)
        if len(sources) != 1:
            return None
        ((name, _, inner),) = sources
        view = self._arrays[name].view(inner)
        if view is None:
            return None
        view = view.T if renamed.transpose else view
        return view if renamed.axis is None else np.expand_dims(view, renamed.axis)

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies the box, source by source."""
        renamed = self._renamed[tensor.name]
        for name, place, inner in renamed.source_boxes(box):
            target = out
            if place is not None and renamed.axis is not None:
                # With `...` what is left of one dimension is an array, too.
                at: Any = (*(slice(None),) * renamed.axis, place - box.start[renamed.axis], ...)
                target = out[at]
            _read(self._arrays[name], inner, target.T if renamed.transpose else target)

    def close(self) -> None:
        """Nothing: what is read from is another's."""


def _read(array: LazyArray, box: Box, out: Array) -> None:
    """Copies a box into memory of any strides."""
    if out.flags.c_contiguous:
        array.read(box, out)
    else:
        view = array.view(box)
        copy_arrays([(array.read(box) if view is None else view, out)], out.nbytes)


def _sources(
    renamed: Mapping[str, Renamed], requests: Iterable[tuple[StoreTensor, Box]]
) -> dict[str, list[Box]]:
    """The boxes of the sources that these boxes meet."""
    found: dict[str, list[Box]] = {}
    for tensor, box in requests:
        for name, _, inner in renamed[tensor.name].source_boxes(box):
            found.setdefault(name, []).append(inner)
    return found
