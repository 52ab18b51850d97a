"""Where a store goes, what is there already, and where its unfinished parts wait."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from gdist.core.convert import converted, parse_dtype
from gdist.core.journal import ShardRecord, asset_line, header_line, rest_line, shard_line
from gdist.core.layout import ShardLayout, shard_key
from gdist.core.magnet import InfoHash
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.plan import HostPlan
from gdist.core.profile import listed
from gdist.core.rules import Rules
from gdist.core.select import chosen_names
from gdist.core.source_manifest import SourceManifest
from gdist.core.store_manifest import MANIFEST_NAME, StoreManifest, manifest_name, parse_store_manifest
from gdist.durable import size_of
from gdist.errors import CorruptError, RequestError, ResumeError, translate
from gdist.kvstore import local_path
from gdist.profile_files import check_profile, profile_named
from gdist.run.keeping import kept_rest
from gdist.run.options import FetchOptions, default_work
from gdist.run.resolve import Resolved
from gdist.sinks.local import write_atomically
from gdist.stores import files_of
from gdist.stores.local import is_whole

WORK = ".gdist"  # below a local destination: journal, unfinished shards, pieces on their way; gone at the end
READ_ONLY = ("http://", "https://")


def default_dest(resolved: Resolved) -> str:
    """The directory a source goes to when none is given: its name, made safe, here."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.+") else "-" for c in resolved.label)
    return safe.strip("-.")[:100] or resolved.info_hash.hex


@dataclass(frozen=True, slots=True)
class Destination:
    """A store's address (`text`), its directory when it is local, and the local `work` directory."""

    text: str
    root: Path | None
    work: Path
    manifest: str

    @property
    def payload(self) -> Path:
        """Where the torrent's files stay with `--payload keep`."""
        return (self.root or self.work) / "payload"


def find_destination(
    text: str, host: HostGroup, work: Path | None = None, *, keep: bool = False
) -> Destination:
    """The destination of an address, of one host; `work` is for a bucket's unfinished shards.

    Raises:
        RequestError: when nothing can be written there, or the payload is to be kept there and cannot be.
    """
    root = local_path(text)
    if root is None and text.lower().startswith(READ_ONLY):
        raise RequestError(
            f"a web server takes no store: {text} can only be read",
            hint="give a directory, or an address that starts with s3:// or gs://",
        )
    name = manifest_name(host)
    if root is not None:
        below = root / WORK if host.count == 1 else root / WORK / name.removesuffix(".json")
        return Destination(text, root, below, name)
    if keep:
        raise RequestError(
            f"the payload cannot be kept beside a store at {text}",
            hint="fetch to a local directory, or --payload discard",
        )
    return Destination(text, None, remote_work(text, name, work), name)


def remote_work(text: str, manifest: str, work: Path | None) -> Path:
    """Where the unfinished shards of a bucket wait; `manifest` is the file name of the host's."""
    key = blake3(f"{text}\n{manifest}".encode()).hexdigest()[:24]
    return (work or default_work()) / key


