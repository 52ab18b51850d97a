"""Hosts of a cluster, each a real process on loopback: each byte comes in once, and faults cost little."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from gdist.core.magnet import Magnet
from gdist.exchange.ports import free_port
from gdist.run.cluster import way
from gdist.run.verify import verify
from gdist.stores import open as open_store
from gdist.testing.agents import WAIT_SECONDS, Agents
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Array, tree_of
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

pytestmark = [pytest.mark.torrent, pytest.mark.slow]

PIECE = 1 << 16
LINE = 6_000_000  # bytes a second into the cluster
# What four seconds of one host's line bring in may come in again: leases, and what was not written down yet;
# and what was on its way, in buffers of the slow line.
AGAIN = 4 * LINE // 4 + (2 << 20)
COPIES = {"axes": ["data"], "rules": [[".*", []]]}


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    """Some 20 MB: 300 pieces."""
    root = tmp_path_factory.mktemp("from") / "grok"
    return root, write_grok1(root, layers=6, emb=192, ffn=768, vocab=2048)


@pytest.fixture
def seeded(grok: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(grok[0], piece_length=PIECE) as found:
        yield found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Seeded]:
    """So little that it is there long before any deadline."""
    write_grok1(tmp_path / "small", layers=1, emb=96, ffn=192, vocab=384)
    with seed(tmp_path / "small", piece_length=1 << 15) as found:
        yield found


def nbytes(grok: tuple[Path, dict[str, Array]]) -> int:
    return sum(path.stat().st_size for path in grok[0].rglob("*") if path.is_file())


def assert_once(seeded: Seeded, nbytes: int) -> None:
    """That all of it came in, and hardly anything twice.

    Not "nothing": a lease is taken over from a host that is slow, and on a busy machine any host may be.
    """
    assert nbytes <= seeded.stats().uploaded <= 1.05 * nbytes


def assert_whole(agents: Agents, expected: dict[str, Array]) -> None:
    """That all hosts together have every tensor, and that each verifies what it has."""
    with open_store(agents.stores) as found:
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert found[name].read().tobytes() == np.ascontiguousarray(array).tobytes(), name
    for store in agents.stores:
        assert verify(store).ok
        assert not (store / ".gdist").exists()


def slowed(seeded: Seeded, slow: Slow) -> Seeded:
    """The same torrent, reached another way."""
    magnet = Magnet(seeded.magnet.info_hash, seeded.magnet.name, peers=((LOCALHOST, slow.port),))
    return replace(seeded, magnet=magnet)


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ("2x4", ()),
        ("4x1", ("--encrypt",)),
        ("2x4", ("--gateways", "2")),
        ("2x4", ("--select", "decoder_layer_1|embed", "--dtype", "bfloat16")),
    ],
)
def test_each_byte_comes_in_once(
    mesh: str, options: tuple[str, ...], grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 4, *options, mesh=mesh) as agents:
        agents.start_all()
        assert agents.wait_all() == [0] * 4, agents.said()
        uploaded = seeded.stats().uploaded
        if "--select" in options:
            assert uploaded < 0.6 * nbytes(grok)
        else:
            assert_once(seeded, nbytes(grok))
            assert_whole(agents, grok[1])
        if "--gateways" not in options:
            shares = [agents.told(index, "cluster_progress")[-1]["wan_rate"] for index in range(4)]
            assert len(shares) == 4
        agents.start_all()
        assert agents.wait_all() == [0] * 4
        assert all(agents.events(index)[-1]["already"] for index in range(4))
        assert not any(agents.told(index, "stage_started") for index in range(4)), "they know that all are"
        assert seeded.stats().uploaded == uploaded, "a second run fetches nothing"


@pytest.mark.jax
def test_both_exchanges_write_the_same_stores(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even shares moved by XLA's collectives end as what slices from the others make, to the byte."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    stores = []
    for exchange in ("swarm", "collective"):
        with Agents(seeded, tmp_path / exchange, 2, "--exchange", exchange, mesh="2x4") as agents:
            agents.start_all()
            assert agents.wait_all() == [0, 0], agents.said()
            assert_whole(agents, grok[1])
            stores.append([tree_of(store) for store in agents.stores])
    assert stores[0] == stores[1]
    assert_once(seeded, 2 * nbytes(grok))


@pytest.mark.parametrize("gateways", ["all", "1"])
def test_full_copies_on_every_host(
    gateways: str, grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(COPIES))
    with Agents(seeded, tmp_path, 3, "--rules", str(rules), "--gateways", gateways, mesh="data=3") as agents:
        agents.start_all()
        assert agents.wait_all() == [0] * 3, agents.said()
        assert_once(seeded, nbytes(grok))
        assert_whole(agents, grok[1])


def test_a_header_of_many_pieces_is_read_from_all_who_brought_them_in(tmp_path: Path) -> None:
    """Its pieces come in at several hosts; the one that reads it has to know of all of them at once."""
    tensors = {f"layer.{n}.{'long' * 40}": np.full((4, 4), n, np.float32) for n in range(600)}
    write_safetensors(tmp_path / "llama", tensors, shards=1)
    with (
        seed(tmp_path / "llama", piece_length=1 << 14) as seeded,
        Agents(seeded, tmp_path, 3, mesh="3") as agents,
    ):
        agents.start_all()
        assert agents.wait_all() == [0] * 3, agents.said()
        assert_once(seeded, sum(f.stat().st_size for f in (tmp_path / "llama").iterdir()))
        assert_whole(agents, tensors)


def test_a_killed_host_starts_again_and_little_comes_in_twice(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Slow(seeded.port, rate=LINE) as slow, Agents(slowed(seeded, slow), tmp_path, 4, mesh="4") as agents:
        agents.start_all()
        agents.until_ready(2, 20)
        agents.kill(2)
        slow.rate = 30e6
        time.sleep(0.5)
        agents.start(2)
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert slow.passed <= nbytes(grok) + AGAIN


def test_the_coordinator_is_killed_and_starts_again(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Slow(seeded.port, rate=LINE) as slow, Agents(slowed(seeded, slow), tmp_path, 4, mesh="4") as agents:
        agents.start_all()
        agents.until_ready(0, 20)
        agents.kill(0)
        slow.rate = 30e6
        time.sleep(0.5)
        agents.start(0)
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert slow.passed <= nbytes(grok) + AGAIN


def test_another_coordinates_when_host_0_never_comes_back(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    hosts = [f"{LOCALHOST}:{free_port()}" for _ in range(3)]
    options = ("--hosts", ",".join(hosts), "--linger", "4s")
    with (
        Slow(seeded.port, rate=LINE) as slow,
        Agents(slowed(seeded, slow), tmp_path, 3, *options, mesh="data=3") as agents,
    ):
        for index in range(3):
            agents.start(index, "--coordinator", hosts[0])
        agents.until(lambda: agents.told(2, "planned"), "host 2 has met host 0")
        agents.until_ready(1, 10)
        agents.kill(0)
        slow.rate = 50e6
        assert agents.wait(1) == agents.wait(2) == 0, agents.said()
        assert all(verify(agents.dest(index)).ok for index in (1, 2))
        assert slow.passed <= nbytes(grok) + 2 * AGAIN
        last = agents.told(1, "cluster_progress")[-1]
        assert last["waits_for"] == [0]
        assert last["inside_bytes"] == last["union_bytes"] > nbytes(grok) / 2


def test_hosts_that_come_long_before_host_0_wait_for_it(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 2, mesh="2") as agents:
        agents.start(1)
        agents.until(lambda: agents.told(1, "stage_started"))
        time.sleep(way.TAKEOVER_SECONDS + 2)
        agents.start(0)
        assert agents.wait_all() == [0, 0], agents.said()
        assert_once(seeded, nbytes(grok))


def test_all_are_killed_and_the_line_is_run_again(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Slow(seeded.port, rate=LINE) as slow, Agents(slowed(seeded, slow), tmp_path, 4, mesh="4") as agents:
        agents.start_all()
        agents.until_ready(1, 20)
        for index in range(4):
            agents.kill(index)
        slow.rate = 50e6
        agents.start_all()
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert slow.passed <= nbytes(grok) + 4 * AGAIN


def test_a_late_host_takes_what_the_others_kept_for_it(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 4, mesh="4") as agents:
        for index in range(3):
            agents.start(index)
        agents.until(lambda: agents.serves(0), "host 0 serves")
        agents.start(3)
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert_once(seeded, nbytes(grok))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_hosts_that_are_complete_give_what_they_held_when_the_line_is_run_again(
    kind: signal.Signals, grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 4, mesh="1x4") as agents:  # each host needs a part of every piece
        early = range(3)
        for index in early:
            agents.start(index)
        agents.until(lambda: all(map(agents.serves, early)), "all serve but host 3")
        for index in early:
            agents.kill(index, kind)
        assert kind == signal.SIGKILL or [agents.wait(index) for index in early] == [20] * 3, agents.said()
        agents.processes.clear()  # their ends are no surprise
        agents.start(3)
        agents.until(lambda: agents.told(3, "stage_started"), "host 3 is there, before who is complete looks")
        for index in early:
            agents.start(index)
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert nbytes(grok) <= seeded.stats().uploaded <= nbytes(grok) + AGAIN


def test_a_gateway_that_is_complete_brings_in_for_others_when_the_line_is_run_again(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    """Host 3 comes when nobody serves any more, and cannot reach the outside."""
    with Agents(seeded, tmp_path, 4, "--gateways", "0", "--linger", "1s", mesh="4") as agents:
        for index in (1, 2):
            agents.start(index)
            agents.until(lambda index=index: agents.told(index, "stage_started"))  # type: ignore[misc]
        agents.start(0)  # it lingers for a second, and they are there
        assert [agents.wait(index) for index in range(3)] == [0] * 3, agents.said()
        agents.start(3, "--linger", "10m")
        agents.until(lambda: agents.told(3, "stage_started"), "host 3 is there, before who is complete looks")
        for index in range(3):
            agents.start(index, "--linger", "10m")
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        agents.start_all()
        assert agents.wait_all() == [0] * 4, agents.said()
        assert not agents.told(0, "stage_started"), "all know now that all are done"


def test_a_lone_host_has_a_deadline_probes_and_a_report_too(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    port, page = free_port(), tmp_path / "report.html"
    probes, report = ("--http", f"{LOCALHOST}:{port}"), ("--report", str(page))
    way = Slow(seeded.port, rate=LINE / 3, limit=3 * nbytes(grok) / 4)
    with way as slow, Agents(slowed(seeded, slow), tmp_path, 1) as agents:
        agents.start(0, *probes, "--deadline", "12s")
        agents.until_ready(0, 1)
        assert urlopen(f"http://{LOCALHOST}:{port}/livez").status == 200
        assert agents.wait(0) == 11
        assert "not done at the deadline" in agents.told(0, "error")[-1]["message"]
        slow.rate, slow.limit = 50e6, inf
        agents.start(0, *report)
        assert agents.wait(0) == 0, agents.said()
        assert_whole(agents, grok[1])
        assert "1 of 1" in page.read_text()


def test_a_host_with_a_slow_line_stops_as_soon(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    """What it reads from others takes half a minute; it is not waited for."""
    with Agents(seeded, tmp_path, 2, "--max-lan", "20kB/s", mesh="1x2") as agents:
        agents.start_all()
        agents.until(lambda: agents.inside(1) > nbytes(grok) // 2, "half of it came in")
        asked = time.monotonic()
        agents.kill(1, signal.SIGTERM)
        assert agents.wait(1) == 20
        assert time.monotonic() - asked < 20


def test_a_host_that_is_stopped_hands_over_and_goes_on_later(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Slow(seeded.port, rate=LINE) as slow, Agents(slowed(seeded, slow), tmp_path, 4, mesh="4") as agents:
        agents.start_all()
        agents.until_ready(2, 20)
        asked = time.monotonic()
        agents.kill(2, signal.SIGTERM)
        assert agents.wait(2) == 20
        assert time.monotonic() - asked < 30  # ten, where nothing else runs
        slow.rate = 50e6
        agents.start(2)
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert slow.passed <= nbytes(grok) + AGAIN


def test_a_frozen_host_is_done_without(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    """What it had leased and held comes in by others; awake again, it gets its own part."""
    with (
        Slow(seeded.port, rate=LINE) as slow,
        Agents(slowed(seeded, slow), tmp_path, 4, "--linger", "30s", mesh="4") as agents,
    ):
        agents.start_all()
        agents.until_ready(2, 20)
        agents.kill(2, signal.SIGSTOP)
        slow.rate = 50e6
        agents.until(lambda: agents.serves(0) and agents.serves(1), "hosts 0 and 1 serve")
        agents.kill(2, signal.SIGCONT)
        assert agents.wait_all() == [0] * 4, agents.said()
        assert_whole(agents, grok[1])
        assert slow.passed <= nbytes(grok) + AGAIN


def test_a_second_process_of_a_host_waits_for_the_first(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 2, mesh="2") as agents:
        agents.start(0)
        agents.until(lambda: (agents.dest(0) / ".gdist").exists())
        first = agents.processes[0]
        second = agents.start(0)
        agents.until(lambda: agents.told(0, "note"))
        agents.start(1)
        assert first.wait(WAIT_SECONDS) == second.wait(WAIT_SECONDS) == agents.wait(1) == 0
        assert_whole(agents, grok[1])
        assert_once(seeded, nbytes(grok))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mesh", "4x2"), "the hosts disagree on the mesh"),
        (("--secret", "other"), "another secret"),
        (("--dtype", "float32"), "the hosts disagree on the type"),
        (("--host", "0/2", "--port", "0"), "host 0 is another process already"),
    ],
)
def test_hosts_that_do_not_belong_together_refuse_each_other(
    options: tuple[str, ...], words: str, seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 2, mesh="8") as agents:
        agents.start(0)
        agents.until(lambda: (agents.dest(0) / ".gdist").exists())
        agents.until(lambda: agents.told(0, "stage_started"))
        time.sleep(0.5)
        agents.start(1, *options)
        assert agents.wait(1) == 15
        said = agents.errors(1)
        assert words in said and "Traceback" not in said
        assert not list(agents.dest(1).glob("*/zarr.json")), "nothing was written"


@pytest.mark.parametrize("torrent", [True, False], ids=["has the torrent", "has nothing"])
def test_what_a_host_knows_from_an_earlier_run_is_not_looked_for_outside(
    torrent: bool, seeded: Seeded, tmp_path: Path
) -> None:
    way = Slow(seeded.port, rate=1_000_000)
    with way, Agents(slowed(seeded, way), tmp_path, 2, mesh="2") as agents:
        agents.start_all()
        for index in (0, 1):
            agents.until(lambda index=index: agents.told(index, "planned"), "a plan")  # type: ignore[misc]
        for index in (0, 1):
            agents.kill(index)
    (work,) = (agents.dest(0) / ".gdist").glob("*host-00000*")
    kept = (work / "source.torrent").read_bytes()
    shutil.rmtree(agents.dest(0))
    if torrent:
        work.mkdir(parents=True)
        (work / "source.torrent").write_bytes(kept)
    with agents:  # and nobody outside
        agents.start(0)
        agents.until(lambda: agents.told(0, "stage_started"), "a start")
        agents.until(
            lambda: agents.told(0, "stage_started")[-1]["stage"] in ("metadata", "headers"), "a scout"
        )
        agents.start(1)
        for index in (1, 0):
            agents.until(lambda index=index: agents.told(index, "planned"), "a plan")  # type: ignore[misc]


def test_hosts_that_are_missing_at_the_deadline_are_named(small: Seeded, tmp_path: Path) -> None:
    with Agents(small, tmp_path, 3, "--gateways", "2", "--deadline", "20s", mesh="data=3") as agents:
        agents.start(0)
        agents.start(1, "--deadline", "12s")
        assert agents.wait(0) == agents.wait(1) == 16
        assert "hosts 2 of 3 are not here" in agents.errors(1)
        assert "hosts 2 of 3 are not here and hosts 1 of 3 left before they were done" in agents.errors(0)


def test_hosts_that_were_done_and_left_count_at_the_deadline(small: Seeded, tmp_path: Path) -> None:
    with Agents(small, tmp_path, 3, "--min-hosts", "2", "--deadline", "25s", mesh="data=3") as agents:
        agents.start(0)
        agents.start(1, "--deadline", "15s")
        assert agents.wait(1) == 0, agents.said()
        assert agents.wait(0) == 0, agents.said()
        assert "hosts 2 of 3 are not here; what they need comes in again" in json.dumps(agents.events(0))
        events = agents.events(0)
        served = next(event for event in events if event.get("stage") == "serve")
        assert events[-1]["seconds"] <= served["time"] - events[0]["time"] + 1, (
            "how long it served is not in it"
        )


@pytest.mark.parametrize(("fewest", "code"), [(1, 0), (2, 16)])
def test_a_host_that_is_done_does_not_wait_beyond_the_deadline(
    fewest: int, code: int, small: Seeded, tmp_path: Path
) -> None:
    options = ("--deadline", "20s", "--min-hosts", str(fewest), "--report", str(tmp_path / "run.html"))
    with Agents(small, tmp_path, 2, *options, mesh="2") as agents:
        agents.start(0)
        assert agents.wait(0) == code, agents.said()
        assert "hosts 1 " in json.dumps(agents.events(0))
        assert (tmp_path / "run.html").exists(), "of a run that ends early too"
        assert verify(agents.dest(0)).ok, "its own part is there all the same"


def test_a_lone_host_needs_nobody(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, tmp_path: Path
) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GDIST_")}
    with Agents(seeded, tmp_path, 1) as agents:
        line = agents.command(0)
        at = line.index("--host")
        done = subprocess.run(line[:at] + line[at + 4 :], capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stderr
        assert_whole(agents, grok[1])
