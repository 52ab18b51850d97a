"""`gdist bootstrap`: scripts and manifests that fetch with all hosts of a cluster, and a look at a host."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gdist import api
from gdist.cli import exits
from gdist.cli.commands.bootstrap_check import check
from gdist.cli.commands.cluster import REPORTS
from gdist.cli.commands.cluster import fetch as cluster_fetch
from gdist.cli.files import check_target
from gdist.cli.hosts import read_hosts
from gdist.cli.options import Place, option, output_options, source_argument
from gdist.cli.output import Output
from gdist.clusters.membership import Membership
from gdist.core.mesh import HostGroup
from gdist.core.select import check_patterns
from gdist.errors import RequestError
from gdist.kvstore import is_url
from gdist.releases import known_release
from gdist.run.bootstrap.job import BootstrapJob
from gdist.run.bootstrap.kubernetes import VOLUMES

F = TypeVar("F", bound=Callable[..., Any])  # Any: click passes a command's options by name

PERMANENT = (*(entry.code for entry in exits.EXITS if not entry.retry), exits.INTERNAL)

_WHO = "leave it out: which host is which, and where they are, every host finds out by itself"
_NOT_IN_LINE = {
    "cluster": _WHO,
    "host": _WHO,
    "hosts": _WHO,
    "coordinator": _WHO,
    "port": "--port stands before --, where the script learns of it too",
    "secret": "a command line is no place for it: --secret-file, or --secret-name of Kubernetes, before --",
}
_SPEAKS = ("json", "quiet", "verbose", "report")  # the command's, not the library's
_FILES = ("rules", "device_order", "profile", "manifest", "verify_key", "work_dir")

_ONLY_FILES = ("manifest", "verify_key", "work_dir", "secret_file")  # others may be names, known here


class _Group(click.Group):
    """`gdist bootstrap --check` is `gdist bootstrap check`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The command's name, from wherever it stands."""
        if args and args[0] == "--check":
            args = ["check", *args[1:]]
        return super().parse_args(ctx, args)


@click.group(cls=_Group)
def bootstrap() -> None:
    """Print the script or manifest that fetches with all hosts of a cluster.

    What is printed is complete, and made to be read and changed. Further flags of `gdist cluster fetch` stand
    at the end, after --. `gdist bootstrap check`, or --check, looks at the host it runs on.
    """


bootstrap.add_command(check)


def job_options(function: F) -> F:
    """What all scripts are made from; the command gets a `BootstrapJob` as `job`, and the fetch's options."""

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> Any:  # Any: options by name
        own = {name: values.pop(name) for name in _JOB}
        job, fetch = _job(**own)
        return function(*args, job=job, fetch=fetch, **values)

    decorated: Any = command  # functools.wraps keeps name and text; options are added from below
    decorated = click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLAGS]")(decorated)
    decorated = click.argument("dest", type=Place())(decorated)
    decorated = source_argument(decorated)
    for decorate in reversed(_JOB_OPTIONS):
        decorated = decorate(decorated)
    result: F = output_options(decorated)
    return result


_JOB_OPTIONS = (
    option(
        "--mesh", metavar="MESH", help="Devices of all hosts: 8x8, or data=8,model=8.  [default: one device]"
    ),
    option("--hosts", required=True, metavar="N|LIST|@FILE", help="How many hosts; for ssh, which."),
    option("--gateways", metavar="LIST", help="Hosts that may use the outside: 0,1 or 0-3.  [default: all]"),
    option("--encrypt", is_flag=True, help="Encrypt what goes between hosts."),
    option("--name", metavar="NAME", help="The job's name.  [default: fetch-, and DEST's last part]"),
    option("--port", type=click.IntRange(1, 65535), metavar="PORT", help="Of every host.  [default: 7611]"),
    option(
        "--secret-file",
        metavar="FILE",
        help="Holds the hosts' secret where the script runs.  [default: made anew by every run]",
    ),
    option("--gdist", default="gdist", show_default=True, metavar="COMMAND", help="How hosts call gdist."),
    option("--then", metavar="COMMAND", help="Shell code that runs once the store is there."),
)
_JOB = (
    "source",
    "dest",
    "flags",
    "mesh",
    "hosts",
    "gateways",
    "encrypt",
    "name",
    "port",
    "secret_file",
    "gdist",
    "then",
)


