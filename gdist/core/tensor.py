"""What a checkpoint holds: arrays as a format finds them, and logical tensors as a user names them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import Enum
from math import prod

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.errors import UnsupportedError


class Order(Enum):
    """How the elements of a stored array lie: C (last dimension fastest) or Fortran (first fastest)."""

    C = "C"
    F = "F"


@dataclass(frozen=True, slots=True)
class Part:
    """A stored run of bytes that holds one box of a tensor.

    `extent` counts from the start of the payload (of the file, where a format found it). Fortran order is
    C order with the dimensions reversed.
    """

    extent: Extent
    box: Box
    order: Order = Order.C


@dataclass(frozen=True, slots=True)
class FoundArray:
    """What a format saw in one file.

    `key` names the array inside the file ("" when the file holds just one); `extent` counts from the
    start of the file and its length is exactly that of `shape` in `dtype`. `role` is "weight" or
    "scales" for the two arrays of a quantised pair, whose `key` is then the same, else "".

    An array that is not one run of its elements has `runs` that tile it, their extents from the start of the
    file too; `extent` is then from the first of their bytes to the last. Several arrays may share bytes.
    `encoding` says what the elements stand for where that is not their type ("gguf.q4_0": blocks of bytes).
    With `UNREAD` before its name it is a type that gdist does not store: the elements are all bytes of it.
    """

    key: str
    extent: Extent
    shape: tuple[int, ...]
    dtype: DType
    order: Order = Order.C
    role: str = ""
    runs: tuple[Part, ...] = ()
    encoding: str = ""

    def __post_init__(self) -> None:
        expected = prod(self.shape) * self.dtype.itemsize
        stored = sum(run.extent.length for run in self.runs) if self.runs else self.extent.length
        assert stored == expected, f"{self.key!r}: {stored} bytes, shape needs {expected}"

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its runs; where it is one, that."""
        return self.runs or (Part(self.extent, Box.whole(self.shape), self.order),)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A logical tensor's name, shape and element type; `encoding` as of `FoundArray`."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    encoding: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * self.dtype.itemsize

    def nbytes_of(self, box: Box) -> int:
        """Bytes of one box of it."""
        return box.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Quantisation:
    """That a tensor is one half of a quantised pair.

    `pair` is the common name, `role` "weight" or "scales". The scales have `groups` entries along
    `dimension` (the contracting one): entry g belongs to the g-th of `groups` equal runs of the weight.
    """

    pair: str
    role: str
    groups: int
    dimension: int


@dataclass(frozen=True, slots=True)
class Factor:
    """A stored tensor that goes into a product: each element serves a block of `ratio` elements there.

    An empty `ratio`: element by element.
    """

    tensor: StoredTensor
    ratio: tuple[int, ...] = ()

    def box_for(self, box: Box) -> Box:
        """The elements that a box of the product needs."""
        return box.over(self.ratio) if self.ratio else box

    def served_by(self, box: Box) -> Box:
        """The elements of the product that a box of this tensor serves."""
        return box.times(self.ratio) if self.ratio else box


class Combine(Enum):
    """What a tensor that is made on the way is of its factors, in float32 and rounded once.

    EQUAL is any of them: copies that must be equal byte for byte, or the tensor is refused.
    """

    PRODUCT = "product"
    MEAN = "mean"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A logical tensor and the stored parts that tile it, each byte of it in exactly one part.

    `quantisation` is set on both halves of a quantised pair. A tensor that is made on the way has no parts,
    but `factors`, and `combine` says how its value is made of them (see `gdist.core.convert`).
    """

    spec: TensorSpec
    parts: tuple[Part, ...]
    quantisation: Quantisation | None = None
    factors: tuple[Factor, ...] = ()
    combine: Combine = Combine.PRODUCT

    def __post_init__(self) -> None:
        for factor in self.factors:
            served = factor.served_by(Box.whole(factor.tensor.spec.shape)).shape
            assert not self.parts and served == self.spec.shape, f"{self.spec.name!r}: {factor.ratio}"
        stored = sum(part.extent.length for part in self.parts)
        assert self.factors or stored == self.spec.nbytes, (
            f"{self.spec.name!r}: parts hold {stored} of {self.spec.nbytes} bytes"
        )
        for part in self.parts:
            assert part.extent.length == self.spec.nbytes_of(part.box), f"{self.spec.name!r}: part {part}"

    @property
    def rule_name(self) -> str:
        """The name partition rules are searched in: both halves of a pair go by the pair's name."""
        return self.quantisation.pair if self.quantisation else self.spec.name

    @property
    def sources(self) -> tuple[Factor, ...]:
        """The stored tensors that have its bytes: its factors, or itself alone."""
        return self.factors or (Factor(self),)


def dtype_named(name: str) -> DType:
    """The element type of that name.

    Raises:
        UnsupportedError: when gdist stores no such type.
    """
    try:
        return BY_NAME[name]
    except KeyError:
        raise UnsupportedError(f"element type {name!r} is not one gdist stores", dtype=name) from None


UNREAD = "unread."  # before the name of an element type, in an encoding
MAX_NAME_BYTES = 240  # a directory entry holds 255; what we add to a name must fit too


def check_readable(name: str) -> None:
    """That a tensor's name can be shown, wherever it may lie.

    Raises:
        UnsupportedError: for control characters and surrogates.
    """
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise _refused(name, "holds a control character or a surrogate")


def check_name(name: str) -> None:
    """That a tensor's name is safe to be a path below the store; `/` makes nested groups.

    Raises:
        UnsupportedError: for names that climb, are absolute, empty, too long, hold control characters,
            or collide with the store's own documents.
    """
    check_readable(name)
    if not name:
        raise _refused(name, "is empty")
    if "\\" in name:
        raise _refused(name, "holds a backslash")
    for part in name.split("/"):
        if part in ("", ".", "..") or set(part) == {"."}:
            raise _refused(name, "is not a plain relative path")
        if part.startswith(("__", ".", "gdist.host-")) or part in RESERVED_NAMES:
            raise _refused(name, "collides with a name the store keeps for itself")
        if len(part.encode()) > MAX_NAME_BYTES:
            raise _refused(name, f"has a part longer than {MAX_NAME_BYTES} bytes")


def _refused(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"tensor name {name[:200]!r} {why}", name=name)


RESERVED_NAMES = frozenset(
    {
        "zarr.json",
        "c",
        "gdist.json",
        "assets",
        "payload",
        "source",
        "_METADATA",
        "_CHECKPOINT_METADATA",
        "_sharding",
        "commit_success.txt",
    }
)
