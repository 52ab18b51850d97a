"""Whether processes that load together have parts of one store, or stores of one release.

A torrent names its content. What was made of other sources goes by its name and what its first reshard read,
and by digests: shards that several processes have must be the same in all.
"""

from __future__ import annotations

from hashlib import blake2b

from gdist.core.store_manifest import StoreManifest
from gdist.errors import RequestError
from gdist.loader.team import Team
from gdist.stores.agreement import gather_all

KEY_BYTES = 8  # of a shard, and of its digests: enough that no two of a store meet


def release_of(manifest: StoreManifest) -> str:
    """What a store is of, in words that are the same for all its parts, and for its reshards."""
    source = manifest.source
    return repr((source.info_hash or (source.name, manifest.steps[:1]), source.nbytes))


def check_replicas(team: Team, manifest: StoreManifest) -> None:
    """That processes which have the same shards have the same digests of them.

    All processes come to this, with the same `release_of`. Stores of a torrent are not looked at.

    Raises:
        RequestError: the same on all, naming the processes that have others than those before them.
    """
    if not team.meets or manifest.source.info_hash:
        return
    rows = _rows(manifest)
    if len(set(team.gathered(_hash(rows)))) == 1:  # one store, that all share
        return
    known: dict[bytes, bytes] = {}
    strange = []
    for process, found in zip(team.processes, gather_all(team.gathered, rows), strict=True):
        starts = range(0, len(found), 2 * KEY_BYTES)
        pairs = [(found[i : i + KEY_BYTES], found[i + KEY_BYTES : i + 2 * KEY_BYTES]) for i in starts]
        if any(known.setdefault(shard, digests) != digests for shard, digests in pairs):
            strange.append(process)
    if strange:
        raise RequestError(
            f"{team.words.name(strange)} would {team.words.doing} other values than those before: the same "
            "shards have other digests",
            hint=team.words.hint,
            processes=tuple(strange),
            agreed=True,
        )


def _rows(manifest: StoreManifest) -> bytes:
    """Of each shard what it is and what is in it, both hashed."""
    found = []
    for tensor in manifest.tensors:
        cut = f"{tensor.name} {tensor.dtype.name} {tensor.grid} {manifest.codec}"
        for index, digests in tensor.shards.items():
            if all(digests):  # a view that nobody read has none
                found.append(_hash(f"{cut} {index}".encode()) + _hash("".join(digests).encode()))
    return b"".join(found)


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=KEY_BYTES).digest()
