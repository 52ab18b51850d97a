"""A task for SkyPilot."""

from __future__ import annotations

from dataclasses import dataclass

from gdist.run.bootstrap.job import BootstrapJob, check_absolute, check_counted, pairs
from gdist.run.bootstrap.rendering import render


@dataclass(frozen=True, slots=True)
class SkyPilot:
    """What nodes the task asks for, as `KEY=VALUE` of SkyPilot's `resources`; `setup` is a line of shell."""

    resources: tuple[str, ...] = ()
    setup: str = "pip install gdist"


def skypilot_task(job: BootstrapJob, sky: SkyPilot) -> str:
    """The task, to be handed to `sky launch`.

    Raises:
        RequestError: when the job cannot be one of SkyPilot's.
    """
    check_counted(job, "SkyPilot")
    check_absolute(job, "a task starts in a directory of SkyPilot's")
    resources = [(key, _typed(text)) for key, text in pairs(sky.resources, "--resource")]
    return render("skypilot.yaml.j2", **job.values(), sky=sky, resources=resources)


def _typed(text: str) -> str | int | bool:
    """A value as SkyPilot's schema wants it: `true` and `500` are no texts there."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text
