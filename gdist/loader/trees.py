"""Between tensor names and trees: nested dicts by name, and target trees filled leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from gdist.core.store_manifest import StoreTensor
from gdist.errors import RequestError
from gdist.loader.names import Rename, renamer
from gdist.loader.quantized import QuantizedWeight8bit
from gdist.stores.buffers import numpy_dtype

SHOWN = 20  # names a message spells out; all are in the error's facts


@dataclass(frozen=True)
class Leaf:
    """One leaf of a target tree, and the tensor that fills it; `sharding` is None where the tree has none."""

    path: str
    tensor: StoreTensor
    sharding: jax.sharding.Sharding | None


def nested(tensors: Iterable[StoreTensor], arrays: Mapping[str, jax.Array | None]) -> dict[str, Any]:
    """Dicts nested by the names' parts between dots; a quantised pair is one `QuantizedWeight8bit`.

    `arrays` may stand empty, by name, to see whether the names make a tree.

    Raises:
        RequestError: naming the tensors whose names are also the beginnings of others'.
    """
    leaves: dict[str, Any] = {}
    halves: dict[str, dict[str, jax.Array | None]] = {}
    for tensor in tensors:
        if tensor.quantisation:
            halves.setdefault(tensor.quantisation.pair, {})[tensor.quantisation.role] = arrays[tensor.name]
            leaves.setdefault(tensor.quantisation.pair, None)  # its place in loading order
        else:
            leaves[tensor.name] = arrays[tensor.name]
    for pair, fields in halves.items():
        if len(fields) == 2:
            leaves[pair] = QuantizedWeight8bit(**fields)
        else:  # half of it is all the store has
            leaves[pair] = dict(fields)
    tree: dict[str, Any] = {}
    faults = []
    for name, leaf in leaves.items():
        *parents, last = name.split(".")
        place: Any = tree
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or last in place:
            faults.append(name)
        else:
            place[last] = leaf
    if faults:
        raise RequestError(
            f"tensor names are beginnings of other names: {_list(faults)}",
            hint="give target=, or select= some of them",
            tensors=tuple(faults),
        )
    return tree


def match_target(
    target: Any,
    tensors: Iterable[StoreTensor],
    rename: Rename | None,
    changed: Collection[str] = (),
) -> tuple[list[Leaf], jax.tree_util.PyTreeDef]:
    """The tensor for every leaf of a target tree of `jax.ShapeDtypeStruct`, arrays, or the like.

    A leaf's name is its path joined by `.`; `rename` turns it into the tensor's. Every tensor must be asked
    for (`select` narrows them first), and shapes and element types must agree. `changed` are the names of
    tensors that are as `dtype=` makes them, not as they are stored.

    Raises:
        RequestError: listing leaves without a tensor, leaves that are no arrays, tensors without a leaf, and
            those that differ; or for a `rename` that is none.
    """
    known = {tensor.name: tensor for tensor in tensors}
    flat, treedef = jax.tree_util.tree_flatten_with_path(target)
    name_of = renamer(rename)
    leaves: list[Leaf] = []
    missing: dict[str, str] = {}  # a path, and how to speak of it
    strange, different = [], []
    for path, leaf in flat:
        where = jax.tree_util.keystr(path, simple=True, separator=".")
        name = name_of(where)
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            strange.append(where)
        elif name not in known:
            missing[where] = where if name == where else f"{where} (as {name})"
        else:
            leaves.append(Leaf(where, known[name], getattr(leaf, "sharding", None)))
            different += _difference(where, leaf, known[name], changed=name in changed)
    used = {leaf.tensor.name for leaf in leaves}
    unexpected = [name for name in known if name not in used]
    faults = [
        f"{len(names)} {what}: {_list(names)}"
        for names, what in (
            (list(missing.values()), "missing in the store"),
            (strange, "in the target, but no arrays"),
            (unexpected, "unexpected, without a leaf in the target"),
            (different, "different"),
        )
        if names
    ]
    if faults:
        raise RequestError(
            f"target and store disagree; {'; '.join(faults)}",
            hint="rename= maps leaf paths to tensor names, select= leaves tensors out",
            missing=tuple(missing),
            strange=tuple(strange),
            unexpected=tuple(unexpected),
            different=tuple(different),
        )
    return leaves, treedef


def _difference(where: str, leaf: Any, tensor: StoreTensor, *, changed: bool) -> list[str]:
    shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
    if (shape, dtype) == (tensor.shape, numpy_dtype(tensor.dtype)):
        return []
    source = "dtype= makes it" if changed else "stored is"
    return [f"{where} is {dtype.name}{list(shape)}, {source} {tensor.dtype.name}{list(tensor.shape)}"]


def lay_on(mesh: Callable[[], jax.sharding.Mesh], leaves: Iterable[Leaf]) -> list[Leaf]:
    """The leaves, with devices for those whose sharding is on an abstract mesh: the devices of `mesh()`.

    Such shardings come from `jax.eval_shape` under `jax.set_mesh` with explicit axes, and from
    `flax.nnx.eval_shape`. The others stay as they are.

    Raises:
        RequestError: naming all leaves whose abstract mesh has other axes than `mesh()`.
    """
    mesh = cache(mesh)
    laid, faults = [], []
    for leaf in leaves:
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
            if mesh().shape == sharding.mesh.shape:
                kind = sharding.memory_kind
                leaf = replace(leaf, sharding=NamedSharding(mesh(), sharding.spec, memory_kind=kind))
            else:
                faults.append(f"{leaf.path} on {_axes(sharding.mesh)}")
        laid.append(leaf)
    if faults:
        raise RequestError(
            f"the target shards {len(faults)} leaves on another mesh than {_axes(mesh())}: {_list(faults)}",
            hint="their mesh is abstract; mesh= gives it devices: the jax.sharding.Mesh it was taken from",
            faults=tuple(faults),
        )
    return laid


def _axes(mesh: jax.sharding.Mesh | AbstractMesh) -> str:
    return ",".join(f"{name}={size}" for name, size in mesh.shape.items())


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
