"""Flax's msgpack checkpoints (`flax_model.msgpack`): one tree, arrays in it as an extension type.

    map {"params": map {"w": ext 1 [shape, "float32", bytes], ...}, "step": 7}

There is no index: what follows an array is found behind its bytes, so one header is asked for after another,
and the bytes themselves never. Keys are the tree's paths, joined by `.`; lists count by index.

    ext 1   an array: msgpack of [shape, dtype's name, bytes in C order]
    ext 3   a NumPy scalar, in the same form: an array without dimensions
    ext 2   a complex number, which is passed over, as are all other leaves: numbers, texts, nil
    map {"__msgpack_chunked_array__": true, "shape": {"0": n, ...}, "chunks": {"0": ext 1, ...}}
            an array of more than 2^30 bytes, flat and cut up: runs of one array

A *stream* (EasyLM, OpenLLaMA) is pairs one after the other, each of a path and of bytes that hold one array
in the form above:

    array [["params", "w"], bytes(ext 1 [...])]    array [...]    ...

The dtype's name has no byte order; writers are little-endian.
"""

from __future__ import annotations

from collections.abc import Generator
from math import prod

from gdist.core.box import boxes_of_run
from gdist.core.dtypes import BY_NAME, DType
from gdist.core.extent import Extent
from gdist.core.strided import MAX_RUNS
from gdist.core.tensor import FoundArray, Part
from gdist.errors import UnsupportedError
from gdist.formats import Scan
from gdist.formats.flax_sniff import ARRAY, COMPLEX, SCALAR, SPEC_KEYS, SPECS, SPECS_HINT, sniff
from gdist.formats.msgpack import TRUE, Head, Kind, Msgpack
from gdist.formats.window import Reading

NAME = "flax-msgpack"
KEYS_ARE_NAMES = True  # a key is the path in the model's tree, whichever file it is in

MAX_ARRAYS = 1 << 17  # as in a zip directory
MAX_VALUES = 1 << 20  # all that is in a tree, keys among them: ten times the largest with optimizer states
MAX_DEPTH = 64
MAX_KEY_BYTES = 512  # of a whole path; a tensor's name has 240 at most
MAX_DIMENSIONS = 32  # of a TensorStore array
_CHUNKED = "__msgpack_chunked_array__"
_WHAT = "not flax's msgpack"

__all__ = ["KEYS_ARE_NAMES", "NAME", "scan", "sniff"]


def scan(size: int) -> Scan:
    """Finds the arrays of a file of `size` bytes, in the order in which they lie there.

    Raises:
        UnsupportedError: types gdist does not store, other extension types, and trees beyond the limits here.
        CorruptError: what is no msgpack, is cut short, is followed by other bytes, or is there twice.
    """
    walk = _Walk(size)
    pack = walk.pack
    first = yield from pack.head()
    if first.kind is Kind.MAP:
        yield from walk.map(first, (), 0)
    else:
        while True:
            yield from walk.pair(first)
            if pack.position == size:
                break
            first = yield from pack.head()
    if pack.position != size:
        pack.corrupt(f"{size - pack.position} bytes follow the tree")
    return tuple(walk.found.values())


