"""The collective exchange between real processes over XLA: the same stores, and bounded, clear ends.

Each host is a process that starts the one that uses JAX, as an agent does. What it says it prints: a line for
each event, and at last how it ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gdist.core.magnet import format_magnet
from gdist.core.rules import parse_rules
from gdist.exchange.ports import free_port
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.shares import assert_same, fetch_both, odd_tensors
from gdist.testing.swarm import seed

pytest.importorskip("jax")

pytestmark = [pytest.mark.jax, pytest.mark.torrent, pytest.mark.slow]

HOST = """
import json, signal, sys, threading
from gdist.core.mesh import parse_host
from gdist.errors import GdistError
from gdist.run.collective import MoveRequest, start_move
dest, host, options = sys.argv[1], parse_host(sys.argv[2]), json.loads(sys.argv[3])
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
def tell(event):
    print(type(event).__name__, flush=True)
print("Begun", flush=True)
try:
    start_move(MoveRequest(dest, host, platform="cpu", **options), observe=tell, stop=stop)
    print("done")
except GdistError as error:
    print(json.dumps([type(error).__name__, error.message]))
"""
RULES = parse_rules({"axes": ["data", "model"], "rules": [["cut|zz", [None, "data"]], [".*", []]]})
FEW = {"memory": 1}  # parcels are as small as they get: thousands of rounds, nearly all for the last tensor


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores and shares of two hosts, of every element type."""
    root = tmp_path_factory.mktemp("odd")
    late = np.random.default_rng(8).integers(0, 256, (2048, 8192), np.uint8)
    write_safetensors(root / "from", {**odd_tensors(), "zz.late": late})
    with seed(root / "from", piece_length=1 << 15) as seeded:
        list(fetch_both(format_magnet(seeded.magnet), root, 2, "2x2", rules=RULES))
    return root


@pytest.fixture
def shares(odd: Path, tmp_path: Path) -> Path:
    """What each host has before it moves anything."""
    shutil.copytree(odd, tmp_path / "s")
    return tmp_path / "s"


class Host:
    """One host's process."""

    def __init__(self, root: Path, index: int, count: int, port: int, **options: Any):
        options = {"coordinator": f"127.0.0.1:{port}", "join_seconds": 60, **options}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST, root / f"moved{index}", f"{index}/{count}", json.dumps(options)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, name: str, times: int = 1) -> None:
        """Returns when it has told that event so many times."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if self.lines.count(name) >= times:
                return
        raise AssertionError(f"ended before {name}: {self.lines[-3:]}")

    def end(self, seconds: float = 90) -> Any:
        """What its last line says: "done", or the kind and message of an error."""
        out, _ = self.process.communicate(timeout=seconds)
        self.lines += out.splitlines()
        names = [line for line in self.lines if not line.startswith('["')]
        assert all(name.isidentifier() for name in names), "nothing else is printed"
        return json.loads(self.lines[-1]) if self.lines[-1].startswith("[") else self.lines[-1]

    def child(self) -> psutil.Process:
        """The process that it started."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.communicate()


@contextmanager
def hosts(root: Path, count: int, only: Sequence[int] | None = None, **options: Any) -> Iterator[list[Host]]:
    """The hosts of a job, or some of them."""
    port = free_port()
    running = [Host(root, index, count, port, **options) for index in (only or range(count))]
    try:
        yield running
    finally:
        for host in running:
            host.kill()


def move(root: Path, count: int, **options: Any) -> None:
    """Runs all hosts to their end, and compares what they have with what a fetch wrote."""
    with hosts(root, count, **options) as running:
        assert [host.end() for host in running] == ["done"] * count
    for index in range(count):
        assert_same(root / f"plain{index}", root / f"moved{index}")


def test_two_hosts_get_what_a_fetch_would_have_written(shares: Path) -> None:
    move(shares, 2)


