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
        """The weight's value: `weight * scales` in float32, each group by its scales, then `dtype`.

        Works on whole arrays, sharded or not, and under `jax.jit`; the result is sharded as the weight. Not
        in `jax.shard_map`: there scales that are split less than their weight would pass for those of smaller
        groups.
        """
        if any(size % groups for size, groups in zip(self.weight.shape, self.scales.shape, strict=True)):
            raise ValueError(f"scales {self.scales.shape} do not fit weight {self.weight.shape}")
        value: jax.Array = _dequantize(self.weight, self.scales, jnp.dtype(dtype))
        return value


def dequantize(weight: jax.Array, scales: jax.Array, dtype: Any) -> jax.Array:
    """`weight * scales`, calculated in float32 (float64 for such scales) and rounded once to `dtype`.

    Along any dimension the scales have as many entries as the weight, or a divisor of that many: entry g
    belongs to the g-th of that many equal runs. Goes through `jax.jit`.
    """
    runs: list[int] = []  # each dimension of the weight as (groups, rows of a group)
    for size, groups in zip(weight.shape, scales.shape, strict=True):
        runs += [groups, size // groups if groups else 1]
    pairs = [size for groups in scales.shape for size in (groups, 1)]
    wide = jnp.promote_types(scales.dtype, jnp.float32)
    value = weight.reshape(runs).astype(wide) * scales.reshape(pairs).astype(wide)
    return value.astype(dtype).reshape(weight.shape)


_dequantize = partial(jax.jit, static_argnums=2)(
    dequantize
)  # one pass: nothing between has memory of its own
