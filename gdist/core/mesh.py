"""The logical device array, and which box of a tensor each device and process holds.

The meaning of `Mesh` and `PartitionSpec` is exactly that of `jax.sharding.NamedSharding`: a dimension split
by several axes is split by their product, the first named slowest; an axis that no dimension names
replicates. `tests/core/test_mesh.py` compares with JAX on random cases.

A *place* is a position in the mesh, counted in C order; a slab belongs to a place. Devices have *numbers*:
the first host's come first, a host's own in the order of `jax.devices()`. `Mesh.order` says which device is
at which place, so that a mesh whose device array is a permutation (as `mesh_utils` of JAX makes them) gives
every host what `NamedSharding` gives its process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod

from gdist.core.box import Box
from gdist.errors import RequestError

MOST_DEVICES = 2**20  # a hundred times the largest cluster; what is more is a slip of the keyboard
DEFAULT_AXES = {1: ("model",), 2: ("data", "model"), 3: ("replica", "data", "model")}
AXIS = r"[A-Za-z_]\w*"  # a name that can be written in a mesh
SHOWN = 16  # numbers of a device order in messages
FREE = -1  # the size of the axis that takes what the others leave of the devices


@dataclass(frozen=True, slots=True)
class Mesh:
    """Named axes and their sizes, slowest first; `Mesh(())` is one device.

    `order` is the number of the device at each place; empty where that is the place itself.
    """

    axes: tuple[tuple[str, int], ...] = ()
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if len(set(names)) != len(names):
            raise RequestError(
                f"mesh {self} names an axis twice", hint="give each axis a name of its own", mesh=str(self)
            )
        for name, size in self.axes:
            if size < 1:
                raise RequestError(
                    f"mesh axis {name!r} has size {size}",
                    hint="give each axis 1 or more; -1 for what the others leave of --devices",
                    axis=name,
                    size=size,
                )
        if self.order:
            _check_order(self.order, self)
            if self.order == tuple(range(self.devices)):
                object.__setattr__(self, "order", ())  # one mesh, one value

    @property
    def names(self) -> tuple[str, ...]:
        """Axis names, slowest first."""
        return tuple(name for name, _ in self.axes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Axis sizes, slowest first."""
        return tuple(size for _, size in self.axes)

    @property
    def devices(self) -> int:
        """Number of devices."""
        return prod(self.sizes)

    @property
    def splitting(self) -> tuple[tuple[tuple[str, int], ...], tuple[int, ...]]:
        """The axes that split anything, and the order: equal ones cut and deal out every tensor alike."""
        return tuple((name, size) for name, size in self.axes if size > 1), self.order

    def coordinates(self, place: int) -> dict[str, int]:
        """Where a place is on each axis."""
        found: dict[str, int] = {}
        for name, size in reversed(self.axes):
            place, found[name] = divmod(place, size)
        return found

    def __str__(self) -> str:
        axes = ",".join(f"{name}={size}" for name, size in self.axes) or "1"
        if not self.order:
            return axes
        more = ",..." if len(self.order) > SHOWN else ""
        return f"{axes} (devices {','.join(map(str, self.order[:SHOWN]))}{more})"


def _check_order(order: tuple[int, ...], mesh: Mesh) -> None:
    hint = "name every device of the mesh once, counted from 0"
    if len(order) != mesh.devices:
        raise RequestError(
            f"the device order has {len(order)} numbers, the mesh {mesh.devices} devices", hint=hint
        )
    strange = [number for number in order if not 0 <= number < mesh.devices]
    if strange:
        raise RequestError(f"the device order has {strange[0]}, not in 0 to {mesh.devices - 1}", hint=hint)
    if len(set(order)) != len(order):
        twice = next(a for a, b in pairwise(sorted(order)) if a == b)
        raise RequestError(f"the device order has {twice} twice", hint=hint)


