"""Other element types than the stored: what a tensor is given out as, and how it becomes that on the devices.

Floating tensors are cast, quantised pairs become one dequantised tensor of the pair's name, integers and
booleans stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from gdist.core.dtypes import BY_NAME
from gdist.core.store_manifest import StoreTensor
from gdist.errors import RequestError
from gdist.loader.quantized import dequantize
from gdist.stores.buffers import numpy_dtype

SPEC: Callable[..., PartitionSpec] = PartitionSpec  # JAX leaves it untyped


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor as it is given out: `tensor` with its name and type there, `stored` what it is made of.

    `stored` is the tensor itself, or weight and scales.
    """

    tensor: StoreTensor
    stored: tuple[StoreTensor, ...]

    @property
    def is_changed(self) -> bool:
        """True when something is calculated."""
        return self.stored != (self.tensor,)


def parse_dtype(dtype: object) -> np.dtype[Any] | None:
    """A floating type that a load may give out; None for "as stored".

    Raises:
        RequestError: for any other, and for one that JAX would narrow.
    """
    if dtype is None:
        return None
    parsed: np.dtype[Any] | None = None
    with suppress(TypeError):  # anything may come: NumPy says what it cannot take
        parsed = np.dtype(dtype)  # type: ignore[call-overload]
    if parsed is None or parsed.name not in BY_NAME or not jnp.issubdtype(parsed, jnp.floating):
        raise RequestError(
            f"dtype {dtype!r} is no floating type of JAX", hint="for example dtype='bfloat16' or 'float32'"
        )
    if jax.dtypes.canonicalize_dtype(parsed) != parsed:
        raise RequestError(
            f"dtype {parsed.name} is of 64 bits, which JAX narrows as it is set",
            hint="jax.config.update('jax_enable_x64', True), or another type",
        )
    return parsed


def given(tensors: Iterable[StoreTensor], dtype: np.dtype[Any] | None) -> tuple[Given, ...]:
    """What a load gives out of these tensors, in their order; a pair stands where its first half stood.

    Raises:
        RequestError: naming every pair whose scales do not fit its weight.
    """
    tensors = tuple(tensors)
    faults = []
    halves = {(t.quantisation.pair, t.quantisation.role): t for t in tensors if t.quantisation}
    found: dict[str, Given] = {}
    for tensor in tensors:
        if dtype is None:
            found[tensor.name] = Given(tensor, (tensor,))
            continue
        pair = tensor.quantisation.pair if tensor.quantisation else ""
        weight, scales = halves.get((pair, "weight")), halves.get((pair, "scales"))
        if weight and scales:
            fits = len(weight.shape) == len(scales.shape)
            if not fits or any(w % max(s, 1) for w, s in zip(weight.shape, scales.shape, strict=True)):
                faults.append(
                    f"{list(scales.shape)} scales of {pair!r} do not divide its {list(weight.shape)}"
                )
            whole = replace(weight, name=pair, dtype=BY_NAME[dtype.name], quantisation=None)
            found[pair] = Given(whole, (weight, scales))
        elif jnp.issubdtype(numpy_dtype(tensor.dtype), jnp.floating):
            found[tensor.name] = Given(replace(tensor, dtype=BY_NAME[dtype.name]), (tensor,))
        else:
            found[tensor.name] = Given(tensor, (tensor,))
    if faults:
        raise RequestError("; ".join(sorted(set(faults))), hint="load the pairs as they are, without dtype=")
    return tuple(found.values())


def finisher(tensor: Given, sharding: Sharding) -> Callable[..., jax.Array] | None:
    """What makes the array that is given out of those that were loaded; None when they are the same."""
    if not tensor.is_changed:
        return None
    dtype = numpy_dtype(tensor.tensor.dtype)
    if not sharding.addressable_devices:
        return lambda *_: jax.make_array_from_single_device_arrays(
            tensor.tensor.shape, sharding, [], dtype=dtype
        )
    if 0 in tensor.tensor.shape:  # XLA (jaxlib 0.10) gives every device all of a result without elements
        return lambda *_: jax.make_array_from_callback(
            tensor.tensor.shape, sharding, lambda index: np.zeros(tensor.tensor.shape, dtype)[index]
        )
    if len(tensor.stored) == 1:
        return _cast(dtype, sharding, donate=tensor.stored[0].dtype.itemsize == dtype.itemsize)
    return partial(_dequantized, dtype, sharding)


@cache
def _cast(dtype: np.dtype[Any], sharding: Sharding, *, donate: bool) -> Callable[..., jax.Array]:
    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype)

    # JAX warns of what is donated in vain: memory of another size.
    jitted: Callable[..., jax.Array] = jax.jit(
        cast, out_shardings=sharding, donate_argnums=(0,) if donate else ()
    )
    return jitted


def _dequantized(dtype: np.dtype[Any], sharding: Sharding, weight: jax.Array, scales: jax.Array) -> jax.Array:
    if not isinstance(sharding, NamedSharding):
        plain: jax.Array = _plain(dtype, sharding)(weight, scales)
        return plain
    assert isinstance(scales.sharding, NamedSharding), f"scales on {scales.sharding}"
    value = _on_mesh(dtype, sharding, scales.sharding.spec)(weight, scales)
    parts = [shard.data for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(weight.shape, sharding, parts)


@cache
def _plain(dtype: np.dtype[Any], sharding: Sharding) -> Any:
    return jax.jit(lambda weight, scales: dequantize(weight, scales, dtype), out_shardings=sharding)


@cache
def _on_mesh(dtype: np.dtype[Any], sharding: NamedSharding, scales_spec: PartitionSpec) -> Any:
    """The program in which each device dequantises its own slab, and none hears of the others.

    Left to the compiler, groups that are cut otherwise than the rows they belong to would be gathered.
    """
    # Explicit axes, as jax.make_mesh has them, would type what is calculated inside.
    mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)

    def local(weight: jax.Array, scales: jax.Array) -> jax.Array:
        for dimension in range(weight.ndim):
            # Scales are split by the first of their weight's axes, as many as divide them.
            further = _axes(sharding.spec, dimension)[len(_axes(scales_spec, dimension)) :]
            if further and scales.shape[dimension] > 1:
                scales = _own_groups(weight, scales, dimension, further, mesh)
        return dequantize(weight, scales, dtype)

    program = jax.shard_map(
        local, mesh=mesh, in_specs=(sharding.spec, scales_spec), out_specs=sharding.spec, check_vma=False
    )
    out = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return jax.jit(program, out_shardings=out)


def _own_groups(
    weight: jax.Array, scales: jax.Array, dimension: int, axes: tuple[str, ...], mesh: Mesh
) -> jax.Array:
    """Of scales that are not split by `axes`, as their weight is, the row for each row of a device's slab."""
    rows = weight.shape[dimension]
    run = rows * prod(mesh.shape[axis] for axis in axes) // scales.shape[dimension]
    group = (lax.axis_index(axes) * rows + jnp.arange(rows)) // run
    return jnp.take(scales, group, axis=dimension, mode="clip")


def _axes(spec: PartitionSpec, dimension: int) -> tuple[str, ...]:
    names = spec[dimension] if dimension < len(spec) else None
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
