"""The library's functions with plain keyword arguments, the same names as the command line's options.

    gdist.fetch("magnet:?...", "/data/model", mesh="8x8", memory="2GiB", trackers=["udp://..."])

Texts are read here into the values that `gdist.run` takes; the command line goes through the same functions.
Nothing heavy is imported before a function that needs it is called.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from gdist.core.magnet import parse_peer
from gdist.core.mesh import HostGroup, Mesh, parse_host, parse_mesh
from gdist.core.profiles import PROFILES
from gdist.core.rules import Rules, parse_rules
from gdist.core.units import parse_bytes, parse_rate, parse_seconds
from gdist.errors import RequestError, translate
from gdist.events import Observer

if TYPE_CHECKING:
    from gdist.run.fetch import FetchResult
    from gdist.run.inspect import Inspection
    from gdist.run.plan import PlanReport
    from gdist.run.survey import SurveyOptions
    from gdist.sources.torrent import TorrentOptions, Version

MeshLike = Mesh | str | None
RulesLike = Rules | Mapping[str, object] | str | os.PathLike[str] | None
HostLike = HostGroup | str | None


class Swarm(TypedDict, total=False):
    """How to take part in the swarm; everything is optional.

    `trackers`, `peers` (`host:port`) and `web_seeds` are added to those the source names. `listen` is
    `address:port`, several joined by commas, port 0 for any. Times are seconds or texts like `5m`, rates
    bytes a second or texts like `100MB/s`, 0 for no limit.
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
    rules: RulesLike = None,
    host: HostLike = None,
    payload: str = "discard",
    memory: int | str = "1GiB",
    codec: str = "none",
    dtype: str | None = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    work_dir: str | os.PathLike[str] | None = None,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> FetchResult:
    """Fetches a release into a store, or goes on where an earlier call stopped; safe to repeat.

    `source` is a release's name, a magnet, an info-hash, a .torrent file or URL; `dest` a directory or a URL
    (default: the source's name, here). `mesh` is `8x8` or `data=8,model=8`; `rules` a profile's name, a
    JSON file or its content; `host` is `3/8`. `payload` "keep" leaves the torrent's files in
    `dest/payload`. `memory` bounds what is held while converting. `dtype` ("bfloat16", "float16", "float32")
    dequantises pairs and casts floating tensors on the way; `select` takes only the tensors in whose name one
    of the regular expressions is found. See `Swarm` for the rest.

    Raises:
        GdistError: of the family that says whose fault it is; what is done is kept for the next call.
    """
    _check_profile(profile)
    if dest is not None and not os.fspath(dest):
        raise RequestError("the destination is empty", hint="give a directory or a URL, or none at all")
    (read_host(host) or HostGroup()).devices(read_mesh(mesh) or Mesh())
    from gdist.run.fetch import fetch as run
    from gdist.run.options import FetchOptions

    options = FetchOptions(
        mesh=read_mesh(mesh) or Mesh(),
        rules=read_rules(rules),
        host=read_host(host) or HostGroup(),
        payload=payload,
        memory=parse_bytes(memory, "memory"),
        codec=codec,
        dtype=dtype,
        select=_patterns(select),
        profile=profile,
        ignore=tuple(ignore),
        work=Path(work_dir) if work_dir is not None else None,
        torrent=torrent_options(**swarm),
    )
    return run(source, dest, options, observe=observe, stop=stop)


