"""How many bytes of which piece a host needs: what its shards hold of it, and not a byte more.

A plan says which pieces a host touches; between hosts only the wanted bytes of a piece move. Counting them is
arithmetic on boxes, without a loop over rows: a stored box is a *band* of its part's bytes, and how many of
its bytes come before a position of the part has a closed form, one division a dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.payload import Payload
from gdist.core.plan import HostPlan, TensorPlan
from gdist.core.tensor import Order, StoredTensor

_Dim = tuple[int, int, int, int]  # bytes of a step; first and last step of the box; bytes of it in a step


@dataclass(frozen=True, slots=True)
class Band:
    """The bytes of one box of a stored array; `extent` is where the array lies in the payload."""

    extent: Extent
    dims: tuple[_Dim, ...]

    def before(self, position: int) -> int:
        """How many of the band's bytes are among the first `position` bytes of the array."""
        found = 0
        for pitch, start, stop, inner in self.dims:
            step, position = divmod(position, pitch)
            if step < start:
                return found
            if step >= stop:
                return found + (stop - start) * inner
            found += (step - start) * inner
        return found

    def nbytes_in(self, extent: Extent) -> int:
        """How many of the band's bytes lie in an extent of the payload."""
        start, stop = max(extent.start, self.extent.start), min(extent.stop, self.extent.stop)
        if start >= stop:
            return 0
        return self.before(stop - self.extent.start) - self.before(start - self.extent.start)


def band_of(extent: Extent, shape: Sequence[int], box: Box) -> Band:
    """The band of a box of a C-ordered array of bytes, which fills the extent; a scalar is one byte."""
    dims: list[_Dim] = [] if shape else [(1, 0, 1, 1)]
    for d, (size, start, stop) in enumerate(zip(shape, box.start, box.stop, strict=True)):
        pitch, inner = prod(shape[d + 1 :]), prod(box.shape[d + 1 :])
        if inner == pitch:  # whole from here on: one run of bytes
            dims.append((1, start * pitch, stop * pitch, 1))
            break
        if stop - start < size or size > 1:
            dims.append((pitch, start, stop, inner))
    return Band(extent, tuple(dims))


def bands_of(plan: TensorPlan) -> Iterator[Band]:
    """What a host's shards of a tensor hold of each of its stored parts."""
    for factor in plan.tensor.sources:
        itemsize = factor.tensor.spec.dtype.itemsize
        boxes = [factor.box_for(shard.box) for shard in plan.shards]
        for part in factor.tensor.parts:
            for box in boxes:
                common = part.box.intersect(box)
                if common is None:
                    continue
                inside, shape = common.relative_to(part.box.start), part.box.shape
                if part.order is Order.F:
                    inside, shape = inside.reversed(), shape[::-1]
                yield band_of(part.extent, (*shape, itemsize), inside.with_bytes(itemsize))


class Needs:
    """What hosts that were planned together need of each piece; counts what equal shards need once."""

    def __init__(self, plans: Sequence[HostPlan]):
        self._plans, self._payload = plans, plans[0].payload
        self._bands: dict[int, tuple[Band, ...]] = {}
        self._counts: dict[int, tuple[tuple[int, int], ...]] = {}
        self._tensors: dict[int, list[int]] = {}  # by piece
        for number, plan in enumerate(plans[0].tensors):
            for piece in dict.fromkeys(pieces_of(plan.tensor, self._payload)):
                self._tensors.setdefault(piece, []).append(number)

    def nbytes(self, host: int, piece: int) -> int:
        """Bytes of a piece that a host, by its index in the plans, needs."""
        extent, tensors = self._payload.extent_of(piece), self._plans[host].tensors
        found = 0
        for number in self._tensors.get(piece, ()):
            found += sum(band.nbytes_in(extent) for band in self._bands_of(tensors[number]))
        return min(found, extent.length)  # scales may serve several shards

    def by_piece(self, host: int) -> dict[int, int]:
        """Bytes of every piece that a host needs any byte of."""
        found: dict[int, int] = {}
        for plan in self._plans[host].tensors:
            for piece, nbytes in self._counts_of(plan):
                found[piece] = found.get(piece, 0) + nbytes
        last = self._payload.extent_of(self._payload.pieces - 1) if self._payload.pieces else Extent(0, 0)
        for piece, nbytes in found.items():
            most = last.length if piece == self._payload.pieces - 1 else self._payload.piece_length
            if nbytes > most:
                found[piece] = most
        return found

    def _bands_of(self, plan: TensorPlan) -> tuple[Band, ...]:
        bands = self._bands.get(id(plan))  # the plans are kept, so that no other object has the same identity
        if bands is None:
            bands = self._bands[id(plan)] = tuple(bands_of(plan))
        return bands

    def _counts_of(self, plan: TensorPlan) -> tuple[tuple[int, int], ...]:
        counts = self._counts.get(id(plan))
        if counts is None:
            counts = self._counts[id(plan)] = tuple(_counted(self._bands_of(plan), self._payload))
        return counts


def _counted(bands: Sequence[Band], payload: Payload) -> Iterator[tuple[int, int]]:
    """Pieces and how many of their bytes are in each band."""
    length = payload.piece_length
    for band in bands:
        first, done = band.extent.start, 0
        for piece in payload.pieces_of(band.extent):
            now = band.before(min((piece + 1) * length, band.extent.stop) - first)
            if now > done:
                yield piece, now - done
                done = now


def pieces_of(tensor: StoredTensor, payload: Payload) -> Iterator[int]:
    """Pieces that hold a byte of a tensor; one that lies in several parts comes several times."""
    for factor in tensor.sources:
        for part in factor.tensor.parts:
            yield from payload.pieces_of(part.extent)


def pieces_in_order(tensors: Sequence[StoredTensor], payload: Payload) -> tuple[int, ...]:
    """Pieces that hold a byte of any of the tensors, in the order in which these are given, each once."""
    found: dict[int, None] = {}
    for tensor in tensors:
        found.update(dict.fromkeys(pieces_of(tensor, payload)))
    return tuple(found)
