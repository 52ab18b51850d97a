"""Arrays that TensorStore has open, read in the chunks they are stored in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.profile import listed
from gdist.core.reshard import Grain
from gdist.core.tensor import Part, StoredTensor, TensorSpec, dtype_named
from gdist.errors import CorruptError
from gdist.kvstore import shared_context
from gdist.stores.buffers import Array
from gdist.stores.origins import Chunks, Held, raw
from gdist.stores.remote import WINDOW, translate

# Any below: TensorStore ships no types.


class OpenArrays:
    """Arrays by name, in the order of `specs`, which are our own; tensors go by their number in it.

    Raises:
        GdistError: naming those that cannot be opened.
    """

    def __init__(self, where: str, specs: Mapping[str, Mapping[str, object]]):
        self._where = where
        opening: list[Any] = []
        self._arrays: list[Any] = []
        faults = []
        for spec in specs.values():
            try:  # a spec that cannot be is told at once, an array that is not there later
                opening.append(_open(spec))
            except Exception as error:  # ValueError and its kin
                opening.append(error)
        for name, future in zip(specs, opening, strict=True):
            try:
                self._arrays.append(_arrived(future))
            except Exception as error:
                faults.append(translate(error, f"opening array {name!r}"))
        if faults:
            kind = type(faults[0])
            raise kind(listed(fault.message for fault in faults), hint=faults[0].hint)
        self.tensors = tuple(map(_stored, specs, self._arrays))

    def grain(self, tensor: int) -> Grain:
        """Chunks as stored: nothing less can be decoded."""
        layout = self._arrays[tensor].chunk_layout
        return Grain(tuple(layout.read_chunk.shape or ()), whole=True)  # none of a scalar

    def read(self, tensor: int, boxes: Iterable[Box]) -> Held:
        """Decodes chunks, a few on the way at once."""
        spec = self.tensors[tensor].spec
        array, chunk = self._arrays[tensor], self.grain(tensor).chunk
        arrays: dict[tuple[int, ...], Array] = {}
        waiting: deque[tuple[Box, Any]] = deque()

        def arrive() -> None:
            box, future = waiting.popleft()
            try:
                data = np.ascontiguousarray(future.result()).reshape(box.shape)
            except Exception as error:  # ValueError and its kin
                raise translate(error, f"reading {spec.name!r} of {self._where} at {box.start}") from error
            index = tuple(a // c for a, c in zip(box.start, chunk, strict=True))
            arrays[index] = data.view(raw(spec.dtype.itemsize))

        for box in boxes:
            waiting.append((box, array[box.slices()].read()))
            if len(waiting) >= WINDOW:
                arrive()
        while waiting:
            arrive()
        return Chunks(chunk, arrays)

    def close(self) -> None:
        """Forgets the handles."""
        self._arrays.clear()


def _open(spec: Mapping[str, object]) -> Any:
    own = {**spec, "open": True, "recheck_cached_data": "open"}
    return ts.open(own, read=True, context=shared_context())


def _arrived(future: Any) -> Any:
    if isinstance(future, Exception):
        raise future
    return future.result()


def _stored(name: str, array: Any) -> StoredTensor:
    if any(array.domain.inclusive_min):
        raise CorruptError(f"array {name!r} does not start at zero", tensor=name)
    spec = TensorSpec(name, tuple(array.shape), dtype_named(array.dtype.name))
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),))
