"""What is published is fetched again to the byte, by whoever has the key, and nothing that was altered is."""

from __future__ import annotations

import json
import pickle
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtorrent as lt
import ml_dtypes
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from safetensors import safe_open
from safetensors.numpy import save_file

from gdist.core.box import Box
from gdist.core.magnet import format_magnet
from gdist.core.source_manifest import SourceManifest, parse_source_manifest
from gdist.core.tensor import StoredTensor, TensorSpec
from gdist.errors import CorruptError, InterruptedRun, RequestError, UnsupportedError
from gdist.events import Stage, StageStarted
from gdist.run.check_manifest import check_manifest
from gdist.run.describe import Digester, describe
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.publish import Published, PublishOptions, publish
from gdist.run.seeding import check_pieces, open_held
from gdist.run.signing import new_key, read_private_key, read_public_key
from gdist.run.survey import survey, survey_files
from gdist.sources.torrent import Version
from gdist.sources.torrent.metadata import load_torrent, read_metadata
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOCALHOST, LOOPBACK, Seeded, WebSeed, seed

pytestmark = pytest.mark.torrent


def write_odd(root: Path) -> dict[str, Array]:
    """Pickles: Fortran order, and arrays that start nowhere in particular."""
    rng = np.random.default_rng(3)
    arrays: dict[str, Array] = {
        "a": np.asfortranarray(rng.random((40, 96), dtype=np.float32)),
        "b": rng.random((64, 127)).astype(ml_dtypes.bfloat16),
        "d": np.array(2.5, np.float32),
    }
    root.mkdir()
    for name, array in arrays.items():
        (root / name).write_bytes(pickle.dumps(array, protocol=4))
    return arrays


def content(kind: str, root: Path) -> tuple[Path, dict[str, Array]]:
    """A checkpoint, and its arrays by name."""
    where = root / kind
    if kind == "Grok":
        return where, write_grok1(where, layers=1, emb=16, ffn=32, kv=8, vocab=32)
    if kind == "odd":
        return where, write_odd(where)
    expected = write_safetensors(where, emb=32, vocab=128)
    (where / "config.json").write_bytes(b"{}")
    (where / "empty.txt").write_bytes(b"")
    return where, expected


@contextmanager
def served(done: Published) -> Iterator[Seeded]:
    with seed(Path(done.payload), torrent=Path(done.torrent).read_bytes()) as seeded:
        yield seeded


def to(seeded: Seeded, **changes: Any) -> Any:
    """Options of a fetch that asks the one seeder."""
    torrent = replace(LOOPBACK, peers=((LOCALHOST, seeded.port),))
    return fetch_options(torrent=torrent, **changes)


def signed(root: Path, kind: str = "Llama", **options: Any) -> tuple[Published, str, dict[str, Array]]:
    """A release with a signature, its public key, and what it holds."""
    where, expected = content(kind, root)
    public = new_key(root / "key.pem")
    done = publish(where, root / "out", PublishOptions(sign=root / "key.pem", **options))
    assert done.public_key == public
    return done, public, expected


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
@pytest.mark.parametrize("kind", ["Llama", "Grok", "odd"])
def test_what_is_published_comes_back(kind: str, version: Version, tmp_path: Path) -> None:
    done, public, expected = signed(tmp_path, kind, version=version, licence="MIT", title="A model")
    before = tree_of(Path(done.payload))
    recorder = Recorder()
    with served(done) as seeded:
        fetch(done.manifest, tmp_path / "s", to(seeded, mesh="2x2", verify_key=public), observe=recorder)
    assert_holds(tmp_path / "s", expected)
    assert tree_of(Path(done.payload)) == before
    export(tmp_path / "s", tmp_path / "back")
    assert tree_of(tmp_path / "back" / kind) == before, "padding is in no file"
    manifest = parse_source_manifest(Path(done.manifest).read_bytes())
    assert manifest.whole and done.described and (manifest.licence, manifest.title) == ("MIT", "A model")
    assert bool(manifest.info_hash_v1) == (version != "v2")
    assert bool(manifest.info_hash_v2) == (version != "v1")
    assert survey(done.manifest).kind == "release", "planned without a network"
    for target in (done.payload, tmp_path / "s"):
        report = check_manifest(done.manifest, target, verify_key=public)
        assert report.ok and report.arrays == len(expected)
        turned = target != done.payload and kind == "odd"  # a store has C order
        assert report.digests == len(expected) - turned
        assert bool(report.open) == turned


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_every_file_starts_a_piece(version: Version, tmp_path: Path) -> None:
    where, _ = content("Llama", tmp_path)
    done = publish(where, tmp_path / "out", PublishOptions(version=version, piece_length=1 << 14))
    payload = read_metadata(load_torrent(Path(done.torrent).read_bytes())).payload
    assert {file.path for file in payload.files} == set(tree_of(where))
    assert all(file.offset % payload.piece_length == 0 for file in payload.files if file.length)


