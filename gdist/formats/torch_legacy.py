"""torch's checkpoints from before 1.6: five pickles, and the storages behind them.

    | magic | 1001 | system | the object | keys | count, bytes | count, bytes | ... |
      fixed   fixed  fixed    views of     of storages, in the order in which they follow,
      bytes   bytes  values   storages     each with its number of elements (8 bytes)

The element size of a storage is known from the object alone, so where each storage lies follows from the
pickles; the storages must then end where the file ends. `scan` computes it; `check` reads every count too.
The pickles are read symbolically (`pickle_machine`, `torch_values`); nothing of them is executed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from gdist.core.extent import Extent
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import Scan
from gdist.formats.pickle_machine import Machine
from gdist.formats.torch_values import TorchMeaning
from gdist.formats.torch_zip import read_pickle

NAME = "torch-legacy"
KEYS_ARE_NAMES = True

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c, pickled with protocol 2
VERSION = b"\x80\x02M\xe9\x03."  # 1001
COUNT_BYTES = 8


def sniff(head: bytes, size: int) -> bool:
    """True for a file that starts with the pickled magic number."""
    return head.startswith(MAGIC)


def scan(size: int) -> Scan:
    """Finds the tensors of a checkpoint of `size` bytes; keys are their paths in it, joined by `.`.

    Raises:
        UnsupportedError: another version, a big-endian file, a name or call that is not known.
        CorruptError: pickles, keys or lengths that contradict each other or the file's length.
    """
    return (yield from _read(size, everywhere=False))


def check(size: int) -> Scan:
    """The same, with the number of elements in front of every storage read."""
    return (yield from _read(size, everywhere=True))


def _read(size: int, *, everywhere: bool) -> Scan:
    start = len(MAGIC + VERSION)
    if size < start or (yield Extent(0, start)) != MAGIC + VERSION:
        raise UnsupportedError("the torch checkpoint is not of version 1001, written with protocol 2")
    system = yield from _pickle(start, size)
    _check_system(system.root)
    meaning = TorchMeaning()
    machine = yield from _pickle(system.stop_offset, size, meaning)
    keys = yield from _pickle(machine.stop_offset, size)
    position = keys.stop_offset
    extents: dict[str, Extent] = {}
    for key in _keys(keys.root, meaning):
        if everywhere:
            yield from _check_count(key, position, size, meaning)
        extents[key] = Extent(position + COUNT_BYTES, meaning.storages[key])
        position = extents[key].stop
    if position != size:
        raise CorruptError(f"the storages end at {position}, the file has {size} bytes", offset=position)
    meaning.extents = extents
    return machine.found()


def _pickle(start: int, size: int, meaning: TorchMeaning | None = None) -> Generator[Extent, bytes, Machine]:
    return (yield from read_pickle(Extent(start, size - start), meaning or TorchMeaning(), alone=False))


def _check_system(system: object) -> None:
    if not isinstance(system, dict) or system.get("protocol_version") != 1001:
        raise CorruptError("the third pickle is not torch's description of the system")
    if system.get("little_endian") is not True:
        raise UnsupportedError(
            "the checkpoint is big-endian", hint="load and save it on a little-endian machine you trust"
        )


def _keys(value: object, meaning: TorchMeaning) -> Sequence[str]:
    """The keys of the storages in file order: just those the object speaks of, each once."""
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(keys) != len(value) or len(set(keys)) != len(keys):
        raise CorruptError("the fifth pickle is not a list of storage keys, each once")
    if set(keys) != set(meaning.storages):
        few, more = len(set(meaning.storages) - set(keys)), len(set(keys) - set(meaning.storages))
        raise CorruptError(
            f"the checkpoint's keys and its object disagree: {few} storages are not listed, {more} not used"
        )
    return keys


def _check_count(key: str, position: int, size: int, meaning: TorchMeaning) -> Generator[Extent, bytes, None]:
    if position + COUNT_BYTES > size:
        raise CorruptError(f"the file ends at {size}, storage {key!r} starts at {position}", offset=position)
    count = int.from_bytes((yield Extent(position, COUNT_BYTES)), "little", signed=True)
    itemsize = meaning.itemsizes[key]
    if count * itemsize != meaning.storages[key]:
        what = f"storage {key!r} has {count} elements of {itemsize} bytes, its tensors speak of"
        raise CorruptError(f"{what} {meaning.storages[key]} bytes", offset=position)