def finished(dest: Destination, resolved: Resolved, options: FetchOptions) -> StoreManifest | None:
    """The manifest of the store that is complete there, or None.

    Raises:
        ResumeError: when it is complete, but of another source, mesh, host or codec, or named otherwise.
        CorruptError: when its manifest is damaged.
    """
    data = read_manifest(dest)
    if data is None:
        return None
    manifest = parse_store_manifest(data, f"{dest.text}/{dest.manifest}")
    asked, found = resolved.info_hash, manifest.source
    if not {asked.v1_hex, asked.v2_hex} - {""} & {found.info_hash_v1, found.info_hash_v2}:
        raise ResumeError(
            f"{dest.text} holds a store of {found.info_hash}, not of {asked.hex}",
            hint="choose another destination",
        )
    if (manifest.mesh.splitting, manifest.codec) != (options.mesh.splitting, options.codec):
        raise ResumeError(
            f"{dest.text} holds a store on mesh {manifest.mesh} with codec {manifest.codec}, "
            f"not on {options.mesh} with {options.codec}",
            hint="choose another destination for another mesh or codec",
        )
    known = resolved.manifest if resolved.told else None
    if known and known.whole:  # it says itself how tensors are named
        _check_tensors(dest, manifest, known, options)
    else:
        _check_profile(dest, manifest, options.profile or (known.profile if known else None))
    own = known.rules if known and options.manifest else None  # a release's are but a default
    _check_rules(dest, manifest, options.rules or own)
    if sorted(options.ignore) != sorted(manifest.ignored):
        raise ResumeError(
            f"{dest.text} holds a store without the files {', '.join(manifest.ignored) or '(none)'}, "
            f"asked to leave out {', '.join(options.ignore) or '(none)'}",
            hint="give the same --ignore, or choose another destination",
        )
    if manner_of(manifest) != manner_of(options):
        raise ResumeError(
            f"{dest.text} holds a store of {manner_of(manifest)}, asked for {manner_of(options)}",
            hint="give the same --select and --dtype, or choose another destination",
        )
    if options.payload == "keep" and not dest.payload.is_dir():
        raise ResumeError(
            f"the store at {dest.text} is complete, and its payload was not kept",
            hint="choose another destination to fetch it again with its payload",
        )
    return manifest


def _check_profile(dest: Destination, manifest: StoreManifest, asked: str | None) -> None:
    """That the profile asked for named the store; without one, whatever did is right."""
    if asked is None:
        return
    check_profile(asked)
    join = profile_named(asked)
    name, found = join.name if join else asked, manifest.source.profile
    if name != found:
        raise ResumeError(
            f"{dest.text} holds a store named by {f'profile {found!r}' if found else 'no profile'}, "
            f"not by profile {name!r}",
            hint="choose another destination for another profile",
        )


def _check_tensors(
    dest: Destination, manifest: StoreManifest, known: SourceManifest, options: FetchOptions
) -> None:
    """That the store has the tensors which a manifest that says all of them would give."""
    tensors = known.to_tensors(known.payload()).tensors
    names = chosen_names((tensor.rule_name for tensor in tensors), options.select)
    chosen = [tensor for tensor in tensors if tensor.rule_name in names]
    if options.dtype is not None:
        chosen = list(converted(chosen, parse_dtype(options.dtype)))
    asked = {tensor.spec.name: (tensor.spec.shape, tensor.spec.dtype) for tensor in chosen}
    found = {tensor.name: (tensor.shape, tensor.dtype) for tensor in manifest.tensors}
    other = sorted(name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name))
    if other:
        raise ResumeError(
            f"{dest.text} holds a store with other tensors than the manifest of {known.name!r} says: "
            f"{listed(map(repr, other))}",
            hint="choose another destination for another manifest",
        )


def _check_rules(dest: Destination, manifest: StoreManifest, rules: Rules | None) -> None:
    """That the store was cut by the rules asked for; those for scales follow from their weight's."""
    if rules is None:
        return
    names = {t.name: t.quantisation.pair if t.quantisation else t.name for t in manifest.tensors}
    specs = {name: rules.spec_for(name) for name in dict.fromkeys(names.values())}
    unmatched = [repr(name) for name, spec in specs.items() if spec is None]
    if unmatched:
        raise ResumeError(
            f"{dest.text} holds a store of {len(manifest.tensors)} tensors, and none of the rules asked for "
            f"matches {listed(unmatched)}",
            hint="choose another destination, with rules for all tensors",
        )
    for tensor in manifest.tensors:
        asked = specs[names[tensor.name]]
        if asked is None or (tensor.quantisation and tensor.quantisation.role == "scales"):
            continue
        if any(asked.axes_of(d) != tensor.spec.axes_of(d) for d in range(len(tensor.shape))):
            raise ResumeError(
                f"{dest.text} holds a store with {tensor.name!r} split by {tensor.spec}, not by {asked}",
                hint="choose another destination for other rules",
            )


