"""Archives that are refused, and why; as a program it writes them into `corpus/tar`.

python tests/formats/tar_samples.py
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes = b"a",
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\00000",
    prefix: bytes = b"",
    link: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header, with the right checksum unless another is given."""
    number = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" + b"0000000\0" + b"0000000\0"
    block[124:136] = number
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum
    return bytes(block)


def member(
    data: bytes = b"x", name: bytes = b"a", kind: bytes = b"0", size: int | bytes | None = None
) -> bytes:
    """A header and its content."""
    return header(name, len(data) if size is None else size, kind) + data + bytes(-len(data) % BLOCK)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax header."""
    data = b""
    for key, value in records:
        total = len(key) + len(value) + 3  # a space, "=" and a line feed
        total += len(b"%d" % (total + 2))
        data += b"%d %s=%s\n" % (total, key, value)
    return member(data, b"pax", kind)


def base256(value: int, first: int = 0x80) -> bytes:
    """GNU's way to say a large number."""
    raw = bytearray(value.to_bytes(12, "big"))
    raw[0] |= first
    return bytes(raw)


def sparse() -> bytes:
    """A sparse member as GNU tar's pax format has it."""
    records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
    return pax(*records) + member() + END


def nested(depth: int) -> bytes:
    """An archive in an archive in ..."""
    data = member() + END
    for _ in range(depth):
        data = member(data) + END
    return data


def samples() -> Iterator[tuple[str, bytes, str, str]]:
    """Name, content, the error's class, and words of its message."""
    corrupt, unsupported = "CorruptError", "UnsupportedError"
    yield "checksum", header(checksum=b"000000\0 ") + END, corrupt, "checksum 0"
    yield "checksum-no-number", header(checksum=b"zzzzzz\0 ") + END, corrupt, "no octal number"
    yield "size-no-number", header(size=b"0000000000x\0") + END, corrupt, "no octal number"
    yield "size-empty", header(size=bytes(12)) + END, corrupt, "no octal number"
    yield "size-negative", header(size=base256(0, 0xFF)) + END, corrupt, "negative"
    yield "size-huge", header(size=base256(1 << 90)) + END, corrupt, "larger than"
    yield "size-leaves", header(size=4096) + END, corrupt, "4096 bytes starts at 512, the file ends at 1536"
    yield "size-leaves-base256", header(size=base256(1 << 62)) + END, corrupt, "the file ends at"
    yield "magic", member() + header(magic=b"ustar\00001") + END, corrupt, "magic"
    yield "magic-second", member() + header(magic=bytes(8)) + END, corrupt, "at 1024: a header has the magic"
    yield "no-end", member(), corrupt, "ends without"
    yield "one-end-block", member() + bytes(BLOCK), corrupt, "one empty block"
    yield "cut-in-header", member() + header()[:100], corrupt, "ends without"
    yield "cut-in-content", header(size=600) + bytes(512), corrupt, "the file ends at 1024"
    yield "garbage-after-end", member() + END + b"garbage", corrupt, "at 2048: bytes that are not zero"
    yield "member-after-end", member() + END + member(name=b"b") + END, corrupt, "follow its end"
    yield "member-after-block", member() + bytes(BLOCK) + member(name=b"b") + END, corrupt, "follow its end"
    yield "twice", member() + member(b"y") + END, corrupt, "'a' is there twice"
    yield "twice-link", member() + header(kind=b"2", link=b"b") + END, corrupt, "'a' is there twice"
    yield "link-with-content", member(kind=b"1") + END, corrupt, "a hard link, 'a', has 1 bytes"
    yield "directory-with-content", member(kind=b"5") + END, corrupt, "a directory"
    yield "sparse-gnu", member(kind=b"S") + END, unsupported, "sparse"
    yield "sparse-pax", sparse(), unsupported, "sparse"
    yield "kind", member(kind=b"M") + END, unsupported, "kind b'M'"
    yield "absolute", member(name=b"/etc/passwd") + END, unsupported, "'/etc/passwd'"
    yield "climbing", member(name=b"../a") + END, unsupported, "'../a'"
    yield "climbing-prefix", header(b"a", prefix=b"b/..") + END, unsupported, "'b/../a'"
    yield "climbing-pax", pax((b"path", b"../a")) + member() + END, unsupported, "'../a'"
    yield "climbing-long", member(b"../a\0", b"././@LongLink", b"L") + member() + END, unsupported, "'../a'"
    yield "name-empty", member(name=b"") + END, unsupported, "''"
    yield "name-backslash", member(name=b"a\\b") + END, unsupported, "plain"
    yield "name-control", member(name=b"a\nb") + END, unsupported, "plain"
    yield "name-no-utf8", member(name=b"\xff") + END, unsupported, "UTF-8"
    yield (
        "name-long",
        member(b"a/" * 2100 + b"a", b"L", b"L") + member() + END,
        unsupported,
        "longer than 4096",
    )
    yield "extension-large", header(b"x", 70_000, b"x") + bytes(70_144) + END, unsupported, "70000 bytes"
    yield "extension-alone", pax((b"path", b"b")) + END, corrupt, "followed by no member"
    yield "extensions-two", pax((b"path", b"b")) * 2 + member() + END, corrupt, "two extension headers"
    long = member(b"b\0", b"L", b"L")
    yield "extensions-both", long + pax((b"path", b"c")) + member() + END, corrupt, "two extension headers"
    yield (
        "pax-size-differs",
        pax((b"size", b"512")) + member(size=1) + END,
        corrupt,
        "1 bytes by its header, 512",
    )
    yield "pax-size-no-number", pax((b"size", b"-1")) + member() + END, corrupt, "size b'-1'"
    yield "pax-size-huge", pax((b"size", b"9" * 19)) + member() + END, corrupt, "size"
    yield "pax-size-leaves", pax((b"size", b"9" * 18)) + member() + END, corrupt, "the file ends at"
    yield "pax-twice", pax((b"path", b"b"), (b"path", b"c")) + member() + END, corrupt, "twice"
    yield "pax-global-path", pax((b"path", b"b"), kind=b"g") + member() + END, unsupported, "for all members"
    yield "pax-no-record", member(b"99 path=b\n", b"x", b"x") + member() + END, corrupt, "record that is none"
    yield (
        "pax-zero-length",
        member(b"0 path=b\n", b"x", b"x") + member() + END,
        corrupt,
        "record that is none",
    )
    yield "nested", nested(2), unsupported, "a tar archive in 2 others"
    names = (b"pickle", b"tensors", b"storages")
    yield "torch", b"".join(member(name=name) for name in names) + END, unsupported, "torch 0.1.10"
    yield "polyglot", header(struct.pack("<Q", 2) + b"{}") + END, unsupported, "at once"


if __name__ == "__main__":
    for name, data, _, _ in samples():
        Path(sys.argv[1], name).write_bytes(data)
