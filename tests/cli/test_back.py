"""The way back from a store, as people go it: export, repair, seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gdist.core.magnet import format_magnet
from gdist.run.fetch import fetch
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import fetch_options, tree_of
from gdist.testing.stores import write_store
from gdist.testing.swarm import WebSeed, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 15
LOOPBACK = ("--no-dht", "--listen", "127.0.0.1:0")
GDIST = (sys.executable, "-W", "error", "-m", "gdist")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def last(self) -> dict[str, object]:
        line: dict[str, object] = json.loads(self.out.splitlines()[-1])
        return line


def gdist(*arguments: object) -> Done:
    """One run of the program; whatever happens, it shows no traceback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    done = subprocess.run(
        [*GDIST, *map(str, arguments)], capture_output=True, text=True, env=kept, timeout=180
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("from") / "tiny"
    write_grok1(root, layers=1)
    (root / "README.md").write_text("hello\n")
    return root


@pytest.fixture
def store(origin: Path, tmp_path: Path) -> Path:
    with seed(origin, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "store", fetch_options("2x2"))
    return tmp_path / "store"


def test_export_gives_the_files_back(store: Path, origin: Path, tmp_path: Path) -> None:
    done = gdist("export", store, tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n"), done.err
    assert tree_of(tmp_path / "out/tiny") == tree_of(origin)
    again = gdist("export", store, tmp_path / "out", "--json")
    assert again.code == 2 and "is not empty" in str(again.last["message"])
    done = gdist("export", store, tmp_path / "hf", "--to", "safetensors", "--file-size", "100kB", "--json")
    assert done.code == 0 and done.last["event"] == "result", done.out
    assert "model.safetensors.index.json" in done.last["files"]  # type: ignore[operator]
    assert (tmp_path / "hf/README.md").read_text() == "hello\n"


def test_verify_of_a_remote_store_hints_at_what_can_be_done(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.ones((4, 4), np.float32)})
    (tmp_path / "s/w/zarr.json").write_text("{}")
    with WebSeed(tmp_path) as server:
        bad = gdist("verify", f"{server.url.rstrip('/')}/s")
    assert bad.code == 12 and "delete the damaged files" in bad.err and "--repair" not in bad.err, bad.err


def test_verify_repairs(store: Path, origin: Path, tmp_path: Path) -> None:
    before = tree_of(store)
    shard = max((p for p in store.rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    name = str(shard.relative_to(store))
    bad = gdist("verify", store)
    assert bad.code == 12 and "gdist verify --repair" in bad.err
    assert gdist("verify", store, "--offline").code == 2
    left = gdist("verify", store, "--repair", "--offline")
    assert left.code == 12 and "could not be mended" in left.err and name in left.err
    done = gdist("verify", store, "--repair", "--offline", "--from", origin)
    assert (done.code, done.out) == (0, f"{store}\n"), done.err
    assert f"mended {name}, chunk" in done.err and f"1 piece from {origin}" in done.err
    assert tree_of(store) == before
    again = gdist("verify", store, "--repair", "--json")
    assert again.code == 0 and again.last["ok"] and not again.last["mended"]


@pytest.mark.parametrize("keep", [False, True])
def test_what_cannot_be_mended_is_made_again(keep: bool, origin: Path, tmp_path: Path) -> None:
    store, kept = tmp_path / "bf16", ("--payload", "keep") if keep else ()
    with seed(origin, piece_length=1 << 14) as seeded:
        asked = ("fetch", format_magnet(seeded.magnet), store, "--dtype", "bfloat16", *kept, *LOOPBACK)
        assert gdist(*asked, "--quiet").code == 0
        before = tree_of(store)
        shard = max((p for p in store.rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(shard.read_bytes())
        data[100] ^= 1
        shard.write_bytes(data)
        way = f"delete {'the store' if keep else 'their damaged shards'}, and run the same gdist fetch"
        for words in ((), ("--repair", "--offline"), ("--repair", "--from", origin, *LOOPBACK)):
            bad = gdist("verify", store, *words)
            assert bad.code == 12 and "(--dtype) cannot be mended" in bad.err and way in bad.err, bad.err
            assert "verify --repair fetches" not in bad.err and "give --from" not in bad.err
        shard.unlink()
        if keep:
            refused = gdist(*asked)
            assert "--repair" not in refused.err and "delete the destination" in refused.err, refused.err
            return
        assert gdist(*asked, "--quiet").code == 0
        assert tree_of(store).keys() == before.keys() and gdist("verify", store).code == 0
        (store / "zarr.json").unlink()
        shard.write_bytes(data)
        both = gdist("verify", store)
        assert "gdist verify --repair fetches" in both.err and way in both.err, both.err


def test_seed_serves_a_store(store: Path, origin: Path, tmp_path: Path) -> None:
    command = [*GDIST, "seed", str(store), "--advertise", "127.0.0.1", *LOOPBACK]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept)
    try:
        assert process.stdout is not None and process.stderr is not None
        magnet = process.stdout.readline().strip()
        assert magnet.startswith("magnet:?") and "x.pe=127.0.0.1" in magnet
        assert "rebuilt as asked for" in process.stderr.readline()
        done = gdist("fetch", magnet, tmp_path / "again", "--payload", "keep", *LOOPBACK)
        assert done.code == 0, done.err
    finally:
        process.terminate()
        process.communicate(timeout=60)
    files = tree_of(tmp_path / "again/payload/tiny")
    assert files == tree_of(origin)


def test_seed_says_what_is_missing(origin: Path, tmp_path: Path) -> None:
    with seed(origin, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "store", fetch_options(select=("router",)))
    done = gdist("seed", tmp_path / "store", "--no-dht", "--listen", "127.0.0.1:0")
    assert done.code == 2 and "cannot be seeded" in done.err and "--select" in done.err
    alone = gdist("seed", origin / "README.md")
    assert alone.code == 2 and "is a file" in alone.err
