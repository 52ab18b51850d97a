"""Several hosts' parts of a store as one, and what tells parts of two jobs apart, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest

from gdist.core.mesh import HostGroup
from gdist.core.store_manifest import Step, StoreManifest, StoreTensor
from gdist.errors import CorruptError, RequestError


def join_manifests(manifests: Iterable[StoreManifest]) -> StoreManifest:
    """The one store that several hosts' parts are together.

    Raises:
        RequestError: when they are of different sources, meshes or grids.
    """
    parts = list(manifests)
    assert parts, "no manifest to join"
    first = parts[0]
    joined: list[dict[tuple[int, ...], tuple[str, ...]]] = [{} for _ in first.tensors]
    for part in parts:
        differ = _differ(part, first)
        if differ:
            raise RequestError(
                f"host {part.host.index}'s part is of another job than host {first.host.index}'s: {differ}",
                hint="join only directories that one job wrote",
            )
        for shards, tensor in zip(joined, part.tensors, strict=True):
            for index, digests in tensor.shards.items():
                if shards.setdefault(index, digests) != digests:
                    raise CorruptError(f"two hosts' digests of shard {index} of {tensor.name!r} differ")
    tensors = tuple(replace(t, shards=shards) for t, shards in zip(first.tensors, joined, strict=True))
    kept = {file.path: file for part in reversed(parts) for file in part.source_files}
    files = tuple(kept[path] for path in sorted(kept))
    return replace(first, host=HostGroup(), tensors=tensors, source_files=files)


def steps_differ(these: Iterable[Step], those: Iterable[Step], between: str) -> str:
    """What was read where the ways of two stores part; "" where they do not.

    The word `between` stands between both.
    """
    for a, b in zip_longest(these, those):
        if a and b and (a.kind, a.identity) == (b.kind, b.identity):
            continue
        names = [_step_name(step) for step in (a, b)]
        if a and b and names[0] == names[1]:
            names = [f"{names[0]} with identity {a.identity[:12]}", f"with identity {b.identity[:12]}"]
        return f"{names[0]}, {between} {names[1]}"
    return ""


def _step_name(step: Step | None) -> str:
    if step is None:
        return "no further source"
    return f"{step.kind} {step.name!r}{f' on mesh {step.mesh}' if step.mesh else ''}"


def _differ(a: StoreManifest, b: StoreManifest) -> str:
    """In what two parts are not of one job; "" for nothing."""
    differ = _unequal(
        ("info-hash", a.source.info_hash or "(none)", b.source.info_hash or "(none)"),
        ("mesh", a.mesh, b.mesh),
        ("codec", a.codec, b.codec),
        ("select", a.select, b.select),
        ("dtype", a.converted, b.converted),
    )
    if steps := steps_differ(a.resharded, b.resharded, "and"):
        differ.append(f"made from {steps}")
    pairs = () if differ else zip_longest(a.tensors, b.tensors)
    return "; ".join(differ) or next((text for pair in pairs if (text := _tensor_differs(*pair))), "")


def _tensor_differs(a: StoreTensor | None, b: StoreTensor | None) -> str:
    if a is None or b is None or a.name != b.name:
        names = [repr(tensor.name) if tensor else "no tensor" for tensor in (a, b)]
        return f"{names[0]}, where that has {names[1]}"
    differ = _unequal(
        ("type", a.dtype.name, b.dtype.name),
        ("encoding", a.encoding or "(none)", b.encoding or "(none)"),
        ("shape", a.shape, b.shape),
        ("shards of", a.grid.shard, b.grid.shard),
        ("slabs of", a.grid.slab, b.grid.slab),
        ("chunks of", a.grid.chunk, b.grid.chunk),
    )
    return f"{a.name!r} has {'; '.join(differ)}" if differ else ""


def _unequal(*rows: tuple[str, object, object]) -> list[str]:
    return [f"{what} {theirs}, and {ours}" for what, theirs, ours in rows if theirs != ours]
