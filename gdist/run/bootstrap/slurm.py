"""A batch script for Slurm."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob, check_absolute, check_counted
from gdist.run.bootstrap.rendering import one_line, render

OWN = {
    **dict.fromkeys(("--nodes", "-N"), "--hosts N says how many nodes"),
    **dict.fromkeys(("--ntasks", "-n", "--ntasks-per-node"), "one process a node does the work"),
    **dict.fromkeys(("--job-name", "-J"), "--name NAME"),
    **dict.fromkeys(("--partition", "-p"), "--partition NAME, without --sbatch"),
    **dict.fromkeys(("--time", "-t"), "--time TIME, without --sbatch"),
    **dict.fromkeys(
        ("--requeue", "--no-requeue", "--open-mode", "--output", "-o", "--signal"), "change it in the script"
    ),
}
NOTICE_SECONDS = 120  # before the time limit: ten for the hosts to leave, and room for a slow scheduler

# minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]: sbatch(1)
_TIME = re.compile(r"\d{1,9}(?::\d{1,2}){0,2}|\d{1,9}-\d{1,2}(?::\d{1,2}){0,2}|UNLIMITED|INFINITE")


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
        name = text[:2] if text[1:2] != "-" else re.split(r"[=\s]", text, maxsplit=1)[0]
        if name in OWN:
            raise RequestError(f"--sbatch {text!r}: the script has a line of its own for it", hint=OWN[name])
    if where.time and not _TIME.fullmatch(where.time.upper()):
        raise RequestError(f"{where.time!r} is no time of Slurm's", hint="for example 4:00:00, or 1-12:00")
    raised = tuple(code + 100 for code in job.permanent)
    return render("slurm.sh.j2", **job.values(), slurm=where, notice=NOTICE_SECONDS, raised=raised)
