"""The arrays of a JAX tree, to be written: each gathered from its devices when it is its turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from gdist.core.profile import listed
from gdist.errors import RequestError


def tree_leaves(tree: Any) -> list[tuple[str, tuple[int, ...], str, Callable[[], Any]]]:
    """Of every leaf its path joined by `.`, shape, type, and what gives it as a NumPy array.

    An array is gathered from the shards on this process's devices, each part from one of them, into host
    memory of its own size; nothing is kept on the array, and no device ever holds more of it.

    Raises:
        RequestError: naming leaves that are no arrays, or that have parts on other processes' devices.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    found: list[tuple[str, tuple[int, ...], str, Callable[[], Any]]] = []
    strange, elsewhere = [], []
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if isinstance(leaf, jax.Array) and isinstance(leaf.dtype, np.dtype):  # no array of random keys
            if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
                elsewhere.append(name)
            found.append((name, leaf.shape, np.dtype(leaf.dtype).name, partial(_gathered, leaf)))
        elif isinstance(leaf, np.ndarray | np.generic | bool | int | float):
            array = np.asarray(leaf)
            found.append((name, array.shape, array.dtype.name, partial(np.asarray, array)))
        else:
            strange.append(f"{name} ({type(leaf).__name__})")
    if strange:
        raise RequestError(f"{len(strange)} leaves are no arrays: {listed(strange)}", leaves=tuple(strange))
    if elsewhere:
        raise RequestError(
            f"{len(elsewhere)} arrays have parts on other processes' devices: {listed(elsewhere)}",
            hint="save them with Orbax or gather them first, and publish from one process",
            leaves=tuple(elsewhere),
        )
    return found


def _gathered(array: jax.Array) -> np.ndarray[Any, Any]:
    if array.is_deleted():
        raise RequestError("an array of the tree was donated or deleted before it was its turn")
    out = np.empty(array.shape, np.dtype(array.dtype))
    for shard in array.addressable_shards:
        if shard.replica_id == 0 or array.is_fully_replicated:
            out[shard.index] = np.asarray(shard.data)
        if array.is_fully_replicated:
            break
    return out
