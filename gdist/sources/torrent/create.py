"""Making torrents: of a file or a directory, the same bytes for the same content on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import libtorrent as lt

from gdist.core.magnet import Magnet
from gdist.core.payload import MIN_PIECE_BYTES, check_piece_length
from gdist.core.profile import listed
from gdist.errors import CorruptError, FilesystemError, RequestError, UnsupportedError
from gdist.kvstore import check_utf8
from gdist.sources.torrent.metadata import load_torrent, name_fault, read_metadata

Version = Literal["v1", "v2", "hybrid"]

MAX_PIECE_BYTES = 1 << 24
_TARGET_PIECES = 1024  # enough to spread over a swarm's peers, small metadata
_FLAGS = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": 0}
_ALIGNED = lt.create_torrent.canonical_files_no_tail_padding


def choose_piece_length(nbytes: int) -> int:
    """The power of two that cuts `nbytes` into about a thousand pieces, 16 KiB to 16 MiB.

    So 1 MB gives 16 KiB, 1 GB gives 1 MiB, 16 GB and more give 16 MiB.
    """
    length = 1 << max(nbytes // _TARGET_PIECES, 1).bit_length()
    if nbytes // _TARGET_PIECES <= length // 2 + length // 4:  # the nearer power, on the low side
        length //= 2
    return min(max(length, MIN_PIECE_BYTES), MAX_PIECE_BYTES)


def make_torrent(
    source: Path,
    *,
    version: Version = "v1",
    piece_length: int | None = None,
    trackers: Sequence[str] = (),
    web_seeds: Sequence[str] = (),
    comment: str | None = None,
    private: bool = False,
    aligned: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """The content of a .torrent file for a file or a directory.

    With `aligned` every file starts a piece, by padding files (BEP 47) in v1 and hybrid torrents; so a piece
    is of one file. `progress` is called with the pieces hashed so far and in all. No date and no tool name
    go in, files are sorted, so equal content gives equal bytes.

    Raises:
        RequestError: nothing to share, or a piece length that is not a power of two from 16 KiB to 128 MiB.
        UnsupportedError: a symlink, or a name a torrent cannot carry.
        FilesystemError: a file cannot be read.
    """
    _check_version(version)
    files = _list_files(source)
    length = _piece_length_of(source, files, piece_length)
    entries = [lt.create_file_entry(name, size, 0, 0, "") for name, size in files]
    padded = aligned and version == "v1"  # the others are anyway
    creator = lt.create_torrent(entries, length, _FLAGS[version] | (_ALIGNED if padded else 0))
    creator.set_creation_date(0)
    creator.set_creator("")
    creator.set_priv(private)
    if comment is not None:
        creator.set_comment(comment)
    for tier, url in enumerate(trackers):
        creator.add_tracker(url, tier)
    for url in web_seeds:
        creator.add_url_seed(url)
    pieces = creator.num_pieces()
    try:
        lt.set_piece_hashes(
            creator,
            str(source.absolute().parent),
            lambda piece: progress(int(piece) + 1, pieces) if progress else None,
        )
    except RuntimeError as error:
        raise FilesystemError(f"cannot hash {source}: {error}") from error
    torrent = lt.bencode(creator.generate())
    try:
        read_metadata(load_torrent(torrent))  # what we would refuse, we do not make
    except UnsupportedError as error:
        raise _unnamed(source, [error.message]) from error
    return torrent


def differs(
    torrent: bytes,
    source: Path,
    *,
    version: Version = "v1",
    piece_length: int | None = None,
    trackers: Sequence[str] = (),
    web_seeds: Sequence[str] = (),
    private: bool = False,
) -> bool:
    """True when `torrent` is surely not what `make_torrent` would give; what is hashed is not looked at.

    Raises:
        RequestError, UnsupportedError, FilesystemError: as `make_torrent` does.
    """
    _check_version(version)
    files = _list_files(source)
    length = _piece_length_of(source, files, piece_length)
    try:
        params = load_torrent(torrent)
        found = read_metadata(params)
    except (CorruptError, UnsupportedError):
        return True
    assert params.ti is not None, "a loaded torrent has its info"
    hashes = (found.info_hash.v1 is not None, found.info_hash.v2 is not None)
    if (hashes, found.payload.piece_length) != ((version != "v2", version != "v1"), length):
        return True
    mirrors, asked = ({url.rstrip("/") for url in urls} for urls in (params.url_seeds, web_seeds))
    if (set(params.trackers), mirrors, params.ti.priv()) != (set(trackers), asked, private):
        return True
    # By the last part of a path: of a v2 torrent with one file the root has no name of its own.
    has = [
        (path.rpartition("/")[2], file.length)
        for path, file in zip(found.paths, found.payload.files, strict=True)
    ]
    return sorted(has) != sorted((name.rpartition("/")[2], size) for name, size in files)


def magnet_of(torrent: bytes, peers: Sequence[tuple[str, int]] = ()) -> Magnet:
    """The magnet of a .torrent file's content, with `peers` to ask first."""
    params = load_torrent(torrent)
    metadata = read_metadata(params)
    return Magnet(
        metadata.info_hash,
        metadata.name,
        tuple(dict.fromkeys(params.trackers)),
        tuple(dict.fromkeys(params.url_seeds)),
        tuple(peers),
    )


