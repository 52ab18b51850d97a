"""The files of a source manifest: what each holds and where, and the JSON of one entry.

{"path": "ckpt-0/tensor00001_000", "nbytes": 24727, "arrays": [
    {"name": "params.language_model.rms_norm.scale", "shape": [6144], "dtype": "float32", "offset": 146}]}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray, Order, Part

DIGESTS = {"md5": 32, "sha256": 64, "blake3": 64}  # of whole files; hex digits of each

_FILE_REQUIRED = frozenset({"path", "nbytes", "arrays"})
_FILE_FIELDS = _FILE_REQUIRED | {"digests"}
_ARRAY_REQUIRED = frozenset({"name", "shape", "dtype", "offset"})
_ARRAY_FIELDS = _ARRAY_REQUIRED | {"key", "order", "role", "groups", "runs", "encoding", "digest"}


@dataclass(frozen=True, slots=True)
class SourceArray:
    """An array of a file: the tensor's `name` (a pair's common name for its halves) and where it lies.

    `digest` is BLAKE3 of its bytes as they lie in the file (run after run, where it has several), in hex, or
    nothing where it is not known.
    """

    name: str
    array: FoundArray
    digest: str = ""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a release; `path` is relative to the torrent's root, `nbytes` is its length.

    `nbytes` is None, and `known` False, where length and arrays have to be found out. `digests` are of the
    whole file, by the names in `DIGESTS`.
    """

    path: str
    nbytes: int | None
    arrays: tuple[SourceArray, ...]
    known: bool = True
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def whole(self) -> bool:
        """True where nothing of it has to be found out."""
        return self.known and self.nbytes is not None

    @property
    def file_name(self) -> str:
        """The last part of the path, by which it is found: torrents and mirrors differ in what is above."""
        return self.path.rpartition("/")[2]


