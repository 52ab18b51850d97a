"""Where the bytes of a shard lie in its file, and the Zarr v3 documents that say so.

    shard file   | slab 0: chunk 0 chunk 1 ... |pad| slab 1: ... |pad| ... | index | crc32c |

A slab's chunks are row blocks in order, so a slab is one run of its own C-order bytes; each slab starts at a
multiple of 4096 (64 when it is small), so a memory map of it can be a JAX array on CPU without a copy. The
Zarr sharding index gives `(offset, nbytes)` of every inner chunk in C order of the chunk grid, whatever
order they lie in, at the end of the file (Zarr v3 specification, `sharding_indexed` codec).
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from math import prod

from gdist.core.box import Box, runs_of_box, tiles_of
from gdist.core.dtypes import DType
from gdist.core.extent import Extent
from gdist.core.grid import ShardGrid

PAGE = 4096
CACHE_LINE = 64  # what JAX on CPU asks of memory it takes without a copy
CRC_BYTES = 4


class ShardLayout:
    """Offsets inside the shard files of one grid; every shard of a grid has the same layout."""

    def __init__(self, grid: ShardGrid, itemsize: int):
        self.grid = grid
        self.itemsize = itemsize
        block = tuple(map(min, grid.shard, grid.slab))
        self._chunks = tuple(s // c for s, c in zip(grid.shard, grid.chunk, strict=True))
        self._per_slab = tuple(b // c for b, c in zip(block, grid.chunk, strict=True))
        self._slabs = tuple(s // b for s, b in zip(grid.shard, block, strict=True))
        self.chunk_nbytes = prod(grid.chunk) * itemsize
        slab_nbytes = prod(block) * itemsize
        align = PAGE if slab_nbytes >= 16 * PAGE else CACHE_LINE
        self._pitch = -(-slab_nbytes // align) * align
        self.data_nbytes = (prod(self._slabs) - 1) * self._pitch + slab_nbytes
        self.index_nbytes = prod(self._chunks) * 16 + CRC_BYTES
        self.file_nbytes = self.data_nbytes + self.index_nbytes

    def chunks(self) -> Iterator[tuple[tuple[int, ...], Extent]]:
        """Every inner chunk of a shard, in C order of the chunk grid, with its place in the file."""
        for index in itertools.product(*(range(n) for n in self._chunks)):
            yield index, self.extent_of(index)

    def extent_of(self, chunk: tuple[int, ...]) -> Extent:
        """Where an inner chunk, counted from the shard's first, lies in the file."""
        slab = within = 0
        for index, per_slab, slabs in zip(chunk, self._per_slab, self._slabs, strict=True):
            slab = slab * slabs + index // per_slab
            within = within * per_slab + index % per_slab
        return Extent(slab * self._pitch + within * self.chunk_nbytes, self.chunk_nbytes)

    def run_of(self, box: Box) -> Extent | None:
        """The one run of the file that holds exactly `box` of the shard in C order, or None without one.

        `box` is in the shard's coordinates. A device's slab, and any row block of one, is such a run.
        """
        block = tuple(map(min, self.grid.shard, self.grid.slab))
        slab = tuple(a // b for a, b in zip(box.start, block, strict=True))
        origin = tuple(i * b for i, b in zip(slab, block, strict=True))
        if not box.size or not Box(origin, tuple(map(int.__add__, origin, block))).contains(box):
            return None
        runs = list(itertools.islice(runs_of_box(block, box.relative_to(origin)), 2))
        if len(runs) != 1:
            return None
        ordinal = 0
        for index, slabs in zip(slab, self._slabs, strict=True):
            ordinal = ordinal * slabs + index
        return Extent(ordinal * self._pitch + runs[0].start * self.itemsize, runs[0].length * self.itemsize)

    def chunks_in(self, run: Extent) -> Iterator[Extent]:
        """The inner chunks that lie whole inside a run of the file of `run_of`, or inside a part of one."""
        slab = run.start // self._pitch * self._pitch
        first, stop = -(-(run.start - slab) // self.chunk_nbytes), (run.stop - slab) // self.chunk_nbytes
        return (Extent(slab + n * self.chunk_nbytes, self.chunk_nbytes) for n in range(first, stop))

    def whole_chunk(self, box: Box) -> Extent | None:
        """Where the inner chunk lies whose box of bytes this is; None when it is not just one chunk's."""
        chunk = self.grid.chunk
        if box.shape[:-1] != chunk or any(a % c for a, c in zip(box.start, chunk, strict=False)):
            return None
        if box.shape[-1] != self.itemsize:
            return None
        return self.extent_of(tuple(a // c for a, c in zip(box.start, chunk, strict=False)))

    def targets(self, box: Box) -> Iterator[tuple[Box, Box, int]]:
        """Inner chunks that meet a box of bytes of the shard.

        `box` has the extra byte dimension. Gives `(part of box, the same part counted from its chunk's
        first byte, the chunk's offset in the file)`.
        """
        tile = (*self.grid.chunk, self.itemsize)
        for index, part in tiles_of(box, tile):
            chunk = index[:-1]
            origin = tuple(i * c for i, c in zip(index, tile, strict=True))
            yield part, part.relative_to(origin), self.extent_of(chunk).start

    def index_bytes(self) -> bytes:
        """The sharding index, without its checksum: little-endian `(offset, nbytes)` a chunk, in C order."""
        return b"".join(struct.pack("<QQ", extent.start, extent.length) for _, extent in self.chunks())


# Codecs of inner chunks after `bytes`, by the name on the command line.
CODECS: dict[str, tuple[dict[str, object], ...]] = {
    "none": (),
    "zstd": ({"name": "zstd", "configuration": {"level": 3, "checksum": False}},),
}


def array_document(
    grid: ShardGrid, dtype: DType, attributes: Mapping[str, object], codec: str = "none"
) -> dict[str, object]:
    """The `zarr.json` of one tensor; `codec` is one of `CODECS`."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(grid.shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(grid.shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": list(dtype.fill) if isinstance(dtype.fill, tuple) else dtype.fill,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(grid.chunk),
                    "codecs": [little, *CODECS[codec]],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": dict(attributes),
        "dimension_names": [f"dim_{d}" for d in range(len(grid.shape))],
    }


def group_documents(
    arrays: Mapping[str, dict[str, object]], attributes: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """The `zarr.json` of the root (key "") and of every group between it and an array whose name has a `/`.

    The root carries consolidated metadata, as zarr-python writes it: one read opens the whole store.
    """
    plain: dict[str, object] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    groups = {
        "/".join(parts[:n]): dict(plain)
        for parts in (name.split("/") for name in arrays)
        for n in range(1, len(parts))
    }
    metadata = {name: {**groups, **arrays}[name] for name in sorted({**groups, **arrays})}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": metadata}
    root = {**plain, "attributes": dict(attributes), "consolidated_metadata": consolidated}
    return {"": root, **groups}


def shard_key(index: Iterable[int]) -> str:
    """The path of a shard below its array's directory: `c/0/1`, or `c` for a scalar."""
    return "/".join(("c", *map(str, index)))


def to_document(value: object) -> bytes:
    """A JSON document as we write them: one stable form, so equal stores are equal bytes."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
