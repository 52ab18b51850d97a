"""A cluster in a box: hosts as network namespaces on a bridge, and a world behind one shaped uplink.

    world      gd4711.0-w    10.79.0.2            seeders, trackers
                 │ as fast as it goes
    provider   gd4711.0-p
                 │ tbf, `wan` each way
    router     gd4711.0-r    10.77.0.1
                 ├─ tbf, `lan` each way ─ h0   gd4711.0-h0   10.77.0.10
                 ├─ tbf, `lan` each way ─ h1   gd4711.0-h1   10.77.0.11
                 ┆

    with Rig(hosts=3, wan=25e6, lan=12.5e6) as rig:
        seeder = rig.popen(WORLD, ["gdist", "seed", …])
        before = rig.traffic()
        rig.run(0, ["curl", "http://world:8000/"])
        print((rig.traffic() - before).wan.into.payload)

What comes from the world rides on the host's own link too, as on real nodes. The provider's end is where the
uplink is full and drops packets: were it the senders' own, the kernel would hold them back instead, some much
longer than others. Counters are the router's, so what a full uplink dropped is in none. Hosts have names of
their own (`h0`, `h1`, …, known to the others like `world`), and mounts of their own. Processes are those of
this machine, with its files; no delay, and no loss but what full queues make (many kernels lack `netem`).

Nothing is left behind: a janitor removes namespaces and kills what runs in them when the rig is closed and
when its process dies of whatever; see `netns_janitor`. Needs root and iproute2; `available` says what is
missing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gdist.testing import netns_janitor
from gdist.testing.netns_janitor import SETTINGS, pids_in, sweep
from gdist.testing.traffic import Link, Traffic, parse_ports

WORLD, PROVIDER, ROUTER = "world", "provider", "router"
Where = int | str  # the index of a host, or one of these

MAX_HOSTS = 200  # addresses .10 to .209
SLOW = 1 / 20

_QUEUE_SECONDS = 0.05  # what waits in front of a full link before packets are dropped
_BURST_SECONDS = 0.008  # two ticks of a 250 Hz kernel
_PACKET_BYTES = (
    16_000  # the most TCP hands down at once; the kernel's 64 KiB fill a queue with a few of one flow
)
_MIN_BURST_BYTES = 1 << 17  # of several such packets
_CONGESTION = ("congctl", "cubic")
_TOOLS = ("ip", "tc", "nsenter", "unshare", "env", "mount")
_PROBE = """
set -e; ip link add gd0 type veth peer name gd1; ip link add gd2 type bridge; ip link set gd0 master gd2
tc qdisc add dev gd1 root tbf rate 1mbit burst 16kb latency 50ms; ip rule add priority 1 blackhole
"""
_KEEPER = 'echo "$0" > /proc/sys/kernel/hostname; echo ready; exec sleep infinity'
_NOTHING = ("priority", "1", "blackhole")  # a rule that no packet passes
_rigs = itertools.count()


@functools.cache
def available() -> str:
    """Why there can be no rig on this machine; empty where there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid():
        return "network namespaces need root"
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)} (iproute2, util-linux, coreutils)"
    words = ["unshare", "--net", "--uts", "--mount", "sh", "-c", _PROBE]
    done = subprocess.run(words, capture_output=True, text=True)
    return f"namespaces do not work here: {done.stderr.strip()}" if done.returncode else ""


