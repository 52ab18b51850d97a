"""The charts of a plan's page: bytes and amplification of every host, what is ready when, the lower bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gdist.core.text import printable, shorten
from gdist.core.units import format_bytes, format_seconds
from gdist.pictures.marks import Chart, Mark, Path, Rect, Text, boxes, px
from gdist.pictures.plots import LEFT, RIGHT, WIDTH, Plot, above, seconds_step, short_bytes, step_of
from gdist.run.plan import PlanReport

STAGES_LEFT, STAGES_RIGHT = 132.0, 96.0
STAGES_HIGH, ROW_MOST, ROW_LEAST = 540.0, 20.0, 4.0
TEXT_HIGH = 14.0  # between labelled rows


@dataclass(frozen=True, slots=True)
class Ready:
    """A group of tensors on the timeline: from when to when it comes in, in seconds or shares of it all."""

    name: str
    tensors: int
    nbytes: int
    start: float
    stop: float


def hosts_chart(report: PlanReport) -> Chart:
    """Bytes that each host keeps, in front of those it fetches."""
    most = max(cost.bytes_touched for cost in report.hosts)
    step = step_of(most / 4)
    plot = Plot(200.0, above(most, step), step, short_bytes)
    kept, fetched = [], []
    for number, cost in enumerate(report.hosts):
        fetched.append(plot.bar(number, len(report.hosts), cost.bytes_touched))
        kept.append(plot.bar(number, len(report.hosts), cost.bytes_wanted))
    marks = [*plot.grid(), Path(boxes(fetched), "fetched"), Path(boxes(kept), "kept")]
    for number, cost in enumerate(report.hosts):
        x, _, width, _ = fetched[number]
        says = f"host {cost.host.index}: keeps {format_bytes(cost.bytes_wanted)}, fetches "
        says += f"{format_bytes(cost.bytes_touched)}, {cost.amplification:.2f} times as much"
        marks.append(Rect(x, plot.top, width, plot.height, "hover", title=says))
    marks += plot.names([cost.host.index for cost in report.hosts])
    first = max(report.hosts, key=lambda cost: cost.bytes_touched)
    said = (
        f"The most is fetched by host {first.host.index}: {format_bytes(first.bytes_touched)}, of which it "
        f"keeps {format_bytes(first.bytes_wanted)}. The table below has every host."
    )
    return Chart(WIDTH, plot.bottom, "Bytes of each host", said, tuple(marks))


def ratio_chart(report: PlanReport) -> Chart:
    """Bytes fetched over bytes kept, of each host."""
    ratios = [cost.amplification for cost in report.hosts]
    step = step_of(max(ratios) / 2)
    plot = Plot(84.0, above(max(ratios), step), step, lambda value: f"{value:g}×")
    places = [plot.bar(number, len(ratios), ratio) for number, ratio in enumerate(ratios)]
    marks = [*plot.grid(), Path(boxes(places), "ratio")]
    one = plot.y(1)
    marks.append(Path(f"M{px(LEFT)} {px(one)}H{px(WIDTH - RIGHT)}", "one"))
    marks += plot.names([cost.host.index for cost in report.hosts])
    said = f"Between {min(ratios):.2f} and {max(ratios):.2f}; 1 would be no byte more than is kept."
    return Chart(WIDTH, plot.bottom, "Bytes fetched for each byte kept", said, tuple(marks))


def timeline_chart(ready: Sequence[Ready], *, seconds: bool) -> Chart:
    """What arrives when, one row for each group, the first to load on top."""
    end = max(ready[-1].stop, max(group.stop for group in ready)) or 1.0
    row = min(max(STAGES_HIGH / len(ready), ROW_LEAST), ROW_MOST)
    every = max(math.ceil(TEXT_HIGH / row), 1)
    wide = WIDTH - STAGES_LEFT - STAGES_RIGHT
    top, bottom = 10.0, 10.0 + row * len(ready)
    step = seconds_step(end / 6) if seconds else 0.2
    marks: list[Mark] = []
    for n in range(int(end / step + 1e-9) + 1):
        x = STAGES_LEFT + wide * n * step / end
        marks.append(Path(f"M{px(x)} {px(top)}V{px(bottom)}", "rule"))
        says = (format_seconds(n * step) if n else "0 s") if seconds else f"{n * step:.0%}"
        marks.append(Text(x, bottom + 16, says, "soft", "middle"))
    for number, group in enumerate(ready):
        y = top + number * row
        x, stop = (STAGES_LEFT + wide * value / end for value in (group.start, group.stop))
        says = f"{group.name}: {format_bytes(group.nbytes)}, ready at {moment(group.stop, seconds=seconds)}"
        width = max(stop - x, 1)
        marks.append(Rect(x, y + row * 0.1, width, row * 0.8, "stage", title=says))
        if number % every == 0 or number == len(ready) - 1:
            if number == len(ready) - 1 and number % every:
                y += row * every * 0.3  # clear of the label above it
            marks.append(
                Text(STAGES_LEFT - 8, y + row / 2 + 4, shorten(printable(group.name), 22), "", "end")
            )
            marks.append(Text(stop + 6, y + row / 2 + 4, moment(group.stop, seconds=seconds), "soft"))
    said = (
        f"{ready[0].name} is ready first, at {moment(ready[0].stop, seconds=seconds)}; all is at "
        f"{moment(ready[-1].stop, seconds=seconds)}. The table below has every group."
    )
    return Chart(WIDTH, bottom + 28, "What is ready when", said, tuple(marks))


def moment(value: float, *, seconds: bool) -> str:
    """A place on the timeline in words."""
    if seconds:
        return format_seconds(value)
    return "100%" if value >= 1 else f"{min(value, 0.999):.1%}"  # 100 % only when it is all


def bound_chart(terms: Sequence[tuple[str, float]]) -> Chart:
    """The terms of the lower bound; the largest of them is it."""
    most = max(seconds for _, seconds in terms) or 1.0
    left, wide, row = 170.0, WIDTH - 170 - 110, 30.0
    marks: list[Mark] = []
    for number, (name, seconds) in enumerate(terms):
        y = 6 + number * row
        width = max(wide * seconds / most, 1)
        binds = seconds == most
        marks.append(Text(left - 10, y + 15, name, "strong" if binds else "", "end", 12))
        marks.append(Rect(left, y, width, row - 10, "binds" if binds else "term"))
        marks.append(
            Text(left + width + 8, y + 15, format_seconds(seconds), "strong" if binds else "", size=12)
        )
    said = "; ".join(f"{name} {format_seconds(seconds)}" for name, seconds in terms)
    return Chart(WIDTH, 6 + row * len(terms), "Terms of the least time", said, tuple(marks))
