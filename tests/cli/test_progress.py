"""What the views make of events: no process, no swarm."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import threading
import time

import pytest
from rich.console import Console

from gdist.cli import words
from gdist.cli.jsonlines import JsonLines
from gdist.cli.live import LiveView
from gdist.cli.pace import Pace
from gdist.cli.plain import PlainLines
from gdist.core.magnet import InfoHash
from gdist.core.status import MemberState
from gdist.events import (
    Binds,
    ClusterProgress,
    Event,
    Finished,
    HashFailed,
    MemberChanged,
    MetadataReceived,
    Note,
    PeerBanned,
    PeerCount,
    Planned,
    Progress,
    Stage,
    StageStarted,
    TensorReady,
    TrackerAnswer,
)

GB = 10**9


def progress(seconds: float, placed: int, wasted: int = 0, uploaded: int = 0) -> Progress:
    return Progress(
        seconds=seconds,
        bytes_verified=placed,
        bytes_placed=placed,
        bytes_wanted=318 * GB,
        tensors_ready=412,
        tensors=1218,
        download_rate=612_000_000,
        upload_rate=0,
        downloaded=placed,
        uploaded=uploaded,
        peers=12,
        seeds=8,
        wasted=wasted,
        binds=Binds.NETWORK,
    )


STORY = (
    StageStarted(Stage.METADATA),
    TrackerAnswer("udp://tracker.example:1", False, "timed out", 0),
    MetadataReceived(InfoHash(b"\x11" * 20), "grok-1", 318 * GB, 18969),
    Note("read '&amp;' as '&'"),
    StageStarted(Stage.PLAN),
    Planned(1218, 1218, 18969, 318 * GB, 318 * GB, 0, 318 * GB, "data=8,model=8", 0, 1),
    StageStarted(Stage.FETCH),
    TensorReady("params.transformer.decoder_layer_10.multi_head_attention.query.w.weight" * 2, 1),
)


def test_the_rate_follows_what_is_done_and_ignores_what_was_there() -> None:
    pace = Pace()
    pace.update(0, 100 * GB)
    assert pace.remaining(GB) is None
    for second in range(1, 120):
        pace.update(second, 100 * GB + second * GB)
    assert pace.rate == pytest.approx(GB)
    assert pace.remaining(60 * GB) == pytest.approx(60)
    for second in range(120, 300):  # twice as slow from now on
        pace.update(second, 219 * GB + (second - 119) * GB // 2)
    assert pace.rate == pytest.approx(GB / 2, rel=0.01)
    assert pace.remaining(0) == 0


def test_lines_for_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines(every=0)
    for event in (*STORY, progress(1, 0), progress(2, GB), HashFailed(3), progress(3, 2 * GB, wasted=5)):
        view(event)
    view(Finished("/data/grok-1", 318 * GB, 520, False, (("waiting for pieces", 400.0), ("placing", 90.0))))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "looking for peers and metadata"
    assert lines[1] == "tracker udp://tracker.example:1: timed out"
    assert lines[2] == f"grok-1: 318.00 GB in 18969 pieces, info-hash {'1' * 40}"
    assert "note: read '&amp;' as '&'" in lines
    assert any(line.endswith("binds: network   ETA --") for line in lines)
    assert any("0.6%" in line and "wasted 5 B   ETA 5m 16s   1 piece failed" in line for line in lines)
    assert lines[-2:] == [
        "complete: 318.00 GB in 8m 40s, 612 MB/s",
        "threads' time went to: waiting for pieces 6m 40s · placing 1m 30s",
    ]


def test_lines_come_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines(every=3600)
    for second in range(100):
        view(progress(second, second))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_picture_fits_its_terminal(width: int) -> None:
    shown = picture(width, (*STORY, progress(1, 0), progress(2, 166 * GB)))
    assert len(shown) == 5  # nothing wraps
    assert all(len(line) <= width for line in shown)
    if width >= 80:
        assert shown[0].startswith("grok-1  11111111  318.00 GB · data=8,model=8")
        assert "52.2%" in shown[1] and "ETA 1 s" in shown[1]
        assert shown[2] == "placed   166.00 GB of 318.00 GB   412 of 1218 tensors ready"
        assert shown[3] == "swarm    in 612 MB/s   peers 12 (8 seeds)   binds: network"
        assert shown[4].startswith("ready    params.transformer.decoder_layer_10.")


def test_what_went_wrong_is_shown_only_then() -> None:
    calm = "\n".join(picture(120, (*STORY, progress(1, 0))))
    assert "wasted" not in calm and "failed" not in calm and "out " not in calm
    events = (*STORY, HashFailed(1), PeerBanned("127.0.0.1:1"), progress(1, 0, wasted=5, uploaded=1))
    rough = "\n".join(picture(120, events))
    assert "wasted 5 B" in rough and "1 piece failed their hash, 1 peer banned" in rough
    assert "out 0 B/s" in rough


def test_before_the_metadata_it_says_who_answered() -> None:
    shown = "\n".join(picture(80, STORY[:2]))
    assert "looking for peers and metadata" in shown
    assert "trackers 0 ok, 1 failed" in shown


def test_the_end_stays_and_the_picture_goes() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, width=80, force_terminal=False))
    for event in STORY:
        view(event)
    view(Finished("/data/grok-1", 318 * GB, 2, False, ()))
    view.close()
    assert out.getvalue().splitlines()[-1] == "complete: 318.00 GB in 2.0 s, 159 GB/s"


def test_a_share_is_all_only_when_it_is() -> None:
    assert words.share(999_999, 1_000_000) == "99.9%"
    assert words.share(10, 10) == "100%"
    assert words.share(0, 0) == "100%"


def picture(width: int, events: tuple[object, ...]) -> list[str]:
    """The lines that the live view would draw after some events."""
    out = io.StringIO()
    view = LiveView(Console(file=io.StringIO(), width=width, force_terminal=False))
    try:
        for event in events:
            view(event)  # type: ignore[arg-type]  # all of them are events
        Console(file=out, width=width, force_terminal=False).print(view.draw())
    finally:
        view.close()
    return out.getvalue().splitlines()


def tickers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "gdist-lines"}


def second_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The line after the first, as soon as it is there."""
    said, limit = "", time.monotonic() + 60
    while said.count("\n") < 2:
        assert time.monotonic() < limit, said
        time.sleep(0.01)
        said += capsys.readouterr().err
    return said.splitlines()[1]


