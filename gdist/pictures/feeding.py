"""What feeds a tensor's slabs, as rows below them: pieces of a torrent along the payload, shards of a store.

devices   pieces 6939 to 7035                            slabs      pieces
0-7       ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    ▬▬     201.33 MB  402.65 MB
8-15       ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    ▬▬    201.33 MB  268.44 MB
"""

from __future__ import annotations

from collections.abc import Sequence

from gdist.core.picture import Feed, TensorPicture, axis_keys, feeds_of
from gdist.core.text import count, numbers
from gdist.core.units import format_bytes
from gdist.pictures import words
from gdist.pictures.colours import NEUTRAL, colour
from gdist.pictures.marks import GLYPH, Mark, Path, Rect, Text, boxes

LABEL_WIDE = 96.0
FIGURE_WIDE = 74.0  # a column of bytes
TALLEST, LEAST_LABELLED = 17.0, 12.0
STRIP_HIGH = 480.0  # all rows together; where they are many they are thin
MOST_ROWS = 160
MOST_SHARD_ROWS = 24


def feeding(picture: TensorPicture, x: float, width: float, top: float) -> tuple[list[Mark], float]:
    """Marks, and where they end; nothing where it is not known what feeds the tensor."""
    feeds = feeds_of(picture.regions)
    if not feeds:
        return [], top
    top += 22
    if picture.piece_length is not None:
        marks, top = _pieces(picture, feeds, x, width, top)
    else:
        marks, top = [], top
    if picture.grid is not None:
        shards, top = _shards(picture, feeds, x, width, top)
        marks += shards
    return marks, top


def _pieces(
    picture: TensorPicture, feeds: Sequence[Feed], x: float, width: float, top: float
) -> tuple[list[Mark], float]:
    shown = feeds[:MOST_ROWS]
    first = min(start for feed in shown for start, _ in feed.first.pieces)
    last = max(stop for feed in shown for _, stop in feed.first.pieces)
    left, wide = x + LABEL_WIDE, width - LABEL_WIDE - 2 * FIGURE_WIDE - 8
    title = f"pieces {first} to {last - 1}" if last - first > 1 else f"piece {first}"
    right = (left + wide + 8 + FIGURE_WIDE, left + wide + 8 + 2 * FIGURE_WIDE)
    marks: list[Mark] = [
        Text(x, top, "devices", "axis", size=12),
        Text(left, top, f"{title} →", "axis", size=12),
        Text(right[0], top, "of slabs", "axis", "end", 12),
        Text(right[1], top, "of pieces", "axis", "end", 12),
    ]
    top += 8
    height = min(TALLEST, STRIP_HIGH / len(shown))
    every = 1 if height >= LEAST_LABELLED else -(-int(LEAST_LABELLED * 10) // int(height * 10))
    keys = axis_keys(picture)[1]
    for number, feed in enumerate(shown):
        y = top + number * height
        bar = height - (3 if height > 8 else 0.6)
        own = {keys[n] for n in feed.regions}
        fill = colour(next(iter(own))) if len(own) == 1 else NEUTRAL
        marks.append(Rect(left, y, wide, bar, "track"))
        says = f"devices {numbers(feed.devices, 60)}: pieces {words.pieces(feed.first, 200)}"
        marks.append(Path(boxes(_runs(feed, first, last, left, wide, y, bar)), "pieces", fill, says))
        if number % every == 0:
            line = y + max(bar / 2, 4) + 4
            marks.append(Text(x, line, numbers(feed.devices, int(LABEL_WIDE / (11 * GLYPH)) - 1), "num"))
            marks.append(Text(right[0], line, format_bytes(words.slabs_nbytes(picture, feed)), "num", "end"))
            marks.append(Text(right[1], line, format_bytes(feed.first.pieces_nbytes), "num", "end"))
    top += len(shown) * height
    if len(feeds) > len(shown):
        top += 16
        marks.append(Text(x, top, f"and {len(feeds) - len(shown)} more rows", "soft"))
    return marks, top + 6


def _runs(
    feed: Feed, first: int, last: int, left: float, wide: float, y: float, height: float
) -> list[tuple[float, float, float, float]]:
    """Rectangles for runs of pieces; those nearer than a pixel are one."""
    scale = wide / (last - first)
    found: list[tuple[float, float, float, float]] = []
    for start, stop in feed.first.pieces:
        a, b = left + (start - first) * scale, left + (stop - first) * scale
        b = max(b, a + 1)
        if found and a - (found[-1][0] + found[-1][2]) < 1:
            a = found.pop()[0]
        found.append((a, y, b - a, height))
    return found


def _shards(
    picture: TensorPicture, feeds: Sequence[Feed], x: float, width: float, top: float
) -> tuple[list[Mark], float]:
    """Rows of text: a shard is a file, and has a name."""
    marks: list[Mark] = [
        Text(x, top + 6, "devices", "axis", size=12),
        Text(x + LABEL_WIDE, top + 6, "shards", "axis", size=12),
    ]
    top += 12
    for feed in feeds[:MOST_SHARD_ROWS]:
        assert feed.first.shards is not None, "a store's picture has shards"
        top += 15
        away = "" if feed.first.here else ", not all here"
        files = count(feed.first.shards.size, "file")
        marks.append(Text(x, top, numbers(feed.devices, 14), "num"))
        marks.append(Text(x + LABEL_WIDE, top, f"{words.shards(feed.first.shards)}: {files}{away}", "num"))
    if len(feeds) > MOST_SHARD_ROWS:
        top += 15
        marks.append(Text(x, top, f"and {len(feeds) - MOST_SHARD_ROWS} more rows", "soft"))
    return marks, top + 8
