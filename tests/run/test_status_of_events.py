"""A status is what the events said: of made up runs with a clock of ours, and of a real one while it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gdist.core.magnet import InfoHash, format_magnet
from gdist.core.mesh import HostGroup
from gdist.core.status import AgentStatus
from gdist.errors import RequestError, StalledError
from gdist.events import (
    Binds,
    ClusterProgress,
    Event,
    Finished,
    HashFailed,
    MetadataReceived,
    Note,
    PeerBanned,
    PeerCount,
    PieceVerified,
    Planned,
    Progress,
    Stage,
    StageStarted,
    TensorReady,
    TensorsPlanned,
    TrackerAnswer,
    Waiting,
)
from gdist.run.fetch import fetch
from gdist.run.status_of_events import LIVE_SECONDS, StatusOfEvents
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import fetch_options
from gdist.testing.swarm import seed

NAMES = ("embed", "layers.0.w", "layers.1.w", "head.w")
PLANNED = Planned(4, 4, 9, 400, 400, 100, 400, "1", 1, 2)
PROGRESS = Progress(3.0, 300, 250, 400, 1, 4, 70, 0, 310, 0, 5, 2, 0, Binds.CONVERT)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(*events: Event, clock: Clock | None = None) -> StatusOfEvents:
    found = StatusOfEvents("/data", HostGroup(1, 2), name="node1", clock=clock or Clock())
    for event in events:
        found(event)
    return found


def test_events_become_a_status() -> None:
    clock = Clock()
    found = told(
        StageStarted(Stage.METADATA),
        PeerCount(5, 2),
        MetadataReceived(InfoHash(b"\x11" * 20), "tiny", 400, 9),
        PLANNED,
        TensorsPlanned(NAMES),
        StageStarted(Stage.FETCH),
        PieceVerified(0, 16),
        PieceVerified(1, 16),
        HashFailed(3),
        PeerBanned("10.0.0.9:1"),
        TrackerAnswer("udp://t:1", False, "no", 0),
        TrackerAnswer("udp://t:1", True, "", 3),
        Note("a note"),
        TensorReady("layers.0.w", 100),
        PROGRESS,
        clock=clock,
    )
    clock.now += 7
    assert found.status() == AgentStatus(
        index=1,
        count=2,
        name="node1",
        dest="/data",
        stage=Stage.FETCH,
        seconds=7.0,
        live=True,
        info_hash="11" * 20,
        release="tiny",
        bytes_wanted=400,
        bytes_placed=250,
        tensors=4,
        tensors_ready=1,
        next_tensor="embed",
        pieces=2,
        wan_bytes=310,
        wan_rate=70,
        peers=5,
        binds=Binds.CONVERT,
        hash_failures=1,
        transfer_errors=2,
        note="a note",
    )
    found(ClusterProgress(2, 2, 0, 800, 400, 60, 50, 40, 30, 20, 0, Binds.LAN, ()))
    found(TensorReady("embed", 100))
    last = found.status()
    assert (last.wan_rate, last.lan_in_rate, last.lan_out_rate, last.held_bytes, last.leased) == (
        60,
        50,
        40,
        30,
        20,
    )
    assert last.next_tensor == "layers.1.w"
    found(Finished("/data/tiny", 800, 9.0, False, ()))
    done = found.status()
    assert (done.stage, done.dest, done.bytes_placed, done.tensors_ready) == (
        Stage.DONE,
        "/data/tiny",
        400,
        4,
    )
    assert (done.wan_rate, done.leased, done.next_tensor) == (0, 0, "")
    clock.now += 1000
    assert found.status() == done, "what is over stays as it was"


def test_of_the_network_the_cluster_knows_which_part_binds() -> None:
    lan = ClusterProgress(2, 2, 0, 800, 400, 60, 50, 40, 30, 20, 0, Binds.LAN, ())
    network = replace(PROGRESS, binds=Binds.NETWORK)
    assert told(network, lan).status().binds is Binds.LAN
    assert told(lan, network).status().binds is Binds.LAN
    assert told(lan, PROGRESS).status().binds is Binds.CONVERT
    assert told(PROGRESS, lan).status().binds is Binds.CONVERT
    assert told(lan, replace(lan, binds=Binds.WAITING)).status().binds is Binds.WAITING


def test_where_it_writes_to_may_be_known_later() -> None:
    found = StatusOfEvents("")
    found.goes_to("/data/tiny")
    assert found.status().dest == "/data/tiny"


def test_what_was_here_at_the_start_is_placed() -> None:
    assert told(PLANNED).status().bytes_placed == 100


def test_layers_become_ready_one_by_one() -> None:
    found = told(PLANNED)
    assert not found.ready("all").ready
    found(TensorsPlanned(NAMES))
    found(TensorReady("layers.0.w", 100))
    assert found.ready("layers:0").ready and not found.ready("layers:0-1").ready
    assert found.ready("all").next_tensor == "embed"
    with pytest.raises(RequestError):
        found.ready("layers:2")
    found(Finished("/data", 800, 9.0, True, ()))
    assert found.ready("all").ready


def test_a_run_lives_as_long_as_it_gives_signs() -> None:
    clock = Clock()
    found = told(StageStarted(Stage.METADATA), clock=clock)
    for _ in range(10):
        clock.now += LIVE_SECONDS - 1
        assert found.status().live
        found(Waiting(Stage.METADATA, 0))
    for _ in range(10):
        clock.now += LIVE_SECONDS - 1
        assert found.status().live
        found.waits()
    clock.now += LIVE_SECONDS
    assert not found.status().live
    found(PROGRESS)
    assert found.status().live
    found.failed(StalledError("nothing came"))
    failed = found.status()
    assert (failed.stage, failed.live) == (Stage.FAILED, False)
    assert (failed.error_kind, failed.error) == ("StalledError", "nothing came")


@pytest.mark.torrent
def test_a_real_fetch_told_all_of_it(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "llama", emb=32)
    found = StatusOfEvents(str(tmp_path / "s"))
    seen: list[AgentStatus] = []

    def observe(event: Event) -> None:
        found(event)
        seen.append(found.status())

    with seed(tmp_path / "llama", piece_length=1 << 14) as seeded:
        magnet = format_magnet(seeded.magnet)
        fetch(magnet, tmp_path / "s", fetch_options("2x1"), observe=observe)
    last = seen[-1]
    assert (last.stage, last.live, last.release) == (Stage.DONE, True, "llama")
    assert last.tensors_ready == last.tensors == len(expected)
    assert last.bytes_placed == last.bytes_wanted == sum(array.nbytes for array in expected.values())
    assert last.pieces > 0 and found.ready("all").ready
    over = next(status for status in seen if status.stage is Stage.FINISH)
    assert over.bytes_placed == over.bytes_wanted <= over.wan_bytes
    assert [status.tensors_ready for status in seen] == sorted(status.tensors_ready for status in seen)
    again = StatusOfEvents(str(tmp_path / "s"))
    fetch(magnet, tmp_path / "s", fetch_options("2x1"), observe=again)
    assert again.ready("all").tensors == len(expected) and again.ready("layers:0").ready
    assert replace(again.status(), seconds=0).stage is Stage.DONE


@pytest.mark.torrent
def test_a_host_without_a_shard_of_a_tensor_has_it_ready(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "llama", emb=32)
    with seed(tmp_path / "llama", piece_length=1 << 14) as seeded:
        for host in range(4):
            found = StatusOfEvents("", HostGroup(host, 4))
            options = fetch_options("4x1", f"{host}/4")
            fetch(format_magnet(seeded.magnet), tmp_path / "s", options, observe=found)
            assert found.ready("all").ready and found.status().tensors_ready == found.status().tensors
