"""Which sharding each tensor gets: from the store's manifest or from rules, on a mesh of JAX devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.fits import fit
from gdist.core.mesh import Mesh, PartitionSpec, parse_mesh
from gdist.core.rules import check_used, kept_specs, resolve_specs
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.tensor import Part, StoredTensor, TensorSpec
from gdist.errors import RequestError
from gdist.loader.devices import laid_out
from gdist.reading import RulesLike as RulesLike
from gdist.reading import no_mesh, read_rules

MeshLike = jax.sharding.Mesh | Mesh | str | None


def device_mesh(mesh: MeshLike, manifest: StoreManifest) -> jax.sharding.Mesh:
    """A JAX mesh: the one given, or made of the first devices, process after process.

    A -1 in a text is worked out from the number of devices. Without a mesh it is the store's own, its device
    order included, where there are as many devices, else, where there is only this process, one device.

    Raises:
        RequestError: when there are fewer devices than the mesh asked for, or it is no mesh.
    """
    if isinstance(mesh, jax.sharding.Mesh):
        return mesh
    if mesh is not None and not isinstance(mesh, Mesh | str):  # an abstract one, too, has no devices
        raise no_mesh(mesh)
    devices = jax.devices()
    if mesh is None:
        wanted = manifest.mesh
        if wanted.devices > len(devices) and jax.process_count() == 1:
            devices = jax.local_devices()[:1]
            wanted = Mesh(tuple((name, 1) for name, _ in wanted.axes))
    else:
        wanted = parse_mesh(mesh, devices=len(devices)) if isinstance(mesh, str) else mesh
    if wanted.devices > len(devices):
        raise RequestError(
            f"mesh {wanted} needs {wanted.devices} devices, there are {len(devices)}",
            hint="give a smaller mesh; on CPU, jax.config.update('jax_num_cpu_devices', n) makes n devices",
        )
    # Not jax.make_mesh: its axes are Explicit, and ordinary `x @ x.T` fails on such arrays (JAX 0.10).
    grid = np.array(laid_out(wanted, devices), dtype=object).reshape(wanted.sizes)
    return jax.sharding.Mesh(grid, wanted.names)


def shardings_on(
    mesh: jax.sharding.Mesh, tensors: Iterable[StoreTensor], rules: RulesLike, *, some: bool
) -> dict[str, NamedSharding]:
    """The sharding of each tensor: by rules, or, without any, as the store was cut, on this mesh.

    `some` says that these are a choice of a model's tensors, so that rules for others are no mistake.

    Raises:
        RequestError: naming every tensor without a rule, and every one that the mesh does not divide, or for
            rules of another model.
    """
    named = _named(mesh)
    tensors = tuple(tensors)
    table = read_rules(rules)
    specs = resolve_specs(named, table, map(_stored, tensors)) if table else _specs_of_store(named, tensors)
    if not some:
        check_used(table, map(_stored, tensors))
    return {
        tensor.name: NamedSharding(mesh, _jax_spec(spec)) for tensor, spec in zip(tensors, specs, strict=True)
    }


def _specs_of_store(mesh: Mesh, tensors: Iterable[StoreTensor]) -> tuple[PartitionSpec, ...]:
    tensors = tuple(tensors)
    stored = tuple(map(_stored, tensors))
    specs = kept_specs(mesh, [(s, t.spec) for s, t in zip(stored, tensors, strict=True)])
    found = fit(mesh, stored, specs)
    if not found.ok:
        raise found.error()
    return specs


def scales_sharding(sharding: Sharding, scales: StoreTensor) -> Sharding:
    """The sharding of the scales that go with a weight of some sharding, so that each device has its groups.

    Raises:
        RequestError: when nothing is known of how the sharding would cut another shape.
    """
    if not isinstance(sharding, NamedSharding):
        if sharding.is_fully_replicated:
            return sharding
        raise RequestError(
            f"scales of {scales.name!r} cannot be cut as {type(sharding).__name__} cuts the weight",
            hint="give the leaf a jax.sharding.NamedSharding",
        )
    mesh = _named(sharding.mesh)
    dims = (None if d is None else (d,) if isinstance(d, str) else d for d in sharding.spec)
    (spec,) = kept_specs(mesh, [(_stored(scales), PartitionSpec(tuple(d or () for d in dims)))])
    return NamedSharding(sharding.mesh, _jax_spec(spec))


def _named(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Mesh:
    return Mesh(tuple((str(name), int(size)) for name, size in mesh.shape.items()))


def _stored(tensor: StoreTensor) -> StoredTensor:
    """The tensor in the terms that rules are written in; where its bytes lie is of no matter there."""
    spec = TensorSpec(tensor.name, tensor.shape, tensor.dtype, tensor.encoding)
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(spec.shape)),), tensor.quantisation)


def _jax_spec(spec: PartitionSpec) -> jax.sharding.PartitionSpec:
    names = (None if not d else d[0] if len(d) == 1 else d for d in spec.dims)
    return jax.sharding.PartitionSpec(*names)  # type: ignore[no-untyped-call]  # JAX leaves it untyped


def box_of(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """What JAX calls the index of a device, as a box."""
    if not index:
        return Box.whole(shape)
    ranges = [piece.indices(size) for piece, size in zip(index, shape, strict=True)]
    return Box(tuple(r[0] for r in ranges), tuple(r[1] for r in ranges))


def index_key(index: tuple[slice, ...] | None) -> tuple[tuple[int | None, int | None], ...]:
    """What JAX calls the index of a device, as a key: slices have none before Python 3.12."""
    return tuple((piece.start, piece.stop) for piece in index or ())


@lru_cache(1024)  # many tensors share shape and sharding
def boxes_by_index(
    sharding: Sharding, shape: tuple[int, ...]
) -> Mapping[tuple[tuple[int | None, int | None], ...], Box]:
    """The boxes that this process's devices hold, by the keys of their indexes."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    return {index_key(index): box_of(index, shape) for index in indices}


