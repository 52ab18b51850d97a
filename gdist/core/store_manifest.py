"""What was written: the manifest of a store, or of one host's part of it, and its JSON.

`gdist.json` (one host) or `gdist.host-00003-of-00008.json` appears last and atomically: a directory without
one is not a store. It names the info-hash, the plan, every tensor with its grid, and the BLAKE3 digest of
every inner chunk this host wrote; `digest` seals the rest. See `docs/reference/store-format.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gdist.core.dtypes import DType
from gdist.core.gguf_blocks import stored_type
from gdist.core.grid import ShardGrid
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.rules import parse_spec
from gdist.core.tensor import Order, Quantisation, dtype_named
from gdist.core.view import StoreFile, View
from gdist.errors import CorruptError, RequestError

FORMAT = 1
MANIFEST_NAME = "gdist.json"
# A fetch finds the store as it is: only without it does it begin again. A view's files are its payload's.
_AGAIN = "delete the store, and fetch it again; of a view in its payload's directory delete this file alone"
# Beside the journal of an unfinished fetch: the manifest, as yet without shards.
PLANNED_NAME = "planned.json"
# Beside even shares: the manifest, as yet without shards, of the store they are on their way to.
TARGET_NAME = ".target.json"


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Where a store's bytes came from: hex info-hashes ("" when the torrent has none), name, profile."""

    info_hash_v1: str
    info_hash_v2: str
    name: str
    piece_length: int
    nbytes: int
    magnet: str = ""
    profile: str = ""

    @property
    def info_hash(self) -> str:
        """The one hash that names the source: v1 where there is one."""
        return self.info_hash_v1 or self.info_hash_v2


@dataclass(frozen=True, slots=True)
class Step:
    """What a reshard read: its `kind` ("store", "files" or "orbax"), its name, and its mesh, "" without one.

    `identity` tells it from others, and is the same on all hosts that read the same: of a store without
    info-hash, those that read all of it (`gdist.core.reshard:identity_of`).
    """

    kind: str
    name: str
    mesh: str
    identity: str


@dataclass(frozen=True, slots=True)
class StoreTensor:
    """A tensor of a store; `shards` are those that are here: by index, the digests of their inner chunks.

    `stored` are the types that its source has where it was converted: of weight and scales, or of itself.
    `view` says where it lies in a payload's files, in a store that is a view of them; a digest is then ""
    where the payload was not read. `encoding` says what the elements stand for where that is not their type.
    """

    name: str
    dtype: DType
    grid: ShardGrid
    spec: PartitionSpec
    quantisation: Quantisation | None
    shards: Mapping[tuple[int, ...], tuple[str, ...]] = field(default_factory=dict)
    stored: tuple[DType, ...] = ()
    view: View | None = None
    encoding: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.grid.shape


@dataclass(frozen=True, slots=True)
class StoreAsset:
    """A small file of the release that holds no tensor, kept as it is where `asset_key` says."""

    path: str
    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class StoreManifest:
    """Enough to load a store and to verify it; `tensors` are in loading order.

    `resharded` is empty for a store that was fetched; else what each reshard on its way read, first to last.
    `files` are those of the payload that a view (codec `view`) reads; without them shards hold the bytes.
    """

    source: StoreSource
    plan: str
    mesh: Mesh
    host: HostGroup
    tensors: tuple[StoreTensor, ...]
    assets: tuple[StoreAsset, ...] = ()
    ignored: tuple[str, ...] = ()  # glob patterns of files that were left out on request
    codec: str = "none"
    tool: str = ""
    select: tuple[str, ...] = ()  # regular expressions: only tensors in whose name one is found; none: all
    converted: str | None = None  # the type of what was quantised or floating; None: all as in the source
    resharded: tuple[Step, ...] = ()
    files: tuple[StoreFile, ...] = ()
    source_files: tuple[StoreAsset, ...] = ()  # below `source/`: what leads back to the torrent

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, whole."""
        total = 0
        for tensor in self.tensors:
            size = tensor.dtype.itemsize
            for length in tensor.shape:
                size *= length
            total += size
        return total

    @property
    def digested(self) -> bool:
        """True where every chunk that is here has a digest: it has none in a view that nobody read."""
        return all("" not in digests for tensor in self.tensors for digests in tensor.shards.values())

    def asset_key(self, asset: StoreAsset) -> str:
        """Where an asset is below the store's root: in a view it is one of the payload's own files."""
        if not self.files:
            return f"assets/{asset.path}"
        paths = [file.path for file in self.files]
        exact = [path for path in (asset.path, f"payload/{asset.path}") if path in paths]
        return next(iter((*exact, *(path for path in paths if path.endswith(f"/{asset.path}")))), asset.path)

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """Kind and identity of each reshard's source: equal on all hosts of one job."""
        return tuple((step.kind, step.identity) for step in self.resharded)