def test_four_hosts_with_two_devices_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    write_grok1(tmp_path / "from", layers=1, emb=128, ffn=256, vocab=512)
    with seed(tmp_path / "from", piece_length=1 << 15) as seeded:
        list(fetch_both(format_magnet(seeded.magnet), tmp_path, 4, "8x8"))
    move(tmp_path, 4, rails=2, memory=3_000_000)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_host_that_is_killed_ends_the_others_and_all_go_on(victim: int, shares: Path) -> None:
    """Host 0's process is also where the others have met."""
    with hosts(shares, 2, silence_seconds=600, **FEW) as running:
        running[victim].until("ShardCommitted")
        child = running[victim].child()
        os.kill(running[victim].process.pid, signal.SIGKILL)
        killed = time.monotonic()
        kind, said = running[1 - victim].end()
        assert kind == "Unreachable" and said
        assert time.monotonic() - killed < 60
        gone, alive = psutil.wait_procs([child], 30)
        assert gone and not alive, "what it started ends with it"
    move(shares, 2)


def test_a_process_of_jax_that_is_killed_ends_all(shares: Path) -> None:
    with hosts(shares, 2, **FEW) as running:
        running[1].until("ShardCommitted")
        running[1].child().kill()
        kind, said = running[1].end()
        assert kind == "Unreachable" and "ended with -9" in said
        assert running[0].end()[0] == "Unreachable"
    move(shares, 2)


def test_a_frozen_host_ends_the_others_in_time(shares: Path) -> None:
    with hosts(shares, 2, silence_seconds=6, **FEW) as running:
        running[1].until("ShardCommitted")
        frozen = running[1].child()
        frozen.suspend()
        start = time.monotonic()
        kind, said = running[0].end()
        assert kind == "Unreachable" and said
        assert time.monotonic() - start < 60
        frozen.resume()
        assert running[1].end()[0] == "Unreachable"  # it learns that it was given up
    move(shares, 2)


def test_a_host_that_is_slow_for_too_long_ends_the_others(shares: Path) -> None:
    with hosts(shares, 2, silence_seconds=600, stall_seconds=5, **FEW) as running:
        running[1].until("ShardCommitted")
        running[1].child().suspend()
        kind, said = running[1].end()
        assert kind == "StalledError" and "the exchange moved nothing for" in said, said
        assert running[0].end()[0] in ("StalledError", "Unreachable")  # whichever of the two gives up first
    move(shares, 2)


def test_a_host_that_does_not_come_is_not_waited_for_for_ever(shares: Path) -> None:
    for only in (0, 1):
        with hosts(shares, 2, [only], join_seconds=4) as (host,):
            start = time.monotonic()
            kind, said = host.end()
            assert kind == "Unreachable", said
            assert "the 2 hosts did not come together" in said or "ended with" in said
            assert time.monotonic() - start < 80


def test_a_stop_on_one_host_stops_all(shares: Path) -> None:
    with hosts(shares, 2, **FEW) as running:
        running[0].until("ShardCommitted")
        running[0].process.terminate()
        start = time.monotonic()
        for host in running:
            kind, said = host.end()
            assert kind == "InterruptedRun" and "asked to stop" in said, said
        assert time.monotonic() - start < 60
    move(shares, 2)


def test_a_stop_while_the_others_are_waited_for(shares: Path) -> None:
    with hosts(shares, 2, [0], join_seconds=300) as (host,):
        host.until("Begun")  # else it does not know yet what to do when it is asked to stop
        time.sleep(3)
        host.process.terminate()
        assert host.end()[0] == "InterruptedRun"


def test_what_takes_longer_than_it_may_is_stopped(shares: Path) -> None:
    with hosts(shares, 2, [0], join_seconds=300, most_seconds=2) as (host,):
        assert host.end()[0] == "InterruptedRun"


def test_a_failure_of_one_host_is_told_by_all(shares: Path) -> None:
    files = (shares / "moved1/.gdist/gdist.host-00001-of-00002/shares/cut.words/c").rglob("*")
    path = next(path for path in files if path.is_file())
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with hosts(shares, 2) as running:
        for host in running:
            kind, said = host.end()
            assert kind == "CorruptError" and "host 1 cannot move" in said and "'cut.words'" in said
    path.write_bytes(data)
    move(shares, 2)
