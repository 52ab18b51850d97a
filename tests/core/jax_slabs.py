"""Asks JAX which slab every device holds, on random cases, and prints where our arithmetic says otherwise.

Half of the meshes have their devices in another order. A process is played by a run of devices, as real ones
have them: what a host holds is to be all that NamedSharding gives its devices.

    python jax_slabs.py CASES SEED

Prints JSON: the numbers of slabs and of hosts' shares compared, and the mismatches as text. 64 CPU
devices stand for a mesh.
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

from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, slab_of, split_counts
from gdist.core.picture import regions_of

NAMES = ("replica", "data", "model")


def random_mesh(rng: random.Random) -> Mesh:
    while True:
        names = rng.sample(NAMES, rng.randint(1, 3))
        mesh = Mesh(tuple((name, rng.choice((1, 2, 3, 4, 8, 16))) for name in names))
        if mesh.devices <= 64:
            order = list(range(mesh.devices))
            if rng.random() < 0.5:
                rng.shuffle(order)
            return Mesh(mesh.axes, tuple(order))


def random_spec(rng: random.Random, mesh: Mesh, ndim: int) -> PartitionSpec:
    """Some axes in any order, dealt to dimensions: several to one, none to another, none to the last."""
    dims: list[tuple[str, ...]] = [() for _ in range(rng.randint(0, ndim))]
    if dims:
        for name in rng.sample(mesh.names, rng.randint(0, len(mesh.names))):
            place = rng.randrange(len(dims))
            dims[place] += (name,)
    return PartitionSpec(tuple(dims))


Ranges = tuple[tuple[int, int], ...]


def compare(rng: random.Random) -> tuple[int, int, list[str]]:
    mesh = random_mesh(rng)
    ndim = rng.randint(0, 4)
    spec = random_spec(rng, mesh, ndim)
    shape = tuple(count * rng.randint(1, 3) for count in split_counts(mesh, spec, ndim))
    devices = jax.devices()[: mesh.devices]
    grid = np.array([devices[number] for number in mesh.order or range(mesh.devices)]).reshape(mesh.sizes)
    theirs = jax.sharding.NamedSharding(
        jax.sharding.Mesh(grid, mesh.names),
        jax.sharding.PartitionSpec(*(dim or None for dim in spec.dims)),
    ).devices_indices_map(shape)
    held: dict[int, Ranges] = {
        number: tuple(s.indices(n)[:2] for s, n in zip(theirs[device], shape, strict=True))
        for number, device in enumerate(devices)
    }
    wrong = []
    ours = [box_at(mesh, spec, shape, place) for place in range(mesh.devices)]
    for place, number in enumerate(mesh.order or range(mesh.devices)):
        if ours[place] != held[number]:
            wrong.append(f"{mesh} {spec} {shape} place {place}: {ours[place]}, JAX {held[number]}")
    for region in regions_of(mesh, spec, shape):
        box = tuple(zip(region.box.start, region.box.stop, strict=True))
        if strays := [number for number in region.devices if held[number] != box]:
            wrong.append(f"{mesh} {spec} {shape} devices {strays}: drawn at {box}")
    drawn = sorted(number for region in regions_of(mesh, spec, shape) for number in region.devices)
    if drawn != sorted(held):
        wrong.append(f"{mesh} {spec} {shape}: drawn are {drawn}")
    counts = [count for count in range(1, mesh.devices + 1) if mesh.devices % count == 0]
    count = rng.choice(counts)
    each = mesh.devices // count
    for index in range(count):
        share = {ours[place] for place in HostGroup(index, count).devices(mesh)}
        expected = {held[number] for number in range(index * each, (index + 1) * each)}
        if share != expected:
            wrong.append(f"{mesh} {spec} {shape} host {index}/{count}: {share}, JAX {expected}")
    return mesh.devices, count, wrong


def box_at(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...], place: int) -> Ranges:
    box = slab_of(mesh, spec, shape, place)
    return tuple(zip(box.start, box.stop, strict=True))


def main(cases: int, seed: int) -> None:
    rng = random.Random(seed)
    slabs, shares, mismatches = 0, 0, []
    for _ in range(cases):
        count, hosts, wrong = compare(rng)
        slabs += count
        shares += hosts
        mismatches += wrong
    print(json.dumps({"slabs": slabs, "shares": shares, "mismatches": mismatches[:20]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
