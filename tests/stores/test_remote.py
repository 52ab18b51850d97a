"""Stores elsewhere, and compressed ones: read through TensorStore, digests checked all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

import gdist
from gdist.core.box import Box
from gdist.core.mesh import HostGroup
from gdist.errors import CorruptError, RequestError, TransferError
from gdist.kvstore import kvstore_spec, shared_context
from gdist.stores.remote import RemoteFiles, translate
from gdist.testing.buckets import s3_bucket
from gdist.testing.stores import Array, write_store

RULES = {"rules": [["w$", ["data", "model"]], [".*", []]]}


def sample() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        "a.w": rng.integers(-128, 127, (32, 64)).astype(np.int8),
        "b": rng.standard_normal((4, 6)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(1.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
    }


def assert_all(store: gdist.stores.Store) -> None:
    for name, array in sample().items():
        assert np.asarray(store[name]).tobytes() == array.tobytes(), name
    np.testing.assert_array_equal(store["a.w"][5:9, ::2], sample()["a.w"][5:9, ::2])
    assert store["a.w"].view() is None


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_store_in_memory(request: pytest.FixtureRequest, codec: str, verify: bool) -> None:
    url = f"memory://{request.node.name}/s"
    write_store(url, sample(), mesh="4x2", rules=RULES, chunk_bytes=64, codec=codec)
    with gdist.open(url, verify=verify) as store:
        assert_all(store)


def odd(like: Array) -> Array:
    """An array of zeros like another, at an odd address."""
    memory = np.zeros(like.nbytes + 1, np.uint8)
    skip = 1 - memory.ctypes.data % 2
    return memory[skip : skip + like.nbytes].view(like.dtype).reshape(like.shape)


def sparse(like: Array) -> Array:
    """An array of zeros like another, in every other place of its memory, backwards."""
    wide = np.zeros((*like.shape, 2), like.dtype)[..., 1]
    return wide[::-1] if wide.ndim else wide


def turned(like: Array) -> Array:
    """An array of zeros like another, in Fortran order at an odd address."""
    return odd(like.T).T


@pytest.mark.parametrize("place", [odd, sparse, turned])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_memory_of_any_alignment_and_order_is_filled(
    tmp_path: Path, codec: str, verify: bool, place: Callable[[Array], Array]
) -> None:
    arrays = sample() | {"wide": np.arange(60.0).reshape(5, 3, 4), "z": np.arange(9) * (1 + 2j)}
    write_store(tmp_path / "s", arrays, mesh="4x2", rules=RULES, chunk_bytes=64, codec=codec)
    with gdist.open(tmp_path / "s", verify=verify) as store:
        for name, array in arrays.items():
            for box in (Box.whole(array.shape), Box.whole(tuple(size - size // 2 for size in array.shape))):
                out = place(array[box.slices()])
                store[name].read(box, out)
                assert out.tobytes() == array[box.slices()].tobytes(), (name, box)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_memory_that_may_not_be_written_is_refused(tmp_path: Path, codec: str) -> None:
    write_store(tmp_path / "s", sample(), codec=codec)
    out = np.zeros((4, 6), ml_dtypes.bfloat16)
    out.flags.writeable = False
    for verify in (True, False):
        store = gdist.open(tmp_path / "s", verify=verify)
        with store, pytest.raises(RequestError, match="read-only"):
            store["b"].read(None, out)


def test_a_compressed_store_in_a_directory(tmp_path: Path) -> None:
    write_store(tmp_path / "s", sample(), mesh="2", chunk_bytes=64, codec="zstd")
    with gdist.open(tmp_path / "s") as store:
        assert_all(store)
    (tmp_path / "s/a.w/c/0/0").unlink()
    with gdist.open(tmp_path / "s") as store, pytest.raises(CorruptError, match="missing"):
        np.asarray(store["a.w"])


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    write_store(tmp_path / "with space", sample())
    with gdist.open((tmp_path / "with space").as_uri()) as store:
        assert store["a.w"].view() is not None


def test_bytes_that_differ_from_their_digest_are_refused(request: pytest.FixtureRequest) -> None:
    url = f"memory://{request.node.name}"
    write_store(url, sample(), chunk_bytes=64)
    with gdist.open(url) as store:
        array = store["a.w"].tensorstore()
        array[17, 3] = int(array[17, 3].read().result()) ^ 1
        np.testing.assert_array_equal(store["a.w"][:17], sample()["a.w"][:17])
        with pytest.raises(CorruptError, match=r"chunk \(17, 0\) of shard a.w/c/0/0") as caught:
            store["a.w"][10:20]
    assert "delete one that lies elsewhere" in caught.value.hint, "a fetch would say that all is complete"


def test_hosts_in_one_bucket_are_one_store(request: pytest.FixtureRequest) -> None:
    url = f"memory://{request.node.name}"
    write_store(url, sample(), mesh="4x2", rules=RULES, host=HostGroup(0, 2))
    with gdist.open(url) as store, pytest.raises(RequestError, match="host 1 of 2"):
        np.asarray(store["a.w"])
    write_store(url, sample(), mesh="4x2", rules=RULES, host=HostGroup(1, 2))
    with gdist.open(url) as store:
        assert_all(store)


def test_a_missing_shard_is_never_zeros(request: pytest.FixtureRequest) -> None:
    url = f"memory://{request.node.name}"
    write_store(url, sample())
    ts.KvStore.open(kvstore_spec(url), context=shared_context()).result().delete_range(
        ts.KvStore.KeyRange("a.w/c", "a.w/d")
    ).result()
    for verify in (True, False):
        with gdist.open(url, verify=verify) as store, pytest.raises(CorruptError, match="missing"):
            np.asarray(store["a.w"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send_head(self):  # type: ignore[no-untyped-def]  # byte ranges, which the base class ignores
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(403 if "secret" in self.path else 404)
                return
            data = path.read_bytes()
            first, last, code = 0, len(data) - 1, 200
            wanted = None if "whole" in self.path else self.headers.get("Range")
            if wanted:
                code, (a, b) = 206, wanted.removeprefix("bytes=").split("-")
                first = int(a) if a else max(len(data) - int(b), 0)
                last = int(b) if a and b else last
            self.send_response(code)
            self.send_header("Content-Length", str(last + 1 - first))
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[first : last + 1])

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_server_that_gives_only_whole_files_is_not_a_corrupt_store(tmp_path: Path, server: str) -> None:
    write_store(tmp_path / "whole", sample(), chunk_bytes=64)
    with gdist.open(f"{server}/whole") as store, pytest.raises(RequestError, match="range requests") as error:
        np.asarray(store["a.w"])
    assert "tensorstore_spec" not in error.value.message
    with pytest.raises(RequestError, match="range requests"):
        gdist.verify(f"{server}/whole")


def test_a_store_over_http(tmp_path: Path, server: str) -> None:
    write_store(tmp_path / "s", sample(), mesh="4x2", rules=RULES, chunk_bytes=64)
    with gdist.open(f"{server}/s") as store:
        assert_all(store)
    with pytest.raises(RequestError, match="is not a store"):
        gdist.open(f"{server}/elsewhere")
    report = gdist.verify(f"{server}/s")
    assert report.ok and report.nbytes == sum(array.nbytes for array in sample().values())


def test_directories_of_hosts_over_http(tmp_path: Path, server: str) -> None:
    for index in range(3):
        write_store(tmp_path / f"s/{index}", sample(), mesh="3x1", host=HostGroup(index, 3), chunk_bytes=64)
    for order in ((0, 1, 2), (2, 0, 1)):
        with gdist.open([f"{server}/s/{index}" for index in order]) as store:
            assert_all(store)
    gdist.reshard([f"{server}/s/{index}" for index in range(3)], tmp_path / "joined")
    assert gdist.verify(tmp_path / "joined").ok
    places = [f"{server}/s/0", f"{server}/s/1"]
    for attempt in (gdist.open, lambda few: gdist.reshard(few, tmp_path / "few")):
        with pytest.raises(RequestError) as error:
            attempt(places)
        assert "over HTTP, which lists nothing, those of all hosts" in error.value.hint


def test_a_server_that_refuses_is_not_asked_again(tmp_path: Path, server: str) -> None:
    (tmp_path / "secret").mkdir()
    with pytest.raises(RequestError, match="access is refused"):
        gdist.open(f"{server}/secret")


@pytest.mark.parametrize(
    ("message", "family"),
    [
        ("NOT_FOUND: chunk {0} is missing", CorruptError),
        ("NOT_FOUND: NoSuchBucket: The specified bucket does not exist [http_response_body='", RequestError),
        ('NOT_FOUND: Error writing: {"message": "The specified bucket does not exist."}', RequestError),
        ("DATA_LOSS: Digest mismatch", CorruptError),
        ("FAILED_PRECONDITION: Expected dtype", CorruptError),
        ("UNAUTHENTICATED: no token", RequestError),
        ("UNAVAILABLE: connection refused", TransferError),
        ("DEADLINE_EXCEEDED: too slow", TransferError),
        ("something else", TransferError),
    ],
)
def test_tensorstore_errors_are_ours_by_their_status(message: str, family: type[Exception]) -> None:
    assert type(translate(ValueError(message), "reading 'w'")) is family


def test_a_bucket_that_does_not_exist_is_no_damage() -> None:
    with s3_bucket(), pytest.raises(RequestError, match=r"^listing s3://none/k: the bucket does not exist$"):
        RemoteFiles("s3://none/k").manifests()
