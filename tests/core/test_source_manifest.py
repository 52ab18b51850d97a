"""Manifests of known releases say what the files say, and every fault of one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gdist import releases
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.magnet import parse_magnet
from gdist.core.payload import Payload, PayloadFile
from gdist.core.profile import FileArrays, name_tensors
from gdist.core.profiles import PROFILES
from gdist.core.source_files import SourceArray, SourceFile
from gdist.core.source_manifest import ASSUMED_PIECE_LENGTH, SourceManifest, parse_source_manifest
from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError, RequestError
from gdist.formats import drive, pickle_arrays
from gdist.testing.checkpoints import grok1_files
from gdist.testing.pickle_writer import Layout

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
REAL = {"layers": 64, "emb": 6144, "ffn": 32768, "kv": 1024, "vocab": 131072}


def scan_layout(layout: Layout) -> tuple[tuple[FoundArray, ...], int]:
    """What a file of opcodes around holes holds, and how many bytes it took to see."""
    asked = 0

    def read(wanted: Extent) -> bytes:
        nonlocal asked
        asked += wanted.length
        data = bytearray(wanted.length)
        for chunk, end in zip(layout.chunks, [*layout.starts, layout.nbytes], strict=True):
            common = Extent(end - len(chunk), len(chunk)).intersect(wanted)
            if common:
                begin = common.start - (end - len(chunk))
                data[common.start - wanted.start : common.stop - wanted.start] = chunk[
                    begin : begin + common.length
                ]
        return bytes(data)

    return drive(pickle_arrays.scan(layout.nbytes), read), asked


def small() -> SourceManifest:
    """A manifest of a scaled-down Grok-1."""
    files = []
    for file in grok1_files(layers=2, emb=16, ffn=32, kv=8, vocab=32):
        found, _ = scan_layout(file.layout)
        name = file.arrays[0][0].removesuffix(".weight")
        files.append(
            SourceFile(file.path, file.layout.nbytes, tuple(SourceArray(name, array) for array in found))
        )
    magnet = "magnet:?xt=urn:btih:" + "ab" * 20
    return SourceManifest("tiny", magnet, tuple(files), profile="grok-1", rules=PROFILES["grok-1"].rules)


def document(**changes: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(small().to_json())
    return value | changes


def parsed(value: object) -> SourceManifest:
    return parse_source_manifest(json.dumps(value))


# The release


def test_all_files_of_grok_1_scan_to_what_the_manifest_says() -> None:
    manifest = releases.known_release("grok-1")
    assert manifest is not None
    files = list(grok1_files(**REAL, numpy1=True))
    assert len(files) == len(manifest.files) == 770
    for file, listed in zip(files, manifest.files, strict=True):
        found, asked = scan_layout(file.layout)
        assert asked < 8192
        assert (file.path, file.layout.nbytes) == (listed.path, listed.nbytes)
        manifest.check_file("elsewhere/" + file.path, found)


def test_the_manifest_of_grok_1_names_what_the_profile_names() -> None:
    manifest = releases.known_release("grok-1")
    assert manifest is not None
    payload = manifest.payload()
    arrays = [
        FileArrays(file.path, place.offset, tuple(item.array for item in file.arrays))
        for file, place in zip(manifest.files, payload.files, strict=True)
    ]
    assert name_tensors(arrays) == manifest.to_tensors(payload)
    assert manifest.nbytes == payload.length == 318_239_886_140
    assert payload.piece_length == ASSUMED_PIECE_LENGTH


def test_the_layers_of_grok_1_are_numbered_as_text() -> None:
    manifest = releases.known_release("grok-1")
    assert manifest is not None
    expected = manifest.expected_arrays("ckpt/tensor00026_000")
    assert expected is not None
    assert {item.name for item in expected} == {"params.transformer.decoder_layer_10.moe.linear.w"}


def test_releases_are_found_by_name_and_by_hash_only() -> None:
    manifest = releases.known_release("grok-1")
    assert (
        manifest is not None
        and "grok-1" in releases.release_names()
        and "schema" not in releases.release_names()
    )
    assert releases.find_by_info_hash(manifest.info_hash_v1.upper()) is manifest
    assert releases.find_by_info_hash("0" * 40) is None and releases.find_by_info_hash("") is None
    for name in ("schema", "../manifests/grok-1", "grok-1.json", "", "README"):
        assert releases.known_release(name) is None
    magnet, notes = parse_magnet(manifest.magnet)
    assert not notes and magnet.info_hash.v1_hex == manifest.info_hash_v1
    assert magnet.trackers == manifest.trackers


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.json")), ids=lambda path: path.name)
def test_every_manifest_is_valid_by_schema_and_by_parser(path: Path) -> None:
    schema = json.loads((MANIFESTS / "schema.json").read_bytes())
    if path.name == "schema.json":
        jsonschema.Draft202012Validator.check_schema(schema)
        return
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_bytes()))
    manifest = parse_source_manifest(path.read_bytes())
    assert manifest.name == path.stem
    assert manifest.to_json().encode() == path.read_bytes()
    assert path.stat().st_size < 300_000


# Values and JSON


def test_a_manifest_survives_json() -> None:
    manifest = small()
    assert parse_source_manifest(manifest.to_json()) == manifest
    assert parse_source_manifest(manifest.to_json().encode()) == manifest


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": 2}, "format 2"),
        ({"name": "Tiny/.."}, "name"),
        ({"name": 3}, "name"),
        ({"magnet": "http://x"}, "magnet"),
        ({"magnet": 7}, "magnet"),
        ({"about_nbytes": 0}, "about_nbytes"),
        ({"about_nbytes": "9"}, "about_nbytes"),
        ({"extra": 1}, "has 'extra'"),
        ({"info_hash": {"v1": "cd" * 20}}, "its magnet"),
        ({"info_hash": {"v1": "AB" * 20}}, "lower-case"),
        ({"info_hash": {"v3": None}}, "v1 and v2"),
        ({"info_hash": [1]}, "v1 and v2"),
        ({"piece_length": 0}, "piece_length"),
        ({"piece_length": True}, "piece_length"),
        ({"piece_length": 3}, "piece_length 3, less than 16384 bytes"),
        ({"trackers": "udp://x"}, "trackers"),
        ({"known_incomplete": [1]}, "known_incomplete"),
        ({"rules": {"rules": [["(", []]]}}, "regular expression"),
        ({"files": None}, "no list of files"),
        ({"files": {}}, "no list of files"),
        ({"files": [1, {"path": "a"}]}, "file 1"),
    ],
)
def test_faults_of_a_manifest_are_named(changes: dict[str, object], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        parsed(document(**changes))


ARRAY: dict[str, object] = {"name": "w", "shape": [2, 2], "dtype": "int8", "offset": 4}


@pytest.mark.parametrize(
    ("file", "array", "word"),
    [
        ({"path": "../up"}, {}, "relative"),
        ({"path": "/abs"}, {}, "relative"),
        ({"path": 1}, {}, "relative"),
        ({"nbytes": -1}, {}, "nbytes"),
        ({"nbytes": 7}, {}, "leaves the 7 bytes"),
        ({"more": 1}, {}, "not an object"),
        ({}, {"shape": [-1]}, "shape"),
        ({}, {"shape": [True]}, "shape"),
        ({}, {"shape": "2"}, "shape"),
        ({}, {"shape": [2**70]}, "shape"),
        ({}, {"offset": 1.5}, "at 1.5"),
        ({}, {"dtype": "object"}, "element type"),
        ({}, {"dtype": []}, "element type"),
        ({}, {"order": "A"}, "order"),
        ({}, {"role": "other"}, "role"),
        ({}, {"name": "a\x1b"}, "control character"),
        ({}, {"name": 1}, "no text"),
        ({}, {"more": 1}, "not an object"),
        ({}, {"groups": 2}, "groups"),
        ({}, {"role": "scales", "groups": 3}, "groups"),
        ({}, {"role": "scales", "shape": [4], "groups": 3}, "groups"),
        ({}, {"role": "scales"}, "not one or a pair"),
        ({"nbytes": None}, {}, "whose nbytes is null"),
        ({"nbytes": "8"}, {}, "nbytes"),
        ({"arrays": {}}, {}, "arrays is neither"),
        ({"digests": []}, {}, "digests"),
        ({"digests": {"crc": "00"}}, {}, "digests"),
        ({"digests": {"md5": "AB" * 16}}, {}, "md5"),
        ({}, {"digest": "ab"}, "digest"),
        ({}, {"digest": None}, "digest"),
    ],
)
def test_faults_of_a_file_are_named(file: dict[str, object], array: dict[str, object], word: str) -> None:
    good = {"path": "f", "nbytes": 8, "arrays": [ARRAY]}
    assert parsed(document(files=[good])).files[0].arrays[0].array.extent == Extent(4, 4)
    with pytest.raises(RequestError, match=word):
        parsed(document(files=[good | {"arrays": [ARRAY | array]} | file]))


def test_faults_that_span_files_are_named() -> None:
    good = {"path": "f", "nbytes": 8, "arrays": [ARRAY]}
    for files, word in (
        ([good, good], "twice: f"),
        ([good, good | {"path": "g"}], "more than once"),
        ([good | {"arrays": [ARRAY, ARRAY | {"name": "v", "offset": 0, "key": "k"}]}], None),
        ([good | {"arrays": [ARRAY | {"runs": [[2, [0, 0], [1, 1], "C"]]}]}], "not all of it"),
        ([good | {"arrays": [ARRAY, ARRAY | {"name": "v", "offset": 0}]}], "one key"),
    ):
        if word is None:
            parsed(document(files=files))
        else:
            with pytest.raises(RequestError, match=word):
                parsed(document(files=files))


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b'{"a": 1, "a": 2}', b"[" * 100_000, b"{}"])
def test_other_texts_are_refused(text: bytes) -> None:
    with pytest.raises(RequestError, match="source manifest"):
        parse_source_manifest(text)


def test_what_is_not_known_survives_json() -> None:
    files = [
        {"path": "a", "nbytes": None, "arrays": None, "digests": {"md5": "ab" * 16}},
        {"path": "b", "nbytes": 8, "arrays": [ARRAY | {"digest": "cd" * 32}]},
        {"path": "c", "nbytes": None, "arrays": []},
        {"path": "d", "nbytes": 9, "arrays": None},
    ]
    schema = json.loads((MANIFESTS / "schema.json").read_bytes())
    for listed in ([], files[:1], files, files[1:2]):
        value = document(files=listed, magnet=None, about_nbytes=100)
        jsonschema.Draft202012Validator(schema).validate(value)
        manifest = parsed(value)
        assert parse_source_manifest(manifest.to_json()) == manifest
        assert manifest.whole == (listed == files[1:2])
        assert manifest.nbytes == (8 if manifest.whole else None)
        assert json.loads(manifest.to_json())["files"] == listed
    assert manifest.files[0].arrays[0].digest == "cd" * 32


def test_of_a_file_that_is_not_known_only_its_place_is_checked() -> None:
    manifest = parsed(document(files=[{"path": "a", "nbytes": None, "arrays": None}]))
    manifest.check_file("a", [FoundArray("", Extent(0, 1), (1,), BY_NAME["int8"])])
    assert manifest.places(Payload((PayloadFile("r/a", 0, 7),), 4, 7))["a"].length == 7
    with pytest.raises(RequestError, match="0 times"):
        manifest.places(Payload((PayloadFile("r/b", 0, 7),), 4, 7))


# Against a torrent


def torrent_of(
    manifest: SourceManifest, root: str = "", skip: int | None = None, grow: int | None = None
) -> Payload:
    """The manifest's files after a README, in reverse order, without one, or with one a byte longer."""
    files = [PayloadFile("README.md", 0, 100)]
    for number, file in reversed(list(enumerate(manifest.files))):
        if number != skip:
            path = root + file.file_name if root else file.path
            files.append(PayloadFile(path, files[-1].extent.stop, file.nbytes + (number == grow)))
    return Payload(tuple(files), 1 << 14, files[-1].extent.stop)


