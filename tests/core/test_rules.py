"""Partition rules: what is read, what is refused, and which spec a tensor gets."""

from __future__ import annotations

import itertools
from math import lcm, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.fits import faults_of
from gdist.core.mesh import Mesh, PartitionSpec, slab_of, split_counts
from gdist.core.rules import (
    Rules,
    automatic_spec,
    check_used,
    complete_mesh,
    parse_rules,
    parse_spec,
    resolve_specs,
    spec_for_scales,
    spec_for_tensor,
)
from gdist.core.tensor import Part, Quantisation, StoredTensor, TensorSpec
from gdist.errors import RequestError

MESH = Mesh((("data", 2), ("model", 4)))


def tensor(name: str, *shape: int, quantisation: Quantisation | None = None) -> StoredTensor:
    spec = TensorSpec(name, shape, BY_NAME["int8"])
    return StoredTensor(spec, (Part(Extent(0, spec.nbytes), Box.whole(shape)),), quantisation)


def rules(*pairs: tuple[str, list[object]]) -> Rules:
    return parse_rules({"axes": ["data", "model"], "rules": [list(pair) for pair in pairs]})


def test_the_first_rule_that_is_found_in_the_name_wins() -> None:
    table = rules(("w$", [None, "model"]), ("layer", ["data"]), (".*", []))
    found = [table.spec_for(name) for name in ("layer.0.w", "layer.0.b", "scale")]
    assert [str(spec) for spec in found] == ["P(None, model)", "P(data)", "P()"]
    assert parse_rules(table.to_json()) == table
    assert rules(("w$", [])).spec_for("x") is None


AXES = st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True, max_size=4)


@given(AXES, st.data())
def test_a_spec_survives_json(axes: list[str], data: st.DataObject) -> None:
    dims: list[tuple[str, ...]] = [() for _ in range(data.draw(st.integers(1, 3)))]
    for axis in axes:
        place = data.draw(st.integers(0, len(dims) - 1))
        dims[place] += (axis,)
    assert parse_spec(PartitionSpec(tuple(dims)).to_json()).dims == tuple(dims)


@pytest.mark.parametrize("value", [None, "model", {"0": "model"}, [1], [["model", 1]], [{}], ["a", "a"]])
def test_what_is_no_spec_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match="partition spec"):
        parse_spec(value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "not an object"),
        ({}, "not an object with a list named 'rules'"),
        ({"rules": {"w": []}}, "not an object with a list"),
        ({"rules": [], "axes": "data"}, "axes of the rules are 'data'"),
        ({"rules": [], "axes": [1]}, "axes of the rules"),
        ({"rules": ["w"]}, "rule 0: 'w' is not"),
        ({"rules": [["w"]]}, "is not .REGEX, SPEC."),
        ({"rules": [[1, []]]}, "is not .REGEX, SPEC."),
        ({"rules": [["(", []]]}, "rule 0: '.' is not a regular expression"),
        ({"rules": [["w", "model"]]}, "rule 0: partition spec 'model' is not a list"),
        ({"rules": [], "axis": ["data"]}, "'axis' is none of axes, rules"),
        ({"rules": [], "axes": ["data", "data"]}, "name one twice"),
        ({"rules": [], "axes": ["da ta"]}, "axis 'da ta' is no name"),
        ({"rules": [["w", ["\ud800"]]]}, "rule 0: axis '.ud800' is no name"),
        (
            {"rules": [["w", ["modle"]]], "axes": ["data", "model"]},
            "'modle' is not among the axes data, model",
        ),
        ({"rules": [["w{9999999999}", []]]}, "is not a regular expression"),
    ],
)
def test_what_are_no_rules_is_refused(value: object, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse_rules(value)
    assert caught.value.hint


def test_all_faults_of_rules_are_named_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        parse_rules({"rules": [["(", []], ["ok", []], ["w"], ["x", [3]]]})
    assert [f"rule {number}" in str(caught.value) for number in range(4)] == [True, False, True, True]


@given(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=3), st.lists(st.integers(0, 24), max_size=3))
def test_the_automatic_spec_splits_as_much_as_can_be_split(sizes: list[int], shape: list[int]) -> None:
    mesh = Mesh(tuple(zip("abc", sizes, strict=False)))
    spec = automatic_spec(mesh, tuple(shape))
    assert faults_of(mesh, spec, "w", tuple(shape)) == ()
    used = [dim for dim in spec.dims if dim]
    assert len(used) <= 1
    if len(shape) < 2:
        assert not used
        return
    names = [name for name, size in mesh.axes if size > 1]
    runs = [tuple(names[first:]) for first in range(len(names))]
    sizes_of = dict(mesh.axes)
    options = [
        (prod(sizes_of[name] for name in run), size, -dimension)
        for run, (dimension, size) in itertools.product(runs, enumerate(shape))
        if size and size % prod(sizes_of[name] for name in run) == 0
    ]
    if not options:
        assert not used
        return
    count, _, dimension = max(options)
    assert split_counts(mesh, spec, len(shape))[-dimension] == count


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), "P()"),  # a scalar is on every device
        ((4096,), "P()"),  # so is a vector: it is small, and everything needs it
        ((16, 32), "P(None, (data, model))"),  # the largest dimension
        ((32, 32), "P((data, model))"),  # the first of two
        ((16, 33), "P((data, model))"),  # else another one
        ((12, 33), "P(model)"),  # else as many axes as go
        ((5, 7), "P()"),  # else whole
        ((0, 5), "P()"),  # nothing cannot be split
    ],
)
def test_the_automatic_spec_by_example(shape: tuple[int, ...], spec: str) -> None:
    assert str(automatic_spec(MESH, shape)) == spec