def inspect(
    source: str | os.PathLike[str],
    *,
    mesh: MeshLike = None,
    rules: RulesLike = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> Inspection:
    """What a source, a store (directory or URL) or a local checkpoint holds; fetches headers at most.

    Raises:
        GdistError: when it cannot be found or read.
    """
    from gdist.run.inspect import InspectOptions
    from gdist.run.inspect import inspect as run

    survey = _survey(profile, ignore, select, swarm)
    options = InspectOptions(read_mesh(mesh), read_rules(rules), survey)
    return run(source, options, observe=observe, stop=stop)


def plan(
    source: str,
    *,
    mesh: MeshLike = None,
    rules: RulesLike = None,
    host: HostLike = None,
    hosts: int = 1,
    payload: str = "discard",
    memory: int | str = "1GiB",
    piece_length: int | str | None = None,
    wan: float | str | None = None,
    lan: float | str | None = None,
    dtype: str | None = None,
    select: str | Iterable[str] = (),
    profile: str | None = None,
    ignore: Iterable[str] = (),
    observe: Observer | None = None,
    stop: threading.Event | None = None,
    **swarm: Unpack[Swarm],
) -> PlanReport:
    """What a fetch would cost each of `hosts` hosts, or the one `host`, and the least time it can take.

    `wan` is the rate into the cluster, `lan` that of each host (`10Gb/s`).

    Raises:
        RequestError: for every tensor without a rule or that the mesh does not divide, all at once.
        GdistError: when metadata or headers are needed and do not come.
    """
    from gdist.run.plan import PlanOptions
    from gdist.run.plan import plan as run

    one = read_host(host)
    if hosts < 1 or (one and hosts not in (1, one.count)):
        raise RequestError(f"{hosts} hosts, and host {host}, do not go together", hint="give one of the two")
    (one or HostGroup(0, hosts)).devices(read_mesh(mesh) or Mesh())
    options = PlanOptions(
        mesh=read_mesh(mesh) or Mesh(),
        rules=read_rules(rules),
        hosts=(one,) if one else tuple(HostGroup(index, hosts) for index in range(hosts)),
        payload=payload,
        memory=parse_bytes(memory, "memory"),
        piece_length=_piece_length(piece_length),
        wan=_positive_rate(wan, "wan"),
        lan=_positive_rate(lan, "lan"),
        dtype=dtype,
        survey=_survey(profile, ignore, select, swarm),
    )
    return run(source, options, observe=observe, stop=stop)


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
        trackers=tuple(trackers),
        web_seeds=tuple(web_seeds),
        private=private,
        progress=progress,
    )
    return torrent, format_magnet(magnet_of(torrent))


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
        RequestError: for a tracker, peer, time or rate that is not one.
    """
    trackers = tuple(trackers)
    for url in trackers:
        if not re.match(r"(udp|https?|wss?)://[^/]", url, re.IGNORECASE):
            raise RequestError(
                f"tracker {url!r} is no address of a tracker",
                hint="for example udp://tracker.example.org:1337",
            )
    from gdist.sources.torrent import TorrentOptions

    return TorrentOptions(
        trackers=trackers,
        peers=tuple(parse_peer(peer) for peer in peers),
        web_seeds=tuple(web_seeds),
        dht=dht,
        lsd=lsd,
        listen=listen if listen is not None else TorrentOptions().listen,
        metadata_timeout_seconds=parse_seconds(metadata_timeout, "metadata-timeout"),
        stall_seconds=parse_seconds(stall_timeout, "stall-timeout"),
        download_rate=parse_rate(max_download, "max-download"),
        upload_rate=parse_rate(max_upload, "max-upload"),
    )


def read_mesh(value: MeshLike) -> Mesh | None:
    """A mesh, from its text too."""
    return parse_mesh(value) if isinstance(value, str) else value


def read_host(value: HostLike) -> HostGroup | None:
    """A host among all, from its text too."""
    return parse_host(value) if isinstance(value, str) else value


def read_rules(value: RulesLike) -> Rules | None:
    """Rules: a profile's by its name, those of a JSON file, or the JSON's content.

    Raises:
        RequestError: when there is no such profile or file, or it does not hold rules.
    """
    if value is None or isinstance(value, Rules):
        return value
    if isinstance(value, Mapping):
        return parse_rules(dict(value))
    if isinstance(value, str) and value in PROFILES:
        return PROFILES[value].rules
    try:
        return parse_rules(json.loads(Path(value).read_bytes()))
    except FileNotFoundError as error:
        known = ", ".join(sorted(PROFILES))
        raise RequestError(
            f"rules {os.fspath(value)!r} are neither a file nor a profile's name",
            hint=f"known profiles: {known}",
        ) from error
    except OSError as error:
        raise translate(error, f"reading the rules {os.fspath(value)!r}") from error
    except ValueError as error:
        raise RequestError(f"the rules {os.fspath(value)!r} are not JSON: {error}") from error


def _patterns(select: str | Iterable[str]) -> tuple[str, ...]:
    return (select,) if isinstance(select, str) else tuple(select)


def _survey(
    profile: str | None, ignore: Iterable[str], select: str | Iterable[str], swarm: Swarm
) -> SurveyOptions:
    from gdist.run.survey import SurveyOptions

    _check_profile(profile)
    # options that are all unset must not bring libtorrent in: a known release needs none of it
    asked = torrent_options(**swarm) if swarm else None
    return SurveyOptions(profile, tuple(ignore), _patterns(select), asked)


def _check_profile(name: str | None) -> None:
    if name is not None and name not in PROFILES:
        known = ", ".join(sorted(PROFILES))
        raise RequestError(f"profile {name!r} is not known", hint=f"known profiles: {known}", profile=name)


def _piece_length(value: int | str | None) -> int | None:
    return None if value is None else parse_bytes(value, "piece-length")


def _positive_rate(value: float | str | None, what: str) -> float | None:
    if value is None:
        return None
    rate = parse_rate(value, what)
    if rate <= 0:
        raise RequestError(f"{what} {value!r} is no rate to plan with", hint="for example 10Gb/s")
    return rate
