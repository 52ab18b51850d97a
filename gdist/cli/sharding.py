"""Who holds what of a tensor, on a terminal or as plain text, like `jax.debug.visualize_array_sharding`.

┌───┬───┬───┬───┐
│ 0 │ 1 │ 2 │ 3 │      numbers are devices; colours, on a terminal, are hosts or places on a mesh axis
├───┼───┼───┼───┤
│ 4 │ 5 │ 6 │ 7 │
└───┴───┴───┴───┘
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from gdist.cli.words import table
from gdist.core.picture import TensorPicture, axis_keys, block_factor, blocks_of, feeds_of
from gdist.core.text import numbers, printable
from gdist.core.units import format_bytes
from gdist.pictures import words
from gdist.pictures.colours import colour

WIDTH = 80  # where the terminal does not say
MOST_ROWS = 16  # of cells, and of a table
MOST_PANELS = 4
LABEL_WIDTH = 12  # of a cell; a longer set of devices is cut to its first and last

NO_COLOUR = -1
ASCII = str.maketrans("┌┬┐├┼┤└┴┘─│…", "+++++++++-|~")  # where the output takes no more

Line = list[tuple[str, int | None]]  # text, and the key of its colour as of `axis_keys`, or `NO_COLOUR`


def draw(picture: TensorPicture) -> str:
    """The picture for standard output: coloured on a terminal, and as wide as it is; else plain text."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    lines = list(picture_lines(picture, max(width, 40)))
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return _coloured(lines)
    text = plain_text(lines)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(ASCII)
    return text


