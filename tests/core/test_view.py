"""Chunks of a view against NumPy: each is the bytes that Zarr's codecs would make of its box."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box, tiles_of
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.payload import Payload, PayloadFile
from gdist.core.store_manifest import (
    StoreManifest,
    StoreSource,
    StoreTensor,
    parse_store_manifest,
    store_manifest_to_json,
)
from gdist.core.tensor import Factor, Order, Part, StoredTensor, TensorSpec
from gdist.core.view import VIEW, StoreFile, chunk_indexes, place_of, view_grid, view_of
from gdist.core.view_entries import view_entries
from gdist.errors import UnsupportedError

INT16 = BY_NAME["int16"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[StoredTensor, Payload, np.ndarray[tuple[int, ...], np.dtype[np.int16]]]:
    """A tensor in equal parts at odd offsets of two files, and its value."""
    part = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    counts = tuple(draw(st.integers(1, 3)) for _ in part)
    order = draw(st.sampled_from(list(Order)))
    shape = tuple(p * c for p, c in zip(part, counts, strict=True))
    nbytes = prod(part) * 2
    gap = draw(st.integers(0, 5))
    first = draw(st.integers(0, prod(counts)))  # parts in the first file
    files, parts, position, start = [], [], 0, 0
    boxes = [box for _, box in tiles_of(Box.whole(shape), part)]
    for number, own in enumerate((boxes[:first], boxes[first:])):
        start = position
        for box in own:
            parts.append(Part(Extent(position + gap, nbytes), box, order))
            position += gap + nbytes
        files.append(PayloadFile(f"file{number}", start, position - start))
    value = np.arange(prod(shape), dtype=np.int16).reshape(shape)
    return (
        StoredTensor(TensorSpec("w", shape, INT16), tuple(parts)),
        Payload(tuple(files), 7, position),
        value,
    )


def files_of(tensor: StoredTensor, payload: Payload, value: np.ndarray) -> list[bytes]:  # type: ignore[type-arg]
    line = bytearray(payload.length)
    for part in tensor.parts:
        line[part.extent.start : part.extent.stop] = value[part.box.slices()].tobytes(part.order.value)
    return [bytes(line[file.offset : file.offset + file.length]) for file in payload.files]


@given(cases(), st.sampled_from([2, 8, 40, 1 << 20]))
def test_every_chunk_is_a_run_of_a_file(case, limit: int) -> None:  # type: ignore[no-untyped-def]
    tensor, payload, value = case
    contents = files_of(tensor, payload, value)
    view = view_of(tensor, payload)
    grid = view_grid(tensor.spec.shape, view, 2, limit)
    assert grid.shard == grid.chunk and grid.slab == grid.shape
    seen = 0
    for index in chunk_indexes(grid):
        file, offset = place_of(view, grid, 2, index)
        expected = value[grid.box_of(index).slices()].tobytes(view.order.value)
        assert contents[file][offset : offset + len(expected)] == expected
        seen += len(expected)
    assert seen == value.nbytes


def manifest_of(tensor: StoredTensor, payload: Payload) -> StoreManifest:
    view = view_of(tensor, payload)
    grid = view_grid(tensor.spec.shape, view, 2, 40)
    shards = dict.fromkeys(chunk_indexes(grid), ("",))
    stored = StoreTensor("w", INT16, grid, PartitionSpec(()), None, shards, view=view)
    files = tuple(StoreFile(f"payload/{file.path}", file.length) for file in payload.files)
    source = StoreSource("ab" * 20, "", "t", 7, payload.length)
    return StoreManifest(source, "", Mesh((("model", 1),)), HostGroup(), (stored,), codec=VIEW, files=files)


@given(cases())
def test_a_manifest_says_it_again(case) -> None:  # type: ignore[no-untyped-def]
    manifest = manifest_of(case[0], case[1])
    assert parse_store_manifest(store_manifest_to_json(manifest), "here") == manifest


@given(cases())
def test_entries_name_documents_and_runs(case) -> None:  # type: ignore[no-untyped-def]
    tensor, payload, value = case
    contents = dict(zip(("payload/file0", "payload/file1"), files_of(tensor, payload, value), strict=True))
    entries = list(view_entries(manifest_of(tensor, payload)))
    keys = [entry.key for entry in entries]
    assert keys[:2] == ["zarr.json", "w/zarr.json"] and len(set(keys)) == len(keys)
    runs = [contents[e.path][e.offset : e.offset + e.nbytes] for e in entries if e.data is None]
    assert sorted(b"".join(runs)) == sorted(value.tobytes())


def test_a_tensor_without_elements_has_no_chunk() -> None:
    tensor = StoredTensor(TensorSpec("w", (3, 0), INT16), (Part(Extent(0, 0), Box((0, 0), (3, 0))),))
    payload = Payload((PayloadFile("file", 0, 4),), 4, 4)
    view = view_of(tensor, payload)
    assert not list(chunk_indexes(view_grid((3, 0), view, 2)))


def test_what_is_not_there_as_it_is_is_refused() -> None:
    payload = Payload((PayloadFile("a", 0, 6), PayloadFile("b", 6, 6)), 4, 12)
    spec = TensorSpec("w", (4,), INT16)
    across = StoredTensor(spec, (Part(Extent(2, 8), Box((0,), (4,))),))
    with pytest.raises(UnsupportedError, match="'w' lies in several files"):
        view_of(across, payload)
    uneven = (Part(Extent(0, 6), Box((0,), (3,))), Part(Extent(6, 2), Box((3,), (4,))))
    with pytest.raises(UnsupportedError, match="parts of different shapes"):
        view_of(StoredTensor(spec, uneven), payload)
    whole = StoredTensor(spec, (Part(Extent(6, 6), Box((0,), (3,))), Part(Extent(0, 2), Box((3,), (4,)))))
    made = StoredTensor(replace(spec, name="made"), (), factors=(Factor(whole),))
    with pytest.raises(UnsupportedError, match="'made' is made on the way"):
        view_of(made, payload)
