"""bfloat16, fp8 and int4 for zarr-python, under TensorStore's names and in TensorStore's bytes.

zarr-python knows NumPy's own types only. It finds more through the entry points of group
`zarr.data_type`; gdist's `pyproject.toml` names the classes below there, so zarr reads these types
wherever gdist is installed, and nobody imports this module by hand.

zarr before 3.4.1 collects that group but never loads it. For its sake importing this module registers the
types too, and `Buffer`, zarr's own class, stands in the group `zarr.buffer`, which is loaded before a
group's documents are read: `zarr.open(STORE)` works. Opening one array by its own path as the very first
thing, `zarr.open(STORE + "/NAME")`, has no such moment, and there needs `import gdist.zarr_dtypes`.

A fill value is a number, "NaN", "Infinity", "-Infinity", or the element's bits as "0x7fc0" (Zarr v3
specification, fill values of floats; TensorStore writes the same). int4 takes the low four
bits of one byte an element, as TensorStore stores it; readers ignore the high four.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, overload

import ml_dtypes
import numpy as np
from zarr.buffer.cpu import Buffer as Buffer
from zarr.core.dtype.common import DTypeConfig_V2, HasEndianness, HasItemSize  # no public home up to zarr 3.4

# The exception that zarr's registry waits for; its public home moved in zarr 3.4, this name did not.
from zarr.core.dtype.registry import DataTypeValidationError  # type: ignore[attr-defined]  # not re-exported
from zarr.dtype import ZDType, data_type_registry

# Any: the scalar types of ml_dtypes and their NumPy descriptors have no common static type.
_NumpyDType = np.dtype[Any]
_NAMES = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True, kw_only=True)
class _Element(ZDType[_NumpyDType, Any], HasItemSize):
    """One type of ml_dtypes; a subclass names it."""

    dtype_cls: ClassVar[type[_NumpyDType]]
    _native: ClassVar[_NumpyDType]

    @property
    def item_size(self) -> int:
        """Bytes of one element."""
        return self._native.itemsize

    @classmethod
    def from_native_dtype(cls, dtype: object) -> Self:
        """The data type that wraps this NumPy dtype.

        Raises:
            DataTypeValidationError: when it is another type.
        """
        if type(dtype) is not cls.dtype_cls:
            raise DataTypeValidationError(f"NumPy type {dtype} is not {cls._zarr_v3_name}")
        return cls()

    def to_native_dtype(self) -> _NumpyDType:
        """The NumPy dtype that ml_dtypes registers."""
        return self._native

    @classmethod
    def _from_json_v2(cls, data: object) -> Self:
        if data != cls._v2():
            raise DataTypeValidationError(f"data type {data!r} is not {cls._zarr_v3_name}")
        return cls()

    @classmethod
    def _v2(cls) -> DTypeConfig_V2[str, None]:
        return {"name": cls._zarr_v3_name, "object_codec_id": None}

    @classmethod
    def _from_json_v3(cls, data: object) -> Self:
        if data != cls._zarr_v3_name:
            raise DataTypeValidationError(f"data type {data!r} is not {cls._zarr_v3_name}")
        return cls()

    @overload
    def to_json(self, zarr_format: Literal[2]) -> DTypeConfig_V2[str, None]: ...
    @overload
    def to_json(self, zarr_format: Literal[3]) -> str: ...
    def to_json(self, zarr_format: Literal[2, 3]) -> str | DTypeConfig_V2[str, None]:
        """The type's name in a document.

        Raises:
            ValueError: for big-endian elements in Zarr v2, where TensorStore's names mean little-endian ones.
        """
        if zarr_format == 3:
            return self._zarr_v3_name
        if self.to_native_dtype().byteorder == ">":
            raise ValueError(f"big-endian {self._zarr_v3_name} has no name in Zarr v2")
        return self._v2()

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.generic, self._native.type))

    def cast_scalar(self, data: object) -> Any:
        """The number as an element of this type.

        Raises:
            TypeError: when it is no number.
        """
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is no {self._zarr_v3_name}")
        return self._native.type(data)

    def default_scalar(self) -> Any:
        """Zero."""
        return self._native.type(0)


class _Float(_Element):
    """A floating-point type."""

    def from_json_scalar(self, data: object, *, zarr_format: int) -> Any:
        """An element from a number, one of the three names, or its bits in hexadecimal.

        Raises:
            TypeError: for anything else, and for hexadecimal that has more bits than the type.
        """
        match data:
            case bool():
                pass
            case int() | float():
                return self._native.type(data)
            case str() if data in _NAMES:
                return self._native.type(float(data))
            case str() if data.startswith("0x"):
                return self._of_bits(int(data, 16))
        raise TypeError(f"{data!r} is no fill value of {self._zarr_v3_name}")

    def to_json_scalar(self, data: object, *, zarr_format: int) -> float | str:
        """The element as JSON; a NaN other than the usual one keeps its bits."""
        element = self.cast_scalar(data)
        value = float(element)
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        if not math.isnan(value):
            return value
        bits = self._native.type(element).tobytes()
        if bits == self._native.type(math.nan).tobytes():
            return "NaN"
        return f"0x{bits[::-1].hex()}"

    def _of_bits(self, bits: int) -> Any:
        if bits >> 8 * self.item_size:
            raise TypeError(f"{bits:#x} has more bits than {self._zarr_v3_name}")
        native = self._native.newbyteorder("<")
        return np.frombuffer(bits.to_bytes(self.item_size, "little"), native)[0]


@dataclass(frozen=True, kw_only=True)
class BFloat16(_Float, HasEndianness):
    """bfloat16; the only one of several bytes, so the only one with a byte order."""

    _zarr_v3_name = "bfloat16"
    _native = np.dtype(ml_dtypes.bfloat16)
    dtype_cls = type(_native)

    @classmethod
    def from_native_dtype(cls, dtype: object) -> Self:
        """As the other types, keeping the byte order."""
        super().from_native_dtype(dtype)
        assert isinstance(dtype, np.dtype)
        return cls(endianness="big" if dtype.byteorder == ">" else "little")

    def to_native_dtype(self) -> _NumpyDType:
        """The NumPy dtype, native where the byte order is."""
        dtype: _NumpyDType = self._native.newbyteorder(">" if self.endianness == "big" else "<")
        return dtype


class Float8E4M3FN(_Float):
    """float8_e4m3fn."""

    _zarr_v3_name = "float8_e4m3fn"
    _native = np.dtype(ml_dtypes.float8_e4m3fn)
    dtype_cls = type(_native)


class Float8E4M3FNUZ(_Float):
    """float8_e4m3fnuz."""

    _zarr_v3_name = "float8_e4m3fnuz"
    _native = np.dtype(ml_dtypes.float8_e4m3fnuz)
    dtype_cls = type(_native)


class Float8E4M3B11FNUZ(_Float):
    """float8_e4m3b11fnuz."""

    _zarr_v3_name = "float8_e4m3b11fnuz"
    _native = np.dtype(ml_dtypes.float8_e4m3b11fnuz)
    dtype_cls = type(_native)


class Float8E5M2(_Float):
    """float8_e5m2."""

    _zarr_v3_name = "float8_e5m2"
    _native = np.dtype(ml_dtypes.float8_e5m2)
    dtype_cls = type(_native)


class Float8E5M2FNUZ(_Float):
    """float8_e5m2fnuz."""

    _zarr_v3_name = "float8_e5m2fnuz"
    _native = np.dtype(ml_dtypes.float8_e5m2fnuz)
    dtype_cls = type(_native)


class Float8E8M0FNU(_Float):
    """float8_e8m0fnu: powers of two alone, with no sign, no zero and no infinity."""

    _zarr_v3_name = "float8_e8m0fnu"
    _native = np.dtype(ml_dtypes.float8_e8m0fnu)
    dtype_cls = type(_native)


class Int4(_Element):
    """int4, one byte an element."""

    _zarr_v3_name = "int4"
    _native = np.dtype(ml_dtypes.int4)
    dtype_cls = type(_native)

    def from_json_scalar(self, data: object, *, zarr_format: int) -> Any:
        """An element from an integer.

        Raises:
            TypeError: for anything else, and outside -8 to 7.
        """
        if isinstance(data, bool) or not isinstance(data, int) or not -8 <= data <= 7:
            raise TypeError(f"{data!r} is no fill value of int4")
        return self._native.type(data)

    def to_json_scalar(self, data: object, *, zarr_format: int) -> int:
        """The element as a JSON integer."""
        return int(self.cast_scalar(data))


_ALL = (
    BFloat16,
    Float8E4M3FN,
    Float8E4M3FNUZ,
    Float8E4M3B11FNUZ,
    Float8E5M2,
    Float8E5M2FNUZ,
    Float8E8M0FNU,
    Int4,
)
for _element in _ALL:
    data_type_registry.register(_element._zarr_v3_name, _element)
