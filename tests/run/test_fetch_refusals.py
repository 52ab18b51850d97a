"""Bad sources, peers, files, manifests, disks, destinations: a named error, nothing that looks complete."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtorrent as lt
import numpy as np
import pytest

from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.magnet import format_magnet
from gdist.core.rules import parse_rules
from gdist.core.source_files import SourceArray, SourceFile
from gdist.core.source_manifest import SourceManifest
from gdist.errors import (
    CorruptError,
    FilesystemError,
    NoPeersError,
    RequestError,
    ResumeError,
    SpaceError,
    StalledError,
    UnsupportedError,
)
from gdist.events import Event, HashFailed, Stage, StageStarted
from gdist.formats import drive
from gdist.run.failures import last_failure
from gdist.run.fetch import fetch
from gdist.run.headers import FileReport, identify
from gdist.run.journal_file import JournalFile
from gdist.run.verify import verify
from gdist.testing.buckets import s3_bucket
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import LOOPBACK, Seeded, Tracker, bad_seed, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14
IMPATIENT = replace(LOOPBACK, metadata_timeout_seconds=1, stall_seconds=1.5)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "llama"
    expected = write_safetensors(root, emb=64)
    (root / "config.json").write_bytes(b"{}")
    return root, expected


@pytest.fixture(scope="module")
def seeded(content: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(content[0], piece_length=PIECE) as found:
        yield found


def assert_not_complete(dest: Path) -> None:
    assert not (dest / "gdist.json").exists() and not (dest / "commit_success.txt").exists()
    with pytest.raises(RequestError):
        assert_holds(dest, {})


# --- sources and peers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dest", [None, "s"])
def test_what_is_no_source_is_refused(
    dest: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("nonsense", "", "magnet:?dn=x", "magnet:?xt=urn:btih:abc", "ab" * 19):
        with pytest.raises(RequestError):
            fetch(source, dest, fetch_options())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", [{"payload": "some"}, {"codec": "lzma"}])
def test_choices_there_are_not_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is none of"):
        fetch("ab" * 20, tmp_path / "s", fetch_options(**change))
    assert os.listdir(tmp_path) == []


def test_a_bucket_that_does_not_exist_is_refused_before_anything_is_asked_for(tmp_path: Path) -> None:
    with s3_bucket(), pytest.raises(RequestError, match="the bucket does not exist") as caught:
        fetch("ab" * 20, "s3://none/k", fetch_options(work=tmp_path))
    assert "create it" in caught.value.hint and os.listdir(tmp_path) == []


def test_a_hash_nobody_has_says_what_was_tried(tmp_path: Path) -> None:
    with Tracker() as tracker, Tracker(refuse="go away") as refusing:
        torrent = replace(IMPATIENT, metadata_timeout_seconds=5, trackers=(tracker.url, refusing.url))
        with pytest.raises(NoPeersError) as caught:
            fetch("ab" * 20, tmp_path / "s", fetch_options(torrent=torrent))
    assert f"tracker {tracker.url} answered" in caught.value.message
    assert f"tracker {refusing.url} failed: go away" in caught.value.message
    assert "DHT nodes" in caught.value.message and "peers" in caught.value.hint
    assert_not_complete(tmp_path / "s")


def test_a_peer_whose_name_is_not_known_is_named(tmp_path: Path) -> None:
    torrent = replace(IMPATIENT, peers=(("no.such.invalid", 6881),))
    with pytest.raises(NoPeersError, match=r"1 peers tried \(no\.such\.invalid:6881: name not known\)"):
        fetch("ab" * 20, tmp_path / "s", fetch_options(torrent=torrent))


def test_a_torrent_file_without_any_peer_says_so(seeded: Seeded, tmp_path: Path) -> None:
    (tmp_path / "t.torrent").write_bytes(seeded.torrent)
    with pytest.raises(NoPeersError, match="nothing arrived"):
        fetch(str(tmp_path / "t.torrent"), tmp_path / "s", fetch_options(torrent=IMPATIENT))
    assert_not_complete(tmp_path / "s")


def test_bad_peers_beside_a_good_one_change_no_byte(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    recorder = Recorder()
    with bad_seed(content[0], seeded.torrent) as bad:
        magnet = replace(seeded.magnet, peers=(*bad.magnet.peers, *seeded.magnet.peers))
        fetch(format_magnet(magnet), tmp_path / "s", fetch_options("2x4"), observe=recorder)
    assert_holds(tmp_path / "s", content[1])


def test_a_bad_peer_alone_brings_nothing(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    recorder, options = Recorder(), fetch_options(torrent=replace(LOOPBACK, stall_seconds=5))
    with bad_seed(content[0], seeded.torrent) as bad, pytest.raises((StalledError, NoPeersError)):
        fetch(format_magnet(bad.magnet), tmp_path / "s", options, observe=recorder)
    assert recorder.of(HashFailed)
    assert_not_complete(tmp_path / "s")
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", content[1])


# --- hostile and broken files -----------------------------------------------------------------------------


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def array_pickle(protocol: int = 4) -> bytes:
    return pickle.dumps(np.arange(9000, dtype=np.float32).reshape(90, 100), protocol)


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "calls os.system": lambda marker: pickle.dumps(Runs(marker), 4),
    "calls os.system beside an array": lambda marker: pickle.dumps({"a": np.ones(3), "b": Runs(marker)}, 4),
    "another global": lambda marker: pickle.dumps({"a": np.ones(3), "b": Path}, 4),
    "an opcode of old": lambda marker: array_pickle()[:-1] + b"I1\n0.",
    "an unknown opcode": lambda marker: array_pickle()[:-1] + b"\xff.",
    "an extension": lambda marker: array_pickle()[:-1] + b"\x82\x01.",
    "bytes after the end": lambda marker: array_pickle() + b"more",
    "a second pickle": lambda marker: array_pickle() + pickle.dumps(Runs(marker), 4),
    "no end": lambda marker: array_pickle()[:-1],
    "cut": lambda marker: array_pickle()[:20_000],
    "objects": lambda marker: pickle.dumps(np.array([Runs(marker), None], object), 4),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_hostile_pickle_is_refused_and_not_run(case: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/good").write_bytes(array_pickle())
    (tmp_path / "m/bad-one").write_bytes(PICKLES[case](tmp_path / "ran"))
    with (
        seed(tmp_path / "m", piece_length=PIECE) as seeded,
        pytest.raises((UnsupportedError, CorruptError), match="bad-one"),
    ):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert not (tmp_path / "ran").exists()
    assert_not_complete(tmp_path / "s")


def raw(header: object, data: int = 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(start: int, stop: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": [(stop - start) // 4] if shape is None else shape,
        "data_offsets": [start, stop],
    }


EIGHT = b'"a":{"dtype":"F32","shape":[8],"data_offsets":[%d,%d]}'
TWICE = b"{" + EIGHT % (0, 32) + b"," + EIGHT % (32, 64) + b"}"
SAFETENSORS: dict[str, bytes] = {
    "overlapping": raw({"a": entry(0, 40), "b": entry(32, 64)}),
    "a hole": raw({"a": entry(0, 32), "b": entry(40, 64)}),
    "twice": raw(TWICE),
    "beyond the end": raw({"a": entry(0, 128)}),
    "overflowing": raw({"a": entry(0, 64, shape=[1 << 62, 1 << 62])}),
    "negative": raw({"a": entry(0, 64, shape=[-16])}),
    "backwards": raw({"a": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}}),
    "another length": raw({"a": entry(0, 64, shape=[15])}),
    "unread bytes": raw({"a": entry(0, 32)}),
    "an element type": raw({"a": entry(0, 64, dtype="F6_E2M3")}),
    "not json": raw(b"{" + b"x" * 50),
    "deep": raw(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_broken_safetensors_are_refused(case: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m", shards=1, index=False, emb=16, vocab=32)
    (tmp_path / "m/bad.safetensors").write_bytes(SAFETENSORS[case])
    with (
        seed(tmp_path / "m", piece_length=PIECE) as seeded,
        pytest.raises((CorruptError, UnsupportedError), match=r"bad\.safetensors"),
    ):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_not_complete(tmp_path / "s")


NAMES = {
    "climbs": ["../x"],
    "climbs inside": ["a/../../b"],
    "absolute": ["/etc/passwd"],
    "a document": ["zarr.json"],
    "a document inside": ["a/zarr.json"],
    "the manifest": ["gdist.json"],
    "assets": ["assets"],
    "hidden": [".gdist"],
    "long": ["x" * 5000],
    "nul": ["a\0b"],
    "newline": ["a\nb"],
    "empty": [""],
    "backslash": ["a\\b"],
    "a tensor and a group": ["a", "a/b"],
    "a chunk of another": ["a", "a/c/0"],
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_are_no_paths_are_refused(case: str, tmp_path: Path) -> None:
    tensors = {name: np.ones(4, np.float32) for name in NAMES[case]}
    write_safetensors(tmp_path / "from/m", tensors, shards=1, index=False)
    (tmp_path / "to").mkdir()
    with (
        seed(tmp_path / "from/m", piece_length=PIECE) as seeded,
        pytest.raises(UnsupportedError),
    ):
        fetch(format_magnet(seeded.magnet), tmp_path / "to/s", fetch_options())
    assert_not_complete(tmp_path / "to/s")
    outside = {name for name in tree_of(tmp_path / "to") if not name.startswith("s/.gdist/")}
    assert outside == set()


def test_long_and_odd_names_that_are_paths_are_kept(tmp_path: Path) -> None:
    names = ["x" * 240, "ä ö", "a/b/d", "a.b", "A.b", "~", "-rf", "c.d/e"]
    tensors = {name: np.full(4, number, np.float32) for number, name in enumerate(names)}
    write_safetensors(tmp_path / "m", tensors, shards=1, index=False)
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", tensors)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / "from", {"w": np.ones(4, np.float32)}, shards=1, index=False)
        (tmp_path / "m").mkdir(exist_ok=True)
        os.rename(tmp_path / "from/model.safetensors", tmp_path / f"m/{name}.safetensors")
    with (
        seed(tmp_path / "m", piece_length=PIECE) as seeded,
        pytest.raises(CorruptError, match="more than once"),
    ):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())


def test_an_index_that_disagrees_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m", emb=16, vocab=32)
    path = tmp_path / "m/model.safetensors.index.json"
    path.write_text(path.read_text().replace("model.norm.weight", "model.norm.bias"))
    with seed(tmp_path / "m", piece_length=PIECE) as seeded, pytest.raises(CorruptError, match=r"norm\.bias"):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_not_complete(tmp_path / "s")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/notes.txt").write_bytes(b"no tensors here")
    with (
        seed(tmp_path / "m", piece_length=PIECE) as seeded,
        pytest.raises(UnsupportedError, match="none of the 1"),
    ):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())


def hostile(files: list[dict[bytes, Any]], name: bytes = b"n") -> bytes:
    pieces = b"x" * 20 * -(-sum(file[b"length"] for file in files) // PIECE)
    info: Any = {b"name": name, b"piece length": PIECE, b"pieces": pieces, b"files": files}
    return lt.bencode({b"info": info})


def plain(*parts: bytes) -> dict[bytes, Any]:
    return {b"length": 5, b"path": list(parts)}


TORRENTS = {
    "climbs": hostile([plain(b"..", b"..", b"escaped")]),
    "absolute": hostile([plain(b"/escaped")]),
    "root climbs": hostile([plain(b"a")], name=b".."),
    "twice": hostile([plain(b"a"), plain(b"a")]),
    "file and directory": hostile([plain(b"a"), plain(b"a", b"b")]),
    "symlink": hostile(
        [{b"length": 0, b"path": [b"a"], b"attr": b"l", b"symlink path": [b"..", b"b"]}, plain(b"b")]
    ),
}


@pytest.mark.parametrize("payload", ["keep", "discard"])
@pytest.mark.parametrize("case", TORRENTS)
def test_torrents_with_unsafe_names_write_nothing(case: str, payload: str, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "t.torrent").write_bytes(TORRENTS[case])
    with pytest.raises(UnsupportedError):
        fetch(
            str(tmp_path / "t.torrent"), tmp_path / "to/s", fetch_options(payload=payload, torrent=IMPATIENT)
        )
    assert {name for name in tree_of(tmp_path / "to") if name != "s/.gdist/lock"} == set()


def test_a_mesh_that_does_not_divide_names_every_tensor(seeded: Seeded, tmp_path: Path) -> None:
    rules = parse_rules({"axes": ["data", "model"], "rules": [["norm", []], [".*", [None, "model"]]]})
    with pytest.raises(RequestError) as caught:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x3", rules=rules))
    for name in (
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ):
        assert name in caught.value.message
    assert "'model' (3) does not divide dimension 1 (64)" in caught.value.message
    assert_not_complete(tmp_path / "s")
    with pytest.raises(RequestError, match="3 hosts do not divide"):
        fetch(format_magnet(seeded.magnet), tmp_path / "t", fetch_options("2x4", "0/3"))


def test_a_refusal_leaves_why_and_another_mesh_goes_on_from_the_headers(
    seeded: Seeded, tmp_path: Path
) -> None:
    rules = parse_rules({"axes": ["data", "model"], "rules": [["norm", []], [".*", [None, "model"]]]})
    with pytest.raises(RequestError) as caught:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x3", rules=rules))
    failure = last_failure(tmp_path / "s/.gdist")
    assert failure and failure.message == caught.value.message
    assert {"s/.gdist/source.torrent", "s/.gdist/headers.json"} <= set(tree_of(tmp_path))
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4", rules=rules))
    assert verify(tmp_path / "s").ok and not (tmp_path / "s/.gdist").exists()


# --- manifests --------------------------------------------------------------------------------------------


def manifest_of(root: Path, magnet: str) -> SourceManifest:
    """What a manifest of a directory of safetensors says when it is true."""
    files = []
    for path in sorted(root.glob("*.safetensors")):
        data = path.read_bytes()

        def read(extent: Extent, data: bytes = data) -> bytes:
            return data[extent.start : extent.stop]

        arrays = drive(identify(len(data), FileReport()), read)
        files.append(
            SourceFile(path.name, len(data), tuple(SourceArray(array.key, array) for array in arrays))
        )
    return SourceManifest("tiny", magnet, tuple(files))


def changed(manifest: SourceManifest, file: int, number: int, **changes: Any) -> SourceManifest:
    arrays = list(manifest.files[file].arrays)
    arrays[number] = replace(arrays[number], array=replace(arrays[number].array, **changes))
    files = list(manifest.files)
    files[file] = replace(files[file], arrays=tuple(arrays))
    return replace(manifest, files=tuple(files))


def test_a_manifest_replaces_the_scan_of_headers(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(manifest_of(content[0], format_magnet(seeded.magnet)).to_json())
    recorder = Recorder()
    fetch(str(path), tmp_path / "s", fetch_options("2x4"), observe=recorder)
    assert_holds(tmp_path / "s", content[1])
    assert (tmp_path / "s/assets/config.json").read_bytes() == b"{}"
    assert (tmp_path / "s/assets/model.safetensors.index.json").exists()
    kinds = [type(event).__name__ for event in recorder.events]
    assert "PieceVerified" not in kinds[: kinds.index("Planned")], "planned before the first piece"


def swapped(manifest: SourceManifest) -> SourceManifest:
    """Two arrays of one shape and type under each other's name."""
    arrays = list(manifest.files[0].arrays)
    where = {array.name: number for number, array in enumerate(arrays)}
    one, two = (where[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    a, b = arrays[one].array, arrays[two].array
    arrays[one] = replace(arrays[one], array=replace(a, extent=b.extent))
    arrays[two] = replace(arrays[two], array=replace(b, extent=a.extent))
    return replace(manifest, files=(replace(manifest.files[0], arrays=tuple(arrays)), *manifest.files[1:]))


def moved(manifest: SourceManifest) -> SourceManifest:
    """The last array of a file, taken out and put two bytes too early, over the end of the one before."""
    arrays = manifest.files[0].arrays[:-2]
    last = manifest.files[0].arrays[-1]
    last = replace(last, array=replace(last.array, extent=last.array.extent.shift(-2)))
    return replace(manifest, files=(replace(manifest.files[0], arrays=(*arrays, last)), *manifest.files[1:]))


LIES: dict[str, Callable[[SourceManifest], SourceManifest]] = {
    "another offset": moved,
    "another type": lambda m: changed(m, 0, 0, dtype=BY_NAME["float16"]),
    "another shape": lambda m: changed(m, 0, 0, shape=m.files[0].arrays[0].array.shape[::-1]),
    "swapped arrays": swapped,
    "an array less": lambda m: replace(
        m, files=(replace(m.files[0], arrays=m.files[0].arrays[1:]), *m.files[1:])
    ),
    "swapped files": lambda m: replace(
        m,
        files=(
            replace(m.files[0], arrays=m.files[1].arrays, nbytes=m.files[0].nbytes),
            replace(m.files[1], arrays=m.files[0].arrays, nbytes=m.files[1].nbytes),
        ),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_ends_without_a_store(
    lie: str, content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(LIES[lie](manifest_of(content[0], format_magnet(seeded.magnet))).to_json())
    for _ in range(2):  # also when the lie is told again over what the first run left
        with pytest.raises((CorruptError, RequestError)):
            fetch(str(path), tmp_path / "s", fetch_options("2x4"))
        assert_not_complete(tmp_path / "s")


def test_a_manifest_of_other_files_is_refused(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    manifest = manifest_of(content[0], format_magnet(seeded.magnet))
    grown = replace(
        manifest, files=(replace(manifest.files[0], nbytes=manifest.files[0].nbytes + 1), *manifest.files[1:])
    )
    (tmp_path / "tiny.json").write_text(grown.to_json())
    with pytest.raises(RequestError, match="does not have the files"):
        fetch(str(tmp_path / "tiny.json"), tmp_path / "s", fetch_options())


# --- disks ------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(at: Path, size: str, options: str = "") -> Iterator[Path]:
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "none", str(at)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system of {size} cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_a_disk_too_small_is_told_before_anything_is_fetched(
    payload: str, seeded: Seeded, tmp_path: Path
) -> None:
    recorder = Recorder()
    with small_disk(tmp_path / "disk", "400k") as disk:
        with pytest.raises(SpaceError) as caught:
            fetch(format_magnet(seeded.magnet), disk / "s", fetch_options(payload=payload), observe=recorder)
        assert isinstance(caught.value.needed, int) and isinstance(caught.value.free, int)
        assert caught.value.needed > caught.value.free
        assert (
            f"{caught.value.needed:,}" in caught.value.message
            and f"{caught.value.free:,}" in caught.value.message
        )
        assert Stage.FETCH not in [event.stage for event in recorder.of(StageStarted)]
        assert_not_complete(disk / "s")


@pytest.mark.parametrize("payload", ["discard", "keep"])
def test_a_disk_that_fills_up_on_the_way_can_be_freed_and_gone_on(
    payload: str, content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:

        def fill(event: Event) -> None:
            if isinstance(event, StageStarted) and event.stage is Stage.FETCH:
                status = os.statvfs(disk)
                with (disk / "others").open("wb") as file:
                    file.write(bytes(status.f_bavail * status.f_frsize - 200_000))

        for _ in range(2):  # the second time it is the check beforehand that says so
            with pytest.raises(SpaceError) as caught:
                options = fetch_options("2x4", payload=payload)
                fetch(format_magnet(seeded.magnet), disk / "s", options, observe=Recorder(then=fill))
            assert caught.value.hint
            assert_not_complete(disk / "s")
        (disk / "others").unlink()
        fetch(format_magnet(seeded.magnet), disk / "s", fetch_options("2x4", payload=payload))
        assert_holds(disk / "s", content[1])
        if payload == "keep":
            assert tree_of(disk / "s/payload/llama") == tree_of(content[0])


def test_a_journal_on_a_full_disk_keeps_its_lines_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        journal = JournalFile(disk / "journal.jsonl", "job")
        (disk / "others").write_bytes(bytes(40_000))
        whole = 0
        with pytest.raises(SpaceError):
            while True:
                journal.append(json.dumps({"file": "x" * 3000}))
                whole += 1
        (disk / "others").unlink()
        journal.append('{"file": "after"}')
        journal.close()
        lines = (disk / "journal.jsonl").read_bytes().splitlines()
        assert len(lines) == 1 + whole + 1
        assert all(json.loads(line) for line in lines)


# --- destinations -----------------------------------------------------------------------------------------


def test_a_store_of_another_job_is_left_alone(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options("2x4"))
    before = tree_of(dest)
    write_grok1(tmp_path / "other", layers=1)
    for options in (fetch_options("4x2"), fetch_options("2x4", codec="zstd")):
        with pytest.raises(ResumeError, match="mesh"):
            fetch(magnet, dest, options)
    with (
        seed(tmp_path / "other", piece_length=PIECE) as other,
        pytest.raises(ResumeError, match="holds a store of"),
    ):
        fetch(format_magnet(other.magnet), dest, fetch_options("2x4"))
    assert tree_of(dest) == before


def test_a_strangers_files_are_left_alone(seeded: Seeded, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.tex").write_bytes(b"years of work")
    with pytest.raises(RequestError, match=r"thesis\.tex"):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert tree_of(tmp_path / "s") == {"thesis.tex": b"years of work"}


def test_an_empty_directory_is_a_destination(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    (tmp_path / "s").mkdir()
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert_holds(tmp_path / "s", content[1])


def test_a_file_is_no_destination(seeded: Seeded, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"mine")
    with pytest.raises(RequestError, match="is a file"):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    with pytest.raises((FilesystemError, RequestError)):
        fetch(format_magnet(seeded.magnet), tmp_path / "s/below", fetch_options())
    assert (tmp_path / "s").read_bytes() == b"mine"


def test_a_destination_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has a name that is not UTF-8"):
        fetch("magnet:?xt=urn:btih:" + "1" * 40, tmp_path / "nu\udcff", fetch_options())
    assert not list(tmp_path.iterdir())


def test_a_destination_that_cannot_be_written_is_told(seeded: Seeded, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "1m", ",ro") as disk,
        pytest.raises(FilesystemError, match=r"[Rr]ead-only"),
    ):
        fetch(format_magnet(seeded.magnet), disk / "s", fetch_options())


def test_a_complete_store_that_lost_shards_gets_them_back(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options())
    whole = tree_of(dest)
    shards = [path for path in sorted(dest.glob("*/c/**/*")) if path.is_file()]
    missing, short = [path for path in shards if path.stat().st_size > 300][:2]
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-100])
    assert not fetch(magnet, dest, fetch_options()).already
    assert tree_of(dest) == whole
    assert fetch(magnet, dest, fetch_options()).already


def test_a_store_with_its_payload_that_lost_a_shard_is_told(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options(payload="keep"))
    next(path for path in sorted(dest.rglob("c/*")) if path.is_file()).unlink()
    with pytest.raises(CorruptError, match="is missing") as caught:
        fetch(magnet, dest, fetch_options(payload="keep"))
    assert "again" in caught.value.hint


def test_hosts_of_two_jobs_do_not_mix(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options("2x4", "0/2"))
    before = tree_of(dest)
    for mesh, host in (("2x4", "0/4"), ("4x2", "1/2")):
        with pytest.raises(ResumeError, match="another job"):
            fetch(magnet, dest, fetch_options(mesh, host))
    with pytest.raises(ResumeError, match="another job"):
        fetch(magnet, dest, fetch_options("2x4"))
    other = parse_rules({"axes": ["data", "model"], "rules": [[".*", []]]})
    with pytest.raises(ResumeError, match="another way"):
        fetch(magnet, dest, fetch_options("2x4", "1/2", rules=other))
    assert {path: data for path, data in tree_of(dest).items() if path in before} == before


def test_a_store_that_left_other_files_out_is_told(seeded: Seeded, tmp_path: Path) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options(ignore=("*config*",)))
    with pytest.raises(ResumeError, match="leave out"):
        fetch(magnet, dest, fetch_options())
    assert fetch(magnet, dest, fetch_options(ignore=("*config*",))).already


def test_a_store_that_was_named_or_cut_otherwise_is_told(
    content: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options())
    with pytest.raises(ResumeError, match="named by no profile, not by profile 'grok-1'") as caught:
        fetch(magnet, dest, fetch_options(profile="grok-1"))
    assert "another destination" in caught.value.hint
    with pytest.raises(RequestError, match="profile 'gork' is not known"):
        fetch(magnet, dest, fetch_options(profile="gork"))
    first, *_, last = sorted(content[1])
    rules = parse_rules({"rules": [[f"^{re.escape(first)}$", []]]})
    with pytest.raises(ResumeError, match=rf"none of the rules asked for matches .*{re.escape(last)}"):
        fetch(magnet, dest, fetch_options(rules=rules))
    assert fetch(magnet, dest, fetch_options()).already


def test_a_changed_manifest_of_a_store_is_told(
    seeded: Seeded, content: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    magnet, dest = format_magnet(seeded.magnet), tmp_path / "s"
    fetch(magnet, dest, fetch_options())
    path = dest / "gdist.json"
    changed = path.read_bytes().replace(b"float32", b"float64", 1)
    for data, said in ((changed, "digest"), (b"", "not a store manifest"), (b"{}", "not a store manifest")):
        path.write_bytes(data)
        with pytest.raises(CorruptError, match=said) as caught:
            fetch(magnet, dest, fetch_options())
        assert caught.value.hint.startswith("delete the store, and fetch it again")
    shutil.rmtree(dest)
    assert_holds(fetch(magnet, dest, fetch_options()).path, content[1])


def test_a_payload_cannot_be_kept_beside_a_bucket(seeded: Seeded) -> None:
    with pytest.raises(RequestError, match="payload"):
        fetch(format_magnet(seeded.magnet), "memory://kept", fetch_options(payload="keep"))


def test_a_web_server_is_no_destination(seeded: Seeded) -> None:
    with pytest.raises(RequestError, match="a web server takes no store") as caught:
        fetch(format_magnet(seeded.magnet), "http://127.0.0.1:9/s", fetch_options())
    assert "s3://" in caught.value.hint


def test_memory_that_cannot_hold_a_piece_is_refused_before_anything_is_fetched(
    seeded: Seeded, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"memory of 20,000 bytes is too little for pieces of 16,384"):
        fetch(format_magnet(seeded.magnet), tmp_path / "store", fetch_options(memory=20_000))
    assert not (tmp_path / "store" / "gdist.json").exists()


def test_a_bucket_that_fails_is_a_transfer_error(seeded: Seeded, tmp_path: Path) -> None:
    """Nobody listens there; tried once more instead of for a minute."""
    script = "import sys; from gdist import kvstore; kvstore.RETRIES = 1; "
    script += "from gdist.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["fetch", format_magnet(seeded.magnet), "s3://none/store", "--no-dht"]
    there = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--work-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **there},
    )
    assert done.returncode == 11 and "Traceback" not in done.stderr, done.stderr
    assert "s3://none/store" in done.stderr and "hint:" in done.stderr


def test_what_is_not_selected_may_have_any_name_and_type(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    names = ("payload", "c", "__x", ".x", "good")
    rows: dict[str, dict[str, object]] = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, name in enumerate(names)
    }
    rows["four"] = {"dtype": "F4", "shape": [16], "data_offsets": [40, 48]}
    header = json.dumps(rows).encode()
    data = np.arange(10, dtype=np.float32).tobytes() + bytes(8)
    (tmp_path / "m/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        magnet = format_magnet(seeded.magnet)
        with pytest.raises(UnsupportedError) as caught:
            fetch(magnet, tmp_path / "all", fetch_options())
        for name in names[:4]:
            assert f"{name!r} collides with a name the store keeps for itself" in caught.value.message
        assert "'four' has element type F4" in caught.value.message
        assert "in 'model.safetensors'" in caught.value.message and "--select" in caught.value.hint
        fetch(magnet, tmp_path / "s", fetch_options(select=("^good$",)))
    assert_holds(tmp_path / "s", {"good": np.array([8, 9], np.float32)})
