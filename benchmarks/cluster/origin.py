"""The outside world of a trial: a tracker and a seeder, until standard input ends.

python origin.py ADDRESS TORRENT DIRECTORY      tracker at port 6969, seeder at 6881, then "ready" on stdout
"""

from __future__ import annotations

import sys
from pathlib import Path

from gdist.sources.torrent import Seeder, TorrentOptions
from gdist.testing.swarm import Tracker

TRACKER_PORT, PEER_PORT = 6969, 6881


def main() -> None:
    """Serves until nobody holds the other end of standard input."""
    address, torrent, directory = sys.argv[1:]
    options = TorrentOptions(dht=False, pex=False, listen=f"{address}:{PEER_PORT}")
    with (
        Tracker(address=(address, TRACKER_PORT)),
        Seeder(Path(torrent).read_bytes(), Path(directory), options, check=False),
    ):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
