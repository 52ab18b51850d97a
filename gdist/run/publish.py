"""Releasing a checkpoint: from files on disk to a torrent, a manifest of it, and a signature of that.

PATH ─▶ (aligned copy) ─▶ NAME.torrent ─▶ arrays and their digests ─▶ NAME.json ─▶ NAME.json.sig
        --align-tensors    the info-hash                               names it     --sign KEY

Nothing is written into what is published. Equal content gives equal files: there is no date in any of them,
and Ed25519 signs without chance.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gdist.core.magnet import format_magnet
from gdist.core.rules import Rules
from gdist.core.source_manifest import SourceManifest, parse_source_manifest
from gdist.errors import RequestError, translate
from gdist.run.aligned import write_aligned
from gdist.run.catalogue import check_unread
from gdist.run.describe import Described, Digester, describe
from gdist.run.survey import Survey, SurveyOptions, survey_files
from gdist.sinks.local import write_atomically
from gdist.sources.torrent import Version, check_named, magnet_of, make_torrent
from gdist.sources.torrent.metadata import load_torrent, read_metadata

Progress = Callable[[int, int], None]  # bytes done, of all


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish.

    `name` is the release's (default: the path's own), `title` and `licence` (an SPDX identifier) are for
    people. `piece_length` None goes by the size. `profile` names tensors, `ignore` are files that the torrent
    has and the manifest does not speak of, `rules` partition rules for whoever fetches. With `align` a copy
    is published whose tensors start at multiples of 64 bytes. `sign` is the file of a private key.
    """

    name: str = ""
    title: str = ""
    licence: str = ""
    version: Version = "v1"
    piece_length: int | None = None
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    private: bool = False
    profile: str | None = None
    ignore: tuple[str, ...] = ()
    rules: Rules | None = None
    align: bool = False
    sign: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """A release: its files, the magnet, and what it holds.

    `payload` is what is to be seeded. `described` is false where the manifest leaves arrays to be found in
    headers. `public_key` is what `--verify-key` takes, "" where nothing was signed.
    """

    name: str
    payload: str
    torrent: str
    manifest: str
    signature: str
    public_key: str
    magnet: str
    nbytes: int
    tensors: int
    described: bool
    notes: tuple[str, ...] = field(default=())


def publish(
    source: Path,
    directory: Path | None = None,
    options: PublishOptions | None = None,
    *,
    progress: Progress = lambda done, total: None,
    stop: threading.Event | None = None,
) -> Published:
    """Makes the torrent and the manifest of a file or a directory, in `directory` (default: beside it).

    `progress` is called with bytes read so far and in all: everything is read twice, for pieces and digests.

    Raises:
        RequestError: there is nothing to publish, or files of other content are there.
        UnsupportedError: it holds files that gdist neither reads nor keeps.
        CorruptError: its files contradict themselves.
        FilesystemError: they cannot be read, or nothing written.
    """
    asked = options or PublishOptions()
    source = source.absolute()
    if not asked.align:  # else it is of a copy
        check_named(source)
    name = release_name(asked.name or (source.stem if source.is_file() else source.name))
    where = (directory or source.parent).absolute()
    _check_apart(source, where)
    notes: list[str] = []
    key = None
    if asked.sign is not None:
        from gdist.run.signing import read_private_key  # cryptography comes with it

        key, warning = read_private_key(asked.sign)
        notes += [warning] if warning else []
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translate(error, f"making {where}") from error
    if asked.align:
        source, aligned, tensors = write_aligned(source, where / name, stop)
        notes.append(f"{aligned} of {tensors} tensors start at multiples of 64 bytes in {source}")
    torrent, found, about = _describe(source, asked, progress, stop)
    if not about.whole:
        notes.append("tensors are joined of several arrays: the manifest leaves arrays to the files' headers")
    text = _manifest(name, asked, torrent, found, about).encode()
    parse_source_manifest(text)  # what we would refuse, we do not make
    outputs = {where / f"{name}.torrent": torrent, where / f"{name}.json": text}
    public = ""
    if key is not None:
        from gdist.run.signing import SUFFIX, sign

        outputs[where / f"{name}.json{SUFFIX}"], public = sign(key, text)
    _write(outputs, asked.force)
    files = [str(path) for path in outputs]
    return Published(
        name=name,
        payload=str(source),
        torrent=files[0],
        manifest=files[1],
        signature=files[2] if public else "",
        public_key=public,
        magnet=format_magnet(magnet_of(torrent)),
        nbytes=found.nbytes,
        tensors=len(found.tensors),
        described=about.whole,
        notes=tuple(notes),
    )


