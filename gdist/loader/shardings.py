"""Which sharding each tensor gets: from the store's manifest or from rules, on a mesh of JAX devices."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.fits import fit
from gdist.core.mesh import Mesh, PartitionSpec, parse_mesh
from gdist.core.rules import kept_specs, resolve_specs
from gdist.core.store_manifest import StoreManifest, StoreTensor
from gdist.core.tensor import Part, StoredTensor, TensorSpec
from gdist.errors import RequestError
from gdist.loader.devices import laid_out
from gdist.reading import RulesLike as RulesLike
from gdist.reading import read_rules

MeshLike = jax.sharding.Mesh | Mesh | str | None


def device_mesh(mesh: MeshLike, manifest: StoreManifest) -> jax.sharding.Mesh:
    """A JAX mesh: the one given, or made of the first devices, process after process.

    A -1 in a text is worked out from the number of devices. Without a mesh it is the store's own, its device
    order included, where there are as many devices, else one device with the store's axes.

    Raises:
        RequestError: when there are fewer devices than the mesh asked for.
    """
    if isinstance(mesh, jax.sharding.Mesh):
        return mesh
    devices = jax.devices()
    if mesh is None:
        wanted = manifest.mesh
        if wanted.devices > len(devices):
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
    mesh: jax.sharding.Mesh, tensors: Iterable[StoreTensor], rules: RulesLike
) -> dict[str, NamedSharding]:
    """The sharding of each tensor: by rules, or, without any, as the store was cut, on this mesh.

    Raises:
        RequestError: naming every tensor without a rule, and every one that the mesh does not divide.
    """
    named = Mesh(tuple((str(name), int(size)) for name, size in mesh.shape.items()))
    tensors = tuple(tensors)
    table = read_rules(rules)
    specs = resolve_specs(named, table, map(_stored, tensors)) if table else _specs_of_store(named, tensors)
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


def _stored(tensor: StoreTensor) -> StoredTensor:
    """The tensor in the terms that rules are written in; where its bytes lie is of no matter there."""
    spec = TensorSpec(tensor.name, tensor.shape, tensor.dtype)
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


def local_boxes(sharding: Sharding, shape: tuple[int, ...]) -> set[Box]:
    """The distinct boxes that this process's devices hold.

    Raises:
        ValueError: JAX's own, when the sharding does not fit the shape.
    """
    indices = sharding.addressable_devices_indices_map(shape).values()
    return {box_of(index, shape) for index in indices}