def _job(
    source: str,
    dest: str,
    flags: tuple[str, ...],
    mesh: str | None,
    hosts: str,
    gateways: str | None,
    encrypt: bool,
    name: str | None,
    port: int | None,
    secret_file: str | None,
    gdist: str,
    then: str | None,
) -> tuple[BootstrapJob, dict[str, Any]]:
    count, names = read_hosts(hosts)
    own = (
        *(("--mesh", mesh) if mesh else ()),
        *(("--gateways", gateways) if gateways else ()),
        *(("--encrypt",) if encrypt else ()),
    )
    job = BootstrapJob(
        source,
        dest,
        (*own, *flags),
        count,
        PERMANENT,
        hosts=names,
        name=name or "",
        port=port,
        secret_file=secret_file or "",
        program=tuple(_split(gdist, "--gdist")),
        then=then or "",
    )
    _check_paths({"secret_file": job.secret_file})
    return job, _check(job, own, flags)


def _check(job: BootstrapJob, own: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, Any]:
    """The options of the line that hosts will run, checked as they will check them.

    Raises:
        RequestError: what `gdist cluster fetch` would say, and for flags that are not the line's to give.
    """
    if {"--help", "-h"} & set(flags):
        raise RequestError("--help is no flag of a script", hint="gdist cluster fetch --help")
    before, after = _parsed(job, own), _parsed(job, flags)
    for name in after:
        if name in _NOT_IN_LINE:
            raise RequestError(f"--{name} cannot be given after --", hint=_NOT_IN_LINE[name])
        if name in before:
            raise RequestError(f"--{name} is given before -- and after it", hint="give it once")
    asked = before | after
    _check_paths({"source": job.source} | asked)
    from gdist.run.resolve import check_source  # libtorrent comes with it

    check_source(job.source)
    check_patterns(asked.get("select", ()))
    if "report" in asked:  # its directory is to be on a host, not here
        check_target("--report", Path(asked["report"]).name, REPORTS)
    # what is a file of the hosts alone, they will read
    there = {n for n in _FILES if os.path.isabs(asked.get(n, "")) and not os.path.exists(asked[n])}
    api.cluster_options(
        Membership(HostGroup(0, job.count)),
        **{name: value for name, value in asked.items() if name not in (*_SPEAKS, *there)},
    )
    return asked


def _parsed(job: BootstrapJob, flags: tuple[str, ...]) -> dict[str, Any]:
    """The options among flags of `gdist cluster fetch`; this host's environment is not that of the hosts."""
    try:
        with cluster_fetch.make_context("gdist cluster fetch", [job.source, job.dest, *flags]) as context:
            return {
                name: value
                for name, value in context.params.items()
                if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
                and name not in ("source", "dest")
            }
    except click.UsageError as error:
        raise RequestError(
            f"gdist cluster fetch would say: {error.format_message().rstrip('.')}",
            hint="flags for it stand at the end, after --",
        ) from error


def _check_paths(asked: dict[str, Any]) -> None:
    """That no file is named which other hosts would look for in another directory.

    Raises:
        RequestError: naming the file.
    """
    for name in ("source", "secret_file", *_FILES):
        path = asked.get(name, "")
        if not path or os.path.isabs(path) or is_url(path) or _is_no_path(name, path):
            continue
        if name in _ONLY_FILES or path.startswith(("./", "../")) or os.path.isfile(path):
            raise RequestError(
                f"the file {path!r} is relative, and the hosts look for it elsewhere",
                hint="give it from the root, as every host has it, or a URL",
            )


def _is_no_path(name: str, text: str) -> bool:
    """True for what an option takes in place of a file, and is one whatever lies here."""
    match name:
        case "manifest":
            return known_release(text) is not None
        case "verify_key":
            return re.fullmatch(r"[0-9a-fA-F]{64}", text.strip()) is not None
        case _:
            return False


