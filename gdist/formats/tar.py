"""tar: a row of members, each a header of 512 bytes and its content; two empty blocks end it.

    | header | content ...pad | header | content ...pad | zeros | zeros | zeros up to a whole record |

Read are POSIX ustar, GNU long names and pax headers (`path` and `size`), as GNU tar, BSD tar and Python write
them. Every member starts where the one before it ended, so that two cannot share a byte. Links and devices
are passed over: nothing they name is looked at. Where programs are known to read one archive in two ways (a
size given twice, a name twice, bytes after the end) it is refused.

There is no index: to know the members is to go from header to header, and a header lies beside its content.
Of a torrent this costs a piece for each large member; where members are smaller than pieces all pieces are
fetched, whatever is wanted of them.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import NoReturn

from gdist.core.extent import Extent
from gdist.errors import CorruptError, UnsupportedError
from gdist.formats import Member, Members

NAME = "tar"

BLOCK = 512
MAX_MEMBERS = 1 << 17  # links and directories counted; each is held in memory while the others are read
MAX_NAME_BYTES = 4096  # Linux's PATH_MAX
MAX_EXTENSION_BYTES = 64 * 1024  # of a long name or a pax header; what they hold of use is far shorter
MAX_PADDING = 1 << 20  # after the end; GNU tar's own records are 10 KiB, large ones for tapes 1 MiB
MAX_SIZE = (1 << 63) - 1
OCTAL_LIMIT = 8**11 - 1  # the largest size that a ustar header can say: a larger one is in a pax header

_FILES = b"0\0" + b"7"  # 7: contiguous, which no file system minds any more
_PASSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a pipe",
}
_TORCH = {"pickle", "tensors", "storages"}  # the members of a torch checkpoint from before torch 0.1.10


@dataclass(slots=True)
class _Pending:
    """What extension headers said of the member that follows them."""

    path: str | None = None
    size: int | None = None
    seen: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Header:
    offset: int
    path: bytes
    size: int
    kind: bytes


def sniff(head: bytes, size: int) -> bool:
    """True when the first header has tar's magic; whether it is right, `members` finds out."""
    return len(head) >= BLOCK and head[257:262] == b"ustar"


def members(size: int) -> Members:
    """Finds the files in an archive of `size` bytes, in its order; asks for headers, one after the other.

    Raises:
        UnsupportedError: for what is not read: sparse members, unknown kinds, names that are not plain
            relative paths, more than `MAX_MEMBERS`.
        CorruptError: for an archive that contradicts itself, is cut short, or goes on after its end.
    """
    found: list[Member] = []
    seen: set[str] = set()
    pending, position, count = _Pending(), 0, 0
    while True:
        if size - position < BLOCK:
            _corrupt(position, "ends without its two empty blocks")
        block = yield Extent(position, BLOCK)
        if not any(block):
            break
        header = _header(block, position)
        count += 1
        if count > MAX_MEMBERS:
            _unsupported(position, f"more than {MAX_MEMBERS} headers")
        start = position + BLOCK
        if header.kind in (b"L", b"K", b"x", b"g"):
            content = Extent(start, _within(header, header.size, start, size, MAX_EXTENSION_BYTES))
            _extend(pending, header, (yield content))
            position = _after(content)
            continue
        content = Extent(start, _within(header, _size(header, pending), start, size, MAX_SIZE))
        path = _path(header, pending)
        if header.kind in _FILES:
            found.append(Member(path, content))
        elif content.length:
            _corrupt(position, f"{_PASSED[header.kind]}, {path!r}, has {content.length} bytes of content")
        if header.kind != b"5":
            if path in seen:
                _corrupt(position, f"member {path!r} is there twice")
            seen.add(path)
        pending, position = _Pending(), _after(content)
    if pending.seen:
        _corrupt(position, "an extension header is followed by no member")
    yield from _end(position, size)
    if {member.path for member in found} >= _TORCH:
        raise UnsupportedError(
            "it is a torch checkpoint from before torch 0.1.10",
            hint="load it with torch 2.5 or older and save it anew, or as safetensors",
        )
    return tuple(found)


def _end(position: int, size: int) -> Members:
    """That nothing but zeros follows the first empty block.

    A second one must be there: without it the archive may have been cut off.
    """
    rest = size - position
    if rest < 2 * BLOCK:
        _corrupt(position, "ends after one empty block, not two")
    if rest > MAX_PADDING:
        _corrupt(position, f"{rest} bytes follow its end, more than the {MAX_PADDING} of padding allowed")
    data = yield Extent(position, rest)
    if any(data):
        first = next(i for i, byte in enumerate(data) if byte)
        _corrupt(position + first, "bytes that are not zero follow its end")
    return ()


