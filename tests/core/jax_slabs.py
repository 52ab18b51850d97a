"""Asks JAX which slab every device holds, on random cases, and prints where our arithmetic says otherwise.

    python jax_slabs.py CASES SEED

Prints JSON: the number of slabs compared, and the mismatches as text. 64 CPU devices stand for a mesh.
"""

from __future__ import annotations

import json
import os
import random
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from gdist.core.mesh import Mesh, PartitionSpec, slab_of, split_counts

NAMES = ("replica", "data", "model")


def random_mesh(rng: random.Random) -> Mesh:
    while True:
        names = rng.sample(NAMES, rng.randint(1, 3))
        mesh = Mesh(tuple((name, rng.choice((1, 2, 3, 4, 8, 16))) for name in names))
        if mesh.devices <= 64:
            return mesh


def random_spec(rng: random.Random, mesh: Mesh, ndim: int) -> PartitionSpec:
    """Some axes in any order, dealt to dimensions: several to one, none to another, none to the last."""
    dims: list[tuple[str, ...]] = [() for _ in range(rng.randint(0, ndim))]
    if dims:
        for name in rng.sample(mesh.names, rng.randint(0, len(mesh.names))):
            place = rng.randrange(len(dims))
            dims[place] += (name,)
    return PartitionSpec(tuple(dims))


def compare(rng: random.Random) -> tuple[int, list[str]]:
    mesh = random_mesh(rng)
    ndim = rng.randint(0, 4)
    spec = random_spec(rng, mesh, ndim)
    shape = tuple(count * rng.randint(1, 3) for count in split_counts(mesh, spec, ndim))
    devices = jax.devices()[: mesh.devices]
    theirs = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(devices).reshape(mesh.sizes), mesh.names),
        jax.sharding.PartitionSpec(*(dim or None for dim in spec.dims)),
    ).devices_indices_map(shape)
    wrong = []
    for number, device in enumerate(devices):
        expected = tuple(s.indices(n)[:2] for s, n in zip(theirs[device], shape, strict=True))
        box = slab_of(mesh, spec, shape, number)
        if tuple(zip(box.start, box.stop, strict=True)) != expected:
            wrong.append(f"{mesh} {spec} {shape} device {number}: {box}, JAX {expected}")
    return len(devices), wrong


def main(cases: int, seed: int) -> None:
    rng = random.Random(seed)
    slabs, mismatches = 0, []
    for _ in range(cases):
        count, wrong = compare(rng)
        slabs += count
        mismatches += wrong
    print(json.dumps({"slabs": slabs, "mismatches": mismatches[:20]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
