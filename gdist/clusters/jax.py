"""JAX's own variables, where scripts pass them on: coordinator, number of processes, number of this one.

JAX itself reads only `JAX_COORDINATOR_ADDRESS`; the other names are what launchers and training scripts have
settled on. They count processes: with several on a host, say `--host`. An address alone is half of what is
needed: who has one works with others, and as a lone host would fetch everything.
"""

from __future__ import annotations

from gdist.clusters.membership import Membership, Variables, group, half_set, host_part

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNTS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT")
INDICES = ("JAX_PROCESS_ID", "JAX_PROCESS_INDEX")


def find(variables: Variables, hostname: str) -> Membership | None:
    """The process as a host; None where nothing is set."""
    count = next((name for name in COUNTS if variables.has(name)), None)
    index = next((name for name in INDICES if variables.has(name)), None)
    if count is None or index is None:
        there = [name for name in (count, index, ADDRESS) if name and variables.has(name)]
        if not there:
            return None
        missing = [names[0] for name, names in ((count, COUNTS), (index, INDICES)) if name is None]
        raise half_set("jax", missing, there)
    processes, process = variables.needs("jax", count, index)
    coordinator = host_part(variables.text(ADDRESS))
    host = group("jax", process, processes, variables)
    return Membership(host, coordinator=coordinator, cluster="jax", evidence=variables.used)
