"""Events as JSON lines: one object a line, for programs.

    {"v": 1, "time": 1700000000.123, "host": 0, "event": "tensor_ready", "tensor": "lm_head", "nbytes": 4096}

`v` is the version of this form: fields may be added to it, none is renamed or removed. `time` is seconds
since the epoch, `event` the event's class in snake case, the rest its fields. The last line is `result` or
`error`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum

from gdist.cli.streams import put
from gdist.core.magnet import InfoHash
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.events import Event, Finished

VERSION = 1


class JsonLines:
    """An observer that writes to standard output; `host` marks every line."""

    def __init__(self, host: int = 0):
        self._host = host

    def __call__(self, event: Event) -> None:
        """Writes one event."""
        values = {field.name: getattr(event, field.name) for field in fields(event)}
        if isinstance(event, Finished):
            values["timing"] = dict(event.timing)
        self.write(re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower(), values)

    def write(self, name: str, values: Mapping[str, object]) -> None:
        """Writes a line that is not an event of the package: `result`, `error`."""
        head = {"v": VERSION, "time": round(time.time(), 3), "host": self._host, "event": name}
        put(json.dumps({**head, **{key: plain(value) for key, value in values.items()}}) + "\n")


def plain(value: object) -> object:
    """A value as JSON has it: enums by value, hashes in hex, records as objects."""
    match value:
        case Enum():
            return value.value
        case InfoHash():
            return value.hex
        case PartitionSpec():
            return value.to_json()
        case Mesh():
            return dict(value.axes)
        case HostGroup():
            return value.index
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case tuple() | list():
            return [plain(item) for item in value]
        case None | str() | int() | float():
            return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)
