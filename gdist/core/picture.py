"""Who holds what of one tensor, and what feeds it: the values that every picture is drawn from.

The slabs of a mesh tile a tensor; devices that hold the same slab are replicas. Each distinct slab is one
`Region`. A picture is flat, so `choose_view` says which two dimensions are drawn:

    8x6144x32768, P(None, data, model)      rows: dimension 1   columns: dimension 2   whole: dimension 0
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from gdist.core.box import Box
from gdist.core.grid import ShardGrid
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, slab_index, split_counts
from gdist.core.payload import Payload
from gdist.core.plan import ShardTask, TensorPlan, piece_runs
from gdist.core.tensor import Order, Quantisation, StoredTensor, TensorSpec
from gdist.errors import RequestError

MOST_REGIONS = 4096  # cells of a screen's size; a mesh of more devices is drawn where it cuts a tensor less
MOST_DEVICES = 2**16


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a tensor, and the devices that hold exactly it, on these hosts; more than one are replicas.

    `index` is its place in the grid of slabs. `pieces` are half-open runs of piece numbers that hold a byte
    of it, `pieces_nbytes` their bytes; `shards` are the places in the grid of shards that meet it, None where
    there is no store, and `here` says whether all of those are in the store that was asked.
    """

    index: tuple[int, ...]
    box: Box
    devices: tuple[int, ...]
    hosts: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...] = ()
    pieces_nbytes: int = 0
    shards: Box | None = None
    here: bool = True


