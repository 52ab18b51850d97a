"""Values are those that JAX gives, and a conversion that was cut off at any moment is done again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gdist.core.placer import Placement, Placer
from gdist.errors import TransferError
from gdist.kvstore import kvstore_spec
from gdist.sinks import convert
from gdist.sinks.convert import ConvertingSink, product
from gdist.sinks.local import LocalSink
from gdist.testing.sink_suite import Job, Target, assert_readable, commit, job, place

TYPES = ("bfloat16", "float16", "float32")


class Failing:
    """A directory that fails at its `after`-th block."""

    def __init__(self, sink: LocalSink, after: int):
        self._sink, self._left = sink, after

    def place(self, placements: Iterable[Placement], piece: memoryview) -> None:
        self._left -= 1
        if not self._left:
            raise TransferError("gone")
        self._sink.place(placements, piece)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sink, name)


def sink_at(root: Path, work: Job) -> ConvertingSink:
    return ConvertingSink(LocalSink(root, root / ".gdist", work.plan), root / ".gdist", work.plan)


@pytest.mark.parametrize("robbed", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_shard_that_was_being_made_is_made_again(
    after: int, robbed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "BLOCK_BYTES", 256)
    work = job(dtype="bfloat16", shard_bytes=None)
    root = tmp_path / "s"
    first, placer = sink_at(root, work), Placer(work.plan)
    whole = place(first, work, placer, placer.wanted())
    task = next(task for task in whole if work.key(task).startswith("pair.w"))
    cut = ConvertingSink(
        Failing(LocalSink(root, root / ".gdist", work.plan), after), root / ".gdist", work.plan
    )  # type: ignore[arg-type]
    cut.restore(())
    with pytest.raises(TransferError):
        cut.commit(task)
    cut.close()
    first.close()
    if robbed:
        shutil.rmtree(root / ".gdist/staged")

    second = sink_at(root, work)
    done, partial = second.restore(())
    made = {t for t in whole if work.plan.tensors[t.tensor].tensor.factors}
    assert not done and (partial & made == (set() if robbed else made))
    placer = Placer(work.plan, placed=work.plan.pieces, partial=partial)
    commit(second, work, [*placer.whole(), *place(second, work, placer, placer.wanted())])
    for tensor in work.plan.tensors:
        second.publish(tensor)
    second.close()
    assert not any((root / ".gdist/staged").iterdir()), "what was made of is removed"
    assert_readable(Target(lambda plan: second, kvstore_spec(root)), work)


@pytest.mark.parametrize("block", [4, 100, 4096])
def test_blocks_of_any_size_make_the_same(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "BLOCK_BYTES", block)
    work = job(dtype="float16")
    sink, placer = sink_at(tmp_path, work), Placer(work.plan)
    commit(sink, work, place(sink, work, placer, placer.wanted()))
    sink.close()


@pytest.mark.jax
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"])
def test_a_cast_is_as_in_jax(source: str, dtype: str) -> None:
    jnp = pytest.importorskip("jax.numpy")
    raw = np.random.default_rng(1).integers(0, 256, 400_000, np.uint8).view(np.dtype(source))
    wide = raw.astype(np.float32)
    raw = raw[~np.isnan(wide) & ~((np.abs(wide) < 2.0**-126) & (wide != 0))]  # XLA takes subnormals for zeros
    assert product([raw], np.dtype(dtype)).tobytes() == np.asarray(jnp.asarray(raw).astype(dtype)).tobytes()


@pytest.mark.jax
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scales", ["bfloat16", "float16", "float32"])
def test_a_pair_is_dequantised_as_in_jax(scales: str, dtype: str) -> None:
    pytest.importorskip("jax")
    import jax.numpy as jnp

    import gdist

    rng = np.random.default_rng(2)
    weight = rng.integers(-128, 128, (3, 64, 50)).astype(np.int8)
    factor = (rng.standard_normal((3, 8, 50)) * 10.0 ** rng.integers(-4, 4, (3, 8, 50))).astype(
        np.dtype(scales)
    )
    expected = gdist.QuantizedWeight8bit(jnp.asarray(weight), jnp.asarray(factor)).dequantize(dtype)
    found = product([weight, np.repeat(factor, 8, axis=1)], np.dtype(dtype))
    wide = found.astype(np.float32)
    normal = (np.abs(wide) >= np.float32(ml_dtypes.finfo(found.dtype).smallest_normal)) | (wide == 0)
    assert normal.mean() > 0.5
    assert found[normal].tobytes() == np.asarray(expected)[normal].tobytes()


def test_values_are_rounded_once_to_nearest_even() -> None:
    one = np.float32(1)
    ties = np.array([one + 2**-8, one + 3 * 2**-8, one + 2**-8 + 2**-20], np.float32)
    assert product([ties], np.dtype("bfloat16")).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    big = product([np.array([127], np.int8), np.array([1e4], np.float32)], np.dtype("float16"))
    assert np.isinf(big).all(), "what is too large becomes infinite, as in JAX"
