"""From a store to a tree of `jax.Array`, each device reading its own slab.

On CPU a slab that lies in the store as it is needed becomes the array's memory without a copy: it is the
mapped file. Another mesh is served by strided copies out of the same maps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import jax

from gdist.core.box import Box
from gdist.core.store_manifest import StoreTensor
from gdist.errors import RequestError
from gdist.loader.arrays import array_of
from gdist.loader.names import Rename
from gdist.loader.shardings import MeshLike, RulesLike, device_mesh, local_boxes, shardings_on
from gdist.loader.trees import lay_on, match_target, nested
from gdist.stores import Store
from gdist.stores import open as open_store
from gdist.stores.buffers import numpy_dtype

Select = str | Iterable[str] | Callable[[str], bool]


def load(
    store: str | os.PathLike[str] | Store,
    *,
    mesh: MeshLike = None,
    rules: RulesLike = None,
    target: Any = None,
    select: Select | None = None,
    rename: Rename | None = None,
    verify: bool = True,
) -> Any:
    """A nested dict of `jax.Array`, or a tree like `target`, on this process's devices.

    Args:
        store: a directory, a URL, or a `Store`.
        mesh: a `jax.sharding.Mesh`, or "8x8" for one of the first devices. Default: the store's own mesh
            where there are as many devices, else everything on one device.
        rules: partition rules, as in a fetch; default: as the store was cut. An `8x8` store loads on a
            `1x8` mesh as it does on its own.
        target: a tree of `jax.ShapeDtypeStruct` (or arrays) whose leaves' paths, joined by `.`, are tensor
            names. A leaf's `sharding` is used where it has one; on an abstract mesh, with the devices of
            `mesh`. The same kind of tree is returned.
        select: regular expressions searched in tensor names (both halves of a quantised pair go by the
            pair's name), or a function that says yes; default: everything.
        rename: from the path of a target's leaf to the tensor's name: a mapping, a function, or pairs of a
            regular expression and its replacement, each substituted in turn.
        verify: compare digests, of everything that is needed here, before any array is built. (A `Store`
            was opened with or without.)

    Without `target`, names are nested by their dots, and a quantised pair is one `QuantizedWeight8bit`. All
    shards that are needed are looked for first, so no process starts what it cannot finish.

    Raises:
        RequestError: naming all tensors that the mesh does not fit, that the target lacks or has too many,
            64-bit tensors where JAX would narrow them, and shards that another host has.
        CorruptError: naming all shards that are missing, cut, or differ from their digests.
        TransferError: when a remote store does not answer.
    """
    opened = nullcontext(store) if isinstance(store, Store) else open_store(store, verify=verify)
    with opened as source:
        tensors = _selected(source.manifest.tensors, select)
        _refuse_wide(tensors)
        if target is None:
            shardings: Mapping[str, jax.sharding.Sharding] = shardings_on(
                device_mesh(mesh, source.manifest), tensors, rules
            )
            arrays = _build(source, [(tensor, shardings[tensor.name]) for tensor in tensors])
            return nested(tensors, {tensor.name: a for tensor, a in zip(tensors, arrays, strict=True)})
        leaves, treedef = match_target(target, tensors, rename)
        leaves = lay_on(lambda: device_mesh(mesh, source.manifest), leaves)
        open_leaves = {leaf.tensor.name: leaf.tensor for leaf in leaves if leaf.sharding is None}
        shardings = {}
        if open_leaves:
            shardings = shardings_on(device_mesh(mesh, source.manifest), open_leaves.values(), rules)
        wanted = [(leaf.tensor, leaf.sharding or shardings[leaf.tensor.name]) for leaf in leaves]
        return jax.tree_util.tree_unflatten(treedef, _build(source, wanted))


def _selected(tensors: Iterable[StoreTensor], select: Select | None) -> tuple[StoreTensor, ...]:
    if select is None:
        return tuple(tensors)
    if callable(select):
        keep = select
    else:
        patterns = [re.compile(p) for p in ([select] if isinstance(select, str) else select)]

        def keep(name: str) -> bool:
            return any(pattern.search(name) for pattern in patterns)

    chosen = tuple(t for t in tensors if keep(t.quantisation.pair if t.quantisation else t.name))
    if not chosen:
        raise RequestError(f"select {select!r} chooses no tensor", hint="gdist inspect lists the names")
    return chosen


def _refuse_wide(tensors: Iterable[StoreTensor]) -> None:
    types = [(tensor.name, numpy_dtype(tensor.dtype)) for tensor in tensors]
    wide = [name for name, dtype in types if jax.dtypes.canonicalize_dtype(dtype) != dtype]
    if wide:  # narrowed, large integers would be other numbers
        raise RequestError(
            f"{len(wide)} tensors are of 64-bit types, which JAX narrows as it is set: {', '.join(wide)}",
            hint="jax.config.update('jax_enable_x64', True), or select= others",
            tensors=tuple(wide),
        )


def _build(store: Store, wanted: list[tuple[StoreTensor, jax.sharding.Sharding]]) -> list[jax.Array]:
    boxes: dict[str, set[Box]] = {}
    faults = []
    alike = cache(local_boxes)  # many tensors share shape and sharding
    for tensor, sharding in wanted:
        try:
            boxes.setdefault(tensor.name, set()).update(alike(sharding, tensor.shape))
        except ValueError as error:
            faults.append(f"{tensor.name!r}: {error}")
    if faults:
        raise RequestError(
            f"shardings do not fit {len(faults)} tensors: {'; '.join(faults)}", faults=tuple(faults)
        )
    store.check(boxes)
    arrays: list[jax.Array] = []
    for tensor, sharding in wanted:
        arrays.append(array_of(store[tensor.name], sharding))
        platform: str = next(iter(sharding.device_set)).platform  # type: ignore[attr-defined]  # untyped in JAX
        if platform != "cpu" and len(arrays) > 1:
            arrays[-2].block_until_ready()  # its host buffers are free now: two tensors in memory at most
    return arrays