def _split(text: str, what: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RequestError(f"{what} {text!r} is no command: {error}", hint="close its quotes") from error
    if not words:
        raise RequestError(f"{what} is empty", hint="leave it out")
    return words


def _print(output: Output, text: str) -> None:
    output.result(text.rstrip("\n"), {"text": text})


@bootstrap.command()
@job_options
@option("--partition", metavar="NAME", help="Slurm's partition.  [default: the cluster's]")
@option("--time", metavar="TIME", help="Slurm's time limit, like 4:00:00.  [default: the partition's]")
@option("--sbatch", multiple=True, metavar="OPTION", help="A line for sbatch: --account=x; may be repeated.")
def slurm(
    job: BootstrapJob,
    fetch: dict[str, Any],
    output: Output,
    partition: str | None,
    time: str | None,
    sbatch: tuple[str, ...],
) -> None:
    """Print a batch script for Slurm.

    It starts one process on each node with srun, tries again and requeues the job after what may pass, ends
    at once after what will not, and lets go in time before the limit. Names and numbers of the nodes come
    from Slurm. Hand it to sbatch.
    """
    from gdist.run.bootstrap.slurm import Slurm, slurm_script

    _print(output, slurm_script(job, Slurm(partition or "", time or "", sbatch)))


@bootstrap.command()
@job_options
@option("--image", required=True, metavar="IMAGE", help="Image with gdist in it.")
@option("--train-image", metavar="IMAGE", help="Image of what runs after the fetch.  [default: --image]")
@option("--namespace", metavar="NAME", help="Kubernetes' namespace.  [default: the context's]")
@option("--jobset", is_flag=True, help="A JobSet, in place of a Job and a Service.")
@option("--prefetch", is_flag=True, help="Only fill the volume: nothing runs after the fetch.")
@option(
    "--volume",
    default="emptyDir",
    show_default=True,
    metavar="|".join(VOLUMES),
    help="Where the directory above DEST comes from.",
)
@option("--storage", metavar="SIZE", help="Of the node's disk, for each pod.  [default: not asked for]")
@option("--secret-name", metavar="NAME", help="A Secret that is there, with the key secret.  [default: made]")
@option("--node-selector", multiple=True, metavar="KEY=VALUE", help="Label of nodes; may be repeated.")
def kubernetes(
    job: BootstrapJob,
    fetch: dict[str, Any],
    output: Output,
    **values: Any,  # Any: options by name
) -> None:
    """Print a manifest for Kubernetes.

    An Indexed Job with a headless Service, or with --jobset a JobSet: one pod a node, whose init container
    fetches and whose container then trains; its exit code decides whether a pod is tried again. It needs no
    right to ask the API server. Hand it to kubectl apply.
    """
    from gdist.run.bootstrap.kubernetes import Kubernetes, kubernetes_manifest

    if "http" in fetch:
        raise RequestError(
            "--http cannot be given after --: the manifest gives it, and asks there", hint="leave it out"
        )
    given = {name: value for name, value in values.items() if value is not None}
    _print(output, kubernetes_manifest(job, Kubernetes(memory=fetch.get("memory", ""), **given)))


@bootstrap.command()
@job_options
@option("--tpu", required=True, metavar="NAME", help="The TPU VM.")
@option("--zone", required=True, metavar="ZONE", help="Its zone.")
@option("--project", metavar="PROJECT", help="Its project.  [default: gcloud's]")
def tpu(
    job: BootstrapJob, fetch: dict[str, Any], output: Output, tpu: str, zone: str, project: str | None
) -> None:
    """Print a script for the workers of a TPU VM.

    It runs one line on all workers at once by gcloud; which worker is which, each asks the metadata server.
    Run it where gcloud is logged in.
    """
    from gdist.run.bootstrap.tpu import TpuVm, tpu_script

    _print(output, tpu_script(job, TpuVm(tpu, zone, project or "")))


@bootstrap.command()
@job_options
@option("--ssh", default="ssh", show_default=True, metavar="COMMAND", help="How ssh is called: ssh -l me.")
def ssh(job: BootstrapJob, fetch: dict[str, Any], output: Output, ssh: str) -> None:
    """Print a script that starts the fetch on a list of hosts by ssh.

    On all at once; it shows what each says, and ends with the code that matters most. When it is stopped, so
    is every host. Run it where ssh reaches them without a password.
    """
    from gdist.run.bootstrap.ssh import ssh_script

    _print(output, ssh_script(job, tuple(_split(ssh, "--ssh"))))


@bootstrap.command()
@job_options
@option(
    "--resource", multiple=True, metavar="KEY=VALUE", help="Of each node: accelerators=H100:8; repeatable."
)
@option("--setup", default="pip install gdist", show_default=True, metavar="COMMAND", help="Installs gdist.")
def skypilot(
    job: BootstrapJob, fetch: dict[str, Any], output: Output, resource: tuple[str, ...], setup: str
) -> None:
    """Print a task for SkyPilot.

    Names and numbers of the nodes come from SkyPilot. Hand it to sky launch, or to sky jobs launch, after
    whose recoveries it goes on.
    """
    from gdist.run.bootstrap.skypilot import SkyPilot, skypilot_task

    _print(output, skypilot_task(job, SkyPilot(resource, setup)))