def plain_text(lines: Sequence[Line]) -> str:
    """Lines without colour."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def _coloured(lines: Sequence[Line]) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as captured:
        for line in lines:
            parts = [(text, "" if key == NO_COLOUR else f"black on {colour(key)}") for text, key in line]
            console.print(Text.assemble(*parts))
    return captured.get().removesuffix("\n")


def picture_lines(picture: TensorPicture, width: int = WIDTH) -> Iterator[Line]:
    """The whole picture, in lines of at most `width` characters but for names."""
    yield _plain(printable(picture.tensor.name))
    yield from _wrapped(words.summary(picture), width)
    yield []
    yield from _wrapped(_axes(picture), width)
    yield from _grids(picture, width)
    yield from _feeds(picture, width)
    yield from _wrapped(words.notes(picture), width)


def _wrapped(texts: Iterable[str], width: int) -> Iterator[Line]:
    """Lines of words; a word that is longer than a line, such as a path, stays whole."""
    for text in texts:
        lines = textwrap.wrap(
            printable(text), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        yield from map(_plain, lines)


def _plain(text: str) -> Line:
    return [(text, NO_COLOUR)]


def _axes(picture: TensorPicture) -> Iterator[str]:
    ways = ((picture.view.rows, "down"), (picture.view.columns, "across"))
    named = [
        f"{words.dimension(picture, d)} {way}" for d, way in ways if d is not None and picture.counts[d] > 1
    ]
    if named:
        yield "; ".join(named)


def _grids(picture: TensorPicture, width: int) -> Iterator[Line]:
    panels = list(itertools.product(*(range(picture.counts[d]) for d in picture.view.panels)))
    for panel in panels[:MOST_PANELS]:
        if panel:
            yield _plain(words.panel(picture, panel))
        yield from _grid(picture, panel, width)
    if len(panels) > MOST_PANELS:
        yield _plain(f"and {len(panels) - MOST_PANELS} more like it: --plot draws them, --json lists them")


def _grid(picture: TensorPicture, panel: tuple[int, ...], width: int) -> Iterator[Line]:
    """One panel; neighbours are drawn as one cell where there is no room for each."""
    rows, columns = _span(picture, picture.view.rows), _span(picture, picture.view.columns)
    tall = block_factor(rows, MOST_ROWS)
    downward = _starts(picture, picture.view.rows, tall) if rows > 1 else [""]
    margin = max(map(len, downward)) + 1 if rows > 1 else 0
    for wide in (f for f in range(1, columns + 1) if columns % f == 0):
        cells, across = _cells(picture, panel, tall, wide), columns // wide
        longest = max(len(label) for label, _ in cells.values())
        if margin + 1 + (longest + 1) * across <= width:
            break
    inner = max(longest, min((width - margin - 1) // across - 1, max(longest + 2, 9)))

    def rule(left: str, middle: str, right: str) -> Line:
        return _plain(" " * margin + left + middle.join(["─" * inner] * across) + right)

    heads = _starts(picture, picture.view.columns, wide) if columns > 1 else []
    if heads and max(map(len, heads)) <= inner:
        yield _plain(" " * (margin + 1) + "".join(head.ljust(inner + 1) for head in heads))
    for row in range(rows // tall):
        yield rule("├", "┼", "┤") if row else rule("┌", "┬", "┐")
        line = _plain(downward[row].rjust(margin - 1).ljust(margin))
        for column in range(across):
            label, key = cells[row, column]
            line += [("│", NO_COLOUR), (label.center(inner), key)]
        yield [*line, ("│", NO_COLOUR)]
    yield rule("└", "┴", "┘")
    if tall * wide > 1:
        yield _plain(f"a cell stands for {tall} x {wide} slabs")


def _span(picture: TensorPicture, dimension: int | None) -> int:
    return 1 if dimension is None else picture.counts[dimension]


def _starts(picture: TensorPicture, dimension: int | None, factor: int) -> list[str]:
    """Where each cell starts in a dimension that is cut."""
    assert dimension is not None, "a dimension that is cut is there"
    return [str(n * picture.slab[dimension]) for n in range(0, picture.counts[dimension], factor)]


def _cells(
    picture: TensorPicture, panel: tuple[int, ...], tall: int, wide: int
) -> dict[tuple[int, int], tuple[str, int | None]]:
    """Label and colour of every cell of a panel, where `tall` x `wide` slabs are one."""
    blocks = blocks_of(picture, panel, tall, wide)
    keys = axis_keys(picture)[1]
    cells: dict[tuple[int, int], tuple[str, int | None]] = {}
    for place, members in blocks.items():
        devices = (device for n in members for device in picture.regions[n].devices)
        distinct = {keys[n] for n in members}
        cells[place] = numbers(devices, LABEL_WIDTH), distinct.pop() if len(distinct) == 1 else None
    return cells


def _feeds(picture: TensorPicture, width: int) -> Iterator[Line]:
    """What feeds whom: a row for all slabs that the same pieces and shards feed."""
    feeds = feeds_of(picture.regions)
    if not feeds:
        return
    pieces, stored, several = picture.piece_length is not None, picture.grid is not None, picture.hosts > 1
    head = ["devices"] + ["hosts"] * several + ["of slabs"]
    head += ["shards", "files"] * stored + ["of pieces", "pieces", "which"] * pieces
    rows = []
    for feed in feeds[:MOST_ROWS]:
        region = feed.first
        row = [numbers(feed.devices, 16)] + [numbers(feed.hosts, 10)] * several
        row.append(format_bytes(words.slabs_nbytes(picture, feed)))
        if region.shards is not None:
            row += [words.shards(region.shards), str(region.shards.size) if region.here else "not all here"]
        if pieces:
            total = sum(stop - start for start, stop in region.pieces)
            row += [format_bytes(region.pieces_nbytes), str(total)]
        rows.append(row)
    if pieces:  # their numbers have what room is left
        room = width - sum(2 + max(len(row[n]) for row in [head, *rows]) for n in range(len(head) - 1))
        for row, feed in zip(rows, feeds, strict=False):
            row.append(words.pieces(feed.first, max(room, 12)))
    right = [n for n, name in enumerate(head) if name in ("of slabs", "files", "of pieces", "pieces")]
    yield []
    yield from (_plain(line) for line in table(head, rows, right))
    if len(feeds) > MOST_ROWS:
        yield _plain(f"and {len(feeds) - MOST_ROWS} more rows: --json has them")
