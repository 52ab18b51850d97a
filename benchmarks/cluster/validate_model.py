"""The model behind `gdist simulate` beside what was measured in the rig of network namespaces.

    python benchmarks/cluster/validate_model.py [results.json]

`results.json` is a list of `{"hosts": 8, "mode": "shards"|"copies", "wan": bytes/s, "lan": bytes/s, "payload":
bytes, "seconds": measured}`; `"piece"` (bytes of a piece), `"split"` ("rows": each host needs pieces of its
own, "columns": each needs a part of every piece) and `"gateways"` (a list of hosts) may be added. For each the
model runs with the rig's own parameters: all hosts share the cores of one machine. Without a file the model
alone is shown, for 2, 4, 8 and 16 hosts at 25 MB/s and 12.5 MB/s.

The last column is measured over model: 1 where the model is right, more where something takes time that the
model does not know.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdist.core.simulation.model import Demand, Group, Setting
from gdist.core.simulation.run import simulate

MIB = 1 << 20
WAN, LAN, PAYLOAD = 25e6, 12.5e6, 512 * 10**6


@dataclass(frozen=True, slots=True)
class Trial:
    """What was run in the rig, and how long it took, if it was run."""

    hosts: int
    mode: str
    wan: float
    lan: float
    payload: int
    seconds: float | None = None
    piece: int = MIB // 2
    split: str = "rows"
    gateways: tuple[int, ...] | None = None


def parse_trial(value: dict[str, Any]) -> Trial:
    """A trial as a results file has it; what else is in it is the rig's own business."""
    gateways = value.get("gateways")
    trial = Trial(
        hosts=int(value["hosts"]),
        mode=str(value["mode"]),
        wan=float(value["wan"]),
        lan=float(value["lan"]),
        payload=int(value["payload"]),
        seconds=float(value["seconds"]),
        piece=int(value.get("piece", MIB // 2)),
        split=str(value.get("split", "rows")),
        gateways=tuple(map(int, gateways)) if isinstance(gateways, list) else None,
    )
    if trial.mode not in ("shards", "copies") or trial.split not in ("rows", "columns"):
        sys.exit(f"mode {trial.mode!r} or split {trial.split!r} is not known")
    return trial


def demand_of(trial: Trial) -> Demand:
    """What the hosts of a trial need, piece by piece."""
    number = -(-trial.payload // trial.piece)
    sizes = tuple(min(trial.piece, trial.payload - n * trial.piece) for n in range(number))
    hosts = range(trial.hosts)
    if trial.mode == "copies":
        groups = [Group(tuple(hosts), sizes)]
    elif trial.split == "columns":
        groups = [Group((host,), tuple(size // trial.hosts for size in sizes)) for host in hosts]
    else:
        bounds = [trial.payload * host // trial.hosts for host in range(trial.hosts + 1)]
        runs = [_overlap(sizes, trial.piece, bounds[host], bounds[host + 1]) for host in hosts]
        groups = [Group((host,), run) for host, run in zip(hosts, runs, strict=True)]
    return Demand(sizes, tuple(groups), max(number // 10, 1))


def _overlap(sizes: tuple[int, ...], piece: int, start: int, stop: int) -> tuple[int, ...]:
    """Bytes of each piece that lie in a run of the payload."""
    ends = ((n * piece, n * piece + size) for n, size in enumerate(sizes))
    return tuple(max(min(b, stop) - max(a, start), 0) for a, b in ends)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, help="what was measured")
    parser.add_argument("--cores", type=float, default=os.cpu_count() or 2, help="of the machine")
    arguments = parser.parse_args()
    if arguments.results:
        trials = [parse_trial(value) for value in json.loads(arguments.results.read_text())]
    else:
        trials = [Trial(n, mode, WAN, LAN, PAYLOAD) for mode in ("shards", "copies") for n in (2, 4, 8, 16)]
    print("hosts  mode            least time   model  binds               measured  / model  / least")
    ratios = []
    for trial in trials:
        setting = Setting(
            trial.hosts,
            trial.wan,
            lan=trial.lan,
            gateways=trial.gateways,
            cores=arguments.cores / trial.hosts,
        )
        outcome = simulate(demand_of(trial), setting)
        binds = statistics.mode(span.binds for span in outcome.spans)
        mode = trial.mode if trial.mode == "copies" else f"{trial.mode}, {trial.split}"
        line = f"{trial.hosts:5}  {mode:16}{outcome.bound.seconds:8.1f} s{outcome.seconds:7.1f} s  {binds:18}"
        if trial.seconds is not None:
            ratios.append(trial.seconds / outcome.seconds)
            line += f"{trial.seconds:8.1f} s{ratios[-1]:9.2f}{trial.seconds / outcome.bound.seconds:9.2f}"
        print(line)
    if ratios:
        median = statistics.median(ratios)
        print(f"measured / model: {min(ratios):.2f} to {max(ratios):.2f}, median {median:.2f}")


if __name__ == "__main__":
    main()
