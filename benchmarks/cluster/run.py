"""`gdist cluster fetch` beside what one would do without it, in a cluster of network namespaces.

    sudo python benchmarks/cluster/run.py --hosts 8 --payload 256MB --mode copies --rounds 3

Hosts are namespaces on a bridge; a world behind one shaped uplink has the release's tracker and only seeder
(gdist/testing/netns.py). Links are measured with iperf3 before and after every trial, and the least time

    T_min = max( U / W,  max B_i / d_i,  sum B_i / (W + sum u_i) )

is worked out from the measured rates. What came in is read off the uplink's counters, without headers. Every
process of every trial is fresh, in empty directories. Results go to `--output` as JSON, medians to the
screen. A trial during which links changed or processors had no time left is set aside and run again.
Needs root, iproute2, iperf3, aria2 and OpenSSH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any  # values of JSON

import links
import ours
import peers
from trial import Trial, build_release, origin

from gdist.core.bound import lower_bound
from gdist.core.units import parse_bytes, parse_rate
from gdist.testing import netns
from gdist.testing.netns import WORLD, Rig

TOOLS: dict[str, Callable[[Trial], dict[int, float]]] = {
    "gdist": ours.fetch,
    "aria2": peers.aria2,
    "swarm": peers.swarm,
    "scp": peers.scp,
    "scp-tree": peers.scp_tree,
}
MOST_DRIFT = 0.05  # between the rates before and after a trial
TRIES = 3
LEAST_SHARE = 0.80  # of T_min
MOST_INGRESS, MOST_INGRESS_KILLED = 1.02, 1.10  # of the union
MOST_TAIL = 1.3  # slowest host over the median one
CHECKS: dict[str, Callable[[Trial], None]] = {"gdist": ours.check}
COLUMNS = {
    "seconds": "s",
    "bound": "T_min",
    "share": "share",
    "ingress_ratio": "WAN/union",
    "slowest_over_median": "slowest/median",
    "cpu_seconds": "CPU s",
}


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--payload", type=parse_bytes, default=parse_bytes("256MB"), metavar="SIZE")
    parser.add_argument("--mode", choices=tuple(ours.MESHES), default="shards", help="what each host needs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", default=",".join(TOOLS), help="which, with commas between them")
    parser.add_argument("--gateways", metavar="LIST", help="hosts that reach the world, like 0,1")
    parser.add_argument(
        "--kill", type=int, nargs="?", const=-1, metavar="HOST", help="dies half way, and starts again"
    )
    parser.add_argument("--wan", type=parse_rate, default=parse_rate("25MB/s"), metavar="RATE")
    parser.add_argument("--lan", type=parse_rate, default=parse_rate("12.5MB/s"), metavar="RATE")
    parser.add_argument("--piece-length", type=parse_bytes, default=1 << 20, metavar="SIZE")
    parser.add_argument("--calibrate", type=float, default=4.0, metavar="SECONDS", help="of iperf3, each")
    text = "share of the processors' time that must be left in a trial, else they may be what binds"
    parser.add_argument("--least-idle", type=float, default=0.2, metavar="SHARE", help=text)
    parser.add_argument("--scratch", type=Path, help="a directory on the disk to use")
    parser.add_argument("--output", type=Path, default=Path("results.json"))
    args = parser.parse_args()
    reason = netns.available()
    missing = [name for name in ("iperf3", "aria2c", "scp", "sshd") if not shutil.which(name)]
    if reason or missing:
        sys.exit(reason or f"not installed: {', '.join(missing)}")
    scratch = Path(tempfile.mkdtemp(prefix="gdist-cluster-", dir=args.scratch))
    try:
        with Rig(args.hosts, wan=args.wan, lan=args.lan) as rig:
            run(args, rig, scratch)
    finally:
        shutil.rmtree(scratch)


def run(args: argparse.Namespace, rig: Rig, scratch: Path) -> None:
    """All rounds of all tools, in turn."""
    release = build_release(scratch / "from/grok", args.payload, rig.address(WORLD), args.piece_length)
    gateways = tuple(map(int, args.gateways.split(","))) if args.gateways else None
    rig.allow_wan(gateways)
    kill = None if args.kill is None else args.kill % args.hosts
    results: list[dict[str, Any]] = []
    rates = links.measure(rig, args.calibrate)
    for name in args.tools.split(",") * args.rounds:
        for _ in range(TRIES):
            trial = Trial(rig, release, scratch / "trial", args.mode, gateways, kill)
            result, rates = measure(name, trial, rates, args.calibrate)
            result["set_aside"] = result["drift"] > MOST_DRIFT or result["idle"] < args.least_idle
            results.append(result)
            args.output.write_text(json.dumps(results, indent=1) + "\n")
            print(line(result), flush=True)
            if not result["set_aside"]:
                break
    print(summary(results))


def measure(
    name: str, trial: Trial, before: links.Rates, seconds: float
) -> tuple[dict[str, Any], links.Rates]:
    """One run of a tool, and the rates after it."""
    rig, release = trial.rig, trial.release
    shutil.rmtree(trial.scratch, ignore_errors=True)
    trial.scratch.mkdir()
    cpu, resent = children_seconds(), rig.resent(WORLD)
    with origin(rig, release):
        traffic, ticks = rig.traffic(), cpu_ticks()
        times = TOOLS[name](trial)
        traffic, ticks = (
            rig.traffic() - traffic,
            [now - then for now, then in zip(cpu_ticks(), ticks, strict=True)],
        )
        rig.clear()
    cpu, resent = children_seconds() - cpu, rig.resent(WORLD) - resent
    CHECKS.get(name, peers.check)(trial)
    shutil.rmtree(trial.scratch)
    after = links.measure(rig, seconds)
    rates, drift, idle = before.between(after), after.drift(before), ticks[0] / sum(ticks)
    needed = trial.notes.get("needed") or [release.nbytes] * rig.hosts
    gateways = len(trial.gateways) if trial.gateways is not None else rig.hosts
    wan = min(rates.wan, gateways * rates.lan)  # it comes in over their links
    bound = lower_bound(needed, release.nbytes, wan=wan, lan=rates.lan)
    slowest = max(times.values())
    result = {
        "tool": name,
        "hosts": rig.hosts,
        "mode": trial.mode if name == "gdist" else "copies",
        "wan": rates.wan,
        "lan": rates.lan,
        "payload": release.nbytes,
        "seconds": slowest,
        "ingress_ratio": traffic.wan.into.payload / release.nbytes,
        "slowest_over_median": slowest / statistics.median(times.values()),
        "bound": bound.seconds,
        "binds": bound.limit.value,
        "share": bound.seconds / slowest,
        "gateways": trial.gateways,
        "kill": trial.kill,
        "host_seconds": [times[host] for host in range(rig.hosts)],
        "lan_into": [link.into.payload for link in traffic.hosts],
        "lan_out": [link.out.payload for link in traffic.hosts],
        "resent": resent,
        "cpu_seconds": cpu,
        "idle": idle,
        "drift": drift,
        **trial.notes,
    }
    return result, after


def cpu_ticks() -> list[int]:
    """What this machine's processors did so far: idle, and everything else."""
    numbers = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = numbers[3] + numbers[4]
    return [idle, sum(numbers) - idle]


