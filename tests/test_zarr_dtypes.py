"""zarr-python and TensorStore read each other's bfloat16, fp8 and int4, without an import of gdist.

A child process stands for a user who has gdist installed and never names it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from gdist.core.dtypes import BY_NAME
from gdist.zarr_dtypes import BFloat16, Float8E4M3FN, Float8E4M3FNUZ, Int4, _Float

OURS = [row for row in BY_NAME.values() if row.needs_ml_dtypes]
NAMES = [row.name for row in OURS]
FLOATS = [name for name in NAMES if name != "int4"]
SHAPE, SHARD, INNER = (7, 6), (4, 6), (2, 3)

READ = """
import sys, json, numpy as np, zarr
out = {}
store = zarr.open(sys.argv[1], mode="r")
for name in sys.argv[2:]:
    array = store[name]
    values = np.ascontiguousarray(array[...])
    values = values.astype(values.dtype.newbyteorder('='))
    out[name] = [str(array.dtype), values.tobytes().hex(), np.asarray(array.fill_value).tobytes().hex()]
assert "tensorstore" not in sys.modules
print(json.dumps(out))
"""

WRITE = """
import sys, ml_dtypes, numpy as np, zarr
store = zarr.open_group(sys.argv[1], mode="a")
for name in sys.argv[2:]:
    values = (np.arange(42) % 15 - 7).reshape(7, 6).astype(getattr(ml_dtypes, name))
    store.create_array(name, data=values, chunks=(2, 3), shards=(4, 6), compressors=None,
                       fill_value=values[0, 0])
