"""Whether the clock can be trusted: certificates, logs of several hosts and journals are read by it."""

from __future__ import annotations

from dataclasses import dataclass

from gdist.core.units import format_seconds
from gdist.run.environment.findings import Finding, ok, warn

EARLIEST = 1_704_067_200  # 2024-01-01: no host that runs this version is older
MOST_SKEW_SECONDS = 2.0
MOST_STEP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Instant:
    """One look at both clocks: seconds since the epoch, and seconds that only go forward."""

    wall: float
    steady: float


def about_clock(start: Instant, end: Instant, skews: tuple[float, ...] = ()) -> Finding:
    """What follows from two looks, some time apart, and from how far the others' clocks are ahead of this."""
    check, hint = "clock", "set it, and keep it set: chrony, systemd-timesyncd or ntpd"
    if end.wall < EARLIEST:
        return warn(check, "it shows a time before 2024", hint)
    step = (end.wall - start.wall) - (end.steady - start.steady)
    if abs(step) > MOST_STEP_SECONDS:
        return warn(check, f"it was moved by {format_seconds(abs(step))} during the check", hint)
    if not skews:
        return ok(check, "it runs evenly; nobody to compare it with")
    worst = max(skews, key=abs)
    what = f"at most {format_seconds(abs(worst))} from those of {len(skews)} other hosts"
    return warn(check, what, hint) if abs(worst) > MOST_SKEW_SECONDS else ok(check, what)
