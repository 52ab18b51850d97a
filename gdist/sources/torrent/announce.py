"""Telling trackers and the DHT where a torrent is served, by a session that serves nothing itself.

libtorrent cannot be given another disk from Python, so what is rebuilt as it is asked for is served by a peer
of ours (serve.py). Announcing is libtorrent's: a session without a disk, that seems to have all of the
torrent, names that peer's port, and lets no peer in or out.
"""

from __future__ import annotations

import libtorrent as lt

from gdist.sources.torrent.join import gather_links
from gdist.sources.torrent.metadata import load_torrent
from gdist.sources.torrent.options import TorrentOptions, session_settings

_V4 = ("0.0.0.0", "255.255.255.255")
_V6 = ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
_BLOCKED = 1


class Announcer:
    """Announces a port for a torrent from `open` to `close`."""

    def __init__(self, torrent: bytes, options: TorrentOptions, port: int):
        params = load_torrent(torrent)
        assert params.ti is not None, "a loaded torrent has its info"
        links = gather_links(params, options)
        settings = session_settings(options) | {
            "announce_port": port,
            "listen_interfaces": _any_port(options.listen),
            "apply_ip_filter_to_trackers": False,
            "enable_incoming_tcp": False,
            "enable_outgoing_tcp": False,
            "enable_incoming_utp": False,
            "enable_lsd": False,  # it would name this session's own port
            "alert_mask": 0,
        }
        session_params = lt.session_params()
        session_params.settings = settings  # type: ignore[assignment]  # the stub lists every key as a TypedDict
        session_params.disk_io_constructor = "disabled_disk_io_constructor"
        self._session = lt.session(session_params)
        nobody = lt.ip_filter()
        for first, last in (_V4, _V6):
            nobody.add_rule(first, last, _BLOCKED)
        self._session.set_ip_filter(nobody)
        flags = lt.torrent_flags
        params.save_path = "/nonexistent"
        params.have_pieces = [True] * params.ti.num_pieces()  # seed mode would look for the files
        params.trackers = list(links.trackers)
        params.tracker_tiers = list(range(len(links.trackers)))
        params.url_seeds = []
        params.flags = (
            flags.no_verify_files
            | flags.apply_ip_filter
            | flags.disable_lsd
            | flags.disable_pex
            | (0 if options.dht else flags.disable_dht)
        )
        self._session.add_torrent(params)

    def close(self) -> None:
        """Says goodbye to trackers, for at most a second."""
        session = getattr(self, "_session", None)
        if session is not None:
            self._session.pause()
            del self._session


def _any_port(listen: str) -> str:
    """The same addresses, each with a port of the system's choosing: the named one is the serving peer's."""
    return ",".join(f"{one.rpartition(':')[0]}:0" for one in listen.split(","))
