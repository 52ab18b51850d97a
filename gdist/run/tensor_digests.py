"""Holding a fetch's own digests against those of a manifest, where they are of the same bytes.

A store has a digest of every inner chunk, a manifest one of every array. Of a tensor that is stored as one
chunk, as it lay in its file, both are the same. Of others `gdist manifest check` reads the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from gdist.core.plan import HostPlan, ShardTask
from gdist.core.profile import listed
from gdist.core.source_manifest import SourceManifest
from gdist.core.tensor import Order
from gdist.errors import CorruptError


def array_digests(manifest: SourceManifest) -> dict[str, str]:
    """The digest of each tensor that lies in its file as one run in C order, by its name."""
    return {
        f"{item.name}.{item.array.role}" if item.array.role else item.name: item.digest
        for file in manifest.files
        for item in file.arrays
        if item.digest and not item.array.runs and item.array.order is Order.C
    }


def check_digests(
    manifest: SourceManifest, plan: HostPlan, records: Mapping[ShardTask, tuple[str, ...]]
) -> int:
    """Compares the digests of tensors that are one chunk; how many there were.

    Raises:
        CorruptError: naming those that differ.
    """
    expected, compared, wrong = array_digests(manifest), 0, []
    for tensor in plan.tensors:
        name, whole = tensor.tensor.spec.name, tensor.tensor.spec.shape
        if name not in expected or tensor.tensor.factors or len(tensor.shards) != 1:
            continue
        (task,) = tensor.shards
        digests = records.get(task, ())
        if len(digests) == 1 and task.box.shape == whole:
            compared += 1
            wrong += (
                [f"{name!r} has {digests[0]}, not {expected[name]}"] if digests[0] != expected[name] else []
            )
    if wrong:
        raise CorruptError(
            f"tensors have other digests than the manifest of {manifest.name!r} says: {listed(wrong)}",
            hint="every byte is what the info-hash names: the manifest is wrong, or of another release",
            tensors=tuple(wrong),
        )
    return compared