def lost_shards(dest: Destination, manifest: StoreManifest) -> list[str]:
    """Shards of a complete local store that are missing or cut short.

    Raises:
        CorruptError: for a store whose payload was kept: which of its pieces are good is not known any more.
    """
    lost = []
    for file in manifest.files if dest.root else ():
        if size_of(Path(dest.root or "", file.path)) != file.nbytes:
            lost.append(file.path)
    for tensor in manifest.tensors if dest.root and not manifest.files else ():
        layout = ShardLayout(tensor.grid, tensor.dtype.itemsize)
        for index in tensor.shards:
            key = f"{tensor.name}/{shard_key(index)}"
            if not is_whole(Path(dest.root or "", key), layout, manifest.codec):
                lost.append(key)
    if lost and dest.payload.is_dir():
        mending = "" if manifest.converted else "gdist verify --repair fetches what is damaged, or "
        raise CorruptError(
            f"the store at {dest.text} says it is complete, but {lost[0]} is missing or cut short",
            hint=f"{mending}delete the destination and fetch again",
        )
    return lost


def reopen(dest: Destination, manifest: StoreManifest, lost: Collection[str], job: str) -> None:
    """Makes a complete store unfinished again, with all done but what is `lost`: that is made again."""
    lines, lost = [header_line(job)], frozenset(lost)
    for tensor in manifest.tensors:
        lines += [
            shard_line(ShardRecord(tensor.name, index, digests))
            for index, digests in tensor.shards.items()
            if f"{tensor.name}/{shard_key(index)}" not in lost
        ]
    lines += [asset_line(asset.path, asset.nbytes, asset.digest) for asset in manifest.assets]
    lines += [rest_line(path, data) for path, data in kept_rest(files_of(dest.text), manifest).items()]
    write_atomically(dest.work / "journal.jsonl", "".join(f"{line}\n" for line in lines).encode())
    assert dest.root is not None, "only local stores are looked over"
    (dest.root / dest.manifest).unlink()


def job_of(options: FetchOptions, mesh: Mesh, plan: str) -> str:
    """What a journal belongs to: how shards and payload are written, and the plan with this digest."""
    job = f"{options.payload} {options.codec} {mesh} {plan[:32]}"
    return f"{job} {manner_of(options)}" if options.select or options.dtype else job


def manner_of(job: FetchOptions | StoreManifest) -> str:
    """Which tensors a store has or is to have, and of which types, in words that tell two jobs apart."""
    dtype = job.converted if isinstance(job, StoreManifest) else job.dtype
    names = f"the tensors {' or '.join(map(repr, sorted(set(job.select))))}" if job.select else "all tensors"
    return f"{names} {f'in {dtype}' if dtype else 'as they are stored'}"


def job_of_manifest(manifest: StoreManifest) -> str:
    """The same, of a store that is written by this manifest and whose payload is not kept."""
    job = f"discard {manifest.codec} {manifest.mesh} {manifest.plan[:32]}"
    return f"{job} {manner_of(manifest)}" if manifest.select or manifest.converted else job


def check_neighbours(dest: Destination, resolved: Resolved, options: FetchOptions) -> list[StoreManifest]:
    """The manifests of other hosts that wrote here, all of this job as far as is known before the plan.

    Raises:
        ResumeError: when one is of another source, mesh, codec or number of hosts.
    """
    return _neighbours(dest, options.host, resolved.info_hash, options, manner_of(options))


def neighbours_of(dest: Destination, planned: StoreManifest) -> list[StoreManifest]:
    """The same, for a store that is written by this manifest.

    Raises:
        ResumeError: as `check_neighbours`.
    """
    hashes = (planned.source.info_hash_v1, planned.source.info_hash_v2)
    v1, v2 = (bytes.fromhex(text) or None for text in hashes)
    return _neighbours(dest, planned.host, InfoHash(v1, v2), planned, manner_of(planned))