def _after(content: Extent) -> int:
    return -(-content.stop // BLOCK) * BLOCK


def _header(block: bytes, offset: int) -> _Header:
    """The header in a block.

    Raises:
        CorruptError: when its checksum, magic or numbers are wrong.
        UnsupportedError: for a kind of member that is not read.
    """
    magic = block[257:265]
    gnu = magic == b"ustar  \0"
    if not gnu and magic != b"ustar\00000":
        _corrupt(offset, f"a header has the magic {magic!r}")
    said = _octal(block[148:156], offset, "checksum")
    actual = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if said != actual:
        _corrupt(offset, f"a header has the checksum {said}, its bytes {actual}")
    kind = block[156:157]
    if kind == b"S":
        _unsupported(offset, "a sparse member", "unpack it with tar, and use the directory")
    if kind not in _FILES and kind not in _PASSED and kind not in b"LKxg":
        _unsupported(offset, f"a member of kind {kind!r}")
    name = _text(block[:100])
    prefix = b"" if gnu else _text(block[345:500])
    path = prefix + b"/" + name if prefix else name
    return _Header(offset, path, _number(block[124:136], offset), kind)


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _octal(data: bytes, offset: int, what: str) -> int:
    digits = data.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        _corrupt(offset, f"the {what} {data!r} is no octal number")
    return int(digits, 8)


def _number(data: bytes, offset: int) -> int:
    """A size: octal digits, or, where the first bit is set, GNU's 95 bits, highest first."""
    if not data[0] & 0x80:
        return _octal(data, offset, "size")
    value = int.from_bytes(bytes([data[0] & 0x7F]) + data[1:], "big")
    if data[0] & 0x40 or value > MAX_SIZE:
        _corrupt(offset, f"the size {data!r} is negative or larger than {MAX_SIZE}")
    return value


def _within(header: _Header, length: int, start: int, size: int, most: int) -> int:
    if length > most:
        _unsupported(header.offset, f"an extension header of {length} bytes, more than {most}")
    if length > size - start:
        _corrupt(header.offset, f"a member of {length} bytes starts at {start}, the file ends at {size}")
    return length


def _size(header: _Header, pending: _Pending) -> int:
    """A member's size. A pax header may say one that a plain header cannot, and no other."""
    if pending.size is None or pending.size == header.size:
        return header.size
    if pending.size <= OCTAL_LIMIT:
        _corrupt(header.offset, f"a member has {header.size} bytes by its header, {pending.size} by pax")
    return pending.size


def _path(header: _Header, pending: _Pending) -> str:
    """A member's path: plain, relative, without a leading `./` or a directory's last `/`.

    Raises:
        UnsupportedError: when it cannot be.
    """
    path = pending.path if pending.path is not None else _decoded(header.path, header.offset)
    while path.startswith("./"):
        path = path[2:]
    if header.kind == b"5":
        path = path.rstrip("/") if path.strip("/") else path
        if path in ("", "."):
            return "."
    if len(path.encode()) > MAX_NAME_BYTES:
        _unsupported(header.offset, f"a name longer than {MAX_NAME_BYTES} bytes")
    control = "\\" in path or any(unicodedata.category(char) == "Cc" for char in path)
    if control or any(part in ("", ".", "..") for part in path.split("/")):
        _unsupported(header.offset, f"the name {path[:200]!r}, which is no plain relative path")
    return path


def _decoded(data: bytes, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        _unsupported(offset, f"the name {data[:200]!r}, which is not UTF-8")


def _extend(pending: _Pending, header: _Header, data: bytes) -> None:
    """Takes in an extension header: what it says of the next member."""
    if header.kind in pending.seen or {header.kind, *pending.seen} >= {b"L", b"x"}:
        _corrupt(header.offset, "a member has two extension headers that name it")
    if header.kind != b"g":
        pending.seen.add(header.kind)
    if header.kind == b"K":  # where a link leads; it is not followed
        return
    if header.kind == b"L":
        pending.path = _decoded(_text(data), header.offset)
        return
    records = _records(data, header.offset)
    sparse = next((key for key in records if key.startswith(b"GNU.sparse.")), None)
    if sparse:
        _unsupported(header.offset, "a sparse member", "unpack it with tar, and use the directory")
    if header.kind == b"g":
        if records.keys() & {b"path", b"size"}:
            _unsupported(header.offset, "a name or size for all members that follow")
        return
    if b"path" in records:
        pending.path = _decoded(records[b"path"], header.offset)
    if b"size" in records:
        text = records[b"size"]
        if not text.isdigit() or len(text) > 19 or int(text) > MAX_SIZE:
            _corrupt(header.offset, f"pax has the size {text[:40]!r}")
        pending.size = int(text)


def _records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """The records of a pax header, `LENGTH KEY=VALUE` and a line feed each; LENGTH counts all of it."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        digits, space, _ = data[position : position + 8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or record[-1:] != b"\n" or not key or not equals:
            _corrupt(offset, f"a pax header has a record that is none, at byte {position} of it")
        if key in records:
            _corrupt(offset, f"a pax header has {key[:100]!r} twice")
        records[key] = value
        position += length
    return records


def _corrupt(offset: int, what: str) -> NoReturn:
    raise CorruptError(f"not a tar archive that can be read: at {offset}: {what}", offset=offset)


def _unsupported(offset: int, what: str, hint: str = "") -> NoReturn:
    raise UnsupportedError(f"the tar archive has, at {offset}, {what}", hint=hint, offset=offset)
