"""Which format a file is in, by its content; never by its name, which anyone can choose."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gdist.errors import GdistError
from gdist.formats import (
    Container,
    Format,
    Scan,
    flax_msgpack,
    gguf,
    npy,
    npz,
    pickle_arrays,
    safetensors,
    tar,
    torch_legacy,
    torch_zip,
)
from gdist.formats.flax_sniff import SPECS, SPECS_HINT, has_specs

FORMATS: tuple[Format, ...] = (
    pickle_arrays,
    safetensors,
    torch_zip,
    torch_legacy,
    gguf,
    npy,
    npz,
    flax_msgpack,
)
CONTAINERS: tuple[Container, ...] = (tar,)

# Where `scan` computes what the file says again beside each payload: scans that read all of it too. They are
# for files that are at hand, and for when the bytes outside the tensors have arrived.
CHECKS: Mapping[str, Callable[[int], Scan]] = MappingProxyType(
    {torch_zip.NAME: torch_zip.check, torch_legacy.NAME: torch_legacy.check}
)

_THEN = "then gdist view or gdist reshard what comes out"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind of file that may hold tensors and is not read: what it is, and how to make it one that is."""

    what: str
    hint: str = ""


# How programs of Cosmopolitan Libc begin (its `ape/specification.md`); their zip's directory is at the end.
_LLAMAFILE = Foreign(
    "a llamafile, or another program that is a zip archive too",
    f"take the GGUF file out of it with unzip, {_THEN}",
)
_MAGICS = (
    (b"\x1f\x8b", Foreign("gzip data", f"unpack it with gunzip, or tar xzf for a .tar.gz, {_THEN}")),
    (b"\x28\xb5\x2f\xfd", Foreign("zstd data", f"unpack it with zstd -d, or tar --zstd -xf, {_THEN}")),
    (b"BZh", Foreign("bzip2 data", f"unpack it with bunzip2, or tar xjf, {_THEN}")),
    (b"\xfd7zXZ\x00", Foreign("xz data", f"unpack it with unxz, or tar xJf, {_THEN}")),
    (b"\x04\x22\x4d\x18", Foreign("lz4 data", f"unpack it with lz4 -d, {_THEN}")),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", f"unpack it with 7z x, {_THEN}")),
    (b"Rar!\x1a\x07", Foreign("a RAR archive", f"unpack it with unrar x, {_THEN}")),
    (
        b"PK\x07\x08",
        Foreign("a zip archive in several files", f"join them with zip -s 0 IN.zip --out OUT.zip, {_THEN}"),
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        Foreign("an HDF5 file", "write its arrays anew with h5py and safetensors; gdist has no HDF5 reader"),
    ),
    (b"\x80\x02", Foreign("a pickle of protocol 2")),
    (b"MZqFpD='", _LLAMAFILE),
    (b"jartsr='", _LLAMAFILE),
    (b"APEDBG='", _LLAMAFILE),
    (
        b"\x0c\xdb\x3a\x2a",
        Foreign(
            "an OCDBT manifest (TensorStore, Orbax)",
            "an Orbax checkpoint is read as a whole: give its own directory, the one with _METADATA, to "
            "gdist reshard",
        ),
    ),
)
_SPECS = Foreign(SPECS, SPECS_HINT)
# How tools name what they cut a file up into. Only the first piece has a magic number; a name decides
# nothing here but which advice is given.
_PIECE = re.compile(r"(.+[-._](?:split|part)[-_.]?)(?:\d{1,4}|[a-z]{2})|(.+\.)0\d\d", re.IGNORECASE)
_PIECE_OF_ZIP = re.compile(r"(.+)\.z\d\d", re.IGNORECASE)


def formats_read() -> str:
    """What gdist reads, for a hint."""
    *most, last = (candidate.NAME for candidate in FORMATS)
    return f"gdist reads {', '.join(most)} and {last} files"


def detect(head: bytes, size: int) -> Format | None:
    """The format of a file of `size` bytes that starts with `head` (`SNIFF_BYTES` of it), or None."""
    for candidate in FORMATS:
        if candidate.sniff(head, size):
            return candidate
    return None


def detect_container(head: bytes, size: int) -> Container | None:
    """The same of containers: what a file of files is."""
    for candidate in CONTAINERS:
        if candidate.sniff(head, size):
            return candidate
    return None


def recognise_foreign(head: bytes, size: int) -> Foreign | None:
    """What a file is when it is a container that may hold tensors and gdist does not read it.

    None for everything else: texts, tokenizers, images, and what `detect` and `detect_container` know.
    """
    if detect(head, size) is not None or detect_container(head, size) is not None:
        return None
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(head)
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    if head[:1] and head[0] & 0xF0 in (0x80, 0xD0) and has_specs(head):  # a msgpack map
        return _SPECS
    return None


def advice_on_piece(path: str) -> str:
    """How to join a file that is called like a piece of one that was cut up, or nothing.

    Content tells nothing of such a piece, unless it is the first.
    """
    name = path.rpartition("/")[2]
    if match := _PIECE_OF_ZIP.fullmatch(name):
        return (
            f"it is called like a piece of a zip archive: zip -s 0 {match[1]}.zip --out JOINED.zip, {_THEN}"
        )
    if match := _PIECE.fullmatch(name):
        joined = f"cat $(ls -v {match[1] or match[2]}*) > WHOLE"  # -v: 10 comes after 9
        return f"it is called like a piece of a file that was cut up: {joined}, {_THEN}"
    return ""


def advice_on_fault(path: str, error: GdistError) -> str:
    """What to do with a file of a payload that cannot be read, for the error's hint."""
    leave = f"leave it out with --ignore {shlex.quote(path)}"
    return advice_on_piece(path) or (f"{error.hint}; or {leave}" if error.hint else leave)


def _zip(head: bytes) -> Foreign:
    """Tells the zip files of tensors apart by the first member's name, at offset 30 of its local header."""
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length]
    if name.endswith(b".gguf"):
        return Foreign("a zip archive of a GGUF file", f"unpack it with unzip, {_THEN}")
    return Foreign("a zip archive", f"unpack it with unzip, {_THEN}")