def manifest_name(host: HostGroup) -> str:
    """The file name of one host's manifest."""
    if host.count == 1:
        return MANIFEST_NAME
    return f"gdist.host-{host.index:05}-of-{host.count:05}.json"


def tensor_attributes(
    spec: PartitionSpec, quantisation: Quantisation | None, encoding: str = ""
) -> dict[str, object]:
    """gdist's attributes in the `zarr.json` of a tensor."""
    attributes: dict[str, object] = {"partition_spec": spec.to_json()}
    if quantisation:
        q = quantisation
        attributes |= {"pair": q.pair, "role": q.role, "groups": q.groups, "groups_dimension": q.dimension}
    attributes |= {"encoding": encoding} if encoding else {}
    return {"gdist": attributes}


def store_manifest_to_json(manifest: StoreManifest) -> bytes:
    """The JSON document, sealed with its own digest; one line a tensor, for reading and comparing."""
    body = _body(manifest)
    tensors = body.pop("tensors")
    assert isinstance(tensors, list)
    seal = _seal({**body, "tensors": tensors})
    lines = json.dumps({**body, "digest": seal}, indent=1, ensure_ascii=False)[:-2]
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in tensors)
    return f'{lines},\n "tensors": [\n  {rows}\n ]\n}}\n'.encode()


