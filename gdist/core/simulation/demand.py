"""What the hosts of a cluster need, from tensors on a mesh: groups of hosts that hold the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gdist.core.mesh import HostGroup, Mesh, slab_indices
from gdist.core.needs import Needs, pieces_in_order
from gdist.core.order import stage_of
from gdist.core.payload import Payload
from gdist.core.plan import plan_hosts
from gdist.core.rules import Rules, complete_mesh, resolve_specs
from gdist.core.simulation.model import Demand, Group
from gdist.core.tensor import StoredTensor


def host_groups(
    mesh: Mesh, rules: Rules | None, tensors: Sequence[StoredTensor], count: int
) -> tuple[tuple[int, ...], ...]:
    """Hosts that hold the same of every tensor, in the order of the first of each group.

    Raises:
        RequestError: as `plan_host`.
    """
    mesh = complete_mesh(mesh, rules)
    kinds = {
        (spec, len(tensor.spec.shape))
        for tensor, spec in zip(tensors, resolve_specs(mesh, rules, tensors), strict=True)
    }
    ordered = sorted(kinds, key=str)
    groups: dict[object, list[int]] = {}
    for host in range(count):
        places = HostGroup(host, count).devices(mesh)
        held = tuple(frozenset(slab_indices(mesh, spec, ndim, places)) for spec, ndim in ordered)
        groups.setdefault(held, []).append(host)
    return tuple(map(tuple, groups.values()))


def demand_of(
    payload: Payload,
    tensors: Sequence[StoredTensor],
    mesh: Mesh,
    rules: Rules | None,
    count: int,
    *,
    most_groups: int = 64,
    some: bool = False,
) -> Demand:
    """The demand of all hosts of a cluster, for tensors given in loading order.

    Of more than `most_groups` groups of equal hosts so many are kept, evenly chosen; hosts of the others are
    put into the one before them, as if they needed the same: `exact` is false then. What loads first is all
    up to the first layer, or the first tensor where there are no layers. `some` is as in `plan_host`.

    Raises:
        RequestError: as `plan_host`.
    """
    groups = host_groups(mesh, rules, tensors, count)
    kept = [len(groups) * n // most_groups for n in range(most_groups)]
    joined = groups
    if len(groups) > most_groups:
        runs = itertools.pairwise([*kept, len(groups)])
        joined = tuple(tuple(itertools.chain(*groups[a:b])) for a, b in runs)
    hosts = [HostGroup(group[0], count) for group in joined]
    plans = plan_hosts(payload, tensors, mesh, rules, hosts, some=some)
    order = pieces_in_order(tensors, payload)
    needs = Needs(plans)
    found = []
    for number, group in enumerate(joined):
        own = needs.by_piece(number)
        found.append(Group(group, tuple(own.get(piece, 0) for piece in order)))
    return Demand(
        nbytes=tuple(payload.extent_of(piece).length for piece in order),
        groups=tuple(found),
        first=len(pieces_in_order(tensors[: _loads_first(tensors)], payload)),
        exact=len(groups) <= most_groups,
    )


def _loads_first(tensors: Sequence[StoredTensor]) -> int:
    """How many of the tensors, in loading order, make the first layer and what comes before it."""
    stages = [stage_of(tensor.spec.name) for tensor in tensors]
    layers = [stage for stage in stages if stage.startswith("layer ")]
    if not layers:
        return min(len(tensors), 1)
    return len(stages) - stages[::-1].index(layers[0])
