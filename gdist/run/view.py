"""Making a view: a finished payload becomes a store that TensorStore, Orbax and zarr-python open, in place.

survey ─▶ where each tensor lies ─▶ digests of its chunks ─▶ index ─▶ documents ─▶ manifest
headers    `core.view`               each byte read once      OCDBT    Orbax's      the view is
or why it cannot          (`trust`: not at all)    fsspec                complete
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from gdist import __version__
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.orbax import COMMIT_MARKER, METADATA
from gdist.core.profile import check_storable
from gdist.core.rules import complete_mesh, resolve_specs
from gdist.core.select import check_patterns
from gdist.core.source_map import DIRECTORY, MAP_NAME, REST_NAME, TORRENT_NAME
from gdist.core.store_manifest import (
    MANIFEST_NAME,
    StoreAsset,
    StoreManifest,
    StoreSource,
    StoreTensor,
    parse_store_manifest,
)
from gdist.core.tensor import StoredTensor
from gdist.core.view import VIEW, StoreFile, View, chunk_indexes, not_viewed, view_grid, views_of
from gdist.durable import write_atomically
from gdist.errors import CorruptError, GdistError, InterruptedRun, RequestError, translate
from gdist.events import Finished, Note, Observer, ShardCommitted, TensorsPlanned
from gdist.kvstore import check_utf8
from gdist.run.catalogue import check_unread
from gdist.run.copies import one_copy
from gdist.run.survey import Survey, SurveyOptions, survey_files
from gdist.run.view_index import write_documents
from gdist.run.view_torrent import ViewedTorrent
from gdist.stores.buffers import workers_of
from gdist.stores.faults import raise_faults
from gdist.stores.local import LocalFiles
from gdist.stores.manifests import Manifests
from gdist.stores.views import ViewReader
from gdist.views.ocdbt import MANIFEST, has_index
from gdist.views.references import JSON_NAME, PARQUET_NAME

PAYLOAD = "payload"  # below a view that is not the payload's own directory
LISTED = 5  # names in a message
# What a view writes, and the .torrent that a fetch leaves beside the payload: no part of the payload.
OWN = (
    MANIFEST_NAME,
    MANIFEST,
    f"d/{'[0-9a-f]' * 32}",
    "d/.*.part",
    METADATA,
    COMMIT_MARKER,
    JSON_NAME,
    f"{PARQUET_NAME}/*",
    *(f"{DIRECTORY}/{name}" for name in (TORRENT_NAME, MAP_NAME, REST_NAME)),
    ".*.part",
)

# Of these, what a payload may have for itself, an Orbax checkpoint for one: never overwritten.
REPLACED = (MANIFEST_NAME, MANIFEST, METADATA, COMMIT_MARKER, JSON_NAME, PARQUET_NAME)


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """How to make a view; `profile`, `ignore`, `select` as in a fetch.

    With `partial` tensors that cannot be viewed are left out. With `trust` nothing is read but headers: there
    are no digests then, and holes are not looked for. With the .torrent file `torrent` every piece is held
    against its hash first, and the view knows what it is of. `workers` threads read (None: one a core).
    """

    profile: str | None = None
    ignore: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    partial: bool = False
    trust: bool = False
    torrent: Path | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class ViewResult:
    """A complete view: where, its manifest, whether it was there already, what was left out and why."""

    path: str
    manifest: StoreManifest
    already: bool
    seconds: float
    left_out: tuple[str, ...] = ()


def make_view(
    payload: str | os.PathLike[str],
    dest: str | os.PathLike[str] | None = None,
    options: ViewOptions | None = None,
    *,
    observe: Observer | None = None,
    stop: threading.Event | None = None,
) -> ViewResult:
    """Makes a view of a payload, a directory or a file: a store whose chunks lie in the payload's own files.

    `dest` is the view's directory (default: the payload's own; `FILE.view` for a file). Safe to repeat: a
    view that fits the files is left as it is.

    Raises:
        RequestError: there is no payload, it is a store of shards, or `dest` holds something else.
        UnsupportedError: tensors that cannot be viewed, unless `partial`; what gdist cannot read.
        CorruptError: files with holes; files that contradict themselves.
    """
    began = time.monotonic()
    asked, tell = options or ViewOptions(), observe or (lambda event: None)
    check_patterns(asked.select)
    workers = workers_of(asked.workers)
    where = Path(payload)
    if not where.exists():
        raise RequestError(f"{str(where)!r} does not exist", hint="give the directory of a finished download")
    if asked.trust and asked.torrent:
        raise RequestError(
            "--torrent holds every byte against the torrent, --trust reads none", hint="leave one of them out"
        )
    _check_payload(where)
    root = _root(where, dest)

    def already(before: StoreManifest, left_out: tuple[str, ...]) -> ViewResult:
        tell(TensorsPlanned(tuple(tensor.name for tensor in before.tensors)))
        seconds = time.monotonic() - began
        tell(Finished(str(root), before.nbytes, seconds, True, ()))
        return ViewResult(str(root), before, True, seconds, left_out)

    before = _there(root)
    if before is not None and before.source.info_hash and not asked.torrent:
        _check_known(before, where, root, asked)
        return already(before, ())
    torrent = ViewedTorrent(asked.torrent, where) if asked.torrent else None
    found = _survey(where, root, asked, torrent)
    manifest, left_out = _manifest(found, _prefix(where, root, torrent), torrent, asked)
    if before is not None and _is_linked(where, root) and _same(before, manifest, asked):
        return already(before, left_out)
    tell(TensorsPlanned(tuple(tensor.name for tensor in manifest.tensors)))
    for why in left_out:
        tell(Note(f"left out: {why}"))
    ended = stop or threading.Event()
    with _linked(where, root):
        if torrent:
            torrent.check(workers, ended)
        if not asked.trust:
            manifest = _digested(manifest, root, workers, tell, ended)
    _unpublish(root)
    if torrent:
        apart = {*found.assets, *found.ignored}
        kept = torrent.keep(lambda path, data: write_atomically(root / path, data), found.tensors, apart)
        manifest = replace(manifest, source_files=kept)
    write_documents(root, manifest)
    seconds = time.monotonic() - began
    if not asked.trust:  # bytes that nobody read have no rate
        tell(Finished(str(root), manifest.nbytes, seconds, False, ()))
    return ViewResult(str(root), manifest, False, seconds, left_out)


def _root(payload: Path, dest: str | os.PathLike[str] | None) -> Path:
    """The view's directory.

    Raises:
        RequestError: it lies inside the payload, or is a file or somebody else's directory.
    """
    for path in (payload, payload if dest is None else Path(dest)):
        check_utf8(path, "which the view's documents cannot hold")
    if dest is None and payload.is_file():
        return payload.with_name(f"{payload.name}.view")
    root = payload if dest is None else Path(dest)
    inside = os.path.relpath(os.path.realpath(root), os.path.realpath(payload))
    if inside != "." and not inside.startswith(".."):
        raise RequestError(
            f"the view {str(root)!r} would lie inside the payload",
            hint="leave DEST out to put the index into the payload's directory itself, or choose one outside",
        )
    if root.exists() and not root.is_dir():
        raise RequestError(
            f"{str(root)!r} is a file", hint="give a directory that is empty or does not exist"
        )
    if root.is_dir() and inside != ".":
        strange = sorted(set(os.listdir(root)) - {PAYLOAD})
        if strange and _there(root) is None:
            raise RequestError(
                f"{str(root)!r} is not empty and holds no view ({', '.join(strange[:LISTED])})",
                hint="give a directory that is empty or does not exist",
            )
    if inside == "." and not _is_view(root) and not has_index(root):  # an index alone: a run that was killed
        theirs = [name for name in REPLACED if (root / name).exists()]
        if theirs:
            raise RequestError(
                f"a view in {str(root)!r} would replace files of the payload's own: {', '.join(theirs)}",
                hint="give DEST, a directory beside the payload",
            )
    return root


def _check_payload(payload: Path) -> None:
    """That it is no store of shards, whose files are nobody's payload.

    Raises:
        RequestError: it is one.
    """
    try:
        _there(payload)
    except RequestError as error:
        raise RequestError(
            f"{str(payload)!r} is a store of shards already, not the files of a download",
            hint="it opens as it is; gdist export gives the files of the release back",
        ) from error
    except GdistError:  # a payload may have any files, also such
        return


def _check_known(before: StoreManifest, payload: Path, root: Path, asked: ViewOptions) -> None:
    """That a view which knows its torrent is the one that is asked for: made anew it would forget that.

    Raises:
        RequestError: it is of another payload, or of other tensors.
        CorruptError: a file of it is missing, or has another length.
    """
    name, hint = before.source.name, "give another DEST, or --torrent FILE to make this one anew"
    if not _is_linked(payload, root):
        raise RequestError(f"{str(root)!r} holds a view of {name!r}, not of {str(payload)!r}", hint=hint)
    chosen = ((asked.select, before.select), (asked.ignore, before.ignored))
    if any(new and set(new) != set(old) for new, old in chosen):
        raise RequestError(f"{str(root)!r} holds a view of other tensors of {name!r}", hint=hint)
    reader = ViewReader(root, Manifests(before, (0,), 1), verify=False)
    raise_faults(reader.unreadable_files())


def _in_place(payload: Path, root: Path) -> bool:
    return root.exists() and os.path.samefile(payload, root)


def _prefix(payload: Path, root: Path, torrent: ViewedTorrent | None) -> str:
    """What comes before the payload's paths in those that count from the view's root."""
    below = f"{torrent.base.name}/" if torrent and torrent.base.parent == payload else ""
    return below if _in_place(payload, root) else f"{PAYLOAD}/{below}"


def _survey(payload: Path, root: Path, asked: ViewOptions, torrent: ViewedTorrent | None) -> Survey:
    survey = SurveyOptions(asked.profile, asked.ignore, asked.select)
    viewed = payload.is_dir() and (_in_place(payload, root) or _is_view(payload))

    def own(name: str) -> bool:
        above = name.removeprefix(f"{PAYLOAD}/") if viewed else name
        at_top = "/" not in above and name.endswith(".torrent")
        return at_top or (viewed and any(fnmatch.fnmatchcase(name, pattern) for pattern in OWN))

    if torrent:
        base = torrent.base if payload.is_dir() else payload
        found = survey_files(base, survey, payload=torrent.payload)
    else:
        found = survey_files(payload, survey, skip=own)
    check_unread(found.unread)
    base = payload if torrent is None or payload.is_file() else torrent.base
    one = (one_copy(t, found.payload, base, compare=not asked.trust) for t in found.tensors)
    return replace(found, tensors=tuple(one))


def _manifest(
    found: Survey, prefix: str, torrent: ViewedTorrent | None, asked: ViewOptions
) -> tuple[StoreManifest, tuple[str, ...]]:
    """What the view will be, without digests, and why tensors are not in it.

    Raises:
        UnsupportedError: naming those that cannot be viewed, unless that was asked for.
    """
    check_storable(found.tensors, found.payload)
    views, left_out = views_of(found.tensors, found.payload)
    if left_out and (not asked.partial or not views):
        raise not_viewed(left_out, "--partial views the others; gdist reshard makes a store of all")
    mesh = complete_mesh(Mesh((("model", 1),)), found.rules)
    viewed = [found.tensors[number] for number in views]
    specs = resolve_specs(mesh, found.rules, viewed)  # they cut nothing here, but say how others may
    tensors = map(_store_tensor, viewed, views.values(), specs)
    files, profile = found.payload.files, found.profile or ""
    nbytes = sum(file.length for file in files)
    source = StoreSource("", "", found.name, 0, nbytes, profile=profile)
    manifest = StoreManifest(
        source=torrent.source(profile) if torrent else source,
        plan="",
        mesh=mesh,
        host=HostGroup(),
        tensors=tuple(tensors),
        assets=tuple(StoreAsset(files[n].path, files[n].length, "") for n in found.assets),
        ignored=tuple(sorted(asked.ignore)),
        codec=VIEW,
        tool=f"gdist {__version__}",
        select=tuple(sorted(set(asked.select))),
        files=tuple(StoreFile(f"{prefix}{f.path}", f.length, f.offset if torrent else None) for f in files),
    )
    return manifest, left_out


def _store_tensor(tensor: StoredTensor, view: View, cut: PartitionSpec) -> StoreTensor:
    spec = tensor.spec
    grid = view_grid(spec.shape, view, spec.dtype.itemsize)
    shards = dict.fromkeys(chunk_indexes(grid), ("",))
    return StoreTensor(
        spec.name,
        spec.dtype,
        grid,
        cut,
        tensor.quantisation,
        shards,
        view=view,
        encoding=spec.encoding,
    )


def _is_view(root: Path) -> bool:
    """True where there is a view in place."""
    try:
        return _there(root) is not None
    except GdistError:  # a payload may have any files, also such
        return False


def _there(root: Path) -> StoreManifest | None:
    """The view that is there already, if one is."""
    try:
        data = (root / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise translate(error, f"reading {root / MANIFEST_NAME}") from error
    manifest = parse_store_manifest(data, str(root / MANIFEST_NAME))
    if manifest.codec != VIEW:
        raise RequestError(
            f"{str(root)!r} holds a store of shards, not a view", hint="choose another directory for the view"
        )
    return manifest


def _same(before: StoreManifest, manifest: StoreManifest, asked: ViewOptions) -> bool:
    """True where a view that is there says all that this one would."""
    if not asked.trust and not before.digested:
        return False
    if manifest.source.info_hash and before.source.info_hash != manifest.source.info_hash:
        return False
    bare = tuple(replace(t, shards=dict.fromkeys(t.shards, ("",))) for t in before.tensors)
    return (bare, before.files, before.ignored) == (manifest.tensors, manifest.files, manifest.ignored)


def _target(payload: Path, root: Path) -> Path:
    """Where below the view its payload lies."""
    return root / PAYLOAD / payload.name if payload.is_file() else root / PAYLOAD


def _is_linked(payload: Path, root: Path) -> bool:
    """True where the view's payload is this one, and no other that was there before."""
    target = _target(payload, root)
    return _in_place(payload, root) or (target.exists() and os.path.samefile(target, payload))


