"""Writes the pickles that Python's pickler makes of arrays at protocol 4, without holding their payloads.

The layout is that of `pickle.dumps(array, 4)` and of a dataclass of two arrays, byte for byte, in the
spelling of NumPy 1 or 2; the payload itself is only a length, for the caller to fill in, stream, or leave
as a hole. So the files of a release can be laid out at their real sizes on any disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gdist.core.dtypes import DType

FRAME_BYTES = 1 << 16  # the pickler ends a frame there, and leaves payloads of that length outside


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array to be pickled, without its elements; C-ordered."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        """Bytes of its payload."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """A file: `chunks` of opcodes with a payload between each two; where those start; the length of all."""

    chunks: tuple[bytes, ...]
    starts: tuple[int, ...]
    nbytes: int


def layout_array(array: ArraySpec, *, numpy1: bool = False) -> Layout:
    """The pickle of one array."""
    writer = _Writer(numpy1)
    writer.array(array)
    return writer.finish()


def layout_pair(weight: ArraySpec, scales: ArraySpec, *, numpy1: bool = False) -> Layout:
    """The pickle of `__main__.QuantizedWeight8bit(weight, scales)`, a dataclass."""
    writer = _Writer(numpy1)
    writer.name("__main__", "QuantizedWeight8bit")
    writer.op(b")\x81\x94}\x94(")  # NEWOBJ without arguments, then the dict of its fields
    writer.text("weight")
    writer.array(weight)
    writer.text("scales")
    writer.array(scales)
    writer.op(b"ub")
    return writer.finish()


class _Writer:
    """A pickler of protocol 4 that knows three kinds of things; the memo maps each to its number."""

    def __init__(self, numpy1: bool) -> None:
        self._core = "numpy.core" if numpy1 else "numpy._core"
        self._memo: dict[object, int] = {}
        self._memoised = 0
        self._done: list[bytes] = []  # finished opcodes before each payload
        self._open = bytearray(b"\x80\x04")  # since the last payload, finished frames only
        self._frame: list[bytes | int] = []  # of the frame being written: opcodes, and lengths of payloads
        self._lengths: list[int] = []

    def op(self, opcodes: bytes, memoises: int | None = None) -> None:
        """Writes opcodes into the frame; every MEMOIZE among them must be counted here."""
        self._frame.append(opcodes)
        self._memoised += opcodes.count(b"\x94") if memoises is None else memoises

    def text(self, text: str) -> None:
        """A string, or a reference to where it was written before."""
        self._boundary()
        if not self._again(text):
            self._memo[text] = self._memoised
            self.op(b"\x8c" + len(text).to_bytes(1, "little") + text.encode() + b"\x94", 1)

    def name(self, module: str, name: str) -> None:
        """A function or class, by its name."""
        self._boundary()
        if not self._again((module, name)):
            if module == "ml_dtypes":
                self._memo.pop(module, None)  # each of its types has a string object of its own for it
            self.text(module)
            self.text(name)
            self._memo[module, name] = self._memoised
            self.op(b"\x93\x94")

    def array(self, array: ArraySpec) -> None:
        """`_reconstruct(ndarray, (0,), b'b')`, then its state (1, shape, dtype, False, payload)."""
        self.name(f"{self._core}.multiarray", "_reconstruct")
        self.name("numpy", "ndarray")
        self._boundary()
        self.op(b"K\x00\x85\x94")
        self._boundary()
        if not self._again(b"b"):
            self._memo[b"b"] = self._memoised
            self.op(b"C\x01b\x94", 1)
        self.op(b"\x87\x94R\x94")
        self._boundary()
        self.op(b"(K\x01")
        self._shape(array.shape)
        self._dtype(array.dtype)
        self.op(b"\x89")
        self._payload(array.nbytes)
        self.op(b"\x94t\x94b")

    def finish(self) -> Layout:
        """Ends the pickle."""
        self.op(b".")
        self._close_frame()
        self._done.append(bytes(self._open))
        starts, position = [], 0
        for chunk, length in zip(self._done, self._lengths, strict=False):
            position += len(chunk)
            starts.append(position)
            position += length
        return Layout(tuple(self._done), tuple(starts), position + len(self._done[-1]))

    def _shape(self, shape: tuple[int, ...]) -> None:
        self._boundary()
        if not shape:
            self.op(b")")
            return
        numbers = [_integer(length) for length in shape]
        if len(shape) > 3:
            self.op(b"(" + b"".join(numbers), 0)
            self.op(b"t\x94")
        else:
            self.op(b"".join(numbers), 0)
            self.op(bytes([0x84 + len(shape)]) + b"\x94")

    def _dtype(self, dtype: DType) -> None:
        self._boundary()
        if self._again(dtype):
            return
        self.name("numpy", "dtype")
        if dtype.needs_ml_dtypes:
            self.name("ml_dtypes", dtype.name)
        else:
            self.text(f"{dtype.name[0]}{dtype.itemsize}")
        self.op(b"\x89\x88\x87\x94R")
        self._memo[dtype] = self._memoised
        self.op(b"\x94(K\x03")
        self.text("|" if dtype.itemsize == 1 and not dtype.needs_ml_dtypes else "<")
        self.op(b"NNN")
        if dtype.needs_ml_dtypes:
            flags = 80 if self._core == "numpy.core" else 64  # NumPy 1 marks the type as needing its API
            self.op(bytes([ord("K"), dtype.itemsize, ord("K"), dtype.itemsize, ord("K"), flags]), 0)
        else:
            self.op(b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")
        self.op(b"t\x94b")

    def _payload(self, length: int) -> None:
        self._boundary()
        if length < 1 << 8:
            head = b"C" + length.to_bytes(1, "little")
        elif length < 1 << 32:
            head = b"B" + length.to_bytes(4, "little")
        else:
            head = b"\x8e" + length.to_bytes(8, "little")
        self._lengths.append(length)
        if length < FRAME_BYTES:
            self._frame += [head, length]
        else:
            self._close_frame()
            self._done.append(bytes(self._open + head))
            self._open.clear()

    def _again(self, what: object) -> bool:
        """Refers to what was memoised; False when it was not."""
        if what not in self._memo:
            return False
        self.op(bytes([ord("h"), self._memo[what]]), 0)
        return True

    def _boundary(self) -> None:
        """Where the pickler looks whether a frame is long enough: before each object."""
        if _length_of(self._frame) >= FRAME_BYTES:
            self._close_frame()

    def _close_frame(self) -> None:
        length = _length_of(self._frame)
        if length >= 4:  # shorter ones are written bare
            self._open += b"\x95" + length.to_bytes(8, "little")
        for item in self._frame:
            if isinstance(item, bytes):
                self._open += item
            else:
                self._done.append(bytes(self._open))
                self._open.clear()
        self._frame.clear()


def _length_of(frame: Sequence[bytes | int]) -> int:
    return sum(item if isinstance(item, int) else len(item) for item in frame)


def _integer(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + value.to_bytes(1, "little")
    if value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    body = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(body)]) + body
