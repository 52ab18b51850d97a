"""The torrent's metadata: read strictly, names checked before anything is written.

libtorrent makes hostile names harmless by changing them. Then the files on disk are not the ones the
info-hash names, so here the raw info dictionary is checked, and a torrent of which libtorrent would change
any name is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import libtorrent as lt

from gdist.core.magnet import InfoHash
from gdist.core.payload import Payload, PayloadFile
from gdist.errors import CorruptError, UnsupportedError
from gdist.sources.torrent.options import LOAD_LIMITS

_MAX_NAME_BYTES = 255  # NAME_MAX of Linux file systems
_SHOWN_FAULTS = 10
_LIMITS: Any = LOAD_LIMITS  # the stub types the limits as add_torrent_params
_PAD = lt.file_flags_t.flag_pad_file
_SYMLINK = lt.file_flags_t.flag_symlink
_BIDI_CONTROLS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a torrent's info dictionary says, checked.

    `info` is the dictionary as it was hashed. `paths` has, per file of the payload, where libtorrent puts it
    below the download directory. `piece_hashes` is all SHA-1 hashes in a row (v1, hybrid), `roots` the
    merkle root per file (v2 only; nothing for an empty file).
    """

    info_hash: InfoHash
    name: str
    info: bytes
    payload: Payload
    paths: tuple[str, ...]
    piece_hashes: bytes
    roots: tuple[bytes, ...]


def load_torrent(torrent: bytes) -> lt.add_torrent_params:
    """Gives libtorrent's parameters for the content of a .torrent file.

    Raises:
        UnsupportedError: too many pieces or too large.
        CorruptError: not a torrent.
    """
    try:
        return lt.load_torrent_buffer(torrent, _LIMITS)
    except RuntimeError as error:
        text = str(error)
        if any(word in text for word in ("too many pieces", "too large", "limit", "too big")):
            raise UnsupportedError(
                f"the torrent's metadata ({len(torrent)} bytes) is larger than gdist reads: {text}",
                hint=f"the limits are {LOAD_LIMITS['max_pieces']} pieces and "
                f"{LOAD_LIMITS['max_buffer_size']} bytes",
            ) from error
        raise CorruptError(f"not a valid torrent: {text}", hint="fetch the .torrent file again") from error


def read_metadata(params: lt.add_torrent_params) -> Metadata:
    """The checked metadata of a loaded torrent.

    Raises:
        UnsupportedError: a name that climbs, is absolute, empty, doubled, not text, too long, has control
            characters or would be changed by libtorrent; a symlink; all faults are listed.
    """
    ti = params.ti
    assert ti is not None, "a loaded torrent has its info"
    info = bytes(ti.info_section())
    raw = _Dictionary(lt.bdecode(info))
    info_hash = _info_hash(ti)
    v1 = info_hash.v1 is not None
    entries = tuple(_v1_entries(raw) if v1 else _v2_entries(raw))
    layout = ti.layout()
    name = raw.content(b"name.utf-8", raw.content(b"name"))
    if fault := name_fault(name):
        raise UnsupportedError(
            f"the torrent's name {name.decode('utf-8', 'backslashreplace')!r} is not safe: it {fault}",
            hint="nothing was written; the torrent is broken or hostile",
            faults=(fault,),
        )
    faults: list[str] = []
    files: list[PayloadFile] = []
    paths: list[str] = []
    for number, entry in _numbered(entries, layout, with_padding=v1, faults=faults):
        path, below_root = _checked_path(raw, entry, entries, layout.file_flags(number), faults)
        actual = (params.renamed_files or {}).get(number, layout.file_path(number))
        if path is not None and actual != path:
            faults.append(f"{path!r} would be written as {actual!r}")
        files.append(PayloadFile(below_root, layout.file_offset(number), layout.file_size(number)))
        paths.append(path or "")
    faults += _doubled(paths)
    if faults:
        raise UnsupportedError(
            "the torrent's file names are not safe: "
            + "; ".join(faults[:_SHOWN_FAULTS])
            + (f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""),
            hint="nothing was written; the torrent is broken or hostile",
            faults=tuple(faults),
        )
    payload = Payload(tuple(files), ti.piece_length(), layout.total_size())
    assert payload.pieces == ti.num_pieces(), f"{payload.pieces} pieces, libtorrent sees {ti.num_pieces()}"
    return Metadata(
        info_hash,
        raw.text(b"name"),
        info,
        payload,
        tuple(paths),
        piece_hashes=raw.content(b"pieces") if v1 else b"",
        roots=() if v1 else tuple(entry.root for entry in entries),
    )


def torrent_file(
    metadata: Metadata, layers: Mapping[bytes, bytes], trackers: Sequence[str], web_seeds: Sequence[str]
) -> bytes:
    """The content of a .torrent file (BEP 3, BEP 52) around the info dictionary as it was hashed.

    `layers` has the piece layer by merkle root of each file for which it is known.
    """
    fields: dict[bytes, bytes] = {b"info": metadata.info}
    if trackers:
        fields[b"announce"] = lt.bencode(trackers[0].encode())
        fields[b"announce-list"] = lt.bencode([[url.encode()] for url in trackers])
    if web_seeds:
        fields[b"url-list"] = lt.bencode([url.encode() for url in web_seeds])
    if layers:
        sorted_layers: Any = dict(layers)  # the stub's dictionaries are invariant
        fields[b"piece layers"] = lt.bencode(sorted_layers)
    return b"d" + b"".join(lt.bencode(key) + fields[key] for key in sorted(fields)) + b"e"


def piece_layers(torrent: bytes) -> dict[bytes, bytes]:
    """The piece layers by merkle root in the content of a .torrent file (BEP 52); unchecked."""
    layers = _Dictionary(lt.bdecode(torrent)).items.get(b"piece layers", {})
    return {k: v for k, v in layers.items() if isinstance(v, bytes)} if isinstance(layers, dict) else {}