def _seal(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _body(manifest: StoreManifest) -> dict[str, object]:
    source = manifest.source
    return {
        "gdist_store": FORMAT,
        "tool": manifest.tool,
        "source": {
            "info_hash_v1": source.info_hash_v1,
            "info_hash_v2": source.info_hash_v2,
            "name": source.name,
            "piece_length": source.piece_length,
            "nbytes": source.nbytes,
            "magnet": source.magnet,
            "profile": source.profile,
        },
        "plan": manifest.plan,
        "mesh": [list(axis) for axis in manifest.mesh.axes],
        **({"device_order": list(manifest.mesh.order)} if manifest.mesh.order else {}),
        "host": [manifest.host.index, manifest.host.count],
        "codec": manifest.codec,
        "digests": "blake3",
        **({"resharded": [asdict(step) for step in manifest.resharded]} if manifest.resharded else {}),
        "ignored": list(manifest.ignored),
        **({"select": list(manifest.select)} if manifest.select else {}),
        **({"converted": {"dtype": manifest.converted}} if manifest.converted else {}),
        **({"files": [[f.path, f.nbytes, f.offset] for f in manifest.files]} if manifest.files else {}),
        "assets": [{"path": a.path, "nbytes": a.nbytes, "digest": a.digest} for a in manifest.assets],
        **({"source_files": [asdict(a) for a in manifest.source_files]} if manifest.source_files else {}),
        "tensors": [_tensor_row(tensor) for tensor in manifest.tensors],
    }


def _tensor_row(tensor: StoreTensor) -> dict[str, object]:
    row: dict[str, object] = {
        "name": tensor.name,
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "spec": tensor.spec.to_json(),
        "shard": list(tensor.grid.shard),
        "slab": list(tensor.grid.slab),
        "chunk": list(tensor.grid.chunk),
    }
    if tensor.quantisation:
        q = tensor.quantisation
        row["quantisation"] = [q.pair, q.role, q.groups, q.dimension]
    if tensor.stored:
        row["stored"] = [dtype.name for dtype in tensor.stored]
    if tensor.view:
        row["view"] = [tensor.view.order.value, list(tensor.view.part), [list(at) for at in tensor.view.at]]
    if tensor.encoding:
        row["encoding"] = tensor.encoding
    row["shards"] = [[list(index), list(digests)] for index, digests in tensor.shards.items()]
    return row


def parse_store_manifest(data: bytes, where: str) -> StoreManifest:
    """The manifest in a JSON document; `where` names it in messages.

    Raises:
        CorruptError: when it is damaged: not JSON, not sealed by its digest, or not of this form.
        RequestError: when a newer gdist wrote it.
    """
    try:
        body: Any = json.loads(data)  # Any: checked field by field below, all faults become one error
        version = body["gdist_store"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{where} is not a store manifest", hint=_AGAIN) from error
    if version != FORMAT:
        raise RequestError(
            f"{where} is of store format {version}, this gdist reads {FORMAT}", hint="update gdist"
        )
    try:
        seal = body.pop("digest")
        if _seal(body) != seal:
            raise CorruptError(f"{where} was changed: its digest does not match", hint=_AGAIN)
        return _parse_body(body)
    except (ValueError, KeyError, TypeError, ArithmeticError, AssertionError) as error:
        raise CorruptError(f"{where} is damaged: {error!r}", hint=_AGAIN) from error


def _parse_body(body: Any) -> StoreManifest:
    source = StoreSource(**body["source"])
    return StoreManifest(
        source=source,
        plan=str(body["plan"]),
        mesh=Mesh(
            tuple((str(name), int(size)) for name, size in body["mesh"]),
            tuple(map(int, body.get("device_order", ()))),
        ),
        host=HostGroup(*body["host"]),
        tensors=tuple(_parse_tensor(row) for row in body["tensors"]),
        assets=tuple(StoreAsset(**row) for row in body["assets"]),
        ignored=tuple(map(str, body["ignored"])),
        codec=str(body["codec"]),
        tool=str(body["tool"]),
        resharded=tuple(Step(**step) for step in body.get("resharded", ())),
        select=tuple(map(str, body.get("select", ()))),
        converted=dtype_named(body["converted"]["dtype"]).name if "converted" in body else None,
        files=tuple(_parse_file(*row) for row in body.get("files", ())),
        source_files=tuple(StoreAsset(**row) for row in body.get("source_files", ())),
    )


def _parse_tensor(row: Any) -> StoreTensor:
    grid = ShardGrid(*(tuple(map(int, row[key])) for key in ("shape", "shard", "slab", "chunk")))
    shards = {tuple(map(int, index)): tuple(map(str, digests)) for index, digests in row["shards"]}
    quantisation = Quantisation(*row["quantisation"]) if "quantisation" in row else None
    stored = tuple(map(stored_type, row.get("stored", ())))
    spec = parse_spec(row["spec"])
    view = _parse_view(*row["view"]) if "view" in row else None
    dtype, encoding = dtype_named(row["dtype"]), str(row.get("encoding", ""))
    return StoreTensor(row["name"], dtype, grid, spec, quantisation, shards, stored, view, encoding)


def _parse_file(path: Any, nbytes: Any, offset: Any) -> StoreFile:
    return StoreFile(str(path), int(nbytes), None if offset is None else int(offset))


def _parse_view(order: Any, part: Any, at: Any) -> View:
    places = tuple((int(file), int(offset)) for file, offset in at)
    return View(Order(order), tuple(map(int, part)), places)
