"""What a known release holds: its magnet, its files, and where in them every array lies; and its JSON.

With a manifest everything can be planned before the first peer has answered. It is a claim, not a proof:
`to_tensors` holds it against the torrent's own list of files, `check_file` against what the bytes of a
file say once they are there. What nobody knows of a release is left out, and found out as without a manifest.
The JSON is described in `manifests/README.md` and `manifests/schema.json`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from gdist.core.magnet import parse_magnet
from gdist.core.payload import MIN_PIECE_BYTES, Payload, PayloadFile
from gdist.core.profile import FileArrays, Naming, join_arrays, listed
from gdist.core.rules import Rules, parse_rules
from gdist.core.source_files import (
    SourceArray,
    SourceFile,
    describe,
    file_to_json,
    is_digest,
    parse_file,
)
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, GdistError, RequestError

FORMAT = 1
ASSUMED_PIECE_LENGTH = 1 << 24  # bytes; for plans made before a torrent's own is known
HINT = "manifests/README.md describes the fields of a source manifest"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_REQUIRED = ("format", "name", "magnet", "files")
_OPTIONAL = (
    *("$schema", "title", "licence", "info_hash", "trackers", "piece_length", "profile", "rules"),
    *("about_nbytes", "known_incomplete"),
)


@dataclass(frozen=True, slots=True)
class SourceManifest:
    """A release: how to find it and what its files hold.

    Hashes are lower-case hex, "" when unknown, like `magnet`. `piece_length` is in bytes, None when unknown.
    `trackers` are asked beside those of the magnet. `about_nbytes` is about the size of all files, where
    `files` do not say it. `known_incomplete` says in words what the manifest leaves out.
    """

    name: str
    magnet: str
    files: tuple[SourceFile, ...]
    title: str = ""
    licence: str = ""
    info_hash_v1: str = ""
    info_hash_v2: str = ""
    trackers: tuple[str, ...] = ()
    piece_length: int | None = None
    profile: str | None = None
    rules: Rules | None = None
    about_nbytes: int | None = None
    known_incomplete: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """True where the files and all that is in them are known: nothing has to be found out of headers."""
        return bool(self.files) and all(file.whole for file in self.files)

    @property
    def nbytes(self) -> int | None:
        """Bytes of all files listed, or None where the length of one is not known, or none is listed."""
        lengths = [file.nbytes for file in self.files if file.nbytes is not None]
        return sum(lengths) if lengths and len(lengths) == len(self.files) else None

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """Those of the magnet, then the manifest's own."""
        own = parse_magnet(self.magnet)[0].trackers if self.magnet else ()
        return tuple(dict.fromkeys((*own, *self.trackers)))

    def expected_arrays(self, path: str) -> tuple[SourceArray, ...] | None:
        """The arrays of the listed file with the same last part of the path, or None when none is known."""
        file = self._file(path)
        return file.arrays if file and file.known else None

    def check_file(self, path: str, found: Iterable[FoundArray]) -> None:
        """That a listed file holds what the manifest says; files that are not known are not looked at.

        Raises:
            CorruptError: naming every array that differs, is missing or is not expected.
        """
        file = self._file(path)
        if file is None or not file.known:
            return
        expected = {(item.array.key, item.array.role): item.array for item in file.arrays}
        actual = {(array.key, array.role): array for array in found}
        faults = []
        for key in sorted(expected.keys() | actual.keys()):
            if expected.get(key) != actual.get(key):
                faults.append(f"{describe(actual.get(key))} where {describe(expected.get(key))} is expected")
        if faults:
            raise CorruptError(
                f"{path!r} is not what the manifest of {self.name!r} says: {listed(faults)}",
                hint="the torrent is another release's; go without the manifest to read the files",
                path=path,
            )

    def payload(self, piece_length: int | None = None) -> Payload:
        """The files laid end to end in the order of a whole manifest, for planning without a torrent.

        The true order and the other files of the torrent may differ. `piece_length` defaults to the
        manifest's, then to `ASSUMED_PIECE_LENGTH`.
        """
        files, position = [], 0
        for file in self.files:
            assert file.nbytes is not None, f"the length of {file.path!r} is not known"
            files.append(PayloadFile(file.path, position, file.nbytes))
            position += file.nbytes
        return Payload(tuple(files), piece_length or self.piece_length or ASSUMED_PIECE_LENGTH, position)

    def to_tensors(self, payload: Payload) -> Naming:
        """The tensors that are known, placed in the payload of the torrent; its other files are passed over.

        Raises:
            RequestError: naming the listed files that the torrent lacks, has twice or in another length.
        """
        places = self.places(payload)
        named = []
        for file in self.files:
            groups: dict[str, list[FoundArray]] = {}
            for item in file.arrays:
                groups.setdefault(item.name, []).append(item.array)
            place = FileArrays(file.path, places[file.path].offset, tuple(item.array for item in file.arrays))
            named += [(name, place, tuple(arrays)) for name, arrays in groups.items()]
        return Naming(join_arrays(named), self.profile, self.rules)

    def to_json(self) -> str:
        """The manifest as JSON, one line per file; `parse_source_manifest` reads the same value back."""
        head: dict[str, object] = {"format": FORMAT, "name": self.name}
        head |= {"title": self.title, "licence": self.licence, "magnet": self.magnet or None}
        head["info_hash"] = {"v1": self.info_hash_v1 or None, "v2": self.info_hash_v2 or None}
        head |= {"trackers": list(self.trackers), "piece_length": self.piece_length, "profile": self.profile}
        head |= {"about_nbytes": self.about_nbytes} if self.about_nbytes is not None else {}
        head["known_incomplete"] = list(self.known_incomplete)
        head["rules"] = self.rules.to_json() if self.rules else None
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        files = [f"    {json.dumps(file_to_json(file), separators=(',', ':'))}" for file in self.files]
        listed = ['  "files": [', ",\n".join(files), "  ]"] if files else ['  "files": []']
        return "\n".join(["{", *lines, *listed, "}"]) + "\n"

    def _file(self, path: str) -> SourceFile | None:
        name = path.rpartition("/")[2]
        same = [file for file in self.files if file.file_name == name]
        return same[0] if len(same) == 1 else next((file for file in same if file.path == path), None)

    def places(self, payload: Payload) -> dict[str, PayloadFile]:
        """Where the torrent has each listed file: at its path, or else the only one of its name.

        Raises:
            RequestError: naming the listed files that the torrent lacks, has twice or in another length.
        """
        places, faults = self.find(payload)
        if faults:
            raise RequestError(
                f"the torrent does not have the files of {self.name!r}: {', '.join(faults)}",
                hint="the manifest is another release's; go without it to read the files",
                faults=tuple(faults),
            )
        return places

    def find(self, payload: Payload) -> tuple[dict[str, PayloadFile], list[str]]:
        """The same, and in words what does not fit of the others."""
        by_path = {file.path: file for file in payload.files}
        by_name: defaultdict[str, list[PayloadFile]] = defaultdict(list)
        for place in payload.files:
            by_name[place.path.rpartition("/")[2]].append(place)
        places, faults = {}, []
        for file in self.files:
            same = [by_path[file.path]] if file.path in by_path else by_name[file.file_name]
            if len(same) != 1:
                faults.append(f"{file.path!r} is there {len(same)} times")
            elif file.nbytes not in (None, same[0].length):
                faults.append(f"{same[0].path!r} has {same[0].length} bytes, not {file.nbytes}")
            else:
                places[file.path] = same[0]
        return places, faults


