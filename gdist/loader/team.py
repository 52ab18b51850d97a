"""The processes of a job that load together: all of them get their arrays, or all of them the same error.

In JAX a process that gives up leaves the others waiting in the next collective, for minutes or for ever. So
what a process found is told to all before the first collective (`gdist.stores.agreement`), in one small
gather over XLA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdist.errors import Unreachable
from gdist.stores.agreement import Words, agree, is_agreed
from gdist.stores.buffers import Bytes

SPEC: Callable[..., PartitionSpec] = PartitionSpec  # JAX leaves it untyped
LEAST_ROW = 64  # bytes: rows of other lengths are other programs

_Result = TypeVar("_Result")


class Team:
    """The processes that own some devices; alone, or without devices among them, one has nobody to tell."""

    def __init__(self, devices: Iterable[jax.Device], words: Words | None = None):
        first: dict[int, jax.Device] = {}
        for device in devices:
            first.setdefault(device.process_index, device)
        self.processes = tuple(sorted(first))
        self._devices = [first[process] for process in self.processes]
        self.words = words or Words()

    @property
    def meets(self) -> bool:
        """True when there are others, and this process is one of them."""
        return len(self.processes) > 1 and jax.process_index() in self.processes

    @contextmanager
    def together(self, told: dict[str, str]) -> Iterator[None]:
        """Ends for all processes as it ended for the worst of them; `told` has to be the same on all.

        Raises:
            GdistError: of the kind of the first failure, with the messages of all, on every process.
        """
        if not self.meets:
            yield
            return
        fault = None
        try:
            yield
        except Unreachable:  # nobody can be told
            raise
        except Exception as error:  # whatever it is, the others are waiting
            if is_agreed(error):
                raise
            fault = error
        agree(self.gathered, self.processes, fault, told, self.words)

    def gathered(self, row: bytes, length: int = 0) -> list[bytes]:
        """Everybody's bytes, padded to `length` and perhaps beyond, in order of processes.

        Raises:
            Unreachable: when not all processes come to this.
        """
        return reached(lambda: self._gathered(row, length))

    def _gathered(self, row: bytes, length: int) -> list[bytes]:
        room = LEAST_ROW
        while room < max(len(row), length):
            room *= 2
        mesh = Mesh(np.array(self._devices, dtype=object), ("process",))
        mine: Bytes = np.frombuffer(row.ljust(room, b"\0"), np.uint8)[None]
        spread = jax.make_array_from_callback(
            (mesh.size, mine.size), NamedSharding(mesh, SPEC("process")), lambda _: mine
        )
        whole = jax.jit(_same, out_shardings=NamedSharding(mesh, SPEC()))(spread)
        return [found.tobytes() for found in np.asarray(whole.addressable_data(0))]


def _same(x: jax.Array) -> jax.Array:
    return x


def reached(call: Callable[[], _Result]) -> _Result:
    """What a call into XLA gives.

    Raises:
        Unreachable: when it fails: what fails in a collective is the way to another process.
    """
    try:
        return call()
    except (ValueError, RuntimeError) as error:  # jaxlib (0.10) says ValueError where a connection ends
        raise Unreachable(
            f"the collective of all processes failed: {error}",
            hint="see what the others say; the same command goes on where it stopped",
        ) from error
