"""Run as a program: saves one tree as Orbax does, in each way it can store arrays, below a directory.

`arrays.npz` beside them has what they hold, as bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

WAYS = {"ocdbt": (True, False), "ocdbt3": (True, True), "zarr": (False, False), "zarr3": (False, True)}


def tree() -> dict[str, object]:
    rng = np.random.default_rng(3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    split = NamedSharding(mesh, PartitionSpec("data", "model"))
    return {
        "layers": {
            "0": {"w": jax.device_put(rng.standard_normal((32, 64)).astype(ml_dtypes.bfloat16), split)},
            "1": {"w": jax.device_put(rng.integers(-128, 127, (16, 8)).astype(np.int8), split)},
        },
        "zeros": np.zeros((8, 8), np.float32),
        "pair": [np.arange(3, dtype=np.float32), np.arange(5, dtype=np.int32)],
        "step": 7,
        "nobody": None,
        "note": "hello",
    }


def main(root: Path) -> None:
    saved = tree()
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved)
        if not isinstance(leaf, str)
    }
    for name, (ocdbt, zarr3) in WAYS.items():
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(root / name, saved)
    described = {
        f"{name}|{leaf.dtype.name}|{','.join(map(str, leaf.shape))}": np.frombuffer(leaf.tobytes(), np.uint8)
        for name, leaf in leaves.items()
    }
    np.savez(root / "arrays.npz", **described)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
