"""Run by `test_stream_meshes.py` in processes of several CPU devices; says "done" when all is right."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gdist
import gdist.errors
from gdist.core.order import loading_order
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.stores import Array

ALONE: dict[str, Any] = {"dht": False, "listen": "127.0.0.1:0", "stall_timeout": 60}
MESH = "2x4"


def content(directory: Path) -> dict[str, Array]:
    """What is seeded; the same in every process."""
    return write_safetensors(directory, emb=64)


def check(path: str, array: jax.Array, expected: Array, mesh: dict[str, int]) -> None:
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype), path
    assert dict(array.sharding.mesh.shape) == mesh, path
    for shard in array.addressable_shards:
        assert np.asarray(shard.data).tobytes() == expected[shard.index].tobytes(), (path, shard.index)


def watched(stream: Iterator[Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """The stream; should it fail because a fetch did, that is what is raised."""
    try:
        yield from stream
    except gdist.errors.GdistError:
        for job in jobs:
            job.check()
        raise


def one_process(magnet: str, directory: Path) -> None:
    """Two hosts' fetches into one directory, followed by one process that has all devices."""
    expected = content(directory / "again")
    jobs = [
        gdist.fetching(magnet, directory / "s", mesh=MESH, host=f"{host}/2", **ALONE) for host in range(2)
    ]
    with jobs[0], jobs[1]:
        streams = [gdist.stream(directory / "s", mesh=mesh) for mesh in (None, "4x2", "1x8")]
        order = []
        for path, array in watched(streams[0], jobs):
            order.append(path)
            check(path, array, expected[path], {"data": 2, "model": 4})
            for other, mesh in zip(
                streams[1:], ({"data": 4, "model": 2}, {"data": 1, "model": 8}), strict=True
            ):
                found, array = next(other)
                assert found == path
                check(path, array, expected[path], mesh)
        assert order == list(loading_order(expected))


def one_of_two(magnet: str, directory: Path, port: str, index: int) -> None:
    """Each process fetches its host's part and streams it; between the tensors they compute together."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
    expected = content(directory / f"again-{index}")
    order = []
    with gdist.fetching(magnet, directory / str(index), mesh=MESH, host=f"{index}/2", **ALONE) as job:
        for path, array in gdist.stream(job):
            order.append(path)
            assert not array.is_fully_addressable
            check(path, array, expected[path], {"data": 2, "model": 4})
            total = jax.jit(lambda x: x.astype("float32").sum())(array)  # needs both processes
            np.testing.assert_allclose(total, expected[path].astype(np.float32).sum(), rtol=1e-3)
        assert job.done
    assert order == list(loading_order(expected))


if __name__ == "__main__":
    magnet, directory, *rest = sys.argv[1:]
    if rest:
        one_of_two(magnet, Path(directory), rest[0], int(rest[1]))
    else:
        one_process(magnet, Path(directory))
    print("done")
