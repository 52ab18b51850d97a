"""The collective exchange against the least that must move, and against everybody taking everything.

    python benchmarks/collective.py [--mb 400] [--hosts 4] [--meshes 8x8 4x4] [--memory 256MiB] [--dir DIR]

A Grok-like release is fetched as even shares by each of some hosts, from a seeder on loopback. Then, in a
network namespace of its own, whose loopback nobody else uses (root; without it bytes are counted by gdist
alone), the hosts' processes move the shares to where they belong over XLA's CPU collectives, all at once.
"everything" is what is done without any of this: every host takes all of the release from one place (a
socket, sendfile, nothing written), as from a shared disk.

Counted: what arrives on the loopback interface, the least that must (what hosts keep and do not have in their
share), anonymous memory of each process beside what JAX took before, sampled every 20 ms. What was written is
compared with a fetch's for host 0. Goals: at most 1.1 of the least, at most --memory and 100 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from load_jax import PeakMemory

from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup, parse_mesh
from gdist.core.units import parse_bytes
from gdist.exchange.ports import free_port

GOAL_BYTES, GOAL_EXTRA_MB = 1.1, 100
INSIDE = "GDIST_BENCH_NAMESPACE"
MESSAGE = 2**20


def make_shares(directory: Path, mb: int, count: int, mesh: str) -> int:
    """Shares of all hosts, and for host 0 what a fetch writes; bytes of the release."""
    from gdist.run.collective import fetch_shares
    from gdist.run.fetch import fetch
    from gdist.testing.checkpoints import write_grok1
    from gdist.testing.fetches import fetch_options
    from gdist.testing.swarm import seed

    release = directory / "release"
    if not release.exists():
        layers = max(1, round((mb - 128) / 107))
        write_grok1(release, layers=layers, emb=1024, ffn=4096, kv=256, vocab=32768)
    nbytes = sum(path.stat().st_size for path in release.rglob("*") if path.is_file())
    with seed(release, piece_length=2**22, process=True) as seeded:
        magnet = format_magnet(seeded.magnet)
        for index in range(count):
            options = fetch_options(mesh, f"{index}/{count}")
            fetch_shares(magnet, directory / f"host{index}", options)
        fetch(magnet, directory / "plain0", fetch_options(mesh, f"0/{count}"))
    return nbytes


def move(directory: Path, host: HostGroup, port: int, memory: str) -> dict[str, Any]:
    """One host's part, in this process; JAX is there and hosts have met before the clock starts."""
    from gdist.events import MovePlanned, MoveProgress
    from gdist.loader.distributed import joined
    from gdist.run.collective import move_shares
    from gdist.testing.fetches import Recorder

    recorder = Recorder()
    with joined(f"127.0.0.1:{port}", host) as carrier:
        carrier.gathered(b"here")
        peak = PeakMemory()
        peak.sample()
        before = peak.anonymous
        peak.start()
        start, cpu = time.perf_counter(), time.process_time()
        move_shares(
            directory / f"host{host.index}", host, carrier, memory=parse_bytes(memory), observe=recorder
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak.end()
    planned, last = recorder.of(MovePlanned)[0], recorder.of(MoveProgress)[-1]
    return {
        "seconds": seconds,
        "cpu": cpu,
        "anon": peak.anonymous - before,
        "kept": planned.bytes_wanted,
        "least": planned.bytes_received,
        "wire": last.bytes_wire,
        "rounds": last.rounds,
    }


def serve(directory: Path, listener: socket.socket, count: int) -> None:
    """Sends the whole release to so many who connect."""
    files = sorted(path for path in (directory / "release").rglob("*") if path.is_file())

    def send(connection: socket.socket) -> None:
        with connection:
            for path in files:
                with path.open("rb") as file:
                    connection.sendfile(file)

    threads = []
    for _ in range(count):
        threads.append(threading.Thread(target=send, args=(listener.accept()[0],)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def take_everything(port: int) -> dict[str, Any]:
    """One host that takes the whole release, and drops it."""
    buffer, taken, start = bytearray(MESSAGE), 0, time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while count := connection.recv_into(buffer):
            taken += count
    return {"seconds": time.perf_counter() - start, "taken": taken}


def arrived() -> int:
    """Bytes that came in on loopback so far, in this namespace."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def together(count: int, *arguments: str) -> tuple[list[dict[str, Any]], int]:
    """Runs one process a host; what each prints last, and what came over loopback meanwhile."""
    before = arrived()
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--host", f"{index}/{count}", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for index in range(count)
    ]
    outs = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running), "a host failed"
    return [json.loads(out.splitlines()[-1]) for out in outs], arrived() - before


def same(first: Path, second: Path) -> bool:
    names = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    others = {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    return names == others and all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def compare(directory: Path, mesh: str, count: int, memory: str, nbytes: int) -> int:
    """One mesh; how many goals it misses."""
    found, came = together(count, "--dir", str(directory), "--port", str(free_port()), "--memory", memory)
    counted = os.environ.get(INSIDE) == "1"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(directory, listener, count))
        server.start()
        everything, all_came = together(count, "--everything", "--port", str(listener.getsockname()[1]))
        server.join()
    least, wire = sum(one["least"] for one in found), sum(one["wire"] for one in found)
    lan = came if counted else wire
    most = max(one["anon"] for one in found) * 2**20 / 1e6
    seconds = max(one["seconds"] for one in found)
    taken = sum(one["taken"] for one in everything)
    bound = parse_bytes(memory) / 1e6 + GOAL_EXTRA_MB
    kept = sum(one["kept"] for one in found)
    share = nbytes / count
    print(f"{nbytes / 1e9:.2f} GB, {count} hosts, mesh {mesh}: hosts keep {kept / 1e9:.2f} GB together")
    print(
        f"  least between hosts {least / 1e9:6.3f} GB; moved {lan / 1e9:.3f} GB, "
        f"x{lan / max(least, 1):.3f} (goal {GOAL_BYTES}), of it parcels {wire / 1e9:.3f} GB, "
        f"in {found[0]['rounds']} rounds"
    )
    print(
        f"  into one host: share {share / 1e9:.3f} and parcels {lan / count / 1e9:.3f} GB; everything "
        f"{taken / count / 1e9:.3f} GB; x{(share + lan / count) / (taken / count):.2f}"
    )
    print(
        f"  {seconds:.2f} s with shards on the disk, CPU {sum(one['cpu'] for one in found):.2f} s; "
        f"everything {max(one['seconds'] for one in everything):.2f} s, not placed, not on the disk"
    )
    print(f"  memory {most:.0f} MB beside JAX (goal {bound:.0f})")
    right = same(directory / "plain0", directory / "host0")
    print(f"  what host 0 has is {'' if right else 'NOT '}what a fetch writes")
    if all_came and counted:
        print(f"  (loopback counted {all_came / max(taken, 1):.3f} of what everything took)")
    return (lan > GOAL_BYTES * least) + (most > bound) + (not right)


def main() -> None:
    """Reads the command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=400, help="size of the release in MB")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--meshes", nargs="+", default=["8x8", "4x4"])
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--everything", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--nbytes", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.everything:
        print(json.dumps(take_everything(args.port)))
        return
    if args.host:
        index, count = map(int, args.host.split("/"))
        print(json.dumps(move(args.dir, HostGroup(index, count), args.port, args.memory)))
        return
    if args.nbytes:
        os.environ.setdefault(INSIDE, "1")
        sys.exit(compare(args.dir, args.meshes[0], args.hosts, args.memory, args.nbytes))
    missed = 0
    for mesh in args.meshes:
        parse_mesh(mesh)
    directory = Path(tempfile.mkdtemp(prefix="gdist-bench-", dir=args.dir))
    try:
        for mesh in args.meshes:
            nbytes = make_shares(directory, args.mb, args.hosts, mesh)
            missed += alone(directory, mesh, args.hosts, args.memory, nbytes)
            for path in directory.glob("*[0-9]"):
                shutil.rmtree(path)
    finally:
        shutil.rmtree(directory)
    sys.exit(missed > 0)


def alone(directory: Path, mesh: str, count: int, memory: str, nbytes: int) -> int:
    """Runs `compare` where nobody else uses loopback, if that can be had."""
    inner = [sys.executable, "-W", "ignore", __file__, "--dir", str(directory), "--meshes", mesh]
    inner += ["--hosts", str(count), "--memory", memory, "--nbytes", str(nbytes)]
    script = 'ip link set lo up && exec "$@"'
    if subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        print("no network namespace: bytes are as gdist counts them")
        return subprocess.run(inner, env={**os.environ, INSIDE: "0"}).returncode
    return subprocess.run(["unshare", "--net", "sh", "-c", script, "sh", *inner]).returncode


if __name__ == "__main__":
    main()
