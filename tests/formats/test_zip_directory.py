"""Members are found where zipfile finds them; whatever two readers could see differently is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.extent import Extent
from gdist.errors import CorruptError, GdistError, UnsupportedError
from gdist.formats import zip_directory
from gdist.formats.zip_directory import MAX_MEMBERS, TAIL_BYTES, Member, read_members

CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


class Reads:
    """Drives a reader over bytes; `asked` are the extents it asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[Extent] = []

    def members(self) -> tuple[Member, ...]:
        reader = read_members(len(self.data))
        try:
            wanted = next(reader)
            while True:
                assert wanted.length and wanted.stop <= len(self.data), f"{wanted} of {len(self.data)}"
                self.asked.append(wanted)
                wanted = reader.send(self.data[wanted.start : wanted.stop])
        except StopIteration as stop:
            found: tuple[Member, ...] = stop.value
            return found


def packed(
    members: dict[str, bytes], compression: int = zipfile.ZIP_STORED, *, stream: bool = False
) -> bytes:
    """A zip as Python writes it; `stream`: with descriptors behind the members."""
    out = io.BytesIO()

    class Unseekable(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            return out.write(data)

    with zipfile.ZipFile(Unseekable() if stream else out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def assert_found(data: bytes, members: dict[str, bytes]) -> Reads:
    reads = Reads(data)
    found = reads.members()
    assert [member.name for member in found] == list(members)
    for member in found:
        assert data[member.extent.start : member.extent.stop] == members[member.name]
    return reads


TWO = {"a/data": b"first" * 9, "b": b"second"}


@settings(max_examples=60)
@given(
    st.dictionaries(st.text("abc/é-", min_size=1, max_size=9), st.binary(max_size=99), max_size=6),
    st.booleans(),
)
def test_what_python_packs_is_found(members: dict[str, bytes], stream: bool) -> None:
    members = {name: data for name, data in members.items() if all(name.split("/"))}
    assert_found(packed(members, stream=stream), members)


@pytest.mark.parametrize("stream", [False, True])
def test_members_of_65_536_and_more_are_found(stream: bool) -> None:
    """So many need the zip64 end record, and a directory larger than the first read."""
    members = {f"m{n}": b"%d" % n for n in range(70_000)}
    reads = assert_found(packed(members, stream=stream), members)
    assert len(reads.asked) < 200, "local headers that lie close together are read at once"


def test_npz_is_found() -> None:
    out = io.BytesIO()
    np.savez(out, a=np.arange(5), b=np.zeros((100, 1000)))
    reads = Reads(out.getvalue())
    assert [member.name for member in reads.members()] == ["a.npy", "b.npy"]
    assert sum(extent.length for extent in reads.asked) < TAIL_BYTES + 1000, "no payload is read"


def test_zip64_sizes_and_offsets_are_read() -> None:
    data = bytearray(packed({"a": b"xyz"}))
    at = data.index(CENTRAL)
    wide = struct.pack("<HHQQQ", 1, 24, 3, 3, 0)
    entry = bytearray(data[at : at + 47])
    entry[20:28] = b"\xff" * 8
    entry[42:46] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", len(wide))
    end = data[-22:]
    end[12:16] = struct.pack("<I", 47 + len(wide))
    assert_found(bytes(data[:at] + entry + wide + end), {"a": b"xyz"})


def put(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def central(data: bytes, offset: int, value: bytes) -> bytes:
    return put(data, data.index(CENTRAL) + offset, value)


def local(data: bytes, offset: int, value: bytes) -> bytes:
    return put(data, data.index(LOCAL) + offset, value)


def end(data: bytes, offset: int, value: bytes) -> bytes:
    return put(data, data.rindex(END) + offset, value)


def with_comment(data: bytes) -> bytes:
    return end(data, 20, struct.pack("<H", 4)) + b"note"


def duplicated() -> bytes:
    return packed({"a": b"1", "b": b"2"}).replace(b"b", b"a")


def behind_a_hole() -> bytes:
    """Bytes between the members and the directory that belong to none."""
    data = packed(TWO)
    at = data.index(CENTRAL)
    return end(data[:at] + b"hidden" + data[at:], 16, struct.pack("<I", at + 6))


def overlapping() -> bytes:
    """The second member's header lies inside the first member's bytes."""
    inner = packed({"b": b"x"})
    inner = inner[: inner.index(CENTRAL)]
    data = packed({"a": inner, "b": b"x"})
    second = data.rindex(CENTRAL)
    return put(data, second + 42, struct.pack("<I", data.index(inner)))


def refused_named(name: str) -> bytes:
    return packed({"abcdef": b"1"}).replace(b"abcdef", name.encode())


REFUSED: dict[str, tuple[Callable[[], bytes], type[GdistError], str]] = {
    "empty file": (lambda: b"", CorruptError, "the file has 0 bytes"),
    "no zip": (lambda: bytes(999), CorruptError, "no end record"),
    "cut short": (lambda: packed(TWO)[:-30], CorruptError, "no end record"),
    "end cut short": (lambda: packed(TWO)[:-3], CorruptError, "end record is cut short"),
    "bytes before": (lambda: b"MZ prefix" + packed(TWO), CorruptError, "bytes stand before the archive"),
    "bytes after": (lambda: packed(TWO) + b"GIF89a", UnsupportedError, "6 bytes follow the zip's end record"),
    "a comment": (lambda: with_comment(packed(TWO)), UnsupportedError, "4 bytes follow"),
    "a second archive": (lambda: packed(TWO) + packed({"c": b""}), CorruptError, "bytes stand before"),
    "an end inside a comment": (
        lambda: end(packed(TWO), 20, struct.pack("<H", 22)) + packed({}),
        CorruptError,
        "bytes stand before the archive",
    ),
    "volumes": (lambda: end(packed(TWO), 4, b"\1"), UnsupportedError, "several volumes"),
    "counts differ": (lambda: end(packed(TWO), 8, b"\1"), UnsupportedError, "several volumes"),
    "too many claimed": (lambda: end(packed(TWO), 8, b"\x40\0\x40\0"), CorruptError, "64 members do not fit"),
    "too few claimed": (lambda: end(packed(TWO), 8, b"\1\0\1\0"), CorruptError, "are no member"),
    "directory elsewhere": (lambda: end(packed(TWO), 16, b"\0"), CorruptError, "the end record starts at"),
    "duplicate": (duplicated, CorruptError, "1 members twice: 'a'"),
    "a hole": (behind_a_hole, CorruptError, "has 6 bytes behind it"),
    "overlap": (overlapping, CorruptError, "overlaps what starts at"),
    "outside": (lambda: central(packed(TWO), 42, b"\xf0\xff\0\0"), CorruptError, "stand before the first"),
    "compressed": (
        lambda: packed(TWO, zipfile.ZIP_DEFLATED),
        UnsupportedError,
        r"2 members of the zip are not stored as they are: 'a/data' \(compressed by method 8\)",
    ),
    "encrypted, central": (
        lambda: central(packed(TWO), 8, b"\1"),
        UnsupportedError,
        r"a/data' \(encrypted\)",
    ),
    "encrypted, local": (lambda: local(packed(TWO), 6, b"\1"), CorruptError, "disagrees.*flags 0x0001"),
    "masked": (lambda: central(packed(TWO), 8, b"\0\x20"), UnsupportedError, "encrypted"),
    "patch data": (lambda: central(packed(TWO), 8, b"\x20"), UnsupportedError, "flags 0x0020"),
    "method, local": (lambda: local(packed(TWO), 8, b"\x08"), CorruptError, "disagrees.*method 8"),
    "name, local": (lambda: local(packed(TWO), 30, b"x"), CorruptError, "disagrees.*name b'x/data'"),
    "name length, local": (lambda: local(packed(TWO), 26, b"\7"), CorruptError, "a name of 7 bytes"),
    "extra length, local": (lambda: local(packed(TWO), 28, b"\1"), CorruptError, "leaves no room"),
    "size, local": (lambda: local(packed(TWO), 22, b"\1"), CorruptError, "disagrees.*CRC and sizes"),
    "crc, local": (lambda: local(packed(TWO), 14, b"\1"), CorruptError, "disagrees.*CRC and sizes"),
    "no local header": (lambda: local(packed(TWO), 0, b"XX"), CorruptError, "disagrees.*magic"),
    "two sizes": (lambda: central(packed(TWO), 20, b"\1"), CorruptError, "has 45 bytes, and 1"),
    "larger than its room": (
        lambda: central(packed(TWO), 20, b"\xff\xff\xff\x7f" * 2),
        CorruptError,
        "overlaps what starts at",
    ),
    "zip64 without a field": (lambda: central(packed(TWO), 20, b"\xff" * 8), CorruptError, "lacks a number"),
    "member comment": (lambda: central(packed(TWO), 28, b"\3\0\0\0\3"), UnsupportedError, "has a comment"),
    "climbing": (lambda: refused_named("../../"), UnsupportedError, "not a plain relative path"),
    "absolute": (lambda: refused_named("/bcdef"), UnsupportedError, "not a plain relative path"),
    "a drive": (lambda: refused_named("c:/def"), UnsupportedError, "unsafe name"),
    "backslash": (lambda: refused_named("a\\cdef"), UnsupportedError, "unsafe name"),
    "control": (lambda: refused_named("a\0cdef"), UnsupportedError, "unsafe name"),
    "a directory": (lambda: refused_named("abcde/"), UnsupportedError, "not a plain relative path"),
    "not UTF-8": (
        lambda: packed({"abcdef": b""}).replace(b"abcdef", b"\xff\xfeabcd"),
        UnsupportedError,
        "whose name is not ascii",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_whatever_can_be_seen_two_ways_is_refused(case: str) -> None:
    make, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        Reads(make()).members()


def test_a_descriptor_that_differs_is_refused() -> None:
    data = packed(TWO, stream=True)
    at = data.index(b"PK\x07\x08")
    with pytest.raises(CorruptError, match="the descriptor of 'a/data' disagrees"):
        Reads(put(data, at + 5, b"\0")).members()


def test_more_members_than_are_read_are_refused_before_the_directory_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zip_directory, "MAX_MEMBERS", 1)
    reads = Reads(packed(TWO))
    with pytest.raises(UnsupportedError, match="the zip has 2 members"):
        reads.members()
    assert len(reads.asked) == 1 and MAX_MEMBERS > 1


@pytest.mark.parametrize("field", [b"\x75\x70", b"\x01\x99"])  # a Unicode name; AES
def test_an_extra_field_that_changes_the_member_is_refused(field: bytes) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.extra = field + b"\1\0x"
        archive.writestr(info, b"1")
    with pytest.raises(UnsupportedError, match="has an extra field"):
        Reads(out.getvalue()).members()


def test_a_zip64_record_that_differs_is_refused() -> None:
    members = {f"m{n}": b"" for n in range(66_000)}
    data = packed(members)
    at = data.rindex(b"PK\x06\x06")
    for offset, value in ((4, b"\x2d"), (24, b"\1"), (48, b"\1"), (60, b"\1")):
        with pytest.raises(CorruptError):
            Reads(put(data, at + offset, value)).members()
    with pytest.raises(CorruptError, match="the end record says"):
        Reads(end(data, 12, b"\1\2\3\4")).members()
