"""What Flax serialises is found bit for bit, chunked and in streams; what lies is refused in bounds."""

from __future__ import annotations

import json
import pickle
import random
import struct
from typing import Any

import flax.serialization as flax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gdist.core.extent import Extent
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive, flax_msgpack
from gdist.formats.detect import detect
from gdist.testing.formats import Reader, found_in, refusal_of, value_of

Array = np.ndarray[Any, Any]
KIND = "flax-msgpack"

TYPES = st.sampled_from(
    [
        *(np.dtype(name) for name in "?bBhHiIqQefdFD"),
        *map(np.dtype, (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4)),
        *map(np.dtype, (ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e4m3b11fnuz)),
    ]
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype, shape = draw(TYPES), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b" or dtype.name == "int4":
        raw = bytes(byte & 1 for byte in raw)
    array = np.frombuffer(raw, dtype).reshape(shape)
    return np.asfortranarray(array) if draw(st.booleans()) else array


KEYS = st.text("abc_0é", min_size=1, max_size=5)
OTHERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.binary(),
    st.just(1j),
)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        st.one_of(arrays(), OTHERS),
        lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=4), st.lists(inner, max_size=3)),
        max_leaves=8,
    ),
    min_size=1,
    max_size=5,
)


def leaves(tree: object, path: tuple[str, ...] = ()) -> dict[str, Array]:
    """The arrays of a tree by path."""
    if isinstance(tree, np.ndarray | np.generic):
        return {".".join(path): np.asarray(tree)}
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {name: array for key, value in items for name, array in leaves(value, (*path, str(key))).items()}


def check(data: bytes, expected: dict[str, Array]) -> None:
    found = found_in(data, KIND)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert (found[key].dtype.name, found[key].shape) == (array.dtype.name, array.shape)
        assert value_of(data, found[key]).tobytes() == array.tobytes()


@given(TREES)
def test_what_flax_serialises_comes_back_bit_for_bit(tree: dict[str, Any]) -> None:
    check(flax.msgpack_serialize(tree), leaves(tree))


def test_jax_arrays_scalars_and_state_dicts() -> None:
    tree = {
        "step": np.int32(7),
        "params": {"w": jnp.ones((2, 3), jnp.bfloat16), "layers": (jnp.zeros(2), jnp.ones(1))},
        "lr": 0.5,
    }
    data = flax.to_bytes(tree)
    found = found_in(data, KIND)
    assert {key: (a.dtype.name, a.shape) for key, a in found.items()} == {
        "step": ("int32", ()),
        "params.w": ("bfloat16", (2, 3)),
        "params.layers.0": ("float32", (2,)),
        "params.layers.1": ("float32", (1,)),
    }
    assert value_of(data, found["step"]) == 7


@given(
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5).map(tuple),
    st.integers(1, 40),
    st.sampled_from(["float32", "int8"]),
)
def test_arrays_that_are_cut_up_are_one(shape: tuple[int, ...], chunk_bytes: int, name: str) -> None:
    array = np.arange(np.prod(shape)).astype(name).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flax, "MAX_CHUNK_SIZE", chunk_bytes)
        data = flax.msgpack_serialize({"a": {"w": array}, "b": np.zeros(0)})
    check(data, {"a.w": array, "b": np.zeros(0)})
    (found,) = (a for key, a in found_in(data, KIND).items() if key == "a.w")
    assert min(run.extent.start for run in found.parts) == found.extent.start


def stream(tree: dict[tuple[str, ...], Array]) -> bytes:
    """As EasyLM's StreamingCheckpointer writes."""
    packer = msgpack.Packer()
    return b"".join(packer.pack((key, flax.to_bytes(value))) for key, value in tree.items())


@given(st.dictionaries(st.lists(KEYS, min_size=1, max_size=3).map(tuple), arrays(), min_size=1, max_size=5))
def test_streams_of_pairs_come_back_bit_for_bit(tree: dict[tuple[str, ...], Array]) -> None:
    expected = {".".join(path): array for path, array in tree.items()}
    check(stream(tree), expected)


def test_payloads_are_not_read() -> None:
    tree = {f"w{n}": np.zeros(1 << 16, np.float32) for n in range(20)}
    data = flax.msgpack_serialize(tree)
    reader = Reader(data)
    assert len(drive(flax_msgpack.scan(len(data)), reader)) == 20
    assert sum(extent.length for extent in reader.asked) < 200_000


# --- refused ---------------------------------------------------------------------------------------------


def ext(shape: object = (1,), dtype: object = "float32", data: object = bytes(4), code: int = 1) -> Any:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def chunked(shape: Any, chunks: Any, **more: Any) -> bytes:
    return msgpack.packb({"w": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks, **more}})


def one(value: object) -> bytes:
    return bytes(msgpack.packb({"w": value}))


