"""What a fetch would do, before it is done: bytes, pieces, disk and memory of every host, and the least time.

A known release is planned from its manifest alone, without a network; a magnet from its metadata and
headers, which are fetched and forgotten.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from gdist.core.arrivals import Arrival, Stage, arrivals, stages_of
from gdist.core.bound import Bound, lower_bound, wan_owners, wan_shares
from gdist.core.convert import converted, parse_dtype
from gdist.core.exchange_costs import Choice, ExchangeCost, Rates, choose_exchange, exchange_costs
from gdist.core.grid import held_shape
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.plan import HostPlan, TensorPlan, plan_hosts
from gdist.core.rules import Rules
from gdist.errors import RequestError
from gdist.events import Observer
from gdist.run.preflight import disk_needed
from gdist.run.survey import Survey, SurveyOptions, survey

PAYLOADS = ("discard", "keep")  # as of a fetch, whose module would bring libtorrent in


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What to plan for: `hosts` of one cluster, or just some of them.

    `payload`, `memory` and `dtype` are those of the fetch. `wan` and `lan` are rates in bytes a second, into
    the cluster and of each host, `interconnect` that of the link XLA's collectives have, where there is JAX;
    `piece_length` stands in where a release's own is not known. With `details` the report says what each
    tensor costs, and when it arrives.
    """

    mesh: Mesh = field(default_factory=Mesh)
    rules: Rules | None = None
    hosts: tuple[HostGroup, ...] = (HostGroup(),)
    payload: str = "discard"
    memory: int = 2**30
    dtype: str | None = None
    piece_length: int | None = None
    wan: float | None = None
    lan: float | None = None
    interconnect: float | None = None
    details: bool = False
    survey: SurveyOptions = field(default_factory=SurveyOptions)


@dataclass(frozen=True, slots=True)
class HostCost:
    """What one host will do, in bytes; `wan_share` is what it brings in when no byte comes in twice.

    `bytes_wanted` are those it keeps; where they are converted, `amplification` is of those they are made of.
    """

    host: HostGroup
    shards: int
    pieces: int
    bytes_wanted: int
    bytes_touched: int
    amplification: float
    disk: int
    memory: int
    wan_share: int


