"""Tiny payloads with an index over them, for readers that know TensorStore, Orbax or fsspec and not gdist."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdist.core.box import Box, tiles_of
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.orbax import orbax_documents
from gdist.core.store_manifest import StoreManifest, StoreSource, StoreTensor
from gdist.core.tensor import Order, dtype_named
from gdist.core.view import VIEW, StoreFile, View, chunk_indexes, view_grid
from gdist.core.view_entries import view_entries
from gdist.views.ocdbt import next_state, write_ocdbt
from gdist.views.references import write_references

Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type

GAP = 151  # bytes before each stored array, as a pickle's header: nothing is aligned


def write_index(
    root: Path,
    arrays: Mapping[str, Array],
    *,
    parts: Mapping[str, tuple[int, ...]] | None = None,
    fortran: Collection[str] = (),
    chunk_bytes: int = 1000,
    without: Collection[tuple[str, tuple[int, ...]]] = (),
) -> StoreManifest:
    """Writes a payload of these arrays, a file each below `root/payload`, and every kind of index over it.

    `parts` gives shapes for arrays that are stored in several parts, `fortran` names those in Fortran order,
    `without` chunks (name, index) that the index leaves out. There is no `gdist.json`.
    """
    files, tensors = [], []
    for number, (name, array) in enumerate(arrays.items()):
        dtype = dtype_named(array.dtype.name)
        shape = (parts or {}).get(name, array.shape)
        order = Order.F if name in fortran else Order.C
        content, at = bytearray(), []
        for _, box in tiles_of(Box.whole(array.shape), shape):
            content += bytes([0xFF]) * GAP
            at.append((number, len(content)))
            content += array[box.slices()].tobytes(order.value)
        path = root / "payload" / "ckpt-0" / f"tensor{number:05}_000"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files.append(StoreFile(str(path.relative_to(root)), len(content)))
        view = View(order, shape, tuple(at))
        grid = view_grid(array.shape, view, dtype.itemsize, chunk_bytes)
        here = {index: ("",) for index in chunk_indexes(grid) if (name, index) not in without}
        tensors.append(StoreTensor(name, dtype, grid, PartitionSpec(()), None, here, view=view))
    manifest = StoreManifest(
        StoreSource("ab" * 20, "", "test", 1 << 14, sum(file.nbytes for file in files)),
        "",
        Mesh(()),
        HostGroup(),
        tuple(tensors),
        codec=VIEW,
        files=tuple(files),
    )
    entries = tuple(view_entries(manifest))
    uuid, generation = next_state(root)
    write_ocdbt(root, entries, uuid=uuid, generation=generation)
    write_references(root, entries)
    for name, document in orbax_documents(arrays, ocdbt=True).items():
        (root / name).write_bytes(document)
    return manifest


def various_arrays() -> dict[str, Array]:
    """Arrays of all kinds that a checkpoint has, in NumPy's own types, and of shapes that are awkward."""
    rng = np.random.default_rng(0)
    return {
        "embed.weight": rng.standard_normal((64, 32)).astype(np.float32),
        "layers.0.moe.weight": rng.integers(-128, 127, (4, 32, 64)).astype(np.int8),
        "layers.0.norm": rng.standard_normal(13).astype(np.float16),
        "layers.0.turned": rng.standard_normal((8, 6, 10)),
        "layers.0.joined": rng.integers(0, 2**16, (8, 12)).astype(np.uint16),
        "mask": rng.integers(0, 2, (3, 700)).astype(np.bool_),
        "phase": rng.standard_normal((5, 4)).astype(np.complex64),
        "step": np.array(1234567, np.int64),
    }
