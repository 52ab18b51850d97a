"""A collective fetch by real processes: what is told of it, by anyone who asks, while it runs and after."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gdist import api
from gdist.cli.exits import code_of
from gdist.core.magnet import Magnet, format_magnet
from gdist.core.mesh import HostGroup
from gdist.core.status import AgentStatus, MemberStatus
from gdist.core.units import parse_bytes
from gdist.errors import GdistError, HostsMissing, RefusedError, Unreachable
from gdist.events import Event, Stage, StageStarted
from gdist.run.collective import fetch_shares, move_shares
from gdist.run.fetch import FetchResult, fetch
from gdist.run.verify import verify
from gdist.run.watch import Watch
from gdist.testing.agents import Agents
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import fetch_options
from gdist.testing.meeting import Meeting, MeetingCarrier
from gdist.testing.shares import assert_same
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
            begun = False  # its directory is there before its lock
            while agents.processes[1].poll() is None:
                for sight in watch.look():
                    begun |= sight.running
                    assert not begun or (
                        sight.running or sight.complete or agents.processes[1].poll() is not None
                    )
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


# --- when the end is missing --------------------------------------------------------------------------------


@pytest.fixture
def seeded(tmp_path: Path) -> Iterator[Seeded]:
    write_grok1(tmp_path / "grok", layers=1, emb=64, ffn=128, vocab=256)
    with seed(tmp_path / "grok", piece_length=1 << 15) as seeded:
        yield seeded


class Killed(BaseException):
    """Stands for a kill: nothing of ours takes note of it."""


def moved_but(victims: set[int], seeded: Seeded, agents: Agents) -> None:
    """Every host has all of its shards; the victims died before their manifest."""
    magnet = format_magnet(seeded.magnet)
    for index in range(2):
        fetch_shares(magnet, agents.dest(index), fetch_options("2x2", f"{index}/2"))
    meeting = Meeting(2)

    def dies(event: Event) -> None:
        if event == StageStarted(Stage.FINISH):
            raise Killed

    def one(carrier: MeetingCarrier) -> FetchResult:
        mine = carrier.index
        try:
            return move_shares(
                agents.dest(mine), HostGroup(mine, 2), carrier, observe=dies if mine in victims else None
            )
        except Killed:
            meeting.leave()
            raise

    results = meeting.run(one)
    assert [type(result) for result in results] == [
        Killed if index in victims else Unreachable for index in range(2)
    ]
    for index in range(2):
        there = (agents.dest(index) / f"gdist.host-0000{index}-of-00002.json").exists()
        assert there == (index not in victims)


@pytest.mark.parametrize("victims", [{0}, {1}, {0, 1}])
def test_a_host_killed_before_its_manifest_ends_what_it_began(
    victims: set[int], seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 2, "--exchange", "collective", mesh="2x2") as agents:
        moved_but(victims, seeded, agents)
        agents.start_all()
        assert agents.wait_all() == [0, 0], agents.said()
        for index in range(2):
            plain = tmp_path / f"plain{index}"
            fetch(format_magnet(seeded.magnet), plain, fetch_options("2x2", f"{index}/2"))
            assert verify(agents.dest(index)).ok
            (agents.dest(index) / ".gdist.hosts").unlink(missing_ok=True)
            assert_same(plain, agents.dest(index))


def test_where_shares_are_gone_the_other_exchange_fetches_what_is_missing(
    seeded: Seeded, tmp_path: Path
) -> None:
    with Agents(seeded, tmp_path, 2, "--exchange", "collective", mesh="2x2") as agents:
        moved_but({1}, seeded, agents)
        shutil.rmtree(agents.dest(1))
        agents.start_all()
        assert agents.wait_all() == [0, code_of(RefusedError)], agents.said()
        said = agents.errors(1)
        assert "complete is host 0" in said and "--exchange swarm" in said
        agents.start_all("--exchange", "swarm")
        assert agents.wait_all() == [0, 0], agents.said()
        assert all(verify(store).ok for store in agents.stores)


def test_hosts_that_do_not_come_are_named_and_waited_for_as_long_as_was_asked(
    seeded: Seeded, tmp_path: Path
) -> None:
    options = ("--exchange", "collective", "--linger", "2s")
    with Agents(seeded, tmp_path, 2, *options, mesh="2x2") as agents:
        fetch_shares(format_magnet(seeded.magnet), agents.dest(0), fetch_options("2x2", "0/2"))
        agents.start(0)
        assert agents.wait(0) == code_of(HostsMissing), agents.said()
        said = agents.errors(0)
        assert "hosts 1 are not here" in said
        assert any("for hosts 1 to come" in note["text"] for note in agents.told(0, "note"))


def test_hosts_that_have_their_shares_already_meet_at_once(seeded: Seeded, tmp_path: Path) -> None:
    """Where host 0 is comes with the first poll, which may be later than the answer that all are here."""
    with Agents(seeded, tmp_path, 2, "--exchange", "collective", mesh="2x2") as agents:
        for index in range(2):
            fetch_shares(format_magnet(seeded.magnet), agents.dest(index), fetch_options("2x2", f"{index}/2"))
        agents.start(0)
        agents.until(lambda: agents.told(0, "member_changed"))
        agents.start(1)
        assert agents.wait_all() == [0, 0], agents.said()
        assert all(verify(store).ok for store in agents.stores)
