"""What it costs to repair a store: one flipped byte, one missing shard, and what comes back out of a store.

    python benchmarks/repair.py [--mb 512] [--piece-mb 4] [--mesh 1]

A checkpoint of so many MB is fetched from a seeder on loopback into a store. Then a byte is flipped in the
largest shard, and `gdist.repair` mends it from the seeder; then that shard is deleted and made again. Then
`gdist.export` writes the torrent's files, beside `cp` of the same bytes, and the store is served to a
leecher, beside libtorrent serving the files themselves. Prints pieces and bytes fetched, seconds, CPU seconds
per GB, and ratios. Goal: a flipped byte of a 2 GB store (`--mb 2000`) costs at most two pieces.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gdist.core.magnet import format_magnet
from gdist.core.mesh import parse_mesh
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.options import FetchOptions
from gdist.run.repair import repair
from gdist.run.seeding import open_held, serve
from gdist.run.verify import verify
from gdist.sources.torrent import TorrentOptions, make_torrent
from gdist.sources.torrent import magnet_of as magnet_with
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.swarm import LOCALHOST, LOOPBACK, seed

MB, GB = 10**6, 1e9
MOST_PIECES = 2
TENSOR_MB = 256


def timed(action: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, CPU seconds of this process, and what came of it."""
    start, before = time.monotonic(), os.times()
    result = action()
    after = os.times()
    cpu = after.user + after.system - before.user - before.system
    return time.monotonic() - start, cpu, result


def write_checkpoint(root: Path, megabytes: int) -> None:
    """Tensors of random bytes, `TENSOR_MB` each, in files of four."""
    rng = np.random.default_rng(0)
    count = max(megabytes // TENSOR_MB, 1)
    rows = megabytes * MB // count // 8192
    tensors = {f"layers.{n}.w": rng.integers(-128, 128, (rows, 8192), np.int8) for n in range(count)}
    write_safetensors(root, tensors, shards=max(count // 4, 1), index=count >= 8)


def flip(path: Path) -> None:
    """Turns one bit over, a third of the way in."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def main() -> int:
    """Runs it; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--piece-mb", type=int, default=4)
    parser.add_argument("--mesh", default="1")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.dir) as work:
        return run(Path(work), asked.mb, asked.piece_mb * 2**20, asked.mesh)


def run(work: Path, megabytes: int, piece_length: int, mesh: str) -> int:
    """All measurements, in one directory."""
    origin, store = work / "model", work / "store"
    write_checkpoint(origin, megabytes)
    torrent = make_torrent(origin, piece_length=piece_length)
    options = FetchOptions(mesh=parse_mesh(mesh), torrent=LOOPBACK)
    nbytes = sum(path.stat().st_size for path in origin.rglob("*") if path.is_file())
    print(f"{nbytes / GB:.2f} GB, pieces of {piece_length / 2**20:.0f} MiB, mesh {mesh}")
    with seed(origin, torrent=torrent, process=True) as seeded:
        fetch(format_magnet(seeded.magnet), store, options)
        kept = sum(path.stat().st_size for path in (store / "source").iterdir())
        print(f"source/ holds {kept:,} bytes: {kept / nbytes:.1e} of the payload")
        shard = max((p for p in store.rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
        peers = TorrentOptions(
            dht=False, pex=False, listen=f"{LOCALHOST}:0", stall_seconds=30, peers=((LOCALHOST, seeded.port),)
        )
        verifying, _, _ = timed(lambda: verify(store))
        fetched = []
        for what, damage in (("one flipped byte", flip), ("a missing shard", Path.unlink)):
            damage(shard)
            seconds, cpu, report = timed(lambda: repair(store, torrent=peers))
            pieces = sum(len(listed) for _, listed in report.fetched)  # type: ignore[attr-defined]
            fetched.append(pieces)
            print(
                f"{what}: {pieces} pieces, {report.nbytes:,} bytes fetched, mended {report.ok}, "  # type: ignore[attr-defined]
                f"{seconds:.2f} s ({cpu:.2f} CPU s), of which verify alone takes {verifying:.2f} s"
            )
    seconds, cpu, _ = timed(lambda: export(store, work / "out"))
    shutil.rmtree(work / "out")
    start = time.monotonic()
    subprocess.run(["cp", "-r", origin, work / "copy"], check=True)
    os.sync()
    copying = time.monotonic() - start
    shutil.rmtree(work / "copy")
    print(
        f"export: {nbytes / seconds / MB:.0f} MB/s, {cpu / nbytes * GB:.2f} CPU s/GB; "
        f"cp and sync {nbytes / copying / MB:.0f} MB/s: {copying / seconds:.2f} of cp"
    )
    served(work, origin, store, torrent, nbytes)
    good = fetched[0] <= MOST_PIECES
    print(f"goal: a flipped byte costs at most {MOST_PIECES} pieces: {'met' if good else 'missed'}")
    return 0 if good else 1


def served(work: Path, origin: Path, store: Path, torrent: bytes, nbytes: int) -> None:
    """How fast a store is served, beside libtorrent with the files."""
    rates = {}
    for who in ("libtorrent, the files", "gdist, the store"):
        target = work / "leech"
        if who.startswith("gdist"):
            with open_held([store]) as held, serve(held, LOOPBACK) as server:
                address = format_magnet(magnet_with(held.torrent, ((LOCALHOST, server.port),)))
                seconds, cpu = leech(address, target)
        else:
            with seed(origin, torrent=torrent) as seeded:
                seconds, cpu = leech(format_magnet(seeded.magnet), target)
        shutil.rmtree(target)
        rates[who] = nbytes / seconds / MB
        print(f"served by {who}: {rates[who]:.0f} MB/s, {cpu / nbytes * GB:.2f} CPU s/GB of the seeder")
    first, second = rates.values()
    print(f"ratio {second / first:.2f}")


def leech(magnet: str, target: Path) -> tuple[float, float]:
    """A leecher in a process of its own: seconds, and CPU seconds of this process meanwhile."""
    command = [sys.executable, "-m", "gdist", "fetch", magnet, str(target)]
    command += ["--no-dht", "--listen", f"{LOCALHOST}:0"]
    seconds, cpu, _ = timed(
        lambda: subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    )
    return seconds, cpu


if __name__ == "__main__":
    raise SystemExit(main())
