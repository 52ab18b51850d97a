"""One trial: a rig, a release that its world serves, and an empty directory for each host."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from origin import PEER_PORT, TRACKER_PORT

from gdist.core.magnet import format_magnet
from gdist.sources.torrent import magnet_of, make_torrent
from gdist.testing.checkpoints import write_grok1
from gdist.testing.netns import WORLD, Rig

HERE = Path(__file__).parent
POLL_SECONDS = 0.02
TIMEOUT_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Release:
    """What is fetched: the directory, its .torrent, the magnet with the seeder's address, its bytes."""

    directory: Path
    torrent: Path
    magnet: str
    nbytes: int


@dataclass
class Trial:
    """What a tool is given: it fills `scratch/hI` for each host, and says when each was done.

    `mode` is "shards" (each host needs its part) or "copies" (each needs all). With `gateways` only these
    hosts reach the world. `kill` dies when half the union is inside and is started again.
    """

    rig: Rig
    release: Release
    scratch: Path
    mode: str
    gateways: tuple[int, ...] | None = None
    kill: int | None = None
    notes: dict[str, object] = field(default_factory=dict)

    def directory(self, host: int) -> Path:
        """The disk of a host."""
        path = self.scratch / f"h{host}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def wait(self, done: Callable[[int], bool], hosts: Collection[int], start: float) -> dict[int, float]:
        """Seconds from `start` at which each host was seen to be done."""
        seconds: dict[int, float] = {}
        while len(seconds) < len(hosts):
            now = time.monotonic() - start
            seconds |= {host: now for host in hosts if host not in seconds and done(host)}
            assert now < TIMEOUT_SECONDS, f"only hosts {sorted(seconds)} were done after {now:.0f} s"
            time.sleep(POLL_SECONDS)
        return seconds


def build_release(directory: Path, nbytes: int, address: str, piece_length: int | None) -> Release:
    """A Grok-1 of about this size, and a torrent of it with a tracker and a seeder at `address`."""
    scale = max(1, round((nbytes / 0.9e6) ** 0.5))
    write_grok1(directory, layers=4, emb=64 * scale, ffn=128 * scale, kv=16 * scale, vocab=256 * scale)
    torrent = make_torrent(
        directory, piece_length=piece_length, trackers=(f"http://{address}:{TRACKER_PORT}/announce",)
    )
    path = directory.with_name(f"{directory.name}.torrent")
    path.write_bytes(torrent)
    bare = make_torrent(directory, piece_length=piece_length)  # the same torrent, without the tracker
    magnet = format_magnet(magnet_of(bare, ((address, PEER_PORT),)))
    total = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return Release(directory, path, magnet, total)


@contextmanager
def origin(rig: Rig, release: Release) -> Iterator[None]:
    """The world's tracker and seeder, fresh, so that nobody of an earlier trial is known."""
    words = [
        sys.executable,
        HERE / "origin.py",
        rig.address(WORLD),
        release.torrent,
        release.directory.parent,
    ]
    process = rig.popen(WORLD, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n", "the seeder does not start"
    try:
        yield
    finally:
        process.kill()
        process.wait()
