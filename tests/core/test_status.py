"""Status documents survive JSON, damaged ones do not pass, and what follows from members is right."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.status import (
    AgentStatus,
    Binds,
    ClusterStatus,
    MemberState,
    MemberStatus,
    Stage,
    parse_agent_status,
    parse_cluster_status,
)
from gdist.errors import CorruptError, RequestError

counts = st.integers(0, 2**53)
times = st.floats(0, 1e7).map(lambda value: round(value, 3))


@st.composite
def agents(draw: st.DrawFn, index: int | None = None, count: int = 4) -> AgentStatus:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "int": counts,
        "float": times,
        "str": st.text(max_size=20),
        "bool": st.booleans(),
        "Stage": st.sampled_from(Stage),
        "Binds": st.sampled_from(Binds),
    }
    values = {field.name: draw(kinds[str(field.type)]) for field in fields(AgentStatus)}
    for part, whole in (("bytes_placed", "bytes_wanted"), ("tensors_ready", "tensors")):
        values[part], values[whole] = sorted((values[part], values[whole]))
    values |= {"index": draw(st.integers(0, count - 1)) if index is None else index, "count": count}
    return AgentStatus(**values)


@st.composite
def clusters(draw: st.DrawFn) -> ClusterStatus:
    count = draw(st.integers(1, 5))
    there = sorted(draw(st.sets(st.integers(0, count - 1))))
    members = tuple(
        MemberStatus(
            draw(agents(index, count)), "10.0.0.1:7611", draw(st.sampled_from(MemberState)), draw(times)
        )
        for index in there
    )
    numbers = [draw(counts) for _ in range(5)]
    bound = draw(st.none() | times)
    return ClusterStatus(draw(st.integers(0, count - 1)), count, draw(times), members, *numbers, bound)


@given(agents())
def test_the_status_of_a_host_survives_json(status: AgentStatus) -> None:
    text = json.dumps(status.to_json())
    assert parse_agent_status(text) == parse_agent_status(json.loads(text)) == status


@given(clusters())
def test_the_status_of_a_cluster_survives_json(status: ClusterStatus) -> None:
    assert parse_cluster_status(json.dumps(status.to_json())) == status


def test_what_a_newer_gdist_adds_is_let_be() -> None:
    status = agent(0)
    assert parse_agent_status({**status.to_json(), "temperature": 41}) == status


@given(st.data())
def test_a_field_that_is_missing_or_of_another_kind_is_a_fault(data: st.DataObject) -> None:
    document = cluster(agent(0), agent(1)).to_json()
    derived = {"missing", "done", "wan_bytes", "slowest", "binds"}
    row: Any = document
    if data.draw(st.booleans()):
        row = row["members"][1]
        if data.draw(st.booleans()):
            row = row["status"]
    key = data.draw(st.sampled_from(sorted(row.keys() - derived)))
    if key != "bound_seconds" and data.draw(st.booleans()):
        del row[key]
    else:
        row[key] = data.draw(st.sampled_from([{}, -1.5, float("nan"), ["x"]]))
    with pytest.raises((CorruptError, RequestError)):
        parse_cluster_status(document)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"index": 4}, "host 4 of 4"),
        ({"bytes_placed": 11}, "11 of 10 bytes"),
        ({"tensors_ready": True}, "no count"),
        ({"seconds": "1"}, "no time"),
        ({"stage": "flying"}, "flying"),
        ({"live": 1}, "no bool"),
    ],
)
def test_values_that_cannot_be_are_faults(change: dict[str, object], why: str) -> None:
    with pytest.raises(CorruptError, match=why):
        parse_agent_status({**agent(0).to_json(), **change})


@pytest.mark.parametrize("text", [b"", b"\xff", "[]", "null", "{}", "[" * 100_000])
def test_what_is_no_document_is_a_fault(text: bytes | str) -> None:
    with pytest.raises(CorruptError, match="host 3 cannot be read"):
        parse_agent_status(text, "host 3")


def test_another_version_says_so() -> None:
    with pytest.raises(RequestError, match="version 2, this gdist reads 1"):
        parse_agent_status({**agent(0).to_json(), "gdist_status": 2})


def test_members_are_of_one_cluster_and_each_is_there_once() -> None:
    for members in ((agent(0), agent(0)), (agent(1), agent(0)), (replace(agent(0), count=5),)):
        with pytest.raises(AssertionError):
            cluster(*members)


def test_who_is_missing_done_and_slowest() -> None:
    status = cluster(
        agent(0, bytes_placed=9), agent(1, stage=Stage.SERVE, bytes_placed=10), agent(3, bytes_placed=4)
    )
    assert (status.missing, status.done, status.slowest) == ((2,), 1, 3)
    assert status.wan_bytes == 3 * 5
    lost = replace(status, members=(*status.members[:2], replace(status.members[2], state=MemberState.LOST)))
    assert lost.slowest == 0
    over = cluster(agent(0, stage=Stage.DONE), agent(1, stage=Stage.FAILED))
    assert (over.slowest, over.binds) == (None, Binds.WAITING)


def test_a_host_that_exchanges_works_though_its_share_is_done() -> None:
    exchanging = MemberStatus(agent(0, stage=Stage.EXCHANGE), "10.0.0.1:7611", MemberState.DONE, 0.0)
    assert exchanging.works and not exchanging.complete
    finished = replace(exchanging, status=agent(0, stage=Stage.DONE))
    assert finished.complete and not finished.works


def test_what_binds_is_what_binds_most_and_of_equals_the_slowest() -> None:
    lan, disk = Binds.LAN, Binds.DISK
    assert cluster(agent(0, binds=lan), agent(1, binds=disk), agent(2, binds=disk)).binds is disk
    assert cluster(agent(0, binds=lan, bytes_placed=1), agent(1, binds=disk, bytes_placed=2)).binds is lan
    assert cluster(agent(0, binds=lan, bytes_placed=2), agent(1, binds=disk, bytes_placed=1)).binds is disk


def agent(index: int, **values: Any) -> AgentStatus:
    first: dict[str, Any] = {"bytes_wanted": 10, "tensors": 2, "tensors_ready": 1, "wan_bytes": 5}
    return AgentStatus(
        index,
        4,
        f"node{index}",
        "/data",
        **{"stage": Stage.FETCH, "seconds": 1.0, "live": True} | first | values,
    )


def cluster(*agents: AgentStatus) -> ClusterStatus:
    members = tuple(MemberStatus(each, f"10.0.0.{each.index}:7611", MemberState.LIVE, 0.5) for each in agents)
    return ClusterStatus(0, 4, 10.0, members, union_bytes=40)
