"""The cluster in a box: that its links are as slow as said, its counters true, and that it goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdist.testing import netns
from gdist.testing.netns import WORLD, Rig, Where
from gdist.testing.netns_janitor import SETTINGS, names, pids_in, sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(netns.available()), reason=netns.available() or "there are namespaces"),
]

WAN, LAN = 8e6, 4e6
NBYTES = 4_000_000

SEND = """
import contextlib, socket, threading
def send(client):
    with contextlib.suppress(OSError), client:
        client.sendall(bytes(int(client.recv(99))))
server = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    threading.Thread(target=send, args=server.accept()[:1], daemon=True).start()
"""
TAKE = """
import socket, sys, time
start = time.monotonic()
patience = float(sys.argv[3])
with socket.create_connection((sys.argv[1], 7000), patience) as server:
    server.settimeout(patience)
    server.sendall(sys.argv[2].encode())
    left = int(sys.argv[2])
    while left:
        got = len(server.recv(1 << 16))
        if not got: sys.exit("cut short")
        left -= got
print(time.monotonic() - start)
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig(3, wan=WAN, lan=LAN) as rig:
        for where in (WORLD, 0):
            sender = rig.popen(where, [sys.executable, "-c", SEND], stdout=subprocess.PIPE)
            assert sender.stdout.readline() == b"ready\n"
        yield rig


def take(rig: Rig, where: Where, server: str, nbytes: int = NBYTES, patience: float = 10) -> float:
    """Seconds in which a host gets bytes from another, infinite if nothing comes for `patience` seconds."""
    done = rig.run(where, [sys.executable, "-c", TAKE, server, str(nbytes), str(patience)])
    return float(done.stdout) if not done.returncode else float("inf")


def test_links_have_their_rates_and_counters_tell_the_payload(rig: Rig) -> None:
    before, resent = rig.traffic(), rig.resent(WORLD)
    seconds = take(rig, 1, "world")
    assert 0.8 * LAN < NBYTES / seconds < 1.2 * LAN, "the host's own link is the slower one"
    seen = rig.traffic() - before
    again = (rig.resent(WORLD) - resent) * 1448
    for link, more in ((seen.wan, again), (seen.hosts[1], 0)):
        assert 0.999 * NBYTES < link.into.payload - more < 1.005 * NBYTES
        assert link.out.payload < 0.01 * NBYTES, "acknowledgements carry nothing"
    assert seen.hosts[2].into.payload < 5000

    before = rig.traffic()
    assert 0.8 * LAN < NBYTES / take(rig, 2, "h0") < 1.2 * LAN
    seen = rig.traffic() - before
    assert seen.wan.into.nbytes < 5000, "what stays inside is not on the uplink"
    assert 0.999 * NBYTES < seen.hosts[0].out.payload < 1.05 * NBYTES

    endless = str(100 * NBYTES)
    takers = [rig.popen(host, [sys.executable, "-c", TAKE, "world", endless, "10"]) for host in range(3)]
    time.sleep(0.5)
    before, start = rig.traffic(), time.monotonic()
    time.sleep(1.5)
    rate = (rig.traffic() - before).wan.into.payload / (time.monotonic() - start)
    for taker in takers:
        taker.kill()
        taker.wait()
    assert 0.8 * WAN < rate < 1.2 * WAN, "they share the uplink"


def test_links_are_cut_slowed_and_mended(rig: Rig) -> None:
    for where in (1, WORLD):
        rig.cut(where)
        assert take(rig, 1, "world", 1000, patience=2) == float("inf")
        rig.mend(where)
        # A neighbour that did not answer is asked for again a moment later.
        assert any(take(rig, 1, "world", 1000) < 10 for _ in range(3))
    rig.slow(1)
    try:
        assert 0.5 < take(rig, 1, "h0", NBYTES // 10) / (NBYTES / 10 / (LAN * netns.SLOW)) < 1.5
    finally:
        rig.mend(1)
    assert take(rig, 1, "h0") < 2 * NBYTES / LAN


def test_only_gateways_reach_the_world_and_all_reach_each_other(rig: Rig) -> None:
    rig.allow_wan([0])
    try:
        assert take(rig, 0, "world", 1000) < 3
        assert take(rig, 1, "world", 1000, patience=2) == float("inf")
        assert take(rig, 1, "h0", 1000) < 3
    finally:
        rig.allow_wan(None)
    assert take(rig, 1, "world", 1000) < 3


def test_hosts_have_names_and_disks_of_their_own(rig: Rig, tmp_path: Path) -> None:
    assert rig.run(2, ["sh", "-c", "hostname; getent hosts h1"]).stdout.split() == ["h2", "10.77.0.11", "h1"]
    rig.disk(2, tmp_path, 1 << 20)
    fill = ["sh", "-c", f"head -c 2000000 /dev/zero > {tmp_path}/full"]
    assert "No space left" in rig.run(2, fill).stderr
    assert list(tmp_path.iterdir()) == [], "nobody else sees it"
    assert (rig.root(2) / str(tmp_path)[1:] / "full").stat().st_size == 1 << 20
    rig.disk(2, tmp_path, 1 << 22)
    assert rig.run(2, fill).returncode == 0


def test_a_host_freezes_thaws_and_dies(rig: Rig) -> None:
    sleeper = rig.popen(2, ["sleep", "100"])
    deadline = time.monotonic() + 10
    while not rig.signal(2, signal.SIGSTOP) and time.monotonic() < deadline:
        time.sleep(0.01)
    state = Path(f"/proc/{sleeper.pid}/stat")
    while state.read_text().split()[2] != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state.read_text().split()[2] == "T"
    rig.signal(2, signal.SIGKILL)
    assert sleeper.wait(10) == -signal.SIGKILL
    assert rig.run(2, ["hostname"]).stdout == "h2\n", "the host itself is still there"


def test_nothing_is_left_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), Rig(1) as rig:
        sleeper = rig.popen(0, ["sleep", "100"])
        raise RuntimeError("on purpose")
    assert sleeper.returncode, "killed, or on a busy machine before it began"
    assert not names(rig.prefix) and not list(SETTINGS.glob(f"{rig.prefix}*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_the_death_of_its_process(number: signal.Signals) -> None:
    code = (
        "from gdist.testing.netns import Rig\nimport time\nwith Rig(1) as rig:\n"
        "    rig.popen(0, ['sleep', '100'])\n    print(rig.prefix, flush=True)\n    time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        prefix = owner.stdout.readline().strip()
        (host,) = names(f"{prefix}h")
        inside = list(pids_in(host))
        assert inside
        owner.send_signal(number)
    deadline = time.monotonic() + 20
    while names(prefix) or list(SETTINGS.glob(f"{prefix}*")):
        assert time.monotonic() < deadline, names(prefix)
        time.sleep(0.02)
    for pid in inside:
        status = Path(f"/proc/{pid}/status")
        assert not status.exists() or "State:\tZ" in status.read_text(), "dead, or waiting to be reaped"


def test_what_dead_runs_left_is_swept_and_what_live_ones_have_is_not() -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    left, live = f"gd{dead.pid}.0-h0", f"gd{os.getpid()}.99-h0"
    for name in (left, live):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        sweep()
        assert names(left) == [] and names(live) == [live]
    finally:
        subprocess.run(["ip", "netns", "delete", live], check=True)
