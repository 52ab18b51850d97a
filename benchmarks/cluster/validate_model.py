"""The model behind `gdist simulate` beside what was measured in the rig of network namespaces.

    python benchmarks/cluster/validate_model.py [results.json]

`results.json` is what `benchmarks/cluster/run.py` writes; of each result are read `hosts`, `mode` ("shards"
or "copies"), `wan` and `lan` (bytes a second), `payload` (bytes), `seconds`, and where they are there `tool`,
`gateways`, `piece` (bytes of a piece), and `complete` (when each host had all it needs, by its own clock,
which is then taken for `seconds`). Trials of other tools, that were set aside, or in which a host was killed
are left out. For each the model runs for a release like the rig's, on its meshes, with all hosts on the cores
of one machine. Without a file the model alone is shown, for 2, 4, 8 and 16 hosts at 25 MB/s and 12.5 MB/s.

"over" is what was measured beyond the model: processes that start, metadata and headers, which the model does
not know, are there whatever the payload.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gdist.core.mesh import parse_mesh
from gdist.core.simulation.demand import demand_of
from gdist.core.simulation.model import Demand, Setting
from gdist.core.simulation.run import simulate
from gdist.core.taking import AT_ONCE
from gdist.run.survey import Survey, survey_files
from gdist.testing.checkpoints import write_grok1

MIB = 1 << 20
WAN, LAN, PAYLOAD = 25e6, 12.5e6, 256 * 10**6
MESHES = {"shards": "8x8", "copies": "replica={hosts},data=1,model=1"}  # those of the rig


@dataclass(frozen=True, slots=True)
class Trial:
    """What was run in the rig, and how long it took, if it was run."""

    hosts: int
    mode: str
    wan: float = WAN
    lan: float = LAN
    payload: int = PAYLOAD
    seconds: float | None = None
    piece: int = MIB
    gateways: tuple[int, ...] | None = None


def parse_trials(results: list[dict[str, Any]]) -> list[Trial]:
    """The trials of gdist that count, as a results file has them."""
    trials = []
    for value in results:
        if value.get("tool", "gdist") != "gdist" or value.get("set_aside") or value.get("kill") is not None:
            continue
        if value["mode"] not in MESHES:
            sys.exit(f"mode {value['mode']!r} is none of {', '.join(MESHES)}")
        gateways = value.get("gateways")
        trials.append(
            Trial(
                hosts=int(value["hosts"]),
                mode=str(value["mode"]),
                wan=float(value["wan"]),
                lan=float(value["lan"]),
                payload=int(value["payload"]),
                seconds=max(map(float, value.get("complete") or [value["seconds"]])),
                piece=int(value.get("piece", MIB)),
                gateways=tuple(map(int, gateways)) if gateways is not None else None,
            )
        )
    return trials


@cache
def release_like(nbytes: int) -> Survey:
    """What a small Grok-1 of about this size holds, as the rig makes it."""
    scale = max(1, round((nbytes / 0.9e6) ** 0.5))
    with TemporaryDirectory() as scratch:
        write_grok1(
            Path(scratch) / "grok",
            layers=4,
            emb=64 * scale,
            ffn=128 * scale,
            kv=16 * scale,
            vocab=256 * scale,
        )
        return survey_files(Path(scratch) / "grok")


def demand(trial: Trial) -> Demand:
    """What the hosts of a trial need, piece by piece."""
    found = release_like(trial.payload)
    payload = replace(found.payload, piece_length=trial.piece)
    mesh = parse_mesh(MESHES[trial.mode].format(hosts=trial.hosts))
    return demand_of(payload, found.tensors, mesh, found.rules, trial.hosts)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, help="what was measured")
    parser.add_argument("--cores", type=float, default=os.cpu_count() or 2, help="of the machine")
    parser.add_argument("--pulls", type=int, default=AT_ONCE, help="pieces that a host handles at once")
    arguments = parser.parse_args()
    if arguments.results:
        trials = parse_trials(json.loads(arguments.results.read_text()))
    else:
        trials = [Trial(hosts, mode) for mode in MESHES for hosts in (2, 4, 8, 16)]
    print("hosts  mode    payload  least time    model  share  binds               measured   over  / model")
    ratios = []
    for trial in trials:
        outcome = simulate(
            demand(trial),
            Setting(
                trial.hosts,
                trial.wan,
                lan=trial.lan,
                gateways=trial.gateways,
                cores=arguments.cores / trial.hosts,
                pulls=arguments.pulls,
            ),
        )
        binds = statistics.mode(span.binds for span in outcome.spans)
        words = f"{trial.hosts:5}  {trial.mode:7}{trial.payload / 1e6:5.0f} MB{outcome.bound.seconds:10.1f} s"
        words += f"{outcome.seconds:7.1f} s{outcome.share:7.2f}  {binds:18}"
        if trial.seconds is not None:
            ratios.append(trial.seconds / outcome.seconds)
            words += f"{trial.seconds:8.1f} s{trial.seconds - outcome.seconds:7.1f}{ratios[-1]:9.2f}"
        print(words)
    if ratios:
        median = statistics.median(ratios)
        print(f"measured / model: {min(ratios):.2f} to {max(ratios):.2f}, median {median:.2f}")


if __name__ == "__main__":
    main()
