"""A store opened for reading, and its tensors as lazy arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from types import EllipsisType, TracebackType
from typing import Any, Protocol, Self

import numpy as np

from gdist.core.box import Box, tiles_of
from gdist.core.mesh import PartitionSpec
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.tensor import Quantisation
from gdist.errors import RequestError
from gdist.stores.buffers import Array, aligned_empty, numpy_dtype, workers_of


class Reader(Protocol):
    """How the bytes of a store are read; thread-safe."""

    def check(self, requests: Iterable[tuple[StoreTensor, Box]], workers: int = 1) -> None:
        """Raises unless everything in the boxes can be read, and, as far as that is cheap, is right."""
        ...

    def view(self, tensor: StoreTensor, box: Box) -> Array | None:
        """The box without a copy, unchecked, or None."""
        ...

    def read(self, tensor: StoreTensor, box: Box, out: Array) -> None:
        """Copies a box into `out`, checked."""
        ...

    def close(self) -> None:
        """Gives back what is held."""
        ...


class Described(Protocol):
    """What a store says of itself."""

    @property
    def joined(self) -> StoreManifest:
        """What was written."""

    @property
    def absent(self) -> tuple[int, ...]:
        """Hosts whose part of the store is not here."""

    def check_listed(self, requests: Iterable[tuple[StoreTensor, Box]]) -> None:
        """Raises unless a manifest lists every shard that meets the boxes."""
        ...


class LazyArray:
    """One tensor of a store: nothing is read before it is asked for.

    `np.asarray(array)` reads all of it; `array[2:4, ...]` reads the inner chunks that the region meets.
    """

    def __init__(self, tensor: StoreTensor, reader: Reader, opener: Callable[[StoreTensor], Any]):
        self._tensor = tensor
        self._reader = reader
        self._opener = opener
        self.dtype = numpy_dtype(tensor.dtype)

    @property
    def name(self) -> str:
        """The tensor's name: its tree path joined by `.`."""
        return self._tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._tensor.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.size * self.dtype.itemsize

    @property
    def spec(self) -> PartitionSpec:
        """The mesh axes that split each dimension in the store's mesh."""
        return self._tensor.spec

    @property
    def has_row_blocks(self) -> bool:
        """True when inner chunks are row blocks: always, but in a tensor that was transposed or stacked."""
        chunk, block = (
            self._tensor.grid.chunk,
            tuple(map(min, self._tensor.grid.shard, self._tensor.grid.slab)),
        )
        first = next((n for n, size in enumerate(chunk) if size > 1), len(chunk))
        return chunk[first + 1 :] == block[first + 1 :]

    def chunks_of(self, box: Box) -> Iterator[Box]:
        """A box cut along the inner chunks."""
        return (part for _, part in tiles_of(box, self._tensor.grid.chunk))

    @property
    def quantisation(self) -> Quantisation | None:
        """Set on both halves of a quantised pair."""
        return self._tensor.quantisation

    @property
    def encoding(self) -> str:
        """What the elements stand for where that is not their type (`gguf.q4_0`: blocks of bytes), or ""."""
        return self._tensor.encoding

    def __repr__(self) -> str:
        return f"<LazyArray {self.name!r} {self.dtype.name}{list(self.shape)} {self.spec}>"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        """The whole tensor: a read-only view of the file where it is one slab and no copy is asked for."""
        whole = None if copy else self.view(Box.whole(self.shape))
        if whole is None or (dtype is not None and dtype != self.dtype):
            if copy is False:
                raise ValueError(f"{self.name!r} cannot be given as one array without a copy")
            whole = self.read() if whole is None else whole
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, key: object) -> Array:
        """A copy of a region, by integers, slices and `...`; reads only the inner chunks it meets.

        Raises:
            IndexError: outside the tensor, or for too many indexes.
            TypeError: for other indexes.
        """
        box, local = parse_index(key, self.shape)
        return self.read(box)[local]

    def read(self, box: Box | None = None, out: Array | None = None) -> Array:
        """Copies a box, or the whole tensor, into `out` or into a new 64-byte aligned array.

        `out` may have any strides, and start at any address.

        Raises:
            CorruptError: when a shard is missing or cut, or a chunk differs from its digest.
            RequestError: when another host has a shard, the box is not in the tensor, or `out` does not fit.
        """
        box = self._inside(box)
        if out is None:
            out = aligned_empty(box.shape, self.dtype)
        elif out.shape != box.shape or out.dtype != self.dtype:
            raise RequestError(
                f"out is {out.dtype}{list(out.shape)}, the box of {self.name!r} {self.dtype}{list(box.shape)}"
            )
        elif not out.flags.writeable:
            raise RequestError(f"out is read-only: {self.name!r} cannot be copied into it")
        if box.size:
            self._reader.read(self._tensor, box, out)
        return out

    def view(self, box: Box | None = None) -> Array | None:
        """A box without a copy: read-only, over the mapped shard file; None when it has to be copied.

        There is one for every box within one slab (what a device holds) of a local, uncompressed store. A
        whole slab, or a row block of one, is contiguous, and a slab starts at a multiple of 64 bytes.

        Raises:
            CorruptError, RequestError: as `read`.
        """
        box = self._inside(box)
        array = self._reader.view(self._tensor, box) if box.size else None
        if array is not None:
            self._reader.check([(self._tensor, box)])
        return array

    def tensorstore(self) -> Any:  # Any: TensorStore ships no types
        """The tensor as a `tensorstore.TensorStore`, for its own tools.

        It reads without checking digests, but refuses missing shards.
        """
        return self._opener(self._tensor)

    def read_by(self, reader: Reader) -> LazyArray:
        """The same tensor, read by another reader."""
        return LazyArray(self._tensor, reader, self._opener)

    def _inside(self, box: Box | None) -> Box:
        whole = Box.whole(self.shape)
        if box is None:
            return whole
        if box.ndim != self.ndim or not whole.contains(box):
            raise RequestError(f"box {box.start} to {box.stop} is not in {self.name!r} of shape {self.shape}")
        return box


