"""Documents of Zarr are understood as zarr-python means them; files of plain chunks are parts of arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core import zarr_arrays
from gdist.core.extent import Extent
from gdist.core.tensor import Order
from gdist.core.zarr_arrays import (
    ZarrArray,
    check_documents,
    document_paths,
    loose_paths,
    missing_chunks,
    parse_hierarchy,
    parts_of,
)
from gdist.errors import CorruptError, UnsupportedError


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def written(root: Path, array: np.ndarray[Any, Any], version: Any, **options: Any) -> dict[str, bytes]:
    group = zarr.open_group(root, mode="w", zarr_format=version)
    made = group.create_array(
        "a/w", shape=array.shape, dtype=array.dtype, config={"write_empty_chunks": True}, **options
    )
    made[...] = array
    return files_below(root)


def understood(files: dict[str, bytes]) -> ZarrArray:
    (array,) = parse_hierarchy({path: files[path] for path in document_paths(files)})
    return array


@settings(max_examples=60)
@given(st.data())
def test_parts_tile_the_array_or_there_are_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 8), max_size=4)))
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    version = data.draw(st.sampled_from([2, 3]))
    options: dict[str, Any] = {"chunks": chunks, "compressors": data.draw(st.sampled_from(["auto", None]))}
    if version == 2:
        options["order"] = data.draw(st.sampled_from("CF"))
    separator = data.draw(st.sampled_from("./"))
    options["chunk_key_encoding"] = {
        "name": data.draw(st.sampled_from(["default", "v2"])) if version == 3 else "v2",
        "separator": separator,
    }
    dtype = np.dtype(data.draw(st.sampled_from(["<f4", ">f4", "<i8", "|u1", "|b1"])))
    values = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    files = written(tmp_path_factory.mktemp("z"), values, version, **options)
    array = understood(files)
    assert (array.shape, array.chunk, array.dtype.name) == (shape, chunks, values.dtype.name)
    assert not list(missing_chunks(array, map(array.index_of, range(array.chunks)), files))
    assert all(path.rpartition("/")[2] in zarr_arrays.DOCUMENTS for path in set(files) if "w/" not in path)
    assert loose_paths(files, [array]) == ()
    position, extents, payload = 0, {}, b""
    for path, content in files.items():
        extents[path] = Extent(position, len(content))
        payload += content
        position += len(content)
    parts = parts_of(array, extents)
    whole = all(size % length == 0 for size, length in zip(shape, chunks, strict=True))
    little = dtype.itemsize == 1 or dtype.byteorder in "<=" or version == 3
    assert (parts is not None) == (whole and options["compressors"] is None and little)
    if parts is None:
        return
    rebuilt = np.zeros(shape, values.dtype.newbyteorder("="))
    for part in parts:
        run = np.frombuffer(payload[part.extent.start : part.extent.stop], rebuilt.dtype)
        rebuilt[part.box.slices()] = run.reshape(part.box.shape, order="F" if part.order is Order.F else "C")
    assert np.array_equal(rebuilt, values)


def test_documents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    check_documents({"a": 10, "b": 20})
    monkeypatch.setattr(zarr_arrays, "MAX_DOCUMENT_BYTES", 29)
    with pytest.raises(UnsupportedError, match=r"30 bytes, more than 29: b \(20 bytes\)"):
        check_documents({"a": 10, "b": 20})
    monkeypatch.setattr(zarr_arrays, "MAX_NODES", 1)
    with pytest.raises(UnsupportedError, match="2 documents"):
        check_documents({"a": 1, "b": 1})


@settings(max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["zarr.json", ".zarray"]),
    st.sampled_from(["shape", "chunks", "dtype", "codecs", "chunk_grid", "compressor", "data_type", "order"]),
)
def test_whatever_a_document_says_is_an_array_or_an_error(value: Any, name: str, key: str) -> None:
    v3 = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [2],
        "data_type": "int8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": "default",
        "codecs": [{"name": "bytes"}],
    }
    v2 = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "|i1", "compressor": None, "order": "C"}
    document = json.dumps({**(v3 if name == "zarr.json" else v2), key: value}).encode()
    try:
        (array,) = parse_hierarchy({name: document})
    except (CorruptError, UnsupportedError):
        return
    assert array.shape and array.chunk
