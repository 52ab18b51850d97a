"""Tiny stores: arrays laid end to end as a payload, and written by the real planner, placer and sink."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from gdist.core.box import Box
from gdist.core.extent import Extent
from gdist.core.grid import GridMaker
from gdist.core.mesh import HostGroup, Mesh, parse_mesh
from gdist.core.payload import Payload, PayloadFile
from gdist.core.placer import Placer
from gdist.core.plan import HostPlan, plan_host
from gdist.core.rules import Rules, parse_rules
from gdist.core.store_manifest import StoreAsset, StoreManifest, StoreSource, StoreTensor
from gdist.core.tensor import Part, Quantisation, StoredTensor, TensorSpec, dtype_named
from gdist.kvstore import kvstore_spec, local_path
from gdist.run.manifest import root_documents
from gdist.sinks import Sink
from gdist.sinks.local import LocalSink

Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type

PIECE_LENGTH = 4096 + 512


def write_store(
    root: Path | str,
    arrays: Mapping[str, Array],
    *,
    mesh: Mesh | str = "1",
    rules: Rules | Mapping[str, object] | None = None,
    host: HostGroup | None = None,
    quantised: Mapping[str, Quantisation] | None = None,
    assets: Mapping[str, bytes] | None = None,
    chunk_bytes: int | None = None,
    piece_length: int = PIECE_LENGTH,
    codec: str = "none",
) -> StoreManifest:
    """Writes one host's part of a store at a directory or URL, and gives its manifest.

    `chunk_bytes` bounds inner chunks (default: as in every store). URLs and compressed stores are written
    by the TensorStore sink, directories by the local one.
    """
    mesh = parse_mesh(mesh) if isinstance(mesh, str) else mesh
    rules = parse_rules(rules) if isinstance(rules, Mapping) else rules
    tensors, payload, data = _payload(arrays, quantised or {}, piece_length)
    plan = plan_host(payload, tensors, mesh, rules, host, identity="test")
    if chunk_bytes:
        maker = GridMaker(mesh, plan.host.count, chunk_bytes=chunk_bytes)
        cut = [
            replace(p, grid=maker.grid(p.grid.shape, p.tensor.spec.dtype.itemsize, p.spec))
            for p in plan.tensors
        ]
        plan = replace(plan, tensors=tuple(cut))
    with tempfile.TemporaryDirectory(dir=_beside(root)) as work:
        return _write(_sink(root, Path(work), plan, codec), plan, data, assets or {}, codec)


def _beside(root: Path | str) -> Path | None:
    path = local_path(root)
    if path is None:
        return None
    path.mkdir(parents=True, exist_ok=True)
    return path.parent  # parts are renamed into the store: same file system


def _sink(root: Path | str, work: Path, plan: HostPlan, codec: str) -> Sink:
    path = local_path(root)
    if path is not None and codec == "none":
        return LocalSink(path, work, plan)
    from gdist.sinks.tensorstore import TensorStoreSink

    return TensorStoreSink(kvstore_spec(root), work, plan, codec)


def _payload(
    arrays: Mapping[str, Array], quantised: Mapping[str, Quantisation], piece_length: int
) -> tuple[list[StoredTensor], Payload, bytes]:
    tensors, position = [], 0
    for name, array in arrays.items():
        spec = TensorSpec(name, array.shape, dtype_named(array.dtype.name))
        part = Part(Extent(position, spec.nbytes), Box.whole(array.shape))
        tensors.append(StoredTensor(spec, (part,), quantised.get(name)))
        position += spec.nbytes
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return tensors, Payload((PayloadFile("all", 0, position),), piece_length, position), data


def _write(sink: Sink, plan: HostPlan, data: bytes, assets: Mapping[str, bytes], codec: str) -> StoreManifest:
    placer = Placer(plan)
    digests: dict[tuple[int, tuple[int, ...]], tuple[str, ...]] = {}
    for piece in placer.wanted():
        extent = plan.payload.extent_of(piece)
        sink.place(placer.accept(piece), memoryview(data)[extent.start : extent.stop])
        for task in placer.settle(piece):
            digests[task.tensor, task.index] = sink.commit(task).digests
    for tensor in plan.tensors:
        sink.publish(tensor)
    for path, content in assets.items():
        sink.write_document(f"assets/{path}", content)
    rows = [
        StoreTensor(
            p.tensor.spec.name,
            p.tensor.spec.dtype,
            p.grid,
            p.spec,
            p.tensor.quantisation,
            {task.index: digests[number, task.index] for task in p.shards},
        )
        for number, p in zip(itertools.count(), plan.tensors)
    ]
    kept = tuple(StoreAsset(path, len(c), blake3(c).hexdigest()) for path, c in assets.items())
    source = StoreSource("ab" * 20, "", "test", plan.payload.piece_length, plan.payload.length)
    manifest = StoreManifest(
        source, plan.digest, plan.mesh, plan.host, tuple(rows), kept, codec=codec, tool="gdist test"
    )
    sink.finish(manifest, root_documents(plan, manifest))
    sink.close()
    return manifest
