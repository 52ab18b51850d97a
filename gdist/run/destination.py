"""Where a store goes, what is there already, and where its unfinished parts wait."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import fsspec
from blake3 import blake3

from gdist.core.layout import shard_key
from gdist.core.store_manifest import StoreManifest, manifest_name, parse_store_manifest
from gdist.errors import CorruptError, RequestError, ResumeError, TransferError, translate
from gdist.kvstore import local_path
from gdist.run.options import FetchOptions, default_work
from gdist.run.resolve import Resolved

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
            f"the payload cannot be kept beside a store at {text}", hint="fetch to a local directory, or --payload discard"
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
            f"{dest.text} holds a store of {found.info_hash}, not of {asked.hex}", hint="choose another destination"
        )
    if (manifest.mesh.splitting, manifest.codec) != (options.mesh.splitting, options.codec):
        raise ResumeError(
            f"{dest.text} holds a store on mesh {manifest.mesh} with codec {manifest.codec}, "
            f"not on {options.mesh} with {options.codec}",
            hint="choose another destination for another mesh or codec",
        )
    if dest.root is not None:
        for tensor in manifest.tensors:
            for index in tensor.shards:
                shard = dest.root / tensor.name / shard_key(index)
                if not shard.is_file():
                    raise CorruptError(
                        f"the store at {dest.text} says it is complete, but {shard} is missing",
                        hint="delete the destination and fetch again",
                    )
    return manifest


def _read_manifest(dest: Destination) -> bytes | None:
    if dest.root is not None:
        try:
            return (dest.root / dest.manifest).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translate(error, f"reading {dest.root / dest.manifest}") from error
    if dest.text.startswith("memory:"):  # fsspec's memory is not TensorStore's
        return None
    try:
        with fsspec.open(f"{dest.text.rstrip('/')}/{dest.manifest}", "rb") as file:
            data: bytes = file.read()
            return data
    except FileNotFoundError:
        return None
    except Exception as error:  # fsspec's back ends raise whatever their libraries do
        raise TransferError(f"cannot read {dest.text}: {error}", hint="check the address and credentials") from error


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
