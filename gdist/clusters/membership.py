"""What a scheduler tells about this process, and how its variables are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gdist.core.hosts import split_address
from gdist.core.mesh import HostGroup
from gdist.core.text import shorten
from gdist.errors import RequestError

HINT = "say it yourself: --host INDEX/COUNT, or --cluster NAME (`alone` for a lone host)"
SHOWN = 60  # characters of a variable's value in messages


@dataclass(frozen=True, slots=True)
class Membership:
    """Which host this process runs on, of how many, and where to find the others.

    `host` counts hosts, not ranks. `coordinator` is the address of host 0, maybe with a port, '' when it is
    not known; `hosts` are the addresses of all in order, or nothing. `evidence` are the variables that
    decided, as `NAME=value`. `job` differs between two jobs and is the same on all hosts of one; '' when the
    scheduler gives none.
    """

    host: HostGroup
    local_rank: int = 0
    local_size: int = 1
    coordinator: str = ""
    hosts: tuple[str, ...] = ()
    cluster: str = "alone"
    evidence: tuple[str, ...] = ()
    job: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.local_rank < self.local_size:
            raise RequestError(
                f"{self.cluster}: rank {self.local_rank} on this host is not in 0 to {self.local_size - 1} "
                f"({', '.join(self.evidence)})",
                hint=HINT,
            )
        if self.hosts and len(self.hosts) != self.host.count:
            raise RequestError(
                f"{self.cluster}: {len(self.hosts)} hosts are named and {self.host.count} counted "
                f"({', '.join(self.evidence)})",
                hint=HINT,
            )

    @property
    def attaches(self) -> bool:
        """True for a rank that is not the first of its host: another one is the host's agent."""
        return self.local_rank > 0

    def __str__(self) -> str:
        rank = f", rank {self.local_rank} of {self.local_size} on it" if self.local_size > 1 else ""
        why = f" ({', '.join(self.evidence)})" if self.evidence else ""
        return f"host {self.host.index} of {self.host.count}{rank}, by {self.cluster}{why}"


class HalfSet(RequestError):
    """Some variables of a scheduler are there and others that it needs are not."""


class Variables:
    """Variables of the environment, which remembers those that were used."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._used: dict[str, str] = {}

    def text(self, name: str) -> str:
        """The value without blanks around it; '' where it is not set."""
        value = self._environ.get(name, "").strip()
        if value:
            self._used[name] = value
        return value

    def number(self, name: str) -> int | None:
        """The value as a number from 0 on; None where it is not set.

        Raises:
            RequestError: when it is something else.
        """
        value = self.text(name)
        if not value:
            return None
        if not value.isdecimal() or len(value) > 9:
            raise RequestError(
                f"{name} is {shorten(value, SHOWN)!r}, which is no number from 0 on", hint=HINT
            )
        return int(value)

    def needs(self, cluster: str, *names: str) -> tuple[int, ...]:
        """The numbers of these variables.

        Raises:
            HalfSet: naming those that are not set, and those that are: these, or others that were read.
        """
        values = {name: self.number(name) for name in names}
        found = tuple(value for value in values.values() if value is not None)
        if len(found) < len(names):
            missing = [name for name, value in values.items() if value is None]
            raise half_set(cluster, missing, self._used)
        return found

    def has(self, *names: str) -> bool:
        """True when all of them are set to something."""
        return all(self._environ.get(name, "").strip() for name in names)

    @property
    def used(self) -> tuple[str, ...]:
        """Those that were read and set, as `NAME=value`, each on one line."""
        return tuple(
            f"{name}={shorten(' '.join(value.split()), SHOWN)}" for name, value in self._used.items()
        )


def half_set(cluster: str, missing: Iterable[str], there: Iterable[str]) -> HalfSet:
    """The error for a scheduler whose variables are not all set."""
    lacks, has = list(missing), list(there)
    return HalfSet(
        f"{cluster}: {' and '.join(has)} {'is' if len(has) == 1 else 'are'} set, "
        f"{' and '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} not",
        hint=HINT,
    )


def group(cluster: str, index: int, count: int, variables: Variables) -> HostGroup:
    """The host, with an error that names the variables when they contradict one another."""
    if not 0 <= index < count:
        raise RequestError(
            f"{cluster}: host {index} is not in 0 to {count - 1} ({', '.join(variables.used)})", hint=HINT
        )
    return HostGroup(index, count)


def hosts_of_ranks(
    cluster: str, rank: int, size: int, local_rank: int, local_size: int, variables: Variables
) -> HostGroup:
    """The host of a rank where every host has as many, and a host's ranks follow one another.

    Raises:
        RequestError: when the numbers cannot be of such a job.
    """
    if not 0 <= rank < size or local_size < 1 or size % local_size or rank % local_size != local_rank:
        raise RequestError(
            f"{cluster}: the ranks are not dealt out host by host, as many to each "
            f"({', '.join(variables.used)})",
            hint="start one process a host, or say --host INDEX/COUNT",
        )
    return group(cluster, rank // local_size, size // local_size, variables)


def host_part(address: str) -> str:
    """The host of an address whose port belongs to something else; '' for ''."""
    return split_address(address)[0] if address else ""
