"""References for fsspec's file system `reference://`, through which zarr-python, dask and xarray read.

A reference maps a key to bytes or to `[URL, offset, length]`. Two forms hold the same ranges:

    references.json        Zarr v3 documents and all references, read whole when it is opened; each URL is
                           `{{root}}/PATH`, and `template_overrides` says where else the root is
    references.parquet/    Zarr v2 documents in `.zmetadata`, and a table of ranges for each array, read as
                           they are needed; paths are relative, and the reader says to what

Two versions of Zarr, because fsspec (up to 2026.9) finds the grid of an array in a Parquet set by its
`.zarray`. Zarr v2 has no names for bfloat16, fp8 and int4; they are written as TensorStore writes them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gdist.core.dtypes import BY_NAME
from gdist.core.layout import to_document
from gdist.core.view import Entry
from gdist.durable import write_atomically
from gdist.views.parquet import Row, parquet_table

JSON_NAME, PARQUET_NAME = "references.json", "references.parquet"
RECORD_SIZE = 10_000  # rows of a table, fsspec's own default
WRITERS = 8  # a file system makes several small syncs at once one

_BRACES = str.maketrans({"{": "{{left}}", "}": "{{right}}"})  # in a path they would be taken for templates


def write_references(root: Path, entries: Iterable[Entry], location: str = "") -> None:
    """Writes both forms; `location` is the URL or directory of the root for readers, if not `root` itself.

    Raises:
        GdistError: translated from what the file system said.
    """
    entries = tuple(entries)
    write_atomically(root / JSON_NAME, references_json(entries, location or str(root.absolute())))
    *tables, metadata = parquet_files(entries)
    directory = root / PARQUET_NAME
    with ThreadPoolExecutor(WRITERS, "gdist-references") as pool:
        list(pool.map(lambda file: write_atomically(directory / file[0], file[1]), tables))
    write_atomically(directory / metadata[0], metadata[1])


def references_json(entries: Iterable[Entry], location: str) -> bytes:
    """The JSON form (fsspec's references of version 1); `location` is what `{{root}}` stands for."""
    references: dict[str, object] = {}
    for entry in entries:
        if entry.data is None:
            url = "{{root}}/" + entry.path.translate(_BRACES)
            references[entry.key] = [url, entry.offset, entry.nbytes]
        else:
            references[entry.key] = entry.data.decode()
    templates = {"root": location, "left": "{", "right": "}"}
    return to_document({"version": 1, "templates": templates, "refs": references})


def location_in(document: bytes | None) -> str:
    """Where the JSON form says that the root is; "" where it is damaged, or not there."""
    try:
        location = json.loads(document or b"")["templates"]["root"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return location if isinstance(location, str) else ""


def parquet_files(entries: Iterable[Entry]) -> Iterator[tuple[str, bytes]]:
    """Paths below `references.parquet` and contents of its files; the last one, `.zmetadata`, names the rest.

    An array has a table for every `RECORD_SIZE` chunks, in C order; a chunk that is not there has no path.
    """
    documents: dict[str, dict[str, Any]] = {}  # Any: JSON
    chunks: dict[str, dict[tuple[int, ...], Row]] = {}
    for entry in entries:
        if entry.data is None:
            name, index = _chunk_of(entry.key)
            chunks.setdefault(name, {})[index] = (entry.path, entry.offset, entry.nbytes)
        else:
            documents[entry.key.removesuffix("zarr.json")] = json.loads(entry.data)
    metadata = {}
    for prefix, document in documents.items():
        metadata.update({prefix + kind: content for kind, content in v2_documents(document).items()})
        if document["node_type"] == "array":
            rows = _rows(document, chunks.get(prefix.removesuffix("/"), {}))
            for number, start in enumerate(range(0, len(rows), RECORD_SIZE)):
                yield f"{prefix}refs.{number}.parq", parquet_table(rows[start : start + RECORD_SIZE])
    yield ".zmetadata", to_document({"metadata": metadata, "record_size": RECORD_SIZE})


def _rows(document: Mapping[str, Any], chunks: Mapping[tuple[int, ...], Row]) -> list[Row]:
    """A row for every chunk of an array's grid."""
    shape, chunk = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    counts = (-(-size // length) for size, length in zip(shape, chunk, strict=True))
    return [chunks.get(index, (None, 0, 0)) for index in itertools.product(*map(range, counts))]


def _chunk_of(key: str) -> tuple[str, tuple[int, ...]]:
    """Array and grid index of a chunk's key, `NAME/c/0/1`; no part of a tensor's name is `c`."""
    parts = key.split("/")
    cut = parts.index("c")
    return "/".join(parts[:cut]), tuple(map(int, parts[cut + 1 :]))


def v2_documents(document: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """A group's or array's Zarr v2 documents, by name, from its `zarr.json` as views have them."""
    attributes = dict(document["attributes"])
    if document["node_type"] == "group":
        return {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}
    dtype = BY_NAME[document["data_type"]]
    array: dict[str, object] = {
        "zarr_format": 2,
        "shape": document["shape"],
        "chunks": document["chunk_grid"]["configuration"]["chunk_shape"],
        "dtype": dtype.name if dtype.needs_ml_dtypes else _typestr(dtype.name, dtype.itemsize),
        "compressor": None,
        "fill_value": document["fill_value"],
        "order": "F" if document["codecs"][0]["name"] == "transpose" else "C",
        "filters": None,
        "dimension_separator": ".",
    }
    return {".zarray": array, ".zattrs": {**attributes, "_ARRAY_DIMENSIONS": document["dimension_names"]}}


def _typestr(name: str, itemsize: int) -> str:
    """NumPy's type string of one of its own types, little-endian: `<f4` of float32."""
    kind = "b" if name == "bool" else name[0]  # int, uint, float, complex
    return f"{'<' if itemsize > 1 else '|'}{kind}{itemsize}"
