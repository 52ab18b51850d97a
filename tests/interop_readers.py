"""Readers who know nothing of gdist: each reads a whole store in its own way and prints what it found.

    python interop_readers.py STORE WAY...

Prints JSON by way: `{name: [shape, dtype, SHA-256 of the bytes]}`, or an error as text. Nothing here imports
gdist. Eight CPU devices stand for a mesh. TensorStore is told the names by the root's consolidated metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Found = Iterator[tuple[str, Any]]


def documents(path: Path) -> dict[str, Any]:
    metadata = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    return {name: document for name, document in metadata.items() if document["node_type"] == "array"}


def with_tensorstore(path: Path) -> Found:
    import tensorstore as ts

    for name in documents(path):
        kvstore = {"driver": "file", "path": f"{path}/{name}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}
        yield name, ts.open(spec).result().read().result()


def with_zarr(path: Path) -> Found:
    import zarr

    group = zarr.open_group(path, mode="r", use_consolidated=True)
    assert group.metadata.consolidated_metadata is not None
    for name, array in group.arrays():
        assert isinstance(array, zarr.Array)
        yield name, array[...]
        lone = zarr.open_array(path / name, mode="r")  # its own document says the same
        alone, listed = lone.metadata.to_dict(), array.metadata.to_dict()
        assert repr(alone) == repr(listed), name  # as text: fill values are NaN, which equals nothing


def _leaves(tree: Any) -> Found:
    import jax

    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield ".".join(key.key for key in keys), leaf


def with_orbax(path: Path) -> Found:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        yield from _leaves(checkpointer.restore(path))


def with_orbax_pytree(path: Path) -> Found:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        yield from _leaves(checkpointer.restore(path))


def _target(path: Path) -> dict[str, Any]:
    """A tree of structs on 4x2 devices, where the store was written for 2x4."""
    import jax
    import ml_dtypes  # noqa: F401  registers bfloat16
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
    target: dict[str, Any] = {}
    for name, document in documents(path).items():
        here, (*branches, leaf) = target, name.split(".")
        for key in branches:
            here = here.setdefault(key, {})
        shape = tuple(document["shape"])
        fits = len(shape) > 1 and shape[-2] % 4 == 0 and shape[-1] % 2 == 0
        spec = PartitionSpec(*[None] * (len(shape) - 2), "rows", "columns") if fits else PartitionSpec()
        here[leaf] = jax.ShapeDtypeStruct(shape, document["data_type"], sharding=NamedSharding(mesh, spec))
    return target


def _restored(restored: Any, target: dict[str, Any]) -> Found:
    import jax

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == shardings
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))
    yield from _leaves(restored)


def with_orbax_onto_a_mesh(path: Path) -> Found:
    import orbax.checkpoint as ocp

    target = _target(path)
    with ocp.StandardCheckpointer() as checkpointer:
        yield from _restored(checkpointer.restore(path, target), target)


def with_orbax_pytree_onto_a_mesh(path: Path) -> Found:
    import orbax.checkpoint as ocp

    target = _target(path)
    how = ocp.checkpoint_utils.construct_restore_args(target)
    with ocp.PyTreeCheckpointer() as checkpointer:
        arguments = ocp.args.PyTreeRestore(item=target, restore_args=how)
        yield from _restored(checkpointer.restore(path, args=arguments), target)


WAYS: Mapping[str, Callable[[Path], Found]] = {
    "tensorstore": with_tensorstore,
    "zarr": with_zarr,
    "orbax": with_orbax,
    "orbax pytree": with_orbax_pytree,
    "orbax onto a mesh": with_orbax_onto_a_mesh,
    "orbax pytree onto a mesh": with_orbax_pytree_onto_a_mesh,
}


def read(way: str, path: Path) -> dict[str, list[object]] | str:
    found: dict[str, list[object]] = {}
    try:
        for name, array in WAYS[way](path):
            values = np.asarray(array)
            digest = hashlib.sha256(values.tobytes()).hexdigest()
            found[name] = [list(values.shape), values.dtype.name, digest]
        assert way == "zarr" or "gdist" not in sys.modules, "zarr alone finds gdist, by its entry points"
    except Exception as error:  # what each library raises is its own; the test reads the text
        return f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    store, ways = Path(sys.argv[1]), sys.argv[2:]
    print(json.dumps({way: read(way, store) for way in ways}))
