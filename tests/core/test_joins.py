"""Joining slices: random ones against NumPy, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.joins import Join, JoinProfile, JoinRule, join_files
from gdist.core.profile import FileArrays
from gdist.core.tensor import Combine, FoundArray, Order, StoredTensor
from gdist.errors import CorruptError, GdistError, UnsupportedError

Array = NDArray[Any]  # Any: several element types


@dataclass
class Line:
    """A payload in memory: files that hold arrays, in either order, with gaps between them."""

    data: bytearray = field(default_factory=bytearray)
    files: list[FileArrays] = field(default_factory=list)

    def add(self, path: str, arrays: Mapping[str, tuple[Array, Order]]) -> None:
        offset, found = len(self.data), []
        for key, (array, order) in arrays.items():
            self.data += b"\xee" * 3
            start = len(self.data) - offset
            self.data += array.tobytes(order.value)
            dtype = BY_NAME[array.dtype.name]
            found.append(FoundArray(key, Extent(start, array.nbytes), array.shape, dtype, order))
        self.files.append(FileArrays(path, offset, tuple(found), True))

    def value(self, tensor: StoredTensor) -> Array:
        """The tensor as its parts or factors have it."""
        if tensor.factors:
            copies = [self.value(factor.tensor) for factor in tensor.factors]
            if tensor.combine is Combine.EQUAL:
                assert all(copy.tobytes() == copies[0].tobytes() for copy in copies)
                return copies[0]
            return (sum(copy.astype(np.float32) for copy in copies) / len(copies)).astype(copies[0].dtype)
        out = np.zeros(tensor.spec.shape, np.dtype(tensor.spec.dtype.name))
        seen = np.zeros(tensor.spec.shape, int)
        for part in tensor.parts:
            stored = np.frombuffer(self.data[part.extent.start : part.extent.stop], out.dtype)
            out[part.box.slices()] = stored.reshape(part.box.shape, order=part.order.value)
            seen[part.box.slices()] += 1
        assert (seen == 1).all()
        return out


def profile(*rules: JoinRule, **changes: Any) -> JoinProfile:
    return JoinProfile("mine", "", r"rank(?P<shard>\d+)\.bin", rules, **changes)


@st.composite
def cases(draw: st.DrawFn) -> tuple[JoinRule, list[tuple[Array, Order]], list[Array]]:
    """A rule, what each rank has, and the tensors that are to come of it."""
    ranks, ndim = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim))
    join = draw(st.sampled_from([j for j in Join if j is not Join.DISJOINT]))
    dimension = draw(st.integers(0, ndim - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stored: list[Array] = []
    for _ in range(ranks):
        own = list(shape)
        if join is Join.CONCATENATE:
            own[dimension] = draw(st.integers(1, 4))
        stored.append(rng.standard_normal(own).astype(np.float32))
    if join is Join.REPLICATED:
        stored = [stored[0]] * ranks
    order = draw(st.sampled_from(list(Order)))
    match join:
        case Join.CONCATENATE:
            whole = np.concatenate(stored, dimension)
        case Join.STACKED:
            whole = np.stack(stored)
        case Join.REPLICATED:
            whole = stored[0]
        case _:
            whole = (sum(stored[1:], stored[0]) / np.float32(ranks)).astype(np.float32)
    made = join in (Join.REPLICATED, Join.AVERAGED) and ranks > 1
    counts = [n for n in range(1, whole.shape[0] + 1) if whole.shape[0] % n == 0]
    split = draw(st.sampled_from(counts)) if order is Order.C and not made else 0
    transpose = draw(st.booleans())
    pieces = np.split(whole, split) if split else [whole]
    name = "t.{index}" if split else "t"
    rule = JoinRule("w", join, dimension, name=name, split=split, transpose=transpose)
    return rule, [(array, order) for array in stored], [p.T if transpose else p for p in pieces]


@settings(max_examples=300)
@given(cases())
def test_what_is_joined_is_what_numpy_makes_of_it(case: Any) -> None:  # Any: as `cases` has it
    rule, stored, expected = case
    line = Line()
    for rank, array in enumerate(stored):
        line.add(f"m/rank{rank}.bin", {"w": array})
    found = {t.spec.name: t for t in join_files(profile(rule), line.files, {})}
    names = [f"t.{i}" for i in range(len(expected))] if rule.split else ["t"]
    assert set(found) == set(names)
    for name, array in zip(names, expected, strict=True):
        value = line.value(found[name])
        assert value.shape == array.shape and value.tobytes() == np.ascontiguousarray(array).tobytes()


A, B = np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32)


def files(*ranks: Mapping[str, Array], folder: str = "m/") -> list[FileArrays]:
    line = Line()
    for rank, arrays in enumerate(ranks):
        line.add(f"{folder}rank{rank}.bin", {key: (array, Order.C) for key, array in arrays.items()})
    return line.files


@pytest.mark.parametrize(
    ("rule", "ranks", "error", "words"),
    [
        (JoinRule("x"), [{"w": A}], UnsupportedError, "does not know: w"),
        (JoinRule("(.*)*x"), [{"w" * 5000: A}], UnsupportedError, "does not know: w"),
        (JoinRule("w"), [{"w": A}, {"w": A}], CorruptError, "'w' is in 2 files, not in one"),
        (JoinRule("w|v", Join.CONCATENATE), [{"w": A}, {"v": A}], CorruptError, "'w' is in 1 of 2 files"),
        (JoinRule("w", Join.CONCATENATE, 1), [{"w": A}, {"w": B}], CorruptError, r"\[2, 3\] in one file and"),
        (JoinRule("w", Join.CONCATENATE, 2), [{"w": A}, {"w": A}], CorruptError, "has no dimension 2"),
        (JoinRule("w", Join.REPLICATED), [{"w": A}, {"w": A.astype("f8")}], CorruptError, "float64"),
        (JoinRule("w", Join.STACKED), [{"w": A}, {"w": A[0]}], CorruptError, r"\[3\] in another"),
        (JoinRule("w", shape=("a", "a")), [{"w": A}], CorruptError, "where a is 2"),
        (JoinRule("w", shape=(2, 4)), [{"w": A}], CorruptError, "where 4 is 4"),
        (JoinRule("w", shape=(2,)), [{"w": A}], CorruptError, "has not 1 dimensions"),
        (JoinRule("w", name="{index}", split=4), [{"w": A}], UnsupportedError, "cannot be split in 4"),
        (JoinRule("w", name="{index}", split="n"), [{"w": A}], UnsupportedError, "cannot be split in 0"),
        (JoinRule("[wv]", name="same"), [{"w": A, "v": A}], CorruptError, "more than once: 'same'"),
    ],
)
def test_what_does_not_fit_is_said(
    rule: JoinRule, ranks: list[dict[str, Array]], error: type[GdistError], words: str
) -> None:
    with pytest.raises(error, match=words):
        join_files(profile(rule), files(*ranks), {})


def test_files_of_other_names_and_doubled_ranks_are_no_checkpoint_of_the_profile() -> None:
    rule = JoinRule("w", Join.CONCATENATE)
    (one,) = files({"w": A})
    with pytest.raises(UnsupportedError, match=r"'m/other.bin'"):
        join_files(profile(rule), [one, FileArrays("m/other.bin", 0, one.arrays, True)], {})
    with pytest.raises(UnsupportedError, match=r"'m/rank00.bin' beside 'm/rank0.bin'"):
        join_files(profile(rule), [one, FileArrays("m/rank00.bin", 0, one.arrays, True)], {})
    with pytest.raises(UnsupportedError, match="one folder; there are m/, n/"):
        join_files(profile(rule), [one, *files({"w": A}, folder="n/")], {})
    with pytest.raises(CorruptError, match="have ranks 1"):
        join_files(profile(rule), files({}, {"w": A})[1:], {})


def test_lengths_are_worked_out_from_the_document() -> None:
    sized = profile(
        JoinRule("w", shape=("a", "b")), document="p.json", sizes={"a": "x.y * z / k", "b": "missing"}
    )
    for a, fits in ((2, True), (4, False)):
        text = f'{{"x": {{"y": {a}}}, "z": 3, "k": 3}}'.encode()
        if fits:
            assert join_files(sized, files({"w": A}), {"m/p.json": text})
        else:
            with pytest.raises(CorruptError, match="where a is 4"):
                join_files(sized, files({"w": A}), {"m/p.json": text})
    with pytest.raises(CorruptError, match=r"m/p.json is not JSON"):
        join_files(sized, files({"w": A}), {"m/p.json": b"{"})
    assert join_files(sized, files({"w": A}), {"m/p.json": b"[]", "p.json": b"{"})


def test_sets_of_files_are_joined_apart_under_their_prefix() -> None:
    line = Line()
    for layer, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        line.add(f"layer{layer}-rank{rank}.bin", {"w": (A + 2 * layer + rank, Order.C)})
    joined = JoinProfile(
        "mine",
        "",
        r"layer(?P<layer>\d+)-rank(?P<shard>\d+)\.bin",
        (JoinRule(r"layer\d\.w", Join.CONCATENATE),),
        prefix="layer{layer}.",
    )
    found = {t.spec.name: line.value(t) for t in join_files(joined, line.files, {})}
    assert {name: list(value[:, 0]) for name, value in found.items()} == {
        "layer0.w": [0, 0, 1, 1],
        "layer1.w": [2, 2, 3, 3],
    }
    with pytest.raises(CorruptError, match=r"'layer1-rank0.bin' and its like have ranks 0"):
        join_files(joined, line.files[:-1], {})