W = b"\x81\xa1w"
REFUSED = {
    "empty": (b"", CorruptError, "to follow"),
    "never": (W + b"\xc1", CorruptError, "c1 is no msgpack"),
    "map-of-4-billion": (b"\xdf\xff\xff\xff\xff\xa1w" + bytes(50), CorruptError, "there twice"),
    "array-of-4-billion": (W + b"\xdd\xff\xff\xff\xff" + bytes(50), CorruptError, "to follow"),
    "deep-arrays": (W + b"\x91" * 5000 + b"\xc0", UnsupportedError, "64 deep"),
    "deep-maps": (W * 5000 + b"\xc0", UnsupportedError, "64 deep"),
    "text-outside": (W + b"\xdb\xff\xff\xff\xff", CorruptError, "4294967295 bytes are to follow, 0 do"),
    "bytes-outside": (W + b"\xc6\x7f\xff\xff\xff", CorruptError, "to follow"),
    "array-outside": (W + b"\xc9\xff\xff\xff\xff\x01\x93\x91", CorruptError, "to follow"),
    "key-long": (b"\x81\xda\x02\x01" + b"k" * 513 + b"\xc0", UnsupportedError, "a key has 513 bytes"),
    "path-long": (
        msgpack.packb({"a" * 300: {"b" * 300: ext()}}),
        UnsupportedError,
        "an array's path has 601 bytes",
    ),
    "key-not-text": (b"\x81\xa1\xff\xc0", CorruptError, "not UTF-8"),
    "key-an-array": (b"\x81\x91\x01\xc0", CorruptError, "a key is an array"),
    "key-twice": (b"\x82\xa1w\xc0\xa1w\xc0", CorruptError, "key 'w' is there twice"),
    "number-and-text": (b"\x82\x01\xc0\xa11\xc0", CorruptError, "key '1' is there twice"),
    "t5x": (
        msgpack.packb(
            {"pad": "x" * 600, "w": {"driver": "zarr", "kvstore": {"driver": "file", "path": "/etc"}}}
        ),
        UnsupportedError,
        "'w' is of a checkpoint of t5x or PaxML",
    ),
    "path-twice": (
        msgpack.packb({"a.b": ext(), "a": {"b": ext()}}),
        CorruptError,
        "array 'a.b' is there twice",
    ),
    "trailing": (one(1) + b"x", CorruptError, "1 bytes follow the tree"),
    "second-tree": (one(ext()) * 2, CorruptError, "bytes follow the tree"),
    "extension": (one(msgpack.ExtType(5, b"x")), UnsupportedError, "extension type 5"),
    "timestamp": (W + b"\xd6\xff1234", UnsupportedError, "extension type -1"),
    "object": (one(ext(dtype="object")), UnsupportedError, "'object'"),
    "big-endian": (one(ext(dtype=">f4")), UnsupportedError, "is big-endian: '>f4'"),
    "text-array": (one(ext(dtype="str32")), UnsupportedError, "type gdist does not store: 'str32'"),
    "shape-negative": (one(ext(shape=(-1,))), CorruptError, "a length that is none"),
    "shape-float": (one(ext(shape=(float("nan"),))), CorruptError, "a length that is none"),
    "shape-no-list": (one(ext(shape=4)), CorruptError, "not made of"),
    "shape-overflow": (one(ext(shape=(1 << 32, 1 << 32))), CorruptError, "takes 73786976294838206464 bytes"),
    "dimensions": (one(ext(shape=(1,) * 33)), UnsupportedError, "33 dimensions"),
    "dtype-number": (one(ext(dtype=7)), CorruptError, "a type that is no text"),
    "bytes-short": (one(ext(data=bytes(3))), CorruptError, "takes 4 bytes, it has 3"),
    "bytes-are-text": (one(ext(data="abcd")), CorruptError, "takes 4 bytes"),
    "array-trailing": (
        one(msgpack.ExtType(1, ext().data + b"x")),
        CorruptError,
        "takes 4 bytes",
    ),
    "array-empty": (one(msgpack.ExtType(1, b"")), CorruptError, "1 bytes are to follow"),
    "array-of-two": (one(msgpack.ExtType(1, msgpack.packb(([1], "int8")))), CorruptError, "not made of"),
    "chunks-missing": (
        msgpack.packb({"w": {"__msgpack_chunked_array__": True}}),
        CorruptError,
        "not the first of three",
    ),
    "chunks-later": (
        msgpack.packb({"w": {"shape": {}, "__msgpack_chunked_array__": True, "chunks": {}}}),
        CorruptError,
        "not the first of three",
    ),
    "chunks-none": (chunked({"0": 0}, {}), CorruptError, "are not flat"),
    "chunks-too-few": (chunked({"0": 2}, {"0": ext()}), CorruptError, "has 1 elements in its chunks"),
    "chunks-of-types": (
        chunked({"0": 2}, {"0": ext(), "1": ext(dtype="int32")}),
        CorruptError,
        "of one type",
    ),
    "chunks-not-flat": (chunked({"0": 1}, {"0": ext(shape=(1, 1))}), CorruptError, "are not flat"),
    "chunks-out-of-order": (chunked({"0": 2}, {"1": ext(), "0": ext()}), CorruptError, "'1' where 0 belongs"),
    "chunks-no-array": (chunked({"0": 2}, {"0": 7}), CorruptError, "chunk 0 of 'w' is no array"),
    "chunks-shape-overflow": (
        chunked({"0": 1 << 62, "1": 1 << 62}, {"0": ext()}),
        CorruptError,
        "1 elements in its chunks",
    ),
    "chunks-false": (
        msgpack.packb({"w": {"__msgpack_chunked_array__": False, "shape": {}, "chunks": {}}}),
        CorruptError,
        "is not true",
    ),
    "chunks-many": (
        W + b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x80\xa6chunks\xdf\xff\xff\xff\xff",
        UnsupportedError,
        "4294967295 chunks",
    ),
    "stream-cut-off": (stream({("a",): np.zeros(2)}) + b"\x92", CorruptError, "to follow"),
    "stream-other": (stream({("a",): np.zeros(2)}) + b"\x93\x90\xc0\xc0", CorruptError, "no pair"),
    "stream-twice": (stream({("a",): np.zeros(2)}) * 2, CorruptError, "array 'a' is there twice"),
    "stream-longer": (
        msgpack.packb((("a",), flax.to_bytes(np.zeros(1)) + b"x")),
        CorruptError,
        "ends at",
    ),
    "stream-text": (msgpack.packb((("a",), "text")), CorruptError, "has no bytes"),
    "stream-deep-path": (msgpack.packb((("a",) * 100, b"\xc0")), CorruptError, "no path"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_lies_is_refused(name: str) -> None:
    data, kind, words = REFUSED[name]
    error = refusal_of(flax_msgpack.scan, data)
    assert type(error) is kind and words in error.message, error.message


@pytest.mark.parametrize("item", [b"\xc0", b"\x90", b"\x80"])
def test_values_are_counted(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax_msgpack, "MAX_VALUES", 1 << 14)
    error = refusal_of(flax_msgpack.scan, W + b"\xdd\xff\xff\xff\xff" + item * (1 << 15))
    assert isinstance(error, UnsupportedError) and "more than 16384 values" in error.message


def test_every_truncation_is_refused() -> None:
    tree = {"a": {"w": np.arange(4), "n": 300, "t": "text", "c": 1j}, "l": [np.ones(1), None, 1.5]}
    chunks = chunked({"0": 2}, {"0": ext(), "1": ext()})
    for data in (flax.msgpack_serialize(tree), chunks):
        for length in range(len(data)):
            with pytest.raises(GdistError):
                drive(flax_msgpack.scan(length), Reader(data[:length]))
    data = stream({("a", "b"): np.zeros(2)})
    for length in range(1, len(data)):
        with pytest.raises(GdistError):
            drive(flax_msgpack.scan(length), Reader(data[:length]))


def test_other_files_are_not_taken_for_it() -> None:
    rng = random.Random(5)
    others = [
        *(pickle.dumps({"a": np.zeros(2), "b": [1, "x"]}, protocol) for protocol in range(6)),
        json.dumps({"a": 1}).encode(),
        b"\x80",
        b"\x81",
        b"\x81\x01\x02",
        b"\x92\x01\x02",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8\xff\xe0" + bytes(100),
        b"\xde\xad\xbe\xef" * 50,
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"w": {"driver": "zarr", "kvstore": {"driver": "file"}}}),
        msgpack.packb({"w": msgpack.ExtType(9, b"x" * 20)}),
        struct.pack("<Q", 0x80) + b"{" + bytes(200),
    ]
    for data in others:
        kind = detect(data[:SNIFF_BYTES], len(data))
        assert kind is None or kind.NAME != KIND, data[:20]
    taken = sum(flax_msgpack.sniff(rng.randbytes(SNIFF_BYTES), 1 << 30) for _ in range(100_000))
    assert taken < 10, "of random files, one in ten thousand at most"


@given(st.binary(max_size=40).map(lambda rest: b"\x82\xa1a" + rest), st.integers(0, 1000))
def test_sniffing_stands_anything(head: bytes, more: int) -> None:
    assert flax_msgpack.sniff(head, len(head) + more) in (True, False)
    assert flax_msgpack.sniff(b"\x92\x91\xa1a" + head, len(head) + 4 + more) in (True, False)


def test_long_first_texts_are_no_obstacle() -> None:
    data = flax.msgpack_serialize({"a": "long " * 500, "w": np.zeros(2)})
    assert found_in(data, KIND)["w"].extent == Extent(len(data) - 16, 16)
