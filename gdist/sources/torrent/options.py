"""What can be asked of the torrent source, what it reports, and libtorrent's settings for moving data.

libtorrent's defaults suit a desktop: 8 upload slots, 500 outstanding requests, one connection per address.
These suit a host that has one job. CPU seconds per GiB of a leecher, v1, 4 MiB pieces, loopback, 2 cores with
SHA instructions, files in memory: pread back end 1.45, posix 1.9 to 2.1, mmap 1.9; reading every piece back
and hashing it once more adds 0.25. Encryption and uTP each cost about twice the whole.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt

MIB = 1 << 20

# The cheapest back end, and the only one that hashes on several cores. It announces a piece before the
# file holds it, so whoever reads the file has to check what was read (see flushed.py).
DISK_BACK_END = "pread_disk_io_constructor"

ALERTS = (
    lt.alert_category.error
    | lt.alert_category.status
    | lt.alert_category.storage
    | lt.alert_category.tracker
    | lt.alert_category.piece_progress
    | lt.alert_category.connect
    | lt.alert_category.peer
)
ALERT_QUEUE_SIZE = 200_000  # all pieces of a large torrent may be found on disk at once

# Limits on metadata. libtorrent stops at 2 Mi pieces and 30 MiB; a v1 torrent of 8 TB in 1 MiB pieces has
# 8 Mi pieces and 160 MiB of hashes.
MAX_METADATA_BYTES = 256 * MIB
MAX_PIECES = 1 << 23
MAX_DECODE_TOKENS = 20_000_000
MAX_DECODE_DEPTH = 100
LOAD_LIMITS = {
    "max_buffer_size": MAX_METADATA_BYTES,
    "max_pieces": MAX_PIECES,
    "max_decode_tokens": MAX_DECODE_TOKENS,
    "max_decode_depth": MAX_DECODE_DEPTH,
}


MOST_CONNECTIONS, LEAST_CONNECTIONS = 2000, 50
RECEIVE_BYTES = 2 * MIB  # which the kernel doubles: 20 to 40 MB/s from each peer that is 0.1 s away
RMEM_MAX = Path("/proc/sys/net/core/rmem_max")
OTHER_FILES = 600  # 256 shards, 200 files of the payload, and what Python and libtorrent hold beside


@dataclass(frozen=True, slots=True)
class TorrentOptions:
    """How to take part in the swarm.

    `trackers`, `peers` and `web_seeds` are added to those the magnet or torrent names; hosts of peers may
    be names. `listen` is libtorrent's list of `address:port`, port 0 for any. Rates are bytes a second, 0 for
    no limit. `stall_seconds` is how long wanted pieces may bring nothing. With `upload` off nobody is ever
    unchoked: needed where pieces are released, because their bytes are gone from disk. With `outside` off the
    torrent is only read: nobody is asked, and nobody can ask.
    """

    trackers: tuple[str, ...] = ()
    peers: tuple[tuple[str, int], ...] = ()
    web_seeds: tuple[str, ...] = ()
    dht: bool = True
    lsd: bool = False
    pex: bool = True
    listen: str = "0.0.0.0:0,[::]:0"
    metadata_timeout_seconds: float = 300
    stall_seconds: float = 300
    download_rate: int = 0
    upload_rate: int = 0
    upload: bool = True
    outside: bool = True


@dataclass(frozen=True, slots=True)
class TransferStats:
    """Where the transfer stands; rates are payload bytes a second, totals are bytes since `open`.

    `verified` counts the bytes of pieces that are had, `waste` those that failed their hash or came twice,
    `disk_queue` those that wait to be written. `state` is libtorrent's word for what the torrent does.
    """

    verified: int = 0
    download_rate: int = 0
    upload_rate: int = 0
    downloaded: int = 0
    uploaded: int = 0
    peers: int = 0
    seeds: int = 0
    dht_nodes: int = 0
    disk_queue: int = 0
    waste: int = 0
    state: str = "new"


def _connections() -> int:
    """How many peers at once: what the process may open, less what shards, payload and sockets need."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - OTHER_FILES
    return max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, most))


