"""The devices of JAX as gdist counts them, and the order in which a mesh has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import jax

from gdist.core.device_order import format_device_order
from gdist.core.mesh import Mesh
from gdist.errors import RequestError


def numbered(devices: Iterable[jax.Device]) -> list[jax.Device]:
    """Devices by number: those of the first process first, each process's as `jax.devices()` has them.

    On CPU and GPU that is the order of `jax.devices()` itself; on a TPU slice its processes may alternate.
    """
    return sorted(devices, key=lambda device: device.process_index)


def device_order(mesh: jax.sharding.Mesh) -> str:
    """The order of a mesh's devices, as `gdist fetch --device-order` takes it: `0-3,8-11,4-7,12-15`.

    A store fetched with it holds in every host's part what `NamedSharding` on this mesh gives its process.

    Raises:
        RequestError: when the mesh has more devices of one process than of another: no store is so cut.
            When it is no mesh, or has no devices.
    """
    if not isinstance(mesh, jax.sharding.Mesh):
        raise RequestError(
            f"mesh {mesh!r} is of type {type(mesh).__name__}", hint="give a jax.sharding.Mesh of devices"
        )
    there = set(mesh.devices.flat)
    counts = Counter(device.process_index for device in there)
    if len(set(counts.values())) > 1:
        shares = ", ".join(f"{count} of process {process}" for process, count in sorted(counts.items()))
        raise RequestError(
            f"the mesh has unequal numbers of devices of its processes: {shares}",
            hint="give every process of the mesh as many of its devices",
        )
    numbers = {device: number for number, device in enumerate(numbered(_in_order(there)))}
    return format_device_order(numbers[device] for device in mesh.devices.flat)


def _in_order(devices: set[jax.Device]) -> list[jax.Device]:
    platform = next(iter(devices)).platform
    return [device for device in jax.devices(platform) if device in devices]


def laid_out(mesh: Mesh, devices: Iterable[jax.Device]) -> list[jax.Device]:
    """The first devices by number, as many as the mesh has, in the order of its places."""
    chosen = numbered(devices)[: mesh.devices]
    return [chosen[number] for number in mesh.order] if mesh.order else chosen
