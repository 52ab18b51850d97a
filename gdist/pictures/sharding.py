"""A tensor's sharding as one SVG: its slabs, who holds each, the shards they lie in, the pieces they need.

    name, shape, sharding
       dimension 2
    d  ┌──┬──┐
    i  │ 0│ 1│                      slabs with their devices, coloured by host or by place on a mesh axis
    m  ├──┼──┤
    1  │ 2│ 3│                      what has no room for its label shares one with its neighbours
       └──┴──┘
    0-1  ▬▬▬   ▬▬▬                  for slabs with the same pieces: which of the tensor's pieces these are
    2-3     ▬▬▬   ▬▬▬               (`gdist.pictures.feeding`)
    what else there is to say

The scales of a quantised pair are drawn below their weight, column below column. Each part is drawn from some
`top` down, and says where it ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gdist.core.picture import TensorPicture, axis_keys, block_factor, blocks_of
from gdist.core.text import numbers, printable, shorten
from gdist.pictures import words
from gdist.pictures.colours import PALETTE, colour
from gdist.pictures.feeding import feeding
from gdist.pictures.marks import GLYPH, Chart, Mark, Path, Rect, Text, px, room
from gdist.pictures.rendering import render

WIDTH, PAD = 960.0, 24.0
INNER = WIDTH - 2 * PAD
TICKS_HIGH, TICKS_WIDE = 40.0, 64.0  # what a dimension's name and offsets take, above and left of the slabs
PANELS_WIDE, PANEL_GAP = 4, 18.0
LABEL_SIZES = (13, 11, 9)
MOST_LINES = 64  # of shards in a dimension
MOST_SWATCHES = 16
LINE = 17.0  # from one line of text to the next


def sharding_svg(pictures: Sequence[TensorPicture]) -> str:
    """One SVG document of a tensor, or of the halves of a quantised pair.

    It needs no font, script or address; every slab is one `rect` of class `slab`, with its index.
    """
    return render("sharding.svg.j2", chart=sharding_chart(pictures))


def sharding_chart(pictures: Sequence[TensorPicture]) -> Chart:
    """The picture as marks."""
    marks: list[Mark] = []
    bottom = 0.0
    for picture in pictures:
        drawn, bottom = _figure(picture, bottom + PAD)
        marks += drawn
    names = " and ".join(picture.tensor.name for picture in pictures)
    said = "\n".join("; ".join(words.summary(picture)) for picture in pictures)
    return Chart(WIDTH, bottom + PAD, f"Sharding of {names}", said, tuple(marks))


def _figure(picture: TensorPicture, top: float) -> tuple[list[Mark], float]:
    marks, bottom = _heading(picture, top)
    panels = _panels(picture, bottom)
    marks += _axis_names(picture, panels[0], bottom)
    for panel in panels:
        for part in (_slabs, _ticks, _shard_lines, _labels):
            marks += part(picture, panel)
    drawn, bottom = _legend(picture, panels[-1].y + panels[-1].height + 10)
    marks += drawn
    drawn, bottom = feeding(picture, PAD, INNER, bottom)
    marks += drawn
    for line in words.notes(picture):
        bottom += LINE
        marks.append(Text(PAD, bottom, _fit(line, 11), "soft", size=11))
    return marks, bottom


def _heading(picture: TensorPicture, top: float) -> tuple[list[Mark], float]:
    y = top + 12
    name = shorten(printable(picture.tensor.name), int(INNER / (15 * GLYPH)))
    marks: list[Mark] = [Text(PAD, y, name, "name", size=15)]
    for line in words.summary(picture):
        y += 19
        marks.append(Text(PAD, y, _fit(line, 12), "soft", size=12))
    return marks, y + 12


def _fit(line: str, size: float) -> str:
    """A line of the picture's width in a proportional font, whose letters are about half as wide as high."""
    return shorten(printable(line), int(INNER / (size * 0.5)))


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where one panel lies, how many slabs it has each way, and its place on the dimensions not drawn."""

    x: float
    y: float
    width: float
    height: float
    rows: int
    columns: int
    place: tuple[int, ...]


def _panels(picture: TensorPicture, top: float) -> list[_Panel]:
    """One panel for each place on a split dimension that is not drawn, in lines of a few."""
    view, counts, shape = picture.view, picture.counts, picture.tensor.shape
    rows = counts[view.rows] if view.rows is not None else 1
    columns = counts[view.columns] if view.columns is not None else 1
    places = list(itertools.product(*(range(counts[d]) for d in view.panels)))
    across = min(len(places), PANELS_WIDE)
    each = (INNER - TICKS_WIDE - PANEL_GAP * (across - 1)) / across
    height = 64.0
    if rows > 1 and view.rows is not None and view.columns is not None:
        tall = shape[view.rows] / max(shape[view.columns], 1)
        height = min(max(each * min(max(tall, 0.28), 0.56), rows * 18.0), min(rows * 72.0, 560.0))
    above = 20.0 if view.panels else 0.0
    pitch = height + above + PANEL_GAP
    return [
        _Panel(
            PAD + TICKS_WIDE + (n % across) * (each + PANEL_GAP),
            top + TICKS_HIGH + above + (n // across) * pitch,
            each,
            height,
            rows,
            columns,
            place,
        )
        for n, place in enumerate(places)
    ]


def _axis_names(picture: TensorPicture, first: _Panel, top: float) -> Iterator[Mark]:
    view = picture.view
    if view.columns is not None:
        name = printable(words.dimension(picture, view.columns))
        yield Text(first.x, top + 16, f"{shorten(name, 70)} →", "axis", size=12)
    if view.rows is not None and first.rows > 1:
        name = shorten(printable(words.dimension(picture, view.rows)), max(int(first.height / 7) - 2, 9))
        yield Text(first.x - TICKS_WIDE + 12, first.y, f"← {name}", "axis", "end", 12, turned=True)


def _slabs(picture: TensorPicture, panel: _Panel) -> Iterator[Mark]:
    width, height = panel.width / panel.columns, panel.height / panel.rows
    gap = 1.0 if min(width, height) >= 5 else 0.0
    if panel.place:
        yield Text(panel.x, panel.y - 7, words.panel(picture, panel.place), "soft")
    keys = axis_keys(picture)[1]
    for (row, column), (number,) in blocks_of(picture, panel.place, 1, 1).items():
        region = picture.regions[number]
        x, y = panel.x + column * width, panel.y + row * height
        index = ",".join(map(str, region.index))
        title = words.region(picture, region)
        yield Rect(x, y, width - gap, height - gap, "slab", colour(keys[number]), title, index)
        if not region.here:
            yield Rect(x, y, width - gap, height - gap, "away")


def _labels(picture: TensorPicture, panel: _Panel) -> Iterator[Mark]:
    """The devices of each slab, or of each block of neighbours where slabs are too small."""
    labels: list[Mark] = []
    for size in LABEL_SIZES:
        tall = block_factor(panel.rows, int(panel.height / (size + 3)))
        for wide in (f for f in range(1, panel.columns + 1) if panel.columns % f == 0):
            labels = list(_block_labels(picture, panel, tall, wide, size))
            fits = panel.width * wide / panel.columns - 4
            if all(room(mark.text, size) <= fits for mark in labels if isinstance(mark, Text)):
                break
        if tall == wide == 1:
            break
    yield from labels


def _block_labels(picture: TensorPicture, panel: _Panel, tall: int, wide: int, size: int) -> Iterator[Mark]:
    width, height = panel.width * wide / panel.columns, panel.height * tall / panel.rows
    for (row, column), members in blocks_of(picture, panel.place, tall, wide).items():
        x, y = panel.x + column * width, panel.y + row * height
        if tall * wide > 1:
            yield Rect(x, y, width, height, "block")
        devices = (device for number in members for device in picture.regions[number].devices)
        label = numbers(devices, max(int(width / (size * GLYPH)), 12))
        kind = "on over" if tall * wide > 1 else "on"
        yield Text(x + width / 2, y + height / 2 + size * 0.36, label, kind, "middle", size)


def _ticks(picture: TensorPicture, panel: _Panel) -> Iterator[Mark]:
    """Offsets along the dimensions, as many as there is room for."""
    view, slab, shape = picture.view, picture.slab, picture.tensor.shape
    if view.columns is not None and panel.columns > 1:
        widest = room(str(shape[view.columns]), 10) + 6
        step = block_factor(panel.columns, max(int(panel.width / widest), 1))
        for column in range(0, panel.columns, step):
            x = panel.x + column * panel.width / panel.columns
            yield Text(
                x, panel.y - (24 if view.panels else 6), str(column * slab[view.columns]), "tick", size=10
            )
    if view.rows is not None and panel.rows > 1 and panel.x == PAD + TICKS_WIDE:  # the first of its line
        step = block_factor(panel.rows, max(int(panel.height / 13), 1))
        for row in range(0, panel.rows, step):
            y = panel.y + row * panel.height / panel.rows + 9
            yield Text(panel.x - 6, y, str(row * slab[view.rows]), "tick", "end", 10)


def _shard_lines(picture: TensorPicture, panel: _Panel) -> Iterator[Mark]:
    """Outlines of the shards of a store, where they are few enough to be told apart."""
    if picture.grid is None:
        return
    cuts = []
    for dimension in (picture.view.rows, picture.view.columns):
        number = picture.grid.shards[dimension] if dimension is not None else 1
        cuts.append(number if number <= MOST_LINES else 1)
    down = "".join(
        f"M{px(panel.x)} {px(panel.y + i * panel.height / cuts[0])}h{px(panel.width)}"
        for i in range(cuts[0] + 1)
    )
    across = "".join(
        f"M{px(panel.x + i * panel.width / cuts[1])} {px(panel.y)}v{px(panel.height)}"
        for i in range(cuts[1] + 1)
    )
    yield Path(down + across, "shard")


def _legend(picture: TensorPicture, top: float) -> tuple[list[Mark], float]:
    """What the colours and lines mean."""
    name, keys = axis_keys(picture)
    distinct = sorted({key for key in keys if key is not None})
    said = ["numbers are devices"]
    if picture.grid is not None:
        said.append("outlines are shards")
    if not all(region.here for region in picture.regions):
        said.append("hatched is not all here")
    if len(distinct) > 1:
        said.append(
            f"colours are {'hosts' if name == 'host' else f'places on axis {shorten(printable(name), 20)}'}:"
        )
    line = ", ".join(said)
    marks: list[Mark] = [Text(PAD + TICKS_WIDE, top + 12, line, "soft")]
    if len(distinct) > 1:
        at = PAD + TICKS_WIDE + len(line) * 5.4 + 8
        shown = distinct if len(distinct) <= MOST_SWATCHES else distinct[: len(PALETTE)]
        for key in shown:
            marks.append(Rect(at, top + 2, 12, 12, "swatch", colour(key)))
            marks.append(Text(at + 15, top + 12, str(key), "soft"))
            at += 22 + room(str(key), 11)
        if len(shown) < len(distinct):
            marks.append(Text(at, top + 12, f"and so on to {distinct[-1]}", "soft"))
    return marks, top + 26
