"""Templates of scripts and manifests, where nothing gets in that was not quoted for its language.

A value goes through one of the filters below, which say for what: `sh`, `words` (shell), `yaml`, `arg` (an
argument in a Kubernetes manifest), `comment`, `directive` (a line that Slurm reads). What is not filtered is
refused when the template is rendered, so a forgotten filter is an error and not a hole.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from gdist.core.text import shorten
from gdist.errors import RequestError

if TYPE_CHECKING:
    from jinja2 import Environment

LINE_LENGTH = 100
_DIRECTIVE = re.compile(r"[\w.,:=@%+/\[\]*-]+")


class Quoted(str):
    """Text that is safe where it stands."""

    __slots__ = ()


def render(template: str, /, **values: object) -> str:
    """A template filled in."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # every command would wait for it

    environment = Environment(
        loader=PackageLoader("gdist.clusters", "templates"),
        autoescape=False,  # no HTML: `_finalize` and the filters take its place
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # `{#` is a shell's own, in `${#list[@]}`
        comment_end_string="#>",
        finalize=_finalize,
    )
    environment.filters |= {
        "sh": sh,
        "words": words,
        "yaml": yaml,
        "arg": arg,
        "comment": comment,
        "directive": directive,
        "code": code,
        "indented": indented,
        "pattern": pattern,
        "numbers": numbers,
        "flow": flow,
    }
    return environment


def _finalize(value: object) -> object:
    if isinstance(value, Quoted | int) and not isinstance(value, bool):
        return value
    raise TypeError(f"a template shows {value!r} without saying how it is quoted")


def sh(value: object) -> Quoted:
    """One word of a shell, whatever it holds."""
    return Quoted(shlex.quote(one_line(value)))


def words(values: Iterable[object], margin: int = 0) -> Quoted:
    """Several words of a shell; a long line is broken before options, and what follows set in by `margin`."""
    quoted = [shlex.quote(one_line(value)) for value in values]
    line = " ".join(quoted)
    if len(line) + margin <= LINE_LENGTH:
        return Quoted(line)
    groups: list[str] = []
    for word in quoted:
        if word.startswith("--") or not groups or (len(groups[-1]) > LINE_LENGTH // 2):
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    return Quoted(f" \\\n{' ' * (margin + 2)}".join(groups))


def yaml(value: object) -> Quoted:
    """A scalar of YAML: JSON's strings are YAML's double-quoted ones, for text that prints."""
    if isinstance(value, bool | int):
        return Quoted(json.dumps(value))
    return Quoted(json.dumps(one_line(value), ensure_ascii=False))


def arg(value: object) -> Quoted:
    """An argument or a variable's value in a manifest, where Kubernetes would replace `$(NAME)`."""
    return yaml(one_line(value).replace("$", "$$"))


def comment(value: object) -> Quoted:
    """Text behind a `#`."""
    return Quoted(one_line(value))


def directive(value: object) -> Quoted:
    """A value on a line that a scheduler reads by rules of its own: plain characters only.

    Raises:
        RequestError: for any other.
    """
    text = one_line(value)
    if not _DIRECTIVE.fullmatch(text):
        raise RequestError(
            f"{shorten(text, 80)!r} has characters that do not belong into a scheduler's directive",
            hint="letters, digits and .,:=@%+/[]*- only",
        )
    return Quoted(text)


def code(value: object) -> Quoted:
    """A line of the user's own shell code, as it is."""
    return Quoted(one_line(value))


def indented(value: object, margin: int) -> Quoted:
    """Quoted text of several lines, set in by `margin` but for its first line."""
    assert isinstance(value, Quoted), "what is set in is quoted already"
    return Quoted(value.replace("\n", "\n" + " " * margin))


def pattern(values: Sequence[int]) -> Quoted:
    """Numbers as a shell's `case` takes them: `2 | 12 | 14`."""
    return Quoted(" | ".join(map(str, values)))


def numbers(values: Sequence[int]) -> Quoted:
    """Numbers as a list of YAML."""
    return Quoted(f"[{', '.join(map(str, values))}]")


def flow(values: Iterable[object]) -> Quoted:
    """Arguments as a list of YAML on one line."""
    return Quoted(f"[{', '.join(map(arg, values))}]")


def one_line(value: object) -> str:
    """The text, if all of it prints.

    Raises:
        RequestError: for line ends, control characters and marks that turn lines around: no quoting makes
            them harmless for whoever reads the script.
    """
    text = str(value)
    if not text.isprintable():
        raise RequestError(f"{shorten(text, 80)!r} holds characters that do not print", hint="leave them out")
    return text
