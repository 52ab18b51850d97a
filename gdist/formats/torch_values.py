"""What torch's pickles stand for: tensors as views of storages, whose bytes lie elsewhere in the file.

    PERSID  ('storage', HalfStorage, '7', 'cpu', 4096)                    -> StorageValue
    REDUCE  _rebuild_tensor_v2(storage, 1024, (32, 16), (16, 1), ...)      -> TensorValue
    REDUCE  _rebuild_tensor_v3(storage, .., .., .., .., .., float8_e5m2)   -> TensorValue
    REDUCE  _rebuild_parameter(tensor, True, OrderedDict())               -> the tensor
    REDUCE  OrderedDict()                                                 -> a dict

Offsets and strides count elements. Several tensors may be views of one storage: tied weights, slices,
transposes, expanded ones. Objects of classes in `torch_names` that are known to be harmless are kept as
`Opaque`, with what they were given, and searched for tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gdist.core.dtypes import DType
from gdist.core.extent import Extent
from gdist.core.strided import place_strided
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import torch_names
from gdist.formats.pickle_values import (
    MAX_DIMENSION,
    MAX_DIMENSIONS,
    Harmless,
    Impossible,
    Opaque,
    Refused,
    kind_of,
)
from gdist.formats.torch_names import StorageClass, TorchName

MAX_STORAGE_KEY = 64  # characters; torch writes numbers
MAX_PAIRS = 1 << 20  # of all dicts made of lists; a list can be used again and again at no cost in bytes
MAX_ARGUMENTS = 16  # of a call that is understood, and parts of a key: none has more
MAX_ALL_RUNS = 1 << 17  # of all strided tensors of one file together, so that memory is bounded


@dataclass(frozen=True, slots=True)
class StorageValue:
    """A storage, or a part of one: `extent` within it in bytes, `dtype` None where it is untyped."""

    key: str
    dtype: DType | None
    extent: Extent


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A view of a storage; `offset` and `strides` in elements."""

    storage: StorageValue
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchMeaning:
    """The meaning of one torch pickle, for `pickle_machine.Machine`.

    `storages` says, once the pickle has been read, how many bytes each storage it names has; `extents` must
    then be given, where in the file they lie, before the machine's `found` is asked.
    """

    SHARES = True

    def __init__(self) -> None:
        self.storages: dict[str, int] = {}
        self.itemsizes: dict[str, int] = {}  # of the storages' own element types, 1 where untyped
        self.extents: Mapping[str, Extent] = {}
        self._runs = 0
        self._pairs = 0

    def look_up(self, module: str, name: str) -> object:
        """What a name stands for; see `torch_names`."""
        return torch_names.look_up(module, name)

    def persistent(self, identity: object) -> StorageValue:
        """A storage: ('storage', class, key, location, elements), and in old files a view's metadata."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("a persistent id that is no storage")
        _, cls, key, location, size = identity[:5]
        if not isinstance(cls, StorageClass) or type(key) is not str or type(location) is not str:
            raise Refused(f"a storage of {kind_of(cls)}")
        if not key or len(key) > MAX_STORAGE_KEY or "/" in key:
            raise Refused(f"a storage with the key {key[:200]!r}")
        if location == "meta":
            raise Refused("a tensor without elements (meta)")
        itemsize = cls.dtype.itemsize if cls.dtype else 1
        nbytes = _count(size, "a storage's size") * itemsize
        if self.storages.setdefault(key, nbytes) != nbytes:
            raise Impossible(f"storage {key!r} has {self.storages[key]} bytes, and {nbytes}")
        self.itemsizes[key] = itemsize
        within = Extent(0, nbytes)
        if len(identity) == 6 and identity[5] is not None:
            within = _view(identity[5], itemsize, within)
        return StorageValue(key, cls.dtype, within)

    def call(self, function: object, arguments: object) -> object:
        """What a call would give: a tensor, a container, or something opaque."""
        if type(arguments) is not tuple:
            raise Refused(f"a call with {kind_of(arguments)} as its arguments")
        if isinstance(function, Harmless):
            return Opaque(function.name, arguments)
        if len(arguments) > MAX_ARGUMENTS:
            raise Refused(f"a call of {_kind(function)} with {len(arguments)} arguments")
        match function, arguments:
            case TorchName.ORDERED_DICT, ():
                return {}
            case TorchName.ORDERED_DICT, (list() as pairs,):
                self._pairs += len(pairs)
                if self._pairs > MAX_PAIRS:
                    raise Refused(f"more than {MAX_PAIRS} pairs of keys and values")
                return _dict_of(pairs)
            case TorchName.DEFAULT_DICT, () | (Harmless() | TorchName.ORDERED_DICT,):
                return {}
            case TorchName.SIZE, (tuple() as lengths,):
                return lengths
            case TorchName.TENSOR_V1, (storage, offset, shape, strides):
                return _tensor(storage, None, offset, shape, strides)
            case TorchName.TENSOR_V2, (storage, offset, shape, strides, _, _, *metadata):
                _check_metadata(metadata)
                return _tensor(storage, None, offset, shape, strides)
            case TorchName.TENSOR_V3, (storage, offset, shape, strides, _, _, DType() as dtype, *metadata):
                _check_metadata(metadata)
                return _tensor(storage, dtype, offset, shape, strides)
            case TorchName.PARAMETER, (TensorValue() as tensor, _, _):
                return tensor
            case TorchName.PARAMETER_WITH_STATE, (TensorValue() as tensor, _, _, _):
                return tensor
            case TorchName.FROM_TYPE, (TorchName() as inner, TorchName.TENSOR_TYPE, tuple() as rest, _) if (
                inner is not TorchName.FROM_TYPE
            ):
                return self.call(inner, rest)
        raise Refused(f"a call of {_kind(function)} with {len(arguments)} arguments it is not known with")

    def new_object(self, cls: object, arguments: object) -> Opaque:
        """An object of a harmless class."""
        if not isinstance(cls, Harmless) or type(arguments) is not tuple:
            raise Refused(f"an object made of {_kind(cls)}")
        return Opaque(cls.name, arguments)

    def build(self, target: object, state: object) -> None:
        """Takes the state of an opaque object, and of a dict the versions that torch's modules note there."""
        if isinstance(target, Opaque):
            target.content.append(state)
        elif (
            type(target) is not dict or type(state) is not dict or len(state) > 1 or "_metadata" not in state
        ):
            raise Refused(f"a state for {_kind(target)}")

    def is_key(self, key: object) -> bool:
        """True for all plain data and classes; texts, whole numbers and classes name a tensor's place."""
        plain = str | int | float | None | Harmless | TorchName | DType
        items = key if type(key) is tuple else (key,)
        return len(items) <= MAX_ARGUMENTS and all(isinstance(item, plain) for item in items)

    def arrays(self, value: object, key: str) -> tuple[FoundArray, ...]:
        """The tensor that a leaf is."""
        if not isinstance(value, TensorValue):
            plain = str | int | float | Extent | DType | Harmless | TorchName | None
            if not isinstance(value, plain):
                raise Refused(f"{_kind(value)} at {key!r}")
            return ()
        storage = value.storage
        whole = self.extents[storage.key]
        extent = storage.extent.shift(whole.start)
        try:
            placed = place_strided(extent, value.offset, value.shape, value.strides, value.dtype.itemsize)
        except (CorruptError, UnsupportedError) as error:
            raise type(error)(f"tensor {key!r}: {error.message}", hint=error.hint, tensor=key) from error
        self._runs += len(placed.runs)
        if self._runs > MAX_ALL_RUNS:
            raise Refused(f"strided tensors of more than {MAX_ALL_RUNS} runs together")
        return (FoundArray(key, placed.extent, value.shape, value.dtype, placed.order, runs=placed.runs),)