def local_boxes(sharding: Sharding, shape: tuple[int, ...]) -> set[Box]:
    """The distinct boxes that this process's devices hold.

    Raises:
        ValueError: JAX's own, when the sharding does not fit the shape.
    """
    return set(devices_by_box(sharding, shape, local=True))


@lru_cache(1024)
def devices_by_box(
    sharding: Sharding, shape: tuple[int, ...], *, local: bool
) -> Mapping[Box, tuple[jax.Device, ...]]:
    """Every box of a sharding, or every one that this process holds, and the devices that hold it.

    Raises:
        ValueError: JAX's own, when the sharding does not fit the shape.
    """
    indices = sharding.addressable_devices_indices_map if local else sharding.devices_indices_map
    found: dict[Box, list[jax.Device]] = {}
    for device, index in indices(shape).items():
        found.setdefault(box_of(index, shape), []).append(device)
    return {box: tuple(devices) for box, devices in found.items()}


def is_abstract(sharding: Sharding) -> bool:
    """True for a sharding on an abstract mesh, as `jax.eval_shape` gives it: one without devices."""
    return isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, jax.sharding.AbstractMesh)


def devices_of(sharding: Sharding) -> tuple[jax.Device, ...]:
    """All devices of a sharding, in the order of its mesh where it has one."""
    if isinstance(sharding, NamedSharding):
        return tuple(sharding.mesh.devices.flat)
    devices: Iterable[jax.Device] = sharding.device_set
    return tuple(sorted(devices, key=lambda device: device.id))


def local_device(sharding: Sharding) -> jax.Device:
    """A device of this process, of the sharding's where it has one here: devices of a kind are alike."""
    mine = [device for device in devices_of(sharding) if device.process_index == jax.process_index()]
    return (mine or jax.local_devices())[0]


def is_on_device(sharding: Sharding) -> bool:
    """True when it means the devices' own memory, not the host's."""
    if sharding.memory_kind is None:
        return True
    return bool(sharding.memory_kind == local_device(sharding).default_memory().kind)


def on_device(sharding: Sharding) -> Sharding:
    """The same cut, in the devices' own memory."""
    if is_on_device(sharding):
        return sharding
    return sharding.with_memory_kind(local_device(sharding).default_memory().kind)