def parse_source_manifest(text: str | bytes) -> SourceManifest:
    """Reads the JSON of a source manifest.

    Raises:
        RequestError: when it is not one; names what is wrong and where.
    """
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the source manifest is not JSON: {str(error)[:200]}", hint=HINT) from error
    if not isinstance(document, dict):
        _refuse(f"is a {type(document).__name__}, not an object")
    _check_fields(document, _REQUIRED, _OPTIONAL, "")
    if document["format"] != FORMAT:
        _refuse(f"has format {document['format']!r}, this version reads {FORMAT}")
    name = _text(document, "name")
    if not _NAME.fullmatch(name):
        _refuse(f"has the name {name[:200]!r}; lower-case letters, digits, '.', '_' and '-' make one")
    v1, v2 = _hashes(document)
    rules = document.get("rules")
    manifest = SourceManifest(
        name=name,
        magnet=_text(document, "magnet"),
        files=_files(document["files"]),
        title=_text(document, "title"),
        licence=_text(document, "licence"),
        info_hash_v1=v1,
        info_hash_v2=v2,
        trackers=_texts(document, "trackers"),
        piece_length=_piece_length(document),
        profile=_text(document, "profile") or None,
        rules=parse_rules(rules) if rules is not None else None,
        about_nbytes=_nbytes(document, "about_nbytes"),
        known_incomplete=_texts(document, "known_incomplete"),
    )
    _check_whole(manifest)
    return manifest


