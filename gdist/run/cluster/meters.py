"""How fast things go, from counters that only grow."""

from __future__ import annotations

import time

from gdist.events import Binds, ClusterProgress
from gdist.exchange import Server
from gdist.run.cluster.link import Link
from gdist.run.cluster.source import ClusterSource

BUSY_SHARE = 0.1  # of all that comes in: less from a side than this does not set the pace


class Rate:
    """Bytes a second of a counter, smoothed over the last few looks at it."""

    def __init__(self) -> None:
        self._value, self._seen = 0, time.monotonic()
        self.rate = 0.0

    def of(self, value: int) -> int:
        """The rate, the counter being at `value` now."""
        now = time.monotonic()
        seconds = now - self._seen
        if seconds > 0.2:
            self.rate = (self.rate + (value - self._value) / seconds) / 2
            self._value, self._seen = value, now
        return int(self.rate)


class Meters:
    """What one agent can say of its cluster, twice a second."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._lan_in, self._lan_out = Rate(), Rate()

    def progress(self, link: Link, server: Server, pieces: ClusterSource) -> ClusterProgress:
        """Where the cluster stands, as this host knows it."""
        stats = pieces.stats()
        with link.changed:
            inside = link.inside
            states = [peer.state for peer in inside.peers.values()]
            incomplete = set(range(self._hosts)) - inside.complete
            brought, union, leased = inside.brought, inside.union, inside.lease.bit_count()
            slowest = inside.slowest
        lan_in = self._lan_in.of(link.way.meter.received)
        return ClusterProgress(
            hosts=self._hosts,
            live=states.count("live"),
            done=states.count("done"),
            union_bytes=union,
            inside_bytes=brought,
            wan_rate=stats.download_rate,
            lan_in_rate=lan_in,
            lan_out_rate=self._lan_out.of(server.meter.sent),
            held_bytes=pieces.held.nbytes,
            leased_pieces=leased,
            slowest=slowest,
            binds=_binds(stats.download_rate, lan_in),
            waits_for=() if "live" in states else tuple(sorted(incomplete)),
        )


def _binds(wan: int, lan: int) -> Binds:
    if not wan and not lan:
        return Binds.WAITING
    return Binds.LAN if wan < BUSY_SHARE * lan else Binds.NETWORK