class Rig:
    """The namespaces, while it is entered; rates in bytes a second, each way, None for as fast as it goes."""

    def __init__(self, hosts: int = 8, *, wan: float | None = 25e6, lan: float | None = 12.5e6) -> None:
        assert 0 < hosts <= MAX_HOSTS, f"{hosts} hosts"
        self.hosts, self.wan, self.lan = hosts, wan, lan
        self.prefix = f"gd{os.getpid()}.{next(_rigs)}-"
        self._keepers: dict[Where, subprocess.Popen[bytes]] = {}
        self._processes: list[subprocess.Popen[Any]] = []  # of str or bytes
        self._janitor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        reason = available()
        assert not reason, reason
        sweep()
        words = [sys.executable, "-I", "-S", netns_janitor.__file__, self.prefix]
        self._janitor = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            assert self._janitor.stdout and self._janitor.stdout.readline() == b"ready\n"
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills all processes in the namespaces and removes these; also when some are missing already."""
        if not self._janitor:
            return
        janitor, self._janitor = self._janitor, None
        janitor.communicate(timeout=60)
        for process in (*self._processes, *self._keepers.values()):
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            process.wait(10)
        assert not janitor.returncode, f"{self.prefix}* could not be removed"

    # Names and addresses

    def name(self, where: Where) -> str:
        """The network namespace of a host, of WORLD or of ROUTER, for `ip netns exec`."""
        return self.prefix + (f"h{where}" if isinstance(where, int) else where[0])

    def address(self, where: Where) -> str:
        """The address where a host or the world is reached."""
        if isinstance(where, int):
            return f"10.77.0.{10 + where}"
        return {WORLD: "10.79.0.2", ROUTER: "10.77.0.1"}[where]

    def root(self, where: Where) -> Path:
        """The file system as seen there, with what is mounted only there."""
        return Path(f"/proc/{self._keepers[where].pid}/root")

    # Processes

    def popen(
        self,
        where: Where,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        **settings: Any,  # subprocess.Popen's own
    ) -> subprocess.Popen[Any]:
        """Starts a process there, with the pid of the program itself; what is left at the end is killed."""
        enter = ["nsenter", "--target", str(self._keepers[where].pid), "--net", "--mount", "--uts", "--"]
        words = [*enter, "env", "--chdir", str(cwd or Path.cwd()), *map(str, argv)]
        process = subprocess.Popen(words, env=env, **settings)
        self._processes.append(process)
        return process

    def run(
        self, where: Where, argv: Sequence[str | Path], *, timeout: float = 60, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program there to its end and gives what it wrote; one that takes too long is killed."""
        process = self.popen(
            where, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        finally:
            self._processes.remove(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def signal(self, where: Where, number: signal.Signals) -> int:
        """Sends every process there a signal; how many there were.

        SIGKILL is the death of a host, SIGSTOP freezes it (its kernel still acknowledges what arrives),
        SIGCONT thaws it.
        """
        pids = [pid for pid in pids_in(self.name(where)) if pid != self._keepers[where].pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(pid, number)
        return len(pids)

    def clear(self) -> None:
        """Kills all that was started, everywhere, and waits for its end."""
        for where in self._keepers:
            self.signal(where, signal.SIGKILL)
        for process in self._processes:
            process.wait(10)

    # Links

    def cut(self, where: Where) -> None:
        """Pulls the cable of a host, or the uplink (WORLD): nothing passes, and nobody is told."""
        if where == WORLD:
            self._ip("rule", "add", *_NOTHING, where=PROVIDER)
        else:
            self._ip("link", "set", f"p{where}", "down")

    def slow(self, where: Where, share: float = SLOW) -> None:
        """Leaves a host, or the uplink, this share of its rate, both ways."""
        self._shape(where, share)

    def mend(self, where: Where) -> None:
        """A cut or slow link is as it was, up to a second later: so long may the kernel wait to say so."""
        if where == WORLD:
            self._ip("rule", "delete", *_NOTHING, where=PROVIDER, check=False)  # it was not cut
        else:
            self._ip("link", "set", f"p{where}", "up")
        self._shape(where)

    def allow_wan(self, hosts: Collection[int] | None) -> None:
        """Only these hosts reach the world (None: all): what others send there vanishes at the router."""
        for host in range(self.hosts):
            rule = ["from", self.address(host), "to", self.address(WORLD), "blackhole"]
            self._ip("rule", "delete", *rule, check=False)  # there may be none
            if hosts is not None and host not in hosts:
                self._ip("rule", "add", *rule)

    def disk(self, where: Where, path: Path, nbytes: int) -> None:
        """Mounts a file system of this size at `path`, seen only there and through `root`, or resizes it."""
        path.mkdir(parents=True, exist_ok=True)
        kind = "remount,size" if (self.root(where) / path.relative_to("/")).is_mount() else "size"
        done = self.run(where, ["mount", "-t", "tmpfs", "-o", f"{kind}={nbytes}", "tmpfs", path])
        assert not done.returncode, done.stderr

    # Counters

    def traffic(self) -> Traffic:
        """What went over the links so far, from the router's counters."""
        ports = parse_ports(Path(f"/proc/{self._keepers[ROUTER].pid}/net/dev").read_text())
        wan = ports["wan0"]
        return Traffic(
            Link(into=wan.out, out=wan.into), tuple(ports[f"p{host}"] for host in range(self.hosts))
        )

    def resent(self, where: Where) -> int:
        """TCP segments that were sent again from there so far."""
        lines = Path(f"/proc/{self._keepers[where].pid}/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])

    # Building

    def _build(self) -> None:
        for where in (ROUTER, PROVIDER, WORLD, *range(self.hosts)):
            self._add(where)
        for where in (ROUTER, PROVIDER):
            self._run("ip", "netns", "exec", self.name(where), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._ip("link", "add", "br0", "type", "bridge")
        self._ip("address", "add", f"{self.address(ROUTER)}/24", "dev", "br0")
        self._ip("link", "set", "br0", "up")
        self._wire((WORLD, "eth0", "10.79.0.2/30"), (PROVIDER, "eth0", "10.79.0.1/30"))
        self._wire((PROVIDER, "wan0", "10.78.0.2/30"), (ROUTER, "wan0", "10.78.0.1/30"))
        self._route(WORLD, "default", "via", "10.79.0.1")
        self._route(PROVIDER, "default", "via", "10.78.0.1")
        self._route(ROUTER, "default", "via", "10.78.0.2")
        self._shape(WORLD)
        for host in range(self.hosts):
            self._wire((host, "eth0", f"{self.address(host)}/24"), (ROUTER, f"p{host}", ""))
            self._ip("link", "set", f"p{host}", "master", "br0")
            self._route(host, "10.77.0.0/24", "dev", "eth0", "proto", "kernel", "src", self.address(host))
            self._route(host, "default", "via", self.address(ROUTER))
            self._shape(host)

    def _add(self, where: Where) -> None:
        """A namespace, and its keeper, whose name and mounts all processes there share."""
        name = self.name(where)
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._ip("link", "set", "lo", "up", where=where)
        settings = SETTINGS / name
        settings.mkdir(parents=True)
        known: list[Where] = [WORLD, *range(self.hosts)]
        lines = ["127.0.0.1 localhost", *(f"{self.address(at)} {self._hostname(at)}" for at in known)]
        (settings / "hosts").write_text("\n".join(lines) + "\n")
        (settings / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # nobody there: refused at once
        words = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", _KEEPER, self._hostname(where)]
        keeper = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._keepers[where] = keeper
        assert keeper.stdout and keeper.stdout.readline() == b"ready\n", f"{name} does not start"

    def _wire(self, *ends: tuple[Where, str, str]) -> None:
        """A link between two namespaces, each end with its device's name and its address, or none."""
        (first, device, _), (second, peer, _) = ends
        self._ip("link", "add", device, "type", "veth", "peer", peer, "netns", self.name(second), where=first)
        for where, device, address in ends:
            if address:
                self._ip("address", "add", address, "dev", device, where=where)
            self._ip("link", "set", device, "gso_max_size", str(_PACKET_BYTES), "up", where=where)

    def _route(self, where: Where, *words: str) -> None:
        """A route, on which every machine's TCP behaves alike, whatever its default."""
        known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        self._ip("route", "replace", *words, *_CONGESTION[: 2 * (_CONGESTION[1] in known)], where=where)

    def _shape(self, where: Where, share: float = 1.0) -> None:
        """Both ends of a host's link, or of the uplink, let through a share of the full rate."""
        full = self.wan if where == WORLD else self.lan
        if full is None:
            return
        rate = full * share
        burst = max(round(rate * _BURST_SECONDS), _MIN_BURST_BYTES)
        limit = burst + round(rate * _QUEUE_SECONDS)
        shape = ["tbf", "rate", f"{round(8 * rate)}bit", "burst", f"{burst}", "limit", f"{limit}"]
        lower, upper = (ROUTER, PROVIDER) if where == WORLD else (where, ROUTER)
        down, up = ("wan0", "wan0") if where == WORLD else (f"p{where}", "eth0")
        for end, device in ((upper, down), (lower, up)):
            self._run("tc", "-n", self.name(end), "qdisc", "replace", "dev", device, "root", *shape)

    def _hostname(self, where: Where) -> str:
        return f"h{where}" if isinstance(where, int) else where

    def _ip(self, *words: str, where: Where = ROUTER, check: bool = True) -> None:
        self._run("ip", "-n", self.name(where), *words, check=check)

    def _run(self, *words: str, check: bool = True) -> None:
        done = subprocess.run(words, capture_output=True, text=True)
        assert not check or not done.returncode, f"{' '.join(words)}: {done.stderr.strip()}"
