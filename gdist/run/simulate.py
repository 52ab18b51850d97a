"""How a cluster of any size would fetch a checkpoint, by a model of it; see `gdist.core.simulation`.

A known release is simulated from its manifest alone; of a magnet the metadata and headers are fetched and
forgotten.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gdist.core.convert import converted, parse_dtype
from gdist.core.mesh import Mesh
from gdist.core.rules import Rules
from gdist.core.simulation.demand import demand_of
from gdist.core.simulation.model import Demand, Setting
from gdist.core.simulation.outcome import Outcome
from gdist.core.simulation.run import simulate as run_model
from gdist.errors import RequestError
from gdist.events import Observer
from gdist.run.survey import SurveyOptions, survey


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What to simulate: the cluster, how tensors are cut, and how many hosts, by chance, are slow or fail.

    `slow` are numbers of hosts with the share of their links that they have, `fail` numbers of hosts with the
    second in which they are gone. `piece_length` stands in where a release's own is not known.
    """

    setting: Setting
    mesh: Mesh = field(default_factory=Mesh)
    rules: Rules | None = None
    slow: tuple[tuple[int, float], ...] = ()
    fail: tuple[tuple[int, float], ...] = ()
    dtype: str | None = None
    piece_length: int | None = None
    survey: SurveyOptions = field(default_factory=SurveyOptions)


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What came of it, and what was simulated: `groups` of hosts that need the same, bytes `needed` by all.

    `exact` is false where there were more such groups than hosts to follow, and some were joined.
    """

    name: str
    info_hash: str
    nbytes: int
    piece_length: int
    piece_length_assumed: bool
    pieces: int
    mesh: Mesh
    setting: Setting
    groups: int
    needed: int
    exact: bool
    outcome: Outcome


def simulate(
    source: str,
    options: SimulateOptions,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> SimulationReport:
    """Simulates the fetch of a release's name, a magnet, an info-hash, a .torrent file or URL by a cluster.

    Raises:
        RequestError: for every tensor without a rule or that the mesh does not divide, all at once, and for
            a cluster that cannot work.
        GdistError: when metadata or headers are needed and do not come.
    """
    dtype = parse_dtype(options.dtype) if options.dtype is not None else None
    setting = _with_faults(options.setting, options.slow, options.fail)
    found = survey(source, options.survey, piece_length=options.piece_length, observe=observe, stop=stop)
    tensors = converted(found.tensors, dtype) if dtype else found.tensors
    demand = demand_of(
        found.payload,
        tensors,
        options.mesh,
        options.rules or found.rules,
        setting.hosts,
        most_groups=setting.sample,
        some=bool(options.survey.select),
    )
    return SimulationReport(
        name=found.name,
        info_hash=found.info_hash,
        nbytes=found.nbytes,
        piece_length=found.payload.piece_length,
        piece_length_assumed=found.piece_length_assumed,
        pieces=len(demand.nbytes),
        mesh=options.mesh,
        setting=setting,
        groups=len(demand.groups),
        needed=_needed(demand),
        exact=demand.exact,
        outcome=run_model(demand, setting),
    )


def _needed(demand: Demand) -> int:
    return sum(group.nbytes * len(group.hosts) for group in demand.groups)


def _with_faults(
    setting: Setting, slow: Sequence[tuple[int, float]], fail: Sequence[tuple[int, float]]
) -> Setting:
    """The setting with hosts, chosen by chance, that are slow or fail; each is one or the other."""
    wanted = sum(number for number, _ in (*slow, *fail))
    if wanted > setting.hosts:
        raise RequestError(f"of {setting.hosts} hosts {wanted} cannot be slow or fail")
    chosen = iter(random.Random(setting.seed).sample(range(setting.hosts), wanted))
    return replace(
        setting,
        slow=tuple((next(chosen), share) for number, share in slow for _ in range(number)),
        fails=tuple((next(chosen), when) for number, when in fail for _ in range(number)),
    )
