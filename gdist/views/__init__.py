"""Indexes that make the bytes of a payload readable as arrays, without a copy of them.

`gdist.core.view_entries` says what is in an index: keys, and for each its value or the run of a payload's
file that is its value. Each module here writes that down for one kind of reader, by a function

    write_KIND(root, entries, ...)

| module | for | files below the root |
|---|---|---|
| `ocdbt` | TensorStore, Orbax | `manifest.ocdbt`, `d/` |
| `references` | fsspec: zarr-python, dask, xarray | `references.json`, `references.parquet/` |

Paths in an index are relative to its root, so all of it can be moved, mounted or served as one.
"""
