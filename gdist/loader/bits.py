"""Bits that arrive as they were sent: element types as unsigned integers, and boxes put together on devices.

Arithmetic on floats may change the bits of a NaN, and back ends calculate in other types than they are asked
to. What is moved by a calculation is moved as unsigned integers of the same width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gdist.core.box import Box, row_parts
from gdist.loader.arrays import Read, reads_of
from gdist.stores import LazyArray
from gdist.stores.buffers import Array, Bytes

Run = Callable[[Iterable[Read]], None]


def is_movable(dtype: np.dtype[Any]) -> bool:
    """True where there are words for the type: for all but complex numbers."""
    return dtype.kind != "c"


def word(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer as wide as an element in host memory."""
    return np.dtype(f"u{dtype.itemsize}")


def words(array: Array) -> Array:
    """The same bytes as unsigned integers, in the same shape."""
    return array.view(word(array.dtype))


def from_words(array: Any, dtype: np.dtype[Any]) -> Any:  # Any: a tracer, too
    """The opposite of `words`, under `jax.jit`."""
    if dtype == np.bool_:
        return array != 0
    if dtype.name == "int4":  # a byte each in host memory, half a byte in JAX
        return lax.bitcast_convert_type(array, np.int8).astype(dtype)
    return lax.bitcast_convert_type(array, dtype)


@cache
def jitted_from_words(dtype: np.dtype[Any], sharding: jax.sharding.Sharding) -> Any:
    """`from_words` as a program."""
    return jax.jit(lambda array: from_words(array, dtype), out_shardings=sharding)


def words_in_parts(
    tensor: LazyArray, box: Box, devices: Sequence[jax.Device], memory: Bytes, run: Run
) -> list[jax.Array]:
    """One box, as words, on each of some devices, through memory that need not hold it whole."""
    dtype = tensor.dtype
    arrays = [jnp.zeros(box.shape, word(dtype), device=device) for device in devices]
    for part in row_parts(Box.whole(box.shape), dtype.itemsize, memory.nbytes):
        data = memory[: part.size * dtype.itemsize].view(dtype).reshape(part.shape)
        run(reads_of(tensor, part.shift(box.start), data))
        for number, device in enumerate(devices):
            piece = jax.device_put(words(data), device)
            arrays[number] = _written(arrays[number], piece, part.start)
        for array in arrays:
            array.block_until_ready()  # the memory is free again
    return arrays


def _write(whole: jax.Array, part: jax.Array, start: tuple[int, ...]) -> jax.Array:
    return lax.dynamic_update_slice(whole, part, start)


_written = jax.jit(_write, donate_argnums=0)