@contextlib.contextmanager
def _linked(payload: Path, root: Path) -> Iterator[None]:
    """Has the payload below the view; where that then fails, nothing is left of a view that was not there."""
    new = [path for path in (root, root / PAYLOAD) if not path.exists()]
    _link(payload, root)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                _target(payload, root).unlink()
            for path in reversed(new):
                with contextlib.suppress(OSError):  # it was the link, or somebody put something there
                    path.rmdir()
        raise


def _link(payload: Path, root: Path) -> None:
    """Puts the payload below the view, by a relative link, where it does not lie there already."""
    if _is_linked(payload, root):
        return
    target = _target(payload, root)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()  # of an earlier view: what it points to is gone, or is another payload
        os.symlink(os.path.relpath(os.path.realpath(payload), os.path.realpath(target.parent)), target)
    except OSError as error:
        raise translate(error, f"linking {payload} into {root}") from error


def _digested(
    manifest: StoreManifest, root: Path, workers: int, tell: Observer, stop: threading.Event
) -> StoreManifest:
    """The manifest with the digests of all chunks: every byte is read once, in loading order.

    Raises:
        CorruptError: naming files with holes.
        InterruptedRun: `stop` was set.
    """
    reader = ViewReader(root, Manifests(manifest, (0,), 1), verify=False)
    tensors = []
    with ThreadPoolExecutor(workers, thread_name_prefix="gdist-digest") as pool:
        for tensor in manifest.tensors:
            if stop.is_set():
                raise InterruptedRun("the run was asked to stop", hint="run the same command again")
            reader.check((tensor, tensor.grid.box_of(index)) for index in tensor.shards)
            chunks = [reader.chunk(tensor, index) for index in tensor.shards]
            digests = list(pool.map(lambda data: blake3(data.data).hexdigest(), chunks))
            tensors.append(
                replace(tensor, shards={i: (d,) for i, d in zip(tensor.shards, digests, strict=True)})
            )
            for index, data in zip(tensor.shards, chunks, strict=True):
                tell(ShardCommitted(tensor.name, index, data.nbytes))
            reader.forget(tensor)
    assets = tuple(replace(asset, digest=_digest_of(root, manifest, asset)) for asset in manifest.assets)
    return replace(manifest, tensors=tuple(tensors), assets=assets)


def _digest_of(root: Path, manifest: StoreManifest, asset: StoreAsset) -> str:
    data = LocalFiles(root).read(manifest.asset_key(asset))
    if data is None:
        raise CorruptError(f"{asset.path} went away while it was read", path=asset.path)
    return blake3(data).hexdigest()


def _unpublish(root: Path) -> None:
    """Until all of it is new, there is no view here."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / MANIFEST_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise translate(error, f"writing to {root}") from error
