"""Every sink keeps the same contract, in a directory, in memory, in a bucket, compressed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gdist.core.plan import HostPlan
from gdist.kvstore import kvstore_spec
from gdist.sinks import Sink
from gdist.sinks.convert import ConvertingSink
from gdist.sinks.local import LocalSink
from gdist.sinks.tensorstore import TensorStoreSink
from gdist.testing.buckets import s3_bucket
from gdist.testing.sink_suite import CHECKS, Target

pytest.importorskip("moto.server")

Check = Callable[[Target], None]
each_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
each_codec = pytest.mark.parametrize("codec", ["none", "zstd"])


def tensorstore_target(url: str, work: Path, codec: str) -> Target:
    def open_sink(plan: HostPlan) -> Sink:
        return TensorStoreSink(kvstore_spec(url), work, plan, codec)

    return Target(open_sink, kvstore_spec(url))


@each_check
def test_a_directory(tmp_path: Path, check: Check) -> None:
    root = tmp_path / "store"
    check(Target(lambda plan: LocalSink(root, root / ".gdist", plan), kvstore_spec(root)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@each_check
def test_a_directory_behind_a_conversion(tmp_path: Path, check: Check, dtype: str) -> None:
    root = tmp_path / "store"

    def open_sink(plan: HostPlan) -> Sink:
        return ConvertingSink(LocalSink(root, root / ".gdist", plan), root / ".gdist", plan)

    check(Target(open_sink, kvstore_spec(root), dtype))


@each_check
def test_a_compressed_store_behind_a_conversion(tmp_path: Path, check: Check) -> None:
    behind = tensorstore_target((tmp_path / "store").as_uri(), tmp_path / "work", "zstd")
    check(replace(behind, open=lambda p: ConvertingSink(behind.open(p), tmp_path, p), dtype="bfloat16"))


@each_codec
@each_check
def test_a_directory_through_tensorstore(tmp_path: Path, check: Check, codec: str) -> None:
    check(tensorstore_target((tmp_path / "store").as_uri(), tmp_path / "work", codec))


@each_codec
@each_check
def test_memory(request: pytest.FixtureRequest, tmp_path: Path, check: Check, codec: str) -> None:
    check(tensorstore_target(f"memory://{request.node.name}", tmp_path, codec))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a bucket on a server of our own."""
    with s3_bucket() as url:
        yield url


@pytest.mark.slow
@each_codec
@each_check
def test_a_bucket(request: pytest.FixtureRequest, tmp_path: Path, s3: str, check: Check, codec: str) -> None:
    check(tensorstore_target(f"{s3}/{check.__name__}/{codec}", tmp_path, codec))
