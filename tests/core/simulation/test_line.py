"""A shared line: fair, work-conserving, and as fast as a step-by-step count says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.simulation.line import FairLine

INF = math.inf


def run_out(line: FairLine) -> list[tuple[float, int]]:
    """Every flow's end, in order."""
    ends = []
    while (found := line.next()) is not None:
        when, flow = found
        line.advance(when)
        assert line.stop(flow) == pytest.approx(0, abs=1e-6)
        ends.append((when, flow))
    return ends


@pytest.mark.parametrize(
    ("flows", "ends"),
    [
        ([(100, INF)], {0: 10}),
        ([(100, INF), (100, INF)], {0: 20, 1: 20}),
        ([(100, INF), (50, INF)], {1: 10, 0: 15}),  # what the short one leaves goes to the long one
        ([(100, 2), (80, INF)], {1: 10, 0: 50}),  # a capped flow leaves the rest to others
        ([(100, 2), (100, 4), (100, INF)], {2: 25, 1: 25, 0: 50}),
        ([(100, 1), (100, 1)], {0: 100, 1: 100}),  # and the line is not full then
        ([(0, INF), (10, INF)], {0: 0, 1: 1}),
    ],
)
def test_flows_end_when_they_should(flows: list[tuple[float, float]], ends: dict[int, float]) -> None:
    line = FairLine(10)
    for flow, (nbytes, cap) in enumerate(flows):
        line.start(flow, nbytes, cap)
    assert {flow: when for when, flow in run_out(line)} == pytest.approx(ends)
    assert line.carried == pytest.approx(sum(nbytes for nbytes, _ in flows))
    assert line.next() is None


def test_a_flow_that_stops_leaves_its_share_to_the_others() -> None:
    line = FairLine(10)
    line.start(0, 100)
    line.start(1, 100)
    assert line.rate_of(0) == 5
    line.advance(4)
    assert line.stop(0) == 80
    assert line.rate_of(1) == 10
    assert run_out(line) == [(12, 1)]
    line.start(0, 30)  # and may start again
    assert run_out(line) == [(15, 0)]


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 50), st.sampled_from([1, 3, 7, 1000])),
        min_size=1,
        max_size=6,
    )
)
def test_it_is_fair_and_never_idle(arrivals: list[tuple[int, int, int]]) -> None:
    line, ends = FairLine(10), {}
    waiting = sorted((when, flow) for flow, (when, *_) in enumerate(arrivals))
    left = {flow: float(nbytes) for flow, (_, nbytes, _) in enumerate(arrivals)}
    active: set[int] = set()
    while waiting or active:
        found = line.next()
        if waiting and (found is None or waiting[0][0] <= found[0]):
            when, flow = waiting.pop(0)
            starts = True
        else:
            assert found is not None
            (when, flow), starts = found, False
        rates = {other: line.rate_of(other) for other in active}
        caps = {other: arrivals[other][2] for other in active}
        if rates:
            full = sum(rates.values()) == pytest.approx(min(10, sum(caps.values())))
            assert full, "the line is full, or every flow has its cap"
            most = max(rates.values())
            assert all(r == pytest.approx(min(caps[o], most)) for o, r in rates.items())
        for other in active:
            left[other] -= rates[other] * (when - line.now)
        line.advance(when)
        if starts:
            line.start(flow, arrivals[flow][1], arrivals[flow][2])
            active.add(flow)
        else:
            line.stop(flow)
            active.remove(flow)
            ends[flow] = when
            assert left[flow] == pytest.approx(0, abs=1e-6)
    assert ends.keys() == left.keys()
