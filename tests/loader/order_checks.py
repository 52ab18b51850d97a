"""Run by `test_device_order.py`: one of two processes of 4 devices; their mesh has these interleaved."""

from __future__ import annotations

import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gdist
from gdist.errors import RequestError


def main(port: str, index: int, root: str, order: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
    devices = jax.devices()
    numbers = [0, 4, 1, 5, 2, 6, 3, 7]
    mesh = Mesh(np.array([devices[number] for number in numbers]).reshape(2, 4), ("data", "model"))

    # What a user pastes into a fetch, and what was fetched with it.
    assert gdist.device_order(mesh) == order
    whole = np.arange(128, dtype=np.float32).reshape(8, 16)
    for given in (None, mesh):
        w = gdist.load(root, mesh=given)["w"]
        assert w.sharding == NamedSharding(mesh, P("data", "model")), w.sharding
        assert {shard.device for shard in w.addressable_shards} == set(jax.local_devices())
        for shard in w.addressable_shards:
            assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes()
    try:
        gdist.load(root, mesh="2x4")  # the devices in their own order: half of the slabs are the other host's
    except RequestError as error:
        assert f"written by host {1 - index} of 2" in error.message, error
    else:
        raise AssertionError("a host has slabs that it did not fetch")

    # Any part of the devices, if it is of every process as much.
    inner = Mesh(np.array([devices[number] for number in (5, 6, 1, 2)]).reshape(4), ("x",))
    assert gdist.device_order(inner) == "2,3,0,1"
    assert gdist.device_order(Mesh(np.array(devices), ("x",))) == "0-7"
    try:
        gdist.device_order(Mesh(np.array(devices[:5]), ("x",)))
    except RequestError as error:
        assert "4 of process 0, 1 of process 1" in error.message
    else:
        raise AssertionError("no store is cut for 4 devices of one process and one of another")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
    print("done")
