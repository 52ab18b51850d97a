"""Tensors of which every rank has a copy, where the payload itself is the store: one copy stands for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gdist.core.extent import Extent
from gdist.core.payload import Payload
from gdist.core.tensor import Combine, StoredTensor
from gdist.errors import CorruptError, translate

BLOCK_BYTES = 4 * 2**20  # compared at a time


def one_copy(tensor: StoredTensor, payload: Payload, base: Path, *, compare: bool) -> StoredTensor:
    """A tensor itself; of one that is copies, the first, once it is seen that all are equal.

    `base` is the payload's directory, or its only file. Without `compare` nothing is read.

    Raises:
        CorruptError: when the copies differ.
        FilesystemError: when they cannot be read.
    """
    if tensor.combine is not Combine.EQUAL or not tensor.factors:
        return tensor
    first, *others = (factor.tensor for factor in tensor.factors)
    layouts = {tuple((part.box, part.order) for part in copy.parts) for copy in (first, *others)}
    if len(layouts) > 1:
        return tensor  # they lie in different orders: only as arrays could they be compared
    for other in others if compare else ():
        for one, two in zip(first.parts, other.parts, strict=True):
            found = zip(_blocks(one.extent, payload, base), _blocks(two.extent, payload, base), strict=True)
            if any(a != b for a, b in found):
                raise CorruptError(
                    f"the {len(tensor.factors)} copies of {tensor.spec.name!r} are not equal",
                    hint="the profile calls it replicated: the files are of two models, or of another's",
                    tensor=tensor.spec.name,
                )
    return replace(first, spec=tensor.spec)


def _blocks(extent: Extent, payload: Payload, base: Path) -> Iterator[bytes]:
    for segment in payload.segments(extent):
        path = base if base.is_file() else base / payload.files[segment.file].path
        try:
            with path.open("rb") as file:
                file.seek(segment.extent.start)
                for start in range(0, segment.extent.length, BLOCK_BYTES):
                    yield file.read(min(BLOCK_BYTES, segment.extent.length - start))
        except OSError as error:
            raise translate(error, f"reading {path}") from error
