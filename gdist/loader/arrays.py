"""One tensor of a store as a `jax.Array`."""

from __future__ import annotations

import jax
import numpy as np

from gdist.loader.shardings import box_of
from gdist.stores import LazyArray
from gdist.stores.buffers import Array


def array_of(tensor: LazyArray, sharding: jax.sharding.Sharding) -> jax.Array:
    """One tensor as a `jax.Array`: each device of this process reads its own box; replicas share one read.

    On CPU a box that lies in the store as it is needed is not copied: the mapped file is the array's memory.
    """
    read: dict[tuple[tuple[int | None, int | None], ...], Array] = {}

    def slab(index: tuple[slice, ...] | None) -> Array:
        if not sharding.addressable_devices:  # JAX asks once even so (0.10), and gives the answer to nobody
            return np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)
        key = tuple((piece.start, piece.stop) for piece in index or ())
        if key not in read:  # JAX asks once for every device, replicas included
            box = box_of(index, tensor.shape)
            view = tensor.view(box)
            read[key] = tensor.read(box) if view is None else view
        return read[key]

    # A process without a shard of the array has nothing to take the type from.
    return jax.make_array_from_callback(tensor.shape, sharding, slab, dtype=tensor.dtype)