def test_a_view_and_a_kept_payload_are_of_the_padded_torrent(tmp_path: Path) -> None:
    where, expected = content("Llama", tmp_path)
    done = publish(where, tmp_path / "out")
    with served(done) as seeded:
        fetch(done.manifest, tmp_path / "v", to(seeded, codec="view", payload="keep"))
    assert_holds(tmp_path / "v", expected)
    kept = tree_of(tmp_path / "v/payload")
    assert {f"Llama/{path}": data for path, data in tree_of(where).items()}.items() <= kept.items()
    assert not any(".pad" in path for path in kept)
    assert check_manifest(done.manifest, tmp_path / "v").ok
    assert check_manifest(done.manifest, tmp_path / "v/payload/Llama").ok
    with open_held([tmp_path / "v"]) as held:
        check_pieces(held)


def test_of_joined_tensors_the_manifest_knows_the_files(tmp_path: Path) -> None:
    where, arrays = content("odd", tmp_path)
    (where / "e").write_bytes(pickle.dumps(arrays["b"], protocol=4))
    found = survey_files(where)
    first, second = (t for t in found.tensors if t.spec.name in ("b", "e"))
    spec = TensorSpec("joined", (128, 127), first.spec.dtype)
    parts = (
        replace(first.parts[0], box=Box((0, 0), (64, 127))),
        replace(second.parts[0], box=Box((64, 0), (128, 127))),
    )
    others = tuple(t for t in found.tensors if t not in (first, second))
    joined = replace(found, tensors=(*others, StoredTensor(spec, parts)))
    paths = {file.path: where / file.path for file in found.payload.files}
    about = describe(paths, joined, Digester())
    assert not about.whole and {file.path for file in about.files} == {"a", "b", "d", "e"}
    assert all(not file.known and dict(file.digests)["blake3"] for file in about.files)
    path = tmp_path / "m.json"
    path.write_text(SourceManifest("joined", "", about.files).to_json())
    report = check_manifest(path, where)
    assert report.ok and (report.digests, len(report.open)) == (4, 4)
    (where / "e").write_bytes(pickle.dumps(arrays["b"][::-1].copy(), protocol=4))
    assert len(check_manifest(path, where).faults) == 1


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    first, _, _ = signed(tmp_path)
    made = tree_of(tmp_path / "out")
    again = PublishOptions(sign=tmp_path / "key.pem")
    assert publish(Path(first.payload), tmp_path / "out", again) == first
    publish(Path(first.payload), tmp_path / "other", again)
    assert tree_of(tmp_path / "other") == made == tree_of(tmp_path / "out")
    (Path(first.payload) / "config.json").write_bytes(b'{"a": 1}')
    with pytest.raises(RequestError, match="exist and have other content"):
        publish(Path(first.payload), tmp_path / "out", again)
    assert tree_of(tmp_path / "out") == made
    publish(Path(first.payload), tmp_path / "out", replace(again, force=True))
    assert tree_of(tmp_path / "out") != made


def test_one_file_is_published_too(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "m", shards=1, index=False, emb=16, vocab=32)
    done = publish(tmp_path / "m/model.safetensors", tmp_path / "out", PublishOptions(name="Mine v1"))
    assert (done.name, Path(done.manifest).name) == ("mine-v1", "mine-v1.json")
    with served(done) as seeded:
        fetch(done.manifest, tmp_path / "s", to(seeded))
    assert_holds(tmp_path / "s", expected)
    assert check_manifest(done.manifest, done.payload).ok


