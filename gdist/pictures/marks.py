"""What a picture is made of: rectangles, lines of text and paths, at places in pixels.

A layout is a function that gives marks; the template `marks.j2` draws any of them. `kind` is the class that
the style sheet knows. Nothing here is text of SVG: escaping is the template's.
"""

from __future__ import annotations

from dataclasses import dataclass

GLYPH = 0.62  # width of a digit over its size, in the widest of common fonts


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle; `title` is shown where a pointer rests on it, `index` names what it stands for."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    fill: str = ""
    title: str = ""
    index: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `anchor` is SVG's, `turned` reads from below to above."""

    x: float
    y: float
    text: str
    kind: str = ""
    anchor: str = "start"
    size: float = 11
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """A path, of numbers and letters that this package makes."""

    d: str
    kind: str
    fill: str = ""
    title: str = ""


Mark = Rect | Text | Path


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of some size; `title` and `description` say in words what it shows."""

    width: float
    height: float
    title: str
    description: str
    marks: tuple[Mark, ...]


def px(value: float) -> str:
    """A length or place as short as a tenth of a pixel allows."""
    return f"{value:.1f}".removesuffix(".0")


def boxes(places: list[tuple[float, float, float, float]]) -> str:
    """The path of some rectangles: x, y, width and height of each."""
    return "".join(f"M{px(x)} {px(y)}h{px(w)}v{px(h)}h{px(-w)}z" for x, y, w, h in places)


def room(text: str, size: float) -> float:
    """Pixels that a text takes, at most."""
    return len(text) * size * GLYPH