def _tensor(
    storage: object, dtype: DType | None, offset: object, shape: object, strides: object
) -> TensorValue:
    """A view of a storage, of its own element type or of the one given."""
    if not isinstance(storage, StorageValue):
        raise Refused(f"a tensor of {_kind(storage)}, not of a storage")
    if (storage.dtype is None) == (dtype is None):
        raise Refused("a tensor with two element types, or none")
    lengths, steps = _lengths(shape, "a tensor's shape"), _lengths(strides, "a tensor's strides")
    made = dtype or storage.dtype
    assert made is not None, f"storage {storage}"
    return TensorValue(storage, made, _count(offset, "a tensor's offset"), lengths, steps)


def _view(metadata: object, itemsize: int, whole: Extent) -> Extent:
    """The part of a storage that (key of the view, offset, elements) is."""
    if type(metadata) is not tuple or len(metadata) != 3 or type(metadata[0]) is not str:
        raise Refused("a storage's view that is not (key, offset, size)")
    offset, size = (_count(value, "a storage's view") * itemsize for value in metadata[1:])
    part = Extent(offset, size)
    if not whole.contains(part):
        raise Impossible(f"a storage's view up to {part.stop} of {whole.length} bytes")
    return part


def _check_metadata(metadata: list[object]) -> None:
    """That a tensor's bytes mean what they say: neither conjugated nor negated when read."""
    match metadata:
        case [] | [None]:
            return
        case [dict(flags)] if len(flags) <= MAX_ARGUMENTS and not any(flags.values()):
            return
    raise Refused("a tensor with its conjugate or negative bit set; save a resolved copy")


def _dict_of(pairs: list[object]) -> dict[object, object]:
    """An OrderedDict made of a list of pairs, as Python 2 writes it."""
    made: dict[object, object] = {}
    for pair in pairs:
        match pair:
            case [str() | int() as key, value] if key not in made:
                made[key] = value
            case _:
                raise Refused("an OrderedDict of something that is no list of pairs")
    return made


def _lengths(value: object, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > MAX_DIMENSIONS:
        raise Refused(f"{what} that is {_kind(value)}, or of over {MAX_DIMENSIONS} dimensions")
    return tuple(_count(item, what) for item in value)


def _count(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_DIMENSION:
        raise Impossible(f"{what} with {value if isinstance(value, int) else _kind(value)}")
    return value


def _kind(value: object) -> str:
    match value:
        case TorchName():
            return value.value
        case StorageClass() | Harmless():
            return value.name
        case TensorValue():
            return "a tensor"
        case StorageValue():
            return "a bare storage"
        case DType():
            return f"torch.{value.name}"
    return kind_of(value)
