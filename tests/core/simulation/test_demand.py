"""Groups of equal hosts need what each of their hosts needs, and no byte of the model is forgotten."""

from __future__ import annotations

import pytest

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.needs import Needs, pieces_in_order
from gdist.core.payload import Payload, PayloadFile
from gdist.core.plan import plan_hosts
from gdist.core.rules import parse_rules
from gdist.core.simulation.demand import demand_of, host_groups
from gdist.core.tensor import Part, StoredTensor, TensorSpec
from gdist.errors import RequestError

SHAPES = (("embed.w", (16, 8)), ("layers.0.w", (16, 32)), ("layers.1.w", (16, 32)), ("head.w", (8, 16)))
MESH = Mesh((("replica", 3), ("data", 2), ("model", 2)))
RULES = parse_rules(
    {"axes": ["data", "model"], "rules": [["layers", ["data", "model"]], [".*", [None, "model"]]]}
)


def lay_out(piece_length: int = 100) -> tuple[Payload, list[StoredTensor]]:
    tensors, position = [], 0
    for name, shape in SHAPES:
        spec = TensorSpec(name, shape, BY_NAME["int8"])
        tensors.append(StoredTensor(spec, (Part(Extent(position, spec.nbytes), Box.whole(shape)),)))
        position += spec.nbytes
    return Payload((PayloadFile("f", 0, position),), piece_length, position), tensors


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, ((0,),)),
        (3, ((0, 1, 2),)),  # each has a whole copy
        (6, ((0, 2, 4), (1, 3, 5))),  # two hosts to a copy
        (12, tuple((n, n + 4, n + 8) for n in range(4))),
    ],
)
def test_copies_are_equal_hosts(count: int, groups: tuple[tuple[int, ...], ...]) -> None:
    assert host_groups(MESH, RULES, lay_out()[1], count) == groups


@pytest.mark.parametrize("count", [1, 3, 6, 12])
def test_a_group_needs_what_each_of_its_hosts_plans(count: int) -> None:
    payload, tensors = lay_out()
    demand = demand_of(payload, tensors, MESH, RULES, count)
    assert demand.exact and demand.hosts == count and demand.union == payload.length
    order = pieces_in_order(tensors, payload)
    plans = plan_hosts(payload, tensors, MESH, RULES, [HostGroup(host, count) for host in range(count)])
    needs = Needs(plans)
    for group in demand.groups:
        for host in group.hosts:
            assert {p: n for p, n in zip(order, group.needs, strict=True) if n} == needs.by_piece(host)
            assert group.nbytes == plans[host].bytes_wanted


def test_what_loads_first_is_all_up_to_the_first_layer() -> None:
    payload, tensors = lay_out(128)
    assert demand_of(payload, tensors, MESH, RULES, 3).first == 5  # the embedding's 1 and the layer's 4
    assert demand_of(payload, tensors[2:], MESH, RULES, 3).first == 4
    plain = [tensors[0], tensors[3]]
    assert demand_of(payload, plain, MESH, None, 3).first == 1
    assert demand_of(payload, [], MESH, None, 3).first == 0


def test_of_many_groups_some_stand_for_others() -> None:
    payload, tensors = lay_out()
    demand = demand_of(payload, tensors, MESH, RULES, 12, most_groups=3)
    assert not demand.exact and [group.hosts for group in demand.groups] == [
        (0, 4, 8),
        (1, 5, 9),
        (2, 6, 10, 3, 7, 11),
    ]
    assert demand.hosts == 12


def test_a_mesh_that_does_not_fit_is_refused() -> None:
    payload, tensors = lay_out()
    with pytest.raises(RequestError, match="does not divide"):
        demand_of(payload, tensors, Mesh((("data", 3), ("model", 1))), RULES, 3)
    with pytest.raises(RequestError, match="5 hosts do not divide"):
        demand_of(payload, tensors, MESH, RULES, 5)
