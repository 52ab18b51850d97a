"""Plain Zarr 2 and 3 arrays as they are found: what their documents say, checked, and where their chunks lie.

    ROOT/layers/0/w/.zarray   or   ROOT/layers/0/w/zarr.json      the document: shape, type, chunks, codecs
    ROOT/layers/0/w/1.0       or   ROOT/layers/0/w/c/1/0          the chunk at that place of the grid

A document is parsed here, and what is passed on is made anew of what was understood. Nothing in it can name
another place: `storage_transformers` and everything else that could are refused (Zarr v3 specification,
extension points; Zarr v2 specification).
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from operator import add, mul
from typing import Any, NoReturn

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.profile import check_names, listed
from gdist.core.tensor import Order, Part
from gdist.errors import CorruptError, UnsupportedError

ARRAY_V2, GROUP_V2, NODE_V3 = ".zarray", ".zgroup", "zarr.json"
MISSING_HINT = (
    "Zarr leaves out chunks of nothing but the fill value, and they cannot be told from lost ones: write the "
    "arrays anew, with write_empty_chunks"
)
DOCUMENTS = frozenset({ARRAY_V2, GROUP_V2, ".zattrs", ".zmetadata", NODE_V3})
MAX_NODES = 1 << 18  # arrays and groups; the largest model known to us has some 90,000 tensors
MAX_DOCUMENT_BYTES = 256 * 2**20  # of all together; a root's consolidated metadata repeats the others
MAX_DIMENSIONS = 32
MAX_LENGTH = (1 << 63) - 1

_COMPRESSORS_V2 = frozenset({"zlib", "gzip", "bz2", "zstd", "blosc"})
_CODECS_V3 = frozenset({"bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed"})
_FIELDS_V3 = frozenset(
    {
        "zarr_format",
        "node_type",
        "shape",
        "data_type",
        "chunk_grid",
        "chunk_key_encoding",
        "fill_value",
        "codecs",
        "attributes",
        "dimension_names",
        "storage_transformers",
    }
)
_KINDS_V2 = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """An array: the directory it lies in, below the root, and what its document says.

    `chunk` is what one file holds; `inner` how many parts of it can be read by themselves. `metadata` is a
    document of the same meaning, made anew, but that what is missing is zeros: `zeros` is true where the
    document says so too, or nothing. `raw` is the order of the elements where a file is nothing but them,
    little-endian.
    """

    path: str
    version: int
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: DType
    metadata: Mapping[str, object]
    prefix: str
    separator: str
    inner: int = 1
    raw: Order | None = None
    zeros: bool = True

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks per dimension."""
        return tuple(-(-size // length) for size, length in zip(self.shape, self.chunk, strict=True))

    @property
    def chunks(self) -> int:
        """How many there are."""
        return prod(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk that is not encoded."""
        return prod(self.chunk) * self.dtype.itemsize

    def index_of(self, number: int) -> tuple[int, ...]:
        """The place of the chunk that comes after so many others in C order."""
        index = []
        for count in reversed(self.counts):
            number, place = divmod(number, count)
            index.append(place)
        return tuple(reversed(index))

    def file_of(self, index: Sequence[int]) -> str:
        """The path of a chunk below the root."""
        parts = [self.prefix, *map(str, index)] if self.prefix else list(map(str, index))
        key = self.separator.join(parts) or "0"
        return f"{self.path}/{key}" if self.path else key


def document_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Of the files of a directory, those that may describe an array; by their names."""
    return tuple(path for path in paths if path.rpartition("/")[2] in (ARRAY_V2, NODE_V3))


def check_documents(lengths: Mapping[str, int]) -> None:
    """That documents of these lengths may be read: all of them are held in memory together.

    Raises:
        UnsupportedError: when they are more than `MAX_NODES`, or longer than `MAX_DOCUMENT_BYTES`.
    """
    if len(lengths) > MAX_NODES:
        raise UnsupportedError(f"there are {len(lengths)} documents of Zarr, more than {MAX_NODES}")
    if sum(lengths.values()) > MAX_DOCUMENT_BYTES:
        largest = sorted(lengths, key=lambda path: -lengths[path])[:3]
        named = ", ".join(f"{path} ({lengths[path]} bytes)" for path in largest)
        raise UnsupportedError(
            f"documents of Zarr have {sum(lengths.values())} bytes, more than {MAX_DOCUMENT_BYTES}: {named}"
        )


def parse_hierarchy(documents: Mapping[str, bytes]) -> tuple[ZarrArray, ...]:
    """The arrays that documents, by their paths, describe; groups are passed over.

    Raises:
        UnsupportedError, CorruptError: naming up to `LISTED` documents that are not read, and why.
    """
    arrays: dict[str, ZarrArray] = {}
    faults: list[UnsupportedError | CorruptError] = []
    for path, data in documents.items():
        directory, _, name = path.rpartition("/")
        try:
            array = _parse_v2(data, directory) if name == ARRAY_V2 else _parse_v3(data, directory)
            if array is not None and directory in arrays:
                raise CorruptError("there is a .zarray and a zarr.json for one array")
        except (UnsupportedError, CorruptError) as error:
            faults.append(type(error)(f"{path}: {error.message}", hint=error.hint))
            continue
        if array is not None:
            arrays[directory] = array
    if faults:
        raise type(faults[0])(listed(fault.message for fault in faults), hint=faults[0].hint)
    for one, other in pairwise(sorted(f"{path}/" if path else "" for path in arrays)):
        if other.startswith(one):
            raise CorruptError(f"array {other[:-1]!r} lies in array {one[:-1]!r}")
    return tuple(arrays.values())


def loose_paths(paths: Iterable[str], arrays: Iterable[ZarrArray]) -> tuple[str, ...]:
    """The files of a hierarchy that are in no array and no document of Zarr's own."""
    owners = {array.path for array in arrays}
    return tuple(
        path for path in paths if path.rpartition("/")[2] not in DOCUMENTS and owner_of(path, owners) is None
    )


def owner_of(path: str, owners: Container[str]) -> str | None:
    """Of some directories, none in another, the one that a file lies in."""
    parts = path.split("/")
    return next((o for n in range(len(parts)) if (o := "/".join(parts[:n])) in owners), None)


def named(
    arrays: Iterable[ZarrArray], root_name: str, below: Mapping[str, str] | None = None
) -> dict[str, ZarrArray]:
    """The arrays by name: the directories down to each, joined by `.`; a root that is one has its own name.

    `below` gives, by the paths of the arrays, those that names are made of.

    Raises:
        UnsupportedError, CorruptError: for names that are not allowed, or of two arrays.
    """
    found: dict[str, ZarrArray] = {}
    twice = []
    for array in arrays:
        path = below[array.path] if below else array.path
        name = path.replace("/", ".") or root_name
        if name in found:
            twice.append(f"{name!r} ({found[name].path!r} and {array.path!r})")
        found[name] = array
    if twice:
        raise CorruptError(f"arrays have one name: {listed(twice)}")
    check_names(found)
    return found


def missing_chunks(
    array: ZarrArray, indexes: Iterable[tuple[int, ...]], files: Container[str]
) -> Iterator[str]:
    """Of the chunks at these places, the files that are not there."""
    return (path for index in indexes if (path := array.file_of(index)) not in files)


def parts_of(array: ZarrArray, files: Mapping[str, Extent]) -> tuple[Part, ...] | None:
    """The parts that an array's files are, given where each file lies; None where they are not just parts.

    They are where nothing encodes them, chunks divide the array, and every file has a chunk's length.
    """
    if 0 in array.shape:
        return ()
    if array.raw is None or array.chunks > len(files):
        return None
    if any(size % length for size, length in zip(array.shape, array.chunk, strict=True)):
        return None
    parts = []
    for index in map(array.index_of, range(array.chunks)):
        extent = files.get(array.file_of(index))
        if extent is None or extent.length != array.chunk_nbytes:
            return None
        start = tuple(map(mul, index, array.chunk))
        parts.append(Part(extent, Box(start, tuple(map(add, start, array.chunk))), array.raw))
    return tuple(parts)


def _parse_v2(data: bytes, path: str) -> ZarrArray:
    document = _object(data)
    if document.get("zarr_format") != 2:
        _refuse(f"zarr_format is {document.get('zarr_format')!r}, not 2")
    shape, chunk = _shapes(document.get("shape"), document.get("chunks"))
    dtype, little = _dtype_v2(document.get("dtype"))
    compressor, order = document.get("compressor"), document.get("order", "C")
    separator = document.get("dimension_separator", ".")
    if document.get("filters"):
        _unread(f"it has filters: {str(document['filters'])[:200]}")
    if compressor is not None:
        _check_config(compressor, "id", _COMPRESSORS_V2)
    if order not in ("C", "F") or separator not in (".", "/"):
        _refuse(f"its order is {order!r}, its dimension_separator {separator!r}")
    metadata = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": list(chunk),
        "dtype": document["dtype"],
        "compressor": compressor,
        "fill_value": None,
        "filters": None,
        "order": order if len(shape) > 1 else "C",  # TensorStore 0.1.86 says F of one dimension is not C
        "dimension_separator": separator,
    }
    raw = Order(order) if compressor is None and little else None
    zeros = _are_zeros(document.get("fill_value"))
    return ZarrArray(path, 2, shape, chunk, dtype, metadata, "", separator, raw=raw, zeros=zeros)


def _dtype_v2(value: object) -> tuple[DType, bool]:
    """The element type, and whether its bytes are in little-endian order."""
    if not isinstance(value, str):
        _unread(f"its elements are records: {str(value)[:100]}")
    if value in BY_NAME and value not in ("bool",):
        return BY_NAME[value], True
    kind, digits = _KINDS_V2.get(value[1:2]), value[2:]
    if value[:1] in ("<", ">", "|") and kind and digits.isdigit() and len(digits) < 3:
        name = "bool" if (kind, digits) == ("bool", "1") else f"{kind}{8 * int(digits)}"
        if name in BY_NAME:
            return BY_NAME[name], value[0] != ">" or BY_NAME[name].itemsize == 1
    return _unread(f"its element type {value[:100]!r} is not one gdist stores")


def _parse_v3(data: bytes, path: str) -> ZarrArray | None:
    document = _object(data)
    if document.get("zarr_format") != 3 or document.get("node_type") not in ("array", "group"):
        _refuse("it is no Zarr 3 array or group")
    if document["node_type"] == "group":
        return None
    extra = sorted(key for key in document.keys() - _FIELDS_V3 if not _may_be_ignored(document[key]))
    if document.get("storage_transformers"):
        _unread(f"it has storage_transformers: {str(document['storage_transformers'])[:200]}")
    if extra:
        _unread(f"it has fields that are not known: {listed(map(repr, extra))}")
    grid = _named(document.get("chunk_grid"), "chunk_grid")
    if grid[0] != "regular":
        _unread(f"its chunk grid is {grid[0]!r}, not regular")
    shape, chunk = _shapes(document.get("shape"), grid[1].get("chunk_shape"))
    kind = document.get("data_type")
    if not isinstance(kind, str) or kind not in BY_NAME:
        _unread(f"its element type {str(kind)[:100]!r} is not one gdist stores")
    dtype = BY_NAME[kind]
    prefix, separator = _key_encoding(document.get("chunk_key_encoding", "default"))
    codecs = _codecs(document.get("codecs"))
    zero = {bool: False, int: 0, str: 0.0, tuple: [0.0, 0.0]}[type(dtype.fill)]
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {
            "name": "default" if prefix else "v2",
            "configuration": {"separator": separator},
        },
        "fill_value": zero,
        "codecs": codecs,
    }
    inner, raw = _inner(codecs, chunk), _raw(codecs, len(shape), dtype)
    zeros = _are_zeros(document.get("fill_value"))
    return ZarrArray(path, 3, shape, chunk, dtype, metadata, prefix, separator, inner, raw, zeros)


def _are_zeros(fill: object) -> bool:
    """True of a fill value all of whose bits are zero, or none."""
    if isinstance(fill, list):
        return all(map(_are_zeros, fill))
    return fill is None or repr(fill) in ("0", "0.0", "False")  # -0.0 is another


def _may_be_ignored(value: object) -> bool:
    return isinstance(value, dict) and value.get("must_understand") is False


def _named(value: object, what: str) -> tuple[str, dict[str, Any]]:
    """Name and configuration of an extension."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or not value.keys() <= {"name", "configuration", "must_understand"}:
        _refuse(f"its {what} is no name with a configuration")
    name, configuration = value.get("name"), value.get("configuration", {})
    if not isinstance(name, str) or not isinstance(configuration, dict):
        _refuse(f"its {what} is no name with a configuration")
    return name, configuration


def _key_encoding(value: object) -> tuple[str, str]:
    name, configuration = _named(value, "chunk_key_encoding")
    if name not in ("default", "v2"):
        _unread(f"its chunk key encoding is {name!r}")
    separator = configuration.get("separator", "/" if name == "default" else ".")
    if separator not in (".", "/"):
        _refuse(f"its separator is {separator!r}")
    return "c" if name == "default" else "", separator


def _codecs(value: object, depth: int = 0) -> list[dict[str, object]]:
    """Codecs made anew, each of a kind that reads nothing but its own bytes."""
    if not isinstance(value, list) or not 0 < len(value) <= 16 or depth > 3:
        _refuse("its codecs are no short list")
    codecs: list[dict[str, object]] = []
    for item in value:
        name, configuration = _named(item, "codec")
        if name not in _CODECS_V3:
            _unread(f"its codec {name[:100]!r} is not one gdist reads")
        configuration = dict(configuration)
        if name == "sharding_indexed":
            known = {"chunk_shape", "codecs", "index_codecs", "index_location"}
            if not configuration.keys() <= known or not _lengths(configuration.get("chunk_shape"), 1):
                _refuse("its sharding has no chunk_shape, or fields that are not known")
            for key in ("codecs", "index_codecs"):
                configuration[key] = _codecs(configuration.get(key), depth + 1)
        elif any(not isinstance(v, int | str) and not _lengths(v, 0) for v in configuration.values()):
            _refuse(f"the configuration of its codec {name!r} is not plain")
        codecs.append({"name": name, "configuration": configuration})
    return codecs


def _inner(codecs: Sequence[Mapping[str, Any]], chunk: tuple[int, ...]) -> int:
    """How many inner chunks a file has; of shards in shards, the innermost."""
    sharding = [codec["configuration"] for codec in codecs if codec["name"] == "sharding_indexed"]
    if not sharding:
        return 1
    shape = tuple(sharding[0]["chunk_shape"])
    if len(shape) != len(chunk) or any(whole % part for whole, part in zip(chunk, shape, strict=True)):
        _refuse(f"its inner chunks {list(shape)} do not divide the shards {list(chunk)}")
    count: int = prod(whole // part for whole, part in zip(chunk, shape, strict=True))
    return count * _inner(sharding[0]["codecs"], shape)


def _raw(codecs: Sequence[Mapping[str, Any]], ndim: int, dtype: DType) -> Order | None:
    names = [codec["name"] for codec in codecs]
    if names[-1] != "bytes" or names[:-1] not in ([], ["transpose"]):
        return None
    if codecs[-1]["configuration"].get("endian", "little") != "little" and dtype.itemsize > 1:
        return None
    if len(names) == 1:
        return Order.C
    turned = codecs[0]["configuration"].get("order")
    return Order.F if turned == list(range(ndim))[::-1] else None


def _check_config(value: object, key: str, known: frozenset[str]) -> None:
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        _refuse(f"its compressor is none: {str(value)[:200]}")
    if value[key] not in known:
        _unread(f"its compressor {value[key][:100]!r} is not one gdist reads")
    if any(not isinstance(item, int | str) and item is not None for item in value.values()):
        _refuse(f"the configuration of its compressor {value[key]!r} is not plain")


def _shapes(shape: Any, chunk: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not _lengths(shape, 0) or not _lengths(chunk, 1) or len(shape) != len(chunk):
        _refuse(f"shape {str(shape)[:100]} and chunks {str(chunk)[:100]} are no lengths of equal number")
    if len(shape) > MAX_DIMENSIONS:
        _unread(f"it has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if prod(shape) > MAX_LENGTH or prod(chunk) > MAX_LENGTH:
        _refuse(f"shape {list(shape)} or chunks {list(chunk)} have more than {MAX_LENGTH} elements")
    return tuple(shape), tuple(chunk)


def _lengths(value: Any, least: int) -> bool:  # Any: what JSON gives
    return isinstance(value, list) and all(
        type(item) is int and least <= item <= MAX_LENGTH for item in value
    )


def _object(data: bytes) -> dict[str, Any]:  # Any: checked field by field
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"it is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        _refuse("it is no JSON object")
    return document


def _refuse(why: str) -> NoReturn:
    raise CorruptError(why)


def _unread(why: str) -> NoReturn:
    raise UnsupportedError(why)
