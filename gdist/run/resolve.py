"""From what a user typed to a torrent: a release's name, a magnet, an info-hash, a .torrent file or URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import fsspec

from gdist import releases
from gdist.core.magnet import InfoHash, Magnet, parse_magnet
from gdist.core.source_manifest import SourceManifest, parse_source_manifest
from gdist.errors import RequestError, TransferError
from gdist.kvstore import SCHEMES, local_path
from gdist.sources.torrent import magnet_of
from gdist.stores import files_of

MAX_TORRENT_BYTES = 256 * 2**20  # a 4 TB torrent at 1 MiB pieces needs 80 MB of hashes; more is not a torrent
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SUFFIX = re.compile(r"\.[A-Za-z]\w*$")  # of a file's name; a release's may end with a number


@dataclass(frozen=True, slots=True)
class Resolved:
    """A source: `spec` is a magnet or the content of a .torrent file; `notes` tell what was repaired."""

    spec: Magnet | bytes
    manifest: SourceManifest | None = None
    notes: tuple[str, ...] = ()

    @property
    def info_hash(self) -> InfoHash:
        """The torrent's identity, as far as the source tells it."""
        return self.magnet.info_hash

    @property
    def magnet(self) -> Magnet:
        """The source as a magnet."""
        return self.spec if isinstance(self.spec, Magnet) else magnet_of(self.spec)

    @property
    def label(self) -> str:
        """A name for the destination, known before any metadata."""
        if self.manifest:
            return self.manifest.name
        return self.magnet.name or self.info_hash.hex


def resolve(source: str) -> Resolved:
    """What `source` names.

    Raises:
        RequestError: when it is none of the five; says what it was taken for.
        TransferError: when a URL cannot be read.
    """
    text = source.strip()
    manifest = releases.known_release(text)
    if manifest:
        return Resolved(*_from_manifest(manifest))
    if os.path.exists(text) and not os.path.isdir(text):
        return _from_bytes(_read(text), text)
    if _URL.match(text) and not text.startswith("magnet:"):
        _check_scheme(text)
        return _from_bytes(_read(text), text)
    if os.path.isdir(text):
        if files_of(text).manifests():
            raise RequestError(
                f"{text!r} is a store already, and no torrent",
                hint="read it with gdist.open, look into it with gdist inspect, check it with gdist verify",
            )
        raise RequestError(
            f"{text!r} is a directory, not a torrent",
            hint="make a torrent of it first: gdist make-torrent DIR",
        )
    if not text.lower().lstrip("\"'<").startswith("magnet:") and not _is_hash(text):
        known = ", ".join(releases.release_names())
        if "/" in text or _SUFFIX.search(text):
            raise RequestError(
                f"{text[:120]!r} does not exist", hint=f"check the path; known releases: {known}"
            )
        raise RequestError(
            f"{text[:120]!r} is no magnet, info-hash, .torrent file or URL, nor a known release",
            hint=f"known releases: {known}; a magnet starts with magnet:?xt= (quote it for the shell)",
        )
    magnet, notes = parse_magnet(text)
    return _with_manifest(magnet, magnet.info_hash, tuple(notes))


def _check_scheme(url: str) -> None:
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise RequestError(
            f"cannot read {url!r}: {scheme}:// is not known",
            hint=f"download it first, or give a URL that starts with {', '.join(f'{s}://' for s in SCHEMES)}",
        )


def _is_hash(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}|[A-Za-z2-7]{32}", text))


def _from_manifest(manifest: SourceManifest) -> tuple[Magnet, SourceManifest, tuple[str, ...]]:
    magnet, notes = parse_magnet(manifest.magnet)
    return magnet, manifest, tuple(notes)


def _with_manifest(spec: Magnet | bytes, info_hash: InfoHash, notes: tuple[str, ...] = ()) -> Resolved:
    manifest = releases.find_by_info_hash(info_hash.hex)
    return Resolved(spec, manifest, notes)


def _from_bytes(data: bytes, where: str) -> Resolved:
    if data[:1] == b"{":  # a source manifest of one's own
        manifest = parse_source_manifest(data)
        return Resolved(*_from_manifest(manifest))
    if data[:1] != b"d":
        raise RequestError(
            f"{where!r} is no .torrent file and no manifest",
            hint="a .torrent file is bencoded and starts with 'd'",
        )
    return _with_manifest(data, magnet_of(data).info_hash)


def _may_pass(cause: BaseException | None) -> bool:
    """True where fsspec calls a file missing because a server did not answer, or failed."""
    status = getattr(cause, "status", None)  # of aiohttp's ClientResponseError
    if status is not None:
        return bool(status >= 500)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _read(where: str) -> bytes:
    try:
        # fsspec takes what follows file:// as it is; local_path decodes it
        with fsspec.open(os.fspath(local_path(where) or where), "rb") as file:
            data: bytes = file.read(MAX_TORRENT_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if _may_pass(error.__cause__):
            raise TransferError(
                f"cannot read {where!r}: {error.__cause__}", hint="check the address and try again"
            ) from error
        status = getattr(error.__cause__, "status", None)
        missing = isinstance(error, FileNotFoundError) and (status == 404 or bool(_URL.match(where)))
        reason = "404 not found" if status == 404 else "not found" if missing else error.strerror or error
        raise RequestError(
            f"cannot read {where!r}: {reason}", hint="check the address" if missing else "check the path"
        ) from error
    except Exception as error:  # fsspec's back ends raise whatever their libraries do
        raise TransferError(
            f"cannot read {where!r}: {error}", hint="check the address and try again"
        ) from error
    if len(data) > MAX_TORRENT_BYTES:
        raise RequestError(
            f"{where!r} is larger than {MAX_TORRENT_BYTES} bytes, too large for a .torrent file"
        )
    return data
