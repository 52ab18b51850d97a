"""`gdist status` and `gdist wait` as people and orchestrators run them, beside real fetches."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gdist.cli.status_words import MOST_HOSTS, cluster_text, ready_text, run_text
from gdist.core.failure import Failure
from gdist.core.magnet import format_magnet
from gdist.core.ready import Readiness
from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, MemberStatus, Stage
from gdist.run.watch import Sight
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

LOOPBACK = ("--no-dht", "--listen", "127.0.0.1:0")
GDIST = (sys.executable, "-W", "error", "-m", "gdist")
MB = 10**6


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    return {**kept, **changes}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


def gdist(*arguments: object, **variables: str) -> Done:
    command = [*GDIST, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=180)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A run of the program beside the test."""
    process = subprocess.Popen(
        [*GDIST, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    root = tmp_path_factory.mktemp("from") / "llama"
    write_safetensors(root, layers=8, emb=192)
    with seed(root, piece_length=1 << 14) as found:
        yield found


@contextmanager
def half_way(seeded: Seeded, dest: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    """A fetch that has the embedding, but not all, and gets nothing more."""
    with Slow(seeded.port, rate=200_000) as way:
        magnet = format_magnet(replace(seeded.magnet, peers=((LOCALHOST, way.port),)))
        with started("fetch", magnet, dest, "--mesh", "2x1", *LOOPBACK, *options) as process:
            found = gdist("wait", dest, "--ready", "embedding")
            assert (found.code, found.out) == (0, f"{dest}\n"), found.err
            way.limit = 0
            yield process


@pytest.mark.torrent
def test_a_fetch_is_seen_probed_and_waited_for(seeded: Seeded, tmp_path: Path) -> None:
    dest = tmp_path / "store"
    nothing = gdist("status", dest)
    assert (nothing.code, nothing.out) == (11, "") and "no fetch that writes one" in nothing.err
    with half_way(seeded, dest, "--http", "127.0.0.1:0") as process, started("wait", dest) as waiting:
        seen = gdist("status", dest)
        assert seen.code == 0 and seen.out.startswith(f"{dest}: fetching, for ")
        assert re.search(r"^  ready     \d+ of 75 tensors   embedding", seen.out, re.MULTILINE), seen.out

        line = gdist("status", dest, "--json").lines[-1]
        assert line["event"] == "result" and line["running"] is True and line["complete"] is False
        assert line["hosts"][0]["stage"] == "fetch"  # type: ignore[index]  # as JSON

        good = gdist("status", dest, "--ready", "embedding")
        assert (good.code, good.out) == (0, "embedding: ready, 1 tensor\n")
        later = gdist("status", dest, "--ready", "embedding", "--ready", "all")
        assert later.code == 11 and "\nall: not ready, " in later.out and "error: all of" in later.err
        assert gdist("status", dest, GDIST_READY="embedding layers:0,7").code == 11

        late = gdist("wait", dest, "--timeout", "0.2s")
        assert (late.code, late.out) == (11, "") and " seconds for all of it at " in late.err

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 20
        assert waiting.wait(60) == 20
        out, err = waiting.communicate()
        assert out == "" and "ended: the run was asked to stop" in err

    over = gdist("status", dest)
    assert (
        over.code == 0
        and ": stopped after " in over.out
        and "  error     the run was asked to stop" in over.out
    )
    assert gdist("status", dest, "--ready", "embedding").code == 0, "what is there can be read"
    failed = gdist("status", dest, "--ready", "all", "--json")
    assert failed.code == 20
    assert [line["event"] for line in failed.lines] == ["status", "error"]

    magnet = format_magnet(seeded.magnet)
    assert gdist("fetch", magnet, dest, "--mesh", "2x1", *LOOPBACK).code == 0
    assert gdist("status", dest).out.startswith(f"{dest}: complete\n")
    assert gdist("status", dest, "--ready", "layers:0-7").code == 0
    assert gdist("status", dest, "--ready", "layers:8").code == 2
    assert gdist("wait", dest).out == f"{dest}\n"
    assert gdist("wait", dest, "--json").lines[-1]["complete"] is True


@pytest.mark.torrent
def test_a_killed_fetch_ends_the_wait(seeded: Seeded, tmp_path: Path) -> None:
    dest = tmp_path / "store"
    with half_way(seeded, dest) as process:
        process.kill()
        process.wait(60)
    dead = gdist("wait", dest, "--start-timeout", "0.3s")
    assert dead.code == 11 and "no run was at work on" in dead.err
    assert "not complete, and nobody works on it" in gdist("status", dest).out
    assert gdist("status", dest, "--ready", "all").code == 11


@pytest.mark.torrent
def test_what_cannot_be_asked_is_usage(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for arguments in (
        ("status", tmp_path),
        ("status", tmp_path / "x"),
        ("status", tmp_path / "new", "--ready", "layers"),
        ("wait", tmp_path / "new", "--ready", "layers"),
        ("wait", tmp_path / "new", "--timeout", "soon"),
        ("status", tmp_path / "new", "--host", "3"),
    ):
        assert gdist(*arguments).code == 2, arguments


@pytest.mark.torrent
def test_probes_and_metrics_of_a_fetch(seeded: Seeded, tmp_path: Path) -> None:
    with half_way(seeded, tmp_path / "store", "--http", "127.0.0.1:0") as process:
        assert process.stderr is not None
        note = next(line for line in process.stderr if "probes and metrics at" in line)
        host, port = note.strip().rpartition("http://")[2].split(":")
        with closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:

            def get(path: str) -> tuple[int, str]:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()

            assert get("/livez")[0] == 200
            assert get("/readyz?ready=embedding")[0] == 200
            assert get("/readyz")[0] == 503
            metrics = get("/metrics")[1]
        assert 'gdist_stage{host="0",stage="fetch"} 1.0' in metrics
        assert 'gdist_tensors{host="0"} 75.0' in metrics


def test_a_port_that_is_taken_is_told_before_anything_begins(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = gdist("fetch", "ab" * 20, tmp_path / "store", *LOOPBACK, "--http", f"127.0.0.1:{port}")
    assert done.code == 2 and "cannot listen on" in done.err
    assert not (tmp_path / "store").exists()


# --- words ------------------------------------------------------------------------------------------------


def agent(index: int = 0, count: int = 1, **values: object) -> AgentStatus:
    first: dict[str, object] = {
        "name": f"node{index}",
        "dest": "/data",
        "stage": Stage.FETCH,
        "seconds": 61.0,
        "live": True,
        "bytes_wanted": 100 * MB,
        "bytes_placed": 50 * MB,
        "tensors": 4,
        "tensors_ready": 2,
    }
    return AgentStatus(index, count, **(first | values))  # type: ignore[arg-type]  # by name


def sight(status: AgentStatus, failure: Failure | None = None, running: bool = True) -> Sight:
    names = ("embed", "layers.0.w", "layers.1.w", "head.w")
    return Sight("gdist.json", status, names, frozenset(names[:2]), running, failure)


def test_the_screen_of_a_host_of_a_cluster() -> None:
    status = agent(
        3,
        8,
        release="tiny\x1b[2J",
        info_hash="ab" * 20,
        next_tensor="layers.1.w",
        wan_bytes=10 * MB,
        wan_rate=2 * MB,
        lan_in_bytes=30 * MB,
        lan_in_rate=4 * MB,
        lan_out_rate=5 * MB,
        held_bytes=6 * MB,
        leased=7,
        peers=1,
        binds=Binds.LAN,
        hash_failures=1,
    )
    assert run_text("/data", [sight(status)]).splitlines() == [
        "/data: fetching, for 1m 01s",
        f"  release   tiny\\x1b[2J   {'ab' * 20}",
        "  host      3 of 8 (node3)",
        "  placed    50.00 MB of 100.00 MB   50.0%",
        "  ready     2 of 4 tensors   embedding, layers 0",
        "  next      layers.1.w",
        "  outside   in 2.0 MB/s, 10.00 MB so far, 1 peer",
        "  hosts     in 4.0 MB/s, out 5.0 MB/s, holds 6.00 MB for others, brings in 7 pieces",
        "  binds     network between hosts",
        "  faults    1 piece failed their hash, 0 peers, trackers or hosts failed",
    ]


def test_the_first_line_says_how_it_is() -> None:
    failed = Failure(0, "StalledError", "nothing arrived", "look at the network")
    for status, arguments, said in (
        (agent(live=False), {}, "fetching, for 1m 01s, and gives no sign of life"),
        (agent(), {"running": False}, "not complete, and nobody works on it"),
        (agent(stage=Stage.FAILED), {"failure": failed, "running": False}, "failed after 1m 01s"),
        (agent(stage=Stage.SERVE), {}, "complete, and serving other hosts"),
        (agent(stage=Stage.DONE), {"running": False}, "complete"),
    ):
        assert run_text("/data", [sight(status, **arguments)]).splitlines()[0] == f"/data: {said}"  # type: ignore[arg-type]
    text = run_text("/data", [sight(agent(stage=Stage.FAILED), failed, running=False)])
    assert text.splitlines()[-2:] == ["  error     nothing arrived", "  hint      look at the network"]


def test_many_hosts_are_a_table_of_those_furthest_behind() -> None:
    sights = [sight(agent(index, 100, bytes_placed=index * MB)) for index in range(100)]
    lines = run_text("/data", sights).splitlines()
    assert lines[0] == "/data: 0 of 100 hosts seen here complete, 4.95 GB of 10.00 GB placed, 49.5%"
    assert len(lines) == MOST_HOSTS + 3 and lines[2].split()[0] == "0"
    assert lines[-1] == f"and {100 - MOST_HOSTS} hosts that are further"


def test_readiness_in_a_line() -> None:
    assert ready_text(Readiness("all", 0, 0)) == "all: not ready, its tensors are not known yet"
    assert ready_text(Readiness("head", 1, 1)) == "head: ready, 1 tensor"
    assert ready_text(Readiness("all", 3, 1, "b\n")) == "all: not ready, 1 of 3 tensors; next is b\\n"


def test_the_screen_of_a_cluster() -> None:
    members = (
        MemberStatus(agent(0, 4, stage=Stage.SERVE, wan_bytes=60 * MB), "a:1", MemberState.DONE, 0.2),
        MemberStatus(
            agent(1, 4, bytes_placed=20 * MB, lan_in_bytes=9 * MB, lan_in_rate=MB, binds=Binds.LAN),
            "b:1",
            MemberState.LIVE,
            0.2,
        ),
        MemberStatus(agent(2, 4, wan_bytes=45 * MB), "c:1", MemberState.LOST, 42.0),
    )
    status = ClusterStatus(
        0,
        4,
        50.0,
        members,
        union_bytes=100 * MB,
        inside_bytes=90 * MB,
        pieces=100,
        held=20,
        spent=70,
        bound_seconds=40.0,
        share_of_bound=0.8,
    )
    assert cluster_text(status).splitlines() == [
        "4 hosts: 1 done, 1 lost, for 50 s; host 0 coordinates",
        "missing: 3",
        "outside: 90.00 MB of 100.00 MB are inside, 90.0%; 105.00 MB came in, 1.05 times the union",
        "pieces: 100, of which 20 are held for others, 70 with all",
        "bound: 40 s at the fastest rates seen, for what came so far: 80% of them reached",
        "binds: network between hosts; the slowest is host 1",
        "host  name   is              placed  tensors  outside in          hosts in  out  holds  binds",
        "   0  node0  serve            50.0%      2/4    60.00 MB",
        "   1  node1  fetch            20.0%      2/4              9.00 MB 1.0 MB/s              lan",
        "   2  node2  lost, 42 s ago   50.0%      2/4    45.00 MB",
    ]


def test_a_cluster_of_thousands_fits_a_screen() -> None:
    members = tuple(MemberStatus(agent(i, 2600), f"h{i}:1", MemberState.LIVE, 0.0) for i in range(2600))
    lines = cluster_text(ClusterStatus(0, 2600, 1.0, members)).splitlines()
    assert (
        len(lines) < MOST_HOSTS + 8
        and lines[-1] == f"and {2600 - MOST_HOSTS} hosts that are as far or further"
    )
