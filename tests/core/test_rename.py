"""Renaming tables as values: what is no table, what one makes of tensors, where each box comes from."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.rename import NamedTensor, Renamed, parse_table, plan_renames
from gdist.core.tensor import Quantisation
from gdist.errors import RequestError

STACK = {"match": r"l\.(?P<layer>\d+)\.w", "to": "w", "stack": "layer"}


def table(*rules: dict[str, object], keep: bool = False) -> Any:
    return parse_table({"name": "t", "rename": list(rules), "other": {"keep": keep}})


def tensors(*names: str, shape: tuple[int, ...] = (4, 6), dtype: str = "float32") -> list[NamedTensor]:
    return [NamedTensor(name, shape, dtype) for name in names]


def pair(name: str) -> list[NamedTensor]:
    return [
        NamedTensor(f"{name}.{role}", (2, 4), "int8", Quantisation(name, role, 1, 0))
        for role in ("weight", "scales")
    ]


# --- what a plan says, against NumPy --------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> tuple[Renamed, dict[str, Any], Any]:
    """A tensor of a plan, the arrays it is made of, and what NumPy makes of them."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)))
    layers = draw(st.integers(1, 12))
    transpose, axis = draw(st.booleans()), draw(st.integers(0, len(shape)))
    order = draw(st.permutations(range(layers)))
    arrays = {f"l.{n}.w": np.random.default_rng(n).integers(0, 99, shape) for n in order}
    rules = table({**STACK, "transpose": transpose, "axis": axis})
    (renamed,) = plan_renames(rules, [NamedTensor(n, shape, "int64") for n in arrays]).tensors
    turned = [arrays[f"l.{n}.w"].T if transpose else arrays[f"l.{n}.w"] for n in range(layers)]
    return renamed, arrays, np.stack(turned, axis)


@given(plans(), st.data())
def test_boxes_of_sources_are_the_box_that_numpy_gives(
    made: tuple[Renamed, dict[str, Any], Any], data: st.DataObject
) -> None:
    renamed, arrays, whole = made
    assert renamed.shape == whole.shape
    start = tuple(data.draw(st.integers(0, size - 1)) for size in whole.shape)
    stop = tuple(data.draw(st.integers(a + 1, size)) for a, size in zip(start, whole.shape, strict=True))
    box, axis = Box(start, stop), renamed.axis
    assert axis is not None
    parts = [arrays[name][inner.slices()] for name, _, inner in renamed.source_boxes(box)]
    places = [place for _, place, _ in renamed.source_boxes(box)]
    assert places == list(range(start[axis], stop[axis]))
    found = np.stack([part.T if renamed.transpose else part for part in parts], axis)
    assert found.tobytes() == np.ascontiguousarray(whole[box.slices()]).tobytes()


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=30))
def test_one_rule_takes_every_number_and_loses_none(numbers: list[int]) -> None:
    names = [f"layers.{n}.wq.weight" for n in numbers]
    rules = table({"match": r"layers\.(\d+)\.wq\.weight", "to": r"h.\1.query.kernel", "transpose": True})
    plan = plan_renames(rules, tensors(*names, shape=(2, 3)))
    assert [t.name for t in plan.tensors] == [f"h.{n}.query.kernel" for n in numbers]
    assert [t.sources for t in plan.tensors] == [(name,) for name in names]
    assert {t.shape for t in plan.tensors} == {(3, 2)} and not plan.unmatched


def test_the_first_rule_that_matches_the_whole_name_wins() -> None:
    rules = table(
        {"match": r"a\.b", "drop": True}, {"match": r"a\..", "to": "x"}, {"match": ".*", "to": r"all.\g<0>"}
    )
    plan = plan_renames(rules, tensors("a.b", "a.c", "a.cc"))
    assert [t.name for t in plan.tensors] == ["x", "all.a.cc"] and plan.dropped == ("a.b",)


def test_what_no_rule_matches_is_listed_or_kept() -> None:
    rule = {"match": "a", "to": "b"}
    plan = plan_renames(table(rule), tensors("a", "c", "d"))
    assert plan.unmatched == ("c", "d")
    with pytest.raises(RequestError, match="has no rule for 2 tensors: c, d") as caught:
        plan.check_complete()
    assert caught.value.unmatched == ("c", "d")  # type: ignore[attr-defined]
    kept = plan_renames(table(rule, keep=True), tensors("a", "c", "d"))
    assert [t.name for t in kept.tensors] == ["b", "c", "d"]
    kept.check_complete()


def test_both_halves_of_a_pair_go_by_the_pairs_name() -> None:
    plan = plan_renames(table({"match": r"moe\.w", "to": "experts"}), pair("moe.w"))
    assert [t.name for t in plan.tensors] == ["experts.weight", "experts.scales"]
    assert {t.quantisation.pair for t in plan.tensors if t.quantisation} == {"experts"}
    assert all(t.is_same for t in plan.tensors)


