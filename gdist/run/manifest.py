"""The documents of a finished store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gdist import __version__
from gdist.core.dtypes import DType
from gdist.core.layout import array_document, group_documents, to_document
from gdist.core.magnet import format_magnet
from gdist.core.orbax import COMMIT_MARKER, orbax_documents
from gdist.core.payload import Payload
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.store_manifest import (
    Step,
    StoreAsset,
    StoreManifest,
    StoreSource,
    StoreTensor,
    tensor_attributes,
)
from gdist.core.view import StoreFile, view_of
from gdist.run.catalogue import Catalogue
from gdist.run.opening import PieceSource
from gdist.sinks import Sink
from gdist.sources.torrent import magnet_of
from gdist.stores import files_of


def store_manifest(
    source: StoreSource,
    plan: HostPlan,
    records: Mapping[ShardTask, tuple[str, ...]] | None,
    assets: Mapping[str, tuple[int, str]],
    *,
    ignored: Iterable[str] = (),
    codec: str = "none",
    select: Iterable[str] = (),
    converted: str | None = None,
    stored: Mapping[str, tuple[DType, ...]] | None = None,
    resharded: tuple[Step, ...] = (),
    files: tuple[StoreFile, ...] = (),
) -> StoreManifest:
    """What was written: `records` are the chunk digests of every shard, `assets` length and digest.

    Without `records` it is what will be written: all tensors and their grids, no shards. `stored` are the
    types of converted tensors in their source, where the plan does not say; `files` those that a view reads.
    """
    return StoreManifest(
        source=source,
        plan=plan.digest,
        mesh=plan.mesh,
        host=plan.host,
        tensors=tuple(
            _store_tensor(tensor, records, stored or {}, plan.payload if files else None)
            for tensor in plan.tensors
        ),
        assets=tuple(StoreAsset(path, *assets[path]) for path in sorted(assets)),
        ignored=tuple(sorted(ignored)),
        codec=codec,
        select=tuple(sorted(set(select))),
        converted=converted,
        tool=f"gdist {__version__}",
        resharded=resharded,
        files=files,
    )


def _store_tensor(
    plan: TensorPlan,
    records: Mapping[ShardTask, tuple[str, ...]] | None,
    known: Mapping[str, tuple[DType, ...]],
    viewed: Payload | None,
) -> StoreTensor:
    spec = plan.tensor.spec
    shards = {} if records is None else {task.index: records[task] for task in plan.shards}
    made = tuple(factor.tensor.spec.dtype for factor in plan.tensor.factors)
    stored = made or known.get(spec.name, ())
    view = view_of(plan.tensor, viewed) if viewed else None
    pair = plan.tensor.quantisation
    return StoreTensor(spec.name, spec.dtype, plan.grid, plan.spec, pair, shards, stored, view, spec.encoding)


def root_documents(plan: HostPlan, manifest: StoreManifest) -> dict[str, bytes]:
    """Zarr groups with consolidated metadata, then what makes the directory an Orbax checkpoint."""
    about = replace(manifest, mesh=plan.mesh)
    return {**group_files(about), **orbax_documents([tensor.name for tensor in manifest.tensors])}


def array_files(manifest: StoreManifest) -> dict[str, dict[str, object]]:
    """The Zarr document of each tensor, by its name."""
    return {
        t.name: array_document(
            t.grid, t.dtype, tensor_attributes(t.spec, t.quantisation, t.encoding), manifest.codec
        )
        for t in manifest.tensors
    }


def group_files(manifest: StoreManifest) -> dict[str, bytes]:
    """`zarr.json` of all groups, by their path."""
    about = {"info_hash": manifest.source.info_hash, "mesh": str(manifest.mesh), "tool": manifest.tool}
    groups = group_documents(array_files(manifest), {"gdist": about})
    return {f"{name}/zarr.json" if name else "zarr.json": to_document(doc) for name, doc in groups.items()}


def finish(sink: Sink, address: str, plan: HostPlan, manifest: StoreManifest) -> None:
    """Writes the root documents of the store at an address and, last, its manifest.

    Orbax's marker says that the whole checkpoint is there: it comes from the last host.
    """
    documents = root_documents(plan, manifest) if not manifest.files else orbax_documents(())
    marker = documents.pop(COMMIT_MARKER)
    if plan.host.count == 1:
        sink.write_document(COMMIT_MARKER, marker)
    sink.finish(manifest, documents)
    if plan.host.count > 1 and len(files_of(address).manifests()) == plan.host.count:
        sink.write_document(COMMIT_MARKER, marker)


def source_of(source: PieceSource, catalogue: Catalogue) -> StoreSource:
    """What the manifest of a store says of the torrent it came from."""
    return store_source(source, catalogue.profile or "")


def store_source(source: PieceSource, profile: str = "") -> StoreSource:
    """The same, where tensors were named by this profile, or by none."""
    return StoreSource(
        info_hash_v1=source.info_hash.v1_hex,
        info_hash_v2=source.info_hash.v2_hex,
        name=source.name,
        piece_length=source.payload.piece_length,
        nbytes=sum(file.length for file in source.payload.files),
        magnet=format_magnet(magnet_of(source.torrent_file)),
        profile=profile,
    )
