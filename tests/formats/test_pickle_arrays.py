"""Real pickles give their arrays; everything else is refused; no payload is read."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray, Order
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive, pickle_arrays
from gdist.formats.detect import FORMATS, advice_on_piece, detect, recognise_foreign
from gdist.formats.pickle_lexer import FIRST_WINDOW, LAST_WINDOW
from gdist.testing.checkpoints import grok1_files, numpy_dtype, write_sparse
from gdist.testing.pickle_writer import ArraySpec, layout_array, layout_pair

PROTOCOLS = (3, 4, 5)


@dataclass
class QuantizedWeight8bit:
    weight: Any
    scales: Any


@pytest.fixture(autouse=True)
def _main_has_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The release's pickles name the class in `__main__`; the pickler checks that it is there."""
    monkeypatch.setattr(QuantizedWeight8bit, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "QuantizedWeight8bit", QuantizedWeight8bit, raising=False)


class Reader:
    """Gives bytes of `data` and adds up how many were asked for."""

    def __init__(self, data: bytes) -> None:
        self.data, self.nbytes, self.largest = data, 0, 0

    def __call__(self, extent: Extent) -> bytes:
        assert 0 <= extent.start < extent.stop <= len(self.data), f"{extent} of {len(self.data)} bytes"
        self.nbytes += extent.length
        self.largest = max(self.largest, extent.length)
        return self.data[extent.start : extent.stop]


def scan(data: bytes) -> tuple[FoundArray, ...]:
    return drive(pickle_arrays.scan(len(data)), Reader(data))


def array_at(data: bytes, found: FoundArray) -> np.ndarray[Any, Any]:
    raw = np.frombuffer(data[found.extent.start : found.extent.stop], numpy_dtype(found.dtype))
    return raw.reshape(found.shape, order=found.order.value)


def refused(data: bytes, *words: str, error: type[GdistError] = UnsupportedError) -> GdistError:
    with pytest.raises(error) as caught:
        scan(data)
    for word in words:
        assert word in caught.value.message
    return caught.value


def raw(opcodes: bytes, protocol: int = 4) -> bytes:
    return bytes([0x80, protocol]) + opcodes


ALL_TYPES = [numpy_dtype(dtype) for dtype in BY_NAME.values()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 1, 3), (2, 2, 2, 2, 2), (300, 70)], ids=str)
def test_an_array_of_every_type_is_found_where_it_lies(
    dtype: np.dtype[Any], shape: tuple[int, ...], protocol: int
) -> None:
    count = int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer(bytes(i % 2 for i in range(count)), dtype).reshape(shape).copy()
    data = pickle.dumps(array, protocol)
    (found,) = scan(data)
    assert (found.key, found.shape, found.dtype.name, found.role) == ("", shape, dtype.name, "")
    assert data[found.extent.start : found.extent.stop] == array.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_fortran_order_is_kept_and_slices_are_in_c_order(dtype: Any, protocol: int) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)
    for given_array, order in (
        (np.asfortranarray(array), Order.F),
        (array.T, Order.F),
        (array[::2, 1:4], Order.C),
    ):
        data = pickle.dumps(given_array, protocol)
        (found,) = scan(data)
        assert found.order is order
        assert np.array_equal(array_at(data, found), given_array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_trees_give_paths_as_keys_and_pass_over_plain_data(protocol: int) -> None:
    tree = {
        "step": 1000,
        "name": "tiny",
        "none": None,
        "params": {"w": np.ones((2, 3), np.int16), 7: [np.zeros(4), (np.full((2,), 3.0, np.float16), True)]},
        "scalar": np.float32(2.5),
        "empty": {},
        "raw": b"bytes",
    }
    data = pickle.dumps(tree, protocol)
    found = {f.key: array_at(data, f) for f in scan(data)}
    assert list(found) == ["params.w", "params.7.0", "params.7.1.0", "scalar"]
    assert found["scalar"] == np.float32(2.5) and found["scalar"].shape == ()
    assert np.array_equal(found["params.7.1.0"], tree["params"][7][1][0])  # type: ignore[index]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rows", [2, 3000])
def test_a_quantised_pair_gives_weight_and_scales_of_one_key(protocol: int, rows: int) -> None:
    weight = np.arange(rows * 40).astype(np.int8).reshape(rows, 40)
    scales = np.linspace(0, 1, 80).astype(ml_dtypes.bfloat16).reshape(2, 40)
    data = pickle.dumps({"w": QuantizedWeight8bit(weight, scales)}, protocol)
    found = scan(data)
    assert [(f.key, f.role, f.dtype.name) for f in found] == [
        ("w", "weight", "int8"),
        ("w", "scales", "bfloat16"),
    ]
    assert np.array_equal(array_at(data, found[0]), weight) and np.array_equal(
        array_at(data, found[1]), scales
    )


@pytest.mark.jax
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_jax_arrays_are_found(protocol: int) -> None:
    jnp = pytest.importorskip("jax.numpy")
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((4,), jnp.bfloat16), "c": jnp.float32(3)}
    data = pickle.dumps(tree, protocol)
    for found in scan(data):
        assert np.array_equal(array_at(data, found), np.asarray(tree[found.key]))
        assert found.shape == tree[found.key].shape