@lru_cache(maxsize=8)
def _places(order: tuple[int, ...]) -> tuple[int, ...]:
    """The place of each device, by its number."""
    places = [0] * len(order)
    for place, number in enumerate(order):
        places[number] = place
    return tuple(places)


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    """Mesh axis names per dimension.

    An empty tuple leaves the dimension whole, as do missing trailing ones.
    """

    dims: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        names = [name for dim in self.dims for name in dim]
        if len(set(names)) != len(names):
            raise RequestError(f"partition spec {self} uses a mesh axis twice", spec=str(self))

    def axes_of(self, dimension: int) -> tuple[str, ...]:
        """The mesh axes that split a dimension."""
        return self.dims[dimension] if dimension < len(self.dims) else ()

    def to_json(self) -> list[str | list[str] | None]:
        """Per dimension None, an axis name, or several."""
        return [None if not d else d[0] if len(d) == 1 else list(d) for d in self.dims]

    def __str__(self) -> str:
        names = ["None" if not d else d[0] if len(d) == 1 else f"({', '.join(d)})" for d in self.dims]
        return f"P({', '.join(names)})"


@dataclass(frozen=True, slots=True)
class HostGroup:
    """This process among all: `index` of `count`.

    Each has an equal, consecutive run of the devices' numbers.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        hint = "give INDEX/COUNT with INDEX counted from 0, for example 3/8"
        if self.count < 1:
            raise RequestError(
                f"host {self.index} is of {self.count} hosts, and there is one at least", hint=hint
            )
        if not 0 <= self.index < self.count:
            raise RequestError(f"host index {self.index} is not in 0 to {self.count - 1}", hint=hint)

    def devices(self, mesh: Mesh) -> Sequence[int]:
        """The places in the mesh of this host's devices, ascending.

        Raises:
            RequestError: when the hosts do not divide the mesh evenly.
        """
        if mesh.devices % self.count:
            alone = mesh.devices == 1
            raise RequestError(
                f"{self.count} hosts do not divide the {mesh.devices} device{'' if alone else 's'} "
                f"of mesh {mesh} evenly",
                hint="give --mesh, with devices for every host: --mesh 8x8"
                if alone
                else f"use a number of hosts that divides {mesh.devices}",
            )
        each = mesh.devices // self.count
        numbers = range(self.index * each, (self.index + 1) * each)
        if not mesh.order:
            return numbers
        return sorted(_places(mesh.order)[numbers.start : numbers.stop])


def parse_mesh(text: str, axes: Sequence[str] | None = None, devices: int | None = None) -> Mesh:
    """Reads `8x8`, `8`, or `data=8,model=8`; one size may be -1: what the others leave of `devices`.

    `axes` name sizes without names; else these are `model`, `data,model` or `replica,data,model` by their
    number.

    Raises:
        RequestError: for anything else, and for a -1 that cannot be worked out.
    """
    hint = "write 8x8, or name the axes: data=8,model=8"
    found = _read_axes(text.strip(), axes, hint)
    free = [name for name, size in found if size == FREE]
    if len(free) > 1:
        raise RequestError(f"mesh {text!r} leaves {len(free)} axes open", hint="one size may be -1")
    if free:
        found = [(name, _rest(text, found, devices) if size == FREE else size) for name, size in found]
    mesh = Mesh(tuple(found))
    if mesh.devices > MOST_DEVICES:
        raise RequestError(f"mesh {mesh} has {mesh.devices} devices, more than {MOST_DEVICES}", hint=hint)
    return mesh


def _read_axes(text: str, axes: Sequence[str] | None, hint: str) -> list[tuple[str, int]]:
    size = r"(?:-1|\d{1,6})"
    if re.fullmatch(rf"{size}(x{size})*", text):
        sizes = [int(item) for item in text.split("x")]
        names = axes or DEFAULT_AXES.get(len(sizes), ())
        if len(names) != len(sizes):
            what = f"{len(axes)} names ({', '.join(axes)})" if axes else "no names"
            raise RequestError(
                f"mesh {text!r} has {len(sizes)} axes and {what}",
                hint=f"name each: --axes {','.join(f'axis{i}' for i in range(len(sizes)))}, "
                "or write data=8,model=8",
                mesh=text,
            )
        strange = [name for name in names if not re.fullmatch(AXIS, name)]
        if strange:
            raise RequestError(f"axis {strange[0]!r} is no name", hint="for example --axes data,model")
        return list(zip(names, sizes, strict=True))
    found = []
    for item in text.split(","):
        match = re.fullmatch(rf"\s*({AXIS})\s*[=:]\s*({size})\s*", item)
        if not match:
            raise RequestError(f"mesh {text!r} is not a mesh", hint=hint, mesh=text)
        found.append((match[1], int(match[2])))
    if axes and list(axes) != [name for name, _ in found]:
        raise RequestError(
            f"mesh {text!r} names its axes, and they are to be {', '.join(axes)}", hint="name them once"
        )
    return found


def _rest(text: str, axes: Iterable[tuple[str, int]], devices: int | None) -> int:
    """What the other axes leave of the devices."""
    taken = prod(size for _, size in axes if size != FREE)
    if devices is None:
        raise RequestError(
            f"mesh {text!r} leaves an axis to the number of devices, which is not known",
            hint="give --devices N, the number of all devices",
            mesh=text,
        )
    if not taken:
        return 1  # an axis of size 0 is said by the mesh itself
    if devices % taken or devices < 1:
        raise RequestError(
            f"mesh {text!r} cannot have {devices} devices: they are no multiple of {taken}",
            hint="choose sizes whose product divides the number of devices",
            mesh=text,
            devices=devices,
        )
    return devices // taken


def parse_host(text: str) -> HostGroup:
    """Reads `3/8`: host 3, counted from 0, of 8."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if not match:
        raise RequestError(
            f"host {text!r} is not INDEX/COUNT", hint="for example 3/8: host 3, counted from 0, of 8"
        )
    return HostGroup(int(match[1]), int(match[2]))