def test_encoded_blocks_keep_what_they_are_and_are_not_turned() -> None:
    blocks = [NamedTensor(f"l.{n}.w", (4, 18), "uint8", None, "gguf.q4_0") for n in range(2)]
    (made,) = plan_renames(table(STACK), blocks).tensors
    assert made.encoding == "gguf.q4_0" and made.shape == (2, 4, 18)
    for change in ({"transpose": True}, {"axis": 1}):
        with pytest.raises(
            RequestError, match=r"'l\.0\.w' is blocks of gguf\.q4_0, which cannot be transposed"
        ):
            plan_renames(table({**STACK, **change}), blocks)
    with pytest.raises(RequestError, match=r"'l\.1\.w' are of other shapes or types"):
        plan_renames(table(STACK), [blocks[0], NamedTensor("l.1.w", (4, 18), "uint8")])


def test_the_groups_of_a_pair_keep_their_dimension() -> None:
    rule = {**STACK, "match": r"l(?P<layer>\d)", "transpose": True}
    for axis, dimension in ((0, 2), (1, 2), (2, 1)):
        plan = plan_renames(table({**rule, "axis": axis}), pair("l0") + pair("l1"))
        weight, scales = plan.tensors
        assert (weight.name, weight.sources) == ("w.weight", ("l0.weight", "l1.weight"))
        assert weight.quantisation == Quantisation("w", "weight", 1, dimension), axis
        assert scales.quantisation == Quantisation("w", "scales", 1, dimension)


@pytest.mark.parametrize(
    ("rules", "given", "why"),
    [
        ([{"match": ".", "to": "x"}], tensors("a", "b"), "'x' is what 'a', 'b' become"),
        ([STACK], tensors("l.0.w", "l.2.w"), "'w' is stacked of 2, and number 1 is missing"),
        ([STACK], tensors("l.1.w"), "'w' is stacked of 1, and number 0 is missing"),
        ([STACK], tensors("l.999999999.w"), "number 0 is missing"),
        ([STACK], tensors("l.1.w", "l.01.w", "l.0.w"), "'w' has several tensors number 1"),
        ([STACK], tensors("l.0.w") + tensors("l.1.w", shape=(4, 7)), "'l.1.w' are of other shapes or types"),
        ([STACK], tensors("l.0.w") + tensors("l.1.w", dtype="int8"), "'l.1.w' are of other shapes or types"),
        ([{**STACK, "axis": 3}], tensors("l.0.w"), "axis 3 is past the 2 of 'l.0.w'"),
        ([STACK, {"match": "v", "to": "w"}], tensors("l.0.w", "v"), "'w' is what several rules make of"),
        ([{**STACK, "match": "l(?P<layer>.)"}], tensors("lx"), "'lx' has 'x' where the number in the stack"),
        ([{"match": ".*", "to": "../x"}], tensors("a"), "is not a plain relative path"),
        ([{"match": "(a)?b", "to": r"\1"}], tensors("b"), "tensor name '' is empty"),
        ([{"match": ".", "to": "x"}], pair("p") + pair("q"), "'x.scales' is what 'p.scales', 'q.scales'"),
        ([{**STACK, "match": "l(?P<layer>.)"}], pair("l0") + pair("l2"), "'w.scales' is stacked of 2"),
    ],
)
def test_what_cannot_be_is_named(rules: list[Any], given: list[NamedTensor], why: str) -> None:
    with pytest.raises(RequestError, match=re.escape(why)) as caught:
        plan_renames(table(*rules), given)
    assert "the table 't' does not fit" in caught.value.message


# --- what is no table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "there is no list of [[rename]]"),
        ({"rename": {}}, "there is no list of [[rename]]"),
        ({"rename": [], "renames": []}, "'renames' is none of name, title, rename, other"),
        ({"rename": [], "name": 3}, "name is no text"),
        ({"rename": [], "other": {"keep": 1}}, "[other] has keep = true or false"),
        ({"rename": [], "other": {"drop": True}}, "[other] has keep = true or false"),
        ({"rename": ["x"]}, "rename 1: it has no match"),
        ({"rename": [{"match": "a"}]}, "rename 1: it has neither to"),
        ({"rename": [{"match": "a", "to": "b", "from": "c"}]}, "from is none of match"),
        ({"rename": [{"match": "(", "to": "b"}]}, "no regular expression"),
        ({"rename": [{"match": "a", "to": r"\1"}]}, "does not fit the pattern: invalid group reference"),
        ({"rename": [{"match": "a", "to": r"\g<x>"}]}, "does not fit the pattern: unknown group name"),
        ({"rename": [{"match": "a", "to": "b", "transpose": "yes"}]}, "transpose is 'yes', no bool"),
        ({"rename": [{"match": "a", "to": "b", "axis": True}]}, "axis is True, no int"),
        ({"rename": [{"match": "a", "to": "b", "axis": 1}]}, "axis is of a stack, and there is none"),
        ({"rename": [{**STACK, "axis": -1}]}, "axis -1 is no place"),
        ({"rename": [{"match": "a", "to": "b", "stack": "layer"}]}, "stack 'layer' is no group"),
        ({"rename": [{**STACK, "to": r"w.\g<layer>"}]}, "to has the group 'layer', which is what is stacked"),
        ({"rename": [{"match": "a", "drop": True, "to": "b"}]}, "what is dropped becomes nothing else"),
    ],
)
def test_what_is_no_table_is_refused(value: object, why: str) -> None:
    with pytest.raises(RequestError, match=re.escape(why)):
        parse_table(value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(RequestError, match=r"rename 1: .*; rename 3: "):
        parse_table({"rename": [{"match": "("}, {"match": "a", "to": "b"}, {}]})
