"""The map from a store to its torrent: the same after a round trip, refused where it cannot be true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.source_map import SourceMap, parse_source_map, source_map_to_json
from gdist.core.tensor import Order, Part
from gdist.errors import CorruptError, RequestError

PAYLOAD = Payload((PayloadFile("m/a", 0, 60), PayloadFile("m/ü", 64, 20)), 16, 84)
SHAPES = {"w": ((4, 3), 2), "s": ((), 4)}
WHOLE = SourceMap(
    {
        "w": (
            Part(Extent(10, 12), Box((0, 0), (2, 3))),
            Part(Extent(22, 12), Box((2, 0), (4, 3)), Order.F),
        ),
        "s": (Part(Extent(64, 4), Box((), ())),),
    },
    {"m/a": (Extent(0, 10), Extent(34, 26)), "m/ü": (Extent(4, 16),)},
)


def test_a_map_is_the_same_after_a_round_trip() -> None:
    text = source_map_to_json(WHOLE)
    assert parse_source_map(text, "parts.json") == WHOLE
    assert source_map_to_json(parse_source_map(text, "parts.json")) == text
    assert parse_source_map(source_map_to_json(SourceMap({}, {})), "p") == SourceMap({}, {})
    WHOLE.check(PAYLOAD, SHAPES, "parts.json")
    assert WHOLE.rest_nbytes == 10 + 26 + 16


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"tensors": {"w": (Part(Extent(10, 12), Box((3, 0), (5, 3))),)}}, "parts of 'w'"),
        ({"tensors": {"w": (Part(Extent(10, 11), Box((0, 0), (2, 3))),)}}, "parts of 'w'"),
        ({"tensors": {"w": (Part(Extent(10, 12), Box((0, 0), (2, 3))),)}}, "parts of 'w'"),
        (
            {
                "tensors": {
                    "w": (
                        Part(Extent(10, 12), Box((0, 0), (2, 3))),
                        Part(Extent(22, 12), Box((1, 0), (3, 3))),
                    )
                }
            },
            "parts of 'w' overlap",
        ),
        ({"tensors": {"other": (Part(Extent(10, 12), Box((0, 0), (2, 3))),)}}, "parts of 'other'"),
        ({"tensors": {"s": (Part(Extent(82, 4), Box((), ())),)}, "rest": {}}, "leave the payload"),
        ({"rest": {"m/a": (Extent(0, 11),)}}, "overlap"),
        ({"rest": {"m/a": (Extent(59, 2),)}}, "of no file"),
        ({"rest": {"m/b": (Extent(0, 2),)}}, "of no file"),
    ],
)
def test_a_map_that_cannot_be_true_is_refused(changed: dict[str, object], what: str) -> None:
    with pytest.raises(CorruptError, match=what):
        replace(WHOLE, **changed).check(PAYLOAD, SHAPES, "parts.json")


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"gdist_source": 1, "rest": [["a", [[-1, 2]]]], "tensors": []}']
)
def test_damage_is_told(text: bytes) -> None:
    with pytest.raises(CorruptError, match="is damaged"):
        parse_source_map(text, "parts.json")


def test_a_newer_map_is_refused() -> None:
    with pytest.raises(RequestError, match="format 2"):
        parse_source_map(b'{"gdist_source": 2}', "parts.json")
