"""Where a store's bytes lie in the payload that they came from, so that the way can be gone back.

    payload   | header | tensor a | padding | tensor b | end | README |
    store       rest     shards     rest      shards     rest  assets

What is in no tensor and no asset, the *rest*, is small: headers, opcodes, padding. A fetch keeps it, with the
.torrent and this map, below `source/`: then the store holds every byte of the torrent, and its pieces can be
rebuilt, checked and served. See `docs/reference/store-format.md`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gdist.core.box import Box
from gdist.core.extent import Extent, coalesce
from gdist.core.payload import Payload
from gdist.core.tensor import Order, Part
from gdist.errors import CorruptError, RequestError

FORMAT = 1
DIRECTORY = "source"
TORRENT_NAME = "source.torrent"
MAP_NAME = "parts.json"
REST_NAME = "rest.bin"
MANY = 256  # boxes of which all pairs are not looked at any more


@dataclass(frozen=True, slots=True)
class SourceMap:
    """The parts of each tensor in the payload, and, by path, what is kept of each file beside them.

    Extents of `rest` count from the start of their file; their bytes lie in `rest.bin` one after the other,
    in the order of this mapping. A file that is not in it is an asset, or was left out, or nothing was kept.
    """

    tensors: Mapping[str, tuple[Part, ...]]
    rest: Mapping[str, tuple[Extent, ...]]

    @property
    def rest_nbytes(self) -> int:
        """Bytes of `rest.bin`."""
        return sum(extent.length for extents in self.rest.values() for extent in extents)

    def check(self, payload: Payload, shapes: Mapping[str, tuple[tuple[int, ...], int]], where: str) -> None:
        """That it fits the torrent's files and the store's tensors, given by shape and bytes of an element.

        Raises:
            CorruptError: when it cannot be true.
        """
        files = {file.path: file for file in payload.files}
        stored: list[Extent] = []
        rests: list[Extent] = []
        fault = ""
        for name, parts in self.tensors.items():
            shape, itemsize = shapes.get(name, ((), 0))
            whole = Box.whole(shape)
            fits = all(
                part.box.ndim == len(shape)
                and whole.contains(part.box)
                and part.extent.length == part.box.size * itemsize
                for part in parts
            )
            nbytes = sum(part.extent.length for part in parts)
            if name not in shapes or not fits or nbytes != whole.size * itemsize:
                fault = f"its parts of {name!r} are not of that tensor"
            elif _overlap([part.box for part in parts if part.box.size]):
                fault = f"its parts of {name!r} overlap"
            stored += [part.extent for part in parts if part.extent.length]
        for path, extents in self.rest.items():
            if path not in files or any(extent.stop > files[path].length for extent in extents):
                fault = f"its rest of {path!r} is of no file of the torrent"
                continue
            rests += [extent.shift(files[path].offset) for extent in extents if extent.length]
        # Tied tensors share bytes; the rest is what is in none.
        taken = sorted([*coalesce(stored), *rests])
        if any(one.stop > other.start for one, other in itertools.pairwise(taken)):
            fault = "its extents overlap"
        if taken and taken[-1].stop > payload.length:
            fault = "its extents leave the payload"
        if fault:
            raise CorruptError(
                f"{where} cannot be true: {fault}", hint="delete the store, and fetch it again"
            )


def _overlap(boxes: Sequence[Box]) -> bool:
    """True when two boxes share an element; with very many boxes, when two start at the same one."""
    if len(boxes) > MANY:
        return len({box.start for box in boxes}) < len(boxes)
    return any(one.intersect(other) for one, other in itertools.combinations(boxes, 2))


def source_map_to_json(source: SourceMap) -> bytes:
    """The JSON document; one line a tensor and a file, the same for the same map."""

    def rows(of: Mapping[str, Any]) -> str:  # Any: rows of either kind
        return ",\n  ".join(json.dumps([name, row], ensure_ascii=False) for name, row in of.items())

    tensors = {
        name: [
            [p.extent.start, p.extent.length, list(p.box.start), list(p.box.stop), p.order.value]
            for p in parts
        ]
        for name, parts in source.tensors.items()
    }
    rest = {path: [[e.start, e.length] for e in extents] for path, extents in source.rest.items()}
    head = f'{{\n "gdist_source": {FORMAT},\n "rest": [\n  {rows(rest)}\n ],'
    return f'{head}\n "tensors": [\n  {rows(tensors)}\n ]\n}}\n'.encode()


def parse_source_map(data: bytes, where: str) -> SourceMap:
    """The map in a JSON document; `where` names it in messages.

    Raises:
        CorruptError: when it is damaged.
        RequestError: when a newer gdist wrote it.
    """
    damaged = CorruptError(f"{where} is damaged", hint="delete the store, and fetch it again")
    try:
        body: Any = json.loads(data)  # Any: checked field by field, all faults become one error
        if body["gdist_source"] != FORMAT:
            raise RequestError(
                f"{where} is of format {body['gdist_source']}, this gdist reads {FORMAT}", hint="update gdist"
            )
        tensors = {
            str(name): tuple(
                Part(
                    Extent(int(start), int(length)),
                    Box(tuple(map(int, corner)), tuple(map(int, end))),
                    Order(order),
                )
                for start, length, corner, end, order in parts
            )
            for name, parts in body["tensors"]
        }
        rest = {
            str(path): tuple(Extent(int(start), int(length)) for start, length in extents)
            for path, extents in body["rest"]
        }
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise damaged from error
    return SourceMap(tensors, rest)
