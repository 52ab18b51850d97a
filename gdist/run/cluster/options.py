"""What can be asked of a cluster's fetch beside what can be asked of any."""

from __future__ import annotations

from dataclasses import dataclass, field

from gdist.core.exchanges import EXCHANGES
from gdist.core.text import count
from gdist.errors import RequestError
from gdist.exchange import parse_address
from gdist.run.options import FetchOptions

DEFAULT_PORT = 7611


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How the hosts of a job work together; times in seconds, rates in bytes a second, 0 for no limit.

    `fetch.host` says which host this is. `coordinator` is where host 0's agent is asked, `hosts` are the
    addresses of all in order, where they are known; `job` tells two jobs of one cluster apart. `secret` is
    shared by the job; `gateways` are the hosts that may use the outside (None: all). `hold` bounds the bytes
    of pieces that wait on this host's disk for others (None: what the disk can spare). A host that has all it
    needs waits `linger` for those who never came; fewer than `min_hosts` at the `deadline` are an error.
    `http` is where probes and metrics are served.

    Raises:
        RequestError: for what no cluster's fetch can do.
    """

    fetch: FetchOptions = field(default_factory=FetchOptions)
    coordinator: str = ""
    hosts: tuple[str, ...] = ()
    job: str = ""
    port: int | None = None
    secret: str = ""
    encrypt: bool = False
    gateways: frozenset[int] | None = None
    exchange: str = "swarm"
    max_lan: int = 0
    hold: int | None = None
    deadline: float = 0
    min_hosts: int = 0
    linger: float = 600
    http: str = ""

    def __post_init__(self) -> None:
        hosts = self.fetch.host.count
        if self.fetch.payload == "keep":
            raise RequestError(
                "a cluster's fetch keeps no payload: each host brings in a part of it",
                hint="gdist fetch --payload keep on one host, or gdist export from the store",
            )
        if self.encrypt and self.exchange == "collective":
            raise RequestError(
                "--encrypt cannot be had with --exchange collective: JAX's own traffic is not encrypted",
                hint="use --exchange swarm, or a network that others cannot listen to",
            )
        if self.min_hosts > hosts:
            raise RequestError(
                f"--min-hosts {self.min_hosts} is more than the job has, {count(hosts, 'host')}",
                hint=f"at most {hosts}",
            )
        if self.min_hosts and not self.deadline:
            raise RequestError(
                f"--min-hosts {self.min_hosts} is asked for at the deadline, and there is none",
                hint="give --deadline too, or leave --min-hosts out",
            )
        if self.http:
            parse_address(self.http)
        if self.exchange not in EXCHANGES:
            raise RequestError(
                f"exchange {self.exchange!r} is none of {', '.join(EXCHANGES)}",
                hint="gdist plan says which of them is faster on your network; give that to every host",
            )

    @property
    def gateway(self) -> bool:
        """True when this host may use the outside."""
        return self.gateways is None or self.fetch.host.index in self.gateways
