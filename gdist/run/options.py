"""What can be asked of a fetch, as one value; the command line and the library build the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from gdist.core.mesh import HostGroup, Mesh
from gdist.core.rules import Rules
from gdist.errors import RequestError
from gdist.sources.torrent import TorrentOptions

PAYLOAD_CHOICES = ("discard", "keep")


@dataclass(frozen=True, slots=True)
class Target:
    """The store that even shares are on their way to: how it is cut, and the most bytes of a shard."""

    mesh: Mesh
    rules: Rules | None
    codec: str
    shard_bytes: int | None


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How to fetch.

    `mesh` and `rules` cut the store (rules None: the profile's, else automatic); `host` is this host among
    those that share the work. `payload` "discard" gives each piece's disk back once it is placed, "keep"
    leaves the torrent's files in `DEST/payload`. `memory` bounds, in bytes, what is held while converting.
    `ignore` are glob patterns of files to leave out; `profile` names tensors. `manifest` says what the
    torrent holds, and must be signed where there is a `verify_key`; see `gdist.run.resolve`. `work` is where
    unfinished shards of a bucket wait (default: the cache directory). `codec` is "none", "zstd", or "view":
    no shards, but an index over the payload, which is kept. `dtype` converts what is quantised or floating
    ("bfloat16", "float16", "float32"; None: as it is stored); `select` are regular expressions: only tensors
    in whose name one is found. With a `target` each host takes in an even share of every tensor on its way
    to that store, whatever it will keep; `mesh` is that of even shares, then.
    """

    mesh: Mesh = field(default_factory=Mesh)
    rules: Rules | None = None
    host: HostGroup = field(default_factory=HostGroup)
    payload: str = "discard"
    memory: int = 2**30
    codec: str = "none"
    dtype: str | None = None
    select: tuple[str, ...] = ()
    profile: str | None = None
    ignore: tuple[str, ...] = ()
    manifest: str | None = None
    verify_key: str | None = None
    work: Path | None = None
    torrent: TorrentOptions = field(default_factory=TorrentOptions)
    target: Target | None = None


def check_view(options: FetchOptions) -> None:
    """That what is asked for can be a view of the payload.

    Raises:
        RequestError: for what would change or cut it.
    """
    faults = {
        "--mesh": options.mesh.devices > 1,
        "--host": options.host.count > 1,
        "--dtype": options.dtype is not None,
        "--payload discard": options.payload != "keep",
    }
    named = [name for name, there in faults.items() if there]
    if named:
        raise RequestError(
            f"a view is the payload as it is: {', '.join(named)} does not go with it",
            hint="leave it out, or fetch shards: --layout zarr",
        )


def default_work() -> Path:
    """Where unfinished shards of a remote store wait: the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gdist"