def receive_bytes() -> int:
    """What is asked of the kernel for each connection's receive buffer; 0: nothing, the kernel decides.

    Left alone a buffer grows to 32 MiB on newer kernels, and libtorrent's own with it: memory would depend on
    how busy the cores are. What is asked for is cut to `rmem_max`, on older kernels a fifth of a megabyte,
    which would slow distant peers down; there a buffer left alone ends at 6 MiB.
    """
    try:
        most = int(RMEM_MAX.read_text())
    except (OSError, ValueError):  # not Linux
        return 0
    return RECEIVE_BYTES if most >= RECEIVE_BYTES else 0


def session_settings(options: TorrentOptions) -> dict[str, object]:
    """Gives libtorrent's settings pack for one torrent and one job."""
    return {
        "alert_mask": ALERTS,
        "alert_queue_size": ALERT_QUEUE_SIZE,
        "listen_interfaces": options.listen if options.outside else "",
        "enable_dht": options.dht and options.outside,
        "enable_lsd": options.lsd and options.outside,
        "enable_upnp": False,  # a cluster's router is not ours to configure
        "enable_natpmp": False,
        # Whoever listens for uTP listens for TCP too, so calling out by TCP loses nobody and costs half the
        # CPU; a peer behind a router may still come in by uTP, and then TCP is not slowed down for it.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": True,
        "mixed_mode_algorithm": 0,  # prefer_tcp
        # Payload is public and hashed: encryption would protect nothing and costs twice the CPU. Peers that
        # insist on it may come in.
        "out_enc_policy": 2,  # pe_disabled
        "in_enc_policy": 1,  # pe_enabled
        "allowed_enc_level": 3,  # plaintext or RC4 after an encrypted handshake
        "prefer_rc4": False,
        "allow_multiple_connections_per_ip": True,  # hosts behind one address, sessions on one host
        "connections_limit": _connections(),
        "connection_speed": 200,
        "torrent_connect_boost": 200,
        "min_reconnect_time": 5,
        "peer_connect_timeout": 10,
        "listen_queue_size": 200,
        "unchoke_slots_limit": -1 if options.upload else 0,
        "num_optimistic_unchoke_slots": 0,
        "allowed_fast_set_size": 5 if options.upload else 0,  # these pieces are served to choked peers
        "seed_choking_algorithm": 1,  # fastest_upload
        "announce_to_all_trackers": True,
        "announce_to_all_tiers": True,
        "ssrf_mitigation": False,  # trackers and web seeds on the own network are usual in a cluster
        "tracker_completion_timeout": 20,
        "stop_tracker_timeout": 1,
        "max_out_request_queue": 500,
        "max_allowed_in_request_queue": 8000,
        "request_queue_time": 5,
        "recv_socket_buffer_size": receive_bytes(),
        "send_buffer_watermark": 4 * MIB,
        "send_buffer_low_watermark": MIB,
        "send_buffer_watermark_factor": 150,
        "suggest_mode": 0,
        "auto_sequential": False,  # would follow the payload's order, not the plan's
        "piece_extent_affinity": False,  # likewise
        "prioritize_partial_pieces": True,  # whole pieces are what is of use here, and fewer are in flight
        "strict_end_game_mode": True,
        # A torrent that wants nothing yet looks finished, and would hang up on every seed it knows.
        "close_redundant_connections": False,
        "max_queued_disk_bytes": 16 * MIB,
        "aio_threads": 4,
        "hashing_threads": 2,
        "file_pool_size": 200,
        "low_prio_disk": False,
        "tick_interval": 50,  # ms; how long a download stays slow after its limit is lifted
        "rate_limit_ip_overhead": False,  # a limit then means payload
        "max_metadata_size": MAX_METADATA_BYTES,
        "max_piece_count": MAX_PIECES,
        "metadata_token_limit": MAX_DECODE_TOKENS,
        "user_agent": f"gdist libtorrent/{lt.version}",
    }
