"""Who has what, who wants what, and so who sends what to whom; the same on all hosts, as each told."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.core.parcels import Deal, deal
from gdist.core.plan import HostPlan, ShardTask
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.errors import CorruptError
from gdist.run.collective.shares import Index, Shares, kept

NAMED = 8  # tensors that a message names


@dataclass(frozen=True, slots=True)
class Facts:
    """What one host tells all others: the shares it holds of each tensor, and which tensors it has done."""

    held: tuple[tuple[Index, ...], ...]
    done: tuple[bool, ...]

    def pack(self) -> bytes:
        """As bytes."""
        return zlib.compress(json.dumps([self.held, self.done]).encode())

    @classmethod
    def unpack(cls, data: bytes) -> Facts:
        """The opposite."""
        held, done = json.loads(zlib.decompress(data))
        return cls(tuple(tuple(tuple(index) for index in t) for t in held), tuple(done))


def facts_of(shares: Shares, plan: HostPlan, records: Collection[ShardTask]) -> Facts:
    """What this host tells."""
    done = (all(task in records for task in tensor.shards) for tensor in plan.tensors)
    return Facts(shares.held(), tuple(done))


def deals_of(shares: Shares, told: Sequence[Facts], limit: int) -> list[tuple[int, Deal]]:
    """How each tensor that some host still wants gets there, by its number; `limit` is a parcel's.

    Raises:
        CorruptError: naming tensors of which no host has some share.
    """
    hosts = [HostGroup(index, len(told)) for index in range(len(told))]
    deals, lacking = [], []
    known: dict[object, Deal] = {}
    for number, tensor in enumerate(shares.target.tensors):
        done = tuple(facts.done[number] for facts in told)
        if all(done):
            continue
        source, holders = shares.manifest.tensors[number], _holders(told, number)
        itemsize = tensor.dtype.itemsize
        key = source.grid, tensor.grid, tensor.spec, itemsize, done, tuple(sorted(holders.items()))
        if key not in known:  # a model has many tensors that are alike
            wants = [() if done[host.index] else _boxes(tensor, shares.target, host) for host in hosts]
            known[key] = deal(source.grid.shard, holders, wants, itemsize, limit)
        deals.append((number, known[key]))
        if known[key].absent:
            lacking.append(tensor.name)
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        raise CorruptError(
            f"no host has some share of {len(lacking)} tensors that are wanted: "
            f"{', '.join(map(repr, lacking[:NAMED]))}{more}",
            hint="delete the destinations, and fetch again",
            tensors=tuple(lacking),
        )
    return deals


def _holders(told: Sequence[Facts], number: int) -> Mapping[Index, tuple[int, ...]]:
    holders: dict[Index, tuple[int, ...]] = {}
    for host, facts in enumerate(told):
        for index in facts.held[number]:
            holders[index] = (*holders.get(index, ()), host)
    return holders


def _boxes(tensor: StoreTensor, target: StoreManifest, host: HostGroup) -> tuple[Box, ...]:
    return tuple(tensor.grid.box_of(index) for index in kept(tensor, target, host))