def _neighbours(
    dest: Destination, host: HostGroup, asked: InfoHash, ours: FetchOptions | StoreManifest, manner: str
) -> list[StoreManifest]:
    check_unfinished(dest, host)
    neighbours = []
    files = files_of(dest.text)
    for name in files.manifests():
        data = files.read(name)
        if name == dest.manifest or data is None:
            continue
        other = parse_store_manifest(data, f"{dest.text}/{name}")
        source = other.source
        same = {asked.v1_hex, asked.v2_hex} - {""} & {source.info_hash_v1, source.info_hash_v2}
        cut = (other.host.count, other.mesh.splitting, other.codec, manner_of(other))
        if not same or cut != (host.count, ours.mesh.splitting, ours.codec, manner):
            raise ResumeError(
                f"{dest.text} holds part {other.host.index}/{other.host.count} of {source.info_hash} on mesh "
                f"{other.mesh} with codec {other.codec}, {manner_of(other)}: another job than host "
                f"{host.index}/{host.count} of {asked.hex} on {ours.mesh} with {ours.codec}, {manner}",
                hint="hosts that share a destination must agree; choose another destination for another job",
            )
        neighbours.append(other)
    return neighbours


def check_unfinished(dest: Destination, host: HostGroup) -> None:
    """That no work for another number of hosts is under way here.

    Raises:
        ResumeError: when it is.
    """
    if dest.root is None or not (dest.root / WORK).is_dir():
        return
    ours = manifest_name(host).removesuffix(".json")
    for name in os.listdir(dest.root / WORK):
        alone = name == "journal.jsonl" and host.count > 1
        others = name.startswith("gdist.host-") and name.partition("-of-")[2] != ours.partition("-of-")[2]
        if alone or others:
            began = files_of(dest.text).unfinished()
            raise ResumeError(
                f"{dest.text} holds an unfinished {began} for another number of hosts ({name})",
                hint="finish that one, or choose another destination",
            )


def check_cut(neighbours: Iterable[StoreManifest], plan: HostPlan) -> None:
    """That hosts that wrote to this destination cut every tensor as this plan does.

    Raises:
        ResumeError: naming the first tensor that differs.
    """
    ours = {tensor.tensor.spec.name: tensor.grid for tensor in plan.tensors}
    for other in neighbours:
        theirs = {tensor.name: tensor.grid for tensor in other.tensors}
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ResumeError(
                    f"host {other.host.index} cut {name!r} another way than this plan does",
                    hint="hosts that share a destination must use the same rules",
                )


def read_manifest(dest: Destination) -> bytes | None:
    """The manifest of this host, if it is there."""
    if dest.root is not None:
        try:
            return (dest.root / dest.manifest).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translate(error, f"reading {dest.root / dest.manifest}") from error
    return files_of(dest.text).read(dest.manifest)


def check_empty(dest: Destination) -> None:
    """That a local destination is ours to write to.

    Raises:
        RequestError: when it is a file, or a directory with somebody else's files.
    """
    if dest.root is None:
        return
    if dest.root.exists() and not dest.root.is_dir():
        raise RequestError(f"{dest.text} is a file", hint="give a directory that is empty or does not exist")
    if not dest.root.is_dir() or (dest.root / WORK).is_dir():
        return
    there = sorted(os.listdir(dest.root))
    if MANIFEST_NAME in there:
        raise ResumeError(
            f"{dest.text} holds a whole store already, written by one host", hint="choose another destination"
        )
    if there and not any(name.startswith("gdist.host-") for name in there):
        raise RequestError(
            f"{dest.text} is not empty and holds no gdist store ({', '.join(there[:5])})",
            hint="give a directory that is empty or does not exist",
        )


def clean(dest: Destination) -> None:
    """Removes what only the fetch needed."""
    shutil.rmtree(dest.work, ignore_errors=True)
    if dest.root is not None and dest.work.parent.name == WORK:
        with contextlib.suppress(OSError):  # other hosts still work there
            dest.work.parent.rmdir()
