"""Run by `test_processes.py`: one of two processes of 4 devices; it loads from its own host's directory."""

from __future__ import annotations

import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gdist
from gdist.errors import RequestError


def main(port: str, index: int, root: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
    tree = gdist.load(root)
    w = tree["w"]
    assert w.shape == (8, 16) and not w.is_fully_addressable
    whole = np.arange(128, dtype=np.float32).reshape(8, 16)
    for shard in w.addressable_shards:
        assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes()
    assert tree["all"].is_fully_replicated

    # A mesh of the first process's devices: the second holds nothing, and says so with a type and no bytes.
    first = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    target = {"w": jax.ShapeDtypeStruct((8, 16), np.float32, sharding=NamedSharding(first, P()))}
    if index == 1:
        empty = gdist.load(root, target=target, select="^w$")["w"]
        assert empty.shape == (8, 16) and empty.dtype == np.float32 and not empty.addressable_shards
    else:
        try:
            gdist.load(root, target=target, select="^w$")
        except RequestError as error:
            assert "written by host 1 of 2" in error.message
        else:
            raise AssertionError("host 0 has only its own half")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    print("done")
