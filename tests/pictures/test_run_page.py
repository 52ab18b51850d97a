"""The page of a run: whole in itself, its numbers those of the record, bounded, and names are text."""

from __future__ import annotations

from typing import Any

import pytest

from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, MemberStatus, Stage
from gdist.pictures.run_charts import MOST_BARS, binds_shares
from gdist.pictures.run_page import MOST_HOSTS, run_page
from gdist.run.recorder import Recorder, RunRecord
from gdist.testing.pages import HOSTILE, SHOWN, assert_whole_in_itself, read

MB, GB = 10**6, 10**9


def run(hosts: int, seconds: int = 60, name: str = "node", release: str = "grok-1") -> RunRecord:
    """A run in which host 1 is lost half way, and the last host comes late and is not done."""
    recorder = Recorder()
    wanted = 40 * GB
    for second in range(seconds + 1):
        members = []
        for index in range(hosts):
            if index == hosts - 1 and second < 40:
                continue
            share = min(second / seconds * (1.1 - 0.1 * index / hosts), 1.0)
            last = index == hosts - 1
            share = share / 2 if last else share
            done = share == 1.0
            status = AgentStatus(
                index,
                hosts,
                f"{name}{index}",
                "/data",
                Stage.SERVE if done else Stage.FETCH,
                float(second),
                True,
                release=release,
                info_hash="ab" * 20,
                bytes_wanted=wanted,
                bytes_placed=int(wanted * share),
                tensors=10,
                wan_bytes=int(share * 320 * GB / hosts),
                lan_in_bytes=int(share * (wanted - 320 * GB // hosts)) if hosts > 8 else int(share * GB),
                binds=Binds.LAN if index % 3 else Binds.NETWORK,
                hash_failures=2 if index == 0 else 0,
            )
            lost = index == 1 and 20 <= second < 30
            state = MemberState.LOST if lost else MemberState.DONE if done else MemberState.LIVE
            members.append(MemberStatus(status, f"10.0.0.{index % 250}:7611", state, 0.0))
        recorder.add(
            ClusterStatus(
                0,
                hosts,
                float(second),
                tuple(members),
                union_bytes=318 * GB,
                inside_bytes=min(int(second / seconds * 318 * GB), 318 * GB),
                pieces=18_969,
            )
        )
    record = recorder.record()
    assert record is not None
    return record


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return run(8)


def test_the_page_is_whole_in_itself_and_small(record: RunRecord) -> None:
    text = run_page(record)
    page = read(text)
    assert_whole_in_itself(text, page)
    assert len(text.encode()) < 100_000
    assert text == run_page(record)  # no date, no chance


def test_the_page_says_what_was_recorded(record: RunRecord) -> None:
    text = read(run_page(record)).text
    assert "with 8 hosts" in text and "ab" * 20 in text and "18969 pieces" in text
    assert "time1m 00s7 of 8 hosts complete" in text
    ratio = record.wan_bytes / (318 * GB)
    assert f"{ratio:.3f} times what is needed" in text
    assert "came 30 s after the first, or later1 host: 7" in text
    assert "were lost, or left, before they were complete1 host: 1" in text
    assert "were not complete at the end1 host: 7" in text
    assert "got pieces with wrong bytes1 host: 0" in text
    for host in record.hosts:
        assert f"{host.index}node{host.index}10.0.0.{host.index}:7611" in text


def test_the_share_of_the_least_time_is_said(record: RunRecord) -> None:
    share = record.share_of_bound
    assert share is not None and 0 < share <= 1
    page = read(run_page(record)).text
    assert f"it reached {100 * share:.0f} % of that" in page and f"of the least time{share:.0%}" in page
    assert "at the fastest rates that were seen" in page


def test_every_picture_has_a_title_a_description_and_a_table(record: RunRecord) -> None:
    page = read(run_page(record))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(pictures) == 7
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for attrs in pictures:
        assert all(name in ids for name in (attrs["aria-labelledby"] or "").split())
    assert sum(tag == "table" for tag, _ in page.tags) == 4


def test_the_shares_of_what_binds_are_of_the_time_at_work(record: RunRecord) -> None:
    shares = binds_shares(record)
    assert set(shares) == {Binds.LAN, Binds.NETWORK} and sum(shares.values()) == pytest.approx(1)
    assert shares[Binds.LAN] > shares[Binds.NETWORK]


def test_of_2600_hosts_the_page_is_bounded() -> None:
    record = run(2600, seconds=50)
    text = run_page(record)
    page = read(text)
    assert_whole_in_itself(text, page)
    assert len(text.encode()) < 400_000
    assert f"And {2600 - MOST_HOSTS} more hosts" in page.text
    assert "hosts 0 to 6, each:" in page.text and MOST_BARS < 2600 / 6
    assert "2599" in page.text, "the one that is not complete is listed"


def test_names_are_text() -> None:
    text = run_page(run(3, name=HOSTILE, release=HOSTILE))
    page = read(text)
    assert_whole_in_itself(text, page)
    assert SHOWN in page.text


def test_a_short_run_has_a_page() -> None:
    assert "2 hosts" in read(run_page(run(2, seconds=1))).text


def one_moment(**values: Any) -> RunRecord:
    recorder = Recorder()
    recorder.add(ClusterStatus(0, 4, 0.0, (), **values))
    record = recorder.record()
    assert record is not None
    return record


def test_a_run_that_nobody_came_to_has_a_page() -> None:
    page = read(run_page(one_moment()))
    assert "No host came." in page.text and "never came4 hosts: 0-3" in page.text
    assert "It is not known" in page.text and "No host was seen at work." in page.text
