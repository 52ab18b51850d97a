"""The templates of this package, with escaping on: what a torrent names is text and nothing else."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

from gdist.core.text import printable
from gdist.core.units import format_bytes, format_seconds
from gdist.pictures.marks import px


def render(name: str, **values: object) -> str:
    """A template filled in; every value is escaped, and shows what it holds instead of acting."""
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gdist.pictures", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {"bytes": format_bytes, "seconds": format_seconds, "px": px, "breaks": breaks}
    return environment


def breaks(name: str) -> Markup:
    """A name, escaped, that may be broken into lines after a dot, a slash or an underscore."""
    return Markup("<wbr>").join(re.split(r"(?<=[._/])(?=[A-Za-z])", printable(name)))


def _finalize(value: object) -> object:
    """What a template shows, without control characters, marks that turn lines around, and the like."""
    if isinstance(value, Markup | Undefined):
        return value
    return "\n".join(map(printable, str(value).split("\n")))
