"""The closed table of element types gdist stores.

One row a type: gdist's own name is NumPy's or ml_dtypes' name, which is also TensorStore's and JAX's.
`fill` is the poison a lenient Zarr reader sees where a shard is missing (NaN, or the lowest integer):
damage must show, and must never look like a zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: `name` in NumPy, JAX and Zarr; `itemsize` in bytes; `safetensors` its name there."""

    name: str
    itemsize: int
    safetensors: str | None
    fill: bool | int | str | tuple[str, str]

    @property
    def needs_ml_dtypes(self) -> bool:
        """True for types NumPy alone does not know."""
        return self.name.startswith(("bfloat16", "float8", "int4", "uint4", "int2", "uint2", "float4"))


_ROWS = (
    DType("bool", 1, "BOOL", True),
    DType("int8", 1, "I8", -(2**7)),
    DType("int16", 2, "I16", -(2**15)),
    DType("int32", 4, "I32", -(2**31)),
    DType("int64", 8, "I64", -(2**63)),
    DType("uint8", 1, "U8", 2**8 - 1),
    DType("uint16", 2, "U16", 2**16 - 1),
    DType("uint32", 4, "U32", 2**32 - 1),
    DType("uint64", 8, "U64", 2**64 - 1),
    DType("float16", 2, "F16", "NaN"),
    DType("bfloat16", 2, "BF16", "NaN"),
    DType("float32", 4, "F32", "NaN"),
    DType("float64", 8, "F64", "NaN"),
    DType("complex64", 8, "C64", ("NaN", "NaN")),
    DType("complex128", 16, None, ("NaN", "NaN")),
    DType("float8_e4m3fn", 1, "F8_E4M3", "NaN"),
    DType("float8_e4m3fnuz", 1, "F8_E4M3FNUZ", "NaN"),
    DType("float8_e4m3b11fnuz", 1, None, "NaN"),
    DType("float8_e5m2", 1, "F8_E5M2", "NaN"),
    DType("float8_e5m2fnuz", 1, "F8_E5M2FNUZ", "NaN"),
    DType("float8_e8m0fnu", 1, "F8_E8M0", "NaN"),
    DType("int4", 1, None, -8),
)
BY_NAME = {row.name: row for row in _ROWS}
BY_SAFETENSORS = {row.safetensors: row for row in _ROWS if row.safetensors}
