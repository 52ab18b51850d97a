"""From a store to a tree of `jax.Array`, each device reading its own slab.

On CPU a slab that lies in the store as it is needed becomes the array's memory without a copy: it is the
mapped file. Another mesh is served by strided copies out of the same maps. Devices with memory of their own
are fed through a window of host memory.

    which tensors, which shardings ──▶ is all of it here? ──▶ do all processes say so? ──▶ read, hand over
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import jax

from gdist import __version__
from gdist.core.rename import RenameTable
from gdist.core.select import check_patterns
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.units import parse_some_bytes
from gdist.errors import RequestError
from gdist.loader.alike import check_replicas, release_of
from gdist.loader.arrays import Mapped
from gdist.loader.broadcast import Shared
from gdist.loader.cast import finisher, given, parse_dtype
from gdist.loader.exchanged import Others, grids_of, meant
from gdist.loader.names import RenameLike, table_or_names
from gdist.loader.pipeline import Job, Pipeline, Source
from gdist.loader.shardings import MeshLike, RulesLike, device_mesh, devices_of, is_abstract, local_device
from gdist.loader.staging import Staged, Staging, staging_on
from gdist.loader.team import Team
from gdist.loader.wanted import Shares, Wanted, described, needed, shares_of, wanted_of
from gdist.stores import Store
from gdist.stores import open as open_store
from gdist.stores.buffers import numpy_dtype
from gdist.stores.renamed import renamed_store

MOST_THREADS = 16  # that read; more gain nothing from a disk, and little from a network

Select = str | Iterable[str] | Callable[[str], bool]


def load(
    store: str | os.PathLike[str] | Store,
    *,
    mesh: MeshLike = None,
    rules: RulesLike = None,
    target: Any = None,
    select: Select | None = None,
    rename: RenameLike = None,
    verify: bool = True,
    dtype: Any = None,
    broadcast: bool = False,
    exchange: bool = False,
    staging: Staging = "auto",
    memory: int | str = "1GiB",
) -> Any:
    """A nested dict of `jax.Array`, or a tree like `target`, on this process's devices.

    Args:
        store: a directory, a URL, or a `Store`.
        mesh: a `jax.sharding.Mesh`, or "8x8" for one of the first devices. Default: the store's own mesh
            where there are as many devices, else everything on one device.
        rules: partition rules, as in a fetch; default: as the store was cut. An `8x8` store loads on a
            `1x8` mesh as it does on its own.
        target: a tree of `jax.ShapeDtypeStruct` (or arrays) whose leaves' paths, joined by `.`, are tensor
            names. A leaf's `sharding` is used where it has one; on an abstract mesh, with the devices of
            `mesh`. The same kind of tree is returned.
        select: regular expressions searched in tensor names (both halves of a quantised pair go by the
            pair's name), or a function that says yes; default: everything.
        rename: the name of a renaming table or a file with one: the store's tensors get the names that it
            gives them, transposed and stacked as it says; rules, target and select then speak of those. Or,
            with `target`, from the path of its leaf to the tensor's name: a mapping, a function, or pairs of
            a regular expression and its replacement, each substituted in turn.
        verify: compare digests, of everything that is needed here, before any array is built. (A `Store`
            was opened with or without.)
        dtype: a floating type; floating tensors are cast to it on the devices, and a quantised pair becomes
            one dequantised tensor of the pair's name. Integers and booleans stay.
        broadcast: what several processes hold in common is read by one of them and given to the others by
            XLA, bit for bit; so a shared disk or bucket is read once.
        exchange: shards that are on another process's disk come from there, through XLA; each process needs
            just its own part of the store, which may be one that a collective exchange took in.
        staging: how bytes get to devices with memory of their own: through a "ring" of reused buffers, or
            through the ring and "pinned" (page-locked) memory; "none": JAX is handed arrays of host memory
            that it may keep, as it does on CPU. "auto": none on CPU, else pinned, or ring where there is
            no pinned memory.
        memory: bytes of host memory for what is staged, broadcast or exchanged.

    Without `target`, names are nested by their dots, and a quantised pair is one `QuantizedWeight8bit`. All
    shards that are needed are looked for first. Where the devices belong to several processes, all of them
    have to call: they tell each other what they found before any array is built, and either all get their
    arrays, or all raise the same error.

    Raises:
        RequestError: naming all tensors that the mesh does not fit, that the target lacks or has too many,
            64-bit tensors where JAX would narrow them, and shards that another host has; processes that do
            not ask for the same.
        CorruptError: naming all shards that are missing, cut, or differ from their digests.
        TransferError: when a remote store does not answer.
    """
    devices = concerned(mesh, target)
    team = Team(devices)
    told = {"another release": "", "other tensors, shardings or options": ""}
    with ExitStack() as stack:
        with team.together(told):
            limit, as_type = (
                parse_some_bytes(memory, "memory", "64MiB; 1GiB is the default"),
                parse_dtype(dtype),
            )
            table, names = table_or_names(rename, target)
            _check_ways(broadcast, exchange, table)
            opened = nullcontext(store) if isinstance(store, Store) else open_store(store, verify=verify)
            source = stack.enter_context(opened)
            stored = source.manifest
            source = renamed_store(source, table) if table else source
            manifest = meant(source) if exchange else source.manifest
            tensors = _selected(manifest.tensors, select)
            _refuse_wide(tensors)

            def on_mesh() -> jax.sharding.Mesh:
                return device_mesh(mesh, manifest)

            given_out = given(tensors, as_type)
            some = is_choice(manifest, select)
            wanted, build = wanted_of(given_out, on_mesh, rules, target, names, some=some)
            shares = shares_of(wanted) if broadcast else {}
            boxes = needed(wanted, shares)
            exchanging = exchange and team.meets
            if not exchanging:
                source.check(boxes)
            if team.meets:
                told["another release"] = release_of(stored)
                whole = described((leaf.given.tensor, leaf.sharding) for leaf in wanted)
                asked = f"{broadcast} {exchange and (__version__, grids_of(source))}"
                told["other tensors, shardings or options"] = f"{whole}\n{asked}"
        check_replicas(team, stored)
        others = None
        if exchanging:
            others = stack.enter_context(closing(Others(source, devices, team, limit, wanted)))
        with team.together(told):
            jobs = [_job(source, leaf, shares, staging, others) for leaf in wanted]
            patient = bool(shares) or exchanging
            pipeline = Pipeline(limit, max(2, min(os.cpu_count() or 1, MOST_THREADS)), patient=patient)
            arrays = pipeline.run(jobs)
            if others:
                others.check()
            return build(arrays)


def _check_ways(broadcast: bool, exchange: bool, table: RenameTable | None) -> None:
    if broadcast and exchange:
        raise RequestError("broadcast and exchange are both asked for", hint="exchange reads once, too")
    if table and exchange:
        raise RequestError(
            "exchange goes by the shards as they are stored, a renaming table makes others",
            hint="load from a store that every process can read, with broadcast=True if that is slow",
        )


def _job(store: Store, leaf: Wanted, shares: Shares, staging: Staging, others: Others | None) -> Job:
    sources: list[Source] = []
    for part, sharding in leaf.parts():
        tensor, share = store[part.name], shares.get((part.name, sharding))
        way = staging_on(local_device(sharding), staging)
        if others:
            sources.append(others.source(part.name, sharding))
        elif share:
            sources.append(Shared(tensor, sharding, share))
        else:
            sources.append(Mapped(tensor, sharding) if way == "none" else Staged(tensor, sharding, way))
    return Job(tuple(sources), finisher(leaf.given, leaf.sharding))


def concerned(mesh: MeshLike, target: Any) -> list[jax.Device]:
    """The devices that a load is about, as far as its arguments say; they are the same on every process."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(target)]
    placed = [sharding for sharding in shardings if sharding is not None and not is_abstract(sharding)]
    devices = [device for sharding in placed for device in devices_of(sharding)]
    if target is None or len(placed) < len(shardings):
        devices += mesh.devices.flat if isinstance(mesh, jax.sharding.Mesh) else jax.devices()
    return devices


def _selected(tensors: Iterable[StoreTensor], select: Select | None) -> tuple[StoreTensor, ...]:
    if select is None:
        return tuple(tensors)
    if callable(select):
        keep = select
    else:
        texts = [select] if isinstance(select, str) else list(select)
        check_patterns(texts)
        patterns = [re.compile(text) for text in texts]

        def keep(name: str) -> bool:
            return any(pattern.search(name) for pattern in patterns)

    chosen = tuple(t for t in tensors if keep(t.quantisation.pair if t.quantisation else t.name))
    if not chosen:
        raise RequestError(f"select {select!r} chooses no tensor", hint="gdist inspect lists the names")
    return chosen


def is_choice(manifest: StoreManifest, select: Select | None) -> bool:
    """True when what is selected may be less than a model: rules for other tensors are no mistake then."""
    return select is not None or bool(manifest.select)


def _refuse_wide(tensors: Iterable[StoreTensor]) -> None:
    types = [(tensor.name, numpy_dtype(tensor.dtype)) for tensor in tensors]
    wide = [name for name, dtype in types if jax.dtypes.canonicalize_dtype(dtype) != dtype]
    if wide:  # narrowed, large integers would be other numbers
        raise RequestError(
            f"{len(wide)} tensors are of 64-bit types, which JAX narrows as it is set: {', '.join(wide)}",
            hint="jax.config.update('jax_enable_x64', True), or select= others",
            tensors=tuple(wide),
        )