def parse_file(value: object) -> SourceFile:
    """Reads one entry of a manifest's `files`.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not isinstance(value, dict) or not _FILE_REQUIRED <= value.keys() <= _FILE_FIELDS:
        raise ValueError(f"not an object with {', '.join(sorted(_FILE_REQUIRED))}")
    path, nbytes, listed = value["path"], value["nbytes"], value["arrays"]
    if listed is not None and not isinstance(listed, list):
        raise ValueError("arrays is neither a list nor null")
    if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path:
        raise ValueError(f"path {path!r} is not relative and plain")
    if nbytes is not None and not _count(nbytes):
        raise ValueError(f"nbytes {nbytes!r} is not a number of bytes or null")
    digests = _digests(value.get("digests", {}))
    if listed is None:
        return SourceFile(path, nbytes, (), known=False, digests=digests)
    if nbytes is None and listed:
        raise ValueError("arrays are listed of a file whose nbytes is null")
    arrays = tuple(_array(item) for item in listed)
    if len({(item.array.key, item.array.role) for item in arrays}) != len(arrays):
        raise ValueError("two arrays of one key and role")
    _check_groups(listed, arrays)
    for extent in (item.array.extent for item in arrays):  # tied tensors may share one
        if extent.stop > nbytes:
            raise ValueError(f"array at {extent.start} to {extent.stop} leaves the {nbytes} bytes")
    return SourceFile(path, nbytes, arrays, digests=digests)


def _digests(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not value.keys() <= DIGESTS.keys():
        raise ValueError(f"digests are not by {', '.join(DIGESTS)}")
    for kind, digest in value.items():
        if not is_digest(digest, DIGESTS[kind]):
            raise ValueError(f"{kind} {digest!r} is not {DIGESTS[kind]} lower-case hex digits")
    return tuple(sorted(value.items()))


def is_digest(value: object, digits: int) -> bool:
    """True for a text of so many lower-case hex digits."""
    return isinstance(value, str) and bool(re.fullmatch(rf"[0-9a-f]{{{digits}}}", value))


def _array(value: object) -> SourceArray:
    if not isinstance(value, dict) or not _ARRAY_REQUIRED <= value.keys() <= _ARRAY_FIELDS:
        raise ValueError(f"an array is not an object with {', '.join(sorted(_ARRAY_REQUIRED))}")
    name, shape, offset = value["name"], value["shape"], value["offset"]
    key, role, order = value.get("key", ""), value.get("role", ""), value.get("order", "C")
    if not isinstance(name, str) or not isinstance(key, str) or role not in ("", "weight", "scales"):
        raise ValueError(f"array {name!r} has a name or key that is no text, or a role that is none")
    if not isinstance(value["dtype"], str) or value["dtype"] not in BY_NAME or order not in ("C", "F"):
        raise ValueError(f"array {name!r} has element type {value['dtype']!r}, order {order!r}")
    if not isinstance(shape, list) or not all(map(_count, shape)) or not _count(offset):
        raise ValueError(f"array {name!r} has shape {shape!r} at {offset!r}")
    encoding = value.get("encoding", "")
    if not isinstance(encoding, str):
        raise ValueError(f"array {name!r} has encoding {encoding!r}")
    digest = value.get("digest", "")
    if digest != "" and not is_digest(digest, DIGESTS["blake3"]):
        raise ValueError(f"array {name!r} has digest {digest!r}, not 64 lower-case hex digits")
    dtype = BY_NAME[value["dtype"]]
    runs = _runs(name, value.get("runs", []), tuple(shape), dtype)
    extent = Extent(offset, prod(shape) * dtype.itemsize)
    if runs:
        extent = Extent(offset, max(run.extent.stop for run in runs) - offset)
        if min(run.extent.start for run in runs) != offset:
            raise ValueError(f"array {name!r} does not start at {offset} with its runs")
    found = FoundArray(key, extent, tuple(shape), dtype, Order(order), role, runs, encoding)
    return SourceArray(name, found, digest)


def _runs(name: str, value: object, shape: tuple[int, ...], dtype: DType) -> tuple[Part, ...]:
    """The runs of an array that is not one: [[offset, start, stop, order], ...], boxes that tile it."""
    if not isinstance(value, list):
        raise ValueError(f"array {name!r} has runs {value!r}")
    runs = []
    for row in value:
        match row:
            case [int(offset), list(start), list(stop), "C" | "F" as order] if (
                _count(offset) and len(start) == len(stop) == len(shape) and all(map(_count, start + stop))
            ):
                box = Box(tuple(start), tuple(stop))
                if any(b > size for b, size in zip(stop, shape, strict=True)):
                    raise ValueError(f"array {name!r} has the run {row!r} outside it")
                runs.append(Part(Extent(offset, box.size * dtype.itemsize), box, Order(order)))
            case _:
                raise ValueError(f"array {name!r} has the run {row!r}")
    if runs and sum(run.box.size for run in runs) != prod(shape):
        raise ValueError(f"array {name!r} has runs that are not all of it")
    return tuple(runs)


def _check_groups(values: list[dict[str, object]], arrays: tuple[SourceArray, ...]) -> None:
    for value, item in zip(values, arrays, strict=True):
        groups = item.array.shape[-2:-1]
        if "groups" in value and (item.array.role != "scales" or (value["groups"],) != groups):
            raise ValueError(
                f"array {item.name!r} of shape {list(item.array.shape)}: groups {value['groups']!r}"
            )


def file_to_json(file: SourceFile) -> dict[str, object]:
    """The entry that `parse_file` reads; what has its default value is left out."""
    arrays: list[dict[str, object]] = []
    for item in file.arrays:
        array = item.array
        row: dict[str, object] = {"name": item.name, "shape": array.shape, "dtype": array.dtype.name}
        row["offset"] = array.extent.start
        row |= {"key": array.key} if array.key else {}
        row |= {"order": array.order.value} if array.order is not Order.C else {}
        row |= {"role": array.role} if array.role else {}
        row |= {"groups": array.shape[-2]} if array.role == "scales" and len(array.shape) > 1 else {}
        row |= {"encoding": array.encoding} if array.encoding else {}
        if array.runs:
            row["runs"] = [[r.extent.start, r.box.start, r.box.stop, r.order.value] for r in array.runs]
        row |= {"digest": item.digest} if item.digest else {}
        arrays.append(row)
    entry: dict[str, object] = {"path": file.path, "nbytes": file.nbytes}
    entry |= {"digests": dict(file.digests)} if file.digests else {}
    return {**entry, "arrays": arrays if file.known else None}


def describe(array: FoundArray | None) -> str:
    """An array in words, for a message."""
    if array is None:
        return "nothing"
    key = f"{array.key!r} " if array.key else ""
    role = f"{array.role} " if array.role else ""
    order = "" if array.order is Order.C else " in Fortran order"
    return f"{key}{role}{array.dtype.name} {list(array.shape)} at {array.extent.start}{order}"


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
