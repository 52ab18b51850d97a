"""One tensor of a store as a `jax.Array`, on the CPU back end without a copy where that can be.

JAX on CPU takes host memory as it is when it is contiguous and starts at a multiple of 64, and holds on to it
as long as the array lives. A box that lies so in a mapped shard is the array's memory; the others are copied,
by several threads, into memory that does. (Left to JAX a strided copy is one thread's, into pages of 4 KiB.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import jax
import numpy as np

from gdist.core.box import Box, row_parts
from gdist.core.layout import CACHE_LINE
from gdist.loader.shardings import boxes_by_index, devices_by_box, index_key
from gdist.stores import LazyArray
from gdist.stores.buffers import Array, Bytes, aligned_empty

PART_BYTES = 8 * 2**20  # what one thread copies at a time: a large slab keeps every thread busy
BYTE = np.dtype(np.uint8)

Read = Callable[[], object]


def array_of(
    tensor: LazyArray, sharding: jax.sharding.Sharding, *, pool: Executor | None = None
) -> jax.Array:
    """One tensor as a `jax.Array`: each device of this process reads its own box; replicas share one read.

    On CPU a box that lies in the store as it is needed is not copied: the mapped file is the array's memory.
    Other boxes are copied by the threads of `pool`, or by this one.
    """
    source = Mapped(tensor, sharding)
    slabs = carve(None, source.boxes(), tensor.dtype)
    reads = [read for box, out in slabs.items() for read in reads_of(tensor, box, out)]
    for _ in pool.map(_call, reads) if pool else map(_call, reads):
        pass
    return source.land(slabs)


def _call(read: Read) -> object:
    return read()


class Mapped:
    """A tensor whose boxes are views of mapped shards where they can be, else copies that the array keeps."""

    nbytes = 0  # of the ring: the array's memory is no window
    shared = False

    def __init__(self, tensor: LazyArray, sharding: jax.sharding.Sharding):
        self.tensor = tensor
        self._sharding = sharding
        self._views: dict[Box, Array] = {}

    def boxes(self) -> list[Box]:
        """Those that have to be copied."""
        copied = []
        for box in devices_by_box(self._sharding, self.tensor.shape, local=True):
            view = self.tensor.view(box)
            if view is not None and view.flags.c_contiguous and view.ctypes.data % CACHE_LINE == 0:
                self._views[box] = view
            else:
                copied.append(box)
        return copied

    def land(self, slabs: Mapping[Box, Array]) -> jax.Array:
        """The array, of views and of these copies."""
        return assembled(self.tensor, self._sharding, {**self._views, **slabs})

    def land_in_parts(self, memory: Bytes, run: Callable[[Iterable[Read]], None]) -> jax.Array:
        """Never asked: it takes nothing of the ring."""
        raise AssertionError(f"{self.tensor.name!r} is not staged")


def spanned(boxes: Iterable[Box], dtype: np.dtype[Any]) -> int:
    """Bytes that hold these boxes, each from a multiple of 64 on."""
    return sum(-(-box.size * dtype.itemsize // CACHE_LINE) * CACHE_LINE for box in boxes)


def carve(memory: Bytes | None, boxes: Iterable[Box], dtype: np.dtype[Any]) -> dict[Box, Array]:
    """Arrays for these boxes in `spanned(boxes, dtype)` bytes of aligned memory, which may be made for them.

    One allocation for all: many small ones would not get large pages, and touching memory is what costs.
    """
    boxes = tuple(boxes)
    if memory is None:
        memory = aligned_empty((spanned(boxes, dtype),), BYTE)
    arrays, offset = {}, 0
    for box in boxes:
        nbytes = box.size * dtype.itemsize
        arrays[box] = memory[offset : offset + nbytes].view(dtype).reshape(box.shape)
        offset += spanned((box,), dtype)
    return arrays


def reads_of(tensor: LazyArray, box: Box, out: Array) -> list[Read]:
    """Calls that together copy a box into `out`, each a part that one thread may take."""
    view = tensor.view(box)
    reads: list[Read] = []
    parts = row_parts(Box.whole(box.shape), tensor.dtype.itemsize, PART_BYTES)
    if view is None and not tensor.has_row_blocks:
        # Rows would meet most chunks, and every part would read them again.
        parts = (part.relative_to(box.start) for part in tensor.chunks_of(box))
    for part in parts:
        region: Any = (..., *part.slices())  # with `...` a scalar is an array, too; no type says so
        if view is None:
            reads.append(partial(tensor.read, part.shift(box.start), out[region]))
        else:
            reads.append(partial(np.copyto, out[region], view[region]))
    return reads


def assembled(tensor: LazyArray, sharding: jax.sharding.Sharding, slabs: Mapping[Box, Array]) -> jax.Array:
    """A `jax.Array` of which `slabs` are the boxes that this process's devices hold."""
    boxes = boxes_by_index(sharding, tensor.shape)

    def slab(index: tuple[slice, ...] | None) -> Array:
        if not boxes:  # JAX asks once even so (0.10), and gives the answer to nobody
            return np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)
        return slabs[boxes[index_key(index)]]  # JAX asks for every device, replicas included

    # A process without a shard of the array has nothing to take the type from.
    return jax.make_array_from_callback(tensor.shape, sharding, slab, dtype=tensor.dtype)
