"""What a gigabyte of slices costs the host that gives them and the one that takes them, in CPU seconds.

    python benchmarks/cluster/slices.py [--megabytes 2000]

Pieces of 16 MiB lie in memory as they do when several hosts ask for parts of one; a child process asks over
loopback for whole pieces, then for an eighth of the columns of each, as a host of eight does of a tensor
split along its last dimension. Both sides digest what passes. The same bytes through a bare socket are the
floor. The last lines are polls of a coordinator: one message and its answer, and what the coordinator's
state costs besides when it has that many hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np

from gdist.core.leases import Leases
from gdist.core.piece_set import set_of
from gdist.exchange import Client, Key, Request, Response, Server
from gdist.run.cluster.held import _cut, _read_take  # what a holder does for each slice

PIECE, ROW, HOSTS = 16 << 20, 6144, 8
KEY = Key.from_secret("slices of pieces", "benchmark")
TAKES = {
    "whole pieces": None,
    "an eighth of the columns": [0, [PIECE // ROW, ROW], [0, ROW // HOSTS], [PIECE // ROW, 2 * ROW // HOSTS]],
}
POLLS = 2000
POLL = {"index": 1, "held": [[17, 18]], "got": [[3, 9]], "rate": 1e8, "wait": 0, "status": {"stage": "fetch"}}
PIECES = 18_969  # of Grok-1


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        take(*arguments.child)
        return
    print("CPU s/GB                    gives   takes   wall s/GB")
    for name in TAKES:
        given, taken, wall = measured(name, arguments.megabytes * 10**6)
        print(f"{name:26}{given:7.2f} {taken:7.2f} {wall:11.2f}")
    given, taken, wall = bare(arguments.megabytes * 10**6)
    print(f"{'a bare socket':26}{given:7.2f} {taken:7.2f} {wall:11.2f}")
    given, taken, wall = measured("polls", 0)
    print(f"a poll: {given * 1e3:.2f} ms of the coordinator, {taken * 1e3:.2f} ms of the host")
    for hosts in (8, 64, 512, 2600):
        print(f"its state, with {hosts} hosts: {state(hosts) * 1e3:.2f} ms a poll")


def measured(what: str, nbytes: int) -> tuple[float, float, float]:
    """CPU of the giving and the taking side and wall, in seconds a gigabyte (of polls: seconds each)."""
    data = memoryview(np.random.default_rng(0).integers(0, 256, PIECE, np.uint8).data).toreadonly()
    answer = json.dumps(
        {"version": 7, "changes": [[n, 2, True] for n in range(8)], "lease": [[1, 5]]}
    ).encode()

    def handle(request: Request) -> Response:
        asked = json.loads(request.body or b"{}")
        if request.path == "/poll":
            return Response(200, answer)
        takes = [_read_take(value) for value in asked.get("takes", ())]
        return Response(200, [_cut(data, one) for one in takes] if takes else [data])

    with Server("127.0.0.1:0", KEY, handler=handle) as server:
        return _with_child(what, f"127.0.0.1:{server.port}", nbytes)


def bare(nbytes: int) -> tuple[float, float, float]:
    """The same of a socket that sends the same bytes and does nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        data = bytes(PIECE)
        child = _start("bare", f"127.0.0.1:{listening.getsockname()[1]}", nbytes)
        connection, _ = listening.accept()
        start, cpu = time.monotonic(), time.process_time()
        with connection:
            for _ in range(nbytes // PIECE):
                connection.sendall(data)
        return _end(child, cpu, start, nbytes // PIECE * PIECE / 1e9)


def _with_child(what: str, address: str, nbytes: int) -> tuple[float, float, float]:
    start, cpu = time.monotonic(), time.process_time()
    units = POLLS if what == "polls" else nbytes / 1e9
    return _end(_start(what, address, nbytes), cpu, start, units)


def _start(what: str, address: str, nbytes: int) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--child", what, address, str(nbytes)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _end(child: subprocess.Popen[str], cpu: float, start: float, units: float) -> tuple[float, float, float]:
    said, _ = child.communicate()
    taken, wall = map(float, said.split())
    return (time.process_time() - cpu) / units, taken / units, wall / units


def take(what: str, address: str, size: str) -> None:
    """The other side: asks, and prints its CPU and wall seconds."""
    nbytes, left = int(size), int(size)
    client = Client(address, KEY, member=1)
    into = memoryview(bytearray(PIECE))
    spec = TAKES.get(what)
    part = into if spec is None else into[: PIECE // ROW * ROW // HOSTS]
    body = json.dumps({"piece": 4711, "takes": [spec]} if spec else {"piece": 4711}).encode()
    start, cpu = time.monotonic(), time.process_time()
    if what == "bare":
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as connection:
            while connection.recv_into(into):
                pass
    elif what == "polls":
        for _ in range(POLLS):
            client.json("POST", "/poll", POLL)
    else:
        target = np.frombuffer(into, np.uint8, PIECE // ROW * ROW).reshape(PIECE // ROW, ROW)
        while left > 0:
            client.fetch("/slices", body, part, timeout=10)
            if spec:
                got = np.frombuffer(part, np.uint8).reshape(PIECE // ROW, ROW // HOSTS)
                target[:, ROW // HOSTS : 2 * ROW // HOSTS] = got
            left -= len(part)
    print(time.process_time() - cpu, time.monotonic() - start if nbytes or what == "polls" else 0.0)
    client.close()


def state(hosts: int) -> float:
    """Seconds that the coordinator's state takes for a poll that reports a piece, and its answer."""
    leases = Leases([PIECE] * PIECES, hosts)
    for host in range(hosts):
        leases.enrol(host, str(host), gateway=True, needs=(1 << PIECES) - 1, held=0, now=0.0)
    versions = [leases.answer(host, None, 0.0).version for host in range(hosts)]
    polls = min(PIECES, max(2 * hosts, 200))  # so that most tell what changed since the host's last one
    start = time.process_time()
    for number in range(polls):
        host = number % hosts
        leases.report(host, held=set_of([number]), rate=1e7, now=1.0 + number / 1e3)
        versions[host] = leases.answer(host, versions[host], 1.0 + number / 1e3).version
    return (time.process_time() - start) / polls


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
