"""The logical device array, and which box of a tensor each device and process holds.

The meaning of `Mesh` and `PartitionSpec` is exactly that of `jax.sharding.NamedSharding`: devices fill the
mesh in C order; a dimension split by several axes is split by their product, the first named slowest; an
axis that no dimension names replicates. `tests/core/test_mesh.py` compares with JAX on random cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from gdist.core.box import Box
from gdist.errors import RequestError

MOST_DEVICES = 2**20  # a hundred times the largest cluster; what is more is a slip of the keyboard
DEFAULT_AXES = {1: ("model",), 2: ("data", "model"), 3: ("replica", "data", "model")}


@dataclass(frozen=True, slots=True)
class Mesh:
    """Named axes and their sizes, slowest first; `Mesh(())` is one device."""

    axes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if len(set(names)) != len(names):
            raise RequestError(f"mesh {self} names an axis twice", mesh=str(self))
        for name, size in self.axes:
            if size < 1:
                raise RequestError(f"mesh axis {name!r} has size {size}", axis=name, size=size)

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
    def splitting(self) -> tuple[tuple[str, int], ...]:
        """The axes that split anything: meshes with the same ones cut every tensor alike."""
        return tuple((name, size) for name, size in self.axes if size > 1)

    def coordinates(self, device: int) -> dict[str, int]:
        """Place of the `device`-th device (in C order) on each axis."""
        place: dict[str, int] = {}
        for name, size in reversed(self.axes):
            device, place[name] = divmod(device, size)
        return place

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes) or "1"


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

    Each holds an equal, consecutive run of the mesh's devices.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise RequestError(
                f"host index {self.index} is not in 0 to {self.count - 1}",
                hint="give INDEX/COUNT with INDEX counted from 0, for example 3/8",
            )

    def devices(self, mesh: Mesh) -> range:
        """The devices of this host.

        Raises:
            RequestError: when the hosts do not divide the mesh evenly.
        """
        if mesh.devices % self.count:
            raise RequestError(
                f"{self.count} hosts do not divide the {mesh.devices} devices of mesh {mesh} evenly",
                hint=f"use a number of hosts that divides {mesh.devices}",
            )
        each = mesh.devices // self.count
        return range(self.index * each, (self.index + 1) * each)


def parse_mesh(text: str) -> Mesh:
    """Reads `8x8`, `8`, or `data=8,model=8`.

    Unnamed axes are `model`, `data,model` or `replica,data,model` by their number.

    Raises:
        RequestError: for anything else.
    """
    hint = "write 8x8, or name the axes: data=8,model=8"
    mesh = _read_mesh(text.strip(), hint)
    if mesh.devices > MOST_DEVICES:
        raise RequestError(f"mesh {mesh} has {mesh.devices} devices, more than {MOST_DEVICES}", hint=hint)
    return mesh


def _read_mesh(text: str, hint: str) -> Mesh:
    if re.fullmatch(r"\d{1,6}(x\d{1,6})*", text):
        sizes = tuple(int(size) for size in text.split("x"))
        if len(sizes) not in DEFAULT_AXES:
            raise RequestError(f"mesh {text!r} has {len(sizes)} axes without names", hint=hint)
        return Mesh(tuple(zip(DEFAULT_AXES[len(sizes)], sizes, strict=True)))
    axes = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*[=:]\s*(\d{1,6})\s*", item)
        if not match:
            raise RequestError(f"mesh {text!r} is not a mesh", hint=hint, mesh=text)
        axes.append((match[1], int(match[2])))
    return Mesh(tuple(axes))


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


def slab_index(mesh: Mesh, spec: PartitionSpec, ndim: int, device: int) -> tuple[int, ...]:
    """Which slab a device holds, counted per dimension."""
    place, sizes = mesh.coordinates(device), dict(mesh.axes)
    index = []
    for d in range(ndim):
        ordinal = 0
        for name in spec.axes_of(d):
            ordinal = ordinal * sizes[name] + place[name]
        index.append(ordinal)
    return tuple(index)


def slab_of(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...], device: int) -> Box:
    """The box of a tensor that a device holds; the spec must divide the shape."""
    counts = split_counts(mesh, spec, len(shape))
    index = slab_index(mesh, spec, len(shape), device)
    slab = tuple(size // count for size, count in zip(shape, counts, strict=True))
    start = tuple(i * s for i, s in zip(index, slab, strict=True))
    return Box(start, tuple(a + s for a, s in zip(start, slab, strict=True)))


def slab_indices(mesh: Mesh, spec: PartitionSpec, ndim: int, devices: Iterable[int]) -> set[tuple[int, ...]]:
    """The distinct slabs that some devices hold."""
    return {slab_index(mesh, spec, ndim, device) for device in devices}


def misfit(mesh: Mesh, spec: PartitionSpec, name: str, shape: tuple[int, ...]) -> str | None:
    """Why a spec cannot split a tensor evenly, as one sentence, or None when it can.

    Raises:
        RequestError: when the spec names an axis the mesh lacks.
    """
    if len(spec.dims) > len(shape):
        return f"partition spec {spec} has {len(spec.dims)} dimensions, {name!r} has {len(shape)}"
    for dimension, (size, count) in enumerate(zip(shape, split_counts(mesh, spec, len(shape)), strict=True)):
        if size % count:
            axes = ", ".join(spec.axes_of(dimension))
            return f"mesh axis {axes!r} ({count}) does not divide dimension {dimension} ({size}) of {name!r}"
    return None
