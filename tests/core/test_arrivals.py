"""What arrives when: sums over tensors are sums over pieces; nothing is ready before its bytes are there."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.arrivals import Arrival, arrivals, stages_of
from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.plan import HostPlan, plan_host
from gdist.core.tensor import Part, StoredTensor, TensorSpec

MESH = Mesh((("data", 2), ("model", 2)))


def planned(shapes: list[tuple[str, tuple[int, ...]]], piece_length: int, hosts: int) -> list[HostPlan]:
    tensors, position = [], 0
    for name, shape in shapes:
        spec = TensorSpec(name, shape, BY_NAME["int8"])
        tensors.append(StoredTensor(spec, (Part(Extent(position, spec.nbytes), Box.whole(shape)),)))
        position += spec.nbytes
    payload = Payload((PayloadFile("f", 0, position),), piece_length, position)
    return [plan_host(payload, tensors, MESH, None, HostGroup(host, hosts)) for host in range(hosts)]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5),
    st.integers(1, 30),
    st.sampled_from([1, 2, 4]),
)
def test_sums_over_tensors_are_sums_over_pieces(
    sizes: list[tuple[int, int]], piece_length: int, hosts: int
) -> None:
    shapes = [(f"layers.{n}.w", shape) for n, shape in enumerate(sizes)]
    plans = planned(shapes, piece_length, hosts)
    found = arrivals(plans)
    assert sum(arrival.fetched for arrival in found) == sum(plan.bytes_touched for plan in plans)
    assert sum(arrival.kept for arrival in found) == sum(plan.bytes_wanted for plan in plans)
    assert found[-1].largest == max(plan.bytes_touched for plan in plans)
    payload = plans[0].payload
    for number, arrival in enumerate(found):  # the plainest way to say it
        needed = [
            {piece for runs in plan.runs[: number + 1] for run in runs for piece in run} for plan in plans
        ]
        nbytes = [sum(payload.extent_of(piece).length for piece in pieces) for pieces in needed]
        assert arrival.largest == max(nbytes)
        assert arrival.union == sum(payload.extent_of(piece).length for piece in set().union(*needed))


@pytest.mark.parametrize("hosts", [1, 2])
def test_stages_follow_one_another(hosts: int) -> None:
    shapes = [
        ("embed.w", (4, 4)),
        ("layers.0.a", (4, 4)),
        ("layers.0.b", (8, 4)),
        ("norm", (8,)),
        ("head", (4, 4)),
    ]
    plans = planned(shapes, 8, hosts)
    stages = stages_of(plans, arrivals(plans))
    assert [(stage.name, stage.tensors, stage.nbytes) for stage in stages] == [
        ("embedding", 1, 16),
        ("layer 0", 2, 48),
        ("rest", 1, 8),
        ("head", 1, 16),
    ]
    assert all(a.arrival.union <= b.arrival.union for a, b in itertools.pairwise(stages))
    assert stages[-1].arrival.union == plans[0].payload.length


def test_a_stage_waits_for_the_slower_of_the_two_ways() -> None:
    arrival = Arrival(kept=0, fetched=0, union=100, largest=60)
    assert arrival.seconds(wan=10) == 10
    assert arrival.seconds(wan=10, lan=2) == 30
