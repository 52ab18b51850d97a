"""Reads the directory of a zip archive, strictly: what two readers could take for two things is refused.

    | local header, name, extra | bytes | descriptor? | next ... | directory | zip64 record, locator? | end |
    0                                                            directory.start                       size

A zip says where its members lie twice, at its end and in front of each of them, and programs differ in whom
they believe. Here both must say the same, the members must lie end to end from the first byte to the
directory, and the directory must end where the end record begins, which are the last bytes of the file. So
there is no room for a prefix, a second end record, a comment or a hidden member. Only stored members are
read; their CRC is reported and not checked, since their bytes are not read.

Like a format's scan, both readers here do no I/O: they ask for extents and are sent their bytes.

    entries = yield from read_entries(size)     # two reads at most, all at the end of the file
    members = yield from locate(entries)        # a read a member, joined where headers lie close together

Where a member's bytes begin only its local header says, hence the second step: it touches a piece of a
torrent for each large member, one after the other. A format whose writer always lays members out the same
way can compute the starts instead and hold them against `Entry.room`; see `gdist.formats.torch_zip`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from struct import Struct
from typing import NoReturn

from gdist.core.extent import Extent
from gdist.errors import CorruptError, UnsupportedError

MAX_MEMBERS = 1 << 17  # ten times the tensors of the largest releases; keeps a directory's memory near 100 MB
MAX_DIRECTORY_BYTES = 1 << 26  # as many members with names and extra fields of 450 bytes each
MAX_NAME_BYTES = 1024
TAIL_BYTES = 1 << 16  # read at once at the end of the file: the end records, and most directories whole
JOIN_BYTES = 1 << 16  # local headers this close together are read at once
EXTRA_BYTES = 128  # read of a local header's extra field at first; alignment to 64 takes less

_END = Struct("<4s4H2IH")
_LOCATOR = Struct("<4sIQI")
_END64 = Struct("<4sQ2H2I4Q")
_CENTRAL = Struct("<4s6H3I5H2I")
_LOCAL = Struct("<4s5H3I2H")
_DESCRIPTOR = Struct("<4s3I")
_DESCRIPTOR64 = Struct("<4sI2Q")
_FULL, _FULL_SHORT = 0xFFFFFFFF, 0xFFFF  # "look into the zip64 field"

_ZIP64 = 0x0001
_HARMLESS_EXTRA = frozenset(
    {
        0x4246,  # "FB", torch's padding
        0x5455,  # UNIX times
        0x7875,  # UNIX owner
        0x000A,  # NTFS times
    }
)
_DESCRIBED, _UTF8 = 1 << 3, 1 << 11  # flags: a descriptor follows the bytes; the name is UTF-8
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_LISTED = 20  # names of offenders in one message


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored member as the directory tells of it.

    `header` is where its local header starts; `room` the bytes from there up to the next header, or the
    directory: header, name, extra field, the `nbytes` of the member, and its descriptor.
    """

    name: str
    header: int
    nbytes: int
    crc: int
    flags: int
    name_nbytes: int
    room: int = 0

    @property
    def described(self) -> bool:
        """True when a descriptor follows its bytes; the local header may then have no sizes."""
        return bool(self.flags & _DESCRIBED)


@dataclass(frozen=True, slots=True)
class Member:
    """A stored member: `extent` are its bytes in the file, `crc` the CRC-32 they are said to have."""

    name: str
    extent: Extent
    crc: int


def read_members(size: int) -> Generator[Extent, bytes, tuple[Member, ...]]:
    """The members of a zip of `size` bytes, in the order of its directory: both steps.

    Raises:
        UnsupportedError: compressed or encrypted members, comments, unsafe names, too many members.
        CorruptError: whatever contradicts itself, or two readers may see differently.
    """
    entries = yield from read_entries(size)
    return (yield from locate(entries))


def read_entries(size: int) -> Generator[Extent, bytes, tuple[Entry, ...]]:
    """The directory of a zip of `size` bytes, in its own order; asks for the end of the file alone."""
    if size < _END.size:
        _corrupt(f"the file has {size} bytes, an end record takes {_END.size}", 0)
    base = max(0, size - TAIL_BYTES)
    tail = yield Extent(base, size - base)
    directory, count = _end_records(tail, base, size)
    if count > MAX_MEMBERS or directory.length > MAX_DIRECTORY_BYTES:
        raise UnsupportedError(
            f"the zip has {count} members in a directory of {directory.length} bytes, "
            f"{MAX_MEMBERS} in {MAX_DIRECTORY_BYTES} are read",
            offset=directory.start,
        )
    if directory.start >= base:
        data = tail[directory.start - base : directory.stop - base]
    else:
        data = yield directory
    entries = _parse_directory(data, directory.start, count)
    _check_names(entries)
    return _laid_out(entries, directory.start)


