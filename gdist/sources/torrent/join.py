"""Joining a swarm: learning a magnet's metadata, and adding the torrent with nothing wanted.

These are two steps with one session. In the first, libtorrent may neither write nor ask for data, so that
nothing touches the disk before the names are checked; in the second the torrent is added anew with every
piece's priority 0 and the peers known from the first.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from gdist.core.magnet import Magnet, format_magnet, format_peer
from gdist.errors import CorruptError, NoPeersError, TransferError
from gdist.sources.torrent.flushed import FlushWatch
from gdist.sources.torrent.options import LOAD_LIMITS, TorrentOptions
from gdist.sources.torrent.session import Session

_RESUME_SECONDS = 30.0  # for libtorrent to put a torrent's state together
_CHECK_POLL_SECONDS = 0.5
_EMIT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Links:
    """Where a torrent is asked for: trackers, web seeds and peers, peers as addresses.

    `unknown` are peers, `host:port`, whose names have no address.
    """

    trackers: tuple[str, ...]
    web_seeds: tuple[str, ...]
    peers: tuple[tuple[str, int], ...]
    unknown: tuple[str, ...] = ()


def gather_links(named: Magnet | lt.add_torrent_params, options: TorrentOptions) -> Links:
    """The links a magnet or a .torrent file names, then those of the options, each once.

    Raises:
        CorruptError: a URL in the .torrent file is not text.
    """
    if not options.outside:
        return Links((), (), ())
    if isinstance(named, Magnet):
        trackers, web_seeds, peers = named.trackers, named.web_seeds, named.peers
    else:
        try:
            trackers, web_seeds, peers = tuple(named.trackers), tuple(named.url_seeds), ()
        except UnicodeDecodeError as error:
            raise CorruptError("the torrent names a tracker or web seed whose URL is not text") from error
    found = {peer: addresses_of(*peer) for peer in (*peers, *options.peers)}
    return Links(
        tuple(dict.fromkeys((*trackers, *options.trackers))),
        tuple(dict.fromkeys((*web_seeds, *options.web_seeds))),
        tuple(dict.fromkeys(address for addresses in found.values() for address in addresses)),
        tuple(format_peer(*peer) for peer, addresses in found.items() if not addresses),
    )


def learn_metadata(
    session: Session, magnet: Magnet, links: Links, options: TorrentOptions, emit: Callable[[], None]
) -> tuple[bytes, tuple[tuple[str, int], ...]]:
    """The info dictionary of a magnet, from its peers, as a bare .torrent; and the peers met meanwhile.

    Raises:
        NoPeersError: not within `options.metadata_timeout_seconds`.
    """
    params = lt.parse_magnet_uri(format_magnet(Magnet(magnet.info_hash)))
    params.save_path = "/nonexistent"  # never written: no data is asked for
    _link(params, links, options)
    params.flags |= lt.torrent_flags.upload_mode | lt.torrent_flags.default_dont_download
    handle = session.add(params)
    started = time.monotonic()
    while not session.wait(lambda swarm: swarm.metadata, _EMIT_SECONDS):
        emit()
        waited = time.monotonic() - started
        if waited > options.metadata_timeout_seconds:
            with session.changed:
                evidence = session.swarm.evidence()
                refused = session.swarm.metadata_error
            raise NoPeersError(
                f"no metadata of {magnet.info_hash.hex} within {waited:.0f} seconds ({evidence})"
                + (f"; metadata was refused: {refused}" if refused else ""),
                hint=f"metadata may have up to {LOAD_LIMITS['max_buffer_size']} bytes and "
                f"{LOAD_LIMITS['max_pieces']} pieces"
                if refused
                else "give more trackers or peers, or a .torrent file",
            )
    state = saved_state(session, handle)
    met = _decode_peers(state, b"peers", 4) + _decode_peers(state, b"peers6", 16)
    info = handle.torrent_file()
    assert info is not None, "metadata was received"
    torrent = b"d4:info" + bytes(info.info_section()) + b"e"
    session.remove(handle)
    return torrent, met


def start(
    session: Session,
    params: lt.add_torrent_params,
    links: Links,
    options: TorrentOptions,
    directory: Path,
    have: Iterable[int] | None,
    emit: Callable[[], None],
) -> tuple[lt.torrent_handle, tuple[int, ...]]:
    """Adds a loaded torrent that wants nothing; returns it and the pieces it has.

    `have` is trusted; None hashes what lies below `directory`, however long that takes.
    """
    assert params.ti is not None, "a loaded torrent has its info"
    count = params.ti.num_pieces()
    params.save_path = str(directory)
    _link(params, links, options)
    params.piece_priorities = [0] * count
    if have is not None:
        bits = [False] * count
        for piece in have:
            bits[piece] = True
        params.have_pieces = bits
        params.flags |= lt.torrent_flags.no_verify_files
    with session.changed:
        session.swarm.checked = False
    # On the torrent: those of the session do not bind peers of the own network.
    params.download_limit, params.upload_limit = options.download_rate, options.upload_rate
    handle = session.add(params)
    while not session.wait(lambda swarm: swarm.checked, _CHECK_POLL_SECONDS):
        emit()
    had = tuple(piece for piece, bit in enumerate(handle.status(_PIECES).pieces) if bit)
    with session.changed:
        # From here on: what checking found before is in `had`.
        session.swarm.flush = FlushWatch(handle, fence_only=params.ti.info_hashes().has_v2())
    return handle, had


def saved_state(session: Session, handle: lt.torrent_handle) -> dict[bytes, Any]:
    """The torrent's resume data, as libtorrent would save it; safe from any thread.

    Raises:
        TransferError: libtorrent did not answer in time.
    """
    with session.changed:
        before = session.swarm.resume
    handle.save_resume_data()
    if not session.wait(lambda swarm: swarm.resume is not before, _RESUME_SECONDS):
        raise TransferError(f"no state of the torrent within {_RESUME_SECONDS:.0f} seconds")
    with session.changed:
        state = session.swarm.resume
    assert state is not None
    return state


_PIECES = lt.status_flags_t.query_pieces


def _link(params: lt.add_torrent_params, links: Links, options: TorrentOptions) -> None:
    """Sets trackers (each in its own tier, all are asked), web seeds, peers and how others may be found."""
    flags = lt.torrent_flags
    params.trackers = list(links.trackers)
    params.tracker_tiers = list(range(len(links.trackers)))
    params.url_seeds = list(links.web_seeds)
    params.peers = list(links.peers)
    params.flags = (
        flags.update_subscribe
        | (0 if options.dht else flags.disable_dht)
        | (0 if options.lsd else flags.disable_lsd)
        | (0 if options.pex else flags.disable_pex)
    )


def _decode_peers(state: Mapping[bytes, Any], key: bytes, nbytes: int) -> tuple[tuple[str, int], ...]:
    """Addresses in compact form (BEP 23): `nbytes` of address, then two of port."""
    row = state.get(key, b"")
    return tuple(
        (
            str(ipaddress.ip_address(row[i : i + nbytes])),
            int.from_bytes(row[i + nbytes : i + nbytes + 2], "big"),
        )
        for i in range(0, len(row), nbytes + 2)
    )


def addresses_of(host: str, port: int) -> tuple[tuple[str, int], ...]:
    """The addresses of a peer given by name or address; none when the name is unknown."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return ()  # a peer that cannot be resolved is one that does not answer
    return tuple(dict.fromkeys((str(address[0]), port) for *_, address in found))
