"""A tensor's sharding in words, the same under a drawing and on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gdist.core.box import Box
from gdist.core.picture import Feed, Region, TensorPicture
from gdist.core.text import count, numbers, ranges, shape
from gdist.core.units import format_bytes


def summary(picture: TensorPicture) -> tuple[str, str]:
    """Two lines: what the tensor is, and how it is cut."""
    own, slabs = picture.tensor, len(picture.regions)
    what = f"{shape(own.shape)} {own.dtype.name}, {format_bytes(own.nbytes)}"
    devices = count(picture.mesh.devices, "device")
    if picture.hosts > 1:
        devices += f" of {count(picture.hosts, 'host')}"
    if picture.mesh.devices == 1:
        return what, "one device, which holds all of it"
    what += f"; {picture.spec} on mesh {picture.mesh}"
    if slabs == 1:
        return what, f"{devices}, each with all of it"
    copies = f", each on {count(picture.replicas, 'device')}" if picture.replicas > 1 else ""
    each = format_bytes(own.nbytes_of(picture.regions[0].box))
    return what, f"{devices}; {slabs} slabs of {shape(picture.slab)}, {each} each{copies}"


def dimension(picture: TensorPicture, number: int) -> str:
    """`dimension 1 (6144 by data)`: its size, and the mesh axes that split it."""
    axes = " x ".join(picture.spec.axes_of(number))
    split = f" by {axes}" if picture.counts[number] > 1 else ""
    return f"dimension {number} ({picture.tensor.shape[number]}{split})"


def panel(picture: TensorPicture, place: Sequence[int]) -> str:
    """Which part of the dimensions that are not drawn a panel shows."""
    return ", ".join(
        f"dimension {d}: {i * picture.slab[d]} to {(i + 1) * picture.slab[d]}"
        for d, i in zip(picture.view.panels, place, strict=True)
    )


def shards(box: Box) -> str:
    """The keys of a box of shards below their array: `c/0/3`, `c/0/0-7`; a scalar's is `c`."""
    if not box.size:
        return "none"
    ranges = (str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in zip(box.start, box.stop, strict=True))
    return "/".join(["c", *ranges])


def region(picture: TensorPicture, one: Region) -> str:
    """Everything of one slab, in lines."""
    hosts = f" (host {numbers(one.hosts)})" if picture.hosts > 1 else ""
    plural = "s" if len(one.devices) > 1 else ""
    lines = [f"device{plural} {numbers(one.devices, 60)}{hosts}"]
    spans = zip(one.box.start, one.box.stop, strict=True)
    lines += [", ".join(f"{a}:{b}" for a, b in spans) or "scalar"]
    lines[-1] = f"[{lines[-1]}] {format_bytes(picture.tensor.nbytes_of(one.box))}"
    if one.shards is not None:
        lines.append(f"shards {shards(one.shards)}" + ("" if one.here else ", not all here"))
    if one.pieces:
        lines.append(f"pieces {pieces(one, 60)}: {format_bytes(one.pieces_nbytes)}")
    return "\n".join(lines)


def pieces(one: Region, width: int) -> str:
    """The numbers of a slab's pieces."""
    return ranges(one.pieces, width)


def slabs_nbytes(picture: TensorPicture, feed: Feed) -> int:
    """Bytes of the slabs that one feed goes to, each once."""
    return len(feed.regions) * picture.tensor.nbytes_of(feed.first.box)


def notes(picture: TensorPicture) -> Iterator[str]:
    """What a picture does not show by itself."""
    whole = [dimension(picture, d) for d, slabs in enumerate(picture.counts) if slabs == 1]
    if 0 < len(whole) < len(picture.counts):
        yield f"whole in every slab: {', '.join(whole)}"
    if picture.piece_length is not None:
        assumed = (
            "; their length or order is assumed, the torrent was not asked" if picture.pieces_assumed else ""
        )
        yield f"pieces are {picture.piece_length} bytes long{assumed}"
    for place in picture.places:
        yield f"stored in {place.path}, {format_bytes(place.nbytes)} from byte {place.start}"
    if picture.parts > len(picture.places) > 0:
        yield f"and in {picture.parts - len(picture.places)} more places"
    yield from picture.notes
