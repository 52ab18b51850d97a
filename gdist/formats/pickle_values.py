"""What the symbolic machine of `pickle_machine` puts on its stack instead of objects, and who may make what.

A name is looked up in a closed table of exact names; a call is recognised by its function and the shape of
its arguments, and what it would make is written down here. Nothing is imported, called or made:

    REDUCE  numpy.dtype('i1', False, True)               -> DTypeValue   + BUILD its byte order
    REDUCE  _reconstruct(numpy.ndarray, (0,), b'b')      -> ArrayValue   + BUILD shape, dtype, order, payload
    REDUCE  _frombuffer(payload, dtype, shape, 'C')      -> ArrayValue
    REDUCE  scalar(dtype, payload)                       -> ArrayValue
    REDUCE  _reconstruct_array(_reconstruct, ...)        -> ArrayValue   (jax)
    NEWOBJ  __main__.QuantizedWeight8bit()               -> PairValue    + BUILD {'weight': .., 'scales': ..}

A value is built once: what was checked cannot change under whoever holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import prod
from types import MappingProxyType

from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray, Order

SHARES = False  # no pickler writes one payload for two arrays

MAX_DIMENSIONS = 32
MAX_DIMENSION = (1 << 63) - 1


class Refused(Exception):
    """Something that is not allowed; the machine adds where."""


class Impossible(Exception):
    """Something no pickler writes; the machine adds where."""


class Name(Enum):
    """The allowed names, by what they mean."""

    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    RECONSTRUCT = "_reconstruct"
    SCALAR = "scalar"
    FROMBUFFER = "_frombuffer"
    JAX_ARRAY = "_reconstruct_array"
    QUANTISED = "QuantizedWeight8bit"


def _allowed_names() -> Mapping[tuple[str, str], Name | DType]:
    names: dict[tuple[str, str], Name | DType] = {
        ("numpy", "ndarray"): Name.NDARRAY,
        ("numpy", "dtype"): Name.DTYPE,
        ("jax._src.array", "_reconstruct_array"): Name.JAX_ARRAY,
        ("__main__", "QuantizedWeight8bit"): Name.QUANTISED,  # the Grok-1 release was written from a script
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        names[core + ".multiarray", "_reconstruct"] = Name.RECONSTRUCT
        names[core + ".multiarray", "scalar"] = Name.SCALAR
        names[core + ".numeric", "_frombuffer"] = Name.FROMBUFFER
    for dtype in BY_NAME.values():
        if dtype.needs_ml_dtypes:
            names["ml_dtypes", dtype.name] = dtype
    return MappingProxyType(names)


ALLOWED_NAMES = _allowed_names()  # exact (module, name); never a prefix, never a list of what is forbidden

# What NumPy writes as a dtype's name: kind and bytes. Object, void, text and date types are not in the table.
_CODES = MappingProxyType({f"{d.name[0]}{d.itemsize}": d for d in BY_NAME.values() if not d.needs_ml_dtypes})


class DTypeValue:
    """An element type; usable once `built`, when its byte order is known to be little-endian."""

    __slots__ = ("built", "dtype")

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.built = False


class ArrayValue:
    """An array; `extent` of its payload in the file is None until it is built."""

    __slots__ = ("dtype", "extent", "order", "shape")

    def __init__(self) -> None:
        self.extent: Extent | None = None
        self.shape: tuple[int, ...] = ()
        self.dtype = BY_NAME["uint8"]
        self.order = Order.C


class PairValue:
    """A quantised weight and its scales; both None until built."""

    __slots__ = ("scales", "weight")

    def __init__(self) -> None:
        self.weight: ArrayValue | None = None
        self.scales: ArrayValue | None = None


@dataclass(frozen=True, slots=True)
class Harmless:
    """A class or function whose results are passed over; `name` with its module."""

    name: str


class Opaque:
    """An object of a class that is known to be harmless and is not read: what it was given.

    `content` are its arguments, its state and what was appended to it; `items` what was set by key.
    """

    __slots__ = ("content", "items", "name")

    def __init__(self, name: str, arguments: tuple[object, ...]) -> None:
        self.name = name
        self.content: list[object] = [arguments]
        self.items: dict[object, object] = {}


_KINDS = {
    DTypeValue: "an element type",
    ArrayValue: "an array",
    PairValue: "a quantised pair",
    Extent: "bytes",
    type(None): "None",
}


def kind_of(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Name):
        return value.value
    if isinstance(value, DType):
        return f"ml_dtypes.{value.name}"
    if isinstance(value, Opaque | Harmless):
        return value.name
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def look_up(module: str, name: str) -> Name | DType:
    """What an allowed name stands for.

    Raises:
        Refused: for any other.
    """
    if (module, name) not in ALLOWED_NAMES:
        raise Refused(f"the name {module[:200]}.{name[:200]}")
    return ALLOWED_NAMES[module, name]


def persistent(identity: object) -> object:
    """Raises `Refused`: the opcode is not in the dialect either."""
    raise Refused(f"the persistent id {kind_of(identity)}")


def is_key(key: object) -> bool:
    """True for what names a part of a path."""
    return type(key) in (str, int)


def arrays(value: object, key: str) -> tuple[FoundArray, ...]:
    """The arrays of a leaf of the tree, an array or a pair; none for plain data.

    Raises:
        Refused: for one that has no elements yet, and for anything else.
    """
    if isinstance(value, PairValue):
        if value.weight is None or value.scales is None:
            raise Refused(f"a quantised pair without its arrays at {key!r}")
        return _found(value.weight, key, "weight"), _found(value.scales, key, "scales")
    if isinstance(value, ArrayValue):
        return (_found(value, key),)
    if not (value is None or isinstance(value, str | int | Extent)):
        raise Refused(f"{kind_of(value)} at {key!r}")
    return ()


def _found(array: ArrayValue, key: str, role: str = "") -> FoundArray:
    if array.extent is None:
        raise Refused(f"an array without elements at {key!r}")
    return FoundArray(key, array.extent, array.shape, array.dtype, array.order, role)


def call(function: object, arguments: object) -> DTypeValue | ArrayValue:
    """What a call would give.

    Raises:
        Refused, Impossible: when it is not one of the calls above.
    """
    if type(arguments) is not tuple:
        raise Refused(f"a call with {kind_of(arguments)} as its arguments")
    count = len(arguments)
    if function is Name.DTYPE and count == 3:
        return _dtype(*arguments)
    if function is Name.RECONSTRUCT:
        _check_reconstruct(arguments)
        return ArrayValue()
    if function is Name.SCALAR and count == 2:
        return _array(dtype=arguments[0], shape=(), order=Order.C, payload=arguments[1])
    if function is Name.FROMBUFFER and count == 4 and arguments[3] in ("C", "F"):
        payload, dtype, shape, order = arguments
        return _array(dtype=dtype, shape=shape, order=Order(order), payload=payload)
    if function is Name.JAX_ARRAY and count == 4:
        return _jax_array(*arguments)
    raise Refused(f"a call of {kind_of(function)} with {count} arguments")


def new_object(cls: object, arguments: object) -> PairValue:
    """What making an object of a class would give.

    Raises:
        Refused: for any class but the quantised pair, which is made without arguments.
    """
    if cls is not Name.QUANTISED or arguments != ():
        raise Refused(f"an object made of {kind_of(cls)}")
    return PairValue()


def build(target: object, state: object) -> None:
    """Gives a value its state, once.

    Raises:
        Refused, Impossible: when the value has its state, takes none, or not this one.
    """
    if isinstance(target, DTypeValue) and not target.built:
        _build_dtype(target, state)
    elif isinstance(target, ArrayValue) and target.extent is None:
        _build_array(target, state)
    elif isinstance(target, PairValue) and target.weight is None:
        _build_pair(target, state)
    else:
        raise Refused(f"a state for {kind_of(target)}")


def _dtype(name: object, align: object, copy: object) -> DTypeValue:
    if (align, copy) != (False, True):  # some releases of NumPy write 0 and 1, which compare equal
        raise Refused("numpy.dtype with other arguments than a name, False, True")
    if isinstance(name, DType):
        return DTypeValue(name)
    if type(name) is not str:
        raise Refused(f"an element type that is {kind_of(name)}")
    if name not in _CODES:
        raise Refused(f"the element type {name[:40]!r}")
    return DTypeValue(_CODES[name])


def _build_dtype(target: DTypeValue, state: object) -> None:
    # (version, byte order, subarray, names, fields, itemsize, alignment, flags); the flags of one type differ
    # between NumPy 1 and 2, so they are not looked at
    if type(state) is not tuple or len(state) != 8 or state[0] != 3 or state[2:5] != (None, None, None):
        raise Refused("an element type with fields, a subarray, metadata or an unknown version")
    order, itemsize = state[1], target.dtype.itemsize
    if order == ">":
        raise Refused(f"big-endian {target.dtype.name}")
    if order != "<" and not (order == "|" and itemsize == 1):
        raise Refused(f"a byte order of {target.dtype.name} that is neither '<' nor '>'")
    if state[5] not in (-1, itemsize):
        raise Impossible(f"{target.dtype.name} with another item size than {itemsize}")
    target.built = True


def _check_reconstruct(arguments: object) -> None:
    # the last argument is b'b'; one byte is all that is checked of it, since the state replaces the array
    match arguments:
        case (Name.NDARRAY, (0,), Extent(length=1)):
            return
    raise Refused("_reconstruct with other arguments than numpy.ndarray, (0,), b'b'")


def _build_array(target: ArrayValue, state: object) -> None:
    if type(state) is not tuple or len(state) != 5 or state[0] != 1 or type(state[3]) is not bool:
        raise Refused("the state of an array that is not (1, shape, type, order, bytes)")
    made = _array(dtype=state[2], shape=state[1], order=Order.F if state[3] else Order.C, payload=state[4])
    target.extent, target.shape, target.dtype, target.order = made.extent, made.shape, made.dtype, made.order


def _array(*, dtype: object, shape: object, order: Order, payload: object) -> ArrayValue:
    if not isinstance(dtype, DTypeValue) or not dtype.built:
        raise Refused(f"an array whose element type is {kind_of(dtype)} without a byte order")
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise Refused(f"an array whose shape is {kind_of(shape)}, or over {MAX_DIMENSIONS} dimensions")
    if not all(type(length) is int and 0 <= length <= MAX_DIMENSION for length in shape):
        raise Impossible("a shape with something that is no length")
    if not isinstance(payload, Extent):
        raise Refused(f"an array whose elements are {kind_of(payload)}, not bytes")
    expected = prod(shape) * dtype.dtype.itemsize
    if payload.length != expected:
        what = f"{dtype.dtype.name} of shape {list(shape)}"
        raise Impossible(f"{what} takes {expected} bytes, its payload has {payload.length}")
    array = ArrayValue()
    array.extent, array.shape, array.dtype, array.order = payload, shape, dtype.dtype, order
    return array


def _jax_array(function: object, arguments: object, state: object, aval: object) -> ArrayValue:
    if function is not Name.RECONSTRUCT:
        raise Refused("a jax array that is not made by NumPy's _reconstruct")
    _check_reconstruct(arguments)
    # weak_type, and named_shape in old releases; neither is about the bytes
    if (
        type(aval) is not dict
        or len(aval) > 2
        or not all(value in (True, False, None, {}) for value in aval.values())
    ):
        raise Refused("a jax array with an unknown abstract value")
    array = ArrayValue()
    _build_array(array, state)
    return array


def _build_pair(target: PairValue, state: object) -> None:
    if type(state) is not dict or len(state) != 2 or set(state) != {"weight", "scales"}:
        raise Refused("a QuantizedWeight8bit with other fields than weight and scales")
    weight, scales = state["weight"], state["scales"]
    for half in (weight, scales):
        if not isinstance(half, ArrayValue) or half.extent is None:
            raise Refused(f"a QuantizedWeight8bit that holds {kind_of(half)}")
    target.weight, target.scales = weight, scales
