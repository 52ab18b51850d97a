"""Files of the safetensors package give their tensors; every malformed header is refused, and says why."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.dtypes import BY_SAFETENSORS
from gdist.core.extent import Extent
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive
from gdist.formats import safetensors as reader
from gdist.formats.detect import detect
from gdist.testing.checkpoints import numpy_dtype, write_safetensors


def scan(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    def read(extent: Extent) -> bytes:
        assert extent.stop <= len(data), f"{extent} of {len(data)} bytes"
        return data[extent.start : extent.stop]

    found = drive(reader.scan(len(data)), read)
    return {
        f.key: np.frombuffer(data[f.extent.start : f.extent.stop], numpy_dtype(f.dtype)).reshape(f.shape)
        for f in found
    }


def made(header: object, payload: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_encodings_in_the_metadata_are_heeded_and_checked() -> None:
    tensors = {"a": entry("U8", [4]), "b": entry("U8", [2], [4, 6])}

    def with_encodings(text: object) -> bytes:
        return made({"__metadata__": {"gdist.encodings": text}, **tensors}, bytes(6))

    data = with_encodings('{"a": "gguf.q4_0", "other": "x"}')
    found = drive(reader.scan(len(data)), lambda e: data[e.start : e.stop])
    assert {array.key: array.encoding for array in found} == {"a": "gguf.q4_0", "b": ""}
    for text in ("[]", '{"a": 1}', "{", "[" * 5000, 7):
        with pytest.raises(CorruptError, match="metadata"):
            scan(with_encodings(text))


def test_files_of_the_package_come_back(tmp_path: Path) -> None:
    tensors = {
        "model.w": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.ones((5,), ml_dtypes.bfloat16),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "flags": np.array([True, False]),
        "z": np.ones((2, 2), np.complex64),
    }
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    found = scan(data)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    kind = detect(data[:SNIFF_BYTES], len(data))
    assert kind is not None and kind.NAME == "safetensors"


@pytest.mark.parametrize("code", sorted(BY_SAFETENSORS))
def test_every_element_type_of_the_table_is_the_packages_own(code: str, tmp_path: Path) -> None:
    dtype = BY_SAFETENSORS[code]
    payload = bytes(range(4 * dtype.itemsize)) if code != "BOOL" else b"\0\1\0\1"
    data = made({"w": entry(code, (2, 2), (0, 4 * dtype.itemsize))}, payload)
    assert scan(data)["w"].tobytes() == payload
    listed = dict(safetensors.deserialize(data))
    assert listed["w"]["dtype"] == code and bytes(listed["w"]["data"]) == payload


def test_our_writer_is_read_by_the_package(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path, shards=3)
    seen = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        seen |= safetensors.numpy.load_file(path)
    assert set(seen) == set(expected)
    for name, array in expected.items():
        assert array.tobytes() == seen[name].tobytes()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    assert set(index["weight_map"]) == set(expected)


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=10).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([np.int8, np.float64, ml_dtypes.bfloat16, np.bool_]),
            st.lists(st.integers(0, 5), max_size=4),
        ),
        max_size=8,
    )
)
def test_random_trees_come_back(tree: dict[str, tuple[Any, list[int]]]) -> None:
    tensors = {name: np.ones(shape, dtype) for name, (dtype, shape) in tree.items()}
    data = safetensors.numpy.save(tensors)
    found = scan(data)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].shape == array.shape and np.array_equal(found[name], array)


FOUR = bytes(4)
MALFORMED = [
    (b"", "8"),
    (b"\x02\0\0\0\0\0\0", "8"),
    (made(b"{}", length=3), "header has 3 bytes"),
    (made(b"{}", length=0), "header has 0 bytes"),
    (made(b"{}", length=2**63), "more than"),
    (made(b"{}", length=100_000_001), "more than the 100000000"),
    (made(b" {}"), "brace"),
    (made(b"[]"), "brace"),
    (made(b'{"a"'), "not JSON"),
    (made(b'{"a": "\xff"}'), "not JSON"),
    (made(b'{"a": ' + b"[" * 100_000), "not JSON"),
    (made(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    (made(b'{"a": NaN}'), "NaN"),
    (made(b'{"__metadata__": {"a": 1}}'), "metadata"),
    (made(b'{"__metadata__": []}'), "metadata"),
    (made(b'{"__metadata__": {"a": "1", "a": "2"}}'), "twice"),
    (made(b'{"a": 1, "a": 2}'), "'a'"),
    (made({"a": entry(), "b": [1]}, FOUR), "'b' is not an object"),
    (made({"a": {"dtype": "F32", "shape": [1]}}, FOUR), "not an object with"),
    (made({"a": entry(5)}, FOUR), "element type"),
    (made({"a": entry(shape=[-1])}, FOUR), "shape"),
    (made({"a": entry(shape=[1.0])}, FOUR), "shape"),
    (made({"a": entry(shape=[True])}, FOUR), "shape"),
    (made({"a": entry(shape="1")}, FOUR), "shape"),
    (made({"a": entry(shape=[2**70])}, FOUR), "shape"),
    (made({"a": entry(shape=[2**32, 2**32])}, FOUR), "takes"),
    (made({"a": entry(offsets=[0, 4, 4])}, FOUR), "data_offsets"),
    (made({"a": entry(offsets=[4, 0])}, FOUR), "data_offsets"),
    (made({"a": entry(offsets=[-4, 0])}, FOUR), "data_offsets"),
    (made({"a": entry(offsets=[0, 8])}, FOUR), "end at 8"),
    (made({"a": entry(shape=[2])}, FOUR), "takes 8 bytes"),
    (made({"a": entry()}, FOUR + b"x"), "end at 4"),
    (made({}, b"x"), "end at 0"),
    (made({"a": entry(), "b": entry()}, FOUR), "overlaps"),
    (made({"a": entry(), "b": entry(offsets=[2, 6])}, FOUR + FOUR), "overlaps"),
    (made({"a": entry(), "b": entry(offsets=[5, 9])}, bytes(9)), "hole"),
    (made({"a": entry(offsets=[4, 8])}, bytes(8)), "hole"),
]


@pytest.mark.parametrize(("data", "word"), MALFORMED)
def test_malformed_files_are_corrupt(data: bytes, word: str) -> None:
    with pytest.raises(CorruptError) as caught:
        scan(data)
    assert word in caught.value.message


def test_the_package_refuses_what_we_refuse_but_for_what_its_text_forbids() -> None:
    accepted = [made(b" {}"), made(b'{"__metadata__": {"a": "1", "a": "2"}}')]
    for data, _ in MALFORMED:
        if data not in accepted:
            with pytest.raises((safetensors.SafetensorError, ValueError)):
                safetensors.deserialize(data)


def test_tensors_of_element_types_without_a_place_are_found_as_bytes() -> None:
    header = {
        "a": entry("F4", (8,), (0, 4)),
        "b": entry("F32", (1,), (4, 8)),
        "c": entry("F6_E2M3", (4,), (8, 12)),
    }
    start = len(made(header, b""))
    data = made(header, bytes(12))
    found = drive(reader.scan(len(data)), lambda e: data[e.start : e.stop])
    assert {array.key: (array.encoding, array.shape, array.extent) for array in found} == {
        "a": ("unread.F4", (4,), Extent(start, 4)),
        "b": ("", (1,), Extent(start + 4, 4)),
        "c": ("unread.F6_E2M3", (4,), Extent(start + 8, 4)),
    }
    with pytest.raises(CorruptError, match="no name of one"):
        scan(made({"a": entry("F\x1b", (8,), (0, 4))}, FOUR))


def test_unknown_fields_and_too_many_dimensions_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="40 dimensions"):
        scan(made({"a": entry(shape=[1] * 40)}, FOUR))
    with pytest.raises(UnsupportedError, match="'strides'"):
        scan(made({"a": entry(strides=[1])}, FOUR))


def test_a_cut_file_is_not_detected_as_whole() -> None:
    data = made({"a": entry()}, FOUR)
    assert detect(data, 20) is None


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_give_tensors_or_an_error(data: st.DataObject) -> None:
    sample = bytearray(made({"a": entry(), "b": entry("BF16", (2, 1), (4, 8))}, bytes(8)))
    for _ in range(data.draw(st.integers(1, 3))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(GdistError):
        scan(bytes(sample))
