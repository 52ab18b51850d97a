"""A user of Orbax who knows nothing of gdist: restores a directory in one way and prints what came.

    python orbax_restore.py WAY DIRECTORY SHAPES

SHAPES is JSON, `{leaf's keys joined by "\\t": [shape, dtype]}`; the answer is JSON too,
`{same keys: [hex of the bytes, dtype, partition spec]}`. Eight CPU devices stand for a mesh.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_utils
from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath
from orbax.checkpoint.experimental import v1

Tree = Any  # a nested dict of arrays


def target(shapes: dict[str, Any]) -> Tree:
    """The tree a caller gives as target: whole rows over `data`, columns over `model`."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    tree: Tree = {}
    for keys, (shape, dtype) in shapes.items():
        *branches, leaf = keys.split("\t")
        here = tree
        for key in branches:
            here = here.setdefault(key, {})
        spec = PartitionSpec("data", "model") if len(shape) == 2 else PartitionSpec()
        here[leaf] = jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=NamedSharding(mesh, spec))
    return tree


def standard(path: Path, tree: Tree) -> Tree:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def standard_onto_a_mesh(path: Path, tree: Tree) -> Tree:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, tree)


def pytree(path: Path, tree: Tree) -> Tree:
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def pytree_onto_a_mesh(path: Path, tree: Tree) -> Tree:
    args = ocp.args.PyTreeRestore(tree, restore_args=checkpoint_utils.construct_restore_args(tree))
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path, args=args)


def version_1(path: Path, tree: Tree) -> Tree:
    return v1.load(path)


def version_1_onto_a_mesh(path: Path, tree: Tree) -> Tree:
    return v1.load(path, tree)


def by_commit_file(path: Path, tree: Tree) -> Tree:
    """As on an object store, where a checkpoint counts once its marker is there."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler, temporary_path_class=CommitFileTemporaryPath) as checkpointer:
        return checkpointer.restore(path)


WAYS: tuple[Callable[[Path, Tree], Tree], ...] = (
    standard,
    standard_onto_a_mesh,
    pytree,
    pytree_onto_a_mesh,
    version_1,
    version_1_onto_a_mesh,
    by_commit_file,
)


def restore(
    way: Callable[[Path, Tree], Tree], path: Path, shapes: dict[str, Any]
) -> dict[str, list[str]] | str:
    try:
        tree = way(path, target(shapes))
    except Exception as error:  # Orbax raises bare Exception among others
        return f"{type(error).__name__}: {error}"
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        value = np.asarray(leaf)
        spec = str(tuple(leaf.sharding.spec)) if isinstance(leaf, jax.Array) else "host"
        found["\t".join(key.key for key in keys)] = [value.tobytes().hex(), str(value.dtype), spec]
    return found


if __name__ == "__main__":
    path, shapes = Path(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps({way.__name__: restore(way, path, shapes) for way in WAYS}))
