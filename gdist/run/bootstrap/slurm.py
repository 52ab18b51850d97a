"""A batch script for Slurm."""

from __future__ import annotations

from dataclasses import dataclass

from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob, check_absolute, check_counted
from gdist.run.bootstrap.rendering import one_line, render

NOTICE_SECONDS = 120  # before the time limit: ten for the hosts to leave, and room for a slow scheduler


@dataclass(frozen=True, slots=True)
class Slurm:
    """Where the job runs; `directives` are further lines, such as `--account=physics`."""

    partition: str = ""
    time: str = ""
    directives: tuple[str, ...] = ()


def slurm_script(job: BootstrapJob, where: Slurm) -> str:
    """The script, to be handed to `sbatch`.

    Raises:
        RequestError: when the job cannot be one of Slurm's.
    """
    check_counted(job, "Slurm")
    check_absolute(job, "a job starts in the directory it was submitted from")
    for text in where.directives:
        if not text.startswith("-"):
            raise RequestError(f"{text!r} is no option of sbatch", hint="for example --account=physics")
        one_line(text)
    raised = tuple(code + 100 for code in job.permanent)
    return render("slurm.sh.j2", **job.values(), slurm=where, notice=NOTICE_SECONDS, raised=raised)
