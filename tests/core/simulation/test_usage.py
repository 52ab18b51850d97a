"""Work is spread over spans and none is lost; what binds is what was full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.simulation.usage import WAITING, Cluster, Meter, Resource, Usage, joined

ALONE = Cluster({0: 1, 1: 1})


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20), st.floats(0, 9)), max_size=20), st.floats(0.1, 7)
)
def test_no_work_is_lost(jobs: list[tuple[float, float, float]], width: float) -> None:
    meter = Meter(width)
    for start, length, work in jobs:
        meter.add(start, start + length, work)
    assert sum(meter.spans.values()) == pytest.approx(sum(work for *_, work in jobs))


def test_work_lies_where_it_was_done() -> None:
    meter = Meter(1.0)
    meter.add(0.5, 3.5, 6.0)
    assert meter.spans == {0: 1.0, 1: 2.0, 2: 2.0, 3: 1.0}


def test_what_ends_with_a_span_leaves_no_less_than_nothing_in_the_next() -> None:
    meter = Meter(0.1)
    meter.add(1.65, 1.7, 1.0)  # 1.7 / 0.1 is 17, but 17 * 0.1 is more than 1.7
    assert meter.spans[16] == pytest.approx(1.0) and meter.spans[17] == 0.0


def binds(work: dict[tuple[Resource, int], float], cluster: Cluster = ALONE) -> str:
    usage = Usage(1.0)
    for (resource, host), seconds in work.items():
        usage.meter(resource, host).add(0.0, 1.0, seconds)
    (span,) = usage.spans(1.0, cluster, 1)
    return span.binds


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ({}, WAITING),
        ({(Resource.WAN, 0): 0.9}, "wan"),
        ({(Resource.WAN, 0): 0.5, (Resource.LINK_IN, 0): 1.0, (Resource.LINK_IN, 1): 1.0}, "link in"),
        ({(Resource.LINK_OUT, 0): 0.2, (Resource.LINK_OUT, 1): 1.0}, "link out of host 1"),
        ({(Resource.PYTHON, 0): 0.6, (Resource.PYTHON, 1): 0.6}, WAITING),
        ({(Resource.DISK, 0): 5.0, (Resource.DISK, 1): 0.0}, "disk of host 0"),  # more is no more than full
    ],
)
def test_what_is_full_binds(work: dict[tuple[Resource, int], float], expected: str) -> None:
    assert binds(work) == expected


def test_hosts_that_stand_for_others_count_for_them() -> None:
    many = Cluster({0: 9, 1: 1})
    assert binds({(Resource.CPU, 0): 1.0, (Resource.CPU, 1): 0.1}, many) == "cores"
    assert binds({(Resource.CPU, 0): 0.1, (Resource.CPU, 1): 1.0}, many) == "cores of host 1"


def test_few_gateways_bind_together() -> None:
    cluster = Cluster(dict.fromkeys(range(10), 1), (2, 3))
    assert (
        binds({(Resource.LINK_OUT, 2): 1.0, (Resource.LINK_OUT, 3): 0.9}, cluster)
        == "link out of the gateways"
    )


def test_a_coordinator_without_a_break_binds_where_nothing_else_does() -> None:
    assert binds({}, Cluster({0: 1}, coordinator=1.0)) == "coordinator"
    assert binds({(Resource.WAN, 0): 1.0}, Cluster({0: 1}, coordinator=1.0)) == "wan"
    assert binds({}, Cluster({0: 1}, coordinator=0.5)) == WAITING


def test_workers_bind_where_what_they_wait_for_does_not() -> None:
    full = {(Resource.WORKERS, 0): 1.0, (Resource.WORKERS, 1): 1.0}
    assert binds(full, Cluster({0: 1, 1: 1}, coordinator=1.0)) == "workers"
    assert binds({**full, (Resource.LINK_OUT, 0): 0.9, (Resource.LINK_OUT, 1): 0.9}) == "link out"
    assert binds({**full, (Resource.LINK_OUT, 1): 1.0}) == "link out of host 1"


def test_spans_end_with_the_run_and_neighbours_are_joined() -> None:
    usage = Usage(1.0)
    usage.meter(Resource.WAN).add(0.0, 6.0, 6.0)
    usage.meter(Resource.LINK_IN, 0).add(6.0, 9.5, 3.5)
    usage.meter(Resource.LINK_IN, 1).add(6.0, 9.5, 3.5)
    spans = usage.spans(9.5, ALONE, 5)
    assert [(span.start, span.stop, span.binds) for span in spans] == [
        (0.0, 2.0, "wan"),
        (2.0, 4.0, "wan"),
        (4.0, 6.0, "wan"),
        (6.0, 8.0, "link in"),
        (8.0, 9.5, "link in"),
    ]
    whole = joined(spans)
    assert [(span.start, span.stop, span.binds) for span in whole] == [
        (0.0, 6.0, "wan"),
        (6.0, 9.5, "link in"),
    ]
    assert next(used.all for used in whole[1].used if used.resource is Resource.LINK_IN) == pytest.approx(1.0)
