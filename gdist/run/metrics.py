"""A status as Prometheus metrics: the only importer of prometheus-client.

Every name begins with `gdist_`, every metric of one host carries its index as the label `host`; those of the
whole cluster (`gdist_cluster_...`) carry none and come from its coordinator. What only grows while the
process runs is a counter. The list for readers is in `docs/how-to/watch-a-fetch.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gdist import __version__
from gdist.core.status import AgentStatus, Binds, ClusterStatus, MemberState, Stage

_GAUGES = (
    ("gdist_run_seconds", "Seconds since the run began.", "seconds"),
    ("gdist_wanted_bytes", "Bytes of tensors that this host keeps.", "bytes_wanted"),
    ("gdist_placed_bytes", "Bytes of them that are in their shards.", "bytes_placed"),
    ("gdist_tensors", "Tensors that the run brings.", "tensors"),
    ("gdist_tensors_ready", "Tensors that can be read.", "tensors_ready"),
    ("gdist_held_bytes", "Bytes of pieces that are kept for other hosts.", "held_bytes"),
    ("gdist_leased_pieces", "Pieces that this host is to bring in from outside.", "leased"),
    ("gdist_peers", "Connected peers outside.", "peers"),
)
_COUNTERS = (
    ("gdist_pieces", "Pieces that came in and whose hash is right.", "pieces"),
    ("gdist_wan_received_bytes", "Bytes that came in from outside.", "wan_bytes"),
    ("gdist_lan_received_bytes", "Bytes that came from other hosts.", "lan_in_bytes"),
    ("gdist_lan_sent_bytes", "Bytes that went to other hosts.", "lan_out_bytes"),
    ("gdist_hash_failures", "Pieces that came with wrong bytes.", "hash_failures"),
    (
        "gdist_transfer_errors",
        "Peers, trackers or hosts that failed, and others were asked instead.",
        "transfer_errors",
    ),
)


class StatusCollector(Collector):
    """The metrics of one host's run, and of its cluster where it coordinates one, as of each scrape."""

    def __init__(self, status: Callable[[], AgentStatus], cluster: Callable[[], ClusterStatus | None]):
        self._status, self._cluster = status, cluster

    def collect(self) -> Iterator[Metric]:
        """Asks, and gives the metrics of the answers."""
        yield from agent_metrics(self._status())
        cluster = self._cluster()
        if cluster is not None:
            yield from cluster_metrics(cluster)


def agent_metrics(status: AgentStatus) -> Iterator[Metric]:
    """The metrics of one host's run."""
    host = str(status.index)
    about = {
        "host": host,
        "hosts": str(status.count),
        "name": status.name,
        "dest": status.dest,
        "release": status.release,
        "info_hash": status.info_hash,
        "version": __version__,
    }
    info = GaugeMetricFamily("gdist_run_info", "What runs, as labels; always 1.", labels=tuple(about))
    info.add_metric(list(about.values()), 1)
    yield info
    yield _one_of("gdist_stage", "1 for what the run is doing.", "stage", host, Stage, status.stage)
    yield _one_of("gdist_binds", "1 for what keeps it from being faster.", "binds", host, Binds, status.binds)
    yield _of_host(GaugeMetricFamily, "gdist_live", "1 while it progresses or waits.", host, status.live)
    for name, says, field in _GAUGES:
        yield _of_host(GaugeMetricFamily, name, says, host, getattr(status, field))
    for name, says, field in _COUNTERS:
        yield _of_host(CounterMetricFamily, name, says, host, getattr(status, field))


def cluster_metrics(status: ClusterStatus) -> Iterator[Metric]:
    """The metrics of the whole cluster."""
    hosts = GaugeMetricFamily("gdist_cluster_hosts", "Hosts by what became of them.", labels=("state",))
    states = [member.state for member in status.members]
    for state in MemberState:
        hosts.add_metric([state.value], states.count(state))
    hosts.add_metric(["missing"], len(status.missing))
    yield hosts
    values: list[tuple[str, str, float | None]] = [
        ("gdist_cluster_union_bytes", "Distinct bytes that the hosts need.", status.union_bytes),
        ("gdist_cluster_inside_bytes", "Bytes of them that came in.", status.inside_bytes),
        ("gdist_cluster_pieces", "Pieces that the hosts need.", status.pieces),
        ("gdist_cluster_pieces_held", "Pieces that a host keeps for others.", status.held),
        ("gdist_cluster_pieces_spent", "Pieces that all who need them have got.", status.spent),
        (
            "gdist_cluster_bound_seconds",
            "The least time for what came so far, at the fastest rates seen.",
            status.bound_seconds,
        ),
        (
            "gdist_cluster_bound_ratio",
            "That over the time from the beginning until no host is at work.",
            status.share_of_bound,
        ),
    ]
    for name, says, value in values:
        if value is not None:
            yield GaugeMetricFamily(name, says, value)
    yield CounterMetricFamily(
        "gdist_cluster_wan_received_bytes",
        "Bytes that came in from outside, all hosts together.",
        status.wan_bytes,
    )


def _of_host(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, says: str, host: str, value: float
) -> Metric:
    family = kind(name, says, labels=("host",))
    family.add_metric([host], value)
    return family


def _one_of(
    name: str, says: str, label: str, host: str, kinds: type[Stage | Binds], now: Stage | Binds
) -> Metric:
    family = GaugeMetricFamily(name, says, labels=("host", label))
    for kind in kinds:
        family.add_metric([host, kind.value], kind is now)
    return family


class Exposition:
    """The text of `/metrics`: the run's metrics, and those of the process (memory, CPU, open files)."""

    def __init__(
        self, status: Callable[[], AgentStatus], cluster: Callable[[], ClusterStatus | None] = lambda: None
    ):
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(StatusCollector(status, cluster))
        ProcessCollector(registry=self._registry)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics now and their content type, in the form that an `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
