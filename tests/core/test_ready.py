"""What is ready: layers, names and all, in loading order; what means nothing says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.order import loading_order, stage_of
from gdist.core.ready import Readiness, check_ready, ready
from gdist.errors import RequestError

NAMES = loading_order(
    [
        "model.embed_tokens.weight",
        *(f"model.layers.{n}.{part}.weight" for n in range(12) for part in ("attn.q", "mlp.up")),
        "model.norm.weight",
        "lm_head.weight",
    ]
)


@pytest.mark.parametrize(
    ("what", "tensors"),
    [
        ("all", 27),
        ("layers:0", 2),
        ("layers:0-7", 16),
        ("layers:0,2,10-11", 8),
        ("layers:0-3,2-4", 10),
        ("embedding", 1),
        ("rest", 1),
        ("head", 1),
        (r"tensors:mlp\.up", 12),
        ("tensors:layers.1[01]:?", 4),
    ],
)
def test_what_is_asked_for_is_counted(what: str, tensors: int) -> None:
    assert ready(what, NAMES, set()).tensors == tensors
    assert ready(what, NAMES, set(NAMES)) == Readiness(what, tensors, tensors)
    assert ready(what, NAMES, set(NAMES)).ready
    assert check_ready(what) == what


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.integers(0, 11), min_size=1))
def test_layers_are_ready_when_every_tensor_of_them_is(here: set[str], layers: set[int]) -> None:
    wanted = [name for name in NAMES if stage_of(name) in {f"layer {n}" for n in layers}]
    found = ready("layers:" + ",".join(map(str, layers)), NAMES, here)
    assert found.ready is here.issuperset(wanted)
    assert found.tensors_ready == len(here.intersection(wanted))
    assert found.next_tensor == next((name for name in wanted if name not in here), "")


def test_nothing_is_ready_before_there_is_a_plan() -> None:
    assert ready("layers:0-99", (), ()) == Readiness("layers:0-99", 0, 0)
    assert not ready("all", (), ()).ready


def test_the_document_of_a_probe() -> None:
    assert ready("layers:0", NAMES, {"model.layers.0.attn.q.weight"}).to_json() == {
        "what": "layers:0",
        "ready": False,
        "tensors": 2,
        "tensors_ready": 1,
        "next_tensor": "model.layers.0.mlp.up.weight",
    }


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("", "not understood"),
        ("layers", "not understood"),
        ("all:", "not understood"),
        ("head:3", "not understood"),
        ("layers:", "no layer"),
        ("layers:a", "no layer"),
        ("layers:7-0", "no layer"),
        ("layers:-3", "no layer"),
        ("layers:1,,2", "no layer"),
        ("tensors:", "not understood"),
        ("tensors:(", "no regular expression"),
    ],
)
def test_what_is_not_understood_is_refused_before_there_is_a_plan(what: str, why: str) -> None:
    for ask in (lambda: check_ready(what), lambda: ready(what, (), ())):
        with pytest.raises(RequestError, match=why):
            ask()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("layers:8-999999", "layers that are not here: 12-"),
        ("layers:12", "layers that are not here: 12"),
        ("tensors:decoder", "means no tensor"),
    ],
)
def test_what_will_never_be_there_is_refused(what: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        ready(what, NAMES, set(NAMES))
    with pytest.raises(RequestError, match="means no tensor"):
        ready("head", NAMES[:5], ())


def test_the_hint_names_the_layers_there_are() -> None:
    with pytest.raises(RequestError) as refused:
        ready("layers:12", NAMES, ())
    assert refused.value.hint == "the layers are 0-11"
