"""Tensors that lie in a payload's files as they are: which chunks they have, and where each lies.

    tensor ⊇ part (a stored run of bytes in one file) ⊇ chunk (a row block of it: one key of the index)

A *view* is a store whose chunks are runs of the payload's own files: nothing is copied. Every stored array
that is not compressed is a run of its C-order (or Fortran-order) bytes, and row blocks of it, one after the
other, are that run. Zarr reads a chunk at the edge whole, so a chunk divides its part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from gdist.core.grid import CHUNK_BYTES, ShardGrid, row_block
from gdist.core.payload import Payload
from gdist.core.tensor import Order, StoredTensor
from gdist.errors import UnsupportedError

LISTED = 5  # tensors that a message names
VIEW = "view"  # in a manifest, where other stores have the codec of their chunks


@dataclass(frozen=True, slots=True)
class StoreFile:
    """A file of the payload that a view reads: its path below the store's root, and its bytes.

    `offset` is where it begins in the torrent's payload, None where that is not known.
    """

    path: str
    nbytes: int
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor's parts lie: `at` has file and offset of each, in C order of the grid of parts.

    `part` is the shape that all of them have, and `order` how the elements of each lie.
    """

    order: Order
    part: tuple[int, ...]
    at: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a view's index: `data` itself, or, without, a run of the file at `path` below the root."""

    key: str
    data: bytes | None
    path: str = ""
    offset: int = 0
    nbytes: int = 0


def view_of(tensor: StoredTensor, payload: Payload) -> View:
    """Where a tensor's bytes lie in the payload's files.

    Raises:
        UnsupportedError: when they are not there as they are, or not in equal parts; says why.
    """
    name, shape = tensor.spec.name, tensor.spec.shape
    if tensor.factors:
        raise UnsupportedError(f"{name!r} is made on the way: the payload does not hold its bytes", name=name)
    if 0 in shape:
        return View(Order.C, tuple(max(size, 1) for size in shape), ())
    first = tensor.parts[0]
    part = first.box.shape
    counts = tuple(-(-size // length) for size, length in zip(shape, part, strict=True))
    parts = {found.box.start: found for found in tensor.parts}
    at = []
    for index in itertools.product(*map(range, counts)):
        found = parts.get(tuple(i * length for i, length in zip(index, part, strict=True)))
        if found is None or found.box.shape != part or found.order is not first.order:
            raise UnsupportedError(f"{name!r} lies in parts of different shapes or orders", name=name)
        segments = list(payload.segments(found.extent))
        if len(segments) != 1 or segments[0].extent.length != found.extent.length:
            raise UnsupportedError(f"{name!r} lies in several files, cut anywhere", name=name)
        at.append((segments[0].file, segments[0].extent.start))
    return View(first.order, part, tuple(at))


def views_of(tensors: Sequence[StoredTensor], payload: Payload) -> tuple[dict[int, View], tuple[str, ...]]:
    """The views of those tensors that have one, by their places, and why the others have none."""
    views, faults = {}, []
    for number, tensor in enumerate(tensors):
        try:
            views[number] = view_of(tensor, payload)
        except UnsupportedError as error:
            faults.append(error.message)
    return views, tuple(faults)


def not_viewed(faults: Sequence[str], hint: str) -> UnsupportedError:
    """The error for tensors that cannot be viewed, by what `views_of` says of them."""
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    text = f"not all tensors can be viewed: {'; '.join(faults[:LISTED])}{more}"
    return UnsupportedError(text, hint=hint, left_out=tuple(faults))


def view_grid(shape: tuple[int, ...], view: View, itemsize: int, limit: int = CHUNK_BYTES) -> ShardGrid:
    """The grid of a tensor in a view: a shard is one chunk, a slab the whole tensor."""
    if 0 in shape:
        ones = tuple(max(size, 1) for size in shape)
        return ShardGrid(shape, ones, ones, ones)
    if view.order is Order.F:
        chunk = row_block(view.part[::-1], itemsize, limit, soft=True)[::-1]
    else:
        chunk = row_block(view.part, itemsize, limit, soft=True)
    return ShardGrid(shape, chunk, shape, chunk)


def place_of(view: View, grid: ShardGrid, itemsize: int, index: tuple[int, ...]) -> tuple[int, int]:
    """File and offset of the chunk at an index of the grid."""
    starts = [i * size for i, size in zip(index, grid.chunk, strict=True)]
    number = within = 0
    for start, part, size in zip(starts, view.part, grid.shape, strict=True):
        number = number * (size // part) + start // part
    dimensions = range(len(starts))
    for d in reversed(dimensions) if view.order is Order.F else dimensions:
        within = within * (view.part[d] // grid.chunk[d]) + starts[d] % view.part[d] // grid.chunk[d]
    file, offset = view.at[number]
    return file, offset + within * prod(grid.chunk) * itemsize


def chunk_indexes(grid: ShardGrid) -> Iterator[tuple[int, ...]]:
    """The indexes of all chunks of a view's tensor, in C order."""
    if 0 not in grid.shape:
        yield from itertools.product(*map(range, grid.shards))


def is_block(view: View, grid: ShardGrid) -> bool:
    """True where a grid's chunks, one after the other, are the bytes of a part."""
    if grid.shard != grid.chunk or grid.slab != grid.shape:
        return False
    chunk, part = list(grid.chunk), list(view.part)
    if view.order is Order.F:
        chunk, part = chunk[::-1], part[::-1]
    while chunk and chunk[0] == 1:  # leading dimensions of one element, then one cut, the rest whole
        del chunk[0], part[0]
    return chunk[1:] == part[1:] and all(p % c == 0 for c, p in zip(chunk, part, strict=True))
