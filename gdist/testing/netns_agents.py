"""The hosts of one job in a cluster of network namespaces: real command lines over shaped links.

with Rig(4, wan=6e6, lan=6e6) as rig, world_seed(rig, content, scratch) as magnet:
    with RigAgents(rig, magnet, scratch, mesh="2x4") as agents:
        agents.start_all()
        assert agents.wait_all() == [0, 0, 0, 0]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gdist.sources.torrent import make_torrent
from gdist.testing.agents import Agents
from gdist.testing.netns import WORLD, Rig
from gdist.testing.traffic import Traffic

COORDINATOR_PORT, PEER_PORT = 7611, 6881


class RigAgents(Agents):
    """`gdist cluster fetch` in every host of a rig; `options` are the same for all."""

    def __init__(
        self, rig: Rig, magnet: str, directory: Path, *options: str, mesh: str = "8", secret: str = "tested"
    ):
        super().__init__(magnet, directory, rig.hosts, *options, mesh=mesh, secret=secret)
        self.rig = rig
        self._before = rig.traffic()

    def command(self, index: int, *options: str) -> list[str]:
        """The line of a host; what is given here comes after what is given for all, and wins."""
        return [
            *(sys.executable, "-m", "gdist", "cluster", "fetch", self._source, str(self.dest(index))),
            *("--host", f"{index}/{self.count}"),
            *("--coordinator", f"{self.rig.address(0)}:{COORDINATOR_PORT}"),
            *("--no-dht", "--json", *self._options, *options),
        ]

    def start(self, index: int, *options: str) -> subprocess.Popen[str]:
        """Starts the line on one host, with a cache of its own; it writes to a file beside the store."""
        with open(self._directory / f"host{index}.{len(self._started)}.jsonl", "w") as out:
            process = self.rig.popen(
                index,
                self.command(index, *options),
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "XDG_CACHE_HOME": str(self._directory / f"cache{index}")},
            )
        process.args = out.name  # where to look
        self.processes[index] = process
        self._started.append(process)
        return process

    def traffic(self) -> Traffic:
        """What went over the links since the agents were made."""
        return self.rig.traffic() - self._before


@contextmanager
def world_seed(rig: Rig, content: Path, scratch: Path, *, piece_length: int | None = None) -> Iterator[str]:
    """`gdist seed` of a directory in the world; gives the magnet, with its address in it."""
    torrent = scratch / "seed.torrent"
    torrent.write_bytes(make_torrent(content, piece_length=piece_length))
    address = rig.address(WORLD)
    words = [sys.executable, "-m", "gdist", "seed", str(torrent), str(content), "--no-check", "--no-dht"]
    words += ["--quiet", "--listen", f"{address}:{PEER_PORT}", "--advertise", address]
    seeder = rig.popen(WORLD, words, stdout=subprocess.PIPE, text=True)
    try:
        assert seeder.stdout
        magnet = seeder.stdout.readline().strip()
        assert magnet, f"the seeder ended with {seeder.wait(10)}"
        yield magnet
    finally:
        seeder.kill()
        seeder.wait()