def written_files(params: lt.add_torrent_params) -> tuple[int, ...]:
    """Gives libtorrent's numbers of the files that are not padding: the payload's files in order."""
    assert params.ti is not None, "a loaded torrent has its info"
    layout = params.ti.layout()
    return tuple(n for n in range(layout.num_files()) if not layout.file_flags(n) & _PAD)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file as the info dictionary has it: name parts as bytes, BEP 47 attributes, v2 merkle root."""

    parts: tuple[bytes, ...]
    attr: bytes
    root: bytes = b""


class _Dictionary:
    """A bencoded dictionary, read with the type of each value checked."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise CorruptError("the torrent's metadata is not a dictionary where it must be one")
        self.items: dict[bytes, object] = value

    def content(self, key: bytes, default: bytes | None = None) -> bytes:
        value = self.items.get(key, default)
        if not isinstance(value, bytes):
            raise CorruptError(f"the torrent's metadata has no byte string {key.decode()!r}")
        return value

    def text(self, key: bytes) -> str:
        return self.content(key).decode("utf-8", "backslashreplace")


def _info_hash(ti: lt.torrent_info) -> InfoHash:
    hashes = ti.info_hashes()
    return InfoHash(
        hashes.v1.to_bytes() if hashes.has_v1() else None,
        hashes.v2.to_bytes() if hashes.has_v2() else None,
    )


def _v1_entries(raw: _Dictionary) -> Iterator[_Entry]:
    """Files of a v1 or hybrid info dictionary, padding included, in order (BEP 3)."""
    listed = raw.items.get(b"files")
    if listed is None:
        name = raw.content(b"name.utf-8", raw.content(b"name"))
        yield _Entry((name,), raw.content(b"attr", b""))
        return
    if not isinstance(listed, list):
        raise CorruptError("the torrent's list of files is not a list")
    for item in map(_Dictionary, listed):
        parts = item.items.get(b"path.utf-8", item.items.get(b"path"))
        if not isinstance(parts, list) or not all(isinstance(part, bytes) for part in parts):
            raise CorruptError("a file of the torrent has no path")
        yield _Entry(tuple(parts), item.content(b"attr", b""))


def _v2_entries(raw: _Dictionary) -> Iterator[_Entry]:
    """Files of a v2 info dictionary in the order of its tree, which is that of sorted names (BEP 52)."""
    waiting: list[tuple[tuple[bytes, ...], object]] = [((), raw.items.get(b"file tree"))]
    while waiting:
        parts, value = waiting.pop()
        node = _Dictionary(value)
        if b"" in node.items:
            leaf = _Dictionary(node.items[b""])
            yield _Entry(parts, leaf.content(b"attr", b""), leaf.content(b"pieces root", b""))
            continue
        waiting += [((*parts, key), node.items[key]) for key in sorted(node.items, reverse=True)]


def _numbered(
    entries: Sequence[_Entry], layout: lt.file_storage, *, with_padding: bool, faults: list[str]
) -> Iterator[tuple[int, _Entry]]:
    """Each file that is written, with its number among libtorrent's files (which include padding)."""
    padding = {n for n in range(layout.num_files()) if layout.file_flags(n) & _PAD}
    numbers = [n for n in range(layout.num_files()) if with_padding or n not in padding]
    if len(numbers) < len(entries) or any(n not in padding for n in numbers[len(entries) :]):
        faults.append(f"{len(entries)} files are named, libtorrent sees {len(numbers)}")
        return
    for number, entry in zip(numbers, entries, strict=False):  # libtorrent may pad after the last file
        if number not in padding:
            yield number, entry


def _checked_path(
    raw: _Dictionary, entry: _Entry, entries: Sequence[_Entry], flags: int, faults: list[str]
) -> tuple[str | None, str]:
    """Where a file goes below the download directory (None when it is at fault), and below the root."""
    root = raw.content(b"name.utf-8", raw.content(b"name"))
    # One file at the root, without a list of files, is the torrent; a v2 one may have another name than that.
    single = len(entries) == 1 and len(entry.parts) == 1 and b"files" not in raw.items
    parts = entry.parts if single else (root, *entry.parts)
    shown = "/".join(part.decode("utf-8", "backslashreplace") for part in entry.parts)
    fault = next(filter(None, map(name_fault, entry.parts)), "") if entry.parts else "is empty"
    if b"l" in entry.attr or flags & _SYMLINK:
        fault = "is a symbolic link"
    if fault:
        faults.append(f"{shown!r} {fault}")
        return None, shown
    return "/".join(part.decode() for part in parts), shown


def name_fault(part: bytes) -> str:
    """Why one name between slashes is refused, or nothing."""
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    if text in ("", ".", ".."):
        return f"has the part {text!r}"
    if "/" in text or "\\" in text:
        return "has a slash inside a part"
    if any(unicodedata.category(c) == "Cc" or c in _BIDI_CONTROLS for c in text):
        return "has control characters"
    if len(part) > _MAX_NAME_BYTES:
        return f"has a part of {len(part)} bytes, more than {_MAX_NAME_BYTES}"
    return ""


def _doubled(paths: Sequence[str]) -> list[str]:
    """Names that occur twice, and names that are a file and a directory at once."""
    seen: set[str] = set()
    faults = []
    for path in filter(None, paths):
        if path in seen:
            faults.append(f"{path!r} occurs twice")
        seen.add(path)
    for path in seen:
        above = path.rpartition("/")[0]
        while above:
            if above in seen:
                faults.append(f"{above!r} is a file and a directory")
            above = above.rpartition("/")[0]
    return faults
