"""What is ready: tensors of a run that can be read already, asked for by layer, by name, or all of them.

    all                  everything that the run brings to this host
    layers:0-7           the tensors of these layers, counted as they load; also layers:0,2,8-11
    embedding            what loads before the layers; rest and head are what loads after them
    tensors:REGEX        tensors in whose name the regular expression is found

Layers and their order are read from names, as in `gdist.core.order`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from gdist.core.order import stage_of
from gdist.core.text import numbers
from gdist.errors import RequestError

HINT = "for example all, layers:0-7, embedding, head, or tensors:REGEX"
MOST_LAYERS = 100_000

_RUN = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_WORDS = ("embedding", "rest", "head")


@dataclass(frozen=True, slots=True)
class Readiness:
    """How far what was asked for (`what`) is: how many tensors that is, and how many can be read.

    `next_tensor` is the first in loading order that cannot. No tensor at all means that none is known yet.
    """

    what: str
    tensors: int
    tensors_ready: int
    next_tensor: str = ""

    @property
    def ready(self) -> bool:
        """True when all of it can be read."""
        return 0 < self.tensors == self.tensors_ready

    def to_json(self) -> dict[str, object]:
        """The document that probes answer with."""
        return {
            "what": self.what,
            "ready": self.ready,
            "tensors": self.tensors,
            "tensors_ready": self.tensors_ready,
            "next_tensor": self.next_tensor,
        }


def ready(what: str, names: Sequence[str], here: Collection[str]) -> Readiness:
    """How far `what` is, of a run that brings the tensors `names` (in loading order) and has some `here`.

    Without names, as before there is a plan, nothing is ready.

    Raises:
        RequestError: `what` is not of the forms above, or means no tensor, or a layer that there is not.
    """
    wanted = _parse(what)
    if not names:
        return Readiness(what, 0, 0)
    chosen = wanted(names)
    missing = next((name for name in chosen if name not in here), "")
    return Readiness(what, len(chosen), sum(name in here for name in chosen), missing)


def check_ready(what: str) -> str:
    """The text itself, when it is of the forms above.

    Raises:
        RequestError: else.
    """
    _parse(what)
    return what


def _parse(what: str) -> Callable[[Sequence[str]], list[str]]:
    """What chooses, from names in loading order, those that are meant."""
    kind, colon, rest = what.strip().partition(":")
    if kind == "layers" and colon:
        return _layers(what, _numbers(what, rest))
    if kind == "tensors" and rest:
        try:
            found = re.compile(rest)
        except re.error as error:
            raise RequestError(f"ready {what!r} has no regular expression: {error}", hint=HINT) from error
        return lambda names: _some(what, [name for name in names if found.search(name)])
    if kind == "all" and not colon:
        return list
    if kind in _WORDS and not colon:
        return lambda names: _some(what, [name for name in names if stage_of(name) == kind])
    raise RequestError(f"ready {what[:200]!r} is not understood", hint=HINT)


def _numbers(what: str, text: str) -> frozenset[int]:
    found: set[int] = set()
    for item in text.split(","):
        run = _RUN.fullmatch(item.strip())
        if not run or int(run[2] or run[1]) < int(run[1]):
            raise RequestError(f"ready {what[:200]!r} has {item[:50]!r}, which is no layer", hint=HINT)
        found.update(range(int(run[1]), min(int(run[2] or run[1]), int(run[1]) + MOST_LAYERS) + 1))
    return frozenset(found)


def _layers(what: str, layers: frozenset[int]) -> Callable[[Sequence[str]], list[str]]:
    wanted = {f"layer {layer}": layer for layer in layers}

    def choose(names: Sequence[str]) -> list[str]:
        stages = {name: stage_of(name) for name in names}
        absent = {wanted[stage] for stage in wanted.keys() - set(stages.values())}
        if absent:
            raise RequestError(
                f"ready {what[:200]!r} means layers that are not here: {numbers(absent, 60)}",
                hint=f"the layers are {numbers(_layers_of(stages.values()), 60) or 'none'}",
            )
        return [name for name in names if stages[name] in wanted]

    return choose


def _layers_of(stages: Collection[str]) -> set[int]:
    return {int(stage.removeprefix("layer ")) for stage in stages if stage.startswith("layer ")}


def _some(what: str, chosen: list[str]) -> list[str]:
    if not chosen:
        raise RequestError(f"ready {what[:200]!r} means no tensor", hint=HINT)
    return chosen
