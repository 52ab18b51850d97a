"""SkyPilot: one process a node, whose variables tell everything."""

from __future__ import annotations

from gdist.clusters.membership import Membership, Variables, group, half_set
from gdist.errors import RequestError

RANK, COUNT, ADDRESSES = "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_IPS"


def find(variables: Variables, hostname: str) -> Membership | None:
    """The node among the task's; None outside SkyPilot."""
    there = [name for name in (RANK, COUNT) if variables.has(name)]
    addresses = tuple(variables.text(ADDRESSES).split())  # one a line
    if not addresses:
        if (there == [COUNT] and variables.number(COUNT) == 1) or not there:
            return None
        raise half_set("skypilot", [name for name in (RANK, ADDRESSES) if name not in there], there)
    (index,) = variables.needs("skypilot", RANK)
    count = variables.number(COUNT)
    if count not in (None, len(addresses)):
        raise RequestError(
            f"skypilot: {COUNT} is {count}, and {ADDRESSES} has {len(addresses)}",
            hint="say --host INDEX/COUNT",
        )
    return Membership(
        group("skypilot", index, len(addresses), variables),
        coordinator=addresses[0],
        hosts=addresses,
        cluster="skypilot",
        evidence=variables.used,
        job=variables.text("SKYPILOT_TASK_ID"),
    )
