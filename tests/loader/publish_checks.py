"""Run in a process of its own with eight devices: a sharded tree is published and is what it was."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import deserialize

import gdist
from gdist.core.dtypes import BY_NAME
from gdist.errors import RequestError
from gdist.loader.leaves import tree_leaves
from gdist.loader.quantized import QuantizedWeight8bit


def main(root: Path) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    rng = np.random.default_rng(0)

    def put(shape: tuple[int, ...], dtype: object, *spec: object) -> jax.Array:
        array = jnp.asarray(rng.integers(-3, 3, shape), dtype)
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    tree = {
        "embed": put((16, 8), jnp.float32, "model", "data"),
        "layers": [
            {"w": put((8, 16), jnp.bfloat16, None, ("data", "model")), "b": put((8,), jnp.float8_e4m3fn)}
            for _ in range(3)
        ],
        "pair": QuantizedWeight8bit(
            weight=put((8, 16), jnp.int8, "data", None), scales=put((1, 16), jnp.float32)
        ),
        "step": 3,
        "host": np.arange(4),
        "scalar": put((), jnp.float32),
    }
    done = gdist.publish(tree, root / "out", name="sharded", file_bytes=512)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    found = {}
    for path in Path(done.payload).glob("*.safetensors"):
        found |= dict(deserialize(path.read_bytes()))
    assert set(found) == set(flat) >= {"pair.weight", "pair.scales", "layers.2.w"}, sorted(found)
    for name, leaf in flat.items():
        right, read = np.asarray(leaf), found[name]
        assert read["dtype"] == BY_NAME[right.dtype.name].safetensors, name
        assert (tuple(read["shape"]), read["data"]) == (right.shape, right.tobytes()), name
    assert gdist.check_manifest(done.manifest, done.payload).ok

    for wrong, word in (
        ({"a": jax.random.key(0)}, "no arrays"),
        ({"a": "text", "b": object()}, "2 leaves are no arrays"),
    ):
        try:
            tree_leaves(wrong)
        except RequestError as error:
            assert word in error.message, error.message
        else:
            raise AssertionError(wrong)
    gone = put((4,), jnp.float32)
    ((*_, read),) = tree_leaves({"a": gone})
    gone.delete()
    try:
        read()
    except RequestError as error:
        assert "donated or deleted" in error.message
    else:
        raise AssertionError("a deleted array was read")
    print("well")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
