"""The quantised pair as one leaf of a tree: int8 weights and the scales that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
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