def test_a_log_says_that_it_still_waits(capsys: pytest.CaptureFixture[str]) -> None:
    view, before = PlainLines(every=0.05), tickers()
    view(PeerCount(1, 0))
    view(StageStarted(Stage.METADATA))
    (ticking,) = tickers() - before
    assert re.fullmatch(r"still looking for metadata: 1 peer, \d.*s", second_line(capsys))
    view(StageStarted(Stage.PLAN))
    ticking.join(60)  # planning and fetching speak for themselves
    assert not tickers() - before


def test_a_log_of_what_asks_no_swarm_counts_no_peers(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines(every=0.05)
    view(StageStarted(Stage.HEADERS))
    assert re.fullmatch(r"still reading headers: \d.*s", second_line(capsys))
    view.close()


def test_the_end_tells_what_this_host_keeps_and_fetched() -> None:
    plan = Planned(10, 10, 9, 4 * GB, 5 * GB, 3 * GB, 8 * GB, "model=2", 0, 2)
    told = words.finished(Finished("/data/model", 8 * GB, 2, False, ()), plan)
    assert told == "complete: 4.00 GB of 8.00 GB on host 0 of 2 in 2.0 s, 500 MB/s"


def test_what_is_converted_is_told_as_it_is_kept() -> None:
    plan = Planned(10, 10, 9, 4 * GB, 5 * GB, 2 * GB, 9 * GB, "model=2", 0, 2, bytes_kept=8 * GB)
    assert "keeps 8.00 GB, fetches 5.00 GB" in words.planned(plan)
    told = words.finished(Finished("/data/model", 16 * GB, 2, False, ()), plan)
    assert told == "complete: 8.00 GB of 16.00 GB on host 0 of 2 in 2.0 s, 2.0 GB/s"


# --- clusters ---------------------------------------------------------------------------------------------

CLUSTER = ClusterProgress(
    hosts=8,
    live=5,
    done=2,
    union_bytes=318 * GB,
    inside_bytes=159 * GB,
    wan_rate=100_000_000,
    lan_in_rate=1_200_000_000,
    lan_out_rate=800_000_000,
    held_bytes=2 * GB,
    leased_pieces=40,
    slowest=5,
    binds=Binds.LAN,
    waits_for=(),
)
HOSTS = "hosts 7 of 8, 2 done   inside 50.0% of 318.00 GB   slowest host 5"
BETWEEN = "in 1.2 GB/s   out 800 MB/s   holds 2.00 GB   brings in 40 pieces"


@pytest.mark.parametrize("width", [40, 100])
def test_the_picture_of_a_host_of_a_cluster(width: int) -> None:
    shown = picture(width, (*STORY, progress(1, 0), CLUSTER, progress(2, 166 * GB)))
    assert len(shown) == 7 and all(len(line) <= width for line in shown)
    if width == 100:
        assert shown[3] == "swarm    in 612 MB/s   peers 12 (8 seeds)   binds: network between hosts"
        assert shown[4:6] == [f"cluster  {HOSTS}", f"between  {BETWEEN}"]


def test_a_host_that_serves_the_others_shows_the_cluster() -> None:
    shown = picture(100, (*STORY, CLUSTER, StageStarted(Stage.SERVE)))
    assert shown[1].startswith("complete, and serving other hosts")
    assert shown[2] == f"cluster  {HOSTS}"


def test_lines_of_a_host_of_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainLines(every=0)
    for event in (*STORY, CLUSTER, progress(1, 0), StageStarted(Stage.SERVE), CLUSTER):
        view(event)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3].endswith(f"binds: network between hosts   ETA --   {HOSTS}   between hosts {BETWEEN}")
    assert lines[-2:] == ["complete, and serving other hosts", f"{HOSTS}   out 800 MB/s"]


