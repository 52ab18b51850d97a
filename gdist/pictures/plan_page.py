"""A plan as one HTML page that needs nothing but itself: no script, no font, no address.

What it is, bytes of every host, what is ready when, the least time and what sets it, which tensors cost most,
all tensors, and what to know besides. Every picture has its table. Tensors that differ in their layer's
number alone are one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gdist import __version__
from gdist.core.bound import Limit
from gdist.core.mesh import HostGroup
from gdist.core.order import layer_of
from gdist.core.text import count, numbers, shape
from gdist.core.units import format_bytes
from gdist.pictures import charts
from gdist.pictures.charts import Ready
from gdist.pictures.rendering import render
from gdist.run.plan import HostCost, PlanDetails, PlanReport, TensorCost

MOST_HOSTS = 512
MOST_TENSORS = 400
MOST_STAGES = 140  # rows of the timeline; neighbours are joined beyond
MOST_READS = 8
OPEN_ROWS = 16  # a table of more is folded; paper shows it all


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors of one kind: the same but for the layer's number."""

    name: str
    tensors: int
    first: TensorCost
    nbytes: int
    kept: int
    fetched: int

    @property
    def over(self) -> int:
        """Bytes that are fetched and not kept."""
        return self.fetched - self.kept


def plan_page(report: PlanReport) -> str:
    """The page of a report that was made with details."""
    details = report.details
    assert details is not None, "a page needs the plan's details"
    ready, seconds = timeline(report, details)
    rows = rows_of(details.tensors)
    over = sorted((row for row in rows if row.over > 0), key=lambda row: -row.over)
    terms = report.bound.terms if report.bound else ()
    return render(
        "plan.html.j2",
        version=__version__,
        report=report,
        details=details,
        figures=_figures(report),
        hosts_chart=charts.hosts_chart(report),
        ratio_chart=charts.ratio_chart(report),
        hosts=[(cost, _devices(report, cost)) for cost in report.hosts[:MOST_HOSTS]],
        more_hosts=max(len(report.hosts) - MOST_HOSTS, 0),
        ready=ready,
        seconds=seconds,
        timeline_chart=charts.timeline_chart(ready, seconds=seconds) if ready else None,
        moment=charts.moment,
        shape=shape,
        bound_chart=charts.bound_chart([(limit.value, value) for limit, value in terms]) if terms else None,
        terms=[(limit, value, *_term(report, details, limit)) for limit, value in terms],
        rows=rows[:MOST_TENSORS],
        more_rows=max(len(rows) - MOST_TENSORS, 0),
        over=over[:MOST_READS],
        over_total=sum(row.over for row in over),
        kept=sum(cost.bytes_wanted for cost in report.hosts),
        fetched=sum(cost.bytes_touched for cost in report.hosts),
        open_rows=OPEN_ROWS,
    )


def rows_of(tensors: Sequence[TensorCost]) -> tuple[Row, ...]:
    """Tensors joined over layers, in the order of the first of each kind."""
    kinds: dict[object, list[TensorCost]] = {}
    for tensor in tensors:
        pattern, _ = layer_of(tensor.name)
        kinds.setdefault((pattern, tensor.shape, tensor.dtype, tensor.spec, tensor.slab), []).append(tensor)
    return tuple(
        Row(
            _joined([tensor.name for tensor in members]),
            len(members),
            members[0],
            sum(tensor.nbytes for tensor in members),
            sum(tensor.arrival.kept for tensor in members),
            sum(tensor.arrival.fetched for tensor in members),
        )
        for members in kinds.values()
    )


def _joined(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    pattern, _ = layer_of(names[0])
    layers = [layer for _, layer in map(layer_of, names) if layer is not None]
    return pattern.replace("*", f"{{{numbers(layers).replace('-', '..')}}}", 1)


def timeline(report: PlanReport, details: PlanDetails) -> tuple[list[Ready], bool]:
    """When each stage is ready, in seconds where the rate into the cluster is known, else as a share."""
    if not report.union:
        return [], False
    width = -(-len(details.stages) // MOST_STAGES)
    ready: list[Ready] = []
    for first in range(0, len(details.stages), width):
        group = details.stages[first : first + width]
        arrival = group[-1].arrival
        if details.wan:
            lan = {"lan": details.lan} if details.lan else {}
            stop = arrival.seconds(wan=details.wan, **lan)
        else:
            stop = arrival.union / report.union
        name = group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}"
        start = ready[-1].stop if ready else 0.0
        tensors, nbytes = sum(s.tensors for s in group), sum(s.nbytes for s in group)
        ready.append(Ready(name, tensors, nbytes, start, stop))
    return ready, bool(details.wan)


def _figures(report: PlanReport) -> list[tuple[str, str, str]]:
    """The numbers to see first: what they are of, the number, and what belongs to it."""
    hosts = report.hosts
    ratios = [cost.amplification for cost in hosts]
    return [
        (
            "checkpoint",
            format_bytes(report.nbytes),
            f"{count(report.tensors, 'tensor')}, {count(report.files, 'file')}",
        ),
        ("each host keeps", _span([cost.bytes_wanted for cost in hosts]), _cluster(report)),
        (
            "each host fetches",
            _span([cost.bytes_touched for cost in hosts]),
            f"{_range(ratios)} times what it keeps",
        ),
        ("disk, at most", format_bytes(max(cost.disk for cost in hosts)), "of each host"),
        ("memory, at most", format_bytes(max(cost.memory for cost in hosts)), "of each host, a setting"),
    ]


def _cluster(report: PlanReport) -> str:
    total = report.hosts[0].host.count
    which = count(total, "host") if report.complete else f"host {report.hosts[0].host.index} of {total}"
    return f"{which}, {count(report.mesh.devices, 'device')}"


def _span(values: Sequence[int]) -> str:
    low, high = format_bytes(min(values)), format_bytes(max(values))
    return low if low == high else f"{low} to {high}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _devices(report: PlanReport, cost: HostCost) -> str:
    return numbers(HostGroup(cost.host.index, cost.host.count).devices(report.mesh), 40)


def _term(report: PlanReport, details: PlanDetails, limit: Limit) -> tuple[str, str]:
    """What a term of the bound says, and its numbers."""
    needed = [cost.bytes_wanted for cost in report.hosts]
    assert details.wan is not None, "a bound has a rate"
    wan = f"{format_bytes(details.wan)}/s"
    lan = f"{format_bytes(details.lan)}/s" if details.lan else "no limit"
    match limit:
        case Limit.WAN:
            return (
                "every piece that a host needs comes into the cluster once",
                f"{format_bytes(report.union)} / {wan}",
            )
        case Limit.HOST_LINK:
            return "the host that keeps most takes it in", f"{format_bytes(max(needed))} / {lan}"
        case Limit.ALL_LINKS:
            links = f"({wan} + {len(needed)} × {lan})" if details.lan else lan
            return "all that is kept comes over all links together", f"{format_bytes(sum(needed))} / {links}"
        case Limit.INTERCONNECT:
            raise AssertionError("only an exchange has one")
