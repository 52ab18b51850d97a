"""Tensors chosen by name: what is found, and what is said where nothing is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.profiles import PROFILES
from gdist.core.select import check_patterns, chosen_names
from gdist.errors import RequestError

GROK = tuple(role.path for role in PROFILES["grok-1"].roles(64))


def test_without_a_pattern_all_are_chosen() -> None:
    assert chosen_names(GROK, ()) == frozenset(GROK)


def test_layers_0_to_7_of_grok_1() -> None:
    found = chosen_names(GROK, [r"decoder_layer_[0-7]\."])
    layers = {int(name.split("decoder_layer_")[1].split(".")[0]) for name in found}
    assert layers == set(range(8)) and len(found) == 8 * 12


NAMES = st.lists(st.text("ab.01", min_size=1, max_size=5), min_size=1, unique=True)


@given(NAMES, st.lists(st.sampled_from(["a", "^b", r"\.0$", "[01]", ""]), max_size=3))
def test_a_name_is_chosen_when_any_pattern_is_found_in_it(names: list[str], patterns: list[str]) -> None:
    hits = [[name for name in names if re.search(pattern, name)] for pattern in patterns]
    if all(hits):
        expected = {name for some in hits for name in some} if patterns else set(names)
        assert chosen_names(names, patterns) == expected
    else:
        with pytest.raises(RequestError, match="found in no tensor's name"):
            chosen_names(names, patterns)


def test_every_pattern_that_is_found_nowhere_is_named_with_some_names() -> None:
    with pytest.raises(RequestError) as caught:
        chosen_names(GROK, ["layer_00", "embed", "lm_head"])
    assert caught.value.patterns == ("layer_00", "lm_head")
    assert "in_out_embed" in caught.value.message and "and 765 more" in caught.value.message


def test_all_that_are_no_regular_expressions_are_named() -> None:
    with pytest.raises(RequestError) as caught:
        check_patterns(["(", "fine", "a{9999999999999}", "*"])
    assert all(repr(bad) in caught.value.message for bad in ("(", "*")) and "fine" not in caught.value.message
