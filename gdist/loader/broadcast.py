"""Read once, given to all by XLA: what several processes of a job hold in common.

Where a tensor is replicated over axes of the mesh, its slabs are held by several processes. One of them reads
each, the others bring zeros, and a sum over the replicas gives everybody the slab. The sum is one of unsigned
integers of which all but one are zero, so the bits arrive as they were read.

    8x8 mesh, P(None, model):    its reader brings    the others
      slab 0 ── replicas 0..7      bits of slab 0   +  0 + 0 + ...  ──▶  slab 0 on all 8 devices
      slab 1 ── replicas 0..7      bits of slab 1   +  0 + 0 + ...

The devices are laid out as (slab, replica) for it, so any sharding that cuts evenly will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdist.core.box import Box
from gdist.loader.arrays import assembled, spanned
from gdist.loader.bits import Run, from_words, is_movable, word, words, words_in_parts
from gdist.loader.shardings import devices_by_box, is_on_device
from gdist.stores import LazyArray
from gdist.stores.buffers import Array, Bytes

SPEC: Callable[..., PartitionSpec] = PartitionSpec  # JAX leaves it untyped


class Readers:
    """Which process reads each slab; all that ask for the same tensors in the same order agree."""

    def __init__(self) -> None:
        self._nbytes: dict[int, int] = {}

    def of(
        self, sharding: jax.sharding.Sharding, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Mapping[Box, int] | None:
        """The process that reads each box: of those that hold it the one with the least to read so far.

        None where nothing is to be shared: no box is held by several, or it cannot be summed.
        """
        if not is_on_device(sharding) or not is_movable(dtype) or 0 in shape:
            return None
        devices_of = devices_by_box(sharding, shape, local=False)
        holders = {box: sorted({d.process_index for d in devices}) for box, devices in devices_of.items()}
        even = len({len(devices) for devices in devices_of.values()}) == 1
        if not even or max(map(len, holders.values())) < 2:
            return None
        readers = {}
        for box, processes in holders.items():
            reader = min(processes, key=lambda process: (self._nbytes.get(process, 0), process))
            self._nbytes[reader] = self._nbytes.get(reader, 0) + box.size * dtype.itemsize
            readers[box] = reader
        return readers


class Shared:
    """A tensor of which each slab is read by one process and comes to the others through XLA."""

    shared = True

    def __init__(self, tensor: LazyArray, sharding: jax.sharding.Sharding, readers: Mapping[Box, int]):
        self.tensor = tensor
        self._sharding = sharding
        self._devices = devices_by_box(sharding, tensor.shape, local=False)
        self._boxes = [box for box, reader in readers.items() if reader == jax.process_index()]
        self.nbytes = spanned(self._boxes, tensor.dtype)

    def boxes(self) -> list[Box]:
        """Those that this process reads."""
        return self._boxes

    def land(self, slabs: Mapping[Box, Array]) -> jax.Array:
        """The array; the memory of `slabs` is free when it is ready."""
        return self._summed(lambda box, device: jax.device_put(words(slabs[box]), device))

    def land_in_parts(self, memory: Bytes, run: Run) -> jax.Array:
        """The array, where `memory` may be too small for what this process reads; it is free then."""
        return self._summed(lambda box, device: words_in_parts(self.tensor, box, [device], memory, run)[0])

    def _summed(self, brought: Callable[[Box, jax.Device], jax.Array]) -> jax.Array:
        shape, dtype = self.tensor.shape, self.tensor.dtype
        if not self._sharding.addressable_devices:
            return assembled(self.tensor, self._sharding, {})
        mesh = Mesh(np.array(list(self._devices.values()), dtype=object), ("slab", "replica"))
        slab = next(iter(self._devices)).shape or (1,)  # a scalar as one element, to be laid end to end
        terms = _zeros_on(tuple(mesh.local_devices), slab, word(dtype))
        for box in self._boxes:
            device = next(d for d in self._devices[box] if d.process_index == jax.process_index())
            terms[device] = brought(box, device).reshape(slab)
        laid = NamedSharding(mesh, SPEC(("slab", "replica")))
        whole = (mesh.size * slab[0], *slab[1:])
        sum_of = _sum_of(mesh, dtype, ranked=bool(shape))
        total = sum_of(jax.make_array_from_single_device_arrays(whole, laid, list(terms.values())))
        parts = [shard.data for shard in total.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, self._sharding, parts)


def _zeros_on(
    devices: tuple[jax.Device, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dict[jax.Device, jax.Array]:
    shards = _zeros(devices, shape, dtype)().addressable_shards
    return {shard.device: shard.data for shard in shards}


@cache
def _zeros(devices: tuple[jax.Device, ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """One program that makes zeros of a shape on each of some devices of this process."""
    laid = NamedSharding(Mesh(np.array(devices, dtype=object), ("device",)), SPEC("device"))
    return jax.jit(lambda: jnp.zeros((len(devices) * shape[0], *shape[1:]), dtype), out_shardings=laid)


@cache
def _sum_of(mesh: Mesh, dtype: np.dtype[Any], *, ranked: bool) -> Any:
    """The program that sums terms laid end to end over their replicas."""

    def summed(term: jax.Array) -> Any:
        psum: Callable[..., jax.Array] = lax.psum  # untyped, too
        if ranked:
            return from_words(psum(term, "replica"), dtype)
        return from_words(psum(term, ("slab", "replica")).reshape(()), dtype)

    out = SPEC("slab") if ranked else SPEC()
    return jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=SPEC(("slab", "replica")), out_specs=out))
