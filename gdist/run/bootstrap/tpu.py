"""A script for the workers of a TPU VM, which `gcloud` reaches all at once."""

from __future__ import annotations

from dataclasses import dataclass

from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob, check_absolute
from gdist.run.bootstrap.rendering import render


@dataclass(frozen=True, slots=True)
class TpuVm:
    """The TPU VM's name, zone and project ('' for gcloud's own)."""

    name: str
    zone: str
    project: str = ""


def tpu_script(job: BootstrapJob, tpu: TpuVm) -> str:
    """The script, to be run where gcloud is logged in.

    Raises:
        RequestError: when the TPU is not named.
    """
    if not tpu.name or not tpu.zone:
        raise RequestError("the TPU VM is not named", hint="--tpu NAME --zone ZONE")
    check_absolute(job, "a remote shell starts in the user's home")
    return render("tpu.sh.j2", **job.values(), tpu=tpu)