"""


def native(name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def same(name: str, left: bytes, right: bytes) -> bool:
    """Bit for bit; of an int4 only the low four bits count."""
    if name == "int4":
        left, right = (bytes(b & 15 for b in side) for side in (left, right))
    return left == right


def sample(name: str) -> np.ndarray[Any, Any]:
    return (np.arange(42) % 15 - 7).reshape(SHAPE).astype(native(name))


def document(name: str, fill: object, endian: str = "little") -> dict[str, object]:
    bytes_codec = {"name": "bytes", "configuration": {"endian": endian}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": SHAPE,
        "data_type": name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": SHARD}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": INNER,
                    "codecs": [bytes_codec],
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
    }


def child(script: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_root(path: Path, consolidated: Mapping[str, object] | None = None) -> None:
    root: dict[str, object] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    if consolidated is not None:
        root["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": consolidated,
        }
    (path / "zarr.json").write_text(json.dumps(root))


def open_ts(path: Path, **more: object) -> Any:
    return ts.open({"driver": "zarr3", "kvstore": f"file://{path}/", **more}).result()


@pytest.mark.parametrize("endian", ["little", "big"])
def test_zarr_reads_what_tensorstore_wrote(tmp_path: Path, endian: str) -> None:
    write_root(tmp_path)
    for row in OURS:
        written = {
            k: v
            for k, v in document(row.name, row.fill, endian).items()
            if k not in ("zarr_format", "node_type", "attributes")
        }
        open_ts(tmp_path / row.name, metadata=written, create=True).write(sample(row.name)).result()
    read = json.loads(child(READ, str(tmp_path), *NAMES))
    for row in OURS:
        assert same(row.name, bytes.fromhex(read[row.name][1]), sample(row.name).tobytes()), row.name


def test_tensorstore_reads_what_zarr_wrote(tmp_path: Path) -> None:
    child(WRITE, str(tmp_path), *NAMES)
    for name in NAMES:
        array = open_ts(tmp_path / name)
        assert array.dtype.name == name
        assert same(name, array.read().result().tobytes(), sample(name).tobytes()), name
        assert same(name, np.asarray(array.fill_value).tobytes(), np.asarray(sample(name)[0, 0]).tobytes()), (
            name
        )


def test_an_absent_shard_reads_as_the_poison_of_the_table(tmp_path: Path) -> None:
    documents = {row.name: document(row.name, row.fill) for row in OURS}
    write_root(tmp_path, consolidated=documents)
    for name, text in documents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text(json.dumps(text))
    read = json.loads(child(READ, str(tmp_path), *NAMES))
    for row in OURS:
        values = open_ts(tmp_path / row.name).read().result()
        assert read[row.name][0] == row.name
        assert same(row.name, bytes.fromhex(read[row.name][1]), values.tobytes()), row.name
        assert not np.any(values.astype(np.float32) == 0), row.name


@pytest.mark.parametrize("name", FLOATS)
def test_every_bit_pattern_survives_json_as_tensorstore_writes_it(tmp_path: Path, name: str) -> None:
    """Both directions of fill values, over all patterns of one byte and a spread of those of two."""
    dtype = native(name)
    ours = next(cls for cls in _Float.__subclasses__() if cls._zarr_v3_name == name)()
    patterns = (
        range(256) if dtype.itemsize == 1 else [0, 1, 0x8000, 0x3DCD, 0x7F80, 0xFF80, 0x7FC0, 0x7FC1, 0xFFC0]
    )
    for bits in patterns:
        element = np.frombuffer(bits.to_bytes(dtype.itemsize, "little"), dtype)[0]
        written = ours.to_json_scalar(element, zarr_format=3)
        again = ours.from_json_scalar(json.loads(json.dumps(written)), zarr_format=3)
        assert np.asarray(again).tobytes() == element.tobytes(), (hex(bits), written)
    for number, fill in enumerate(["NaN", "Infinity", "-Infinity", "0x7f", "0xff", 0, -1, 1.5, 0.1]):
        if name == "float8_e8m0fnu" and not isinstance(fill, str):
            continue  # TensorStore (0.1.86) makes 2**-64 of 1; gdist writes "NaN" alone
        path = tmp_path / str(number)
        path.mkdir()
        (path / "zarr.json").write_text(json.dumps(document(name, fill)))
        theirs = open_ts(path)[0, 0].read().result()
        assert np.asarray(ours.from_json_scalar(fill, zarr_format=3)).tobytes() == theirs.tobytes(), fill


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (BFloat16(), "1.5"),  # a number is no string
        (BFloat16(), True),  # JSON's true is no number
        (BFloat16(), "0x17fc0"),  # 17 bits
        (Float8E4M3FN(), "0x7fc0"),
        (Float8E4M3FNUZ(), None),
        (Int4(), 8),
        (Int4(), 1.0),
        (Int4(), "NaN"),
    ],
)
def test_what_is_no_fill_value_is_refused(dtype: Any, value: object) -> None:
    with pytest.raises(TypeError):
        dtype.from_json_scalar(value, zarr_format=3)


def test_big_endian_zarr_v2_is_refused_with_words() -> None:
    with pytest.raises(ValueError, match="Zarr v2"):
        BFloat16(endianness="big").to_json(zarr_format=2)


WRITE_V2 = WRITE.replace('mode="a"', 'mode="a", zarr_format=2').replace("shards=(4, 6), ", "")


def test_zarr_v2_goes_both_ways_too(tmp_path: Path) -> None:
    """Under the names that TensorStore's driver `zarr` writes; an absent chunk reads as the fill value."""
    child(WRITE_V2, str(tmp_path), *NAMES)
    for row in OURS:
        path = tmp_path / row.name
        array = ts.open({"driver": "zarr", "kvstore": f"file://{path}/"}).result()
        assert array.dtype.name == row.name
        assert same(row.name, array.read().result().tobytes(), sample(row.name).tobytes()), row.name
        array.write(sample(row.name)[::-1]).result()
        written = json.loads((path / ".zarray").read_text())
        (path / ".zarray").write_text(json.dumps({**written, "fill_value": row.fill}))
        (path / "0.0").unlink()
    read = json.loads(child(READ, str(tmp_path), *NAMES))
    for row in OURS:
        expected = sample(row.name)[::-1].copy()
        expected[:2, :3] = np.array(
            float(row.fill) if isinstance(row.fill, str) else row.fill, native(row.name)
        )
        assert same(row.name, bytes.fromhex(read[row.name][1]), expected.tobytes()), row.name


OPEN_ONE = """
import sys, zarr
if sys.argv[1] == "by hand":
    import gdist.zarr_dtypes
assert zarr.open(sys.argv[2], mode="r").dtype.name == "bfloat16"
"""


def test_one_array_opens_by_its_own_path(tmp_path: Path) -> None:
    """Without help where zarr loads its data types (3.4.1 on), else after the import the docstring names."""
    (tmp_path / "zarr.json").write_text(json.dumps(document("bfloat16", "NaN")))
    version = tuple(int(part) for part in metadata.version("zarr").split(".")[:3])
    child(OPEN_ONE, "by itself" if version >= (3, 4, 1) else "by hand", str(tmp_path))