@pytest.mark.parametrize("root", ["", "ckpt/", "a/b/"])
def test_tensors_lie_where_the_torrent_has_their_files(root: str) -> None:
    manifest = small()
    payload = torrent_of(manifest, root)
    places = {file.path.rpartition("/")[2]: file for file in payload.files}
    naming = manifest.to_tensors(payload)
    assert (naming.profile, naming.rules) == ("grok-1", manifest.rules)
    by_name = {tensor.spec.name: tensor for tensor in naming.tensors}
    for file in manifest.files:
        for item in file.arrays:
            tensor = by_name[f"{item.name}.{item.array.role}" if item.array.role else item.name]
            assert tensor.parts[0].extent == item.array.extent.shift(places[file.file_name].offset)


def test_files_that_the_torrent_lacks_or_has_in_another_length_are_all_named() -> None:
    manifest = small()
    with pytest.raises(RequestError, match=r"tensor00003_000' is there 0 times"):
        manifest.to_tensors(torrent_of(manifest, skip=3))
    with pytest.raises(RequestError, match=r"tensor00004_000' has \d+ bytes, not \d+"):
        manifest.to_tensors(torrent_of(manifest, grow=4))
    with pytest.raises(RequestError) as caught:
        manifest.to_tensors(torrent_of(manifest, skip=3, grow=4))
    assert "tensor00003_000" in caught.value.message and "tensor00004_000" in caught.value.message