def _check_whole(manifest: SourceManifest) -> None:
    """What no single field shows: the magnet is of the info-hash, the files are unique, the arrays join."""
    if manifest.magnet:
        magnet, _ = parse_magnet(manifest.magnet)
        for given, own in (
            (manifest.info_hash_v1, magnet.info_hash.v1_hex),
            (manifest.info_hash_v2, magnet.info_hash.v2_hex),
        ):
            if given and own and given != own:
                _refuse(f"has info-hash {given}, its magnet {own}")
    twice = [path for path, count in Counter(file.path for file in manifest.files).items() if count > 1]
    if twice:
        _refuse(f"lists files twice: {listed(twice)}")
    known = replace(manifest, files=tuple(file for file in manifest.files if file.whole))
    try:
        known.to_tensors(known.payload())
    except GdistError as error:
        raise RequestError(f"the source manifest does not hold together: {error}", hint=HINT) from error


def _hashes(document: Mapping[str, object]) -> tuple[str, str]:
    value = document.get("info_hash") or {}
    if not isinstance(value, dict) or not value.keys() <= {"v1", "v2"}:
        _refuse("has an info_hash that is not an object with v1 and v2")
    for key, digits in (("v1", 40), ("v2", 64)):
        text = value.get(key)
        if text is not None and not is_digest(text, digits):
            _refuse(f"has a {key} info-hash that is not {digits} lower-case hex digits")
    return value.get("v1") or "", value.get("v2") or ""


def _files(value: object) -> tuple[SourceFile, ...]:
    if not isinstance(value, list):
        _refuse("has no list of files")
    files, faults = [], []
    for number, item in enumerate(value):
        try:
            files.append(parse_file(item))
        except ValueError as error:
            faults.append(f"file {number}: {error}")
    if faults:
        _refuse(f"has files that are not described rightly: {listed(faults)}")
    return tuple(files)


def _check_fields(
    document: Mapping[str, object], required: Iterable[str], optional: Iterable[str], where: str
) -> None:
    missing = sorted(set(required) - document.keys())
    unknown = sorted(document.keys() - set(required) - set(optional))
    if missing or unknown:
        faults = [f"lacks {key!r}" for key in missing] + [f"has {key!r}" for key in unknown]
        _refuse(f"{where}{' and '.join(faults[:10])}")


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        _refuse(f"has {key} {value!r}, not a text")
    return value or ""


def _nbytes(document: Mapping[str, object], key: str) -> int | None:
    value = document.get(key)
    if value is not None and (type(value) is not int or not 0 < value < 1 << 63):
        _refuse(f"has {key} {value!r}, not a number of bytes or null")
    return value


def _piece_length(document: Mapping[str, object]) -> int | None:
    value = _nbytes(document, "piece_length")
    if value is not None and value < MIN_PIECE_BYTES:  # a plan of such pieces would fill any memory
        _refuse(f"has piece_length {value}, less than {MIN_PIECE_BYTES} bytes")
    return value


def _texts(document: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = document.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(f"has {key} {value!r}, not a list of texts")
    return tuple(value)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse(f"has a key twice, one of {', '.join(repr(key) for key in list(result)[:10])}")
    return result


def _refuse(what: str) -> NoReturn:
    raise RequestError(f"the source manifest {what}", hint=HINT)