@dataclass(frozen=True, slots=True)
class TensorCost:
    """What one tensor costs the hosts together; `run` are the bytes that one host keeps of it in a row."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    spec: PartitionSpec
    slab: tuple[int, ...]
    run: int
    arrival: Arrival


@dataclass(frozen=True, slots=True)
class PlanDetails:
    """Where a plan's bytes go: every tensor in loading order, and the stages they become ready in.

    `wan` and `lan` are the rates that were asked for. `rules` None means that specs were automatic.
    """

    rules: Rules | None
    tensors: tuple[TensorCost, ...]
    stages: tuple[Stage, ...]
    wan: float | None
    lan: float | None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """Costs of the hosts that were asked for; `union` are the bytes of all their pieces, each once.

    `complete` is true when these are all hosts of the cluster; only then there is a `bound`. Where they are
    several, `exchanges` are the ways between them, and `choice` is the one to ask `cluster fetch` for.
    """

    name: str
    info_hash: str
    nbytes: int
    files: int
    tensors: int
    piece_length: int
    piece_length_assumed: bool
    mesh: Mesh
    hosts: tuple[HostCost, ...]
    union: int
    complete: bool
    bound: Bound | None
    exchanges: tuple[ExchangeCost, ...] = ()
    choice: Choice | None = None
    notes: tuple[str, ...] = ()
    details: PlanDetails | None = None


def plan(
    source: str,
    options: PlanOptions | None = None,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> PlanReport:
    """Plans the fetch of a release's name, a magnet, an info-hash, a .torrent file or URL.

    Raises:
        RequestError: for every tensor without a rule or that the mesh does not divide, all at once.
        GdistError: when metadata or headers are needed and do not come.
    """
    asked = options or PlanOptions()
    if asked.payload not in PAYLOADS:
        raise RequestError(f"payload {asked.payload!r} is none of {', '.join(PAYLOADS)}")
    dtype = parse_dtype(asked.dtype) if asked.dtype is not None else None
    found = survey(source, asked.survey, piece_length=asked.piece_length, observe=observe, stop=stop)
    tensors = converted(found.tensors, dtype) if dtype else found.tensors
    rules, some = asked.rules or found.rules, bool(asked.survey.select)
    plans = plan_hosts(found.payload, tensors, asked.mesh, rules, asked.hosts, some=some)
    pieces = [plan.pieces for plan in plans]

    def nbytes_of(piece: int) -> int:
        return found.payload.extent_of(piece).length

    owners = wan_owners(pieces, nbytes_of)
    shares = wan_shares(owners, len(plans), nbytes_of)
    union = sum(shares)
    complete = len(plans) == plans[0].host.count
    rates = Rates(asked.wan, asked.lan or math.inf, asked.interconnect) if asked.wan else None
    bound = choice = None
    exchanges: tuple[ExchangeCost, ...] = ()
    if complete and rates:
        bound = lower_bound([plan.bytes_wanted for plan in plans], union, wan=rates.wan, lan=rates.lan)
    if complete and len(plans) > 1:
        swarm, collective = exchanges = exchange_costs(plans, owners, rates)
        choice = choose_exchange(swarm, collective, jax=asked.interconnect is not None)
    return PlanReport(
        name=found.name,
        info_hash=found.info_hash,
        nbytes=found.nbytes,
        files=len(found.payload.files),
        tensors=len(tensors),
        piece_length=found.payload.piece_length,
        piece_length_assumed=found.piece_length_assumed,
        mesh=asked.mesh,
        hosts=_costs(plans, shares, found, asked),
        union=union,
        complete=complete,
        bound=bound,
        exchanges=exchanges,
        choice=choice,
        notes=found.notes,
        details=_details(plans, asked, found) if asked.details else None,
    )


def _details(plans: Sequence[HostPlan], options: PlanOptions, found: Survey) -> PlanDetails:
    arrived = arrivals(plans)
    tensors = tuple(
        TensorCost(
            name=plan.tensor.spec.name,
            shape=plan.tensor.spec.shape,
            dtype=plan.tensor.spec.dtype.name,
            nbytes=plan.tensor.spec.nbytes,
            spec=plan.spec,
            slab=held_shape(plan.grid, plans[0].mesh, plan.spec),
            run=_run(plan),
            arrival=arrival,
        )
        for plan, arrival in zip(plans[0].tensors, arrived, strict=True)
    )
    rules = options.rules or found.rules
    return PlanDetails(rules, tensors, stages_of(plans, arrived), options.wan, options.lan)


def _run(plan: TensorPlan) -> int:
    """Bytes of a shard that lie in a row in the tensor."""
    run = plan.tensor.spec.dtype.itemsize
    for size, shard in zip(reversed(plan.grid.shape), reversed(plan.grid.shard), strict=True):
        run *= shard
        if shard != size:
            break
    return run


def _costs(
    plans: Sequence[HostPlan], shares: Sequence[int], found: Survey, options: PlanOptions
) -> tuple[HostCost, ...]:
    return tuple(
        HostCost(
            host=plan.host,
            shards=sum(len(tensor.shards) for tensor in plan.tensors),
            pieces=len(plan.pieces),
            bytes_wanted=sum(tensor.nbytes for tensor in plan.tensors),
            bytes_touched=plan.bytes_touched,
            amplification=plan.amplification,
            disk=disk_needed(
                plan, options.payload, plan.bytes_touched if options.survey.select else found.nbytes
            ),
            memory=options.memory,
            wan_share=share,
        )
        for plan, share in zip(plans, shares, strict=True)
    )