@pytest.mark.parametrize(
    ("mesh", "shape", "spec"),
    [
        (MESH, (1, 32), "P(None, model)"),  # one group belongs to every device
        (MESH, (8, 32), "P(data, model)"),  # the groups go with the rows that they scale
        (Mesh((("data", 16), ("model", 1))), (8, 32), "P(None, model)"),  # more devices than groups
        (MESH, (8, 6), "P(data, None)"),  # a dimension that does not divide stays whole
    ],
)
def test_the_rule_of_a_pair_speaks_of_the_weight(mesh: Mesh, shape: tuple[int, ...], spec: str) -> None:
    table = rules((r"w$", ["data", "model"]))
    scales = tensor("a.w.scales", *shape, quantisation=Quantisation("a.w", "scales", shape[0], 0))
    weight = tensor("a.w.weight", 64, 32, quantisation=Quantisation("a.w", "weight", shape[0], 0))
    assert str(spec_for_tensor(mesh, table, scales)) == spec
    assert str(spec_for_tensor(mesh, table, weight)) == "P(data, model)"


@given(st.data())
def test_every_device_has_the_groups_of_its_rows(data: st.DataObject) -> None:
    """Just those, where the groups divide as the rows do; else more, at places that its box tells."""
    names = "ab"[: data.draw(st.integers(0, 2))]
    mesh = Mesh(tuple((name, data.draw(st.sampled_from([1, 2, 3, 4, 8, 16]))) for name in names))
    dims: list[tuple[str, ...]] = [(), (), ()]
    for axis in names:
        dims[data.draw(st.integers(0, 2))] += (axis,)
    spec = PartitionSpec(tuple(dims))
    counts = split_counts(mesh, spec, 3)
    groups = data.draw(st.sampled_from([1, 2, 3, 8, 12, 64]))
    weight = (2 * counts[0], lcm(groups, counts[1]) * data.draw(st.integers(1, 2)), 5 * counts[2])
    scales = (weight[0], groups, weight[2])
    found = spec_for_scales(mesh, spec, scales)
    assert not faults_of(mesh, found, "scales", scales)
    for device in range(mesh.devices):
        mine, theirs = slab_of(mesh, spec, weight, device), slab_of(mesh, found, scales, device)
        assert (mine.start[0], mine.stop[0]) == (theirs.start[0], theirs.stop[0])
        assert (mine.start[2], mine.stop[2]) == (theirs.start[2], theirs.stop[2])
        rows = weight[1] // groups
        first, stop = mine.start[1] // rows, -(-mine.stop[1] // rows)
        assert theirs.start[1] <= first and stop <= theirs.stop[1]
        if groups % counts[1] == 0:
            assert (theirs.start[1], theirs.stop[1]) == (first, stop)


def test_scales_are_split_by_the_first_of_several_axes() -> None:
    mesh, spec = Mesh((("data", 8), ("model", 8))), PartitionSpec((("data", "model"),))
    assert str(spec_for_scales(mesh, spec, (8, 32))) == "P(data, None)"
    assert str(spec_for_scales(mesh, spec, (64, 32))) == "P((data, model), None)"
    assert str(spec_for_scales(mesh, spec, (4, 32))) == "P(None, None)"


