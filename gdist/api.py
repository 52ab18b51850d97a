"""The library's functions with plain keyword arguments, the same names as the command line's options.

    gdist.fetch("magnet:?...", "/data/model", mesh="8x8", memory="2GiB", trackers=["udp://..."])

Texts are read here into the values that `gdist.run` takes; the command line goes through the same functions.
Nothing heavy is imported before a function that needs it is called.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from gdist.core.magnet import parse_peer
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.payload import check_piece_length
from gdist.core.taking import AT_ONCE
from gdist.core.units import parse_bytes, parse_memory, parse_rate, parse_seconds
from gdist.core.view import VIEW
from gdist.errors import GdistError, RefusedError, RequestError, TransferError
from gdist.events import Note, Observer
from gdist.profile_files import check_profile
from gdist.reading import HostLike, MeshLike, OrderLike, RulesLike, all_devices
from gdist.reading import read_host as read_host
from gdist.reading import read_mesh as read_mesh
from gdist.reading import read_rules as read_rules
from gdist.rename_files import RenameLike, read_rename

if TYPE_CHECKING:
    from gdist.clusters import Membership
    from gdist.core.rules import Rules
    from gdist.core.status import ClusterStatus
    from gdist.run.check_manifest import ManifestReport
    from gdist.run.cluster.options import ClusterOptions
    from gdist.run.fetch import FetchResult
    from gdist.run.inspect import Inspection
    from gdist.run.job import FetchJob
    from gdist.run.options import FetchOptions
    from gdist.run.plan import PlanReport
    from gdist.run.publish import Published
    from gdist.run.recorder import Recorder
    from gdist.run.reshard import ReshardResult
    from gdist.run.rules import RulesReport
    from gdist.run.simulate import SimulationReport
    from gdist.run.survey import SurveyOptions
    from gdist.run.view import ViewResult
    from gdist.sources.torrent import TorrentOptions, Version

Axes = Iterable[str] | str | None
JOB = "job"  # for a host: the one that the scheduler says
LAYOUTS = ("zarr", "view", "both")
MOST_PORT = 65535


class Swarm(TypedDict, total=False):
    """How to take part in the swarm; everything is optional.

    `trackers`, `peers` (`host:port`) and `web_seeds` are added to those the source names; one alone may be a
    text. `listen` is `address:port`, several joined by commas, port 0 for any. Times are seconds or texts
    like `5m`, rates bytes a second or texts like `100MB/s`, 0 for no limit.
    """

    trackers: Iterable[str]
    peers: Iterable[str]
    web_seeds: Iterable[str]
    dht: bool
    lsd: bool
    listen: str | None
    metadata_timeout: float | str
    stall_timeout: float | str
    max_download: int | str
    max_upload: int | str


def fetch(
    source: str,
    dest: str | os.PathLike[str] | None = None,
    *,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    host: HostLike = None,
    payload: str = "discard",
    memory: int | str = "1GiB",
    codec: str = "none",
    layout: str = "zarr",
    dtype: str | None = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    manifest: str | os.PathLike[str] | None = None,
    verify_key: str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> FetchResult:
    """Fetches a release into a store, or goes on where an earlier call stopped; safe to repeat.

    `source` is a release's name, a magnet, an info-hash, a .torrent file or URL; `dest` a directory or a URL
    (default: the source's name, here). `mesh` is `8x8` or `data=8,model=8`; `gdist.reading.read_mesh`
    says what goes with it. `rules` are a name, a YAML or JSON file or its content; `host` is `3/8`. `payload`
    "keep" leaves the torrent's files in `dest/payload`. `memory` bounds what is held while converting.
    `dtype` ("bfloat16", "float16", "float32") dequantises pairs and GGUF's blocks, and casts floating tensors
    on the way; `select` takes only the tensors in whose name one of the regular expressions is found.
    `manifest`, a file or URL, says what the torrent holds; with a `verify_key`, a PEM file or 64 hex digits,
    nothing is asked of anybody unless that key has signed the manifest, given as `manifest` or as the source.
    `layout` "view"
    writes no shards: the torrent's own files, in `dest/payload`, are the store; "both" adds such a view, in
    `dest/view`, to the shards. See `Swarm` for the rest.

    Raises:
        GdistError: of the family that says whose fault it is; what is done is kept for the next call.
    """
    _check_keywords("fetch", swarm)
    source = _source(source)
    if dest is not None and not os.fspath(dest):
        raise RequestError("the destination is empty", hint="give a directory or a URL, or none at all")
    if layout not in LAYOUTS:
        raise RequestError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if layout == "view" and codec != "none":
        raise RequestError(
            f"a view is the payload as it is: codec {codec} does not go with it", hint="leave --codec out"
        )
    from gdist.run.fetch import fetch as run

    options = _fetch_options(
        mesh=mesh,
        axes=axes,
        devices=devices,
        devices_per_host=devices_per_host,
        device_order=device_order,
        rules=rules,
        host=host,
        payload="keep" if layout != "zarr" else payload,
        memory=memory,
        codec=VIEW if layout == "view" else codec,
        dtype=dtype,
        select=select,
        profile=profile,
        ignore=ignore,
        manifest=manifest,
        verify_key=verify_key,
        work_dir=work_dir,
        **swarm,
    )
    if layout != "both":
        return run(source, dest, options, observe=observe, stop=stop)
    if options.host.count > 1:
        raise RequestError(
            "a view needs all of the payload, and each of several hosts takes in only its part",
            hint="--layout both goes with one host",
        )
    done = run(source, dest, options, observe=observe, stop=stop)
    view(
        Path(done.path, "payload"),
        Path(done.path, "view"),
        torrent=Path(done.path, "source", "source.torrent"),
        profile=profile,
        ignore=ignore,
        select=select,
        partial=True,  # the shards hold the others
        observe=observe,
        stop=stop,
    )
    return done


def _fetch_options(
    *,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    host: HostLike = None,
    payload: str = "discard",
    memory: int | str = "1GiB",
    codec: str = "none",
    dtype: str | None = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    manifest: str | os.PathLike[str] | None = None,
    verify_key: str | os.PathLike[str] | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    **swarm: Unpack[Swarm],
) -> FetchOptions:
    """What is asked of a fetch, as one value."""
    check_profile(profile)
    group, table = read_host(host) or HostGroup(), read_rules(rules)
    devices = all_devices(devices, devices_per_host, group.count)
    cut = _cut(mesh, axes, devices, device_order, table)
    group.devices(cut)
    from gdist.run.options import FetchOptions

    return FetchOptions(
        mesh=cut,
        rules=table,
        host=group,
        payload=payload,
        memory=parse_memory(memory),
        codec=codec,
        dtype=dtype,
        select=_texts(select),
        profile=profile,
        ignore=_texts(ignore),
        manifest=_text(manifest),
        verify_key=_text(verify_key),
        work=Path(work_dir) if work_dir is not None else None,
        torrent=torrent_options(**swarm),
    )


def cluster_fetch(
    source: str,
    dest: str | os.PathLike[str] | None = None,
    *,
    cluster: str = "auto",
    host: HostLike = None,
    coordinator: str | None = None,
    hosts: str | Iterable[str] = (),
    port: int | None = None,
    secret: str | None = None,
    encrypt: bool = False,
    gateways: str | Iterable[int] = "all",
    exchange: str = "swarm",
    max_lan: int | str = 0,
    hold: int | str | None = None,
    deadline: float | str = 0,
    min_hosts: int = 0,
    linger: float | str = "10m",
    http: str | None = None,
    recorder: Recorder | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **fetching: Any,  # Any: those of `fetch`, which knows their types
) -> FetchResult:
    """Fetches this host's part of a release together with the other hosts of a job; safe to repeat.

    Called on every host, in any order. `cluster` says whose environment tells which host this is (`auto`: all
    known are asked), `host`, `coordinator` and `hosts` say it outright. `secret` is shared by the job, a text
    or `@FILE`; `gateways` are the hosts that may use the outside: `0,1` or `0-3`. `hold` bounds what is kept
    for others, `linger` how long a host that is done waits for hosts that never came. `recorder` is told how
    the cluster fares, for a page about it. The rest is as for `fetch`.

    Raises:
        GdistError: of a fetch, and when the hosts disagree or do not come.
    """
    from gdist.run.cluster import cluster_fetch as run

    _check_keywords("cluster_fetch", fetching, _fetch_options.__kwdefaults__)
    source = _source(source)
    where = find_host(cluster, host, coordinator, hosts)
    options = cluster_options(
        where,
        port=port,
        secret=secret,
        encrypt=encrypt,
        gateways=gateways,
        exchange=exchange,
        max_lan=max_lan,
        hold=hold,
        deadline=deadline,
        min_hosts=min_hosts,
        linger=linger,
        http=http,
        **fetching,
    )
    if observe is not None:
        observe(Note(str(where)))
        if where.host.count > 1 and not options.secret:
            observe(Note("no secret was given: whoever can reach the hosts and knows the job may join them"))
    return run(source, dest, options, observe=observe, stop=stop, recorder=recorder)


def cluster_options(
    where: Membership,
    *,
    port: int | None = None,
    secret: str | None = None,
    encrypt: bool = False,
    gateways: str | Iterable[int] = "all",
    exchange: str = "swarm",
    max_lan: int | str = 0,
    hold: int | str | None = None,
    deadline: float | str = 0,
    min_hosts: int = 0,
    linger: float | str = "10m",
    http: str | None = None,
    **fetching: Any,  # Any: those of `fetch`, which knows their types
) -> ClusterOptions:
    """What is asked of `cluster_fetch`, as one value; nothing is looked at but files of rules and the like.

    Raises:
        RequestError: for what `cluster_fetch` cannot do.
    """
    from gdist.run.cluster.options import ClusterOptions

    return ClusterOptions(
        fetch=_fetch_options(host=where.host, **fetching),
        coordinator=where.coordinator,
        hosts=where.hosts,
        job=where.job,
        port=port,
        secret=read_secret(secret),
        encrypt=encrypt,
        gateways=_read_gateways(gateways, where.host.count),
        exchange=exchange,
        max_lan=parse_rate(max_lan, "max lan"),
        hold=None if hold is None else parse_bytes(hold, "hold"),
        deadline=parse_seconds(deadline, "deadline"),
        min_hosts=min_hosts,
        linger=parse_seconds(linger, "linger"),
        http=http or "",
    )


def cluster_status(
    dest: str | os.PathLike[str] | None = None,
    *,
    host: HostLike = None,
    coordinator: str | None = None,
    hosts: str | Iterable[str] = (),
    job: str | None = None,
    secret: str | None = None,
    encrypt: bool = False,
    work_dir: str | os.PathLike[str] | None = None,
) -> ClusterStatus:
    """Where a cluster's fetch stands: of every host what it has, what binds, and which is the slowest.

    With `dest` the agent is asked that writes there on this machine. Without, the `coordinator`, or the first
    of `hosts` that answers; by default those that the scheduler's variables name. `secret`, `encrypt` and
    `job` (the scheduler's id of the job) are those of the job.

    Raises:
        RequestError: nothing says whom to ask.
        TransferError: nobody answers.
        RefusedError: the secret or the job is another.
    """
    from gdist.run.local_agent import AgentAddress, ask_cluster

    if dest is not None:
        from gdist.run.watch import Watch

        work = Path(work_dir) if work_dir is not None else None
        with Watch(os.fspath(dest), read_host(host), work) as watch:
            agents = watch.agents()
        if not agents:
            raise TransferError(
                f"no fetch of a cluster is at work on {os.fspath(dest)} on this machine",
                hint="ask its coordinator with --coordinator, or look at what is there with gdist status",
            )
        return ask_cluster(agents)
    from gdist.exchange import Key
    from gdist.run.cluster.station import NO_SECRET

    addresses = [coordinator or "", *_read_list(hosts).split(",")]
    why, found = "", job
    try:
        where = find_host()
    except RequestError as error:  # this may be a machine outside the job
        why = f": {error.message}"
    else:
        found = where.job if job is None else job
        addresses += (where.coordinator, *where.hosts) if not any(addresses) else ()
    addresses = [*dict.fromkeys(filter(None, map(str.strip, addresses)))]
    if not addresses:
        raise RequestError(
            f"whom to ask is not known{why}",
            hint="give the destination of a fetch on this machine, or --coordinator HOST:PORT",
        )
    key = Key.from_secret(read_secret(secret) or NO_SECRET, found or "")
    try:
        return ask_cluster([AgentAddress(_with_port(address), key, encrypt) for address in addresses])
    except RefusedError as error:
        if job is None:
            asked = f"it was asked for job {found}" if found else "it was asked for no job"
            error.hint = f"{error.hint}; {asked}: where a scheduler started the fetch, give its id with --job"
        raise


def _with_port(address: str) -> str:
    from gdist.exchange import format_address, parse_address
    from gdist.run.cluster.options import DEFAULT_PORT

    return format_address(*parse_address(address, DEFAULT_PORT))


def find_host(
    cluster: str = "auto",
    host: HostLike = None,
    coordinator: str | None = None,
    hosts: str | Iterable[str] = (),
) -> Membership:
    """Which host of a cluster this is, and where the others are; what is given wins over the environment.

    Raises:
        RequestError: when it is said nowhere, or twice and differently.
    """
    from gdist.clusters import detect
    from gdist.clusters.this_host import host_name, own_addresses

    said = dict(os.environ)
    group = read_host(host)
    if group is not None or said.get("GDIST_HOST") == JOB:
        said.pop("GDIST_HOST", None)
    if group is not None:
        said |= {"GDIST_RANK": str(group.index), "GDIST_WORLD": str(group.count)}
    if coordinator:
        said["GDIST_COORDINATOR"] = coordinator
    if hosts:
        said["GDIST_HOSTS"] = _read_list(hosts)
    return detect(said, cluster, hostname=host_name(), addresses=own_addresses())


def sharing_host(host: HostLike = None, observe: Observer | None = None) -> HostGroup:
    """The host of a reshard: the one given, of "job" the one that the scheduler says, else a lone one.

    `observe` is told who said it, and where a lone one is among several that a scheduler started.

    Raises:
        RequestError: "job" is said nowhere completely, or this is not the first process of its host.
    """
    tell = observe or (lambda event: None)
    if host is not None and host != JOB:
        return read_host(host) or HostGroup()
    try:
        where = find_host()
    except RequestError:
        if host == JOB:
            raise
        return HostGroup()
    if host is None:
        if where.host.count > 1:
            alone = "all of the store is written by this process: --host job has each host write its part"
            tell(Note(f"{alone}; this is {where}"))
        return HostGroup()
    if where.attaches:
        raise RequestError(
            f"one process a host writes its part, and this is {where}",
            hint="start one process a host, or say --host INDEX/COUNT",
        )
    tell(Note(str(where)))
    return where.host


def _read_list(value: str | Iterable[str]) -> str:
    """A list given as text, as `@FILE`, or as texts."""
    if not isinstance(value, str):
        return ",".join(value)
    return ",".join(_read_file(value[1:], "hosts").split()) if value.startswith("@") else value


def read_secret(value: str | None) -> str:
    """The secret of a job, from itself or from `@FILE`; '' where none is given.

    Raises:
        RequestError: when it is empty, or the file cannot be read.
    """
    if value is None:
        return ""
    text = _read_file(value[1:], "secret") if value.startswith("@") else value
    if not text.strip():
        raise RequestError("the secret is empty", hint="give some random text, the same on every host")
    return text.strip()


def _read_file(path: str, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"the file of the {what}, {path!r}, cannot be read: {error}") from error


def _read_gateways(value: str | Iterable[int], count: int) -> frozenset[int] | None:
    """Indices of hosts, as `0,1` or `0-3`; None for all."""
    if value == "all":
        return None
    found: set[int] = set()
    hint = "give indices of hosts, like 0,1 or 0-3"
    for item in value.split(",") if isinstance(value, str) else map(str, value):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", item)
        if not match:
            raise RequestError(f"gateways {value!r} are no hosts", hint=hint)
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    strange = sorted(index for index in found if index >= count)
    if strange or not found:
        raise RequestError(
            f"gateway {strange[0] if strange else value!r} is none of {count} hosts", hint=hint
        )
    return frozenset(found)


@contextmanager
def fetching(
    source: str,
    dest: str | os.PathLike[str],
    **options: Any,  # Any: those of `fetch`, which knows their types
) -> Iterator[FetchJob]:
    """Runs `fetch` on a thread while a `with` block runs, and gives the job, which `stream` follows.

        with gdist.fetching("magnet:?...", "/data/model") as job:
            for path, array in gdist.stream(job):
                ...

    `options` are the other arguments of `fetch`, but for `stop`. The job's `result()` waits for the store,
    and gives what `fetch` gives or raises what it raises. A fetch that is not done when the block is left is
    stopped, its progress on disk. `observe` gets events on the fetch's thread.

    Raises:
        GdistError: on leaving the block, what ended the fetch, unless the block itself has failed.
    """
    _check_keywords("fetching", options, fetch.__kwdefaults__)
    from gdist.run.job import FetchJob

    stop = threading.Event()
    job = FetchJob(os.fspath(dest), partial(fetch, source, dest, stop=stop, **options), stop)
    try:
        yield job
    except BaseException:
        with suppress(GdistError):  # the block's error is the one to tell
            job.stop()
        raise
    job.stop()


def inspect(
    source: str | os.PathLike[str],
    *,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    hosts: int | None = None,
    tensor: str | None = None,
    rename: RenameLike | None = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    manifest: str | os.PathLike[str] | None = None,
    verify_key: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> Inspection:
    """What a source, a store (directory or URL) or a local checkpoint holds; fetches headers at most.

    `tensor` is a name, or a regular expression searched in names; where it means one tensor or one quantised
    pair, the result's `pictures` say which devices of how many `hosts` (default: those that wrote a store,
    else 1) hold what of it, and what feeds them. With `mesh` or `rules` a store's tensors are told as they
    would be split so.
    `rename` is a renaming table, its name or its file: the result's `renamed` says what it makes of them all.

    Raises:
        RequestError: also when no tensor has that name; the hint has names that are near.
        GdistError: when it cannot be found or read.
    """
    _check_keywords("inspect", swarm)
    source = _source(source)
    if hosts is not None and hosts < 1:
        raise RequestError(f"{hosts} hosts hold nothing", hint="give 1 or more")
    if tensor is not None:
        try:
            re.compile(tensor)
        except re.error as error:
            raise RequestError(f"tensor {tensor!r} is not a regular expression: {error}") from error
    from gdist.run.inspect import InspectOptions
    from gdist.run.inspect import inspect as run

    table = read_rules(rules)
    devices = all_devices(devices, devices_per_host, hosts or 1)
    cut = read_mesh(mesh, axes=axes, devices=devices, device_order=device_order, rules=table)
    names = None if rename is None else read_rename(rename)
    described = _survey(profile, ignore, select, manifest, verify_key, swarm)
    options = InspectOptions(cut, table, hosts, tensor, names, described)
    return run(source, options, observe=observe, stop=stop)


def check_rules(
    source: str | os.PathLike[str],
    *,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    host: HostLike = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    manifest: str | os.PathLike[str] | None = None,
    verify_key: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> RulesReport:
    """How rules split a source, a store or a local checkpoint on a mesh, and everything that does not fit.

    What does not fit is in the report (`report.fit`), not raised.

    Raises:
        GdistError: when the source cannot be found or read.
    """
    _check_keywords("check_rules", swarm)
    source = _source(source)
    from gdist.run.rules import CheckOptions, check

    group, table = read_host(host) or HostGroup(), read_rules(rules)
    devices = all_devices(devices, devices_per_host, group.count)
    cut = read_mesh(mesh, axes=axes, devices=devices, device_order=device_order, rules=table)
    options = CheckOptions(cut, table, group, _survey(profile, ignore, select, manifest, verify_key, swarm))
    return check(source, options, observe=observe, stop=stop)


def plan(
    source: str,
    *,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    host: HostLike = None,
    hosts: int = 1,
    payload: str = "discard",
    memory: int | str = "1GiB",
    piece_length: int | str | None = None,
    wan: float | str | None = None,
    lan: float | str | None = None,
    interconnect: float | str | None = None,
    dtype: str | None = None,
    select: str | Iterable[str] = (),
    details: bool = False,
    profile: str | None = None,
    ignore: Iterable[str] = (),
    manifest: str | os.PathLike[str] | None = None,
    verify_key: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> PlanReport:
    """What a fetch would cost each of `hosts` hosts, or the one `host`, and the least time it can take.

    `wan` is the rate into the cluster, `lan` that of each host (`10Gb/s`), `interconnect` that of the link
    which XLA's collectives have, where JAX runs. With `details` the report says what every tensor costs and
    when it arrives.

    Raises:
        RequestError: for every tensor without a rule or that the mesh does not divide, all at once.
        GdistError: when metadata or headers are needed and do not come.
    """
    _check_keywords("plan", swarm)
    source = _source(source)
    from gdist.run.plan import PlanOptions
    from gdist.run.plan import plan as run

    one = read_host(host)
    if hosts < 1 or (one and hosts not in (1, one.count)):
        raise RequestError(f"{hosts} hosts, and host {host}, do not go together", hint="give one of the two")
    first, table = one or HostGroup(0, hosts), read_rules(rules)
    devices = all_devices(devices, devices_per_host, first.count)
    cut = _cut(mesh, axes, devices, device_order, table)
    first.devices(cut)
    options = PlanOptions(
        mesh=cut,
        rules=table,
        hosts=(one,) if one else tuple(HostGroup(index, hosts) for index in range(hosts)),
        payload=payload,
        memory=parse_memory(memory),
        piece_length=_piece_length(piece_length),
        wan=_positive_rate(wan, "wan"),
        lan=_positive_rate(lan, "lan"),
        interconnect=_positive_rate(interconnect, "interconnect"),
        dtype=dtype,
        details=details,
        survey=_survey(profile, ignore, select, manifest, verify_key, swarm),
    )
    return run(source, options, observe=observe, stop=stop)


def simulate(
    source: str,
    *,
    hosts: int,
    wan: float | str,
    lan: float | str | None = None,
    host_wan: float | str | None = None,
    disk: float | str | None = None,
    gateways: str | Iterable[int] | None = None,
    cores: int = 16,
    cpu: str | Iterable[str] | Mapping[str, float] = (),
    latency: float | str = "0.5ms",
    round: float | str | None = None,
    pulls: int = AT_ONCE,
    slow: str | Iterable[str] = (),
    fail: str | Iterable[str] = (),
    sample: int = 64,
    seed: int = 0,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    piece_length: int | str | None = None,
    dtype: str | None = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    manifest: str | os.PathLike[str] | None = None,
    verify_key: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> SimulationReport:
    """How `hosts` hosts would fetch a release together, by a model of `gdist cluster fetch`.

    `wan` is the rate into the cluster, `host_wan` the most of one host, `lan` the link of each host, in and
    out, `disk` what each writes. `gateways` are the hosts that may use the outside, `0-7,12` (default: all).
    `cpu` changes costs, `place=0.3` in seconds a gigabyte (`gdist.core.simulation.model.Costs`). `slow` is
    `2@0.05`, 2 hosts with a twentieth of their links, `fail` is `1@30s`, one host that is gone after 30 s;
    which they are is up to `seed`. `round` is the time between two answers of the coordinator to one host.
    A host handles `pulls` pieces at once. `sample` hosts are followed one by one.

    Raises:
        RequestError: for every tensor without a rule or that the mesh does not divide, all at once, and for
            what is no number, rate or time.
        GdistError: when metadata or headers are needed and do not come.
    """
    _check_keywords("simulate", swarm)
    source = _source(source)
    from gdist.core.simulation.parse import parse_fail, parse_setting, parse_slow
    from gdist.run.simulate import SimulateOptions
    from gdist.run.simulate import simulate as run

    table = read_rules(rules)
    cut = _cut(mesh, axes, all_devices(devices, devices_per_host, hosts), device_order, table)
    HostGroup(0, hosts).devices(cut)
    options = SimulateOptions(
        setting=parse_setting(
            hosts,
            wan=wan,
            lan=lan,
            host_wan=host_wan,
            disk=disk,
            gateways=gateways,
            cores=cores,
            cpu=cpu,
            latency=latency,
            round=round,
            pulls=pulls,
            sample=sample,
            seed=seed,
        ),
        mesh=cut,
        rules=table,
        slow=parse_slow(slow),
        fail=parse_fail(fail),
        dtype=dtype,
        piece_length=_piece_length(piece_length),
        survey=_survey(profile, ignore, select, manifest, verify_key, swarm),
    )
    return run(source, options, observe=observe, stop=stop)


def reshard(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dest: str | os.PathLike[str],
    *,
    mesh: MeshLike = None,
    axes: Axes = None,
    devices: int | None = None,
    devices_per_host: int | None = None,
    device_order: OrderLike = None,
    rules: RulesLike = None,
    host: HostLike = None,
    memory: int | str = "1GiB",
    codec: str = "none",
    profile: str | None = None,
    ignore: Iterable[str] = (),
    work_dir: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> ReshardResult:
    """Writes a store, or a checkpoint, as a store on another mesh; safe to repeat, resumes.

    `source` is a store (a directory or URL, or those of several hosts), a directory of files that
    gdist reads, or an Orbax or Zarr directory; `dest` a directory or a URL. Without `rules` tensors are split
    as the source was. `host` is `3/8`, or `job` for what the scheduler says. `memory` bounds what is held
    while converting. `profile` and `ignore` are for checkpoints.

    Raises:
        GdistError: of the family that says whose fault it is; what is done is kept for the next call.
    """
    check_profile(profile)
    if not os.fspath(dest):
        raise RequestError("the destination is empty", hint="give a directory or a URL")
    group, table = sharing_host(host, observe), read_rules(rules)
    devices = all_devices(devices, devices_per_host, group.count)
    cut = _cut(mesh, axes, devices, device_order, table)
    group.devices(cut)
    from gdist.run.reshard import ReshardOptions
    from gdist.run.reshard import reshard as run

    options = ReshardOptions(
        mesh=cut,
        rules=table,
        host=group,
        memory=parse_memory(memory),
        codec=codec,
        profile=profile,
        ignore=_texts(ignore),
        work=Path(work_dir) if work_dir is not None else None,
    )
    return run(source, dest, options, observe=observe, stop=stop)


def view(
    payload: str | os.PathLike[str],
    dest: str | os.PathLike[str] | None = None,
    *,
    profile: str | None = None,
    ignore: Iterable[str] = (),
    select: str | Iterable[str] = (),
    partial: bool = False,
    trust: bool = False,
    torrent: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> ViewResult:
    """Makes a store of a finished download without copying a byte: an index over its own files.

    `payload` is a directory or a file, made by any torrent client; `dest` where the index goes (default:
    the payload's own directory). Every byte is read once for its digest, unless `trust`. With `partial`
    tensors that do not lie there as they are, are left out. With a .torrent file `torrent` every piece is
    held against its hash, and the view knows what it is of. Safe to repeat.

    Raises:
        GdistError: of the family that says whose fault it is.
    """
    check_profile(profile)
    from gdist.run.view import ViewOptions, make_view

    options = ViewOptions(
        profile=profile,
        ignore=_texts(ignore),
        select=_texts(select),
        partial=partial,
        trust=trust,
        torrent=None if torrent is None else Path(torrent),
        workers=workers,
    )
    return make_view(payload, dest, options, observe=observe, stop=stop)


def make_torrent(
    path: str | os.PathLike[str],
    *,
    torrent_version: Version = "v1",
    piece_length: int | str | None = None,
    trackers: Iterable[str] = (),
    web_seeds: Iterable[str] = (),
    private: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[bytes, str]:
    """The content of a .torrent file for a file or directory, and its magnet; equal content, equal bytes.

    `progress` is called with the pieces hashed so far and in all.

    Raises:
        RequestError, UnsupportedError, FilesystemError: when it cannot be shared, named or read.
    """
    from gdist.core.magnet import format_magnet
    from gdist.sources.torrent import magnet_of
    from gdist.sources.torrent import make_torrent as make

    torrent = make(
        Path(path),
        version=torrent_version,
        piece_length=_piece_length(piece_length),
        trackers=_trackers(trackers),
        web_seeds=_web_seeds(web_seeds),
        private=private,
        progress=progress,
    )
    return torrent, format_magnet(magnet_of(torrent))


def torrent_differs(
    torrent: bytes,
    path: str | os.PathLike[str],
    *,
    torrent_version: Version = "v1",
    piece_length: int | str | None = None,
    trackers: Iterable[str] = (),
    web_seeds: Iterable[str] = (),
    private: bool = False,
) -> bool:
    """True when `make_torrent` would surely give another one; nothing is hashed to tell."""
    from gdist.sources.torrent import differs

    return differs(
        torrent,
        Path(path),
        version=torrent_version,
        piece_length=_piece_length(piece_length),
        trackers=_trackers(trackers),
        web_seeds=_web_seeds(web_seeds),
        private=private,
    )


def publish(
    payload: object,
    directory: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    title: str = "",
    licence: str = "",
    torrent_version: Version = "v1",
    piece_length: int | str | None = None,
    trackers: Iterable[str] = (),
    web_seeds: Iterable[str] = (),
    private: bool = False,
    profile: str | None = None,
    ignore: Iterable[str] = (),
    rules: RulesLike = None,
    align_tensors: bool = False,
    sign: str | os.PathLike[str] | None = None,
    force: bool = False,
    file_bytes: int | str = "5GB",
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> Published:
    """Makes a torrent, a source manifest with a digest of every tensor, and the magnet, for others to fetch.

    `payload` is a file or a directory; or a tree of arrays (of JAX, or dicts and lists of NumPy arrays),
    which is written as safetensors into `directory/NAME` first, one tensor in memory at a time, names being
    paths joined by `.`. What is made goes to `directory` (default: beside the payload). `sign` is the PEM
    file of an Ed25519 key; `align_tensors` publishes a copy whose tensors start at multiples of 64 bytes.
    `rules` are partition rules for whoever fetches; `file_bytes` bounds a file written of a tree. `progress`
    is called with bytes read and all that will be.

    Raises:
        RequestError: nothing to publish, a key of another kind, or files of other content in the way.
        UnsupportedError, CorruptError, FilesystemError: of files that cannot be described.
    """
    from gdist.run.publish import PublishOptions
    from gdist.run.publish import publish as run

    check_profile(profile)
    where = None if directory is None else Path(directory)
    if not isinstance(payload, str | os.PathLike):
        payload = _write_tree(payload, where, name, file_bytes, stop)
    options = PublishOptions(
        name=name or "",
        title=title,
        licence=licence,
        version=torrent_version,
        piece_length=_piece_length(piece_length),
        trackers=_trackers(trackers),
        web_seeds=_web_seeds(web_seeds),
        private=private,
        profile=profile,
        ignore=_texts(ignore),
        rules=read_rules(rules),
        align=align_tensors,
        sign=None if sign is None else Path(sign),
        force=force,
    )
    show = progress or (lambda done, total: None)
    return run(Path(payload), where, options, progress=show, stop=stop)


def _write_tree(
    tree: object, where: Path | None, name: str | None, file_bytes: int | str, stop: threading.Event | None
) -> Path:
    """A tree as files below `where`, in the directory of that name."""
    if where is None:
        raise RequestError("where to write the tree is not known", hint="give a directory")
    from gdist.run.publish import release_name
    from gdist.run.safetensors_files import parse_file_bytes
    from gdist.run.tree_files import leaves_of, plain_leaves, write_tree

    most, raw = parse_file_bytes(file_bytes), plain_leaves(tree)
    if raw is None:
        try:
            from gdist.loader.leaves import tree_leaves
        except ImportError as error:
            raise RequestError(
                "a tree of other than NumPy arrays needs JAX", hint="pip install 'gdist[jax]'"
            ) from error
        raw = tree_leaves(tree)
    target = where / release_name(name or where.absolute().name)
    write_tree(leaves_of(raw), target, file_bytes=most, stop=stop)
    return target


def check_manifest(
    manifest: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    verify_key: str | os.PathLike[str] | None = None,
    digests: bool = True,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> ManifestReport:
    """Holds a source manifest against a payload on disk or a store: files, arrays, and digests.

    `manifest` is a file, a URL or a known release's name. Without `digests` no tensor is read. What differs
    is in the report (`report.faults`), not raised. `progress` is called with bytes read and all to be read.

    Raises:
        RequestError: the manifest is none, has no signature though there is a `verify_key`, or there is
            nothing at `target`.
        CorruptError: the manifest is not what that key signed.
    """
    from gdist.run.check_manifest import check_manifest as run

    show = progress or (lambda done, total: None)
    return run(manifest, target, verify_key=_text(verify_key), digests=digests, progress=show, stop=stop)


def torrent_options(
    *,
    trackers: Iterable[str] = (),
    peers: Iterable[str] = (),
    web_seeds: Iterable[str] = (),
    dht: bool = True,
    lsd: bool = False,
    listen: str | None = None,
    metadata_timeout: float | str = 300,
    stall_timeout: float | str = 300,
    max_download: int | str = 0,
    max_upload: int | str = 0,
) -> TorrentOptions:
    """`Swarm` as the torrent source takes it.

    Raises:
        RequestError: for a tracker, peer, web seed, address, time or rate that is not one.
    """
    from gdist.sources.torrent import TorrentOptions

    return TorrentOptions(
        trackers=_trackers(trackers),
        peers=tuple(parse_peer(peer) for peer in _texts(peers)),
        web_seeds=_web_seeds(web_seeds),
        dht=dht,
        lsd=lsd,
        listen=_listen(listen) if listen is not None else TorrentOptions().listen,
        metadata_timeout_seconds=parse_seconds(metadata_timeout, "metadata-timeout"),
        stall_seconds=parse_seconds(stall_timeout, "stall-timeout"),
        download_rate=parse_rate(max_download, "max-download"),
        upload_rate=parse_rate(max_upload, "max-upload"),
    )


def _cut(
    mesh: MeshLike, axes: Axes, devices: int | None, device_order: OrderLike, rules: Rules | None
) -> Mesh:
    """The mesh of a store to be written: one device where none is given."""
    asked = Mesh() if mesh is None else mesh
    cut = read_mesh(asked, axes=axes, devices=devices, device_order=device_order, rules=rules)
    assert cut is not None, "a mesh was given"
    return cut


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    """Texts given as several, or as one alone."""
    return (value,) if isinstance(value, str) else tuple(value)


def _trackers(value: str | Iterable[str]) -> tuple[str, ...]:
    urls = _texts(value)
    for url in urls:
        if not re.match(r"(udp|https?|wss?)://[^/]", url, re.IGNORECASE):
            raise RequestError(
                f"tracker {url!r} is no address of a tracker",
                hint="for example udp://tracker.example.org:1337",
            )
    return urls


def _web_seeds(value: str | Iterable[str]) -> tuple[str, ...]:
    urls = _texts(value)
    for url in urls:
        if not re.match(r"https?://[^/]", url, re.IGNORECASE):
            raise RequestError(
                f"web seed {url!r} is no address of an HTTP mirror",
                hint="for example https://mirror.example.org/models/",
            )
    return urls


def _listen(value: str) -> str:
    for item in value.split(","):
        match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+):(\d{1,5})", item.strip())
        if not match or int(match[2]) > MOST_PORT:
            raise RequestError(
                f"cannot listen at {item.strip()!r}",
                hint="write address:port or [v6]:port, several with commas between them; port 0 is any",
            )
    return value


def _source(value: object) -> str:
    """A source as text, whatever a caller has put there."""
    if not isinstance(value, str | os.PathLike):
        raise RequestError(
            f"the source is {value!r}, which is no text",
            hint="give a release's name, a magnet, an info-hash, a .torrent file or URL",
        )
    return os.fspath(value)


def _check_keywords(function: str, given: Iterable[str], known: Iterable[str] | None = ()) -> None:
    """That what goes on to others is theirs: else it is an error of the function that was called."""
    for name in given:
        if name not in Swarm.__annotations__ and name not in (known or ()):
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def _survey(
    profile: str | None,
    ignore: Iterable[str],
    select: str | Iterable[str],
    manifest: str | os.PathLike[str] | None,
    verify_key: str | os.PathLike[str] | None,
    swarm: Swarm,
) -> SurveyOptions:
    from gdist.run.survey import SurveyOptions

    check_profile(profile)
    # options that are all unset must not bring libtorrent in: a known release needs none of it
    asked = torrent_options(**swarm) if swarm else None
    return SurveyOptions(profile, _texts(ignore), _texts(select), _text(manifest), _text(verify_key), asked)


def _text(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else os.fspath(value)


def _piece_length(value: int | str | None) -> int | None:
    if value is None:
        return None
    length = parse_bytes(value, "piece-length")
    check_piece_length(length)
    return length


def _positive_rate(value: float | str | None, what: str) -> float | None:
    if value is None:
        return None
    rate = parse_rate(value, what)
    if rate <= 0:
        raise RequestError(f"{what} {value!r} is no rate to plan with", hint="for example 10Gb/s")
    return rate