def locate(entries: Sequence[Entry]) -> Generator[Extent, bytes, tuple[Member, ...]]:
    """Members with their extents, every local header (and descriptor) held against the directory."""
    found: dict[int, Member] = {}
    ordered = sorted(entries, key=lambda entry: entry.header)
    for group in _groups(ordered):
        window = Extent(group[0].header, _header_reach(group[-1]) - group[0].header)
        data = yield window
        for entry in group:
            inside = entry.header - window.start
            head = data[inside : inside + _header_reach(entry) - entry.header]
            start = _data_start(entry, head)
            if len(head) < start:  # a long extra field
                head = yield Extent(entry.header, start)
            _check_local(entry, head[:start])
            found[entry.header] = Member(entry.name, Extent(entry.header + start, entry.nbytes), entry.crc)
            left = entry.room - start - entry.nbytes
            if entry.described and left in (_DESCRIPTOR.size, _DESCRIPTOR64.size):
                after = entry.header + start + entry.nbytes
                inside = after - window.start
                footer = data[inside : inside + left]
                if len(footer) < left:
                    footer = yield Extent(after, left)
                _check_descriptor(entry, footer)
            elif left or entry.described:
                what = "overlaps what follows it" if left < 0 else f"has {left} bytes behind it"
                _corrupt(f"member {entry.name!r} of {entry.nbytes} bytes {what}", entry.header)
    return tuple(found[entry.header] for entry in entries)


def _end_records(tail: bytes, base: int, size: int) -> tuple[Extent, int]:
    """(extent of the directory, number of members), by the end record and its zip64 twin if there is one."""
    at = size - _END.size
    magic, disk, first, here, count, length, start, comment = _END.unpack_from(tail, at - base)
    if magic != b"PK\x05\x06" or comment:
        _no_end(tail, base, size)
    if disk or first or here != count:
        raise UnsupportedError("the zip is one of several volumes", offset=at)
    stop = at
    locator_at = at - _LOCATOR.size
    if locator_at >= base and tail[locator_at - base :][:4] == b"PK\x06\x07":
        said = (count, length, start)
        stop = locator_at - _END64.size
        count, length, start = _end64(tail, base, locator_at)
        full = (_FULL_SHORT, _FULL, _FULL)
        if any(a not in (b, c) for a, b, c in zip(said, (count, length, start), full, strict=True)):
            _corrupt(f"the end record says {said}, the zip64 record {(count, length, start)}", at)
    if start + length != stop:
        what = f"the directory is said to take {length} bytes from {start}, the end record starts at {stop}"
        _corrupt(f"{what}: bytes stand before the archive, or between them", stop)
    return Extent(start, length), count


def _end64(tail: bytes, base: int, locator_at: int) -> tuple[int, int, int]:
    """(members, length, start) of the directory, by the zip64 end record just before its locator."""
    _, disk, where, disks = _LOCATOR.unpack_from(tail, locator_at - base)
    record_at = locator_at - _END64.size
    if disk or disks != 1 or where != record_at or record_at < base:
        _corrupt(f"the zip64 locator speaks of offset {where}, the record belongs at {record_at}", locator_at)
    magic, nbytes, _, _, disk, first, here, count, length, start = _END64.unpack_from(tail, record_at - base)
    if magic != b"PK\x06\x06" or nbytes != _END64.size - 12 or disk or first or here != count:
        _corrupt("the zip64 end record is not one, has more than its fields, or another volume's", record_at)
    return count, length, start


def _no_end(tail: bytes, base: int, size: int) -> NoReturn:
    found = tail.rfind(b"PK\x05\x06")
    if found < 0:
        _corrupt("the file has no end record in its last bytes: cut short, or no zip", size)
    after = size - base - found - _END.size
    if after < 0:
        _corrupt("the end record is cut short", base + found)
    raise UnsupportedError(
        f"{after} bytes follow the zip's end record at {base + found}: a comment or another file",
        hint="rewrite the file without it where you trust it",
        offset=base + found,
    )