def test_hosts_that_are_done_say_for_whom_they_wait() -> None:
    waits = dataclasses.replace(CLUSTER, hosts=3, live=0, done=2, slowest=None, waits_for=(1,))
    assert words.hosts(waits).startswith("hosts 2 of 3, 2 done   inside 50.0%")
    assert words.hosts(waits).endswith("   waits for host 1, which is not here")
    several = words.hosts(dataclasses.replace(waits, hosts=6, waits_for=(1, 3, 4)))
    assert several.endswith("   waits for hosts 1,3-4, which are not here")


def test_what_the_run_itself_binds_is_not_the_network() -> None:
    event = dataclasses.replace(progress(1, 0), binds=Binds.DISK)
    assert words.rates(event, CLUSTER).endswith("binds: disk")


def test_hosts_that_go_and_come_back_are_told_of_and_thousands_that_come_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes: list[Event] = [MemberChanged(i, MemberState.LIVE, f"10.0.0.{i}:7611") for i in range(100)]
    changes += [MemberChanged(3, state, "10.0.0.3:7611") for state in (MemberState.LOST, MemberState.LIVE)]
    changes += [
        MemberChanged(4, MemberState.LEFT, "10.0.0.4:7611"),
        MemberChanged(5, MemberState.DONE, "x:1"),
        MemberChanged(5, MemberState.LEFT, "x:1"),
    ]
    told = [
        "host 3 (10.0.0.3:7611) says nothing any more: others take over what it was to bring in",
        "host 3 (10.0.0.3:7611) is back",
        "host 4 (10.0.0.4:7611) left before it was done: others take over what it was to bring in",
    ]
    view = PlainLines(every=0)
    for change in changes:
        view(change)
    assert capsys.readouterr().err.splitlines() == told
    out = io.StringIO()
    live = LiveView(Console(file=out, width=120, force_terminal=False))
    for change in changes:
        live(change)
    live.close()
    assert [line for line in out.getvalue().splitlines() if line.startswith("host")] == told


def test_cluster_events_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    lines = JsonLines(2)
    lines(CLUSTER)
    lines(MemberChanged(3, MemberState.LOST, "10.0.0.3:7611"))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["event"], first["host"], first["slowest"], first["binds"]) == (
        "cluster_progress",
        2,
        5,
        "lan",
    )
    assert (second["event"], second["index"], second["state"]) == ("member_changed", 3, "lost")
