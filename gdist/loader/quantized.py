"""The quantised pair as one leaf of a tree: int8 weights and the scales that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedWeight8bit:
    """`weight` (int8) and `scales`; the value is `weight * scales`, scales repeated along their groups.

    The name and the fields are those of the Grok-1 release; here it is a plain pytree node, so
    `jax.tree.map` and `jax.jit` go through it. Its leaves are named `NAME.weight` and `NAME.scales`.
    """

    weight: Any  # jax.Array, or what stands for one in an abstract tree
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        shape: tuple[int, ...] = self.weight.shape
        return shape

    def dequantize(self, dtype: Any = jnp.bfloat16) -> jax.Array:  # Any: whatever JAX takes for a type
        """The weight's value: `weight * scales` in float32, each group of rows by its scales, then `dtype`.

        Rows are the second last dimension; group g of G has the g-th G-th of them. Works on whole arrays,
        sharded or not, and under `jax.jit`; the result is sharded as the weight. Not in `jax.shard_map`:
        there scales that are split less than their weight would pass for those of smaller groups.
        """
        if self.weight.shape[-2] % self.scales.shape[-2]:
            raise ValueError(f"scales {self.scales.shape} do not fit weight {self.weight.shape}")
        value: jax.Array = _dequantize(self.weight, self.scales, jnp.dtype(dtype))
        return value


@partial(jax.jit, static_argnums=2)  # one pass: what lies between has no memory of its own
def _dequantize(weight: jax.Array, scales: jax.Array, dtype: Any) -> jax.Array:
    scales = scales.astype(jnp.float32)
    if scales.shape[-2] > 1:
        scales = jnp.repeat(scales, weight.shape[-2] // scales.shape[-2], axis=-2)
    return (weight.astype(jnp.float32) * scales).astype(dtype)
