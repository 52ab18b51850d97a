"""What a reshard reads from: a gdist store, a checkpoint's own files, an Orbax checkpoint.

An origin says which tensors it holds and in which chunks they can be read, and reads boxes of them, checked
as far as it has anything to check them by. A new kind is one new module here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gdist.core.box import Box, tiles_of
from gdist.core.dtypes import DType
from gdist.core.reshard import Grain
from gdist.core.store_manifest import Step, StoreSource
from gdist.core.tensor import StoredTensor
from gdist.stores.buffers import Array, Bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What an origin holds; `tensors` are in loading order.

    `source` is what its bytes came from in the first place, `steps` the reshards on the way here, this one
    included. `state` changes when what it holds may have changed; it need not be the same on two hosts, as
    the identity of the last step is. `checked` is true where every byte has a digest to be checked by. What
    was left out, chosen and converted in the first place is kept: `stored` by the name of the tensor.
    """

    tensors: tuple[StoredTensor, ...]
    source: StoreSource
    steps: tuple[Step, ...]
    state: str
    checked: bool
    assets: tuple[str, ...] = ()
    source_files: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    converted: str | None = None
    stored: Mapping[str, tuple[DType, ...]] = field(default_factory=dict)


class Held(Protocol):
    """Boxes that were read, and hold memory until the last reference is gone."""

    def parts(self, box: Box) -> Iterator[tuple[Box, Array]]:
        """Arrays that tile a box that was read: the box each one is, and its elements as `raw` sees them."""
        ...


class Origin(Protocol):
    """What a reshard asks of a source; thread-safe. Tensors go by their number in `contents.tensors`.

    `maps` is true where what is read is a map of files, which takes no memory of ours. Every method may
    raise `CorruptError`, `FilesystemError` or `TransferError`.
    """

    where: str
    contents: Contents
    maps: bool

    def grain(self, tensor: int) -> Grain:
        """In which chunks a tensor is read."""
        ...

    def check(self, wanted: Iterable[tuple[int, Box]]) -> None:
        """That these boxes are there to be read, as far as that costs little; before anything is.

        Raises:
            RequestError: naming all that is elsewhere, and where.
            CorruptError: naming all that is missing, or of another length than it must have.
        """
        ...

    def read(self, tensor: int, boxes: Sequence[Box]) -> Held:
        """Reads and checks boxes: whole chunks, or any where the grain allows it."""
        ...

    def release(self, tensor: int) -> None:
        """Forgets what is kept of a tensor that is not read any more."""
        ...

    def asset(self, path: str, directory: str = "assets") -> bytes:
        """A small file that goes with the tensors, or, below `source`, leads back to the torrent; checked."""
        ...

    def still(self) -> str:
        """The state, found out anew."""
        ...

    def close(self) -> None:
        """Gives back what is held."""
        ...


def raw(itemsize: int) -> np.dtype[np.generic]:
    """A type of that many bytes, as which NumPy moves elements of any type at full speed."""
    return np.dtype(f"u{itemsize}" if itemsize in (1, 2, 4, 8) else f"V{itemsize}")


def elements(data: Bytes, shape: tuple[int, ...], itemsize: int) -> Array:
    """C-ordered bytes as an array of elements."""
    return data.view(raw(itemsize)).reshape(shape)


class Chunks:
    """Chunks of one regular grid that were read, by their place in it."""

    def __init__(self, chunk: tuple[int, ...], arrays: Mapping[tuple[int, ...], Array]):
        self._chunk, self._arrays = chunk, arrays

    def parts(self, box: Box) -> Iterator[tuple[Box, Array]]:
        """The parts of the box that lie in each chunk."""
        for index, part in tiles_of(box, self._chunk):
            origin = tuple(i * c for i, c in zip(index, self._chunk, strict=True))
            yield part, self._arrays[index][part.slices_from(origin)]
