"""The processes of a job that load together: all of them get their arrays, or all of them the same error.

In JAX a process that gives up leaves the others waiting in the next collective, for minutes or for ever. So
what a process found is told to all before the first collective, in one small gather over XLA: a digest of
what it is about to load, and what went wrong, if anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdist import errors
from gdist.errors import GdistError, RequestError
from gdist.stores.buffers import Bytes

SPEC: Callable[..., PartitionSpec] = PartitionSpec  # JAX leaves it untyped
MOST_TEXT = 8000  # characters of a message that are told
DIGEST_BYTES = 16


class Team:
    """The processes that own some devices; alone, or without devices among them, one has nobody to tell."""

    def __init__(self, devices: Iterable[jax.Device]):
        first: dict[int, jax.Device] = {}
        for device in devices:
            first.setdefault(device.process_index, device)
        self.processes = tuple(sorted(first))
        self._devices = [first[process] for process in self.processes]

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
        except Exception as error:  # whatever it is, the others are waiting
            fault = error
        self._exchange(told, fault)

    def _exchange(self, told: dict[str, str], fault: Exception | None) -> None:
        text = _text(fault)
        digests = [
            hashlib.blake2b(value.encode(), digest_size=DIGEST_BYTES).digest() for value in told.values()
        ]
        rows = self._gathered(len(text).to_bytes(4, "little") + b"".join(digests))
        lengths = [int.from_bytes(row[:4], "little") for row in rows]
        if any(lengths):
            texts = [row[:n] for row, n in zip(self._gathered(text, max(lengths)), lengths, strict=True)]
            raise self._error(texts) from fault
        for number, what in enumerate(told):
            start = 4 + number * DIGEST_BYTES
            other = [row[start : start + DIGEST_BYTES] for row in rows]
            strange = [p for p, digest in zip(self.processes, other, strict=True) if digest != other[0]]
            if strange:
                raise RequestError(
                    f"{_named(strange)} would load {what} than process {self.processes[0]}",
                    hint="call gdist.load with the same arguments, and parts of one store, on every process",
                    processes=tuple(strange),
                )

    def _gathered(self, row: bytes, length: int = 0) -> list[bytes]:
        """Everybody's bytes, padded to `length`, in order of processes."""
        mesh = Mesh(np.array(self._devices, dtype=object), ("process",))
        mine: Bytes = np.frombuffer(row.ljust(length, b"\0"), np.uint8)[None]
        spread = jax.make_array_from_callback(
            (mesh.size, mine.size), NamedSharding(mesh, SPEC("process")), lambda _: mine
        )
        whole = jax.jit(_same, out_shardings=NamedSharding(mesh, SPEC()))(spread)
        return [row.tobytes() for row in np.asarray(whole.addressable_data(0))]

    def _error(self, texts: list[bytes]) -> GdistError:
        found = {p: json.loads(text) for p, text in zip(self.processes, texts, strict=True) if text}
        first: dict[str, Any] = next(iter(found.values()))
        by_message: dict[str, list[int]] = {}
        for process, said in found.items():
            by_message.setdefault(said["message"], []).append(process)
        said = "; ".join(f"{_named(who)} cannot load: {what}" for what, who in by_message.items())
        kind = getattr(errors, first["kind"], RequestError)
        error: GdistError = kind(said, hint=first["hint"], processes=tuple(found))
        return error


def _same(x: jax.Array) -> jax.Array:
    return x


def _named(processes: list[int]) -> str:
    return f"process{'es' if len(processes) > 1 else ''} {', '.join(map(str, processes))}"


def _text(fault: Exception | None) -> bytes:
    """A failure as it is told to others; nothing where there is none."""
    if fault is None:
        return b""
    ours = isinstance(fault, GdistError)
    message = fault.message if isinstance(fault, GdistError) else f"{type(fault).__name__}: {fault}"
    said = {
        "kind": type(fault).__name__ if ours else "RequestError",
        "message": message[:MOST_TEXT] + (" ..." if len(message) > MOST_TEXT else ""),
        "hint": fault.hint if isinstance(fault, GdistError) else "",
    }
    return json.dumps(said).encode()
