"""torch's zip checkpoints (`.pth .pt .bin .ckpt`, since torch 1.6): a pickle, and a member for each storage.

    PREFIX/data.pkl    the object; tensors as views of storages, by key
    PREFIX/byteorder   "little"; missing in old files
    PREFIX/data/KEY    the bytes of one storage, stored, at a multiple of 64
    PREFIX/version, PREFIX/.data/serialization_id, PREFIX/.format_version, ...

The pickle is read symbolically (`pickle_machine`, `torch_values`); nothing of it is executed or imported.
Members whose name begins with a dot are passed over, as torch does; any other that is not in the list is
refused.

Where a storage's bytes begin, only the local header in front of it says: a piece of the torrent for each,
one after the other, before anything could be planned. torch pads that header so that the bytes start at the
next multiple of 64, and the directory says where the next member starts, so the place follows twice over
from the directory alone. `scan` takes it from there where both agree, and reads the local headers of
storages only where they do not; it needs the directory, the pickle and the few small members, which are in
the first and the last piece of nearly every file. `check` reads every local header and holds it against the
directory: for files that are at hand.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from gdist.core.extent import Extent
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import Scan
from gdist.formats.pickle_lexer import TORCH, Lexer
from gdist.formats.pickle_machine import Machine
from gdist.formats.torch_values import TorchMeaning
from gdist.formats.zip_directory import Entry, Member, locate, read_entries

NAME = "torch"
KEYS_ARE_NAMES = True

ALIGNMENT = 64  # of each member's bytes; torch pads the local header's extra field
MAX_SMALL_BYTES = 1 << 16  # byteorder, version and the like; a few bytes each
_PLAIN = frozenset({"data.pkl", "byteorder", "version"})
_FULL = 0xFFFFFFFF
_LISTED = 20


def sniff(head: bytes, size: int) -> bool:
    """True for a zip whose first member is `PREFIX/data.pkl`, as torch writes it."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\x03\x04") and name.endswith(b"/data.pkl")


def scan(size: int) -> Scan:
    """Finds the tensors of a checkpoint of `size` bytes; keys are their paths in it, joined by `.`.

    Raises:
        UnsupportedError: a name or call that is not known, another member, a compressed one, a big-endian
            file, tensors without plain elements (quantised, sparse, meta, nested).
        CorruptError: a zip or a pickle that contradicts itself, or a tensor that leaves its storage.
    """
    return (yield from _read(size, everywhere=False))


def check(size: int) -> Scan:
    """The same, with the local header of every member read and held against the directory."""
    return (yield from _read(size, everywhere=True))


def _read(size: int, *, everywhere: bool) -> Scan:
    entries = yield from read_entries(size)
    prefix = _prefix(entries)
    storages = [entry for entry in entries if entry.name.startswith(prefix + "data/")]
    rest = [entry for entry in entries if not entry.name.startswith(prefix + "data/")]
    computed = _computed(storages)
    if computed is None or everywhere:
        members = yield from locate(entries)
        moved = set(computed or ()) - set(members)
        if moved:
            name = min(member.name for member in moved)
            raise CorruptError(f"{name} and {len(moved) - 1} more do not start where torch puts them")
    else:
        members = (*computed, *(yield from locate(rest)))
    found = {member.name.removeprefix(prefix): member for member in members}
    yield from _check_byte_order(found.get("byteorder"))
    meaning = TorchMeaning()
    machine = yield from read_pickle(found["data.pkl"].extent, meaning)
    faults = []
    for key, nbytes in meaning.storages.items():
        stored = found.get(f"data/{key}")
        if stored is None:
            faults.append(f"storage {key!r} has no member {prefix}data/{key}")
        elif stored.extent.length != nbytes:
            faults.append(f"storage {key!r} takes {nbytes} bytes, {stored.name} has {stored.extent.length}")
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise CorruptError(f"the checkpoint contradicts itself: {'; '.join(faults[:_LISTED])}{more}")
    meaning.extents = {key: found[f"data/{key}"].extent for key in meaning.storages}
    return machine.found()


def read_pickle(
    extent: Extent, meaning: TorchMeaning, *, alone: bool = True
) -> Generator[Extent, bytes, Machine]:
    """Runs the pickle that starts with an extent, to its end; the machine that read it."""
    if not extent.length:
        raise CorruptError(f"the pickle at offset {extent.start} is empty", offset=extent.start)
    lexer = Lexer(extent.stop, extent.start, dialect=TORCH, alone=alone)
    machine = Machine(meaning)
    while not machine.stopped:
        token = lexer.token()
        if token is None:
            lexer.feed((yield lexer.wanted()))
        else:
            machine.step(token)
    machine.stop_offset = lexer.position
    return machine


def _prefix(entries: Sequence[Entry]) -> str:
    """`PREFIX/`, below which all members must lie, and be known ones.

    Raises:
        UnsupportedError: for TorchScript, and for other members.
        CorruptError: when there is no pickle.
    """
    prefix = entries[0].name.partition("/")[0] + "/" if entries else ""
    names = {entry.name.removeprefix(prefix) for entry in entries if entry.name.startswith(prefix)}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UnsupportedError(
            "the file is a TorchScript archive: a program with its tensors",
            hint="save its state_dict() where you trust it",
        )
    if "data.pkl" not in names:
        raise CorruptError(f"the zip has no member {prefix}data.pkl")
    odd = [entry.name for entry in entries if not _is_known(entry.name, prefix)]
    if odd:
        more = f" and {len(odd) - _LISTED} more" if len(odd) > _LISTED else ""
        listed = ", ".join(repr(name[:200]) for name in odd[:_LISTED])
        raise UnsupportedError(f"the checkpoint has {len(odd)} members torch does not write: {listed}{more}")
    return prefix


def _is_known(name: str, prefix: str) -> bool:
    inside = name.removeprefix(prefix)
    if inside == name:
        return False
    key = inside.removeprefix("data/")
    return inside in _PLAIN or inside.startswith(".") or (key != inside and "/" not in key)


def _computed(entries: Sequence[Entry]) -> tuple[Member, ...] | None:
    """The members where torch puts them; None when one of them does not fill its room that way."""
    members = []
    for entry in entries:
        start = entry.header + 30 + entry.name_nbytes + 4  # and the head of the padding field
        wide = entry.header >= _FULL or entry.nbytes >= _FULL
        if wide:  # the zip64 field: its head, two sizes and the offset, each where it is too large
            start += 4 + 16 * (entry.nbytes >= _FULL) + 8 * (entry.header >= _FULL)
        start = -(-start // ALIGNMENT) * ALIGNMENT
        descriptor = (24 if wide else 16) if entry.described else 0
        if start + entry.nbytes + descriptor != entry.header + entry.room:
            return None
        members.append(Member(entry.name, Extent(start, entry.nbytes), entry.crc))
    return tuple(members)


def _check_byte_order(member: Member | None) -> Generator[Extent, bytes, None]:
    if member is None:
        return
    if member.extent.length > MAX_SMALL_BYTES:
        raise CorruptError(f"member {member.name} has {member.extent.length} bytes")
    order = (yield member.extent) if member.extent.length else b""
    if order == b"big":
        raise UnsupportedError(
            "the checkpoint is big-endian", hint="load and save it on a little-endian machine you trust"
        )
    if order != b"little":
        raise CorruptError(f"member {member.name} says {order[:40]!r}, neither little nor big")
