"""What charts have in common: a grid of values, bars over it, an axis of time, and round numbers for both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gdist.core.units import format_bytes, format_seconds
from gdist.pictures.marks import Mark, Path, Text, px

WIDTH = 960.0
LEFT, RIGHT = 76.0, 12.0
SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Plot:
    """Values from 0 to `most` from below to above, over a grid that is labelled every `step`."""

    height: float
    most: float
    step: float
    says: Callable[[float], str]
    top: float = 10.0

    @property
    def bottom(self) -> float:
        """Where the labels below the plot end."""
        return self.top + self.height + 24

    def y(self, value: float) -> float:
        """The height of a value."""
        return self.top + self.height * (1 - value / self.most)

    def bar(self, number: int, bars: int, value: float) -> tuple[float, float, float, float]:
        """Place and size of one of some bars."""
        slot = (WIDTH - LEFT - RIGHT) / bars
        width = min(slot * 0.72, 56.0)
        x = LEFT + number * slot + (slot - width) / 2
        return x, self.y(value), width, self.y(0) - self.y(value)

    def grid(self) -> Iterator[Mark]:
        """A line for each step, with its value."""
        for n in range(round(self.most / self.step) + 1):
            y = self.y(n * self.step)
            yield Path(f"M{px(LEFT)} {px(y)}H{px(WIDTH - RIGHT)}", "base" if n == 0 else "rule")
            yield Text(LEFT - 8, y + 4, self.says(n * self.step), "soft", "end")

    def names(self, hosts: Sequence[int]) -> Iterator[Mark]:
        """Numbers of hosts below their bars, as many as there is room for."""
        slot = (WIDTH - LEFT - RIGHT) / len(hosts)
        every = next(n for n in (1, 2, 4, 8, 16, 32, 64, 2**30) if slot * n >= 26)
        for number in range(0, len(hosts), every):
            x = LEFT + (number + 0.5) * slot
            yield Text(x, self.top + self.height + 16, str(hosts[number]), "soft", "middle")
        yield Text(LEFT - 8, self.top + self.height + 16, "host", "soft", "end")

    def times(self, end: float) -> Iterator[Mark]:
        """Moments from 0 to `end` seconds below the plot."""
        step = seconds_step(end / 8)
        for n in range(int(end / step + 1e-9) + 1):
            x = at(n * step, end)
            text = format_seconds(n * step) if n else "0 s"
            anchor = "start" if not n else "end" if x > WIDTH - RIGHT - 20 else "middle"
            yield Text(x, self.top + self.height + 16, text, "soft", anchor)


def at(seconds: float, end: float) -> float:
    """Where a moment is on an axis of time that ends at `end`."""
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end


def step_of(least: float) -> float:
    """A round number of at least `least`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(power * n for n in (1, 2, 5, 10) if power * n >= least * 0.999)


def seconds_step(least: float) -> float:
    """A round time of at least `least` seconds."""
    if least < 1:
        return step_of(least)
    return next((n for n in SECONDS if n >= least), math.ceil(least / 86400) * 86400)


def above(most: float, step: float) -> float:
    """The first whole number of steps that is not below `most`; at least one."""
    return max(math.ceil(most / step - 1e-9), 1) * step


def short_bytes(nbytes: float) -> str:
    """`200 GB`, `2.5 GB`: of a round number."""
    number, unit = format_bytes(nbytes).split()
    return f"{float(number):g} {unit}" if nbytes else "0"
