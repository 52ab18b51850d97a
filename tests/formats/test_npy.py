"""What NumPy saves is found bit for bit, npy and npz; what is no array of numbers is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gdist.core.tensor import Order
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import drive, npy, npz
from gdist.testing.formats import Reader, found_in, refusal_of, value_of

Array = np.ndarray[Any, Any]

TYPES = st.sampled_from(
    [
        *(np.dtype(name) for name in "?bBhHiIqQefdFD"),
        np.dtype(ml_dtypes.bfloat16),
        np.dtype(ml_dtypes.float8_e5m2),
    ]
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype, shape = draw(TYPES), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, dtype).reshape(shape)
    return np.asfortranarray(array) if draw(st.booleans()) else array


def saved(array: Array, version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version, allow_pickle=True)
    return out.getvalue()


def zipped(**named: Array) -> bytes:
    out = io.BytesIO()
    np.savez(out, **named)  # type: ignore[arg-type]  # as anyone calls it
    return out.getvalue()


def made(header: str | bytes, elements: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return npy.MAGIC + version + length + text + elements


@given(arrays(), st.sampled_from([(1, 0), (2, 0), (3, 0)]))
def test_what_numpy_saves_comes_back_bit_for_bit(array: Array, version: tuple[int, int]) -> None:
    data = saved(array, version)
    (found,) = found_in(data, "npy").values()
    assert (found.key, found.shape, found.dtype.name) == ("", array.shape, array.dtype.name)
    assert value_of(data, found).tobytes() == array.tobytes()
    assert len(data) == found.extent.stop


@given(st.dictionaries(st.text("abc/._", min_size=1, max_size=6), arrays(), max_size=4))
@settings(max_examples=50)
def test_what_savez_saves_comes_back_bit_for_bit(named: dict[str, Array]) -> None:
    good = {key: a for key, a in named.items() if all(p not in ("", ".", "..") for p in key.split("/"))}
    if not good:
        return
    data = zipped(**good)
    found = found_in(data, "npz")
    assert found.keys() == good.keys()
    for key, array in good.items():
        assert found[key].dtype.name == array.dtype.name and found[key].shape == array.shape
        assert value_of(data, found[key]).tobytes() == array.tobytes()


def test_only_headers_are_read() -> None:
    data = zipped(a=np.zeros(1 << 18), b=np.ones(1 << 18))
    reader = Reader(data)
    drive(npz.scan(len(data)), reader)
    assert sum(extent.length for extent in reader.asked) < 100_000
    reader = Reader(saved(np.zeros(1 << 20)))
    drive(npy.scan(len(reader.data)), reader)
    assert [extent.length for extent in reader.asked] == [npy.READ_BYTES]


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
        "{'shape':(2,),'fortran_order':False,'descr':'<f4'}\n",
        '{"descr": "<f4", "fortran_order": False, "shape": (2L,)}',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}" + " " * 300 + "\n",
        "{'descr': '<f4', 'fortran_order': True, 'shape': ( 2 , 1, ), }",
    ],
)
def test_headers_of_other_writers(header: str) -> None:
    data = made(header, struct.pack("<2f", 1, 2))
    (found,) = found_in(data, "npy").values()
    assert found.order is Order.C
    assert value_of(data, found).ravel().tolist() == [1, 2]


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(1,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


REFUSED = {
    "object": (saved(np.array([None, {}], object)), UnsupportedError, "Python objects"),
    "structured": (saved(np.zeros(2, [("a", "<f4")])), UnsupportedError, "structured"),
    "structured-not-ascii": (saved(np.zeros(2, [("é", "<f4")])), UnsupportedError, "structured"),
    "big-endian": (saved(np.zeros(2, ">f4")), UnsupportedError, "big-endian"),
    "text": (saved(np.array(["ab"])), UnsupportedError, "'<U2'"),
    "date": (saved(np.array(["2020-01-01"], "M8[D]")), UnsupportedError, "'<M8[D]'"),
    "void": (saved(np.zeros(2, "V3")), UnsupportedError, "'|V3'"),
    "fp8-without-a-name": (saved(np.zeros(2, ml_dtypes.float8_e4m3fn)), UnsupportedError, "does not name"),
    "long-double": (saved(np.zeros(1, np.longdouble)), UnsupportedError, "'<f16'"),
    "code": (made("{'descr': __import__('os').system('x')}"), CorruptError, "header with"),
    "call-in-shape": (made(header(shape="(exit(),)")), CorruptError, "header with"),
    "negative": (made(header(shape="(-1,)"), b"abcd"), CorruptError, "header with"),
    "no-tuple": (made(header(shape="(1)"), b"abcd"), CorruptError, "no tuple"),
    "overflow": (made(header(shape="(4294967296, 4294967296)")), CorruptError, "takes 73786976294838206464"),
    "too-long-a-length": (made(header(shape="(9999999999999999999,)")), CorruptError, "shape"),
    "endless-length": (made(header(shape="(" + "9" * 5000 + ",)")), CorruptError, "other kinds"),
    "many-dimensions": (
        made(header(shape="(" + "1," * 33 + ")"), b"abcd"),
        UnsupportedError,
        "33 dimensions",
    ),
    "twice": (made("{'descr': '<f4', 'descr': '<f4'}"), CorruptError, "twice"),
    "other-key": (made("{'descr': '<f4', 'x': '<f4'}"), CorruptError, "header of descr, x"),
    "no-keys": (made("{}"), CorruptError, "header of nothing"),
    "no-dict": (made("('<f4', False, (1,))"), CorruptError, "no dict"),
    "unclosed": (made("{'descr': '<f4"), CorruptError, "no dict"),
    "wrong-kind": (made(header(descr="True"), b"abcd"), CorruptError, "other kinds"),
    "after-a-value": (made("{'descr': '<f4' 'x', }"), CorruptError, "header with"),
    "deep": (made("{'descr': " + "[" * 3000 + "}"), UnsupportedError, "structured"),
    "short": (saved(np.zeros(5, "<f4"))[:-1], CorruptError, "takes 20 bytes, 19 follow"),
    "trailing": (saved(np.zeros(5, "<f4")) + b"x", CorruptError, "takes 20 bytes, 21 follow"),
    "version-4": (made(header(), b"abcd", b"\4\0"), UnsupportedError, "version 4.0"),
    "minor-version": (made(header(), b"abcd", b"\1\1"), UnsupportedError, "version 1.1"),
    "long-header": (made(header() + " " * 20_000, b"abcd"), UnsupportedError, "header of 20"),
    "header-outside": (npy.MAGIC + b"\1\0\xf0\x10" + b"{", CorruptError, "header up to"),
    "header-of-4-GB": (npy.MAGIC + b"\2\0\xff\xff\xff\xff{", UnsupportedError, "header of 4294967295"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_array_is_refused(name: str) -> None:
    data, kind, words = REFUSED[name]
    error = refusal_of(npy.scan, data)
    assert type(error) is kind and words in error.message, error.message


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_truncation_is_refused(count: int) -> None:
    for data, scan in ((saved(np.arange(count)), npy.scan), (zipped(a=np.arange(count)), npz.scan)):
        for length in range(len(data)):
            with pytest.raises(GdistError):
                drive(scan(length), Reader(data[:length]))


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def test_archives_that_are_not_arrays_as_they_are_are_refused() -> None:
    compressed = io.BytesIO()
    np.savez_compressed(compressed, a=np.zeros(1000))
    error = refusal_of(npz.scan, compressed.getvalue())
    assert isinstance(error, UnsupportedError) and "'a.npy' (compressed by method 8)" in error.message
    assert "np.savez, not np.savez_compressed" in error.hint
    error = refusal_of(npz.scan, archive({"a.npy": saved(np.zeros(1)), "readme.txt": b"hello"}))
    assert (
        isinstance(error, UnsupportedError) and "1 members that are no arrays: 'readme.txt'" in error.message
    )
    error = refusal_of(npz.scan, archive({"a.npy": b"\x93NUMPX\1\0" + bytes(20)}))
    assert isinstance(error, CorruptError) and "npy 'a' starts with" in error.message
    error = refusal_of(npz.scan, archive({"a.npy": saved(np.array([None], object))}))
    assert isinstance(error, UnsupportedError) and "npy 'a' holds Python objects" in error.message
    assert npz.sniff(zipped(a=np.zeros(1))[:512], 1000) and not npz.sniff(archive({"x": b""})[:512], 100)