def _parse_directory(data: bytes, start: int, count: int) -> list[Entry]:
    if count * _CENTRAL.size > len(data):
        _corrupt(f"{count} members do not fit into a directory of {len(data)} bytes", start)
    entries, position = [], 0
    refused: list[str] = []
    for _ in range(count):
        entry, position, why = _parse_entry(data, position, start)
        entries.append(entry)
        refused += [f"{entry.name[:200]!r} ({why})"] if why else []
    if position != len(data):
        _corrupt(f"{len(data) - position} bytes of the directory are no member", start + position)
    if refused:
        more = f" and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
        listed = ", ".join(refused[:_LISTED]) + more
        raise UnsupportedError(
            f"{len(refused)} members of the zip are not stored as they are: {listed}",
            hint="unpack it and pack it again without compression, or load and save it where you trust it",
            offset=start,
        )
    return entries


def _parse_entry(data: bytes, position: int, base: int) -> tuple[Entry, int, str]:
    """(the entry, where the next one starts, why it is not read or "")."""
    offset = base + position
    if len(data) - position < _CENTRAL.size or data[position : position + 4] != b"PK\x01\x02":
        _corrupt("the directory has something that is no member", offset)
    fields = _CENTRAL.unpack_from(data, position)
    _, _, _, flags, method, _, _, crc, packed, nbytes, name_nbytes, extra_nbytes, comment, disk, *_ = fields
    header = fields[-1]
    name_at = position + _CENTRAL.size
    stop = name_at + name_nbytes + extra_nbytes + comment
    if stop > len(data):
        _corrupt("a member's name or extra field leaves the directory", offset)
    name = _name(data[name_at : name_at + name_nbytes], flags, offset)
    extra = data[name_at + name_nbytes : stop - comment]
    wide = _extra_fields(extra, name, offset).get(_ZIP64, b"")
    numbers = [wide[i : i + 8] for i in range(0, len(wide), 8)]
    values = []
    for value in (nbytes, packed, header):
        if value == _FULL:
            if not numbers or len(numbers[0]) != 8:
                _corrupt(f"the zip64 field of {name!r} lacks a number", offset)
            value = int.from_bytes(numbers.pop(0), "little")
        values.append(value)
    if numbers:
        _corrupt(f"the zip64 field of {name!r} has {8 * len(numbers)} bytes too many", offset)
    nbytes, packed, header = values
    if disk or comment:
        raise UnsupportedError(f"member {name!r} has a comment or lies on another volume", offset=offset)
    why = f"compressed by method {method}" if method else ""
    why = "encrypted" if flags & _ENCRYPTED else why or _odd_flags(flags)
    if not why and packed != nbytes:
        _corrupt(f"stored member {name!r} has {nbytes} bytes, and {packed}", offset)
    return Entry(name, header, nbytes, crc, flags, name_nbytes), stop, why


def _odd_flags(flags: int) -> str:
    unknown = flags & ~(_DESCRIBED | _UTF8)
    return f"flags 0x{unknown:04x}" if unknown else ""


def _name(raw: bytes, flags: int, offset: int) -> str:
    """A member's name, which must be a plain relative path."""
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise UnsupportedError(
            f"the zip has a member whose name is not {error.encoding}: {raw[:200]!r}", offset=offset
        ) from error
    if len(raw) > MAX_NAME_BYTES or not name.isprintable() or "\\" in name or ":" in name:
        raise UnsupportedError(f"the zip has a member with an unsafe name: {name[:200]!r}", offset=offset)
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise UnsupportedError(f"member {name[:200]!r} is not a plain relative path", offset=offset)
    return name


def _extra_fields(extra: bytes, name: str, offset: int) -> dict[int, bytes]:
    """The extra fields by their number; none twice, none that changes what the member is."""
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(extra):
        kind, length = (int.from_bytes(extra[position + i : position + i + 2], "little") for i in (0, 2))
        body = extra[position + 4 : position + 4 + length]
        if len(extra) - position < 4 or len(body) != length or kind in fields:
            _corrupt(f"the extra field of {name!r} is cut short, or says something twice", offset)
        if kind != _ZIP64 and kind not in _HARMLESS_EXTRA:
            raise UnsupportedError(f"member {name!r} has an extra field 0x{kind:04x}", offset=offset)
        fields[kind] = body
        position += 4 + length
    return fields


