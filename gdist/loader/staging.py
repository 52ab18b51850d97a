"""Tensors that pass through a window of host memory on their way to devices that have memory of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from gdist.core.box import Box
from gdist.errors import RequestError
from gdist.loader.arrays import assembled, spanned
from gdist.loader.bits import Run, jitted_from_words, words_in_parts
from gdist.loader.shardings import devices_by_box, local_device, on_device
from gdist.stores import LazyArray
from gdist.stores.buffers import Array, Bytes

Staging = Literal["auto", "none", "ring", "pinned"]
PINNED = "pinned_host"  # JAX's name of page-locked host memory, which devices read without a further copy


class Staged:
    """A tensor that is read into the ring and handed to its devices from there."""

    shared = False

    def __init__(self, tensor: LazyArray, sharding: jax.sharding.Sharding, staging: Staging):
        self.tensor = tensor
        self._sharding = sharding
        self._pinned = staging == "pinned"
        self._devices = devices_by_box(sharding, tensor.shape, local=True)
        self.nbytes = spanned(self._devices, tensor.dtype)

    def boxes(self) -> list[Box]:
        """Those that this process holds."""
        return list(self._devices)

    def land(self, slabs: Mapping[Box, Array]) -> jax.Array:
        """The array; the memory of `slabs` is free when it is ready."""
        if not self._devices or not self._pinned:
            array = assembled(self.tensor, self._sharding, slabs)
        else:
            pinned = assembled(self.tensor, self._sharding.with_memory_kind(PINNED), slabs)
            array = jax.device_put(pinned, self._sharding)
        if self._devices and local_device(self._sharding).platform == "cpu":  # which keeps what it is given
            return jnp.copy(array)
        return array

    def land_in_parts(self, memory: Bytes, run: Run) -> jax.Array:
        """The array, put together on its devices; the memory, which may be too small for it, is free then."""
        placed = [
            array
            for box, devices in self._devices.items()
            for array in words_in_parts(self.tensor, box, devices, memory, run)
        ]
        first = on_device(self._sharding)
        array = jax.make_array_from_single_device_arrays(self.tensor.shape, first, placed)
        converted: jax.Array = jitted_from_words(self.tensor.dtype, self._sharding)(array)
        return converted


def staging_on(device: jax.Device, staging: Staging) -> Staging:
    """What `auto` means on a device: nothing where host memory is the device's, else page-locked memory.

    Raises:
        RequestError: when the device has no page-locked memory, or no such way exists.
    """
    if staging not in ("auto", "none", "ring", "pinned"):
        raise RequestError(f"staging {staging!r} is none of auto, none, ring, pinned")
    has_pinned = any(memory.kind == PINNED for memory in device.addressable_memories())
    if staging == "auto":
        return "none" if device.platform == "cpu" else "pinned" if has_pinned else "ring"
    if staging == "pinned" and not has_pinned:
        raise RequestError(f"{device} has no {PINNED} memory", hint="staging='ring' needs none")
    return staging
