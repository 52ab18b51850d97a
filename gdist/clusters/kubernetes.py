"""Kubernetes: pods of an Indexed Job, of a JobSet, or of a LeaderWorkerSet's group.

An Indexed Job gives its pods `JOB_COMPLETION_INDEX` and no count: the manifest has to set `GDIST_WORLD` or
`GDIST_HOSTS`, as that of `gdist bootstrap kubernetes` does. A JobSet of several Jobs passes, by the downward
API, `JOB_INDEX` (label `jobset.sigs.k8s.io/job-index`), `JOB_REPLICAS` (`replicatedjob-replicas`) and, as a
plain value, `PODS_PER_JOB`. Needs no API server, no right to read pods, no other package.
"""

from __future__ import annotations

from gdist.clusters.membership import HalfSet, Membership, Variables, group, half_set
from gdist.core.hosts import parse_hosts
from gdist.errors import RequestError

GROUP = ("LWS_WORKER_INDEX", "LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS")
WORLD = "set GDIST_WORLD in the manifest to the number of pods, or GDIST_HOSTS to their names"


def find(variables: Variables, hostname: str) -> Membership | None:
    """The pod among its Job's, or its group's; None where there is no index."""
    if any(variables.has(name) for name in GROUP):
        return _of_group(variables)
    if not variables.has("JOB_COMPLETION_INDEX"):
        # JOB_INDEX alone may be of anything.
        if any(variables.has("JOB_INDEX", name) for name in ("JOBSET_NAME", "JOB_REPLICAS", "PODS_PER_JOB")):
            return _of_jobset(variables, hostname)
        return None
    if variables.has("JOB_INDEX") or variables.has("PODS_PER_JOB"):
        return _of_jobset(variables, hostname)
    (index,) = variables.needs("kubernetes", "JOB_COMPLETION_INDEX")
    count = _world(variables)
    host = group("kubernetes", index, count, variables)
    names = _pods(hostname, index, count)
    return Membership(
        host,
        coordinator=names[0] if names else "",
        hosts=names,
        cluster="kubernetes",
        evidence=variables.used,
        job=variables.text("JOBSET_NAME") or _job_name(hostname, index),
    )


def _world(variables: Variables) -> int:
    """How many pods there are, by the manifest."""
    world = variables.number("GDIST_WORLD")
    hosts = variables.text("GDIST_HOSTS")
    if world is None and not hosts:
        raise HalfSet("kubernetes: JOB_COMPLETION_INDEX is set, and nothing tells how many pods", hint=WORLD)
    return world if world is not None else len(parse_hosts(hosts))


def _job_name(hostname: str, index: int) -> str:
    """The Job's name from a pod's host name, which is `NAME-INDEX`."""
    short = hostname.partition(".")[0]
    return short.removesuffix(f"-{index}") if short.endswith(f"-{index}") else ""


def _pods(hostname: str, index: int, count: int) -> tuple[str, ...]:
    """Names of all pods, where the host name has a domain: without the Service's they do not resolve."""
    name, _, domain = hostname.partition(".")
    if not domain or not name.endswith(f"-{index}"):
        return ()
    return tuple(f"{name.removesuffix(str(index))}{n}.{domain}" for n in range(count))


def _of_jobset(variables: Variables, hostname: str) -> Membership:
    """Pods of several Jobs: those of one Job follow one another, as slices do."""
    names = ("JOB_COMPLETION_INDEX", "JOB_INDEX", "JOB_REPLICAS", "PODS_PER_JOB")
    pod, job, jobs, pods = variables.needs("kubernetes", *names)
    if pod >= pods or job >= jobs:
        raise RequestError(
            f"kubernetes: pod {pod} of {pods} in Job {job} of {jobs} is none ({', '.join(variables.used)})",
            hint="say --host INDEX/COUNT",
        )
    name, _, domain = hostname.partition(".")
    stem = name.removesuffix(f"-{job}-{pod}")  # JOBSET-REPLICATEDJOB
    hosts: tuple[str, ...] = ()
    if domain and stem != name:
        hosts = tuple(f"{stem}-{j}-{p}.{domain}" for j in range(jobs) for p in range(pods))
    return Membership(
        group("kubernetes", job * pods + pod, jobs * pods, variables),
        coordinator=hosts[0] if hosts else "",
        hosts=hosts,
        cluster="kubernetes",
        evidence=variables.used,
        job=variables.text("JOBSET_NAME") or (stem if stem != name else ""),
    )


def _of_group(variables: Variables) -> Membership:
    """A LeaderWorkerSet's group: a leader `NAME-GROUP.DOMAIN` and workers `NAME-GROUP-INDEX.DOMAIN`."""
    missing = [name for name in GROUP if not variables.has(name)]
    if missing:
        raise half_set("kubernetes", missing, [name for name in GROUP if name not in missing])
    index, count = variables.needs("kubernetes", *GROUP[:2])
    leader = variables.text(GROUP[2])
    host = group("kubernetes", index, count, variables)
    name, _, domain = leader.partition(".")
    hosts = (leader, *(f"{name}-{n}.{domain}" for n in range(1, count))) if domain else ()
    return Membership(
        host, coordinator=leader, hosts=hosts, cluster="kubernetes", evidence=variables.used, job=leader
    )