@pytest.mark.parametrize("numpy1", [False, True])
def test_the_writer_gives_what_the_pickler_gives(numpy1: bool) -> None:
    rng = np.random.default_rng(5)
    lengths = [(3,), (), (2, 5), (4, 1, 300), (65535,), (65536,), (32768,), (2, 2, 2, 2), (70000, 2)]
    for _ in range(60):
        arrays = []
        for _ in range(2):
            dtype = list(BY_NAME.values())[rng.integers(len(BY_NAME))]
            shape = lengths[rng.integers(len(lengths))]
            if not shape and dtype.itemsize == 1:
                shape = (5,)  # Python shares bytes objects of length one, and the pickler then refers back
            payload = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
            arrays.append((ArraySpec(shape, dtype), payload))
        (a, a_bytes), (b, b_bytes) = arrays
        values = [np.frombuffer(p, numpy_dtype(s.dtype)).reshape(s.shape) for s, p in arrays]
        single, pair = layout_array(a, numpy1=numpy1), layout_pair(a, b, numpy1=numpy1)
        ours = single.chunks[0] + a_bytes + single.chunks[1]
        ours_pair = pair.chunks[0] + a_bytes + pair.chunks[1] + b_bytes + pair.chunks[2]
        if numpy1:
            # NumPy 1 spells one name a byte shorter, and has other flags for ml_dtypes types
            assert len(ours) == len(pickle.dumps(values[0], 4)) - 1
            assert b"numpy._core" not in ours and [f.shape for f in scan(ours_pair)] == [a.shape, b.shape]
        else:
            assert ours == pickle.dumps(values[0], 4)
            assert ours_pair == pickle.dumps(QuantizedWeight8bit(*values), 4)


def numpy1_spelling(data: bytes) -> bytes:
    """A protocol 3 pickle as NumPy 1 would have spelled it: module names stand in lines, without lengths."""
    return data.replace(b"cnumpy._core.", b"cnumpy.core.")


def test_the_spelling_of_numpy_1_is_read() -> None:
    array = np.arange(12, dtype=np.uint32).reshape(3, 4)
    for value, shape in ((array, (3, 4)), (np.float64(2.0), ())):
        data = numpy1_spelling(pickle.dumps(value, 3))
        assert b"_core" not in data
        (found,) = scan(data)
        assert found.shape == shape and np.array_equal(array_at(data, found), np.asarray(value))


def test_payloads_are_not_read() -> None:
    data = pickle.dumps({"a": np.zeros(10**6), "b": np.ones(10**6, np.int8), "c": np.zeros(10**6)}, 5)
    reader = Reader(data)
    assert len(drive(pickle_arrays.scan(len(data)), reader)) == 3
    assert reader.nbytes <= 6 * FIRST_WINDOW and reader.largest <= LAST_WINDOW


def test_pickles_without_memo_entries_are_read() -> None:
    import pickletools

    data = pickletools.optimize(
        pickle.dumps(QuantizedWeight8bit(np.ones((4, 4), np.int8), np.ones((1, 4))), 4)
    )
    assert [f.role for f in scan(data)] == ["weight", "scales"]


# What is refused


class Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "word"),
    [
        (Call(os.system, "touch /nonexistent"), "system"),
        (Call(eval, "1"), "eval"),
        (Call(getattr, os, "system"), "getattr"),
        ({"w": np.zeros(2), "x": Call(print, "hello")}, "print"),
        (datetime.timedelta(1), "timedelta"),
        (np.random.default_rng(0), "numpy.random"),
        (np.ma.masked_array([1.0], [True]), "numpy.ma"),
        (io.BytesIO(b"x"), "BytesIO"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_any_other_name_is_refused(value: object, word: str, protocol: int) -> None:
    if isinstance(value, Call) and value.call[0] is getattr:
        value = Call(getattr, "text", "upper")
    error = refused(pickle.dumps(value, protocol), word)
    assert "offset" in error.message and error.hint


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.arange(3, dtype=">f4"), "big-endian"),
        (np.arange(3, dtype=">i8"), "big-endian"),
        (np.array([1, "a", None], object), "'O8'"),
        (np.zeros(2, "V4"), "'V4'"),
        (np.zeros(2, [("a", "i4")]), "'V4'"),
        (np.array(["ab"]), "'U2'"),
        (np.array([b"ab"]), "'S2'"),
        (np.zeros(2, "M8[s]"), "'M8'"),
        (np.zeros(2, np.longdouble), "element type"),
    ],
    ids=str,
)
def test_other_element_types_are_refused(array: np.ndarray[Any, Any], word: str, protocol: int) -> None:
    error = refused(pickle.dumps(array, protocol), word)
    assert "; " not in error.message and "convert the file where you trust it" in error.hint


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_older_protocols_are_refused(protocol: int) -> None:
    data = pickle.dumps(np.zeros(3), protocol)
    with pytest.raises(GdistError):
        scan(data)
    assert detect(data[:SNIFF_BYTES], len(data)) is None


def test_out_of_band_buffers_are_refused() -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(np.zeros(3), 5, buffer_callback=buffers.append)
    refused(data, "NEXT_BUFFER")


ALLOWED = set(b"\x80\x95.NKMJ\x8a\x88\x89\x8cXCB\x8e\x96()t\x85\x86\x87}su]aeqrhj\x94c\x93Rb\x81")


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - ALLOWED))
def test_every_other_opcode_is_refused(opcode: int) -> None:
    error = refused(raw(b"N" + bytes([opcode]) + b"\n\n\n\n.", 5), f"0x{opcode:02x}", "offset 3")
    assert error.offset == 3


def test_bytes_after_the_end_are_refused() -> None:
    data = pickle.dumps(np.zeros(3), 4)
    error = refused(data + pickle.dumps(Call(os.system, "id"), 4), "follow the end")
    assert error.offset == len(data)
    refused(data + b"\0", "1 bytes follow")


def array_pickle(
    shape: bytes, payload: bytes, dtype: bytes = b"\x8c\x02f4", order: bytes = b"\x8c\x01<"
) -> bytes:
    """An array written by hand, so that any part of it can lie."""
    head = b"\x8c\x15numpy.core.multiarray\x8c\x0c_reconstruct\x93"
    head += b"\x8c\x05numpy\x8c\x07ndarray\x93K\x00\x85C\x01b\x87R"
    kind = b"\x8c\x05numpy\x8c\x05dtype\x93" + dtype + b"\x89\x88\x87R(K\x03" + order
    return (
        head
        + b"(K\x01"
        + shape
        + kind
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + payload
        + b"tb"
    )


FOUR = b"C\x04abcd"


def test_arrays_written_by_hand_are_read() -> None:
    (found,) = scan(raw(array_pickle(b"K\x01\x85", FOUR) + b"."))
    assert found.shape == (1,) and found.extent.length == 4


@pytest.mark.parametrize(
    ("shape", "payload", "word"),
    [
        (b"K\x02\x85", FOUR, "takes 8 bytes"),
        (b"K\x00\x85", FOUR, "takes 0 bytes"),
        (b"J\xff\xff\xff\xff\x85", FOUR, "no length"),
        (b"\x88\x85", FOUR, "no length"),
        (b"\x8a\x09" + b"\0" * 8 + b"\x01\x85", FOUR, "no length"),
        # 2^32 x 2^32 x 4 bytes is 0 in 64 bits
        (b"\x8a\x05\0\0\0\0\x01\x8a\x05\0\0\0\0\x01\x86", b"C\x00", "takes"),
    ],
)
def test_shapes_that_do_not_match_their_payload_are_corrupt(shape: bytes, payload: bytes, word: str) -> None:
    refused(raw(array_pickle(shape, payload) + b"."), word, error=CorruptError)


