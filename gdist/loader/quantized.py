"""The quantised pair as one leaf of a tree: int8 weights and the scales that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax


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
