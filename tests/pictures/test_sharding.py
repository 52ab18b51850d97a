"""The drawing of a tensor: every slab once, in its place, labelled; nothing a name can do to it."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from gdist import api
from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.grid import GridMaker
from gdist.core.mesh import Mesh, PartitionSpec, parse_mesh, split_counts
from gdist.core.picture import Place, TensorPicture, choose_view, regions_of, shards_of_box
from gdist.core.tensor import TensorSpec
from gdist.pictures.colours import PALETTE, SEVERAL
from gdist.pictures.sharding import sharding_svg

SVG = "{http://www.w3.org/2000/svg}"


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def assert_needs_nothing(text: str) -> None:
    """No script, no address, nothing that is fetched."""
    bare = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"<(script|image|foreignObject|use|iframe|link|object|embed)\b", bare, re.IGNORECASE)
    assert not re.search(r"\b(href|src|xlink|on\w+)\s*=", bare)
    assert not re.search(r"url\((?!#)", bare) and "@import" not in bare


def number(element: ET.Element, name: str) -> float:
    return float(element.get(name, "nan"))


HOSTILE = "\"><script>alert(1)</script>&amp;\u202e\ufffe\x00\x1b[31m'{{7*7}}{% raw %}"
WEIGHT = "params.transformer.decoder_layer_3.moe.linear.w"


def drawn(
    mesh: str, dims: tuple[tuple[str, ...], ...], shape: tuple[int, ...], hosts: int = 1, name: str = "w"
) -> TensorPicture:
    on, spec = parse_mesh(mesh), PartitionSpec(dims)
    view = choose_view(shape, split_counts(on, spec, len(shape)))
    tensor = TensorSpec(name, shape, BY_NAME["int8"])
    return TensorPicture(tensor, on, spec, hosts, view, regions_of(on, spec, shape, hosts))


CASES = [
    drawn("2x4", (("data",), ("model",)), (8, 16)),
    drawn("2x4", ((), ("model",)), (8, 16), 2),
    drawn("2x4", (), (8, 16)),
    drawn("1", (), ()),
    drawn("1", (), (7,)),
    drawn("8", (("model",),), (8,)),
    drawn("2x4", (("data", "model"), ()), (8, 16)),
    drawn("a=2,b=2,c=2", (("a",), ("b",), ("c",)), (4, 4, 4), 4),
    drawn("a=3,b=2,c=2,d=5", (("a",), ("b",), ("c",), ("d",)), (3, 2, 2, 5)),
    drawn("16x32", (("data",), ("model",)), (1600, 3200), 64),
    drawn("512", (("model",),), (5120,), 64),
    drawn("512", (("model",), ()), (5120, 3)),
    drawn("7", (("model",),), (0,)),
    drawn("2x2", (("data",), ("model",)), (2**60, 2**60)),
]


@pytest.mark.parametrize("picture", CASES, ids=lambda p: f"{p.mesh}-{p.spec}-{p.tensor.shape}")
def test_every_slab_is_drawn_once_and_none_over_another(picture: TensorPicture) -> None:
    text = sharding_svg([picture])
    root = ET.fromstring(text)
    assert_needs_nothing(text)
    slabs = of_class(root, "slab")
    indices = [tuple(int(i) for i in s.get("data-slab", "").split(",") if i) for s in slabs]
    assert sorted(indices) == [region.index for region in picture.regions]
    corners = {(number(s, "x"), number(s, "y")) for s in slabs}
    assert len(corners) == len(slabs)
    for slab in slabs:
        assert number(slab, "x") >= 0 and number(slab, "width") > 0 and number(slab, "height") > 0
        assert number(slab, "x") + number(slab, "width") <= number(root, "width")
        assert slab.get("fill") in (*PALETTE, SEVERAL)
        title = slab.find(f"{SVG}title")
        assert title is not None and (title.text or "").startswith("device")
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None and title.text == "Sharding of w" and desc is not None and desc.text
    assert root.get("role") == "img" and root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"


@pytest.mark.parametrize("picture", CASES, ids=lambda p: f"{p.mesh}-{p.spec}-{p.tensor.shape}")
def test_every_device_is_in_exactly_one_label_and_labels_fit(picture: TensorPicture) -> None:
    root = ET.fromstring(sharding_svg([picture]))
    labels = of_class(root, "on")
    found: list[int] = []
    for label in labels:
        text = label.text or ""
        assert "…" not in text
        for item in text.split(","):
            if ".." in item:
                first, last = (int(number) for number in item.split(".."))
                found += range(first, last + 1, first - found[-1])
            else:
                ends = [int(number) for number in item.split("-")]
                found += range(ends[0], ends[-1] + 1)
        assert len(text) * float(label.get("font-size", "0")) * 0.62 <= 860
    assert sorted(found) == list(range(picture.mesh.devices))
    rows: dict[str, list[tuple[float, float]]] = {}
    for label in labels:
        half = len(label.text or "") * float(label.get("font-size", "0")) * 0.62 / 2
        rows.setdefault(label.get("y", ""), []).append((float(label.get("x", "0")) - half, half * 2))
    for row in rows.values():  # no label over its neighbour
        row.sort()
        assert all(a + width <= b + 0.2 for (a, width), (b, _) in itertools.pairwise(row))


def test_names_are_text_and_nothing_else() -> None:
    picture = drawn("2x2", (("data",), ("model",)), (4, 4), name=HOSTILE)
    hostile_mesh = Mesh(((HOSTILE, 2), ("b", 2)))
    spec = PartitionSpec(((HOSTILE,), ("b",)))
    picture = replace(
        picture,
        mesh=hostile_mesh,
        spec=spec,
        regions=regions_of(hostile_mesh, spec, (4, 4)),
        places=(Place(HOSTILE, 0, 16),),
        parts=1,
    )
    text = sharding_svg([picture])
    assert_needs_nothing(text)
    root = ET.fromstring(text)
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    said = " ".join(texts(root)) + "".join(t.text or "" for t in root.iter(f"{SVG}title"))
    assert "<script>alert(1)</script>&amp;\\u202e\\ufffe\\x00\\x1b[31m'{{7*7}}{% raw %}" in said
    assert "\u202e" not in text and "\x00" not in text and "49" not in texts(root)


def test_a_long_name_is_cut_where_it_is_seen_and_whole_where_it_is_said() -> None:
    name = "x" * 5000
    root = ET.fromstring(sharding_svg([drawn("1", (), (4,), name=name)]))
    (seen,) = of_class(root, "name")
    assert len(seen.text or "") < 120
    assert (root.findtext(f"{SVG}title") or "").endswith(name)


def test_pieces_are_drawn_where_they_are() -> None:
    (picture,) = api.inspect("grok-1", mesh="8x8", hosts=8, tensor=f"{WEIGHT}.weight").pictures
    root = ET.fromstring(sharding_svg([picture]))
    rows = of_class(root, "pieces")
    assert len(rows) == 8  # hosts: the devices of one need the same pieces
    tracks = of_class(root, "track")
    left, wide = number(tracks[0], "x"), number(tracks[0], "width")
    first = min(run[0] for region in picture.regions for run in region.pieces)
    last = max(run[1] for region in picture.regions for run in region.pieces)
    for row, region in zip(rows, picture.regions[::8], strict=True):
        runs = [(float(x), float(w)) for x, w in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)v", row.get("d", ""))]
        expected = [
            (left + (a - first) * wide / (last - first), (b - a) * wide / (last - first))
            for a, b in region.pieces
        ]
        assert len(runs) == len(expected)
        for (x, w), (right_x, right_w) in zip(runs, expected, strict=True):
            assert x == pytest.approx(right_x, abs=0.06) and w == pytest.approx(right_w, abs=0.06)
    assert "402.65 MB" in texts(root) and "201.33 MB" in texts(root)
    assert any("assumed" in text for text in texts(root))


def test_a_pair_is_one_drawing_with_the_columns_of_both_in_line() -> None:
    pictures = api.inspect("grok-1", mesh="8x8", hosts=8, tensor=WEIGHT).pictures
    text = sharding_svg(pictures)
    root = ET.fromstring(text)
    slabs = of_class(root, "slab")
    assert len(slabs) == 64 + 8
    assert {number(s, "x") for s in slabs[:64]} == {number(s, "x") for s in slabs[64:]}
    assert max(number(s, "y") for s in slabs[:64]) < min(number(s, "y") for s in slabs[64:])
    assert len(text) < 60_000


def test_shards_are_outlined_and_what_is_not_here_is_hatched() -> None:
    picture = drawn("2x4", (("data",), ("model",)), (8, 16), 2)
    grid = GridMaker(picture.mesh, 2).grid((8, 16), 1, picture.spec)
    regions = tuple(
        replace(r, shards=shards_of_box(grid, r.box), here=r.hosts == (0,)) for r in picture.regions
    )
    root = ET.fromstring(sharding_svg([replace(picture, grid=grid, regions=regions)]))
    (outline,) = of_class(root, "shard")
    assert (
        outline.get("d", "").count("h") == 3 and outline.get("d", "").count("v") == 2
    )  # two rows, one column
    assert len(of_class(root, "away")) == 4
    said = texts(root)
    assert "c/0/0: 1 file" in said and "c/1/0: 1 file, not all here" in said
    assert any("hatched is not all here" in text for text in said)


def test_thousands_of_feeds_and_shards_stay_a_drawing() -> None:
    picture = drawn("4096", (("model",),), (2**40,))
    grid = GridMaker(picture.mesh, 4096).grid((2**40,), 1, picture.spec)
    regions = tuple(
        replace(r, shards=Box((n,), (n + 1,)), pieces=((n * 16, n * 16 + 16),), pieces_nbytes=2**28)
        for n, r in enumerate(picture.regions)
    )
    text = sharding_svg([replace(picture, grid=grid, regions=regions, piece_length=2**24)])
    root = ET.fromstring(text)
    assert len(of_class(root, "pieces")) == 160 and "and 3936 more rows" in texts(root)
    assert len(text) < 2_000_000
    assert number(root, "height") < 2500
