"""The torrent source: verified pieces from a BitTorrent swarm; the only importer of libtorrent.

    options     what can be asked, what is reported, libtorrent's settings for moving data
    metadata    info dictionaries read strictly; names checked
    join        a magnet's metadata; a torrent that wants nothing yet
    session     the libtorrent session and the thread that owns its alerts
    window      which pieces come first
    files       reading pieces from their files, giving disk space back
    hashing     SHA-1 and merkle checks of our own
    source      TorrentSource, which puts these together
    create      making torrents
    seed        serving them
    serve       serving what is rebuilt as it is asked for: peer_wire speaks, announce tells where

Libtorrent has its own threads; what the caller's thread must do is said at `TorrentSource`.
"""

from gdist.sources.torrent.create import (
    Version,
    check_named,
    choose_piece_length,
    differs,
    magnet_of,
    make_torrent,
)
from gdist.sources.torrent.options import TorrentOptions, TransferStats
from gdist.sources.torrent.seed import Seeder
from gdist.sources.torrent.serve import PieceServer
from gdist.sources.torrent.source import TorrentSource

__all__ = [
    "PieceServer",
    "Seeder",
    "TorrentOptions",
    "TorrentSource",
    "TransferStats",
    "Version",
    "check_named",
    "choose_piece_length",
    "differs",
    "magnet_of",
    "make_torrent",
]