def test_a_name_that_the_torrent_has_twice_needs_the_listed_path() -> None:
    manifest = small()
    payload = torrent_of(manifest)
    again = PayloadFile("old/tensor00000_000", payload.length, manifest.files[0].nbytes)
    both = Payload((*payload.files, again), payload.piece_length, again.extent.stop)
    assert manifest.to_tensors(both) == manifest.to_tensors(payload)
    moved = torrent_of(manifest, "new/")
    with pytest.raises(RequestError, match="2 times"):
        manifest.to_tensors(Payload((*moved.files, again), moved.piece_length, again.extent.stop))


def test_files_are_held_against_the_manifest() -> None:
    manifest = small()
    files = list(grok1_files(layers=2, emb=16, ffn=32, kv=8, vocab=32))
    for file in files:
        manifest.check_file(file.path, scan_layout(file.layout)[0])
    other = list(grok1_files(layers=2, emb=16, ffn=64, kv=8, vocab=32))
    with pytest.raises(
        CorruptError, match=r"weight int8 \[8, 16, 64\] at \d+ where weight int8 \[8, 16, 32\]"
    ):
        manifest.check_file("x/tensor00002_000", scan_layout(other[2].layout)[0])
    with pytest.raises(CorruptError, match="nothing where float32"):
        manifest.check_file(files[0].path, ())
    with pytest.raises(CorruptError, match="nothing is expected"):
        manifest.check_file(files[0].path, scan_layout(files[2].layout)[0])
    manifest.check_file("README.md", ())
    assert manifest.expected_arrays("README.md") is None
