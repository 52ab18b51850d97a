"""What a user types names one torrent, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from gdist import releases
from gdist.core.magnet import format_magnet, parse_magnet
from gdist.errors import CorruptError, RequestError, TransferError
from gdist.kvstore import kvstore_spec, shared_context
from gdist.run import resolve as module
from gdist.run.destination import default_dest
from gdist.run.resolve import resolve
from gdist.sources.torrent import magnet_of, make_torrent
from gdist.testing.buckets import s3_bucket
from gdist.testing.stores import write_store
from gdist.testing.swarm import LOCALHOST, WebSeed

HASH = "ab" * 20


@pytest.fixture
def torrent(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a").write_bytes(bytes(1000))
    path = tmp_path / "model.torrent"
    path.write_bytes(make_torrent(tmp_path / "model", trackers=["http://127.0.0.1:1/announce"]))
    return path


@pytest.mark.parametrize(
    "text",
    [
        HASH,
        HASH.upper(),
        f"  {HASH}\n",
        f"magnet:?xt=urn:btih:{HASH}",
        f"MAGNET:?xt=urn:btih:{HASH.upper()}",
        f"magnet%3A%3Fxt%3Durn%3Abtih%3A{HASH}",
    ],
)
def test_hashes_and_magnets_name_a_torrent(text: str) -> None:
    found = resolve(text)
    assert found.info_hash.v1_hex == HASH
    assert (found.manifest, found.label) == (None, HASH)


def test_a_v2_hash_names_a_torrent() -> None:
    assert resolve("cd" * 32).info_hash.v2_hex == "cd" * 32


def test_a_known_release_comes_with_its_manifest() -> None:
    for name in releases.release_names():
        manifest = releases.known_release(name)
        assert manifest is not None
        if not manifest.magnet:
            with pytest.raises(RequestError, match="no torrent") as caught:
                resolve(name)
            assert f"--profile {manifest.profile}" in caught.value.hint
            continue
        found = resolve(name)
        assert found.manifest and found.label == name
        assert resolve(found.info_hash.hex).manifest == found.manifest, "a bare hash finds it too"
        assert resolve(format_magnet(found.magnet)).manifest == found.manifest
        assert default_dest(found) == name


def test_a_torrent_file_is_found_by_path_and_url(torrent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = magnet_of(torrent.read_bytes())
    monkeypatch.chdir(torrent.parent)
    with WebSeed(torrent.parent) as server:
        for text in (str(torrent), "model.torrent", torrent.as_uri(), f"{server.url}model.torrent"):
            found = resolve(text)
            assert found.spec == torrent.read_bytes() and found.magnet == expected
            assert found.label == "model"


def test_a_manifest_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        '{"format": 1, "name": "tiny", "magnet": "magnet:?xt=urn:btih:'
        + HASH
        + '", "files": [{"path": "a", "nbytes": 8,'
        ' "arrays": [{"name": "w", "shape": [2], "dtype": "float32", "offset": 0}]}]}'
    )
    found = resolve(str(tmp_path / "m.json"))
    assert found.manifest and (found.label, found.info_hash.v1_hex) == ("tiny", HASH)
    (tmp_path / "m.json").write_text('{"format": 1}')
    with pytest.raises(RequestError, match="manifest"):
        resolve(str(tmp_path / "m.json"))


def test_what_was_repaired_is_told() -> None:
    text = f"magnet:?xt=urn:btih:{HASH}&amp;dn=x"
    assert resolve(text).notes == parse_magnet(text)[1] != ()


@pytest.mark.parametrize(
    "text", ["", "x", HASH[:-1], "magnet:", "magnet:?dn=only", "/absent/m.torrent", "a" * 5000]
)
def test_what_is_none_of_these_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(text)
    assert caught.value.hint and len(caught.value.message) < 400


def test_files_that_are_no_torrents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.torrent"
    for content, kind in ((b"<html>", RequestError), (b"", RequestError), (b"d4:spam3:abce", CorruptError)):
        path.write_bytes(content)
        with pytest.raises(kind, match=r"x\.torrent'"):
            resolve(str(path))
    with pytest.raises(RequestError, match="is a directory"):
        resolve(str(tmp_path))
    monkeypatch.setattr(module, "MAX_TORRENT_BYTES", 5)
    with pytest.raises(RequestError, match="larger than 5 bytes"):
        resolve(str(path))


def test_urls_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with WebSeed(tmp_path) as server, pytest.raises(RequestError, match="cannot read"):
        resolve(f"{server.url}absent.torrent")
    with pytest.raises(RequestError, match="cannot read"):
        resolve((tmp_path / "absent.torrent").as_uri())
    with pytest.raises(TransferError, match="cannot read"):
        resolve(f"http://{LOCALHOST}:1/x.torrent")
    with pytest.raises((RequestError, TransferError), match="cannot read"):
        resolve("gopher://x/y.torrent")


def test_a_torrent_in_a_bucket_is_read_as_stores_are(torrent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = torrent.read_bytes()
    with s3_bucket() as bucket:
        files = ts.KvStore.open(kvstore_spec(bucket), context=shared_context()).result()
        files.write("below/t.torrent", content).result()
        files.write("empty", b"").result()
        write_store(f"{bucket}/store", {"a": np.zeros(4)})
        assert resolve(f"{bucket}/below/t.torrent").spec == content
        for text, what in {
            f"{bucket}/empty": "is no .torrent file",
            f"{bucket}/none": "is not a store",
            bucket: "is not a store",
            f"{bucket}/store/": "is a store already",
            "s3://none/t.torrent": "bucket does not exist",
        }.items():
            with pytest.raises(RequestError, match=what) as caught:
                resolve(text)
            assert caught.value.hint
        monkeypatch.setattr(module, "MAX_TORRENT_BYTES", len(content))
        assert resolve(f"{bucket}/below/t.torrent").spec == content
        monkeypatch.setattr(module, "MAX_TORRENT_BYTES", len(content) - 1)
        with pytest.raises(RequestError, match="too large"):
            resolve(f"{bucket}/below/t.torrent")


@pytest.mark.parametrize(
    ("name", "dest"),
    [("a b/c", "a-b-c"), ("../..", HASH), ("...", HASH), ("x" * 300, "x" * 100), ("Ä.1", "1"), ("-rf", "rf")],
)
def test_names_of_destinations_are_safe(name: str, dest: str) -> None:
    assert default_dest(resolve(f"magnet:?xt=urn:btih:{HASH}&dn={name}")) == dest
