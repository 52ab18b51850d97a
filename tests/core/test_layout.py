"""Shard files: no byte twice, slabs where memory can be mapped, and every Zarr reader agrees."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.grid import GridMaker, ShardGrid
from gdist.core.layout import (
    CACHE_LINE,
    PAGE,
    ShardLayout,
    array_document,
    group_documents,
    shard_key,
    to_document,
)
from gdist.core.mesh import Mesh, PartitionSpec, split_counts
from gdist.testing.checkpoints import numpy_dtype

DTYPES = ("bool", "int8", "int64", "float32", "bfloat16", "float8_e5m2", "complex64")


def random_grid(rng: random.Random, itemsize: int) -> ShardGrid:
    mesh = Mesh(tuple((name, rng.choice((1, 2, 3))) for name in ("a", "b", "c")[: rng.randint(0, 3)]))
    dims: list[tuple[str, ...]] = [() for _ in range(rng.randint(0, 3))]
    if dims:
        for name in rng.sample(mesh.names, rng.randint(0, len(mesh.names))):
            place = rng.randrange(len(dims))
            dims[place] += (name,)
    spec = PartitionSpec(tuple(dims))
    shape = tuple(count * rng.choice((1, 2, 4, 5)) for count in split_counts(mesh, spec, len(dims)))
    hosts = rng.choice([n for n in range(1, mesh.devices + 1) if mesh.devices % n == 0])
    shard_bytes = rng.choice((None, None, 7, 32, 64))
    maker = GridMaker(mesh, hosts, chunk_bytes=rng.choice((1, 16, 40, 10**6)), shard_bytes=shard_bytes)
    return maker.grid(shape, itemsize, spec)


GRIDS = st.builds(random_grid, st.randoms(use_true_random=False), st.just(4))


def offsets(layout: ShardLayout) -> np.ndarray:
    """The offset in the file of every element of a shard, by what the index says."""
    grid, table = layout.grid, np.full(layout.grid.shard, -1)
    for index, extent in layout.chunks():
        where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, grid.chunk, strict=True))
        place = np.arange(prod(grid.chunk)).reshape(grid.chunk) * layout.itemsize
        table[where] = extent.start + place
    return table


@given(GRIDS)
def test_chunks_are_disjoint_and_slabs_aligned(grid: ShardGrid) -> None:
    layout = ShardLayout(grid, 4)
    extents = sorted(extent for _, extent in layout.chunks())
    assert all(a.stop <= b.start for a, b in pairwise(extents))
    assert extents[0].start == 0 and extents[-1].stop == layout.data_nbytes
    assert layout.file_nbytes == layout.data_nbytes + 16 * len(extents) + 4
    table = offsets(layout)
    block = tuple(map(min, grid.shard, grid.slab))
    for slab in np.ndindex(*(s // b for s, b in zip(grid.shard, block, strict=True))):
        origin = tuple(i * b for i, b in zip(slab, block, strict=True))
        inside = table[Box(origin, tuple(map(int.__add__, origin, block))).slices()].ravel()
        assert inside[0] % CACHE_LINE == 0, "a map of a slab can be a JAX array"
        np.testing.assert_array_equal(inside, inside[0] + 4 * np.arange(inside.size))


def test_large_slabs_begin_at_pages() -> None:
    grid = ShardGrid((4, 2**16 + 8), (4, 2**16 + 8), (2, 2**16 + 8), (1, 2**16 + 8))
    starts = [extent.start for index, extent in ShardLayout(grid, 1).chunks() if index[0] % 2 == 0]
    assert starts == [0, -(-2 * (2**16 + 8) // PAGE) * PAGE]


@given(GRIDS, st.data())
def test_a_run_is_given_exactly_where_the_file_has_one(grid: ShardGrid, data: st.DataObject) -> None:
    layout = ShardLayout(grid, 4)
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in grid.shard]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    block = tuple(map(min, grid.shard, grid.slab))
    one_slab = all(a // b == (z - 1) // b for a, z, b in zip(box.start, box.stop, block, strict=True))
    found = offsets(layout)[box.slices()].ravel()
    if found.size and one_slab and (np.diff(found) == 4).all():
        assert layout.run_of(box) == Extent(int(found[0]), 4 * found.size)
    else:
        assert layout.run_of(box) is None


@given(GRIDS, st.data())
def test_targets_are_where_the_index_says(grid: ShardGrid, data: st.DataObject) -> None:
    layout = ShardLayout(grid, 4)
    shape = (*grid.shard, 4)
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    by_byte = offsets(layout)[..., None] + np.arange(4)
    found: list[int] = []
    for part, local, offset in layout.targets(box):
        place = np.arange(layout.chunk_nbytes).reshape(*grid.chunk, 4)
        np.testing.assert_array_equal(by_byte[part.slices()], offset + place[local.slices()])
        found += by_byte[part.slices()].ravel().tolist()
    assert sorted(found) == sorted(by_byte[box.slices()].ravel().tolist())


def shard_bytes(layout: ShardLayout, values: np.ndarray[Any, Any]) -> bytes:
    """A shard's file, written the plainest way."""
    data = bytearray(b"\xee" * layout.data_nbytes)  # padding is nobody's zeros
    for index, extent in layout.chunks():
        where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, layout.grid.chunk, strict=True))
        data[extent.start : extent.stop] = values[where].tobytes()
    index_bytes = layout.index_bytes()
    return bytes(data) + index_bytes + google_crc32c.value(index_bytes).to_bytes(4, "little")


