"""The page of a plan: whole in itself, its numbers those of the plan, and names are text."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from gdist import api
from gdist.core.bound import lower_bound
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.rules import Rule, Rules
from gdist.core.units import format_bytes
from gdist.pictures.charts import moment
from gdist.pictures.plan_page import plan_page, rows_of, timeline
from gdist.run.plan import PlanReport
from gdist.testing.pages import HOSTILE, SHOWN, assert_whole_in_itself, read


@pytest.fixture(scope="module")
def report() -> PlanReport:
    return api.plan("grok-1", mesh="8x8", hosts=8, wan="10Gb/s", lan="100Gb/s", details=True)


def test_the_page_is_whole_in_itself_and_small(report: PlanReport) -> None:
    text = plan_page(report)
    assert_whole_in_itself(text, read(text))
    assert len(text.encode()) < 200_000
    assert text == plan_page(report)  # no date, no chance


def test_the_page_says_what_the_plan_says(report: PlanReport) -> None:
    page = read(plan_page(report))
    for cost in report.hosts:
        row = f"{cost.host.index}{cost.host.index * 8}-{cost.host.index * 8 + 7}"
        row += f"{format_bytes(cost.bytes_wanted)}{format_bytes(cost.bytes_touched)}{cost.amplification:.2f}"
        assert row in page.text
    assert report.info_hash in page.text and "data=8,model=8: 64 devices" in page.text
    assert "faster than 4m 15s. The wan term sets it." in page.text
    assert "318.24 GB / 1.25 GB/s" in page.text and "318.76 GB / (1.25 GB/s + 8 × 12.50 GB/s)" in page.text
    assert "params.transformer.decoder_layer_{0..63}.moe.linear_1.w.weight" in page.text
    assert "assumed: the release's own is not known" in page.text
    assert all(note in page.text for note in report.notes)
    assert r"(^|\.)moe\.linear_1\.w$P(None, model, data)" in page.text


def test_both_exchanges_are_on_the_page_and_the_chosen_one_is_marked(report: PlanReport) -> None:
    text = plan_page(report)
    page = read(text)
    swarm, collective = report.exchanges
    for cost in (swarm, collective):
        row = f"{cost.exchange.value}{format_bytes(cost.wan)}{format_bytes(cost.wan_most)}"
        assert row + f"{format_bytes(cost.lan)}{format_bytes(cost.lan_most)}" in page.text
    assert report.choice is not None and report.choice.reason in page.text
    assert '<tr class="binds"><td>swarm</td>' in text
    alone = replace(report, exchanges=(), choice=None)
    assert "Between the hosts" not in plan_page(alone)


def test_every_picture_has_a_title_a_description_and_a_table(report: PlanReport) -> None:
    page = read(plan_page(report))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(pictures) == 4
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for attrs in pictures:
        assert all(name in ids for name in (attrs["aria-labelledby"] or "").split())
    assert sum(tag == "table" for tag, _ in page.tags) == 7
    assert {attrs.get("scope") for tag, attrs in page.tags if tag == "th"} == {"col", "row"}
    assert ("html", {"lang": "en"}) in page.tags


def test_rows_are_kinds_of_tensors_and_lose_no_byte(report: PlanReport) -> None:
    assert report.details is not None
    rows = rows_of(report.details.tensors)
    assert (len(rows), sum(row.tensors for row in rows)) == (21, report.tensors)
    assert sum(row.fetched for row in rows) == sum(cost.bytes_touched for cost in report.hosts)
    assert sum(row.kept for row in rows) == sum(cost.bytes_wanted for cost in report.hosts)
    worst = max(rows, key=lambda row: row.over)
    assert worst.name.endswith("{0..63}.moe.linear_1.w.weight") and worst.first.run == 768


def test_the_timeline_ends_with_the_last_byte(report: PlanReport) -> None:
    assert report.details is not None and report.bound is not None
    ready, seconds = timeline(report, report.details)
    assert seconds and [group.name for group in ready] == [
        "embedding",
        *(f"layer {n}" for n in range(64)),
        "rest",
    ]
    assert ready[-1].stop == pytest.approx(report.bound.seconds)
    assert all(a.stop == b.start for a, b in itertools.pairwise(ready))
    slow = replace(report.details, lan=1e8)  # a link of a host that is slower than the way in
    assert timeline(report, slow)[0][-1].stop == max(cost.bytes_touched for cost in report.hosts) / 1e8
    shares, seconds = timeline(report, replace(report.details, wan=None))
    assert not seconds and shares[-1].stop == 1
    assert (moment(1, seconds=False), moment(0.9999, seconds=False)) == ("100%", "99.9%")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give --wan, and --lan for the links"),
        ({"mesh": "8x8", "host": "3/8", "wan": "1GB/s"}, "It needs all hosts"),
        pytest.param({"mesh": "8x8", "hosts": 64}, "as a share of all bytes", marks=pytest.mark.slow),
        ({"mesh": "8", "rules": {"rules": [[".*", []]]}, "hosts": 8}, "each of 8 hosts"),
    ],
)
def test_plans_of_all_kinds_have_a_page(options: dict[str, object], said: str) -> None:
    text = plan_page(api.plan("grok-1", details=True, **options))  # type: ignore[arg-type]
    page = read(text)
    assert_whole_in_itself(text, page)
    assert said in page.text
    assert len(text.encode()) < 2_000_000


def test_hostile_text_is_text(report: PlanReport) -> None:
    assert report.details is not None
    spec = PartitionSpec(((HOSTILE,),))
    tensor = replace(report.details.tensors[0], name=HOSTILE, spec=spec, dtype=HOSTILE)
    stage = replace(report.details.stages[0], name=HOSTILE)
    details = replace(
        report.details, tensors=(tensor,), stages=(stage,), rules=Rules((), (Rule(HOSTILE, spec),))
    )
    mesh = Mesh(((HOSTILE, 8), ("model", 8)))
    text = plan_page(
        replace(report, name=HOSTILE, mesh=mesh, info_hash=HOSTILE, notes=(HOSTILE,), details=details)
    )
    page = read(text)
    assert_whole_in_itself(text, page)
    assert "\u202e" not in text and "\x00" not in text
    assert page.text.count(SHOWN) >= 7


def test_a_hostile_number_of_tensors_stays_a_page(report: PlanReport) -> None:
    assert report.details is not None
    first, stage = report.details.tensors[0], report.details.stages[0]
    tensors = tuple(replace(first, name=f"w{'x' * (n % 200)}_{n}y") for n in range(20_000))
    stages = tuple(replace(stage, name=f"layer {n}") for n in range(20_000))
    text = plan_page(replace(report, details=replace(report.details, tensors=tensors, stages=stages)))
    page = read(text)
    assert len(text.encode()) < 2_000_000
    assert "And 19600 more kinds" in page.text and "layer 0 to layer 142" in page.text


def test_nothing_to_fetch_is_a_page_too(report: PlanReport) -> None:
    assert report.details is not None
    nothing = replace(
        report.hosts[0], host=HostGroup(), bytes_wanted=0, bytes_touched=0, amplification=1.0, pieces=0
    )
    details = replace(report.details, tensors=(), stages=(), rules=None)
    bound = lower_bound([0], 0, wan=1.0)
    empty = replace(report, hosts=(nothing,), union=0, details=details, bound=bound, complete=True)
    page = read(plan_page(empty))
    assert "Nothing: every piece is kept whole." in page.text and "No rules were given" in page.text
