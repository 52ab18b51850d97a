"""Parcels from process to process by XLA's own collectives: NVLink, InfiniBand, ICI, or TCP between CPUs.

A round is one program over a mesh of (process, rail): the rails are devices of each process that carry a part
of every parcel each, so that all links of a machine work. What is moved are unsigned integers, which every
back end leaves as they are.

    rows of a process     | parcel for 0 | parcel for 1 | ...
    on its rails          | rail 0 | rail 1 |  of each parcel

There is one program for each kind of round and size of a parcel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdist.core.parcels import Kind, Pair, Round
from gdist.loader.team import Team, reached
from gdist.stores.agreement import Words
from gdist.stores.buffers import Array, Bytes

SPEC: Callable[..., PartitionSpec] = PartitionSpec  # JAX leaves it untyped
WORD = np.dtype(np.uint32)
PROCESS, RAIL = "process", "rail"
all_to_all: Callable[..., jax.Array] = lax.all_to_all  # untyped, too
permute: Callable[..., jax.Array] = lax.ppermute


class XlaCarrier:
    """Carries between the processes that own some devices, this one among them.

    `rails` is how many devices of each process are used; by default all that each has, on CPU one: there they
    share one network, and each costs connections.
    """

    def __init__(self, devices: Sequence[jax.Device], words: Words | None = None, rails: int | None = None):
        by_process: dict[int, list[jax.Device]] = {}
        for device in devices:
            by_process.setdefault(device.process_index, []).append(device)
        most = 1 if devices[0].platform == "cpu" else min(map(len, by_process.values()))
        used = [by_process[process][: rails or most] for process in sorted(by_process)]
        self.count = len(used)
        self.index = sorted(by_process).index(jax.process_index())
        self._mesh = Mesh(np.array(used, dtype=object), (PROCESS, RAIL))
        self._team = Team(devices, words)
        self._laid = NamedSharding(self._mesh, SPEC(PROCESS, RAIL))
        self._rails = used[self.index]
        # One thread for all collectives: two at once may overtake each other on some processes, and gloo
        # takes one's bytes for the other's (jaxlib 0.10). On CPU a program's call lasts until it is done.
        self._thread = ThreadPoolExecutor(1, "gdist-collective")

    def gathered(self, row: bytes, length: int = 0) -> list[bytes]:
        """Everybody's bytes, padded to a length that is the same for all."""
        return self._thread.submit(self._team.gathered, row, length).result()

    def start(self, one: Round, rows: Bytes) -> Callable[[], Bytes]:
        """Begins a round; what is called to get the rows received."""
        begun = self._thread.submit(self._moved, one, rows)
        return lambda: reached(begun.result)

    def close(self) -> None:
        """Ends the thread, when what it is at has ended."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _moved(self, one: Round, rows: Bytes) -> Bytes:
        words: Array = rows.view(WORD)
        rails = len(self._rails)
        width = -(-words.shape[1] // rails)
        if width * rails != words.shape[1]:
            words = np.pad(words, ((0, 0), (0, width * rails - words.shape[1])))
        parts = [
            # On CPU an aligned array is not copied: JAX reads the caller's memory.
            jax.device_put(np.ascontiguousarray(words[:, number * width : (number + 1) * width]), device)
            for number, device in enumerate(self._rails)
        ]
        shape = (self.count * words.shape[0], rails * width)
        sent = jax.make_array_from_single_device_arrays(shape, self._laid, parts)
        hops = map(one.pairs_at, one.hops) if one.kind is Kind.PAIRS else ()
        received: jax.Array = _program(self._mesh, one.kind, tuple(hops))(sent)
        return self._received(received, one.slot)

    def _received(self, array: jax.Array, slot: int) -> Bytes:
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[1].start or 0)
        parts = [np.asarray(shard.data) for shard in shards]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        received: Bytes = whole.view(np.uint8)[:, :slot]
        return received


@cache
def _program(mesh: Mesh, kind: Kind, hops: tuple[tuple[Pair, ...], ...]) -> Any:
    """The collective of a round; JAX compiles it anew for each size."""

    def moved(rows: jax.Array) -> Any:
        match kind:
            case Kind.GATHER:
                return lax.all_gather(rows[0], PROCESS)
            case Kind.ALL:
                return all_to_all(rows, PROCESS, 0, 0, tiled=True)
            case Kind.PAIRS:
                return jnp.stack([permute(rows[n], PROCESS, pairs) for n, pairs in enumerate(hops)])

    laid = SPEC(PROCESS, RAIL)
    return jax.jit(jax.shard_map(moved, mesh=mesh, in_specs=laid, out_specs=laid))