def _check_names(entries: Iterable[Entry]) -> None:
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        listed = ", ".join(repr(name[:200]) for name in twice[:_LISTED])
        raise CorruptError(f"the zip has {len(twice)} members twice: {listed}")


def _laid_out(entries: Sequence[Entry], directory: int) -> tuple[Entry, ...]:
    """The entries with their room, end to end from the start of the file to the directory."""
    ordered = sorted(entries, key=lambda entry: entry.header)
    first = ordered[0].header if ordered else directory
    if first:
        _corrupt(f"{first} bytes stand before the first member", 0)
    rooms: dict[int, int] = {}
    stops = [entry.header for entry in ordered[1:]] + [directory] * bool(ordered)
    for entry, stop in zip(ordered, stops, strict=True):
        room = rooms[entry.header] = stop - entry.header
        if room < _LOCAL.size + entry.name_nbytes + entry.nbytes:
            what = f"member {entry.name!r} of {entry.nbytes} bytes at {entry.header}"
            _corrupt(f"{what} overlaps what starts at {stop}", entry.header)
    return tuple(replace(entry, room=rooms[entry.header]) for entry in entries)


def _header_reach(entry: Entry) -> int:
    """Where the first read of a local header ends; never behind the room of its member."""
    return entry.header + min(entry.room, _LOCAL.size + entry.name_nbytes + EXTRA_BYTES)


def _groups(ordered: Sequence[Entry]) -> Iterable[list[Entry]]:
    """Entries whose headers lie close enough together to be read at once."""
    group: list[Entry] = []
    for entry in ordered:
        if group and _header_reach(entry) - group[0].header > JOIN_BYTES:
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _data_start(entry: Entry, head: bytes) -> int:
    """Bytes from the start of the local header to those of the member."""
    name_nbytes, extra_nbytes = _LOCAL.unpack_from(head)[-2:]
    start: int = _LOCAL.size + name_nbytes + extra_nbytes
    if name_nbytes != entry.name_nbytes or start + entry.nbytes > entry.room:
        what = f"the local header of {entry.name!r} has a name of {name_nbytes} bytes and {extra_nbytes} more"
        _corrupt(f"{what}, which is not what the directory says or leaves no room for it", entry.header)
    return start


def _check_local(entry: Entry, head: bytes) -> None:
    """That a local header says what the directory says."""
    magic, _, flags, method, _, _, crc, packed, nbytes, name_nbytes, _ = _LOCAL.unpack_from(head)
    name = head[_LOCAL.size : _LOCAL.size + name_nbytes]
    differ = []
    if magic != b"PK\x03\x04":
        differ.append(f"magic {magic!r}")
    if name != entry.name.encode():
        differ.append(f"name {name[:200]!r}")
    if flags != entry.flags or method:
        differ.append(f"flags 0x{flags:04x}, method {method}")
    wide = _extra_fields(head[_LOCAL.size + name_nbytes :], entry.name, entry.header).get(_ZIP64, b"")
    if _FULL in (packed, nbytes) and len(wide) >= 16:
        nbytes, packed = (int.from_bytes(wide[i : i + 8], "little") for i in (0, 8))
    unsaid = entry.described and (crc, packed, nbytes) == (0, 0, 0)
    if not unsaid and (crc, packed, nbytes) != (entry.crc, entry.nbytes, entry.nbytes):
        differ.append(f"CRC and sizes {crc}, {packed}, {nbytes}")
    if differ:
        what = f"the local header of {entry.name!r} disagrees with the directory"
        _corrupt(f"{what}: {'; '.join(differ)}", entry.header)


def _check_descriptor(entry: Entry, footer: bytes) -> None:
    layout = _DESCRIPTOR if len(footer) == _DESCRIPTOR.size else _DESCRIPTOR64
    said = layout.unpack(footer)
    if said != (b"PK\x07\x08", entry.crc, entry.nbytes, entry.nbytes):
        _corrupt(f"the descriptor of {entry.name!r} disagrees with the directory: {said[1:]}", entry.header)


def _corrupt(what: str, offset: int) -> NoReturn:
    raise CorruptError(f"{what} (at offset {offset})", offset=offset)