def children_seconds() -> float:
    """CPU seconds of all processes that were started and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def line(result: dict[str, Any]) -> str:
    """One trial."""
    why = "   SET ASIDE: links changed, or processors were busy" if result["set_aside"] else ""
    return (
        f"{result['tool']:9} {result['seconds']:7.2f} s   "
        f"T_min {result['bound']:6.2f} s ({result['binds']})   "
        f"share {result['share']:.2f}   WAN x{result['ingress_ratio']:.3f}   "
        f"slowest/median {result['slowest_over_median']:.2f}   CPU {result['cpu_seconds']:.1f} s   "
        f"idle {result['idle']:.0%}   links {result['wan'] / 1e6:.2f}, {result['lan'] / 1e6:.2f} MB/s "
        f"({result['drift']:+.1%}){why}"
    )


def goals(results: list[dict[str, Any]]) -> str:
    """What was aimed at, and whether the medians of gdist's trials reach it."""
    most = MOST_INGRESS_KILLED if results[0]["kill"] is not None else MOST_INGRESS
    said = []
    for key, sign, goal in (
        ("share", ">=", LEAST_SHARE),
        ("ingress_ratio", "<=", most),
        ("slowest_over_median", "<=", MOST_TAIL),
    ):
        value = statistics.median(result[key] for result in results)
        reached = value >= goal if sign == ">=" else value <= goal
        said.append(f"{COLUMNS[key]} {sign} {goal}: {'reached' if reached else 'NOT REACHED'}")
    return "goals      " + "   ".join(said)


def summary(results: list[dict[str, Any]]) -> str:
    """Medians of each tool, with the least and the most."""
    first = results[0]
    lines = [f"\n{first['hosts']} hosts, {first['payload'] / 1e6:.0f} MB; medians (least to most)"]
    for name in dict.fromkeys(result["tool"] for result in results):
        good = [result for result in results if result["tool"] == name and not result["set_aside"]]
        if not good:
            lines.append(f"{name:9} every trial was set aside")
            continue
        words = [f"{name:9} {good[0]['mode']:6} {len(good)} trials"]
        for key, title in COLUMNS.items():
            values = [result[key] for result in good]
            words.append(f"{title} {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        lines.append("   ".join(words))
        if name == "gdist":
            lines.append(goals(good))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
