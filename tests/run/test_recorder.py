"""What is recorded of a run: totals that lose nothing, and no more of it than fits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, MemberStatus, Stage
from gdist.run.recorder import LATE_SECONDS, MOST_SAMPLES, Recorder, RunRecord, joined_hosts

MB = 10**6


def member(index: int, count: int, state: MemberState = MemberState.LIVE, **values: Any) -> MemberStatus:
    first: dict[str, Any] = {"stage": Stage.FETCH, "seconds": 0.0, "live": True, "bytes_wanted": 100 * MB}
    status = AgentStatus(index, count, f"node{index}", "/data", **(first | values))
    return MemberStatus(status, f"10.0.0.{index}:7611", state, 0.0)


def moment(seconds: float, *members: MemberStatus, count: int = 2, **values: Any) -> ClusterStatus:
    first: dict[str, Any] = {"union_bytes": 100 * MB}
    return ClusterStatus(0, count, seconds, members, **(first | values))


def recorded(*statuses: ClusterStatus) -> RunRecord:
    recorder = Recorder()
    for status in statuses:
        recorder.add(status)
    record = recorder.record()
    assert record is not None
    return record


def test_nothing_is_recorded_of_nothing() -> None:
    assert Recorder().record() is None


def test_hosts_come_and_go_and_are_done() -> None:
    record = recorded(
        moment(0.0, member(0, 2)),
        moment(1.0, member(0, 2), member(1, 2)),
        moment(2.0, member(0, 2), member(1, 2, MemberState.LOST)),
        moment(3.0, member(0, 2, stage=Stage.SERVE), member(1, 2)),
        moment(4.0, member(0, 2, MemberState.DONE, stage=Stage.FINISH), member(1, 2, stage=Stage.SERVE)),
    )
    first, second = record.hosts
    assert (first.came, first.done, first.gone) == (0.0, 3.0, None)
    assert (second.came, second.done, second.gone) == (1.0, 4.0, 2.0)
    assert record.seconds == 4.0
    assert [sample.done for sample in record.samples] == [0, 0, 0, 1, 2]
    assert [sample.gone for sample in record.samples] == [0, 0, 1, 0, 0]
    assert [sample.working for sample in record.samples] == [1, 2, 1, 1, 0]


def test_bytes_of_a_host_that_starts_again_are_not_forgotten() -> None:
    record = recorded(
        moment(0.0, member(0, 1, wan_bytes=10), count=1),
        moment(1.0, member(0, 1, wan_bytes=50, lan_in_bytes=5, lan_out_bytes=7), count=1),
        moment(2.0, member(0, 1, wan_bytes=3, lan_in_bytes=0), count=1),
        moment(3.0, member(0, 1, wan_bytes=20, lan_in_bytes=8), count=1),
    )
    (host,) = record.hosts
    assert (host.wan_bytes, host.lan_in_bytes, host.lan_out_bytes, host.starts) == (70, 13, 7, 2)
    assert record.wan_bytes == 70
    assert [sample.wan_bytes for sample in record.samples] == [10, 50, 53, 70]


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=4000))
def test_samples_are_bounded_and_keep_first_and_last(steps: list[float]) -> None:
    times = [0.0, *itertools.accumulate(steps)]
    recorder = Recorder()
    for seconds in times:
        recorder.add(moment(seconds, member(0, 1, wan_bytes=int(seconds * 1000)), count=1))
    record = recorder.record()
    assert record is not None
    seen = [sample.seconds for sample in record.samples]
    assert len(seen) <= MOST_SAMPLES + 1
    assert seen == sorted(set(seen)) and set(seen) <= set(times)
    assert (seen[0], seen[-1]) == (0.0, times[-1])
    assert record.samples[-1].wan_bytes == record.wan_bytes


def test_the_fastest_rate_is_one_that_lasted() -> None:
    statuses = []
    for second in range(40):
        fast = min(max(second - 10, 0), 10)  # ten seconds of 9 MB/s more
        wan = second * MB + fast * 9 * MB + (5 * MB if second > 30 else 0)  # and a burst of one
        host = member(0, 1, seconds=float(second), wan_bytes=wan)
        statuses.append(moment(float(second), host, count=1))
    record = recorded(*statuses)
    assert record.wan_rate == pytest.approx(100 * MB / (10 + LATE_SECONDS))
    assert record.link_rate == pytest.approx(10 * MB)


def test_bytes_that_are_told_late_make_no_line_faster() -> None:
    statuses = []
    for half in range(240):
        told = half / 2 - 0.9 * (half % 7 / 6)  # up to so many seconds late
        host = member(0, 1, seconds=half / 2, wan_bytes=int(max(told, 0) * 4 * MB))
        statuses.append(moment(half / 2, host, count=1))
    record = recorded(*statuses)
    assert 3.9 * MB < record.wan_rate <= 4 * MB


def test_the_bound_is_no_longer_than_the_run() -> None:
    statuses = [
        moment(
            float(second),
            member(0, 2, wan_bytes=4 * second * MB, lan_in_bytes=2 * second * MB),
            member(1, 2, lan_in_bytes=4 * second * MB),
        )
        for second in range(26)
    ]
    record = recorded(*statuses)
    assert record.bound is not None
    assert record.bound.seconds == pytest.approx(25.0)
    assert recorded(moment(9.0, member(0, 2))).bound is None


def test_what_a_new_coordinator_saw_of_the_run_makes_the_bound_no_longer_than_it() -> None:
    """It came to coordinate when nearly all was there, and the rest came slowly."""
    statuses = [
        moment(float(s), member(0, 2, wan_bytes=(60 * MB + s * MB)), member(1, 2, lan_in_bytes=50 * MB))
        for s in range(20, 50)
    ]
    record = recorded(*statuses)
    assert record.bound is not None and record.bound.seconds <= 49.0
    assert record.share_of_bound is not None and 0.9 < record.share_of_bound <= 1
    late = recorded(*statuses[:15])
    assert late.bound is None and late.share_of_bound is None, "it saw too little of it"


def test_a_short_run_says_nothing_of_how_fast_it_could_be() -> None:
    """Its rates are those of all of it: by them it would always reach the bound."""
    statuses = [moment(float(s), member(0, 1, wan_bytes=s * MB), count=1) for s in range(12)]
    assert recorded(*statuses[:10]).bound is None
    assert recorded(*statuses).bound is not None


def test_while_a_host_that_is_done_serves_the_share_of_the_bound_stays() -> None:
    recorder = Recorder()
    shares = set()
    for second in range(600):
        here = min(second, 20) * 5 * MB
        stage = Stage.SERVE if second >= 30 else Stage.FETCH
        seen = [member(0, 2, seconds=float(second), wan_bytes=here, stage=stage)]
        if second < 25:
            seen.append(member(1, 2, seconds=float(second)))
        else:
            seen.append(member(1, 2, MemberState.LEFT))
        recorder.add(moment(float(second), *seen))
        record = recorder.record()
        assert record is not None
        if second >= 30:
            assert record.seconds == 30.0
            shares.add(record.share_of_bound)
    assert record.samples[-1].seconds == 30.0, "what nobody works on is not drawn"
    (share,) = shares
    assert share is not None and 0.6 < share < 0.8


def test_who_stood_in_for_host_0_tells_only_of_an_end() -> None:
    """While others were at work it may have given its place back, and knows no more."""
    recorder, first = Recorder(), Recorder()
    assert not recorder.tells and not first.tells
    last = member(0, 2, stage=Stage.SERVE), member(1, 2)
    for where, coordinator in ((recorder, 1), (first, 0)):
        where.add(replace(moment(1.0, member(0, 2), member(1, 2)), coordinator=coordinator))
        where.add(replace(moment(2.0, *last), coordinator=coordinator))
    assert not recorder.tells and first.tells
    done = member(0, 2, stage=Stage.SERVE), member(1, 2, stage=Stage.SERVE)
    recorder.add(replace(moment(3.0, *done), coordinator=1))
    assert recorder.tells


def test_time_goes_on_when_a_host_comes_late() -> None:
    record = recorded(
        moment(1.0, member(0, 2)),
        moment(2.0, member(0, 2, stage=Stage.SERVE)),
        moment(8.0, member(0, 2, stage=Stage.SERVE)),
        moment(9.0, member(0, 2, stage=Stage.SERVE), member(1, 2)),
    )
    assert record.seconds == 9.0


def test_a_host_that_leaves_when_it_is_complete_is_not_gone() -> None:
    record = recorded(
        moment(1.0, member(0, 2), member(1, 2, stage=Stage.SERVE)),
        moment(2.0, member(0, 2), member(1, 2, MemberState.LEFT, stage=Stage.SERVE)),
    )
    assert record.hosts[1].gone is None and record.samples[-1].gone == 0


@given(st.data())
def test_the_share_of_the_bound_is_never_more_than_all(data: st.DataObject) -> None:
    recorder = Recorder()
    seconds, totals = 0.0, [[0, 0], [0, 0]]
    for _ in range(data.draw(st.integers(1, 40))):
        seconds += data.draw(st.floats(0.01, 30))
        members = []
        for index, total in enumerate(totals):
            total[0] += data.draw(st.integers(0, 10 * MB))
            total[1] += data.draw(st.integers(0, 10 * MB))
            state, stage = data.draw(st.sampled_from(MemberState)), data.draw(st.sampled_from(Stage))
            values = {"seconds": seconds, "wan_bytes": total[0], "lan_in_bytes": total[1], "stage": stage}
            members.append(member(index, 2, state, **values))
        recorder.add(moment(seconds, *members))
        record = recorder.record()
        assert record is not None
        if record.bound is not None:
            assert record.bound.seconds <= record.seconds * (1 + 1e-9)
            assert record.share_of_bound is not None and 0 < record.share_of_bound <= 1


def test_what_was_there_before_the_run_sets_no_bound() -> None:
    record = recorded(*(moment(float(s), member(0, 1, wan_bytes=s * MB), count=1) for s in range(11)))
    assert record.bound is not None and record.bound.seconds == pytest.approx(10.0)


def test_what_binds_is_counted_of_hosts_at_work() -> None:
    record = recorded(
        moment(0.0, member(0, 3, binds=Binds.LAN), member(1, 3, binds=Binds.LAN), count=3),
        moment(1.0, member(0, 3, stage=Stage.DONE), member(2, 3, binds=Binds.DISK), count=3),
    )
    names = [kind.value for kind in Binds]
    assert dict(zip(names, record.samples[0].binds, strict=True))["lan"] == 2
    assert sum(record.samples[1].binds) == 1


def test_hosts_are_joined_where_there_are_many() -> None:
    record = recorded(moment(0.0, *(member(index, 10) for index in range(10)), count=10))
    assert [len(group) for group in joined_hosts(record.hosts, 10)] == [1] * 10
    groups = joined_hosts(record.hosts, 4)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    assert [host.index for group in groups for host in group] == list(range(10))
