"""What all bootstrap scripts are made from."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gdist import __version__
from gdist.errors import RequestError
from gdist.run.bootstrap.rendering import one_line

MOST_NAME = 40  # a pod is called NAME-hosts-0-INDEX, in 63 characters
RESTARTS = 10  # of a whole job: a fetch that was stopped ten times has another problem
ATTEMPTS = 3  # in one place, before the job is given back


@dataclass(frozen=True, slots=True)
class BootstrapJob:
    """A fetch by all hosts, and what is put around it.

    `fetch` are the arguments of `gdist cluster fetch` besides SOURCE and DEST; `program` is how gdist is
    called on a host. `hosts` are addresses where the scheduler gives none, else (); `count` is their number.
    `secret_file` is a file that holds the hosts' secret where the script runs; '' for one that it makes.
    `then` is a line of shell that runs once the store is there. `permanent` are the exit codes after which
    asking again is useless; gdist's others may pass.
    """

    source: str
    dest: str
    fetch: tuple[str, ...]
    count: int
    permanent: tuple[int, ...]
    hosts: tuple[str, ...] = ()
    name: str = ""
    port: int | None = None
    secret_file: str = ""
    program: tuple[str, ...] = ("gdist",)
    then: str = ""

    def __post_init__(self) -> None:
        for what, text in (("source", self.source), ("destination", self.dest)):
            if not text or text.startswith("-"):
                raise RequestError(f"the {what} {text!r} is none", hint="write ./ before a name with a dash")
            one_line(text)
        if self.count < 1:
            raise RequestError("a job has one host or more", hint="for example --hosts 8")

    @property
    def command(self) -> tuple[str, ...]:
        """The line that every host runs."""
        return (*self.program, "cluster", "fetch", self.source, self.dest, *self.fetch)

    @property
    def label(self) -> str:
        """The job's name: what was asked for, or one that follows from the destination."""
        return self.name or default_name(self.dest)

    def values(self) -> dict[str, object]:
        """What every template can show."""
        return {
            "job": self,
            "version": __version__,
            "permanent": self.permanent,
            "attempts": ATTEMPTS,
            "restarts": RESTARTS,
            "bucket": "://" in self.dest,
        }


def default_name(dest: str) -> str:
    """`fetch-grok-1` of `/data/grok-1`: letters, digits and dashes, as all schedulers take them."""
    last = dest.rstrip("/").rpartition("/")[2]
    slug = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    return f"fetch-{slug}"[:MOST_NAME].strip("-")


def check_absolute(job: BootstrapJob, where: str) -> None:
    """That the destination means the same wherever the line runs.

    Raises:
        RequestError: for a path that is relative, or the root itself.
    """
    if "://" in job.dest:
        return
    if not posixpath.normpath(job.dest).strip("/"):
        raise RequestError(
            f"the destination {job.dest!r} is the root of the file system", hint="for example /data/model"
        )
    if not job.dest.startswith("/"):
        raise RequestError(
            f"the destination {job.dest!r} is relative, and {where}",
            hint="give it from the root: /data/model",
        )


def check_counted(job: BootstrapJob, what: str) -> None:
    """That hosts are counted and not named.

    Raises:
        RequestError: when they are named.
    """
    if job.hosts:
        raise RequestError(f"{what} takes a number of hosts, not their names", hint=f"--hosts {job.count}")


def pairs(values: Sequence[str], what: str) -> list[tuple[str, str]]:
    """`KEY=VALUE` texts as pairs.

    Raises:
        RequestError: for one without a `=`.
    """
    found = []
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise RequestError(f"{what} {value!r} is not KEY=VALUE", hint=f"for example {what} pool=gpu")
        found.append((key, text))
    return found
