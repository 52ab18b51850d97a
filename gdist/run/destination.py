"""Where a store goes, what is there already, and where its unfinished parts wait."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from gdist.core.layout import ShardLayout, shard_key
from gdist.core.rules import Rules
from gdist.core.store_manifest import MANIFEST_NAME, StoreManifest, manifest_name, parse_store_manifest
from gdist.errors import CorruptError, RequestError, ResumeError, translate
from gdist.kvstore import local_path
from gdist.run.options import FetchOptions, default_work
from gdist.run.resolve import Resolved
from gdist.stores import files_of

WORK = ".gdist"  # below a local destination: journal, unfinished shards, pieces on their way; gone at the end


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


def find_destination(text: str, options: FetchOptions) -> Destination:
    """The destination of an address.

    Raises:
        RequestError: when options ask for what it cannot do.
    """
    root = local_path(text)
    name = manifest_name(options.host)
    if root is not None:
        work = root / WORK if options.host.count == 1 else root / WORK / name.removesuffix(".json")
        return Destination(text, root, work, name)
    if options.payload == "keep":
        raise RequestError(
            f"the payload cannot be kept beside a store at {text}",
            hint="fetch to a local directory, or --payload discard",
        )
    key = blake3(f"{text}\n{name}".encode()).hexdigest()[:24]
    return Destination(text, None, (options.work or default_work()) / key, name)


def finished(dest: Destination, resolved: Resolved, options: FetchOptions) -> StoreManifest | None:
    """The manifest of the store that is complete there, or None.

    Raises:
        ResumeError: when it is complete, but of another source, mesh, host or codec.
        CorruptError: when it says it is complete and a shard is gone.
    """
    data = _read_manifest(dest)
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
    _check_rules(dest, manifest, options.rules)
    if options.payload == "keep" and not dest.payload.is_dir():
        raise ResumeError(
            f"the store at {dest.text} is complete, and its payload was not kept",
            hint="choose another destination to fetch it again with its payload",
        )
    if dest.root is not None:
        _check_shards(dest.root, manifest)
    return manifest


def _check_rules(dest: Destination, manifest: StoreManifest, rules: Rules | None) -> None:
    """That the store was cut by the rules asked for; those for scales follow from their weight's."""
    for tensor in manifest.tensors if rules else ():
        pair = tensor.quantisation
        asked = rules.spec_for(pair.pair if pair else tensor.name) if rules else None
        if asked is None or (pair and pair.role == "scales"):
            continue
        if any(asked.axes_of(d) != tensor.spec.axes_of(d) for d in range(len(tensor.shape))):
            raise ResumeError(
                f"{dest.text} holds a store with {tensor.name!r} split by {tensor.spec}, not by {asked}",
                hint="choose another destination for other rules",
            )


def _check_shards(root: Path, manifest: StoreManifest) -> None:
    """That every shard of a complete store is there; of uncompressed ones, that none is cut short."""
    for tensor in manifest.tensors:
        expected = ShardLayout(tensor.grid, tensor.dtype.itemsize).file_nbytes if tensor.shards else 0
        for index in tensor.shards:
            shard = root / tensor.name / shard_key(index)
            try:
                found = shard.stat().st_size
            except OSError:
                found = None
            if found is None or (manifest.codec == "none" and found != expected):
                what = "is missing" if found is None else f"has {found} bytes instead of {expected}"
                raise CorruptError(
                    f"the store at {root} says it is complete, but {shard} {what}",
                    hint="delete the destination and fetch again",
                )


def _read_manifest(dest: Destination) -> bytes | None:
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
    shared = any(name.startswith("gdist.host-") for name in there) and dest.manifest.startswith("gdist.host-")
    if there and not shared:
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