@dataclass(frozen=True, slots=True)
class View:
    """The dimensions drawn as rows and columns; a scalar has neither, a vector only columns.

    Of the others, those in `panels` are split: there is a panel for each place on them. Those in `whole` are
    not.
    """

    rows: int | None
    columns: int | None
    panels: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes of a tensor lie: `nbytes` from `start` in a file of the source."""

    path: str
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorPicture:
    """One tensor on a mesh of devices that `hosts` hosts share; regions are in C order of the slabs.

    `piece_length` is None where no pieces are known, and `pieces_assumed` is true where their numbers rest on
    an assumed length or order of files. `grid` is the store's own, None for a source. `places` are the
    first few of `parts` stored runs.
    """

    tensor: TensorSpec
    mesh: Mesh
    spec: PartitionSpec
    hosts: int
    view: View
    regions: tuple[Region, ...]
    quantisation: Quantisation | None = None
    grid: ShardGrid | None = None
    piece_length: int | None = None
    pieces_assumed: bool = False
    places: tuple[Place, ...] = ()
    parts: int = 0
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, ...]:
        """Slabs per dimension."""
        return tuple(i + 1 for i in self.regions[-1].index)

    @property
    def slab(self) -> tuple[int, ...]:
        """Shape of what one device holds."""
        return self.regions[0].box.shape

    @property
    def replicas(self) -> int:
        """Devices that hold each slab."""
        return len(self.regions[0].devices)


@dataclass(frozen=True, slots=True)
class Feed:
    """Regions that the same pieces and shards feed, by their place in `TensorPicture.regions`."""

    regions: tuple[int, ...]
    devices: tuple[int, ...]
    hosts: tuple[int, ...]
    first: Region


def regions_of(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...], hosts: int = 1) -> tuple[Region, ...]:
    """The distinct slabs of a tensor, in C order, with the devices and hosts that hold each.

    Raises:
        RequestError: when there are more than a picture can show, or the hosts do not divide the mesh.
    """
    ndim = len(shape)
    counts = split_counts(mesh, spec, ndim)
    slab = tuple(size // count for size, count in zip(shape, counts, strict=True))
    cut = prod(counts)
    if cut > MOST_REGIONS or mesh.devices > MOST_DEVICES:
        raise RequestError(
            f"mesh {mesh} has {mesh.devices} devices and cuts the tensor into {cut} slabs; a picture shows "
            f"{MOST_DEVICES} and {MOST_REGIONS} at most",
            hint="draw it on a smaller mesh",
        )
    held: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for host in range(hosts):
        for place in HostGroup(host, hosts).devices(mesh):
            number = mesh.order[place] if mesh.order else place
            held.setdefault(slab_index(mesh, spec, ndim, place), []).append((number, host))
    regions = []
    for index, holders in sorted(held.items()):
        devices = tuple(sorted(device for device, _ in holders))
        start = tuple(i * length for i, length in zip(index, slab, strict=True))
        box = Box.whole(slab).shift(start)
        regions.append(Region(index, box, devices, tuple(sorted({host for _, host in holders}))))
    return tuple(regions)


def choose_view(shape: Sequence[int], counts: Sequence[int]) -> View:
    """Which two dimensions to draw: those cut into most slabs; where fewer are cut, the largest beside them.

    Rows are the earlier one, as a C-ordered array is printed.
    """
    ranked = sorted(range(len(shape)), key=lambda d: (counts[d] > 1, counts[d], shape[d], d), reverse=True)
    shown = sorted(ranked[:2])
    others = sorted(ranked[2:])
    return View(
        rows=shown[0] if len(shown) == 2 else None,
        columns=shown[-1] if shown else None,
        panels=tuple(d for d in others if counts[d] > 1),
        whole=tuple(d for d in others if counts[d] == 1),
    )


def side_by_side(pictures: Sequence[TensorPicture]) -> tuple[TensorPicture, ...]:
    """The pictures, all with the rows and columns of the first where they have as many dimensions.

    So the scales of a pair lie beside what they scale; they are never cut where the weight is not.
    """
    if not pictures:
        return ()
    view, ndim = pictures[0].view, len(pictures[0].counts)
    aligned = []
    for picture in pictures:
        others = [d for d in range(ndim) if d not in (view.rows, view.columns)]
        if len(picture.counts) == ndim:
            split = tuple(d for d in others if picture.counts[d] > 1)
            whole = tuple(d for d in others if picture.counts[d] == 1)
            picture = replace(picture, view=View(view.rows, view.columns, split, whole))
        aligned.append(picture)
    return tuple(aligned)


def pieces_of_box(payload: Payload, tensor: StoredTensor, box: Box) -> tuple[tuple[int, int], ...]:
    """Half-open runs of the pieces that hold a byte of a box, exactly those a fetch of it would ask for."""
    if not box.size:
        return ()
    ones = (1,) * box.ndim
    grid = ShardGrid(ones, ones, ones, ones)  # of no matter: the box is given
    plan = TensorPlan(tensor, PartitionSpec(), grid, (ShardTask(0, (0,) * box.ndim, box),))
    runs: list[tuple[int, int]] = []
    for run in piece_runs(plan, payload):
        if runs and run.start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], run.stop))
        else:
            runs.append((run.start, run.stop))
    return tuple(runs)


def most_runs(payload: Payload, tensor: StoredTensor, regions: Sequence[Region]) -> int:
    """How many runs `pieces_of_box` may find for all regions, at most."""
    most = 0
    for part in tensor.parts:
        pieces, inner = len(payload.pieces_of(part.extent)), -1 if part.order is Order.C else 0
        rows = (prod(r.box.shape) // max(r.box.shape[inner], 1) if r.box.ndim else 1 for r in regions)
        most += sum(min(pieces, row) for row in rows)
    return most


def shards_of_box(grid: ShardGrid, box: Box) -> Box:
    """The shards that hold an element of a box, as a box of the grid of shards."""
    if not box.size:
        return Box((0,) * box.ndim, (0,) * box.ndim)
    start = tuple(a // s for a, s in zip(box.start, grid.shard, strict=True))
    return Box(start, tuple(-(-b // s) for b, s in zip(box.stop, grid.shard, strict=True)))


def indices_of(shards: Box) -> Iterator[tuple[int, ...]]:
    """The index of each shard in a box of them, in C order."""
    return itertools.product(*(range(a, b) for a, b in zip(shards.start, shards.stop, strict=True)))


def feeds_of(regions: Sequence[Region]) -> tuple[Feed, ...]:
    """Regions grouped by what feeds them, in order of their first; none where nothing is known of it."""
    groups: dict[object, list[int]] = {}
    for number, region in enumerate(regions):
        if region.pieces or region.shards is not None:
            groups.setdefault((region.pieces, region.shards), []).append(number)
    return tuple(
        Feed(
            tuple(members),
            tuple(sorted(device for n in members for device in regions[n].devices)),
            tuple(sorted({host for n in members for host in regions[n].hosts})),
            regions[members[0]],
        )
        for members in groups.values()
    )


def axis_keys(picture: TensorPicture) -> tuple[str, tuple[int | None, ...]]:
    """What tells regions apart at a glance, and its value for each: their host, else a place on a mesh axis.

    None is a region on several hosts. The axis is the mesh's first that splits the tensor; "" when none does.
    """
    hosts = [region.hosts for region in picture.regions]
    if picture.hosts > 1 and any(len(several) == 1 for several in hosts):
        return "host", tuple(several[0] if len(several) == 1 else None for several in hosts)
    used = {name for dim in picture.spec.dims for name in dim}
    axis = next((name for name, size in picture.mesh.axes if size > 1 and name in used), "")
    order = picture.mesh.order or range(picture.mesh.devices)
    places = {number: place for place, number in enumerate(order)}
    found = [picture.mesh.coordinates(places[region.devices[0]]) for region in picture.regions]
    return axis, tuple(place.get(axis, 0) for place in found)


def block_factor(count: int, most: int) -> int:
    """How many neighbours to draw as one, so that at most `most` are left: a divisor of `count`."""
    return next(f for f in range(1, count + 1) if count % f == 0 and (count // f <= most or f == count))


def blocks_of(
    picture: TensorPicture, panel: tuple[int, ...], tall: int, wide: int
) -> dict[tuple[int, int], list[int]]:
    """The regions of a panel, by their place in `TensorPicture.regions`, in blocks of `tall` x `wide`.

    The keys are the row and the column of each block.
    """
    view = picture.view
    blocks: dict[tuple[int, int], list[int]] = {}
    for number, region in enumerate(picture.regions):
        if tuple(region.index[d] for d in view.panels) == panel:
            row = region.index[view.rows] // tall if view.rows is not None else 0
            column = region.index[view.columns] // wide if view.columns is not None else 0
            blocks.setdefault((row, column), []).append(number)
    return blocks
