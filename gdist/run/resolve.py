"""From what a user typed to a torrent: a release's name, a magnet, an info-hash, a .torrent file or URL.

A manifest of one's own may say what a torrent holds, and a key whose manifest that must be. All of it is
checked here, before anything is asked of anybody.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from gdist import releases
from gdist.core.magnet import InfoHash, Magnet, is_magnet, parse_magnet
from gdist.core.source_manifest import SourceManifest, parse_source_manifest
from gdist.errors import CorruptError, RequestError, TransferError
from gdist.kvstore import SCHEMES, local_path
from gdist.sources.torrent import magnet_of
from gdist.stores import files_of

MAX_TORRENT_BYTES = 256 * 2**20  # a 4 TB torrent at 1 MiB pieces needs 80 MB of hashes; more is not a torrent
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKETS = ("s3://", "gs://", "memory://")
_SUFFIX = re.compile(r"\.[A-Za-z]\w*$")  # of a file's name; a release's may end with a number


@dataclass(frozen=True, slots=True)
class Resolved:
    """A source: `spec` is a magnet or the content of a .torrent file; `notes` tell what was repaired.

    `told` is true where the manifest was given as the source itself, or beside it.
    """

    spec: Magnet | bytes
    manifest: SourceManifest | None = None
    notes: tuple[str, ...] = ()
    told: bool = False

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


def resolve(source: str, manifest: str | None = None, verify_key: str | None = None) -> Resolved:
    """What `source` names; `manifest` (a file, URL or known release) says what it holds.

    With `verify_key` (`gdist.run.signing.read_public_key`) the manifest, given as either of the two, must be
    signed by it.

    Raises:
        RequestError: when it is none of the five, says what it was taken for; or when the torrent is not the
            manifest's, or there is no signature.
        CorruptError: when the signature is not of this manifest.
        TransferError: when a URL cannot be read.
    """
    text = source.strip()
    if manifest is None and verify_key is None:
        return _resolve(text)
    if manifest is None:
        return _from_manifest(signed_manifest(text, verify_key))
    described = signed_manifest(manifest.strip(), verify_key)
    if text == manifest.strip():
        return _from_manifest(described)
    return _described(_resolve(text), described, bound=verify_key is not None)


def _described(found: Resolved, manifest: SourceManifest, *, bound: bool) -> Resolved:
    """A torrent with what a manifest says of it; `bound` asks for all of its identity.

    Raises:
        RequestError: the manifest is of another torrent, or does not say of which and has to.
    """
    asked, v1, v2 = found.info_hash, manifest.info_hash_v1, manifest.info_hash_v2
    faults = [
        f"{ours} and not {theirs}"
        for ours, theirs in ((asked.v1_hex, v1), (asked.v2_hex, v2))
        if ours and theirs and ours != theirs
    ]
    if isinstance(found.spec, bytes):  # it has no other hash than these
        faults += [f"without {t}" for o, t in ((asked.v1_hex, v1), (asked.v2_hex, v2)) if t and not o]
    if faults:
        raise RequestError(
            f"the torrent is {', '.join(faults)}, which the manifest of {manifest.name!r} is of",
            hint="give the manifest of this torrent, or the torrent of this manifest",
        )
    if not v1 and not v2:
        if bound:
            raise RequestError(
                f"the manifest of {manifest.name!r} has no info-hash: its signature is not of any torrent",
                hint="ask its publisher for one that has",
            )
        return replace(found, manifest=manifest, told=True)
    if isinstance(found.spec, bytes):
        return replace(found, manifest=manifest, told=True)
    spec = replace(found.spec, info_hash=_identity(manifest, asked))
    return replace(found, spec=spec, manifest=manifest, told=True)


def _identity(manifest: SourceManifest, asked: InfoHash | None) -> InfoHash:
    """All hashes that the manifest and the magnet have: the torrent that comes must have each."""
    v1, v2 = bytes.fromhex(manifest.info_hash_v1), bytes.fromhex(manifest.info_hash_v2)
    return InfoHash(v1 or (asked.v1 if asked else None), v2 or (asked.v2 if asked else None))


def signed_manifest(where: str, verify_key: str | None) -> SourceManifest:
    """The manifest in a file, at a URL, or of a known release; with a key, one that it signed.

    Raises:
        RequestError: there is none, it is none, or has no signature.
        CorruptError: the signature is not of it.
        TransferError: the URL cannot be read.
    """
    known = releases.known_release(where)
    if verify_key is None:
        if known:
            return known
        if _URL.match(where):
            _check_scheme(where)
        return parse_source_manifest(_read(where))
    from gdist.run.signing import SUFFIX, check_signature, read_public_key  # cryptography comes with it

    key = read_public_key(verify_key)
    other = is_magnet(where) or _is_hash(where)
    if known or other or not (_URL.match(where) or os.path.isfile(where)):
        raise RequestError(
            f"{where[:120]!r} is no manifest in a file or at a URL, which a key could have signed",
            hint="give the release's manifest with --manifest",
        )
    if _URL.match(where):
        _check_scheme(where)
    data = _read(where)
    if data[:1] == b"d":
        raise RequestError(
            f"{where!r} is a torrent and no manifest, which a key could have signed",
            hint="give the release's manifest with --manifest",
        )
    try:
        signature = _read(f"{where}{SUFFIX}")
    except RequestError as error:
        raise RequestError(
            f"{where!r} has no signature beside it: {error.message}",
            hint="get the .sig file of the release too, or fetch without --verify-key",
        ) from error
    check_signature(key, data, signature, where)
    return parse_source_manifest(data)


def _resolve(text: str) -> Resolved:
    manifest = releases.known_release(text)
    if manifest:
        return _from_manifest(manifest)
    if os.path.exists(text) and not os.path.isdir(text):
        return _from_bytes(_read(text), text)
    if _URL.match(text) and not is_magnet(text):
        _check_scheme(text)
        return _from_bytes(_read(text), text)
    if os.path.isdir(text):
        _refuse_store(text)
        raise RequestError(
            f"{text!r} is a directory, not a torrent",
            hint="make a torrent of it first: gdist make-torrent DIR",
        )
    if not is_magnet(text) and not _is_hash(text):
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


def check_source(text: str) -> None:
    """That a source can be one on other hosts, whose files are not seen from here.

    Raises:
        RequestError: when it is no magnet, URL, path from the root, info-hash or known release.
    """
    text = text.strip()
    if is_magnet(text) or _is_hash(text):
        parse_magnet(text)
    elif _URL.match(text):
        _check_scheme(text)
    elif not os.path.isabs(text) and releases.known_release(text) is None:
        raise RequestError(
            f"{text[:120]!r} is no magnet, info-hash, path from the root or URL, nor a known release",
            hint=f"known releases: {', '.join(releases.release_names())}; a file is given from the root",
        )


def _refuse_store(where: str) -> None:
    if files_of(where).manifests():
        raise RequestError(
            f"{where!r} is a store already, and no torrent",
            hint="read it with gdist.open, look into it with gdist inspect, check it with gdist verify",
        )


def _check_scheme(url: str) -> None:
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise RequestError(
            f"cannot read {url!r}: {scheme}:// is not known",
            hint=f"download it first, or give a URL that starts with {', '.join(f'{s}://' for s in SCHEMES)}",
        )


def _is_hash(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}|[A-Za-z2-7]{32}", text))


def _from_manifest(manifest: SourceManifest) -> Resolved:
    if not (manifest.magnet or manifest.info_hash_v1 or manifest.info_hash_v2):
        profile = f", with --profile {manifest.profile}" if manifest.profile else ""
        raise RequestError(
            f"no torrent of {manifest.name!r} is known",
            hint=f"give a magnet or a .torrent file of it{profile}",
            release=manifest.name,
        )
    magnet, notes = parse_magnet(manifest.magnet) if manifest.magnet else (None, ())
    identity = _identity(manifest, magnet.info_hash if magnet else None)
    found = replace(magnet or Magnet(identity), info_hash=identity, trackers=manifest.all_trackers)
    return Resolved(found, manifest, notes, told=True)


def _with_manifest(spec: Magnet | bytes, info_hash: InfoHash, notes: tuple[str, ...] = ()) -> Resolved:
    manifest = releases.find_by_info_hash(info_hash.hex)
    return Resolved(spec, manifest, notes)


def _from_bytes(data: bytes, where: str) -> Resolved:
    if data[:1] == b"{":  # a source manifest of one's own
        manifest = parse_source_manifest(data)
        return _from_manifest(manifest)
    if data[:1] != b"d":
        raise RequestError(
            f"{where!r} is no .torrent file and no manifest",
            hint="a .torrent file is bencoded and starts with 'd'",
        )
    try:
        found = magnet_of(data)
    except CorruptError as error:
        raise CorruptError(f"{where!r}: {error.message}", hint="get the .torrent file again") from error
    return _with_manifest(data, found.info_hash)


def _may_pass(cause: BaseException | None) -> bool:
    """True where fsspec calls a file missing because a server did not answer, or failed."""
    status = getattr(cause, "status", None)  # of aiohttp's ClientResponseError
    if status is not None:
        return bool(status >= 500)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _read(where: str) -> bytes:
    data = _read_key(where) if where.lower().startswith(_BUCKETS) else _read_file(where)
    if len(data) > MAX_TORRENT_BYTES:
        raise _too_large(where)
    return data


def _too_large(where: str) -> RequestError:
    return RequestError(f"{where!r} is larger than {MAX_TORRENT_BYTES} bytes, too large for a .torrent file")


def _read_key(where: str) -> bytes:
    """What lies in a bucket: read as stores are, so that no other package is needed."""
    from gdist.stores.remote import RemoteFiles  # TensorStore comes with it

    folder, _, key = where.rstrip("/").rpartition("/")
    if not folder.endswith("/"):
        files = RemoteFiles(folder)
        if files.has_more(key, MAX_TORRENT_BYTES):
            raise _too_large(where)
        data = files.read(key)
        if data is not None:
            return data
    _refuse_store(where)
    raise RequestError(
        f"{where!r} is not a store, and no .torrent file or manifest: nothing lies there",
        hint="check the address",
    )


def _read_file(where: str) -> bytes:
    import fsspec  # loaded where a file or URL is asked for

    try:
        # fsspec takes what follows file:// as it is; local_path decodes it
        with fsspec.open(os.fspath(local_path(where) or where), "rb") as file:
            data: bytes = file.read(MAX_TORRENT_BYTES + 1)
            return data
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