def test_trackers_and_web_seeds_go_into_torrent_manifest_and_magnet(tmp_path: Path) -> None:
    where, expected = content("Llama", tmp_path)
    with WebSeed(tmp_path) as web:
        tracker = "udp://tracker.example.org:1337/announce"
        options = PublishOptions(trackers=(tracker,), web_seeds=(web.url,))
        done = publish(where, tmp_path / "out", options)
        manifest = parse_source_manifest(Path(done.manifest).read_bytes())
        assert manifest.magnet == done.magnet and manifest.trackers == (tracker,)
        loopback = replace(LOOPBACK, stall_seconds=30)
        fetch(done.torrent, tmp_path / "s", fetch_options(torrent=loopback, manifest=done.manifest))
    assert_holds(tmp_path / "s", expected)


def test_files_that_are_ignored_are_in_the_torrent_and_not_in_the_manifest(tmp_path: Path) -> None:
    where, _ = content("Llama", tmp_path)
    (where / "big.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(UnsupportedError, match=r"big\.zst"):
        publish(where, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    done = publish(where, tmp_path / "out", PublishOptions(ignore=("*.zst",)))
    manifest = parse_source_manifest(Path(done.manifest).read_bytes())
    assert "big.zst" not in {file.path for file in manifest.files}
    assert any("big.zst" in text for text in manifest.known_incomplete)


def test_what_cannot_be_published_is_refused(tmp_path: Path) -> None:
    where, _ = content("Llama", tmp_path)
    for source, output, options, word in (
        (tmp_path / "absent", None, PublishOptions(), "neither a file nor"),
        (Path("/"), tmp_path / "out", PublishOptions(), "no name of its own"),
        (tmp_path / "\udcff", tmp_path / "out", PublishOptions(), "not UTF-8"),
        (where, where, PublishOptions(), "cannot lie in what is published"),
        (where, where / "out", PublishOptions(), "cannot lie in what is published"),
        (where, tmp_path / "out", PublishOptions(name="..."), "makes no name"),
        (where, tmp_path / "out", PublishOptions(piece_length=1000), "not a power of two"),
        (where, tmp_path / "out", PublishOptions(sign=tmp_path / "absent.pem"), "cannot be read"),
    ):
        with pytest.raises(RequestError, match=word):
            publish(source, output, options)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_bytes(b"hello")
    with pytest.raises(UnsupportedError, match="holds a tensor"):
        publish(tmp_path / "text", tmp_path / "out")
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedRun):
        publish(where, tmp_path / "out", stop=stop)
    assert not list((tmp_path / "out").iterdir())


# Signatures


def test_one_altered_byte_of_the_manifest_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    done, public, _ = signed(tmp_path)
    path = Path(done.manifest)
    data = path.read_bytes()
    with served(done) as seeded:
        for position in range(0, len(data), max(len(data) // 40, 1)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            recorder = Recorder()
            with pytest.raises(CorruptError, match="is not what the owner of key"):
                fetch(done.manifest, tmp_path / "s", to(seeded, verify_key=public), observe=recorder)
            assert not recorder.of(StageStarted)
        path.write_bytes(data + b"\n")
        with pytest.raises(CorruptError, match="is not what the owner of key"):
            fetch(done.manifest, tmp_path / "s", to(seeded, verify_key=public))
    assert not (tmp_path / "s").exists()


def test_signatures_that_are_missing_cut_or_of_another_are_refused(tmp_path: Path) -> None:
    done, public, _ = signed(tmp_path)
    other = new_key(tmp_path / "other.pem")
    with pytest.raises(CorruptError, match=f"owner of key {other}"):
        check_manifest(done.manifest, done.payload, verify_key=other)
    signature = Path(done.signature)
    data = signature.read_bytes()
    assert len(data) == 64
    for wrong in (b"", data[:-1], data + b"\n"):
        signature.write_bytes(wrong)
        with pytest.raises(CorruptError, match="a signature has 64"):
            fetch(done.manifest, tmp_path / "s", fetch_options(verify_key=public))
    signature.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(CorruptError, match="is not what the owner"):
        fetch(done.manifest, tmp_path / "s", fetch_options(verify_key=public))
    signature.unlink()
    with pytest.raises(RequestError, match="has no signature beside it"):
        fetch(done.manifest, tmp_path / "s", fetch_options(verify_key=public))
    for source in ("grok-1", done.magnet, done.torrent, "ab" * 20, str(tmp_path / "absent.json")):
        with pytest.raises(RequestError, match="no manifest"):
            fetch(source, tmp_path / "s", fetch_options(verify_key=public))
    assert not (tmp_path / "s").exists()


def test_a_torrent_that_is_not_the_signed_one_is_refused(tmp_path: Path) -> None:
    done, public, expected = signed(tmp_path, version="hybrid")
    second, _ = content("odd", tmp_path)
    theirs = publish(second, tmp_path / "out")
    options = {"manifest": done.manifest, "verify_key": public}
    for source in (theirs.magnet, theirs.torrent, "ab" * 20, "cd" * 32):
        with pytest.raises(RequestError, match="the torrent is"):
            fetch(source, tmp_path / "s", fetch_options(**options))
    bare = tmp_path / "bare.json"
    bare.write_text(SourceManifest("bare", "", ()).to_json())
    key, _ = read_private_key(tmp_path / "key.pem")
    Path(f"{bare}.sig").write_bytes(key.sign(bare.read_bytes()))
    with pytest.raises(RequestError, match="has no info-hash"):
        fetch(done.magnet, tmp_path / "s", fetch_options(manifest=str(bare), verify_key=public))
    assert not (tmp_path / "s").exists()
    with served(done) as seeded:
        half = f"magnet:?xt=urn:btih:{seeded.magnet.info_hash.v1_hex}"
        fetch(half, tmp_path / "s", to(seeded, **options))
    assert_holds(tmp_path / "s", expected)


def test_a_magnet_half_right_is_not_the_torrent_of_the_manifest(tmp_path: Path) -> None:
    """The manifest names both hashes: a v1 torrent that has one of them is another."""
    done, public, _ = signed(tmp_path, version="v1")
    path = Path(done.manifest)
    document = json.loads(path.read_bytes())
    document["info_hash"]["v2"] = "cd" * 32
    path.write_text(json.dumps(document))
    key, _ = read_private_key(tmp_path / "key.pem")
    Path(done.signature).write_bytes(key.sign(path.read_bytes()))
    with pytest.raises(RequestError, match="without cdcd"):
        fetch(done.torrent, tmp_path / "s", fetch_options(manifest=done.manifest, verify_key=public))


def test_a_manifest_and_its_signature_come_from_a_url(tmp_path: Path) -> None:
    done, public, expected = signed(tmp_path)
    with WebSeed(tmp_path / "out") as web, served(done) as seeded:
        url = f"{web.url}{Path(done.manifest).name}"
        fetch(format_magnet(seeded.magnet), tmp_path / "s", to(seeded, manifest=url, verify_key=public))
        Path(done.signature).unlink()
        with pytest.raises(RequestError, match="has no signature beside it"):
            fetch(url, tmp_path / "t", to(seeded, verify_key=public))
    assert_holds(tmp_path / "s", expected)


def test_keys_are_told_apart(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    other = rsa.generate_private_key(65537, 2048)
    others = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    theirs = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path / "k"
    for data, word in (
        (public, "is a public key"),
        (locked, "has a passphrase"),
        (others, "another kind than Ed25519"),
        (b"", "is no private key"),
        (b"\x00" * 100, "is no private key"),
    ):
        path.write_bytes(data)
        with pytest.raises(RequestError, match=word):
            read_private_key(path)
    for data, word in (
        (private, "is a private key"),
        (theirs, "another kind than Ed25519"),
        (b"hello", "is no public key"),
    ):
        path.write_bytes(data)
        with pytest.raises(RequestError, match=word):
            read_public_key(str(path))
    for given in ("ab" * 31, "absent.pem", ""):
        with pytest.raises(RequestError, match="cannot be read"):
            read_public_key(given)
    path.write_bytes(public)
    for given in (str(path), raw, raw.upper()):
        found = read_public_key(given).public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert found.hex() == raw


def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    where, _ = content("odd", tmp_path)
    new_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    options = PublishOptions(sign=tmp_path / "key.pem")
    assert not publish(where, tmp_path / "out", options).notes
    (tmp_path / "key.pem").chmod(0o640)
    (note,) = publish(where, tmp_path / "out", options).notes
    assert "others may read the private key" in note and "chmod 600" in note
    with pytest.raises(RequestError, match="exists"):
        new_key(tmp_path / "key.pem")


def test_openssl_makes_keys_and_checks_signatures(tmp_path: Path) -> None:
    def openssl(*words: object) -> str:
        command = ["openssl", *map(str, words)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    where, _ = content("odd", tmp_path)
    key, public = tmp_path / "k.pem", tmp_path / "p.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", key)
    openssl("pkey", "-in", key, "-pubout", "-out", public)
    done = publish(where, tmp_path / "out", PublishOptions(sign=key))
    checked = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", done.manifest)
    assert "Verified Successfully" in openssl(*checked, "-sigfile", done.signature)
    assert check_manifest(done.manifest, where, verify_key=str(public)).ok


# Digests


def edited(done: Published, change: Any) -> str:
    """The manifest, with something changed in it by who has the key, in another file."""
    document = json.loads(Path(done.manifest).read_bytes())
    change(document)
    path = Path(done.manifest).with_name("edited.json")
    path.write_text(json.dumps(document))
    return str(path)


def test_a_digest_that_is_not_the_tensor_s_ends_the_fetch(tmp_path: Path) -> None:
    where, expected = content("Llama", tmp_path)
    done = publish(where, tmp_path / "out")
    name = "model.norm.weight"

    def change(document: Any) -> None:
        for array in (a for file in document["files"] for a in file["arrays"] if a["name"] == name):
            array["digest"] = "ab" * 32

    wrong = edited(done, change)
    with served(done) as seeded:
        with pytest.raises(CorruptError, match=f"{name}.*not abab"):
            fetch(wrong, tmp_path / "s", to(seeded))
        assert not (tmp_path / "s/gdist.json").exists()
        fetch(done.manifest, tmp_path / "t", to(seeded))
    assert_holds(tmp_path / "t", expected)
    for target in (where, tmp_path / "t"):
        report = check_manifest(wrong, target)
        assert len(report.faults) == 1 and name in report.faults[0]
        assert check_manifest(wrong, target, digests=False).ok


def test_all_that_differs_is_told_at_once(tmp_path: Path) -> None:
    where, _ = content("Llama", tmp_path)
    done = publish(where, tmp_path / "out")
    first, second = sorted(where.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-1])
    (where / "config.json").unlink()
    report = check_manifest(done.manifest, where)
    assert not report.ok
    said = "\n".join(report.faults)
    assert "'config.json' is there 0 times" in said
    assert f"{second.name!r} has" in said
    assert f"in {first.name!r} has digest" in said
    error = report.error()
    assert isinstance(error, CorruptError) and error.faults == report.faults
    write_safetensors(where, shards=2, emb=16, vocab=128)
    assert any(
        "is not what the manifest" in f or "bytes, not" in f
        for f in check_manifest(done.manifest, where).faults
    )


def test_digests_of_whole_files_are_checked(tmp_path: Path) -> None:
    where, _ = content("odd", tmp_path)
    done = publish(where, tmp_path / "out")

    def change(document: Any) -> None:
        document["files"] = [
            {"path": "a", "nbytes": None, "arrays": None, "digests": {"md5": "ab" * 16, "sha256": "cd" * 32}}
        ]

    report = check_manifest(edited(done, change), where)
    assert len(report.faults) == 2 and report.digests == 2
    assert report.open == ("'a': its arrays are not listed",)


def test_stores_of_another_release_are_told(tmp_path: Path) -> None:
    where, _ = content("Llama", tmp_path)
    second, _ = content("odd", tmp_path)
    done, theirs = publish(where, tmp_path / "out"), publish(second, tmp_path / "out")
    with served(done) as seeded:
        fetch(done.manifest, tmp_path / "s", to(seeded))
        fetch(done.manifest, tmp_path / "half", to(seeded, select=("norm",)))
    report = check_manifest(theirs.manifest, tmp_path / "s")
    assert any("the store is of torrent" in fault for fault in report.faults)
    assert any("is not in the store" in fault for fault in report.faults)
    half = check_manifest(done.manifest, tmp_path / "half")
    assert half.ok and half.open and 0 < half.digests < 21
    with pytest.raises(RequestError, match="neither a payload"):
        check_manifest(done.manifest, tmp_path / "absent")


# An aligned copy


def test_an_aligned_copy_holds_the_same(tmp_path: Path) -> None:
    where, expected = content("Llama", tmp_path)
    odd = {
        "odd": np.arange(7, dtype=np.int8),
        "half": np.arange(3, dtype=np.float16),
        "none": np.zeros((0, 4)),
    }
    write_safetensors(where / "more", odd, shards=1, index=False)
    before = tree_of(where)
    done = publish(where, tmp_path / "out", PublishOptions(align=True, name="m"))
    assert tree_of(where) == before
    copy = tmp_path / "out/m"
    assert done.payload == str(copy) and set(tree_of(copy)) == set(before)
    assert (copy / "config.json").read_bytes() == b"{}"
    manifest = parse_source_manifest(Path(done.manifest).read_bytes())
    arrays = [item.array for file in manifest.files for item in file.arrays]
    large = [array for array in arrays if array.extent.length % 64 == 0]
    assert len(large) >= len(expected) and all(array.extent.start % 64 == 0 for array in large)
    assert all(array.extent.start % array.dtype.itemsize == 0 for array in arrays)
    for name in ("model-00001-of-00002.safetensors", "more/model.safetensors"):
        with safe_open(where / name, "np") as old, safe_open(copy / name, "np") as new:
            assert old.metadata() == new.metadata() and set(old.keys()) == set(new.keys())
            for key in old.keys():  # noqa: SIM118  no mapping
                assert old.get_tensor(key).tobytes() == new.get_tensor(key).tobytes()
    with pytest.raises(RequestError, match="is not empty"):
        publish(where, tmp_path / "out", PublishOptions(align=True, name="m"))
    second, _ = content("odd", tmp_path)
    with pytest.raises(RequestError, match="no safetensors file"):
        publish(second, tmp_path / "out", PublishOptions(align=True))
    with pytest.raises(RequestError, match="one within the other"):
        publish(second, tmp_path, PublishOptions(align=True))


def test_a_fetch_of_a_signed_manifest_tells_its_stages_as_any_other(tmp_path: Path) -> None:
    done, public, _ = signed(tmp_path)
    recorder = Recorder()
    with served(done) as seeded:
        fetch(done.manifest, tmp_path / "s", to(seeded, verify_key=public), observe=recorder)
        assert fetch(done.manifest, tmp_path / "s", to(seeded, verify_key=public)).already
    assert next(event.stage for event in recorder.of(StageStarted)) is Stage.METADATA


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_a_directory_of_one_file(version: Version, tmp_path: Path) -> None:
    """A v2 torrent of it has no directory: one file at the root of its tree is the torrent."""
    arrays = {"w": np.arange(4096, dtype=np.float32)}
    (tmp_path / "m").mkdir()
    save_file(arrays, tmp_path / "m/model.safetensors")
    done = publish(tmp_path / "m", tmp_path / "out", PublishOptions(version=version))
    torrent = Path(done.torrent).read_bytes()
    path = "model.safetensors" if version == "v2" else "m/model.safetensors"
    assert read_metadata(load_torrent(torrent)).paths == (path,)
    with seed(tmp_path / ("m/model.safetensors" if version == "v2" else "m"), torrent=torrent) as seeded:
        fetch(done.manifest, tmp_path / "s", to(seeded))
    assert_holds(tmp_path / "s", arrays)
    assert (
        check_manifest(done.manifest, tmp_path / "m").ok and check_manifest(done.manifest, tmp_path / "s").ok
    )
    export(tmp_path / "s", tmp_path / "back")
    assert (tmp_path / "back" / path).read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()
    for name in (b"..", b"a/b", b""):
        evil = lt.bdecode(torrent)
        evil[b"info"][b"name"] = name
        with pytest.raises((UnsupportedError, CorruptError)):
            read_metadata(load_torrent(lt.bencode(evil)))
