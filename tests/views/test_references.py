"""References against fsspec's own reading of them, without zarr in between."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.dtypes import BY_NAME
from gdist.core.view import Entry
from gdist.testing.views import write_index
from gdist.views.parquet import parquet_table
from gdist.views.references import RECORD_SIZE, parquet_files, references_json, v2_documents

pytestmark = pytest.mark.filterwarnings("ignore:The 'fastparquet' engine is deprecated")

_rows = st.tuples(st.none() | st.text(max_size=9), st.integers(0, 2**50), st.integers(0, 2**40))


@given(st.lists(_rows, min_size=1, max_size=60))
def test_a_parquet_engine_reads_every_row(rows: list[tuple[str | None, int, int]]) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(io.BytesIO(parquet_table(rows)), engine="fastparquet")
    assert [str(table[name].dtype) for name in ("offset", "size")] == ["int64", "int64"]
    assert list(table.itertuples(index=False, name=None)) == rows


def entries(names: dict[str, tuple[int, ...]], path: str = "f") -> list[Entry]:
    """Arrays of int8 of these shapes, a row a chunk, and a group for every `/`."""
    group: dict[str, object] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    found = [Entry("zarr.json", json.dumps(group).encode())]
    for name, shape in names.items():
        if "/" in name:
            found.append(Entry(f"{name.rpartition('/')[0]}/zarr.json", json.dumps(group).encode()))
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": "int8",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": (1, *shape[1:])[: len(shape)]},
            },
            "fill_value": -128,
            "codecs": [{"name": "bytes"}],
            "attributes": {},
            "dimension_names": [f"dim_{d}" for d in range(len(shape))],
        }
        rows = shape[0] if shape else 1
        indexes = [(row, *(0 for _ in shape[1:])) if shape else () for row in range(rows)]
        found += [Entry("/".join((name, "c", *map(str, i))), None, path, n, 1) for n, i in enumerate(indexes)]
        found.append(Entry(f"{name}/zarr.json", json.dumps(document).encode()))  # after its chunks: any order
    return found


def open_parquet(root: Path, found: list[Entry]) -> Any:
    for name, content in parquet_files(found) if found else ():
        path = root / "references.parquet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # Without a protocol fsspec looks for one in all references, and stumbles over groups.
    return fsspec.filesystem(
        "reference", fo=str(root / "references.parquet"), remote_protocol="file"
    ).references


def test_fsspec_finds_every_chunk_of_large_nested_and_scalar_arrays(tmp_path: Path) -> None:
    pytest.importorskip("fastparquet")
    shapes = {"large": (2 * RECORD_SIZE + 3, 1), "a/nested": (3,), "scalar": (), "empty": (0, 4)}
    references = open_parquet(tmp_path, entries(shapes))
    for number in (0, RECORD_SIZE - 1, RECORD_SIZE, 2 * RECORD_SIZE + 2):
        assert references[f"large/{number}.0"] == ["f", number, 1]
    assert references["a/nested/2"] == ["f", 2, 1]
    assert references["scalar/0"] == ["f", 0, 1]
    tables = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.parq"))
    assert [name.count("large") for name in tables].count(1) == 3
    assert not any("empty" in name for name in tables)


def test_a_chunk_without_a_reference_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("fastparquet")
    found = [entry for entry in entries({"w": (3,)}) if entry.key != "w/c/1"]
    references = open_parquet(tmp_path, found)
    with pytest.raises(KeyError):
        _ = references["w/1"]
    assert references["w/2"] == ["f", 2, 1]


@pytest.mark.parametrize("path", ["plain", "a {b} {{c}}", "100% {", "}x{", "ünïcode"])
def test_templates_leave_paths_as_they_are(tmp_path: Path, path: str) -> None:
    (tmp_path / path).write_bytes(b"0123456789")
    document = references_json([Entry("k", None, path, 3, 4)], str(tmp_path))
    (tmp_path / "references.json").write_bytes(document)
    system = fsspec.filesystem("reference", fo=str(tmp_path / "references.json"))
    assert system.cat_file("k") == b"3456"
    elsewhere = fsspec.filesystem(
        "reference", fo=str(tmp_path / "references.json"), template_overrides={"root": "/nowhere"}
    )
    assert elsewhere.references["k"] == [f"/nowhere/{path}", 3, 4]


@pytest.mark.parametrize("name", list(BY_NAME))
def test_zarr_v2_names_of_types_are_numpys_or_tensorstores(name: str) -> None:
    document = {
        "node_type": "array",
        "data_type": name,
        "shape": [2],
        "chunk_grid": {"configuration": {"chunk_shape": [1]}},
        "fill_value": BY_NAME[name].fill,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
        "dimension_names": ["dim_0"],
    }
    dtype = v2_documents(document)[".zarray"]["dtype"]
    assert dtype == (name if BY_NAME[name].needs_ml_dtypes else np.dtype(name).newbyteorder("<").str)


def test_an_index_is_replaced_in_place(tmp_path: Path) -> None:
    """References of an array that went away stay on the disk, and nobody finds them."""
    pytest.importorskip("fastparquet")
    write_index(tmp_path, {"a": np.arange(4, dtype=np.int8), "b": np.arange(4, dtype=np.int8)})
    write_index(tmp_path, {"a": np.arange(4, dtype=np.int8)})
    references = open_parquet(tmp_path, [])
    assert references.listdir() - {""} == {"a"}