@pytest.mark.parametrize("seed", range(28))
def test_tensorstore_and_zarr_read_what_the_layout_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    dtype = BY_NAME[DTYPES[seed % len(DTYPES)]]
    grid = random_grid(rng, dtype.itemsize)
    layout = ShardLayout(grid, dtype.itemsize)
    raw = np.random.default_rng(seed).integers(1, 120, prod(grid.shape) * dtype.itemsize, np.uint8)
    raw = raw % 2 if dtype.name == "bool" else raw
    values = raw.view(numpy_dtype(dtype)).reshape(grid.shape)
    root = tmp_path / "w"
    for index in np.ndindex(*grid.shards):
        path = root / shard_key(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shard_bytes(layout, values[grid.box_of(index).slices()]))
        assert path.stat().st_size == layout.file_nbytes
    (root / "zarr.json").write_bytes(to_document(array_document(grid, dtype, {"gdist": {}})))
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{root}/"},
        "fill_missing_data_reads": False,
    }
    array = ts.open(spec).result()
    assert array.dtype.name == dtype.name and array.shape == grid.shape
    assert np.asarray(array.read().result()).tobytes() == raw.tobytes()
    found = np.asarray(zarr.open_array(root, mode="r")[...])
    assert found.dtype == numpy_dtype(dtype) and found.tobytes() == raw.tobytes()


@pytest.mark.parametrize(("index", "key"), [((), "c"), ((0,), "c/0"), ((1, 20, 3), "c/1/20/3")])
def test_a_shard_has_its_key(index: tuple[int, ...], key: str) -> None:
    assert shard_key(index) == key


def test_names_with_a_slash_make_groups_and_the_root_knows_all() -> None:
    array = array_document(ShardGrid((4,), (4,), (4,), (4,)), BY_NAME["float32"], {})
    documents = group_documents({"a/b/w": array, "a/v": array, "z": array}, {"gdist": {"x": 1}})
    assert list(documents) == ["", "a", "a/b"]
    root = documents[""]
    assert root["attributes"] == {"gdist": {"x": 1}}
    consolidated = root["consolidated_metadata"]
    assert isinstance(consolidated, dict)
    assert list(consolidated["metadata"]) == ["a", "a/b", "a/b/w", "a/v", "z"]


def test_documents_are_strict_json_and_stable() -> None:
    document = {"name": "ü", "fill_value": "NaN"}
    data = to_document(document)
    assert json.loads(data) == document and list(json.loads(data)) == list(document)
    assert data == to_document(dict(document)) and data.endswith(b"\n") and "ü".encode() in data
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_document({"fill_value": float("nan")})
