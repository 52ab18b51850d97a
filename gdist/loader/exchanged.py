"""Tensors whose shards are spread over the disks of several processes: what one lacks comes from another.

    disk of process 0   | shard 0 | shard 1 |              what its devices need and is on its own disk,
    disk of process 1             | shard 1 | shard 2 |    a process reads; the rest comes in parcels

Each process tells all others once what it has. From that everybody works out who sends what to whom
(`gdist.core.parcels`), so all come to the same collectives in the same order.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Sharding

from gdist.core.box import Box, tiles_of
from gdist.core.parcels import Deal, Item, deal, rounds_of
from gdist.core.store_manifest import TARGET_NAME, StoreManifest, StoreTensor, parse_store_manifest
from gdist.errors import CorruptError
from gdist.kvstore import local_path
from gdist.loader.arrays import Read, assembled
from gdist.loader.carrier import XlaCarrier
from gdist.loader.shardings import devices_by_box
from gdist.loader.team import Team
from gdist.loader.wanted import Wanted
from gdist.stores import LazyArray, Store
from gdist.stores.agreement import Words, gather_all
from gdist.stores.buffers import Array, Bytes
from gdist.stores.rounds import Rounds, parcel_limit

Index = tuple[int, ...]
Held = dict[str, dict[Index, list[int]]]  # by tensor and shard: the processes that have it, by their place


def meant(store: Store) -> StoreManifest:
    """The store's manifest; of even shares with the mesh and specs of what they are on their way to."""
    root = local_path(store.where)
    if root is None or not (root / TARGET_NAME).is_file():
        return store.manifest
    target = parse_store_manifest((root / TARGET_NAME).read_bytes(), str(root / TARGET_NAME))
    specs = {tensor.name: tensor.spec for tensor in target.tensors}
    tensors = tuple(replace(t, spec=specs.get(t.name, t.spec)) for t in store.manifest.tensors)
    return replace(store.manifest, mesh=target.mesh, tensors=tensors)


def grids_of(store: Store) -> str:
    """How a store is cut, in words that are the same for all parts of one store."""
    return repr([(tensor.name, tensor.grid) for tensor in store.manifest.tensors])


class Others:
    """The processes that load together, and what each has of a store."""

    def __init__(
        self,
        store: Store,
        devices: Sequence[jax.Device],
        team: Team,
        memory: int,
        wanted: Iterable[Wanted],
    ):
        self._store, self._processes = store, team.processes
        self._carrier = XlaCarrier(devices, Words())
        self._limit = parcel_limit(memory, self._carrier.count)
        self._tensors = {tensor.name: tensor for tensor in store.manifest.tensors}
        self._held = self._told(team)
        self._deals: dict[tuple[str, Sharding], Deal] = {}
        absent = {
            part.name
            for leaf in wanted
            for part, sharding in leaf.parts()
            if self._deal(part.name, sharding).absent
        }
        if absent:  # the same on all processes
            raise CorruptError(
                f"no process has some shards of {len(absent)} tensors: {', '.join(sorted(absent))}",
                hint="give every process its part of one store that is complete",
                tensors=tuple(sorted(absent)),
                agreed=True,
            )
        self._names = tuple(self._tensors)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._rounds = Rounds(
            self._carrier,
            [tensor.dtype.itemsize for tensor in self._tensors.values()],
            self._view,
            self._place,
            words=Words(),
        )
        self._landing: list[tuple[Box, Array]] = []

    def _told(self, team: Team) -> Held:
        mine = {name: [*tensor.shards] for name, tensor in self._tensors.items()}
        rows = gather_all(team.gathered, zlib.compress(json.dumps(mine).encode()))
        held: Held = {name: {} for name in mine}
        for place, row in enumerate(rows):
            for name, indexes in json.loads(zlib.decompress(row)).items():
                for index in indexes:
                    held[name].setdefault(tuple(index), []).append(place)
        return held

    def _deal(self, name: str, sharding: Sharding) -> Deal:
        key = name, sharding
        if key not in self._deals:
            tensor, wants = self._tensors[name], self._wants(name, sharding)
            held, itemsize = self._held[name], tensor.dtype.itemsize
            self._deals[key] = deal(tensor.grid.shard, held, wants, itemsize, self._limit)
        return self._deals[key]

    def _wants(self, name: str, sharding: Sharding) -> list[list[Box]]:
        """The boxes that each process wants."""
        wants: list[list[Box]] = [[] for _ in self._processes]
        for box, owners in devices_by_box(sharding, self._tensors[name].shape, local=False).items():
            for process in {device.process_index for device in owners} if box.size else ():
                wants[self._processes.index(process)].append(box)
        return wants

    def source(self, name: str, sharding: Sharding) -> Exchanged:
        """A tensor as a source of the pipeline."""
        return Exchanged(self, self._store[name].read_by(OwnPart(self._store[name])), sharding)

    def bring(self, name: str, sharding: Sharding, slabs: Mapping[Box, Array]) -> None:
        """Fills in what others have; all processes come to this for the same tensors in the same order.

        Raises:
            GdistError: the same on all processes, when one has failed.
            Unreachable: when one is gone.
        """
        one = self._deal(name, sharding)
        if one.stages:
            self._landing = [(box, slabs[box]) for box in self._wants(name, sharding)[self._carrier.index]]
            numbered = [(self._numbers[name], one)]
            self._rounds.run(rounds_of(numbered, self._carrier.count, self._limit), settle=False)
            self._landing = []

    def _view(self, number: int, box: Box) -> Array:
        tensor = self._store[self._names[number]]
        view = tensor.view(box)
        return tensor.read(box) if view is None else view

    def _place(self, number: int, item: Item, data: Bytes) -> None:
        box, slab = self._landing[item.target]
        inside: Any = (..., *item.box.relative_to(box.start).slices())  # with `...` for scalars
        slab[inside] = data.view(slab.dtype).reshape(item.box.shape)

    def check(self) -> None:
        """Raises what went wrong here and was not told yet."""
        if self._rounds.fault:
            raise self._rounds.fault

    def close(self) -> None:
        """Gives back what is held."""
        self._carrier.close()


class OwnPart:
    """A reader of what this process has of a box; the rest of it is left as it is."""

    def __init__(self, tensor: LazyArray):
        self._whole = tensor

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """Nothing: reading checks."""

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        """None: a box that is put together has to be copied."""
        return None

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies the parts of a box that are here, checked."""
        for index, part in tiles_of(box, tensor.grid.shard):
            if index in tensor.shards:
                inside: Any = (..., *part.relative_to(box.start).slices())
                view = self._whole.view(part)
                out[inside] = self._whole.read(part) if view is None else view

    def close(self) -> None:
        """Nothing is held."""


class Exchanged:
    """A tensor of which this process reads what it has, and gets the rest."""

    nbytes = 0  # of the ring: its memory is that of the slabs
    shared = True

    def __init__(self, others: Others, tensor: LazyArray, sharding: Sharding):
        self.tensor = tensor
        self._others, self._sharding = others, sharding

    def boxes(self) -> list[Box]:
        """Those that this process holds."""
        return list(devices_by_box(self._sharding, self.tensor.shape, local=True))

    def land(self, slabs: Mapping[Box, Array]) -> jax.Array:
        """The array; all processes come to this."""
        self._others.bring(self.tensor.name, self._sharding, slabs)
        return assembled(self.tensor, self._sharding, slabs)

    def land_in_parts(self, memory: Bytes, run: Callable[[Iterable[Read]], None]) -> jax.Array:
        """Never asked: it takes nothing of the ring."""
        raise AssertionError(f"{self.tensor.name!r} is not staged")
