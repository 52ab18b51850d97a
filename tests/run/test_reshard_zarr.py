"""Resharding from plain Zarr hierarchies that zarr-python and TensorStore wrote, and from hostile ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_arrays

import gdist
from gdist.errors import CorruptError, GdistError, RequestError, ResumeError, UnsupportedError
from gdist.events import Event, Stage, StageStarted
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, assert_holds

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

CHUNKS = (3, 5)


def tree() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {
        "layers/0/w": rng.standard_normal((7, 10)).astype(np.float32),
        "layers/10/w": rng.integers(-99, 99, (6, 10)).astype(np.int8),
        "norm": rng.standard_normal((4, 5)),
        "deep/er/step": np.array(7, np.int64),
        "zeros": np.ones((3, 5), np.uint16),
    }


def named(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.replace("/", "."): array for name, array in arrays.items()}


def write_zarr(root: Path, arrays: dict[str, Array], zarr_format: Any = 3, **options: Any) -> Path:
    """Writes groups of arrays with zarr-python."""
    group = zarr.open_group(root, mode="w", zarr_format=zarr_format)
    for name, array in arrays.items():
        chosen = {"chunks": tuple(min(c, s) for c, s in zip(CHUNKS, array.shape, strict=False)), **options}
        if not array.shape:
            chosen = {"chunks": ()}
        made = group.create_array(
            name, shape=array.shape, dtype=array.dtype, config={"write_empty_chunks": True}, **chosen
        )
        made[...] = array
    return root


def with_tensorstore(root: Path, arrays: dict[str, Array], driver: str, metadata: dict[str, Any]) -> Path:
    """Writes arrays with TensorStore, without groups."""
    for name, array in arrays.items():
        spec = {
            "driver": driver,
            "kvstore": {"driver": "file", "path": f"{root}/{name}/"},
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        made = ts.open(spec, create=True, dtype=ts.dtype(array.dtype.name), shape=array.shape).result()
        made.write(array).result()
    return root


WAYS: dict[str, Callable[[Path, dict[str, Array]], Path]] = {
    "v3": lambda root, arrays: write_zarr(root, arrays),
    "v3 gzip": lambda root, arrays: write_zarr(root, arrays, compressors=zarr.codecs.GzipCodec()),
    "v3 blosc": lambda root, arrays: write_zarr(root, arrays, compressors=zarr.codecs.BloscCodec()),
    "v3 raw": lambda root, arrays: write_zarr(root, arrays, compressors=None),
    "v3 v2-keys": lambda root, arrays: write_zarr(
        root, arrays, chunk_key_encoding={"name": "v2", "separator": "/"}
    ),
    "v3 turned": lambda root, arrays: write_zarr(
        root,
        {n: a for n, a in arrays.items() if a.ndim == 2},
        filters=zarr.codecs.TransposeCodec(order=(1, 0)),
    ),
    "v3 sharded": lambda root, arrays: write_zarr(
        root, {n: a for n, a in arrays.items() if a.ndim == 2}, chunks=(1, 5), shards=(3, 10)
    ),
    "v2": lambda root, arrays: write_zarr(root, arrays, 2),
    "v2 raw F": lambda root, arrays: write_zarr(root, arrays, 2, compressors=None, order="F"),
    "v2 slash": lambda root, arrays: write_zarr(
        root, arrays, 2, chunk_key_encoding={"name": "v2", "separator": "/"}
    ),
    "v2 tensorstore": lambda root, arrays: with_tensorstore(root, arrays, "zarr", {"chunks": [3, 5]}),
    "v3 tensorstore": lambda root, arrays: with_tensorstore(root, arrays, "zarr3", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_hierarchy(way: str, tmp_path: Path) -> None:
    arrays = tree()
    if "tensorstore" in way:
        arrays = {n.replace("/", "."): a for n, a in arrays.items() if a.ndim == 2}
        arrays["bf16.w"] = arrays["norm"].astype(ml_dtypes.bfloat16)
    root = WAYS[way](tmp_path / "a", arrays)
    written = {n: a for n, a in arrays.items() if (root / n).exists()}
    assert len(written) >= 4
    result = gdist.reshard(root, tmp_path / "b", mesh="2x2")
    assert_holds(tmp_path / "b", named(written))
    assert [(step.kind, step.name) for step in result.manifest.resharded] == [("zarr", "a")]
    assert gdist.verify(tmp_path / "b").ok


@pytest.mark.parametrize("version", [2, 3])
def test_a_copy_is_the_same_source_and_other_values_another(version: int, tmp_path: Path) -> None:
    arrays = tree()
    write_zarr(tmp_path / "a", arrays, version)
    shutil.copytree(tmp_path / "a", tmp_path / "copy/a", copy_function=shutil.copyfile)
    gdist.reshard(tmp_path / "a", tmp_path / "b", mesh="2", host="0/2")
    later = {name: array + array.dtype.type(1) for name, array in arrays.items()}
    write_zarr(tmp_path / "later/a", later, version)
    with pytest.raises(ResumeError, match="another source: zarr 'a' with identity"):
        gdist.reshard(tmp_path / "later/a", tmp_path / "b", mesh="2", host="1/2")
    gdist.reshard(tmp_path / "copy/a", tmp_path / "b", mesh="2", host="1/2")
    assert_holds(tmp_path / "b", named(arrays))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    any_arrays(
        st.sampled_from([np.float32, np.int16, np.dtype(">i4"), np.bool_, np.complex64]),
        st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    ),
    st.data(),
)
def test_random_shapes_and_chunks_come_back(
    tmp_path_factory: pytest.TempPathFactory, array: Array, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("z")
    chunks = tuple(data.draw(st.integers(1, size + 2)) for size in array.shape)
    version = data.draw(st.sampled_from([2, 3]))
    options: dict[str, Any] = {"compressors": data.draw(st.sampled_from(["auto", None]))}
    if version == 2:
        options["order"] = data.draw(st.sampled_from("CF"))
    elif data.draw(st.booleans()):
        options["shards"] = tuple(c * data.draw(st.integers(1, 3)) for c in chunks)
    write_zarr(root / "a", {"w": array}, version, chunks=chunks, **options)
    gdist.reshard(root / "a", root / "b", mesh="2")
    assert_holds(root / "b", {"w": array.astype(array.dtype.newbyteorder("="))})


def test_one_array_goes_by_the_directory_s_name_and_files_beside_it_are_kept(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "weights", data=np.arange(10.0), chunks=(5,))
    gdist.reshard(tmp_path / "weights", tmp_path / "b")
    assert_holds(tmp_path / "b", {"weights": np.arange(10.0)})
    root = write_zarr(tmp_path / "a", tree())
    (root / "config.json").write_bytes(b"{}")
    gdist.reshard(root, tmp_path / "c", ignore=["layers.*"])
    assert (tmp_path / "c/assets/config.json").read_bytes() == b"{}"
    assert "layers.0.w" not in gdist.open(tmp_path / "c")


def test_a_checkpoint_of_t5x_is_read_without_its_specs(tmp_path: Path) -> None:
    arrays = {"target.w": np.ones((6, 5), np.float32), "target.b": np.ones((3, 5), np.float32)}
    root = with_tensorstore(tmp_path / "a", arrays, "zarr", {"chunks": [3, 5]})
    spec = b"\x81\xa6target\x81\xa1w\x82\xa6driver\xa4zarr\xa7kvstore\x82\xa6driver\xa4file\xa4path\xa4/etc"
    (root / "checkpoint").write_bytes(spec)
    with pytest.raises(UnsupportedError, match="t5x or PaxML") as caught:
        gdist.reshard(root, tmp_path / "b")
    assert "opens no place that a file names" in caught.value.hint
    gdist.reshard(root, tmp_path / "b", ignore=["checkpoint"])
    assert_holds(tmp_path / "b", arrays)


@pytest.mark.parametrize("way", ["v2", "v3", "v3 sharded"])
def test_a_missing_chunk_is_not_zeros(way: str, tmp_path: Path) -> None:
    root = WAYS[way](tmp_path / "a", tree())
    (root / ("layers/0/w/2.1" if way == "v2" else "layers/0/w/c/2/0")).unlink()
    with pytest.raises(CorruptError, match=r"layers/0/w/(2\.1|c/2/0)") as caught:
        gdist.reshard(root, tmp_path / "b")
    assert "write_empty_chunks" in caught.value.hint
    assert not (tmp_path / "b").exists()


def test_inspect_tells_what_a_hierarchy_holds(tmp_path: Path) -> None:
    root = write_zarr(tmp_path / "a", tree())
    (root / "config.json").write_bytes(b"{}")
    found = gdist.inspect(root, mesh="2")
    assert [tensor.name for tensor in found.tensors][:1] == ["layers.0.w"]
    assert {t.name: (t.shape, t.dtype) for t in found.tensors} == {
        name: (array.shape, array.dtype.name) for name, array in named(tree()).items()
    }
    assert [(file.path, file.tensors, file.kept) for file in found.files] == [("config.json", 0, True)]
    assert found.nbytes == 2 + sum(array.nbytes for array in tree().values())


def test_a_missing_inner_chunk_is_not_zeros(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a", mode="w")
    made = group.create_array("w", shape=(8, 4), shards=(8, 4), chunks=(2, 4), dtype=np.float32)
    made[0:2] = 1.0
    with pytest.raises(CorruptError, match="missing"):
        gdist.reshard(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b/gdist.json").exists()


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    root = write_zarr(tmp_path / "a", tree())
    chunk = root / "layers/0/w/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(CorruptError, match=r"layers\.0\.w"):
        gdist.reshard(root, tmp_path / "b")


def test_links_that_lead_out_are_refused_and_others_followed(tmp_path: Path) -> None:
    root = write_zarr(tmp_path / "a", tree())
    chunk = root / "layers/0/w/c/0/0"
    chunk.rename(root / "aside")
    chunk.symlink_to("../../../../../aside")
    gdist.reshard(root, tmp_path / "b", ignore=["aside"])
    assert_holds(tmp_path / "b", named(tree()))
    shutil.move(root / "aside", tmp_path / "aside")
    chunk.unlink()
    chunk.symlink_to(tmp_path / "aside")
    with pytest.raises(UnsupportedError, match="lead out of it: layers/0/w/c/0/0"):
        gdist.reshard(root, tmp_path / "c")
    chunk.unlink()
    os.symlink(tmp_path, root / "layers/up")
    with pytest.raises(UnsupportedError, match="lead out of it: layers/up"):
        gdist.reshard(root, tmp_path / "c")


def test_tensors_in_other_files_are_refused(tmp_path: Path) -> None:
    root = write_zarr(tmp_path / "a", tree())
    write_safetensors(root / "other", emb=16, vocab=32, shards=1)
    with pytest.raises(UnsupportedError, match=r"other/model\.safetensors"):
        gdist.reshard(root, tmp_path / "b")
    with pytest.raises(RequestError, match="names"):
        gdist.reshard(root, tmp_path / "b", profile="grok-1")


def test_a_hierarchy_that_changed_meanwhile_is_no_complete_store(tmp_path: Path) -> None:
    root = write_zarr(tmp_path / "a", tree())

    def touch(event: Event) -> None:
        if event == StageStarted(Stage.FINISH):
            (root / "zeros/c/0/0").touch()

    with pytest.raises(CorruptError, match="changed while it was read"):
        gdist.reshard(root, tmp_path / "b", observe=touch)
    assert not (tmp_path / "b/gdist.json").exists()


HUGE = 1 << 40
EDITS_V3: list[tuple[str, Any, str]] = [
    (
        "storage_transformers",
        [{"name": "elsewhere", "configuration": {"path": "/etc"}}],
        "storage_transformers",
    ),
    ("kvstore", {"driver": "file", "path": "/etc/"}, "'kvstore'"),
    ("shape", [-1, 10], "no lengths"),
    ("shape", [HUGE, HUGE], "have more than"),
    ("shape", [HUGE, 10], "is missing"),
    ("shape", [7], "equal number"),
    ("shape", "7", "no lengths"),
    ("data_type", "string", "'string'"),
    ("data_type", {"name": "structured"}, "element type"),
    ("chunk_grid", {"name": "rectilinear", "configuration": {}}, "'rectilinear'"),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 5]}}, "no lengths"),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}, "is missing"),
    ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "/../"}}, "separator"),
    ("chunk_key_encoding", {"name": "other"}, "'other'"),
    ("codecs", [{"name": "evil"}], "'evil'"),
    ("codecs", [], "no short list"),
    ("codecs", [{"name": "bytes", "configuration": {"endian": {"driver": "file"}}}], "not plain"),
    ("codecs", [{"name": "bytes", "configuration": {"endian": "middle"}}], "layers.0.w"),
    ("zarr_format", 4, "no Zarr 3"),
    ("node_type", "folder", "no Zarr 3"),
]


@pytest.mark.parametrize(("key", "value", "words"), EDITS_V3)
def test_documents_of_version_3_that_cannot_be_are_refused(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    root = write_zarr(tmp_path / "a", tree())
    path = root / "layers/0/w/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(GdistError) as caught:
        gdist.reshard(root, tmp_path / "b")
    assert words in caught.value.message and "layers" in caught.value.message
    assert not (tmp_path / "b").exists()


EDITS_V2: list[tuple[str, Any, str]] = [
    ("filters", [{"id": "pickle"}], "filters"),
    ("compressor", {"id": "pickle"}, "'pickle'"),
    ("compressor", {"id": "zlib", "level": {"driver": "file"}}, "not plain"),
    ("compressor", "zlib", "compressor"),
    ("dtype", "|O", "element type"),
    ("dtype", "<U8", "element type"),
    ("dtype", [["a", "<f4"]], "records"),
    ("dtype", "<f3", "element type"),
    ("order", "X", "order"),
    ("dimension_separator", "../", "separator"),
    ("chunks", [True, 5], "no lengths"),
    ("chunks", [HUGE, 5], "layers.0.w"),
    ("zarr_format", 3, "not 2"),
]


@pytest.mark.parametrize(("key", "value", "words"), EDITS_V2)
def test_documents_of_version_2_that_cannot_be_are_refused(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    root = write_zarr(tmp_path / "a", tree(), 2)
    path = root / "layers/0/w/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(GdistError) as caught:
        gdist.reshard(root, tmp_path / "b")
    assert words in caught.value.message and "layers" in caught.value.message
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("layers/0/w/zarr.json", b"[]", "no JSON object"),
        ("layers/0/w/zarr.json", b"{" * 100_000, "not JSON"),
        ("layers/0/w/.zarray", b"{}", "not 2"),
        ("layers.0.w/zarr.json", None, "one name"),
        ("layers/0/w/x/zarr.json", None, "lies in array"),
        ("assets/zarr.json", None, "collides"),
    ],
)
def test_hierarchies_that_cannot_be_are_refused(
    path: str, data: bytes | None, words: str, tmp_path: Path
) -> None:
    root = write_zarr(tmp_path / "a", tree())
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data or (root / "norm/zarr.json").read_bytes())
    with pytest.raises(GdistError) as caught:
        gdist.reshard(root, tmp_path / "b")
    assert words in caught.value.message
