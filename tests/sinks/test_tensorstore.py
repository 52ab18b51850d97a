"""The TensorStore sink's own: what goes over the wire, and what a target that fails says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from gdist.core.placer import Placer
from gdist.errors import TransferError
from gdist.kvstore import kvstore_spec, shared_context
from gdist.sinks.tensorstore import TensorStoreSink
from gdist.testing.sink_suite import commit, job, place


def test_a_committed_shard_leaves_no_part(tmp_path: Path) -> None:
    work = job()
    sink, placer = TensorStoreSink(kvstore_spec("memory://no-part"), tmp_path, work.plan), Placer(work.plan)
    whole = place(sink, work, placer, placer.wanted())
    assert len(list((tmp_path / "parts").iterdir())) == len(whole)
    commit(sink, work, whole)
    assert list((tmp_path / "parts").iterdir()) == []
    sink.close()


def test_zstd_makes_a_shard_of_one_value_small(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    work, sizes = job(), {}
    for codec in ("none", "zstd"):
        spec = kvstore_spec(f"memory://{request.node.name}/{codec}")
        sink, placer = TensorStoreSink(spec, tmp_path / codec, work.plan, codec), Placer(work.plan)
        commit(sink, work, place(sink, work, placer, placer.wanted()))
        sink.close()
        store = ts.KvStore.open(spec, context=shared_context()).result()
        keys = [key for key in store.list().result() if key.startswith(b"poison/c")]
        sizes[codec] = sum(len(store.read(key).result().value) for key in keys)
    assert sizes["none"] > 64 and sizes["zstd"] > 0, "poison is data like any other"
    assert sizes["zstd"] < sizes["none"]


def test_a_target_that_cannot_be_written_is_a_transfer_error_and_the_part_stays(tmp_path: Path) -> None:
    work = job()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/layer.0.w").write_text("a file where a directory must be")
    sink = TensorStoreSink(kvstore_spec(tmp_path / "store"), tmp_path / "work", work.plan)
    placer = Placer(work.plan)
    whole = place(sink, work, placer, placer.wanted())
    task = next(task for task in whole if task.tensor == 0)
    with pytest.raises(TransferError, match=r"writing layer.0.w/c/\S+ to the file target failed") as caught:
        sink.commit(task)
    assert "resumes" in caught.value.hint
    (tmp_path / "store/layer.0.w").unlink()
    assert sink.commit(task) == work.record(task), "the same commit can be tried again"
    sink.close()


def test_a_target_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    work = job()
    spec = {"driver": "http", "base_url": "http://127.0.0.1:9", "path": "/"}
    sink = TensorStoreSink(spec, tmp_path, work.plan)
    with pytest.raises(TransferError, match="to the http target failed"):
        sink.write_document("assets/a", b"1")
    sink.close()


def test_values_are_bits_whatever_they_mean(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Signalling NaNs, negative zeros and infinities pass unchanged."""
    work = job(seed=3)
    bits = np.array([0x7FA0, 0xFFC1, 0x8000, 0x7F80, 0x0001], np.uint16)
    data = bytearray(work.data)
    tensor = next(t for t in work.plan.tensors if t.tensor.spec.name == "layer.1.w")
    start = tensor.tensor.parts[0].extent.start
    data[start : start + 10] = bits.tobytes()
    spec = kvstore_spec(f"memory://{request.node.name}")
    sink, placer = TensorStoreSink(spec, tmp_path, work.plan), Placer(work.plan)
    for piece in placer.wanted():
        extent = work.plan.payload.extent_of(piece)
        sink.place(placer.accept(piece), memoryview(data)[extent.start : extent.stop])
        for task in placer.settle(piece):
            sink.commit(task)
    sink.publish(tensor)
    sink.close()
    under = {**spec, "path": f"{spec['path']}layer.1.w/"}
    array = ts.open({"driver": "zarr3", "kvstore": under}, context=shared_context()).result()
    column = np.ascontiguousarray(np.asarray(array[:5, 0].read().result())).view(np.uint16)  # Fortran order
    np.testing.assert_array_equal(column, bits)