def parse_index(key: object, shape: tuple[int, ...]) -> tuple[Box, tuple[int | slice, ...]]:
    """The smallest box that holds what `key` asks for, and what to index that box with.

    Raises:
        IndexError, TypeError: as NumPy, for what lies outside or is not an integer, a slice or `...`.
    """
    items: list[object] = list(key) if isinstance(key, tuple) else [key]
    gaps = [n for n, item in enumerate(items) if isinstance(item, EllipsisType)]
    if len(gaps) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = len(shape) - (len(items) - len(gaps))
    if missing < 0:
        raise IndexError(f"{len(items)} indexes for {len(shape)} dimensions")
    at = gaps[0] if gaps else len(items)
    items[at : at + len(gaps)] = [slice(None)] * missing
    start: list[int] = []
    stop: list[int] = []
    local: list[int | slice] = []
    for dimension, (item, size) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            picked = range(*item.indices(size))
            low, high = (min(picked), max(picked) + 1) if picked else (0, 0)
            # A backward slice that ends at the box's first element has no stop to name.
            end = picked.stop - low if picked and picked.stop >= low else None
            local.append(slice(picked[0] - low, end, picked.step) if picked else slice(0, 0))
        else:
            low = _place(item, size, dimension)
            high = low + 1
            local.append(0)
        start.append(low)
        stop.append(high)
    return Box(tuple(start), tuple(stop)), tuple(local)


def _place(item: object, size: int, dimension: int) -> int:
    if isinstance(item, bool | np.bool_):
        raise TypeError(f"index {item!r} is not an integer, a slice or '...'")
    try:
        place = operator.index(item)  # type: ignore[arg-type]  # it says itself what it cannot take
    except TypeError:
        raise TypeError(f"index {item!r} is not an integer, a slice or '...'") from None
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of bounds for dimension {dimension} with size {size}")
    return place % size


class Store(Mapping[str, LazyArray]):
    """A store opened for reading: its tensors by name, in loading order. Made by `gdist.open`."""

    def __init__(
        self, where: str, manifests: Described, reader: Reader, opener: Callable[[StoreTensor], Any]
    ):
        self.where = where
        self._manifests = manifests
        self._reader = reader
        self._tensors = {tensor.name: tensor for tensor in manifests.joined.tensors}
        self._opener = opener

    @property
    def manifest(self) -> StoreManifest:
        """What was written, joined from the parts of the hosts that are here."""
        return self._manifests.joined

    @property
    def absent_hosts(self) -> tuple[int, ...]:
        """Hosts whose part of the store is not here."""
        return self._manifests.absent

    def __getitem__(self, name: str) -> LazyArray:
        return LazyArray(self._tensors[name], self._reader, self._opener)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        manifest = self.manifest
        absent = f", without hosts {', '.join(map(str, self.absent_hosts))}" if self.absent_hosts else ""
        size = f"{manifest.nbytes / 1e9:.2f} GB"
        return f"<Store {self.where!r}: {len(self)} tensors, {size}, mesh {manifest.mesh}{absent}>"

    def check(self, boxes: Mapping[str, Iterable[Box]], *, workers: int | None = None) -> None:
        """That these boxes can all be read: shards are here and whole, digests right where they are checked.

        `workers` threads compare digests (default: one a core). What was checked is not checked again.

        Raises:
            CorruptError: naming everything missing, cut or different from its digest.
            RequestError: naming every shard that another host has; or there are no workers.
        """
        threads = workers_of(workers)
        requests = [
            (self._tensors[name], box) for name, wanted in boxes.items() for box in wanted if box.size
        ]
        self._reader.check(requests, threads)

    def check_listed(self, boxes: Mapping[str, Iterable[Box]]) -> None:
        """That the manifests list every shard that these boxes meet; reads nothing.

        Raises:
            CorruptError, RequestError: naming every shard that is in none, as `check`.
        """
        self._manifests.check_listed(
            (self._tensors[name], box) for name, wanted in boxes.items() for box in wanted if box.size
        )

    def close(self) -> None:
        """Gives back maps and handles; arrays that were given out stay valid."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
