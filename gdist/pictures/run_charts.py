"""The charts of a run's page: how far hosts were, how fast bytes came, what bound, who brought in what."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from gdist.core.status import Binds
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.pictures.colours import PALETTE
from gdist.pictures.marks import Chart, Mark, Path, Rect, boxes, px
from gdist.pictures.plots import WIDTH, Plot, above, at, short_bytes, step_of
from gdist.run.recorder import RunRecord, Sample, joined_hosts

MOST_BARS = 400  # hosts; neighbours are one bar beyond
BINDS_FILL = dict(zip(Binds, PALETTE, strict=False))

Point = tuple[float, float]


def progress_chart(record: RunRecord) -> Chart:
    """How much of the union is inside, and how far the hosts are: the least, the median and the most."""
    plot = Plot(200.0, 1.0, 0.25, lambda value: f"{value:.0%}")
    end = _end(record)
    union = record.status.union_bytes
    xs = [at(sample.seconds, end) for sample in record.samples]
    low, middle, high = (
        [(x, plot.y(getattr(sample, name))) for x, sample in zip(xs, record.samples, strict=True)]
        for name in ("least", "median", "most")
    )
    marks: list[Mark] = [*plot.grid(), *plot.times(end)]
    marks.append(Path(f"M{_line([*low, *reversed(high)])}z", "spread"))
    marks.append(Path(f"M{_line(middle)}", "median"))
    if union:
        inside = [
            (x, plot.y(min(sample.inside_bytes / union, 1)))
            for x, sample in zip(xs, record.samples, strict=True)
        ]
        marks.append(Path(f"M{_line(inside)}", "inside"))
    half = next((s.seconds for s in record.samples if s.median >= 0.5), None)
    said = f"After {format_seconds(half)} half of the hosts have half of their bytes. " if half else ""
    said += "The table below has numbers."
    return Chart(WIDTH, plot.bottom, "How far the hosts are", said, tuple(marks))


def rate_chart(record: RunRecord, name: str, what: str, kind: str) -> Chart:
    """Bytes a second between samples, of the sum that samples have by this name."""
    end = _end(record)
    rates = list(_rates(record.samples, name))
    most = max((rate for _, _, rate in rates), default=0.0)
    step = step_of(most / 3)
    plot = Plot(84.0, above(most, step), step, lambda value: f"{short_bytes(value)}/s" if value else "0")
    points = [(at(moment, end), plot.y(rate)) for start, stop, rate in rates for moment in (start, stop)]
    marks: list[Mark] = [*plot.grid(), *plot.times(end)]
    if points:
        marks.append(Path(f"M{_line(points)}", kind))
    return Chart(WIDTH, plot.bottom, f"Bytes a second {what}", f"At most {format_rate(most)}.", tuple(marks))


def binds_chart(record: RunRecord) -> Chart:
    """How many hosts are at work, by what keeps each from being faster."""
    end = _end(record)
    most = max((sample.working for sample in record.samples), default=0) or 1
    step = max(step_of(most / 4), 1)
    plot = Plot(120.0, above(most, step), step, lambda value: f"{value:g}")
    marks: list[Mark] = [*plot.grid(), *plot.times(end)]
    floor = [0] * len(record.samples)
    for number, kind in enumerate(Binds):
        counts = [sample.binds[number] for sample in record.samples]
        top = [below + count for below, count in zip(floor, counts, strict=True)]
        if any(counts):
            upper = list(_steps(record.samples, top, plot, end))
            lower = list(_steps(record.samples, floor, plot, end))
            marks.append(Path(f"M{_line([*upper, *reversed(lower)])}z", "part", BINDS_FILL[kind], kind.value))
        floor = top
    shares = binds_shares(record)
    first = max(shares, key=shares.__getitem__, default=None)
    said = f"Most of the time {first.value}: {shares[first]:.0%}." if first else "No host was at work."
    return Chart(WIDTH, plot.bottom, "What binds, by hosts at work", said, tuple(marks))


def binds_shares(record: RunRecord) -> dict[Binds, float]:
    """The share of the hosts' working time that each kind binds; empty when none worked."""
    spent = [0.0] * len(Binds)
    for before, after in itertools.pairwise(record.samples):
        for number, count in enumerate(before.binds):
            spent[number] += count * (after.seconds - before.seconds)
    total = sum(spent)
    return {kind: value / total for kind, value in zip(Binds, spent, strict=True) if value} if total else {}


def hosts_chart(record: RunRecord, name: str, what: str, kind: str) -> Chart:
    """Bytes that each host moved, by the field of its story."""
    groups = joined_hosts(record.hosts, MOST_BARS)
    values = [sum(getattr(host, name) for host in group) / len(group) for group in groups]
    most = max(values)
    step = step_of(most / 3)
    plot = Plot(110.0, above(most, step), step, short_bytes)
    bars = [plot.bar(number, len(groups), value) for number, value in enumerate(values)]
    marks: list[Mark] = [*plot.grid(), Path(boxes(bars), kind)]
    for group, value, (x, _, width, _) in zip(groups, values, bars, strict=True):
        first, last = group[0].index, group[-1].index
        who = f"host {first}" if len(group) == 1 else f"hosts {first} to {last}, each"
        marks.append(
            Rect(x, plot.top, width, plot.height, "hover", title=f"{who}: {format_bytes(value)} {what}")
        )
    marks += plot.names([group[0].index for group in groups])
    top = max(record.hosts, key=lambda host: int(getattr(host, name)))
    said = f"Most is of host {top.index}: {format_bytes(getattr(top, name))}. The table below has every host."
    return Chart(WIDTH, plot.bottom, f"Bytes of each host {what}", said, tuple(marks))


def _end(record: RunRecord) -> float:
    return max(record.samples[-1].seconds, 1e-3)


def _rates(samples: Sequence[Sample], name: str) -> Iterator[tuple[float, float, float]]:
    """From when to when, and bytes a second meanwhile."""
    for before, after in itertools.pairwise(samples):
        span = after.seconds - before.seconds
        if span > 0:
            moved = getattr(after, name) - getattr(before, name)
            yield before.seconds, after.seconds, max(moved, 0) / span


def _steps(samples: Sequence[Sample], values: Sequence[float], plot: Plot, end: float) -> Iterator[Point]:
    """A line that keeps each value until the next sample."""
    for number, (sample, value) in enumerate(zip(samples, values, strict=True)):
        until = samples[number + 1].seconds if number + 1 < len(samples) else sample.seconds
        yield at(sample.seconds, end), plot.y(value)
        yield at(until, end), plot.y(value)


def _line(points: Iterable[Point]) -> str:
    return "L".join(f"{px(x)} {px(y)}" for x, y in points)
