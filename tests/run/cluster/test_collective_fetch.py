"""A collective fetch by real processes: what is told of it, by anyone who asks, while it runs and after."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gdist import api
from gdist.core.magnet import Magnet
from gdist.core.status import AgentStatus, MemberStatus, Stage
from gdist.core.units import parse_bytes
from gdist.errors import GdistError
from gdist.run.watch import Watch
from gdist.testing.agents import Agents
from gdist.testing.checkpoints import write_grok1
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

pytestmark = [pytest.mark.torrent, pytest.mark.slow, pytest.mark.jax]

LINE = 2_500_000  # bytes a second into the cluster: shares take some seconds


@pytest.fixture
def slowed(tmp_path: Path) -> Iterator[Seeded]:
    write_grok1(tmp_path / "grok", layers=4, emb=192, ffn=768, vocab=2048)
    with seed(tmp_path / "grok", piece_length=1 << 16) as seeded, Slow(seeded.port, rate=LINE) as slow:
        name, peers = seeded.magnet.name, ((LOCALHOST, slow.port),)
        yield replace(seeded, magnet=Magnet(seeded.magnet.info_hash, name, peers=peers))


def test_what_is_told_is_true_in_every_phase(
    slowed: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    report = tmp_path / "run.html"
    options = ("--exchange", "collective", "--report", str(report))
    told: list[AgentStatus] = []
    members: list[MemberStatus] = []
    with Agents(slowed, tmp_path, 2, *options, mesh="2x2") as agents:
        agents.start_all()
        agents.until((agents.dest(1) / ".gdist").exists)
        with Watch(str(agents.dest(1)), ask=True) as watch:
            while agents.processes[1].poll() is None:
                for sight in watch.look():
                    assert sight.running or sight.complete or agents.processes[1].poll() is not None
                    told.append(sight.status)
                try:
                    cluster = api.cluster_status(agents.dest(1))
                except GdistError:  # it has no agent yet, or none any more
                    continue
                members += cluster.members
        assert agents.wait_all() == [0, 0], agents.said()
        events = agents.events(1)
        wire = sum(agents.told(index, "move_progress")[-1]["bytes_wire"] for index in range(2))
    stages = [status.stage for status in told]
    assert {Stage.FETCH, Stage.EXCHANGE} <= set(stages)
    assert not any(status.tensors_ready for status in told if status.stage is Stage.FETCH), "only shares"
    exchanging = [member for member in members if member.status.stage is Stage.EXCHANGE]
    assert exchanging and all(member.works for member in exchanging), "the cluster is not done either"
    assert Stage.SERVE not in stages, "what is complete then are shares"
    names = [event["stage"] for event in events if event["event"] == "stage_started"]
    assert names == ["join", "metadata", "headers", "plan", "fetch", "exchange", "finish"]
    (finished,) = (event for event in events if event["event"] == "finished")
    assert finished["seconds"] > 0.9 * (finished["time"] - events[1]["time"]), "of shares and exchange"
    assert finished["timing"]["waiting for pieces"] and finished["timing"]["placing what came"]
    assert events[-1]["seconds"] >= finished["seconds"]
    page = re.sub(r"<[^>]*>|\s+", " ", report.read_text())
    between = re.search(r"went between hosts +([\d.]+ [kMG]?B)", page)
    assert between and parse_bytes(between[1], "bytes") > 0.98 * wire > 0
    assert re.search(r"2 of 2 hosts +complete", page) and "were lost, or left" not in page
