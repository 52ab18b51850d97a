"""The documents of a finished store."""

from __future__ import annotations

from collections.abc import Mapping

from gdist import __version__
from gdist.core.layout import array_document, group_documents, to_document
from gdist.core.magnet import format_magnet
from gdist.core.orbax import orbax_documents
from gdist.core.plan import HostPlan, ShardTask, TensorPlan
from gdist.core.store_manifest import StoreAsset, StoreManifest, StoreSource, StoreTensor, tensor_attributes
from gdist.run.catalogue import Catalogue
from gdist.run.options import FetchOptions
from gdist.sources.torrent import TorrentSource, magnet_of


def store_manifest(
    source: TorrentSource,
    catalogue: Catalogue,
    plan: HostPlan,
    records: Mapping[ShardTask, tuple[str, ...]] | None,
    assets: Mapping[str, tuple[int, str]],
    options: FetchOptions,
) -> StoreManifest:
    """What was written: `records` are the chunk digests of every shard, `assets` length and digest.

    Without `records` it is what will be written: all tensors and their grids, no shards.
    """
    payload = catalogue.payload
    origin = StoreSource(
        info_hash_v1=source.info_hash.v1_hex,
        info_hash_v2=source.info_hash.v2_hex,
        name=source.name,
        piece_length=payload.piece_length,
        nbytes=sum(file.length for file in payload.files),
        magnet=format_magnet(magnet_of(source.torrent_file)),
        profile=catalogue.profile or "",
    )
    return StoreManifest(
        source=origin,
        plan=plan.digest,
        mesh=plan.mesh,
        host=plan.host,
        tensors=tuple(_store_tensor(tensor, records) for tensor in plan.tensors),
        assets=tuple(StoreAsset(path, *assets[path]) for path in sorted(assets)),
        ignored=tuple(sorted(options.ignore)),
        codec=options.codec,
        select=tuple(sorted(set(options.select))),
        converted=options.dtype,
        tool=f"gdist {__version__}",
    )


def _store_tensor(plan: TensorPlan, records: Mapping[ShardTask, tuple[str, ...]] | None) -> StoreTensor:
    spec = plan.tensor.spec
    shards = {} if records is None else {task.index: records[task] for task in plan.shards}
    stored = tuple(factor.tensor.spec.dtype for factor in plan.tensor.factors)
    return StoreTensor(spec.name, spec.dtype, plan.grid, plan.spec, plan.tensor.quantisation, shards, stored)


def root_documents(plan: HostPlan, manifest: StoreManifest) -> dict[str, bytes]:
    """Zarr groups with consolidated metadata, then what makes the directory an Orbax checkpoint."""
    arrays = {
        p.tensor.spec.name: array_document(
            p.grid, p.tensor.spec.dtype, tensor_attributes(p.spec, p.tensor.quantisation), manifest.codec
        )
        for p in plan.tensors
    }
    about = {"info_hash": manifest.source.info_hash, "mesh": str(plan.mesh), "tool": manifest.tool}
    groups = group_documents(arrays, {"gdist": about})
    documents = {
        f"{name}/zarr.json" if name else "zarr.json": to_document(doc) for name, doc in groups.items()
    }
    return {**documents, **orbax_documents(arrays)}