class _Walk:
    """The arrays found so far, and what is at hand of the file."""

    def __init__(self, size: int) -> None:
        self.pack = Msgpack(size, _WHAT)
        self.found: dict[str, FoundArray] = {}
        self._values = 0

    def map(self, head: Head, path: tuple[str, ...], depth: int) -> Reading:
        """What is in a map whose head was read."""
        seen = set[str]()
        for number in range(head.number):
            key = yield from self._key()
            if key in seen:
                self.pack.corrupt(f"key {key!r} is there twice in {'.'.join(path)!r}")
            if key == _CHUNKED:
                if number or head.number != 3:
                    self.pack.corrupt(f"{_CHUNKED} is not the first of three entries")
                yield from self._chunked(path)
                return
            seen.add(key)
            if not self._plain():
                yield from self._value((*path, key), depth + 1)
        if seen >= SPEC_KEYS:
            raise UnsupportedError(f"{'.'.join(path)!r} is of {SPECS}", hint=SPECS_HINT)

    def pair(self, head: Head) -> Reading:
        """One pair of a stream: its path, and the bytes that hold an array."""
        pack = self.pack
        if head.kind is not Kind.ARRAY or head.number != 2:
            pack.corrupt("what follows is no pair of a path and bytes")
        keys = yield from pack.head()
        if keys.kind is not Kind.ARRAY or keys.number > MAX_DEPTH:
            pack.corrupt("what follows is no path")
        path = []
        for _ in range(keys.number):
            path.append((yield from self._key()))
        holds = yield from pack.head()
        if holds.kind is not Kind.BYTES:
            pack.corrupt(f"{'.'.join(path)!r} has no bytes")
        stop = pack.position + holds.number
        pack.room(holds.number)
        yield from self._value(tuple(path), 0)
        if pack.position != stop:
            pack.corrupt(f"{'.'.join(path)!r} ends at {pack.position}, its bytes at {stop}")

    def _value(self, path: tuple[str, ...], depth: int) -> Reading:
        if depth > MAX_DEPTH:
            raise UnsupportedError(f"the tree is more than {MAX_DEPTH} deep", offset=self.pack.position)
        self._count()
        head = yield from self.pack.head()
        match head.kind:
            case Kind.MAP:
                yield from self.map(head, path, depth)
            case Kind.ARRAY:
                for index in range(head.number):
                    if not self._plain():
                        yield from self._value((*path, str(index)), depth + 1)
            case Kind.EXTENSION if head.code in (ARRAY, SCALAR):
                array = yield from self._array(head, self._name(path))
                self._add(array)
            case Kind.EXTENSION if head.code != COMPLEX:
                raise UnsupportedError(
                    f"{'.'.join(path)!r} is of extension type {head.code}, which Flax does not write",
                    offset=self.pack.position,
                )
            case Kind.EXTENSION | Kind.TEXT | Kind.BYTES:
                self.pack.skip(head.number)
            case Kind.NUMBER | Kind.OTHER:
                pass

    def _key(self) -> Generator[Extent, bytes, str]:
        """A key: text, or a number in its digits."""
        self._count()
        head = yield from self.pack.head()
        if head.kind is Kind.NUMBER:
            return str(head.number)
        if head.kind is not Kind.TEXT:
            self.pack.corrupt(f"a key is {head.kind.value}, neither text nor a whole number")
        if head.number > MAX_KEY_BYTES:
            raise UnsupportedError(
                f"a key has {head.number} bytes, {MAX_KEY_BYTES} are read", offset=self.pack.position
            )
        return (yield from self.pack.text(head.number))

    def _name(self, path: tuple[str, ...]) -> str:
        name = ".".join(path)
        if len(name.encode()) > MAX_KEY_BYTES:
            raise UnsupportedError(
                f"an array's path has {len(name.encode())} bytes, {MAX_KEY_BYTES} are read: {name[:80]!r}",
                offset=self.pack.position,
            )
        return name

    def _plain(self) -> bool:
        """True where a leaf that is no array was at hand, and is passed over."""
        if not self.pack.pass_plain():
            return False
        self._count()
        return True

    def _count(self) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise UnsupportedError(f"the tree has more than {MAX_VALUES} values", offset=self.pack.position)

    def _add(self, array: FoundArray) -> None:
        if array.key in self.found:
            self.pack.corrupt(f"array {array.key!r} is there twice")
        if len(self.found) >= MAX_ARRAYS:
            raise UnsupportedError(f"the tree has more than {MAX_ARRAYS} arrays", offset=self.pack.position)
        self.found[array.key] = array

    def _array(self, head: Head, name: str) -> Generator[Extent, bytes, FoundArray]:
        """The array in an extension whose head was read; goes past its bytes."""
        pack = self.pack
        stop = pack.position + head.number
        pack.room(head.number)
        outer = yield from pack.head()
        lengths = yield from pack.head()
        if outer.kind is not Kind.ARRAY or outer.number != 3 or lengths.kind is not Kind.ARRAY:
            pack.corrupt(f"array {name!r} is not made of shape, type and bytes")
        if lengths.number > MAX_DIMENSIONS:
            raise UnsupportedError(
                f"array {name!r} has {lengths.number} dimensions, {MAX_DIMENSIONS} are read",
                offset=pack.position,
            )
        shape = []
        for _ in range(lengths.number):
            shape.append((yield from self._length(name)))
        dtype = yield from self._dtype(name)
        held = yield from pack.head()
        nbytes = prod(shape) * dtype.itemsize
        if held.kind is not Kind.BYTES or held.number != nbytes or pack.position + nbytes != stop:
            pack.corrupt(
                f"{dtype.name} {shape} of {name!r} takes {nbytes} bytes, "
                f"it has {held.number} up to {pack.position + held.number} of {stop}"
            )
        return FoundArray(name, pack.skip(nbytes), tuple(shape), dtype)

    def _length(self, name: str) -> Generator[Extent, bytes, int]:
        head = yield from self.pack.head()
        if head.kind is not Kind.NUMBER or not 0 <= head.number < 1 << 63:
            self.pack.corrupt(f"array {name!r} has a length that is none")
        return head.number

    def _dtype(self, name: str) -> Generator[Extent, bytes, DType]:
        head = yield from self.pack.head()
        if head.kind not in (Kind.TEXT, Kind.BYTES) or head.number > MAX_KEY_BYTES:
            self.pack.corrupt(f"array {name!r} has a type that is no text")
        text = yield from self.pack.text(head.number)
        if text not in BY_NAME:
            hint = "load it where you trust it, and save it as numbers of a type that gdist stores"
            what = "is big-endian" if text.startswith(">") else "is of a type gdist does not store"
            raise UnsupportedError(f"array {name!r} {what}: {text[:80]!r}", hint=hint)
        return BY_NAME[text]

    def _chunked(self, path: tuple[str, ...]) -> Reading:
        """An array that is cut up, after its first key."""
        pack, name = self.pack, self._name(path)
        mark = yield from pack.head()
        if mark.kind is not Kind.OTHER or mark.code != TRUE:
            pack.corrupt(f"{_CHUNKED} of {name!r} is not true")
        shape: list[int] = []
        count = yield from self._numbered("shape", name, MAX_DIMENSIONS)
        for number in range(count):
            yield from self._number(number, name)
            shape.append((yield from self._length(name)))
        chunks: list[FoundArray] = []
        count = yield from self._numbered("chunks", name, MAX_RUNS)
        for number in range(count):
            yield from self._number(number, name)
            head = yield from pack.head()
            if head.kind is not Kind.EXTENSION or head.code != ARRAY:
                pack.corrupt(f"chunk {number} of {name!r} is no array")
            chunks.append((yield from self._array(head, f"{name} chunk {number}")))
        self._add(self._joined(name, tuple(shape), chunks))

    def _numbered(self, key: str, name: str, limit: int) -> Generator[Extent, bytes, int]:
        """Entries of the map under a key of a chunked array."""
        found = yield from self._key()
        head = yield from self.pack.head()
        if found != key or head.kind is not Kind.MAP:
            self.pack.corrupt(f"chunked array {name!r} has {found!r} where the map {key!r} belongs")
        if head.number > limit:
            raise UnsupportedError(
                f"chunked array {name!r} has {head.number} {key}, {limit} are read", offset=self.pack.position
            )
        return head.number

    def _number(self, number: int, name: str) -> Reading:
        key = yield from self._key()
        if key != str(number):
            self.pack.corrupt(f"chunked array {name!r} has {key!r} where {number} belongs")

    def _joined(self, name: str, shape: tuple[int, ...], chunks: list[FoundArray]) -> FoundArray:
        sizes = [prod(chunk.shape) for chunk in chunks]
        types = {chunk.dtype for chunk in chunks}
        if not chunks or len(types) != 1 or any(len(c.shape) != 1 for c in chunks) or 0 in sizes:
            self.pack.corrupt(f"the chunks of {name!r} are not flat, of one type, and of some elements")
        if sum(sizes) != prod(shape):
            self.pack.corrupt(f"{name!r} {list(shape)} has {sum(sizes)} elements in its chunks")
        dtype, start, runs = chunks[0].dtype, 0, list[Part]()
        for chunk, size in zip(chunks, sizes, strict=True):
            offset = chunk.extent.start
            for box in boxes_of_run(shape, start, start + size):
                runs.append(Part(Extent(offset, box.size * dtype.itemsize), box))
                offset += box.size * dtype.itemsize
            start += size
            if len(runs) > MAX_RUNS:
                raise UnsupportedError(f"chunked array {name!r} is of more than {MAX_RUNS} runs")
        first = chunks[0].extent
        if len(runs) == 1:
            return FoundArray(name, first, shape, dtype)
        whole = Extent(first.start, chunks[-1].extent.stop - first.start)
        return FoundArray(name, whole, shape, dtype, runs=tuple(runs))
