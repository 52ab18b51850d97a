"""What a load is to give: for each leaf its tensors, their shardings, and the boxes that are read here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
from jax.sharding import Sharding

from gdist.core.box import Box
from gdist.core.store_manifest import StoreTensor
from gdist.errors import RequestError
from gdist.loader.broadcast import Readers
from gdist.loader.cast import Given
from gdist.loader.names import Rename
from gdist.loader.shardings import (
    RulesLike,
    devices_of,
    local_boxes,
    on_device,
    scales_sharding,
    shardings_on,
)
from gdist.loader.trees import lay_on, match_target, nested
from gdist.stores.buffers import numpy_dtype

Shares = Mapping[tuple[str, Sharding], Mapping[Box, int]]  # tensor and sharding: who reads each box for all


@dataclass(frozen=True, slots=True)
class Wanted:
    """One leaf of the result: its sharding, and those of the tensors it is made of."""

    given: Given
    sharding: Sharding
    shardings: tuple[Sharding, ...]

    def parts(self) -> Iterable[tuple[StoreTensor, Sharding]]:
        """The stored tensors, and how each is to be cut."""
        return zip(self.given.stored, self.shardings, strict=True)


def wanted_of(
    tensors: Sequence[Given],
    mesh: Callable[[], jax.sharding.Mesh],
    rules: RulesLike,
    target: Any,
    rename: Rename | None,
    *,
    some: bool,
) -> tuple[list[Wanted], Callable[[list[jax.Array]], Any]]:
    """What is to be loaded, leaf by leaf, and what makes the result of their arrays.

    `mesh` and `rules` are for the tensors of which the target does not say where they go; `some` as in
    `shardings_on`.

    Raises:
        RequestError: for a target that disagrees with the tensors, and shardings that do not fit them.
    """
    by_name = {tensor.tensor.name: tensor for tensor in tensors}
    seen = [tensor.tensor for tensor in tensors]
    if target is None:
        nested(seen, dict.fromkeys(by_name))  # names that make no tree are refused before anything is read
        leaves: list[tuple[Given, Sharding | None]] = [(tensor, None) for tensor in tensors]

        def build(arrays: list[jax.Array]) -> Any:
            return nested(seen, dict(zip(by_name, arrays, strict=True)))
    else:
        changed = {tensor.tensor.name for tensor in tensors if tensor.is_changed}
        matched, treedef = match_target(target, seen, rename, changed)
        leaves = [(by_name[leaf.tensor.name], leaf.sharding) for leaf in lay_on(mesh, matched)]

        def build(arrays: list[jax.Array]) -> Any:
            return jax.tree_util.tree_unflatten(treedef, arrays)

    unplaced = {part.name: part for tensor, sharding in leaves if sharding is None for part in tensor.stored}
    some = some or any(sharding for _, sharding in leaves)
    found = shardings_on(mesh(), unplaced.values(), rules, some=some) if unplaced else {}
    wanted = []
    for tensor, sharding in leaves:
        if sharding is None:
            parts = [found[part.name] for part in tensor.stored]
            wanted.append(Wanted(tensor, parts[0], tuple(parts)))
        else:
            first = on_device(sharding) if tensor.is_changed else sharding  # what is calculated with is there
            scales = [scales_sharding(first, part) for part in tensor.stored[1:]]
            wanted.append(Wanted(tensor, sharding, (first, *scales)))
    return wanted, build


def needed(wanted: Iterable[Wanted], shares: Shares) -> dict[str, set[Box]]:
    """The boxes of each tensor that this process reads.

    Raises:
        RequestError: naming every tensor that its sharding does not fit.
    """
    boxes: dict[str, set[Box]] = {}
    faults = []
    for leaf in wanted:
        for tensor, sharding in leaf.parts():
            readers = shares.get((tensor.name, sharding))
            try:
                mine = local_boxes(sharding, tensor.shape)
            except ValueError as error:
                faults.append(f"{tensor.name!r}: {error}")
                continue
            if readers:
                mine = {box for box, reader in readers.items() if reader == jax.process_index()}
            boxes.setdefault(tensor.name, set()).update(mine)
    if faults:
        raise RequestError(
            f"shardings do not fit {len(faults)} tensors: {'; '.join(faults)}", faults=tuple(faults)
        )
    return boxes


def shares_of(wanted: Iterable[Wanted]) -> Shares:
    """Who reads what, of the tensors that several processes hold in common."""
    readers = Readers()
    shares = {}
    for leaf in wanted:
        for tensor, sharding in leaf.parts():
            try:
                share = readers.of(sharding, tensor.shape, numpy_dtype(tensor.dtype))
            except ValueError:  # it does not fit: `needed` names all that do not
                continue
            if share:
                shares[tensor.name, sharding] = share
    return shares


def described(leaves: Iterable[tuple[StoreTensor, Sharding]]) -> str:
    """All of it, in words that are the same on every process that wants the same in the same order.

    What lies on the devices of one process is that process's own affair.
    """
    said = []
    for tensor, sharding in leaves:
        where = _described(sharding)
        if where:
            said.append(f"{tensor.name} {tensor.dtype.name}{list(tensor.shape)} {where}")
    return "\n".join(said)


@lru_cache(1024)
def _described(sharding: Sharding) -> str:
    devices = devices_of(sharding)
    if len({device.process_index for device in devices}) < 2:
        return ""
    return f"{sharding} {[device.id for device in devices]}"
