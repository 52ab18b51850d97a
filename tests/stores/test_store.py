"""A store read in place: bit for bit, region by region, without copies where there need be none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import gdist
from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.errors import CorruptError, RequestError
from gdist.stores.buffers import copy_arrays, region
from gdist.stores.store import parse_index
from gdist.testing.stores import write_store

Array = NDArray[Any]
ON_BOTH = {"axes": ["data", "model"], "rules": [["w$", ["data", "model"]], [".*", []]]}


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        "layer.0.w": rng.integers(-128, 127, (64, 128)).astype(np.int8),
        "layer.1.w": rng.standard_normal((16, 32)).astype(ml_dtypes.bfloat16),
        "cube": rng.standard_normal((3, 8, 5)).astype(np.float32),
        "deep/er.w": rng.integers(0, 2**62, (8, 16)),
        "scale": np.array(2.5, np.float32),
        "nothing": np.zeros((0, 4), np.float32),
        "flags": rng.integers(0, 2, 77).astype(bool),
        "fp8": rng.standard_normal((4, 4)).astype(ml_dtypes.float8_e4m3fn),
        "int4": rng.integers(-8, 8, (4, 6)).astype(ml_dtypes.int4),
    }


def assert_equal(store: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    assert list(store) == list(arrays)
    for name, array in arrays.items():
        found = np.asarray(store[name])
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        assert found.tobytes() == array.tobytes(), name


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("mesh", ["1", "8", "4x2"])
def test_every_bit_comes_back(tmp_path: Path, mesh: str, verify: bool) -> None:
    write_store(tmp_path / "s", sample(), mesh=mesh, rules=ON_BOTH if "x" in mesh else None, chunk_bytes=512)
    with gdist.open(tmp_path / "s", verify=verify) as store:
        assert_equal(store, sample())


def test_a_lazy_array_says_what_it_is(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), mesh="4x2", rules=ON_BOTH)
    with gdist.open(tmp_path / "s") as store:
        array = store["layer.1.w"]
        assert (array.shape, array.ndim, array.size, array.nbytes) == ((16, 32), 2, 512, 1024)
        assert array.dtype == ml_dtypes.bfloat16
        assert str(array.spec) == "P(data, model)"
        assert "layer.1.w" in repr(array) and "9 tensors" in repr(store)
        assert len(array) == 16 and "scale" in store and "absent" not in store
        with pytest.raises(KeyError):
            store["absent"]


@settings(max_examples=300)
@given(st.data())
def test_regions_are_what_numpy_gives(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), max_size=3)))
    array = np.arange(int(np.prod(shape))).reshape(shape)
    bound = st.none() | st.integers(-8, 8)
    steps = st.none() | st.sampled_from([1, 2, 3, -1, -2, -5])
    key: list[Any] = []
    for size in shape[: data.draw(st.integers(0, len(shape)))]:
        pick = st.builds(slice, bound, bound, steps)
        key.append(data.draw(pick | st.integers(-size, size - 1) if size else pick))
    if data.draw(st.booleans()):
        key.insert(data.draw(st.integers(0, len(key))), ...)
        if key.index(...) < len(key) - 1 and len(key) - 1 < len(shape):
            after = key[key.index(...) + 1 :]
            key = [*key[: key.index(...)], ..., *(slice(None) for _ in after)]
    box, local = parse_index(tuple(key), shape)
    np.testing.assert_array_equal(array[box.slices()][local], array[tuple(key)])


@pytest.mark.parametrize(
    ("key", "error"),
    [(64, IndexError), ((0, 0, 0), IndexError), (True, TypeError), ([1, 2], TypeError), ("a", TypeError)],
)
def test_wrong_indexes_fail_as_in_numpy(tmp_path: Path, key: object, error: type[Exception]) -> None:
    write_store(tmp_path / "s", sample())
    with gdist.open(tmp_path / "s") as store, pytest.raises(error):
        store["layer.0.w"][key]


def test_regions_touch_only_their_chunks(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), chunk_bytes=512)  # four rows of layer.0.w a chunk
    flip(tmp_path / "s" / "layer.0.w/c/0/0", 60 * 128)
    with gdist.open(tmp_path / "s") as store:
        np.testing.assert_array_equal(store["layer.0.w"][4:56, ::3], sample()["layer.0.w"][4:56, ::3])
        with pytest.raises(CorruptError):
            store["layer.0.w"][56:61]


def test_read_fills_the_buffer_it_is_given(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), mesh="4x2", rules=ON_BOTH)
    with gdist.open(tmp_path / "s") as store:
        out = np.zeros((10, 20), np.int8)
        box = Box((3, 50), (13, 70))
        assert store["layer.0.w"].read(box, out) is out
        np.testing.assert_array_equal(out, sample()["layer.0.w"][3:13, 50:70])
        with pytest.raises(RequestError, match="out is"):
            store["layer.0.w"].read(box, out[1:])
        with pytest.raises(RequestError, match="is not in"):
            store["layer.0.w"].read(Box((3, 50), (13, 129)))


def test_slabs_are_views_of_the_file(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), mesh="4x2", rules=ON_BOTH)
    array = sample()["layer.0.w"]
    with gdist.open(tmp_path / "s") as store:
        lazy = store["layer.0.w"]
        for i in range(4):
            for j in range(2):
                box = Box((i * 16, j * 64), (i * 16 + 16, j * 64 + 64))
                view = lazy.view(box)
                assert view is not None and not view.flags.writeable and view.flags.c_contiguous
                assert view.ctypes.data % 64 == 0
                np.testing.assert_array_equal(view, array[box.slices()])
        columns = lazy.view(Box((0, 3), (16, 9)))
        assert columns is not None and not columns.flags.owndata
        np.testing.assert_array_equal(columns, array[:16, 3:9])
        assert lazy.view(Box((8, 0), (24, 64))) is None  # two slabs
    np.testing.assert_array_equal(columns, array[:16, 3:9])  # the map lives as long as its arrays


def test_many_maps_need_no_open_files(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {f"t{n}": np.full((4, 4), n, np.int8) for n in range(50)})
    before = len(os.listdir("/proc/self/fd"))
    with gdist.open(tmp_path / "s") as store:
        views = [array.view() for array in store.values()]
        assert len(os.listdir("/proc/self/fd")) == before
        assert all(view is not None for view in views)


def test_asarray_copies_only_where_it_must(tmp_path: Path) -> None:
    write_store(
        tmp_path / "s", {"one": np.ones((4, 64), np.float32), "w": np.ones((4, 64), np.float32)}, mesh="2"
    )
    with gdist.open(tmp_path / "s") as store:
        split = store["w"]
        assert str(split.spec) == "P(None, model)"
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(split, copy=False)
        assert np.array(split).flags.writeable
        assert np.asarray(split, np.float64).dtype == np.float64
    write_store(tmp_path / "t", {"one": np.ones((4, 64), np.float32)})
    with gdist.open(tmp_path / "t") as store:
        assert not np.asarray(store["one"]).flags.writeable
        assert np.array(store["one"]).flags.writeable


# --- damage --------------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), chunk_bytes=512)
    flip(tmp_path / "s" / "layer.0.w/c/0/0", 60 * 128 + 5)
    with (
        gdist.open(tmp_path / "s") as store,
        pytest.raises(CorruptError, match="differs from its digest") as caught,
    ):
        np.asarray(store["layer.0.w"])
    error = caught.value
    assert (error.tensor, error.shard, error.chunk) == ("layer.0.w", (0, 0), (15, 0))
    assert error.box == Box((60, 0), (64, 128))
    assert "layer.0.w/c/0/0" in error.message and "60:64" in error.message
    assert "gdist verify --repair" in error.hint, "a fetch would say that all is complete"


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_shard_is_an_error_and_never_zeros(tmp_path: Path, verify: bool) -> None:
    write_store(tmp_path / "s", sample())
    (tmp_path / "s/cube/c/0/0/0").unlink()
    with gdist.open(tmp_path / "s", verify=verify) as store:
        for use in (np.asarray, lambda a: a[0], lambda a: a.view()):
            with pytest.raises(CorruptError, match=r"cube/c/0/0/0 of 'cube' is missing"):
                use(store["cube"])


def test_tensorstore_refuses_a_missing_shard(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample())
    (tmp_path / "s/cube/c/0/0/0").unlink()
    with gdist.open(tmp_path / "s") as store, pytest.raises(ValueError, match="NOT_FOUND"):
        store["cube"].tensorstore().read().result()


@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_shard_is_an_error(tmp_path: Path, verify: bool) -> None:
    write_store(tmp_path / "s", sample())
    os.truncate(tmp_path / "s/cube/c/0/0/0", 100)
    with (
        gdist.open(tmp_path / "s", verify=verify) as store,
        pytest.raises(CorruptError, match="has 100 bytes, not 5"),
    ):
        np.asarray(store["cube"])


def test_a_hole_is_an_error_even_without_digests(tmp_path: Path) -> None:
    array = np.ones((64, 4096), np.uint8)
    write_store(tmp_path / "s", {"w": array, "zeros": np.zeros((64, 4096), np.uint8)})
    for name in ("w", "zeros"):
        path = tmp_path / "s" / name / "c/0/0"
        size, tail = path.stat().st_size, path.read_bytes()[array.nbytes :]
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(array.nbytes)
            file.write(tail)
    with gdist.open(tmp_path / "s", verify=False) as store:
        with pytest.raises(CorruptError, match="differs from its digest"):
            np.asarray(store["w"])
        assert not np.asarray(store["zeros"]).any()  # a file system may store true zeros as a hole


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {f"t{n}": np.ones((4, 4), np.int8) for n in range(12)})
    for n in range(12):
        (tmp_path / f"s/t{n}/c/0/0").unlink()
    whole = {f"t{n}": [Box.whole((4, 4))] for n in range(12)}
    with gdist.open(tmp_path / "s") as store, pytest.raises(CorruptError, match="and 4 more") as caught:
        store.check(whole)
    assert isinstance(caught.value.faults, tuple) and len(caught.value.faults) == 12


# --- several hosts -------------------------------------------------------------------------------------


def hosts_apart(tmp_path: Path, count: int) -> list[Path]:
    roots = [tmp_path / f"host{index}" for index in range(count)]
    for index, root in enumerate(roots):
        write_store(root, sample(), mesh="4x2", rules=ON_BOTH, host=HostGroup(index, count), chunk_bytes=512)
    return roots


def test_a_host_says_which_host_has_the_rest(tmp_path: Path) -> None:
    roots = hosts_apart(tmp_path, 4)
    with gdist.open(roots[1]) as store:
        assert store.absent_hosts == (0, 2, 3)
        np.testing.assert_array_equal(store["layer.0.w"][16:32], sample()["layer.0.w"][16:32])
        with pytest.raises(RequestError, match="written by host 2 of 4") as caught:
            store["layer.0.w"][20:40]
        assert "gdist.host-00002-of-00004.json" in caught.value.hint
        assert caught.value.hosts == (2,)


def test_a_host_names_all_that_have_the_rest(tmp_path: Path) -> None:
    rows = {"rules": [["0.w$", ["data"]], [".*", []]]}
    write_store(tmp_path / "s", sample(), mesh="16x1", rules=rows, host=HostGroup(1, 16))
    with gdist.open(tmp_path / "s") as store:
        whole = {"layer.0.w": [Box.whole(store["layer.0.w"].shape)]}
        for check in (store.check, store.check_listed):
            with pytest.raises(RequestError) as caught:
                check(whole)
            names = [f"gdist.host-{host:05}-of-00016.json" for host in (0, *range(2, 9))]
            assert f"directories, with {', '.join(names)} and 7 more, into" in caught.value.hint


def test_hosts_parts_in_one_directory_are_one_store(tmp_path: Path) -> None:
    for root in hosts_apart(tmp_path, 4):
        shutil.copytree(root, tmp_path / "all", dirs_exist_ok=True)
    with gdist.open(tmp_path / "all") as store:
        assert store.absent_hosts == ()
        assert_equal(store, sample())


def test_hosts_parts_in_several_directories_are_one_store(tmp_path: Path) -> None:
    roots = hosts_apart(tmp_path, 4)
    with gdist.open(roots[::-1]) as store:
        assert store.absent_hosts == ()
        assert_equal(store, sample())
        with pytest.raises(RequestError, match="lies in 4 places"):
            store["layer.0.w"].tensorstore()
    with gdist.open([str(roots[0]), roots[2], roots[0]]) as store:
        assert store.absent_hosts == (1, 3)
        with pytest.raises(RequestError, match="written by host 1 of 4"):
            store["layer.0.w"][:]
    (roots[3] / "layer.0.w/c/3/0").unlink()
    with gdist.open(roots) as store, pytest.raises(CorruptError, match="host3"):
        store["layer.0.w"][:]
    with pytest.raises(RequestError, match="no store was given"):
        gdist.open([])


def test_parts_of_different_jobs_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), mesh="4x2", host=HostGroup(0, 2))
    write_store(tmp_path / "s", sample(), mesh="8", host=HostGroup(1, 4))
    with pytest.raises(RequestError, match="2, 4 hosts"):
        gdist.open(tmp_path / "s")


# --- what is no store ----------------------------------------------------------------------------------


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a store") as caught:
        gdist.open(tmp_path)
    assert "fetch wrote to" in caught.value.hint
    (tmp_path / ".gdist").mkdir()
    with pytest.raises(RequestError) as caught:
        gdist.open(tmp_path)
    assert caught.value.hint == "the fetch did not finish; run the same fetch again"


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8", "complex128"])
def test_large_reads_on_several_threads_equal_the_source(dtype: str) -> None:
    rng = np.random.default_rng(7)
    nbytes = rng.integers(0, 256, (3, 40, 1 << 19), np.uint8)  # 63 MB: beyond what one thread copies
    source = nbytes.view(dtype)
    out = np.zeros(source.shape, dtype)
    halves = [(source[:, :17], out[:, :17]), (source[:, 17:], out[:, 17:])]
    copy_arrays(halves, source.nbytes)
    assert out.tobytes() == source.tobytes()
    scalar = np.zeros((), dtype)
    copy_arrays([(source[2, 3, 5, ...], region(scalar, Box((), ())))], scalar.nbytes)
    assert scalar.tobytes() == source[2, 3, 5].tobytes()
