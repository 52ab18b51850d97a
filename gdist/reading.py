"""What people write, as values: meshes, device orders, hosts and rules.

Options of the command line and keyword arguments of the library are read here, once and alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from gdist.core.device_order import is_device_order, parse_device_order
from gdist.core.mesh import HostGroup, Mesh, parse_host, parse_mesh
from gdist.core.rules import Rules, parse_rules
from gdist.errors import RequestError, translate
from gdist.rule_files import named_rules, read_rules_file

MeshLike = Mesh | str | None
RulesLike = Rules | Mapping[str, object] | str | os.PathLike[str] | None
HostLike = HostGroup | str | None
OrderLike = Iterable[int] | str | os.PathLike[str] | None


def read_mesh(
    value: MeshLike,
    *,
    axes: Iterable[str] | str | None = None,
    devices: int | None = None,
    device_order: OrderLike = None,
    rules: Rules | None = None,
) -> Mesh | None:
    """A mesh, from its text too; None where none is given.

    `axes` name sizes without names; else the axes that the rules list do, where they are as many. `devices`
    is how many there are in all: it stands for a -1, and is checked. `device_order` says which device is
    where: numbers, their text (`0-3,8-11`), the axes in another order, or a file with one of these.

    Raises:
        RequestError: when it is no mesh, of another number of devices, or its axes or order do not fit.
    """
    if value is not None and not isinstance(value, Mesh | str):
        raise no_mesh(value)
    mesh = value
    names = tuple(axes.replace(",", " ").split()) if isinstance(axes, str) else tuple(axes or ())
    if isinstance(mesh, str):
        sizes = 0 if set("=:") & set(mesh) else mesh.count("x") + 1
        if not names and rules and len(rules.axes) == sizes:
            names = rules.axes
        mesh = parse_mesh(mesh, names or None, devices)
    elif names:
        raise RequestError(
            "axes are named for a mesh that is not given by sizes", hint="for example --mesh 8x8"
        )
    if devices is not None and mesh is not None and devices != mesh.devices:
        raise RequestError(
            f"mesh {mesh} has {mesh.devices} device{'s' * (mesh.devices > 1)}, not {devices}",
            hint="choose sizes whose product is the number of devices; one size may be -1: --mesh -1x8",
        )
    if device_order is None:
        return mesh
    if mesh is None:
        raise RequestError("a device order is given without a mesh", hint="for example --mesh 8x8")
    return Mesh(mesh.axes, _read_order(device_order, mesh))


def no_mesh(value: object) -> RequestError:
    """That a value is none of the ways to give a mesh; types are checked by few."""
    return RequestError(
        f"mesh {value!r} is of type {type(value).__name__}",
        hint="give its sizes as a text, like '8', '8x8' or 'data=8,model=8'",
    )


def _read_order(value: Iterable[int] | str | os.PathLike[str], mesh: Mesh) -> tuple[int, ...]:
    if not isinstance(value, str | os.PathLike):
        return tuple(map(int, value))  # NumPy's integers too
    if isinstance(value, str) and is_device_order(value, mesh):
        return parse_device_order(value, mesh)
    where = os.fspath(value)
    try:
        return parse_device_order(Path(where).read_text(encoding="utf-8"), mesh)
    except FileNotFoundError as error:
        raise RequestError(
            f"device order {where!r} is neither numbers, nor the mesh's axes, nor a file",
            hint=f"for example 0,1,3,2 or {','.join(reversed(mesh.names))}",
        ) from error
    except OSError as error:
        raise translate(error, f"reading the device order {where!r}") from error
    except ValueError as error:
        raise RequestError(f"the device order {where!r} is no text of numbers") from error


def all_devices(devices: int | None, each: int | None, hosts: int) -> int | None:
    """How many devices all hosts have together, if anyone said so: `devices`, or `each` on every host.

    Raises:
        RequestError: when both are given and differ.
    """
    if each is None:
        return devices
    if devices is not None and devices != each * hosts:
        raise RequestError(
            f"{hosts} hosts of {each} devices have {each * hosts}, not {devices}",
            hint="give --devices, or --devices-per-host with --host I/N",
        )
    return each * hosts


def read_host(value: HostLike) -> HostGroup | None:
    """A host among all, from its text too.

    Raises:
        RequestError: when it is none.
    """
    if value is None or isinstance(value, HostGroup):
        return value
    if isinstance(value, str):
        return parse_host(value)
    raise RequestError(
        f"host {value!r} is of type {type(value).__name__}",
        hint="give a text, like '3/8': host 3, counted from 0, of 8",
    )


def read_rules(value: RulesLike) -> Rules | None:
    """Rules: by their name, those of a YAML or JSON file, or its content.

    Raises:
        RequestError: when there is no such name or file, or it does not hold rules.
    """
    if value is None or isinstance(value, Rules):
        return value
    if isinstance(value, str | os.PathLike):
        return (named_rules(value) if isinstance(value, str) else None) or read_rules_file(value)
    return parse_rules(value)
