"""The keys of a view's index: Zarr documents, and for every chunk the run of a file that holds it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod

from gdist.core.layout import group_documents, shard_key, to_document
from gdist.core.store_manifest import StoreManifest, StoreTensor, tensor_attributes
from gdist.core.tensor import Order
from gdist.core.view import Entry, place_of


def view_document(tensor: StoreTensor) -> dict[str, object]:
    """The `zarr.json` of a tensor in a view: plain chunks, uncompressed; Fortran order by `transpose`."""
    assert tensor.view is not None, tensor.name
    ndim = len(tensor.shape)
    turned: list[dict[str, object]] = []
    if tensor.view.order is Order.F:
        turned = [{"name": "transpose", "configuration": {"order": list(reversed(range(ndim)))}}]
    fill = tensor.dtype.fill
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(tensor.shape),
        "data_type": tensor.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(tensor.grid.chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": list(fill) if isinstance(fill, tuple) else fill,
        "codecs": [*turned, {"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": tensor_attributes(tensor.spec, tensor.quantisation, tensor.encoding),
        # xarray makes one data set of all arrays, where a name has one size.
        "dimension_names": [f"dim_{d}_{size}" for d, size in enumerate(tensor.shape)],
    }


def view_entries(manifest: StoreManifest, only: Collection[str] | None = None) -> Iterator[Entry]:
    """All keys of a view's index, or of the tensors of these names `only`: groups, arrays, chunks."""
    tensors = [tensor for tensor in manifest.tensors if only is None or tensor.name in only]
    arrays = {tensor.name: view_document(tensor) for tensor in tensors}
    about = {"info_hash": manifest.source.info_hash, "mesh": str(manifest.mesh), "tool": manifest.tool}
    for name, document in group_documents(arrays, {"gdist": about}).items():
        yield Entry(f"{name}/zarr.json" if name else "zarr.json", to_document(document))
    for tensor in tensors:
        yield Entry(f"{tensor.name}/zarr.json", to_document(arrays[tensor.name]))
        assert tensor.view is not None, tensor.name
        itemsize = tensor.dtype.itemsize
        nbytes = prod(tensor.grid.chunk) * itemsize
        for index in tensor.shards:
            file, offset = place_of(tensor.view, tensor.grid, itemsize, index)
            path = manifest.files[file].path
            yield Entry(f"{tensor.name}/{shard_key(index)}", None, path, offset, nbytes)
