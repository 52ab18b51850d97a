"""How fast the rig's links are just now, by iperf3: what its shapers are set to is never divided by."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from dataclasses import dataclass

from gdist.testing.netns import ROUTER, WORLD, Rig, Where

PORT = 5201
SETTLE_SECONDS = 0.3  # for servers to listen


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second that TCP delivers: into the cluster, and over the link of each host, the mean of all."""

    wan: float
    lan: float

    def drift(self, other: Rates) -> float:
        """How far two measurements lie apart: 0.05 is one link 5 % off."""
        return max(abs(self.wan / other.wan - 1), abs(self.lan / other.lan - 1))

    def between(self, other: Rates) -> Rates:
        """The middle of two measurements."""
        return Rates((self.wan + other.wan) / 2, (self.lan + other.lan) / 2)


def measure(rig: Rig, seconds: float) -> Rates:
    """The uplink alone, a stream for each host; then each host to the next, every link busy both ways."""
    everyone = range(rig.hosts)
    (wan,) = _iperf(rig, [(WORLD, ROUTER)], seconds, streams=rig.hosts)
    lan = statistics.mean(_iperf(rig, [(host, (host + 1) % rig.hosts) for host in everyone], seconds))
    return Rates(wan, lan)


def _iperf(rig: Rig, pairs: list[tuple[Where, Where]], seconds: float, *, streams: int = 1) -> list[float]:
    """Rates from one end to the other, all at the same time."""
    servers = [
        rig.popen(sender, ["iperf3", "-s", "-1", "-p", f"{PORT + number}"], stdout=subprocess.DEVNULL)
        for number, (sender, _) in enumerate(pairs)
    ]
    time.sleep(SETTLE_SECONDS)
    how = ["-R", "-J", "-t", f"{seconds:g}", "-O", "1", "-P", f"{streams}"]
    clients = [
        rig.popen(
            receiver,
            ["iperf3", "-c", rig.address(sender), "-p", f"{PORT + number}", *how],
            stdout=subprocess.PIPE,
        )
        for number, (sender, receiver) in enumerate(pairs)
    ]
    rates = []
    for client in clients:
        out, _ = client.communicate(timeout=seconds + 20)
        result = json.loads(out)
        assert "error" not in result, result["error"]
        rates.append(result["end"]["sum_received"]["bits_per_second"] / 8)
    for server in servers:
        server.wait(10)
    return rates