@pytest.mark.parametrize(
    ("opcodes", "word"),
    [
        (array_pickle(b"K\x01\x85", b"\x8c\x04abcd"), "not bytes"),
        (array_pickle(b"]", FOUR), "shape"),
        (array_pickle(b"(" + b"K\x01" * 40 + b"t", FOUR), "32 dimensions"),
        (array_pickle(b"K\x01\x85", FOUR, order=b"\x8c\x01>"), "big-endian"),
        (array_pickle(b"K\x01\x85", FOUR, order=b"\x8c\x01|"), "byte order"),
        (array_pickle(b"K\x01\x85", FOUR, order=b"\x8c\x01="), "byte order"),
        (array_pickle(b"K\x01\x85", FOUR, dtype=b"\x8c\x03<f4"), "'<f4'"),
        (array_pickle(b"K\x01\x85", FOUR)[:-2] + b"0", "POP"),
        (array_pickle(b"K\x01\x85", FOUR) + b"(K\x01)NNNtb", "a state for an array"),
        (b"\x8c\x05numpy\x8c\x07ndarray\x93(K\x01tR", "call of numpy.ndarray"),
        (b"\x8c\x05numpy\x8c\x07ndarray\x93)\x81", "object made of"),
        (b"\x8c\x08__main__\x8c\x13QuantizedWeight8bit\x93)R", "call of"),
        (b"\x8c\x08__main__\x8c\x13QuantizedWeight8bit\x93)\x81}\x8c\x06weightNsb", "fields"),
        (b"\x8c\x08__main__\x8c\x13QuantizedWeight8bit\x93)\x81", "without its arrays"),
        (b"\x8c\x08__main__\x8c\x05Other\x93", "__main__.Other"),
        (b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02f4\x89\x88\x87R", "an element type"),
        (b"\x8c\x05numpy\x8c\x05dtype\x93", "numpy.dtype"),
        (b"cnumpy\nndarray.x\n", "ndarray.x"),
        (b"cnumpy.core.multiarray._reconstruct\n\n", "the name"),
        (b"c" + b"a" * 600 + b"\nb\n", "two lines"),
        (b"X\xff\xff\xff\x7f", "of which"),
        (b"\x8a\xff" + b"\0" * 255, "of which"),
        (b"N" + b"\x85" * 100, "nested"),
        (b"(" * 70 + b"N" + b"t" * 70, "marks"),
        (b"]\x94h\x00a", "somewhere else"),
        (b"]]\x94Naah\x00a", "somewhere else"),
        (b"}\x8c\x01aNs\x8c\x01aNs", "twice"),
        (b"}NNs", "dict key"),
        (b"}\x8c\x00" + array_pickle(b"K\x01\x85", FOUR) + b"s", "empty key"),
        (b"}\x8c\x01a" + array_pickle(b"K\x01\x85", FOUR) + b"\x94s\x8c\x01bh\x00s", "same payload"),
        (
            b"}\x8c\x03a.b"
            + array_pickle(b")", FOUR)
            + b"s\x8c\x01a}\x8c\x01b"
            + array_pickle(b")", FOUR)
            + b"ss",
            "'a.b'",
        ),
    ],
)
def test_what_no_array_needs_is_refused(opcodes: bytes, word: str) -> None:
    refused(raw(opcodes + b"."), word)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\x80", "ends after"),
        (b"N.", "not with PROTO"),
        (raw(b"N"), "ends after"),
        (raw(b"NN."), "2 objects"),
        (raw(b"."), "0 objects"),
        (raw(b"(N."), "objects"),
        (raw(b"t."), "mark"),
        (raw(b"R."), "empty"),
        (raw(b"(R."), "empty"),
        (raw(b"h\x07."), "memoised"),
        (raw(b"\x80\x04N."), "second PROTO"),
        (raw(b"}(NuN."), "without a value"),
        (raw(b"B\xff\xff\xff\xff."), "payload of 4294967295"),
        (raw(b"\x8e" + b"\xff" * 8 + b"."), "payload of"),
        (raw(b"\x95" + struct.pack("<Q", 100) + b"N."), "frame up to"),
        (raw(b"\x95" + struct.pack("<Q", 1) + b"N."), None),
        (raw(b"\x95" + struct.pack("<Q", 4) + b"N.NN"), "stops before"),
        (raw(b"\x95" + struct.pack("<Q", 2) + b"K\x01K\x01."), "2 objects"),
        (raw(b"\x95" + struct.pack("<Q", 1) + b"K\x01."), "across the end"),
        (raw(b"\x95" + struct.pack("<Q", 11) + b"\x95" + struct.pack("<Q", 2) + b"N."), "frame inside"),
        (raw(b"\x8c\x02\xff\xfe."), "UTF-8"),
    ],
)
def test_files_that_are_no_pickle_are_corrupt(data: bytes, word: str | None) -> None:
    if word is None:
        assert scan(data) == ()
    else:
        refused(data, word, error=CorruptError)


