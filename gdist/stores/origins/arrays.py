"""Zarr arrays that TensorStore has open, read in the chunks they are stored in.

TensorStore is given documents made anew of what ours understood (`gdist.core.zarr_arrays`), in places of our
own: no spec, path or transformer comes from a checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.profile import listed
from gdist.core.reshard import Grain
from gdist.core.tensor import Part, StoredTensor, TensorSpec
from gdist.core.zarr_arrays import ZarrArray
from gdist.errors import CorruptError, UnsupportedError
from gdist.kvstore import shared_context
from gdist.stores.buffers import Array
from gdist.stores.origins import Chunks, Held, raw
from gdist.stores.origins.sample import SAMPLE_BYTES, spread
from gdist.stores.remote import ahead, translate

MAX_CHUNKS = 1 << 22  # of all arrays; 90,000 tensors in 32 chunks each are 3 million
# A chunk may be larger than its array, and memory is taken for all of it: TensorStore 0.1.86 ends the process
# where that cannot be had.
OVERHANG_BYTES = 2**28

# Any below: TensorStore ships no types.


class OpenArrays:
    """Arrays by name; tensors go by their number in that order.

    `kvstore` is where they lie. With `zeros` a chunk that is not there is zeros, otherwise an error.

    Raises:
        GdistError: naming those that cannot be opened, or cannot be what they say.
    """

    def __init__(
        self,
        where: str,
        arrays: Mapping[str, ZarrArray],
        kvstore: Mapping[str, object],
        *,
        zeros: bool = False,
    ):
        self._where = where
        _check_chunks(where, arrays, zeros=zeros)
        opening: list[Any] = []
        self._arrays: list[Any] = []
        faults = []
        for array in arrays.values():
            try:  # a document that cannot be is told at once
                opening.append(_open(array, kvstore, zeros=zeros))
            except Exception as error:  # ValueError and its kin
                opening.append(error)
        for name, future in zip(arrays, opening, strict=True):
            try:
                self._arrays.append(_arrived(future))
            except Exception as error:
                faults.append(translate(error, f"opening array {name!r}"))
        if faults:
            kind = type(faults[0])
            raise kind(listed(fault.message for fault in faults), hint=faults[0].hint)
        self.tensors = tuple(_stored(name, array) for name, array in arrays.items())

    def grain(self, tensor: int) -> Grain:
        """Chunks as stored: nothing less can be decoded."""
        layout = self._arrays[tensor].chunk_layout
        return Grain(tuple(layout.read_chunk.shape or ()), whole=True)  # none of a scalar

    def read(self, tensor: int, boxes: Iterable[Box]) -> Held:
        """Decodes chunks, a few on the way at once."""
        spec = self.tensors[tensor].spec
        array, chunk = self._arrays[tensor], self.grain(tensor).chunk
        arrays: dict[tuple[int, ...], Array] = {}
        for box, future in ahead((box, array[box.slices()].read()) for box in boxes):
            try:
                data = np.ascontiguousarray(future.result()).reshape(box.shape)
            except Exception as error:  # ValueError and its kin
                raise translate(error, f"reading {spec.name!r} of {self._where} at {box.start}") from error
            index = tuple(a // c for a, c in zip(box.start, chunk, strict=True))
            arrays[index] = data.view(raw(spec.dtype.itemsize))
        return Chunks(chunk, arrays)

    def close(self) -> None:
        """Forgets the handles."""
        self._arrays.clear()


def sample_of(where: str, arrays: Iterable[ZarrArray], kvstore: Mapping[str, object]) -> str:
    """A digest of the first bytes, as stored, of one chunk in the middle of each array.

    Raises:
        GdistError: when one cannot be read; one that is not there has no bytes.
    """
    keys = [array.file_of(array.index_of(array.chunks // 2)) for array in arrays if array.chunks]
    found, key = hashlib.sha256(), ""
    try:
        store: Any = ts.KvStore.open(dict(kvstore), context=shared_context()).result()
        asked = ((key, store.read(key, byte_range=slice(0, SAMPLE_BYTES))) for key in spread(keys))
        for key, future in ahead(asked):
            found.update(f"{key}\n".encode() + _first_bytes(store, key, future))
    except Exception as error:  # ValueError and its kin
        raise translate(error, f"reading {where}/{key}") from error
    return found.hexdigest()


def _first_bytes(store: Any, key: str, future: Any) -> bytes:
    try:
        return bytes(future.result().value)
    except Exception as error:
        if not str(error).startswith("OUT_OF_RANGE"):
            raise
        return bytes(store.read(key).result().value)  # it has fewer bytes than were asked for


def _open(array: ZarrArray, kvstore: Mapping[str, object], *, zeros: bool) -> Any:
    below = f"{array.path}/" if array.path else ""
    spec = {
        "driver": "zarr3" if array.version == 3 else "zarr",
        "kvstore": {**kvstore, "path": f"{kvstore.get('path', '')}{below}"},
        "metadata": dict(array.metadata),
        "assume_metadata": True,
        "fill_missing_data_reads": zeros,
        "open": True,
        "recheck_cached_data": "open",
    }
    return ts.open(spec, read=True, context=shared_context())


def _arrived(future: Any) -> Any:
    if isinstance(future, Exception):
        raise future
    return future.result()


def _check_chunks(where: str, arrays: Mapping[str, ZarrArray], *, zeros: bool) -> None:
    """That memory can be had for what the documents say.

    Raises:
        CorruptError, UnsupportedError: naming the arrays for which it cannot.
    """
    large = [
        f"array {name!r} of shape {list(array.shape)} has chunks of {list(array.chunk)}"
        for name, array in arrays.items()
        if array.chunk_nbytes // array.inner > max(2 * array.nbytes, OVERHANG_BYTES)
    ]
    if large:
        raise CorruptError(listed(large), hint="the document of an array is wrong: fetch it again")
    if zeros and (filled := [name for name, array in arrays.items() if not array.zeros]):
        raise UnsupportedError(
            f"{where} leaves out chunks that are not zeros: {listed(map(repr, filled))}",
            hint="write it anew with store_array_data_equal_to_fill_value",
        )
    counts = {name: array.chunks * array.inner for name, array in arrays.items()}
    if sum(counts.values()) > MAX_CHUNKS:
        most = sorted(counts, key=lambda name: -counts[name])[:3]
        named = ", ".join(f"{name!r} ({counts[name]})" for name in most)
        raise UnsupportedError(
            f"the arrays of {where} have {sum(counts.values())} chunks, more than {MAX_CHUNKS}: {named}"
        )


def _stored(name: str, array: ZarrArray) -> StoredTensor:
    spec = TensorSpec(name, array.shape, array.dtype)
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),))