def test_all_tensors_that_cannot_be_split_are_named_at_once() -> None:
    table = rules(("w$", ["data", "model"]), ("v$", ["model"]))
    names = [
        tensor("fits.w", 2, 4),
        tensor("odd.w", 3, 4),
        tensor("flat.w", 8),
        tensor("bias", 4),
        tensor("odd.v", 6),
        tensor("norm", 4),
        tensor("p.scales", 4, quantisation=Quantisation("p.w", "scales", 1, 0)),
    ]
    with pytest.raises(RequestError) as caught:
        resolve_specs(MESH, table, names)
    assert caught.value.tensors == ("bias", "norm")
    assert caught.value.faults == (
        "mesh axis 'data' (2) does not divide dimension 0 (3) of 'odd.w'",
        "partition spec P(data, model) has 2 dimensions, more than the 1 of 'flat.w'",
        "mesh axis 'model' (4) does not divide dimension 0 (6) of 'odd.v'",
        "partition spec P(data, model) has 2 dimensions, more than the 1 of 'p.scales'",
    )
    assert all(
        f"'{name}'" in str(caught.value) for name in ("bias", "norm", "odd.w", "flat.w", "odd.v", "p.scales")
    )
    assert '".*"' in caught.value.hint and "mesh" in caught.value.hint
    assert [str(spec) for spec in resolve_specs(MESH, table, names[:1])] == ["P(data, model)"]


def test_all_tensors_that_want_an_axis_the_mesh_lacks_are_named() -> None:
    table = parse_rules({"rules": [["odd", ["model"]], [".*", ["expert"]]]})
    with pytest.raises(RequestError, match="names axis 'expert'") as caught:
        resolve_specs(MESH, table, [tensor("v", 8), tensor("w", 8), tensor("odd", 6)])
    assert "has not the axes for 2 tensors" in caught.value.message and "'v', 'w'" in caught.value.message
    assert "does not divide 1 tensor:" in caught.value.message


def test_the_error_of_a_mesh_names_the_nearest_that_do() -> None:
    names = [tensor(f"layers.{n}.w", 6144, 32768) for n in range(64)]
    with pytest.raises(RequestError) as caught:
        resolve_specs(Mesh((("data", 7), ("model", 8))), rules(("w$", ["data", "model"])), names)
    error = caught.value
    assert "does not divide 64 tensors: mesh axis 'data' (7) does not divide dimension 0 (6144) of" in str(
        error
    )
    assert "'layers.*.w' (64)" in error.message and len(error.message) < 250, "as one cause"
    assert isinstance(error.faults, tuple) and len(error.faults) == 64, "and each by its name"
    assert "the nearest meshes that do: data=8,model=8" in error.hint


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        (r"attention/(wq|wk)/kernel", "h.0.attention.wq.kernel", True),  # as EasyLM writes it
        (r"attention\.(wq|wk)\.kernel", "h.0.attention.wq.kernel", True),
        (r"^h/0/", "h.0.attention.wq.kernel", True),
        (r"attention/wq\.", "h.0.attention.wq.kernel", False),  # one way or the other
        (r"a/b\.c", "x.a/b.c", True),  # a name that has a slash itself
        (r"wq$", "h.0.attention.wq.kernel", False),
    ],
)
def test_a_pattern_may_join_names_by_slashes(pattern: str, name: str, found: bool) -> None:
    assert (rules((pattern, [])).spec_for(name) is not None) is found


@pytest.mark.parametrize(
    ("pattern", "everything"),
    [
        (".*", True),
        ("", True),
        (".", True),
        ("^.+$", True),
        ("w", False),
        ("[a-z]", False),
        ("^layer", False),
    ],
)
def test_a_rule_for_everything_is_known_by_what_it_matches(pattern: str, everything: bool) -> None:
    assert rules((pattern, [])).rules[0].matches_all is everything


def test_rules_of_another_model_are_refused() -> None:
    other = rules((r"wq\.", ["model"]), (r"wo\.", ["data"]), (".*", []))
    with pytest.raises(RequestError, match=r"the rules match none of the 2 names \(a.w, b.w, ...\), but for"):
        check_used(other, [tensor("a.w", 8), tensor("b.w", 8)])
    check_used(other, [tensor("a.w", 8), tensor("wq.w", 8)])
    check_used(rules((".*", [])), [tensor("a.w", 8)])  # everything on every device: meant so
    check_used(other, [])
    check_used(None, [tensor("a.w", 8)])


def test_axes_the_rules_use_are_added_to_a_mesh_that_lacks_them() -> None:
    listed, used = rules(("w", ["model"])), parse_rules({"rules": [["w", [None, ["x", "model"]]]]})
    order = (1, 0, 3, 2)
    assert complete_mesh(Mesh((("model", 4),), order), listed) == Mesh((("data", 1), ("model", 4)), order)
    assert complete_mesh(Mesh((("model", 4),)), used) == Mesh((("x", 1), ("model", 4)))
    with pytest.raises(RequestError, match="'modle' that the rules do not know, and lacks 'x'"):
        complete_mesh(Mesh((("modle", 4),)), used)
