"""A libtorrent client with the library's default settings, to compare with; seeds until it is killed.

    python stock.py ADDRESS TORRENT DIRECTORY DONE PEER...      makes the file DONE when it has everything

Only discovery is off (DHT, local peers, port mapping): the peers are given.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import libtorrent as lt

PEER_PORT = 6881
DISCOVERY = ("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp")


def main() -> None:
    """Downloads, tells, and goes on seeding."""
    address, torrent, directory, done, *peers = sys.argv[1:]
    settings: dict[str, object] = dict.fromkeys(DISCOVERY, False)
    session = lt.session({**settings, "listen_interfaces": f"{address}:{PEER_PORT}"})
    params = lt.load_torrent_buffer(Path(torrent).read_bytes())
    params.save_path = directory
    params.trackers = []
    handle = session.add_torrent(params)
    for peer in peers:
        handle.connect_peer((peer, PEER_PORT))
    while not handle.status().is_seeding:
        time.sleep(0.05)
    Path(done).touch()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