def describe_files(path: Path, torrent: bytes, options: PublishOptions | None = None) -> Described:
    """What a manifest says of the files of a torrent that lie at `path`."""
    asked = options or PublishOptions()
    return _described(path.absolute(), torrent, asked, Digester())[1]


def _describe(
    source: Path, asked: PublishOptions, progress: Progress, stop: threading.Event | None
) -> tuple[bytes, Survey, Described]:
    survey_files(source, SurveyOptions(asked.profile, asked.ignore))  # before anything is hashed
    total, done, lock = 2 * _nbytes(source), 0, threading.Lock()

    def tell(nbytes: int) -> None:
        nonlocal done
        with lock:
            done += nbytes
            progress(min(done, total), total)

    torrent = make_torrent(
        source,
        version=asked.version,
        piece_length=asked.piece_length,
        trackers=asked.trackers,
        web_seeds=asked.web_seeds,
        private=asked.private,
        aligned=True,
        progress=lambda piece, pieces: progress(total // 2 * piece // pieces, total),
    )
    done = total // 2
    return torrent, *_described(source, torrent, asked, Digester(tell, stop))


def _described(
    source: Path, torrent: bytes, asked: PublishOptions, digester: Digester
) -> tuple[Survey, Described]:
    payload = read_metadata(load_torrent(torrent)).payload
    found = survey_files(source, SurveyOptions(asked.profile, asked.ignore), payload=payload)
    check_unread(found.unread)
    paths = {file.path: source if source.is_file() else source / file.path for file in payload.files}
    return found, describe(paths, found, digester, {payload.files[number].path for number in found.ignored})


def _manifest(name: str, asked: PublishOptions, torrent: bytes, found: Survey, about: Described) -> str:
    magnet, rules = magnet_of(torrent), asked.rules or found.rules
    left_out = [found.payload.files[number].path for number in found.ignored]
    return SourceManifest(
        name=name,
        magnet=format_magnet(magnet),
        files=about.files,
        title=asked.title,
        licence=asked.licence,
        info_hash_v1=magnet.info_hash.v1_hex,
        info_hash_v2=magnet.info_hash.v2_hex,
        trackers=magnet.trackers,
        piece_length=found.payload.piece_length,
        profile=found.profile,
        rules=rules,
        known_incomplete=tuple(f"{path} of the torrent is not spoken of" for path in left_out[:100]),
    ).to_json()


def release_name(text: str) -> str:
    """A name for a manifest: lower case, what is not allowed replaced.

    Raises:
        RequestError: nothing is left of it.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-").rstrip("-")[:100]
    if not name:
        raise RequestError(f"{text!r} makes no name for a release", hint="give one: --name my-model")
    return name


def _check_apart(source: Path, where: Path) -> None:
    if not source.exists():
        raise RequestError(f"{source} is neither a file nor a directory", hint="check the path")
    if source.is_dir() and where.resolve().is_relative_to(source.resolve()):
        raise RequestError(
            f"what is made cannot lie in what is published: {where} is in {source}",
            hint="give another --output",
        )


def _nbytes(source: Path) -> int:
    try:
        return sum(path.stat().st_size for path in (source, *source.rglob("*")) if path.is_file())
    except OSError as error:
        raise translate(error, f"reading {error.filename}") from error


def _write(outputs: dict[Path, bytes], force: bool) -> None:
    """Writes all, or none where a file of other content is in the way."""
    try:
        other = [str(path) for path, data in outputs.items() if path.exists() and path.read_bytes() != data]
        if other and not force:
            raise RequestError(
                f"{' and '.join(other)} exist and have other content", hint="give --output DIR, or --force"
            )
        for path, data in outputs.items():
            write_atomically(path, data)
    except OSError as error:
        raise translate(error, f"writing {os.fspath(next(iter(outputs)).parent)}") from error
