"""JAX's own variables, where scripts pass them on: coordinator, number of processes, number of this one.

JAX itself reads only `JAX_COORDINATOR_ADDRESS`; the other names are what launchers and training scripts have
settled on. They count processes: with several on a host, say `--host`.
"""

from __future__ import annotations

from gdist.clusters.membership import Membership, Variables, group, half_set, host_part

COUNTS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT")
INDICES = ("JAX_PROCESS_ID", "JAX_PROCESS_INDEX")


def find(variables: Variables, hostname: str) -> Membership | None:
    """The process as a host; None where neither number nor count is set."""
    count = next((name for name in COUNTS if variables.has(name)), None)
    index = next((name for name in INDICES if variables.has(name)), None)
    if count is None and index is None:
        return None
    if count is None or index is None:
        missing = COUNTS[0] if count is None else INDICES[0]
        raise half_set("jax", [missing], [name for name in (count, index) if name])
    processes, process = variables.needs("jax", count, index)
    coordinator = host_part(variables.text("JAX_COORDINATOR_ADDRESS"))
    host = group("jax", process, processes, variables)
    return Membership(host, coordinator=coordinator, cluster="jax", evidence=variables.used)
