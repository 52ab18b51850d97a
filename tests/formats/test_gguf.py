"""GGUF files, bit for bit as the `gguf` package writes and reads them; and files it never wrote."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf as package
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.extent import Extent
from gdist.core.gguf_blocks import BLOCKS
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive, gguf, gguf_header
from gdist.formats.detect import detect, recognise_foreign
from gdist.testing.checkpoints import numpy_dtype

Array = np.ndarray[Any, Any]
Types = package.GGMLQuantizationType
KINDS = sorted(map(int, package.GGML_QUANT_SIZES))
PLAIN = {kind: dtype.name for kind, dtype in gguf.PLAIN.items()}


def find(data: bytes) -> tuple[FoundArray, ...]:
    def read(extent: Extent) -> bytes:
        assert extent.length and extent.stop <= len(data), f"{extent} of {len(data)} bytes"
        return data[extent.start : extent.stop]

    return drive(gguf.scan(len(data)), read)


def write(path: Path, tensors: Sequence[tuple[str, Array, Types | None]], **more: Any) -> bytes:
    """A file by the package; `more` are its values, and its `alignment`."""
    writer = package.GGUFWriter(path, "llama")
    if alignment := more.pop("alignment", None):
        writer.add_custom_alignment(alignment)
    for key, value in more.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, value)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, shape: Sequence[int] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    lengths = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + lengths + struct.pack("<IQ", kind, offset)


def value(key: bytes, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def hand_made(
    infos: Sequence[bytes] = (),
    values: Sequence[bytes] = (),
    *,
    data: int = 256,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of any content, whose data are `data` zeros."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(infos), len(values))))
    head += b"".join(values) + b"".join(infos)
    return head + bytes(-len(head) % alignment + data)


def test_the_table_of_blocks_is_the_package_s() -> None:
    sizes = {
        int(kind): (kind.name.lower(), *size)
        for kind, size in package.GGML_QUANT_SIZES.items()
        if kind not in PLAIN
    }
    ours = {number: (block.name, block.elements, block.nbytes) for number, block in BLOCKS.items()}
    assert sizes.items() <= ours.items(), "an older package has fewer"
    for kind, dtype in gguf.PLAIN.items():
        assert package.GGML_QUANT_SIZES[Types(kind)] == (1, dtype.itemsize)


@st.composite
def tensors(draw: st.DrawFn) -> list[tuple[str, Array, Types | None]]:
    made = []
    names = draw(st.lists(st.text("abc.é0", min_size=1, max_size=12), max_size=6, unique=True))
    for name in names:
        kind = draw(st.sampled_from(KINDS))
        outer = draw(st.lists(st.integers(1, 4), max_size=3))
        row = draw(st.integers(1, 3)) * (BLOCKS[kind].nbytes if kind in BLOCKS else gguf.PLAIN[kind].itemsize)
        count = int(np.prod(outer, dtype=int)) * row
        array = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8).reshape(*outer, row)
        plain = kind in PLAIN and PLAIN[kind] != "bfloat16"
        made.append((name, array.view(PLAIN[kind]), None) if plain else (name, array, Types(kind)))
    return made


@settings(max_examples=60)
@given(tensors(), st.sampled_from([None, 8, 64, 4096]), st.lists(st.text(max_size=5), max_size=9))
def test_what_the_package_writes_is_found_as_it_reads_it(
    given_tensors: list[tuple[str, Array, Types | None]], alignment: int | None, tokens: list[str]
) -> None:
    with TemporaryDirectory() as scratch:
        path = Path(scratch, "m.gguf")
        data = write(path, given_tensors, alignment=alignment, tokens=tokens, chat_template="{{ x }}")
        expected = {tensor.name: tensor for tensor in package.GGUFReader(path).tensors}
        found = find(data)
        assert [array.key for array in found] == [name for name, _, _ in given_tensors] == list(expected)
        for array in found:
            tensor = expected[array.key]
            assert array.extent == Extent(tensor.data_offset, tensor.n_bytes)
            dtype = numpy_dtype(array.dtype)
            read = np.frombuffer(data[array.extent.start : array.extent.stop], dtype).reshape(array.shape)
            right = tensor.data.view(ml_dtypes.bfloat16) if tensor.tensor_type == Types.BF16 else tensor.data
            assert (read.shape, read.dtype) == (right.shape, right.dtype)
            assert read.tobytes() == right.tobytes()
            block = BLOCKS.get(tensor.tensor_type)
            assert array.encoding == (f"gguf.{tensor.tensor_type.name.lower()}" if block else "")
    assert detect(data[:SNIFF_BYTES], len(data)) is gguf


def test_version_2_scalars_empty_tensors_and_nested_values_are_read() -> None:
    nested = struct.pack("<IQIQII", 9, 1, 5, 2, 7, 8)
    data = hand_made(
        [info(b"scalar", ()), info(b"none", (3, 0), offset=32), info(b"last", (4,), 30, 32)],
        [value(b"nested", 9, nested), value(b"empty", 9, struct.pack("<IQ", 8, 0)), value(b"flag", 7, b"\1")],
        data=40,
        version=2,
    )
    assert [(a.key, a.shape, a.dtype.name) for a in find(data)] == [
        ("scalar", (), "float32"),
        ("none", (0, 3), "float32"),
        ("last", (4,), "bfloat16"),
    ]
    assert find(hand_made()) == (), "a vocabulary alone has no tensors"


def test_a_long_header_is_read_in_steps_and_long_values_are_not() -> None:
    tokens = b"".join(text(b"token%d" % n) for n in range(200_000))
    values = [
        value(b"tokens", 9, struct.pack("<IQ", 8, 200_000) + tokens),
        value(b"scores", 9, struct.pack("<IQ", 6, 1 << 21) + bytes(1 << 23)),
        value(b"template", 8, text(bytes(1 << 20))),
    ]
    data = hand_made([info(b"w", (64,))], values)
    asked: list[Extent] = []

    def read(extent: Extent) -> bytes:
        asked.append(extent)
        return data[extent.start : extent.stop]

    assert drive(gguf.scan(len(data)), read)[0].extent.stop == len(data)
    lengths = [extent.length for extent in asked]
    assert max(lengths) <= gguf_header.LAST_STEP and len(lengths) < 12
    assert sum(lengths) < len(tokens) + 2 * gguf_header.LAST_STEP, "the scores are passed over"


LONG = (1 << 64) - 1
REFUSED: list[tuple[str, bytes, type[GdistError], str]] = [
    ("no magic", b"GGML" + bytes(60), CorruptError, "it starts with b'GGML'"),
    ("version 1", hand_made(version=1), UnsupportedError, "version 1 is not read"),
    ("version 4", hand_made(version=4), UnsupportedError, "version 4 is not read"),
    ("version 0", hand_made(version=0), UnsupportedError, "version 0 is not read"),
    ("big-endian", hand_made(version=3 << 24), UnsupportedError, "big-endian GGUF file (version 3)"),
    ("tensors", hand_made(counts=(LONG, 0)), UnsupportedError, f"{LONG} tensors"),
    ("keys", hand_made(counts=(0, LONG)), UnsupportedError, f"{LONG} keys"),
    ("more tensors than there are", hand_made(counts=(1 << 16, 0)), CorruptError, "takes it to"),
    ("key length", hand_made(values=[struct.pack("<Q", LONG)]), UnsupportedError, "bytes in a key"),
    ("text length", hand_made(values=[value(b"k", 8, struct.pack("<Q", LONG))]), CorruptError, "a text"),
    (
        "array length",
        hand_made(values=[value(b"k", 9, struct.pack("<IQ", 12, LONG))]),
        CorruptError,
        "an array of",
    ),
    (
        "texts",
        hand_made(values=[value(b"k", 9, struct.pack("<IQ", 8, 1 << 61))]),
        CorruptError,
        "an array of",
    ),
    (
        "arrays",
        hand_made(values=[value(b"k", 9, struct.pack("<IQ", 9, 1 << 61))]),
        CorruptError,
        "an array of",
    ),
    (
        "depth",
        hand_made(values=[value(b"k", 9, struct.pack("<IQ", 9, 1) * 9)]),
        UnsupportedError,
        "levels of arrays",
    ),
    ("value type", hand_made(values=[value(b"k", 13, bytes(8))]), UnsupportedError, "unknown type 13"),
    (
        "array type",
        hand_made(values=[value(b"k", 9, struct.pack("<IQ", 99, 0))]),
        UnsupportedError,
        "unknown type 99",
    ),
    (
        "key twice",
        hand_made(values=[value(b"k", 0, b"1")] * 2),
        CorruptError,
        "key b'k' at 38 is given twice",
    ),
    (
        "alignment 0",
        hand_made(values=[value(b"general.alignment", 4, bytes(4))]),
        CorruptError,
        "alignment is 0",
    ),
    (
        "alignment 24",
        hand_made(values=[value(b"general.alignment", 4, b"\x18\0\0\0")]),
        CorruptError,
        "no power of two",
    ),
    (
        "alignment huge",
        hand_made(values=[value(b"general.alignment", 4, b"\0\0\0\x80")]),
        UnsupportedError,
        "bytes of alignment",
    ),
    (
        "alignment type",
        hand_made(values=[value(b"general.alignment", 10, bytes(8))]),
        CorruptError,
        "has type 10",
    ),
    ("name length", hand_made([struct.pack("<Q", 1025)]), UnsupportedError, "bytes in a tensor's name"),
    ("name", hand_made([info(b"\xff")]), CorruptError, "is not UTF-8"),
    ("name twice", hand_made([info(b"a"), info(b"a", offset=32)]), CorruptError, "'a' is there twice"),
    ("dimensions", hand_made([info(b"a", (1,) * 5)]), UnsupportedError, "has 5 dimensions"),
    ("dimensions huge", hand_made([text(b"a") + b"\xff" * 4]), UnsupportedError, "4294967295 dimensions"),
    ("overflow", hand_made([info(b"a", (1 << 32, 1 << 32))]), CorruptError, "overflows"),
    ("overflow to a few", hand_made([info(b"a", (1 << 62, 4, 4))]), CorruptError, "overflows"),
    ("overflow and none", hand_made([info(b"a", (LONG, 0))]), CorruptError, "overflows"),
    ("outside", hand_made([info(b"a", (65,))]), CorruptError, "the file has"),
    ("outside by far", hand_made([info(b"a", offset=LONG & ~31)]), CorruptError, "the file has"),
    ("misaligned", hand_made([info(b"a", offset=4)]), CorruptError, "multiple of 32"),
    (
        "overlap",
        hand_made([info(b"a", (16,)), info(b"b", (2,), offset=32)]),
        CorruptError,
        "'b' at 128 overlaps 'a', which ends at 160",
    ),
    ("same place", hand_made([info(b"a"), info(b"b")]), CorruptError, "overlaps"),
    ("half a block", hand_made([info(b"a", (48,), 2)]), CorruptError, "no whole blocks of 32 (q4_0)"),
    ("a scalar block", hand_made([info(b"a", (), 2)]), CorruptError, "no whole blocks"),
    (
        "removed types",
        hand_made([info(b"a", (32,), 4), info(b"b", kind=31)]),
        UnsupportedError,
        "'a' (type 4), 'b' (type 31)",
    ),
    (
        "several faults",
        hand_made([info(b"a", offset=4), info(b"b", (65,))]),
        CorruptError,
        "multiple of 32; tensor 'b'",
    ),
]


@pytest.mark.parametrize(
    ("data", "error", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_contradicts_itself_or_is_not_read_is_refused(
    data: bytes, error: type[GdistError], words: str
) -> None:
    tracemalloc.start()
    with pytest.raises(error) as caught:
        find(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in caught.value.message
    assert peak < 4 * 2**20, f"{peak} bytes for a file of {len(data)}"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    tensors = [("a", np.ones((2, 8), np.float32), None), ("b", np.ones((2, 18), np.uint8), Types.Q4_0)]
    data = write(tmp_path / "m", tensors, tokens=["x", "", "yz"], scores=[1.0, 2.0])
    stop = max(array.extent.stop for array in find(data))
    for length in range(stop):
        with pytest.raises(GdistError):
            find(data[:length])


def test_a_header_beyond_the_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hand_made(values=[value(b"k", 9, struct.pack("<IQ", 8, 100) + text(b"") * 100)])
    monkeypatch.setattr(gguf_header, "MAX_ITEMS", 99)
    with pytest.raises(UnsupportedError, match="100 texts and arrays"):
        find(data)
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 500)
    with pytest.raises(UnsupportedError, match="more than 500 bytes"):
        find(data)


def test_texts_and_llamafiles_are_told_apart() -> None:
    assert detect(b"GGUF is a format of files", 25) is None
    for head in (b"MZqFpD='\n", b"jartsr='\n", b"APEDBG='\n"):
        assert detect(head + bytes(100), 109) is None
        named = recognise_foreign(head + bytes(100), 109)
        assert named is not None and "llamafile" in named.what
    big = hand_made(version=3 << 24)
    assert detect(big[:SNIFF_BYTES], len(big)) is gguf, "refused with its own message"