def check_named(source: Path) -> None:
    """That a path says what the torrent's name would be.

    Raises:
        RequestError: it is the root of the file system, ends with `..`, or is not UTF-8.
    """
    root = source.absolute()
    if root.name in ("", ".."):
        named = root.resolve()
        raise RequestError(
            f"{source} has no name of its own, which the torrent would have",
            hint=f"give {named}" if named.name else "give a directory in it",
        )
    check_utf8(source, "which a torrent cannot hold")


def _list_files(source: Path) -> list[tuple[str, int]]:
    """Files below `source` as `root/part/part` and bytes, sorted by name."""
    root = source.absolute()
    check_named(source)
    if root.is_symlink():
        raise UnsupportedError(f"{source} is a symbolic link", hint="name what it points to")
    if root.is_file():
        _check_readable(root)
        return [(root.name, root.stat().st_size)]
    if not root.is_dir():
        raise RequestError(f"{source} is neither a file nor a directory", hint="check the path")
    found: list[tuple[str, int]] = []
    for above, directories, names in os.walk(root, onerror=_unreadable):
        for name in (*directories, *names):
            path = Path(above, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UnsupportedError(
                    f"{path} is a symbolic link or a special file", hint="put a plain file in its place"
                )
        for path in (Path(above, name) for name in names):
            _check_readable(path)
            found.append((path.relative_to(root.parent).as_posix(), path.stat().st_size))
    _check_names(source, [path for path, _ in found])
    return sorted(found, key=lambda item: item[0].encode().split(b"/"))


def _check_names(source: Path, paths: Sequence[str]) -> None:
    """That a torrent can hold these names, and libtorrent keeps them as they are."""
    faults, seen = [], dict[bytes, str]()
    for path in paths:
        parts = os.fsencode(path).split(b"/")
        fault = next(filter(None, map(name_fault, parts)), "")
        other = seen.setdefault(os.fsencode(path).lower(), path)  # of ASCII's letters, as libtorrent does
        if fault:
            faults.append(f"{path!r} {fault}")
        elif other != path:
            faults.append(f"{other!r} and {path!r} differ in upper and lower case alone")
    if faults:
        raise _unnamed(source, faults)


def _unnamed(source: Path, faults: Sequence[str]) -> UnsupportedError:
    return UnsupportedError(
        f"a torrent cannot name what is in {source}: {listed(faults)}", hint="give it other names"
    )


def _check_version(version: str) -> None:
    if version not in _FLAGS:
        raise RequestError(f"torrent version {version!r} is none of {', '.join(_FLAGS)}")


def _piece_length_of(source: Path, files: Sequence[tuple[str, int]], asked: int | None) -> int:
    total = sum(size for _, size in files)
    if not total:
        raise RequestError(f"{source} has no bytes to share", hint="name a file or a directory with content")
    length = choose_piece_length(total) if asked is None else asked
    check_piece_length(length)
    return length


def _check_readable(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise FilesystemError(f"cannot read {path}: permission denied", hint="make it readable")


def _unreadable(error: OSError) -> NoReturn:
    raise FilesystemError(
        f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}", hint="make it readable"
    ) from error
