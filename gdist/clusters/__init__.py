"""Which host am I, of how many, and where are the others: one file a scheduler.

    detect(os.environ, hostname=socket.gethostname())  ->  Membership

Only variables are looked at; no file, no network, no other package. What was said outright comes first
(`gdist.clusters.manual`), then the schedulers in the order of `CLUSTERS`; a host without any is alone. A
scheduler's file has `find(variables, hostname)`: a `Membership`, None where the scheduler is not there, and
an error that names the variables when they are half set or contradict one another.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import replace

from gdist.clusters import manual
from gdist.clusters.manual import Said, incomplete
from gdist.clusters.membership import HalfSet, Variables, host_part
from gdist.clusters.membership import Membership as Membership
from gdist.core.mesh import HostGroup
from gdist.errors import RequestError

CLUSTERS = (
    "openmpi",  # before slurm: see there
    "slurm",
    "jax",
    "tpu",
    "kubernetes",
    "skypilot",
    "ray",
    "torchrun",
    "mpich",
)
CHOICES = ("auto", "manual", "alone", *CLUSTERS)

# Who starts several processes on a host from inside one task of a scheduler, and the variables it sets.
_INNER = (
    ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)


def detect(
    environ: Mapping[str, str], choice: str = "auto", *, hostname: str, addresses: Collection[str] = ()
) -> Membership:
    """Which host this is: what was said outright, else what a scheduler tells, else a lone host.

    `choice` is one of `CHOICES`: `auto` asks all schedulers, a name only that one. `hostname` and
    `addresses` are this host's own; they find it in GDIST_HOSTS.

    Raises:
        RequestError: when the variables contradict one another, are half set and nothing else tells the
            rest, or the scheduler that was chosen is not there.
    """
    if choice not in CHOICES:
        raise RequestError(
            f"cluster {choice!r} is not known", hint=f"choose one of {', '.join(CHOICES)}", choice=choice
        )
    told = manual.said(Variables(environ), hostname, addresses)
    found = None
    if choice not in ("manual", "alone"):
        try:
            found = _scheduler(environ, choice, hostname)
        except RequestError:
            if not told.whole:
                raise
    if choice == "alone":
        return _alone(environ)
    return _joined(environ, choice, told, found)


def _scheduler(environ: Mapping[str, str], choice: str, hostname: str) -> Membership | None:
    """The first scheduler that is there and complete.

    One whose variables are half set is passed over if another one is whole: many set `RANK` or the like for
    purposes of their own.
    """
    half: HalfSet | None = None
    for name in CLUSTERS if choice == "auto" else (choice,):
        find = importlib.import_module(f"gdist.clusters.{name}").find
        try:
            found: Membership | None = find(Variables(environ), hostname)
        except HalfSet as error:
            half = half or error
            continue
        if found is not None:
            return _innermost(environ, found)
    if half is not None:
        raise half
    if choice != "auto":
        raise RequestError(f"nothing of {choice} is in the environment", hint="use --cluster auto, or --host")
    return None


def _innermost(environ: Mapping[str, str], found: Membership) -> Membership:
    """With the rank on the host that a launcher inside the scheduler's one task a host gave.

    For example torchrun under srun: eight processes, of which Slurm knows the one that started them.
    """
    if found.local_size > 1:
        return found
    for mark, rank_name, size_name in _INNER:
        variables = Variables(environ)
        if variables.has(mark, rank_name, size_name):
            rank, size = variables.needs(found.cluster, rank_name, size_name)
            evidence = tuple(dict.fromkeys((*found.evidence, *variables.used)))
            return replace(found, local_rank=rank, local_size=size, evidence=evidence)
    return found


def _joined(environ: Mapping[str, str], choice: str, told: Said, found: Membership | None) -> Membership:
    """What was said outright, and the scheduler's for all else."""
    if found is None and not told.whole:
        if told.evidence or choice == "manual":
            raise incomplete(told)
        return _alone(environ)
    if told.index is not None and told.count is not None:
        host, cluster, evidence = HostGroup(told.index, told.count), "manual", told.evidence
    else:
        assert found is not None, "told is not whole"
        _check_agreement(told, found)
        host, cluster = found.host, found.cluster
        evidence = tuple(dict.fromkeys((*found.evidence, *told.evidence)))
    same = found is not None and found.host == host
    hosts = told.hosts or (found.hosts if found and same else ())
    coordinator = told.coordinator or (told.hosts[0] if told.hosts else "")
    if not coordinator and host.count > 1:
        jax = Variables(environ)
        coordinator = host_part(jax.text("JAX_COORDINATOR_ADDRESS"))
        evidence = tuple(dict.fromkeys((*evidence, *jax.used)))
    if coordinator and hosts and not told.hosts:
        hosts = _led_by(coordinator, hosts)
    if not coordinator and found and same:
        coordinator = found.coordinator
    return Membership(
        host,
        found.local_rank if found else 0,
        found.local_size if found else 1,
        coordinator,
        hosts,
        cluster,
        evidence,
        found.job if found else "",
    )


def _led_by(coordinator: str, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """A scheduler's hosts, where somebody said what the first of them is called.

    One who calls it otherwise knows that the scheduler's names are of no use, so none is kept.
    """
    same = host_part(coordinator) == host_part(hosts[0])
    return (coordinator, *hosts[1:]) if same else ()


def _alone(environ: Mapping[str, str]) -> Membership:
    """A lone host, of which torchrun or mpirun may have started several processes."""
    return _innermost(environ, Membership(HostGroup()))


def _check_agreement(told: Said, found: Membership) -> None:
    """That the half that was said outright is what the scheduler says."""
    wrong = told.index not in (None, found.host.index) or told.count not in (None, found.host.count)
    if wrong:
        raise RequestError(
            f"{', '.join(told.evidence)}, and {found.cluster} says host {found.host.index} of "
            f"{found.host.count} ({', '.join(found.evidence)})",
            hint="set both GDIST_RANK and GDIST_WORLD, or neither",
        )