def test_every_truncation_is_corrupt() -> None:
    value = {"w": QuantizedWeight8bit(np.ones((8, 4), np.int8), np.ones((2, 4), ml_dtypes.bfloat16))}
    for protocol in PROTOCOLS:
        data = pickle.dumps(value, protocol)
        for end in range(len(data)):
            with pytest.raises(GdistError):
                scan(data[:end])


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        raw(b"N" + b"\x94" * 5_000_000 + b"."),  # memo entries without end
        raw(b"N" * 5_000_000 + b"."),  # a stack without end
        raw(b"]" + b"Na" * 4_000_000 + b"."),  # opcodes without end
        raw(b"].\x94" + b"(" * 5_000_000),
        raw(b")" + b"\x85" * 400_000 + b"."),  # a tuple in a tuple in ...
        raw(b"]\x94" + b"".join(b"](hXhXe".replace(b"X", bytes([i])) + b"\x94" for i in range(100)) + b"0."),
        raw(b"".join(b"\x8cx" + b"a" * 120 + b"\x94" for _ in range(200_000)) + b"."),
    ],
    ids=["memo", "stack", "opcodes", "marks", "tuples", "shared lists", "texts"],
)
def test_bombs_end_soon(data: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(GdistError):
        scan(data)
    assert time.process_time() - begin < 60  # a guard against hours, not a measurement


# Properties

SAMPLES = [
    pickle.dumps(value, protocol)
    for protocol in PROTOCOLS
    for value in (
        np.arange(6.0).reshape(2, 3),
        np.ones((3, 2), ml_dtypes.bfloat16),
        {"a": [np.zeros(3, np.int8), np.asfortranarray(np.ones((2, 2)))], "b": (np.float32(1), 5, "text")},
        np.zeros(70_000, np.uint8),
    )
] + [
    b"".join(
        chunk + payload
        for chunk, payload in zip(
            layout_pair(ArraySpec((8, 4), BY_NAME["int8"]), ArraySpec((2, 4), BY_NAME["bfloat16"])).chunks,
            (bytes(32), bytes(16), b""),
            strict=True,
        )
    )
]


def check_any_bytes(data: bytes) -> None:
    """Arrays inside the file that do not overlap, or one of our errors; small reads, bounded in all."""
    reader = Reader(data)
    try:
        found = drive(pickle_arrays.scan(len(data)), reader)
    except GdistError:
        found = ()
    position = 0
    for array in sorted((f for f in found if f.extent.length), key=lambda f: f.extent):
        assert position <= array.extent.start and array.extent.stop <= len(data)
        position = array.extent.stop
    assert reader.largest <= LAST_WINDOW and reader.nbytes <= 3 * len(data) + LAST_WINDOW


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(PROTOCOLS))
@example(b"", 4)
def test_random_bytes_give_arrays_or_an_error(data: bytes, protocol: int) -> None:
    check_any_bytes(raw(data, protocol))
    check_any_bytes(data)


