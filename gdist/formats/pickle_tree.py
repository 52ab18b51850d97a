"""Walks the object that a pickle is, as `pickle_machine` left it: a tree whose leaves are arrays.

What a leaf is, a `Meaning` says: it is what the machine asked for every name and call, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gdist.core.tensor import FoundArray
from gdist.formats.pickle_values import Harmless, Opaque, Refused, kind_of

MAX_DEPTH = 64  # containers inside containers
MAX_SEARCH = 1024  # the same inside objects that are not read, which may hold each other
MAX_KEY = 1024  # characters; names on disk are shorter still
MAX_ARRAYS = 1 << 17  # ten times those of the largest releases; one that is shared costs two bytes of pickle


class Meaning(Protocol):
    """What names, calls and objects of a pickle stand for; all raise `Refused` or `Impossible`."""

    @property
    def SHARES(self) -> bool:
        """Whether arrays may have bytes in common, and containers of plain data be in several places."""

    def look_up(self, module: str, name: str) -> object:
        """What an allowed name stands for."""

    def call(self, function: object, arguments: object) -> object:
        """What a call would give."""

    def new_object(self, cls: object, arguments: object) -> object:
        """What making an object of a class would give."""

    def build(self, target: object, state: object) -> None:
        """Gives a value its state."""

    def persistent(self, identity: object) -> object:
        """What a persistent id stands for."""

    def is_key(self, key: object) -> bool:
        """Whether a dict may have this key."""

    def arrays(self, value: object, key: str) -> tuple[FoundArray, ...]:
        """The arrays that a leaf of the tree is; none for plain data."""


def arrays_in(root: object, meaning: Meaning) -> tuple[FoundArray, ...]:
    """The arrays of a tree, in its order; a key is the path to an array, joined by `.`.

    Raises:
        Refused: for a tree that is too deep, shares what it may not, or has a leaf that is neither array nor
            plain data.
    """
    collector = _Collector(meaning)
    collector.visit(root, _Path(), 0)
    return tuple(collector.arrays)


_Container = dict[object, object] | list[object] | tuple[object, ...]


class _Collector:
    """Walks a tree once. A container met twice (a cycle, or a bomb of shared ones) ends the walk.

    Where the meaning shares, one that has been walked and holds no array may be met again.
    """

    def __init__(self, meaning: Meaning) -> None:
        self.arrays: list[FoundArray] = []
        self._meaning = meaning
        self._containers: dict[int, bool] = {}  # by id: whether it holds arrays, or is still walked
        self._payloads: dict[int, str] = {}  # start of a payload: the array that has it
        self._keys: set[str] = set()
        self._searched: set[int] = set()  # what was met in opaque objects, each once

    def visit(self, value: object, path: _Path, depth: int) -> None:
        if isinstance(value, dict | list | tuple):
            self._visit_container(value, path, depth)
        elif isinstance(value, Opaque):
            self._visit_opaque(value, path)
        elif not (value is None or isinstance(value, str | int | float)):
            self._add(self._meaning.arrays(value, path.key), path)

    def _visit_container(self, value: _Container, path: _Path, depth: int) -> None:
        if depth == MAX_DEPTH:
            raise Refused(f"containers nested {MAX_DEPTH} deep")
        if value and id(value) in self._containers:
            if self._meaning.SHARES and not self._containers[id(value)]:
                return
            raise Refused(f"a container at {path.key!r} that is somewhere else too")
        self._containers[id(value)] = True
        before = len(self.arrays)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if key == "" and not self._meaning.SHARES:
                raise Refused(f"an empty key below {path.key!r}")
            self.visit(item, path.below(key), depth + 1)
        self._containers[id(value)] = len(self.arrays) > before

    def _visit_opaque(self, value: Opaque, path: _Path) -> None:
        """Finds the arrays in an object that is not read, and in what it holds: there may be cycles in it."""
        walks: list[Iterator[tuple[object, _Path]]] = [iter([(value, path)])]
        while walks:
            item, where = next(walks[-1], (None, None))
            if where is None:
                walks.pop()
            elif not isinstance(item, Opaque | dict | list | tuple):
                self.visit(item, where, 0)
            elif id(item) not in self._searched:
                self._searched.add(id(item))
                walks.append(_inside(item, where))
                if len(walks) > MAX_SEARCH:
                    raise Refused(f"objects nested {MAX_SEARCH} deep")

    def _add(self, arrays: tuple[FoundArray, ...], path: _Path) -> None:
        if not arrays:
            return
        key = path.key
        if path.fault:
            raise Refused(f"an array below a key that is {path.fault}: {key!r}")
        if len(key) > MAX_KEY:
            raise Refused(f"an array whose path has more than {MAX_KEY} characters")
        if key in self._keys:
            raise Refused(f"two arrays whose path is {key!r}")
        if len(self.arrays) >= MAX_ARRAYS:
            raise Refused(f"more than {MAX_ARRAYS} arrays")
        self._keys.add(key)
        for array in arrays:
            label = f"{key}.{array.role}" if array.role else key
            if array.extent.length and not self._meaning.SHARES:
                start = array.extent.start
                other = self._payloads.setdefault(start, label)
                if other is not label:
                    raise Refused(f"arrays {other!r} and {label!r} with the same payload at {start}")
            self.arrays.append(array)


def _inside(value: Opaque | _Container, path: _Path) -> Iterator[tuple[object, _Path]]:
    """What an object or a container holds; an object's state, a dict, has the names of its attributes."""
    if isinstance(value, Opaque):
        for number, item in enumerate((value.items, *value.content)):
            yield item, path if isinstance(item, dict) else path.below(number)
    else:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield item, path.below(key)


class _Path:
    """Where in the tree a value is: its `key`, cut off behind `MAX_KEY`, and why that is no name, if so."""

    __slots__ = ("fault", "key", "root")

    def __init__(self, key: str = "", fault: str = "", *, root: bool = True) -> None:
        self.key = key
        self.fault = fault
        self.root = root

    def below(self, part: object) -> _Path:
        """The path of what a container has under a key or an index."""
        if isinstance(part, Harmless):  # a trainer's states of its callbacks, by their classes
            part = part.name
        named = type(part) in (str, int)
        text = str(part)[: MAX_KEY + 1] if named else f"<{kind_of(part)}>"
        fault = "" if named and part != "" else kind_of(part) if not named else "empty"
        key = text if self.root else f"{self.key}.{text}"[: MAX_KEY + 1]
        return _Path(key, self.fault or fault, root=False)
