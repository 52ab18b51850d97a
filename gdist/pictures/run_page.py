"""A cluster's run as one HTML page that needs nothing but itself: no script, no font, no address.

What came in and how often, how long it took beside the least time, how far the hosts were when, how fast
bytes came, what bound, who brought in how much, and which hosts came late or went. Every picture has its
table. Its size is bounded, however many hosts there were and however long it took.
"""

from __future__ import annotations

import statistics

from gdist import __version__
from gdist.core.status import MemberState
from gdist.core.text import count, numbers
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.pictures import charts, run_charts
from gdist.pictures.plan_page import OPEN_ROWS
from gdist.pictures.rendering import render
from gdist.run.recorder import HostStory, RunRecord, Sample

MOST_HOSTS = 512
MOST_MOMENTS = 24  # rows of the table of the timeline
LATE_SECONDS, LATE_SHARE = 30.0, 0.1  # a host that came later than both after the first came late


def run_page(record: RunRecord) -> str:
    """The page of a run."""
    bound = record.bound
    terms = bound.terms if bound else ()
    return render(
        "run.html.j2",
        version=__version__,
        record=record,
        release=next((host.status.release for host in record.hosts if host.status.release), ""),
        info_hash=next((host.status.info_hash for host in record.hosts if host.status.info_hash), ""),
        figures=_figures(record),
        progress_chart=run_charts.progress_chart(record),
        outside_chart=run_charts.rate_chart(record, "wan_bytes", "from outside", "outside"),
        between_chart=run_charts.rate_chart(record, "lan_bytes", "between hosts", "between"),
        binds_chart=run_charts.binds_chart(record),
        binds=[
            (kind, run_charts.BINDS_FILL[kind], share)
            for kind, share in run_charts.binds_shares(record).items()
        ],
        hosts_charts=[
            run_charts.hosts_chart(record, name, what, kind)
            for name, what, kind in (
                ("wan_bytes", "brought in from outside", "kept"),
                ("lan_in_bytes", "taken from other hosts", "fetched"),
            )
            if record.hosts
        ],
        joined=len(record.hosts) > run_charts.MOST_BARS,
        moments=_moments(record.samples),
        hosts=_listed(record),
        more_hosts=max(len(record.hosts) - MOST_HOSTS, 0),
        faults=_faults(record),
        share=record.share_of_bound,
        bound_chart=charts.bound_chart([(limit.value, value) for limit, value in terms]) if terms else None,
        rate=format_rate,
        open_rows=OPEN_ROWS,
    )


def _figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers to see first: what they are of, the number, and what belongs to it."""
    status = record.status
    figures = [
        ("time", format_seconds(record.seconds), f"{status.done} of {count(status.count, 'host')} complete")
    ]
    if record.bound:
        least = format_seconds(record.bound.seconds)
        figures.append(("of the least time", f"{record.share_of_bound:.0%}", f"which is {least}"))
    union = status.union_bytes
    again = f"{record.wan_bytes / union:.3f} times what is needed" if union else ""
    figures.append(("came in", format_bytes(record.wan_bytes), again))
    between = sum(host.lan_in_bytes for host in record.hosts)
    figures.append(
        ("went between hosts", format_bytes(between), f"at most {format_rate(record.link_rate)} into one")
    )
    ends = [host.done for host in record.hosts if host.done is not None]
    if len(ends) > 1 and statistics.median(ends):
        ratio = max(ends) / statistics.median(ends)
        figures.append(
            ("slowest host", f"{ratio:.2f} ×", f"the median, {format_seconds(statistics.median(ends))}")
        )
    return figures


def _moments(samples: tuple[Sample, ...]) -> list[Sample]:
    """Some samples, first and last among them, evenly over the run."""
    if len(samples) <= MOST_MOMENTS:
        return list(samples)
    places = (round(n * (len(samples) - 1) / (MOST_MOMENTS - 1)) for n in range(MOST_MOMENTS))
    return [samples[place] for place in places]


def _listed(record: RunRecord) -> list[HostStory]:
    """The hosts of the table, in order; of very many the incomplete, those that went, and the slowest."""
    if len(record.hosts) <= MOST_HOSTS:
        return list(record.hosts)

    def rank(host: HostStory) -> tuple[bool, float, int]:
        return host.done is not None and host.gone is None, -(host.done or 0.0), -host.wan_bytes

    return sorted(sorted(record.hosts, key=rank)[:MOST_HOSTS], key=lambda host: host.index)


def _faults(record: RunRecord) -> list[tuple[str, str]]:
    """What went wrong with hosts: what, and which."""
    hosts, status = record.hosts, record.status
    first = min((host.came for host in hosts), default=0.0)
    late = max(LATE_SECONDS, LATE_SHARE * record.seconds)
    found = (
        ("never came", status.missing),
        (
            f"came {format_seconds(late)} after the first, or later",
            [h.index for h in hosts if h.came - first > late],
        ),
        ("were lost, or left, before they were complete", [h.index for h in hosts if h.gone is not None]),
        ("started more than once", [h.index for h in hosts if h.starts > 1]),
        ("were lost at the end", [h.index for h in hosts if h.state is MemberState.LOST]),
        ("were not complete at the end", [h.index for h in hosts if h.done is None]),
        ("got pieces with wrong bytes", [h.index for h in hosts if h.status.hash_failures]),
        ("failed", [h.index for h in hosts if h.status.error]),
    )
    return [(what, f"{count(len(which), 'host')}: {numbers(which, 60)}") for what, which in found if which]