OPCODES = st.sampled_from(
    [bytes([code]) for code in sorted(ALLOWED - set(b"KMJ\x8a\x8cXCB\x8e\x96c\x80\x95hjqr"))]
    + [b"K\x01", b"C\x01b", b"h\x00", b"h\x01", b"q\x00", b"\x8c\x01<", b"\x8c\x02f4", b"\x8c\x05numpy"]
    + [b"\x8c\x05dtype", b"\x8c\x07ndarray", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"]
    + [b"c__main__\nQuantizedWeight8bit\n", b"cjax._src.array\n_reconstruct_array\n", FOUR]
    + [array_pickle(b"K\x01\x85", FOUR)]
)


@settings(max_examples=500)
@given(st.lists(OPCODES, max_size=40))
def test_random_programs_give_arrays_or_an_error(program: list[bytes]) -> None:
    check_any_bytes(raw(b"".join(program) + b"."))


@settings(max_examples=500)
@given(st.data())
def test_damaged_pickles_give_arrays_or_an_error(data: st.DataObject) -> None:
    sample = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(sample), 700) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                sample[at] = data.draw(st.integers(0, 255))
            case 1:
                del sample[at : at + data.draw(st.integers(1, 8))]
            case 2:
                sample[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case _:
                sample += data.draw(st.binary(max_size=4))
        if not sample:
            return
    check_any_bytes(bytes(sample))


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
        st.tuples(st.sampled_from(ALL_TYPES), st.lists(st.integers(0, 9), max_size=4), st.booleans()),
        max_size=6,
    ),
    st.sampled_from(PROTOCOLS),
)
def test_random_trees_come_back(
    tree: dict[str, tuple[np.dtype[Any], list[int], bool]], protocol: int
) -> None:
    arrays = {}
    for number, (key, (dtype, shape, fortran)) in enumerate(tree.items()):
        # payloads of one byte may be one shared object, which is refused; two elements at least
        nbytes = int(np.prod([*shape, 2])) * dtype.itemsize
        payload = bytes((i + number) % 2 for i in range(nbytes))
        array = np.frombuffer(payload, dtype).reshape([*shape, 2])
        arrays[key] = np.asfortranarray(array) if fortran else array
    data = pickle.dumps(arrays, protocol)
    found = {f.key: f for f in scan(data)}
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        assert array_at(data, found[key]).tobytes() == array.tobytes()


# The real release's layout


def test_the_files_of_grok_1_at_their_real_sizes(tmp_path: Any) -> None:
    """One of each size class; the manifest's test goes through all 770."""
    sizes = {}
    for file in grok1_files(layers=1, emb=6144, ffn=32768, kv=1024, vocab=131072, numpy1=True):
        path = tmp_path / "file"
        write_sparse(path, file.layout)
        nbytes = 0

        def read(extent: Extent) -> bytes:
            nonlocal nbytes
            nbytes += extent.length
            with path.open("rb") as source:  # noqa: B023
                source.seek(extent.start)
                return source.read(extent.length)

        found = drive(pickle_arrays.scan(path.stat().st_size), read)
        assert [f.extent.start for f in found] == list(file.layout.starts)
        assert nbytes < 8192
        sizes[file.arrays[0][0].removeprefix("params.").split(".", 2)[-1]] = file.layout.nbytes
    # the sizes of the real files, from a public survey of the release
    assert set(sizes.values()) == {
        3_221_225_637,
        1_611_137_347,
        1_611_399_491,
        37_847_359,
        37_761_334,
        6_293_814,
        196_770,
        24_727,
    }


# Detection


def test_every_format_has_a_name_of_its_own() -> None:
    assert len({candidate.NAME for candidate in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_are_detected_by_content(protocol: int) -> None:
    data = pickle.dumps(np.zeros(3), protocol)
    found = detect(data[:SNIFF_BYTES], len(data))
    assert found is not None and found.NAME == "pickle"


def test_foreign_containers_are_recognised() -> None:
    for data, what in (
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07\0", "RAR"),
        (b"PK\x07\x08PK\x03\x04", "zip archive in several files"),
        (b"\x81\xa6target\x82\xa6driver\xa4zarr\xa7kvstore\x80", "t5x"),
        (pickle.dumps([1], 2), "protocol 2"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
    ):
        assert detect(data[:SNIFF_BYTES], len(data)) is None
        named = recognise_foreign(data[:SNIFF_BYTES], len(data))
        assert named is not None and what in named.what
        assert named.hint or what in ("torch", "protocol 2"), what


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a/consolidated.00.pth-split0", "cat $(ls -v consolidated.00.pth-split*)"),
        ("model.safetensors.part01", "cat $(ls -v model.safetensors.part*)"),
        ("model.bin.part-aa", "cat $(ls -v model.bin.part-*)"),
        ("weights.7z.001", "cat $(ls -v weights.7z.*)"),
        ("weights.z01", "zip -s 0 weights.zip"),
        ("model-00001-of-00002.safetensors", ""),
        ("consolidated.00.pth", ""),
        ("tensor00001_000", ""),
        ("README.md", ""),
    ],
)
def test_names_of_pieces_bring_advice(path: str, words: str) -> None:
    advice = advice_on_piece(path)
    assert words in advice and bool(words) == bool(advice)


@pytest.mark.parametrize(
    "data", [b"", b"# Grok-1\n\nThis is {a README}", b'{"weight_map": {}}', b"\xff" * 40]
)
def test_other_files_are_nothing(data: bytes) -> None:
    assert detect(data, len(data)) is None and recognise_foreign(data, len(data)) is None
