"""Which format a file is in, by its content; never by its name, which anyone can choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from gdist.formats import Format, Scan, gguf, pickle_arrays, safetensors, torch_legacy, torch_zip

FORMATS: tuple[Format, ...] = (pickle_arrays, safetensors, torch_zip, torch_legacy, gguf)

# Where `scan` computes what the file says again beside each payload: scans that read all of it too. They are
# for files that are at hand, and for when the bytes outside the tensors have arrived.
CHECKS: Mapping[str, Callable[[int], Scan]] = MappingProxyType(
    {torch_zip.NAME: torch_zip.check, torch_legacy.NAME: torch_legacy.check}
)

# How programs of Cosmopolitan Libc begin (its `ape/specification.md`); their zip's directory is at the end.
_LLAMAFILE = (
    "a llamafile, or another program that is a zip archive too; take the GGUF file out of it with unzip"
)
_MAGICS = (
    (b"\x93NUMPY", "a NumPy array file (npy)"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x80\x02", "a pickle of protocol 2"),
    (b"MZqFpD='", _LLAMAFILE),
    (b"jartsr='", _LLAMAFILE),
    (b"APEDBG='", _LLAMAFILE),
    (b"\x0c\xdb\x3a\x2a", "an OCDBT manifest (TensorStore, Orbax)"),
)
_TAR_OFFSET = 257  # where POSIX puts the magic "ustar"


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


def recognise_foreign(head: bytes, size: int) -> str | None:
    """What a file is, for a message, when it is a container that may hold tensors and gdist does not read it.

    None for everything else: texts, tokenizers, images, and what `detect` knows.
    """
    if detect(head, size) is not None:
        return None
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(head)
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    if torch_legacy.is_tar_form(head):
        return "a torch checkpoint from before torch 0.1.10 (tar); load and save it where you trust it"
    if head[_TAR_OFFSET : _TAR_OFFSET + 5] == b"ustar":
        return "a tar archive"
    return None


def _zip(head: bytes) -> str:
    """Tells the zip files of tensors apart by the first member's name, at offset 30 of its local header."""
    length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + length]
    if name.endswith(b".npy"):
        return "a NumPy archive (npz)"
    if name.endswith(b".gguf"):
        return "a zip archive of a GGUF file"
    return "a zip archive"