def split_counts(mesh: Mesh, spec: PartitionSpec, ndim: int) -> tuple[int, ...]:
    """Into how many slabs each dimension is cut.

    Raises:
        RequestError: when the spec names an axis the mesh lacks, or more dimensions than there are.
    """
    sizes = dict(mesh.axes)
    unknown = [name for dim in spec.dims for name in dim if name not in sizes]
    if unknown:
        raise RequestError(
            f"partition spec {spec} names axis {unknown[0]!r}, mesh {mesh} has none of that name",
            hint="name the mesh's axes as the rules do, for example --mesh data=8,model=8",
        )
    if len(spec.dims) > ndim:
        raise RequestError(f"partition spec {spec} has {len(spec.dims)} dimensions, the tensor {ndim}")
    return tuple(prod(sizes[name] for name in spec.axes_of(d)) for d in range(ndim))


def slab_index(mesh: Mesh, spec: PartitionSpec, ndim: int, place: int) -> tuple[int, ...]:
    """Which slab the device at a place holds, counted per dimension."""
    where, sizes = mesh.coordinates(place), dict(mesh.axes)
    index = []
    for d in range(ndim):
        ordinal = 0
        for name in spec.axes_of(d):
            ordinal = ordinal * sizes[name] + where[name]
        index.append(ordinal)
    return tuple(index)


def slab_of(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...], place: int) -> Box:
    """The box of a tensor that the device at a place holds; the spec must divide the shape."""
    counts = split_counts(mesh, spec, len(shape))
    index = slab_index(mesh, spec, len(shape), place)
    slab = tuple(size // count for size, count in zip(shape, counts, strict=True))
    start = tuple(i * s for i, s in zip(index, slab, strict=True))
    return Box(start, tuple(a + s for a, s in zip(start, slab, strict=True)))


def slab_indices(mesh: Mesh, spec: PartitionSpec, ndim: int, places: Iterable[int]) -> set[tuple[int, ...]]:
    """The distinct slabs that the devices at some places hold."""
    return {slab_index(mesh, spec, ndim, place) for place in places}
