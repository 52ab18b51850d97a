"""The text of a device order: which device is at each place of a mesh, in C order.

    0,1,3,2         numbers, as `gdist.device_order` prints them for a mesh of JAX
    0-3,8-11,4-7    the same with runs; 3-0 counts down
    model,data      the mesh's axes, slowest first: devices are dealt out along them

The last form is for a transposed device array: on the mesh `data=2,model=4` neighbouring devices are
neighbours along `model`; in the order `model,data` they are neighbours along `data`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gdist.core.mesh import MOST_DEVICES, Mesh
from gdist.errors import RequestError

_NUMBERS = re.compile(r"\s*(\d{1,7})(?:\s*-\s*(\d{1,7}))?\s*")
SHORT = 3  # a run of fewer numbers is as short when each is named


def is_device_order(text: str, mesh: Mesh) -> bool:
    """True for a text of numbers or of the mesh's axes; anything else may be the name of a file."""
    return bool(re.fullmatch(r"[\d\s,-]+", text)) or set(_items(text)) == set(mesh.names)


def parse_device_order(text: str, mesh: Mesh) -> tuple[int, ...]:
    """The number of the device at each place; brackets around the numbers and line breaks do no harm.

    Raises:
        RequestError: for anything else.
    """
    items = _items(text.strip().strip("[]"))
    if set(items) == set(mesh.names):
        if len(items) > len(mesh.names):
            raise RequestError(f"device order {text!r} names an axis twice")
        return _dealt(items, mesh)
    order: list[int] = []
    for item in items:
        match = _NUMBERS.fullmatch(item)
        if not match:
            raise RequestError(
                f"device order {text[:200]!r} has {item[:200]!r}, which is no number, run or axis",
                hint=f"for example 0,1,3,2 or 0-3,8-11,4-7, or the axes in another order: "
                f"{','.join(reversed(mesh.names))}",
            )
        first, last = int(match[1]), int(match[2] or match[1])
        step = 1 if first <= last else -1
        if len(order) + abs(last - first) >= MOST_DEVICES:
            raise RequestError(f"device order {text[:200]!r} has more than {MOST_DEVICES} numbers")
        order += range(first, last + step, step)
    return tuple(order)


def format_device_order(order: Iterable[int]) -> str:
    """The shortest text that `parse_device_order` reads as these numbers, without axes."""
    runs: list[list[int]] = []
    for number in order:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [[f"{run[0]}-{run[-1]}"] if len(run) >= SHORT else map(str, run) for run in runs]
    return ",".join(text for part in texts for text in part)


def _items(text: str) -> Sequence[str]:
    return [item for item in re.split(r"\s*[,\s]\s*", re.sub(r"\s*-\s*", "-", text.strip())) if item]


def _dealt(axes: Sequence[str], mesh: Mesh) -> tuple[int, ...]:
    """Devices in C order of these axes, as the mesh has them in C order of its own."""
    sizes, order = dict(mesh.axes), []
    for place in range(mesh.devices):
        where, number = mesh.coordinates(place), 0
        for axis in axes:
            number = number * sizes[axis] + where[axis]
        order.append(number)
    return tuple(order)
