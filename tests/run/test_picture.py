"""Pictures of tensors of stores, releases and local files: which shards and pieces feed which devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdist import api
from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.grid import GridMaker
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.picture import TensorPicture
from gdist.core.plan import plan_host
from gdist.core.store_manifest import StoreManifest, StoreSource, StoreTensor
from gdist.errors import RequestError
from gdist.releases import known_release
from gdist.run.picture import choose, pictures_of_store
from gdist.stores.manifests import Manifests
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.stores import write_store

RULES = {"axes": ["data", "model"], "rules": [["w$", ["data", "model"]], [".*", []]]}
WEIGHT = "params.transformer.decoder_layer_3.moe.linear_1.w.weight"


def one(source: object, tensor: str, **options: object) -> TensorPicture:
    (picture,) = api.inspect(str(source), tensor=tensor, **options).pictures  # type: ignore[arg-type]
    return picture


def test_what_a_device_holds_of_an_empty_tensor_is_empty(tmp_path: Path) -> None:
    arrays = {"rows.w": np.zeros((0, 4), np.float32), "columns.w": np.zeros((4, 0), np.float32)}
    write_safetensors(tmp_path / "files", arrays, shards=1)
    write_store(tmp_path / "store", arrays, mesh="2x4", rules=RULES)
    api.view(tmp_path / "files", tmp_path / "view")
    cut, whole = {"rows.w": (0, 1), "columns.w": (2, 0)}, {name: a.shape for name, a in arrays.items()}
    split = api.inspect(str(tmp_path / "files"), mesh="2x4", rules=RULES)
    for found, expected in (
        (split, cut),
        (api.inspect(str(tmp_path / "store")), cut),
        (api.inspect(str(tmp_path / "view")), whole),
    ):
        assert {tensor.name: tensor.slab for tensor in found.tensors} == expected


@pytest.fixture
def store(tmp_path: Path) -> Path:
    arrays = {"layers.0.w": np.zeros((8, 16), np.float32), "norm": np.zeros(8, np.float32)}
    for host in range(2):
        write_store(tmp_path, arrays, mesh="2x4", rules=RULES, host=HostGroup(host, 2))
    return tmp_path


def test_a_store_on_its_own_mesh_is_fed_by_its_hosts_shards(store: Path) -> None:
    picture = one(store, "layers.0.w")
    assert (picture.hosts, picture.mesh, len(picture.regions)) == (2, Mesh((("data", 2), ("model", 4))), 8)
    assert picture.grid is not None and picture.grid.shard == (4, 16)
    assert [region.hosts for region in picture.regions] == [(0,)] * 4 + [(1,)] * 4
    shards = {region.hosts: region.shards for region in picture.regions}
    assert shards == {(0,): Box((0, 0), (1, 1)), (1,): Box((1, 0), (2, 1))}
    assert all(region.here for region in picture.regions)
    assert picture.piece_length is None  # the source is no known release: where its bytes lay is not known


def test_a_store_on_another_mesh_shows_what_a_load_reads(store: Path) -> None:
    picture = one(store, "layers.0.w", mesh="data=1,model=2", hosts=2)
    assert picture.spec == PartitionSpec((("data",), ("model",)))
    assert [(region.devices, region.shards) for region in picture.regions] == [
        ((0,), Box((0, 0), (2, 1))),
        ((1,), Box((0, 0), (2, 1))),
    ]
    assert picture.hosts == 2
    rules = {"axes": ["data", "model"], "rules": [[".*", ["model"]]]}
    assert one(store, "layers.0.w", mesh="8", rules=rules).slab == (1, 16)
    with pytest.raises(RequestError, match="does not divide"):
        one(store, "layers.0.w", mesh="3x1")


def test_all_of_a_store_is_told_on_another_mesh(store: Path) -> None:
    def slabs(**options: Any) -> dict[str, tuple[int, ...] | None]:
        found = api.inspect(str(store), **options)
        assert found.mesh == Mesh((("data", 2), ("model", 4)))
        assert (found.shown_on is None) == (not options)
        return {tensor.name: tensor.slab for tensor in found.chosen}

    assert slabs() == {"layers.0.w": (4, 4), "norm": (8,)}
    assert slabs(mesh="1x2") == {"layers.0.w": (8, 8), "norm": (8,)}
    rules = {"axes": ["data", "model"], "rules": [[".*", ["model"]]]}
    assert slabs(rules=rules) == {"layers.0.w": (2, 16), "norm": (2,)}
    assert slabs(mesh="8", rules=rules, tensor="layers|norm") == {"layers.0.w": (1, 16), "norm": (1,)}
    assert slabs(mesh="1x16", tensor="layers.0.w") == {"layers.0.w": (8, 1)}
    with pytest.raises(RequestError, match=r"does not divide .*'layers.0.w'"):
        slabs(mesh="3x1")


def test_hosts_of_a_stores_own_mesh_are_as_asked(store: Path) -> None:
    assert one(store, "layers.0.w", hosts=1).hosts == 1
    assert one(store, "layers.0.w", hosts=4).hosts == 4
    assert one(store, "layers.0.w", mesh="1x2").hosts == 1
    with pytest.raises(RequestError, match="hosts"):
        one(store, "layers.0.w", hosts=3)


def test_a_part_of_a_store_says_what_is_not_here(tmp_path: Path) -> None:
    arrays = {"w": np.zeros((8, 16), np.float32)}
    write_store(tmp_path, arrays, mesh="2x4", rules=RULES, host=HostGroup(1, 2))
    assert [region.here for region in one(tmp_path, "^w$").regions] == [False] * 4 + [True] * 4
    assert [region.here for region in one(tmp_path, "^w$", mesh="data=4,model=1").regions] == [
        False,
        False,
        True,
        True,
    ]


def test_pieces_of_a_known_release_are_those_that_its_plan_asks_for() -> None:
    picture = one("grok-1", WEIGHT, mesh="8x8", hosts=8)
    assert (picture.piece_length, picture.pieces_assumed, picture.parts) == (2**24, True, 1)
    assert [place.path for place in picture.places] == ["ckpt-0/tensor00279_000"]
    manifest = known_release("grok-1")
    assert manifest is not None
    payload = manifest.payload()
    naming = manifest.to_tensors(payload)
    tensor = next(t for t in naming.tensors if t.spec.name == WEIGHT)
    for host in (0, 5):
        plan = plan_host(payload, [tensor], picture.mesh, naming.rules, HostGroup(host, 8))
        mine = [region for region in picture.regions if region.hosts == (host,)]
        assert set(plan.pieces) == {p for region in mine for run in region.pieces for p in range(*run)}
    region = picture.regions[0]
    assert region.pieces_nbytes == sum(b - a for a, b in region.pieces) * 2**24


def test_a_store_of_a_known_release_knows_its_pieces() -> None:
    release = known_release("grok-1")
    assert release is not None
    source = StoreSource(release.info_hash_v1, "", "grok-1", 2**22, release.nbytes)
    mesh, spec = Mesh((("data", 2), ("model", 2))), PartitionSpec(((), ("model",), ("data",)))
    grid = GridMaker(mesh).grid((8, 32768, 6144), 1, spec)
    tensor = StoreTensor(WEIGHT, BY_NAME["int8"], grid, spec, None, {})
    manifest = StoreManifest(source, "", mesh, HostGroup(), (tensor,))
    (picture,) = pictures_of_store(Manifests(manifest, (0,), 1), [0], None, None, 1)
    assert (picture.piece_length, picture.pieces_assumed) == (2**22, True)
    assert picture.regions[0].pieces and not picture.regions[0].here
    for other in (
        replace(source, piece_length=1),
        replace(source, piece_length="4M"),
        replace(source, info_hash_v1="00" * 20),
    ):
        strange = Manifests(replace(manifest, source=other), (0,), 1)
        assert pictures_of_store(strange, [0], None, None, 1)[0].piece_length is None
    lies = replace(tensor, spec=PartitionSpec((("data",),)))
    cut = Manifests(replace(manifest, mesh=Mesh((("data", 3),)), tensors=(lies,)), (0,), 1)
    with pytest.raises(RequestError, match="does not divide"):  # sealed, and not true
        pictures_of_store(cut, [0], None, None, 1)


def test_pieces_that_are_too_many_to_list_are_not_listed_and_that_is_said() -> None:
    embedding = "params.language_model.in_out_embed.embeddings"
    assert one("grok-1", embedding, mesh="8x8").piece_length == 2**24
    release = known_release("grok-1")
    assert release is not None
    source = StoreSource(release.info_hash_v1, "", "grok-1", 2**14, release.nbytes)
    mesh, spec = Mesh((("model", 64),)), PartitionSpec(((), ("model",)))
    grid = GridMaker(mesh).grid((131072, 6144), 4, spec)
    tensor = StoreTensor(embedding, BY_NAME["float32"], grid, spec, None, {})
    manifest = StoreManifest(source, "", mesh, HostGroup(), (tensor,))
    (picture,) = pictures_of_store(Manifests(manifest, (0,), 1), [0], None, None, 1)
    assert (picture.piece_length, picture.regions[0].pieces) == (None, ())
    assert picture.notes == ("pieces of 16384 bytes are too many to list for every slab",)


def test_a_pair_is_drawn_together_and_a_half_alone() -> None:
    pair = WEIGHT.removesuffix(".weight")
    weight, scales = api.inspect("grok-1", tensor=pair, mesh="8x8").pictures
    assert (weight.tensor.name, scales.tensor.name) == (WEIGHT, f"{pair}.scales")
    assert weight.view.rows == scales.view.rows == 1
    assert one("grok-1", WEIGHT, mesh="8x8").tensor == weight.tensor
    several = api.inspect("grok-1", tensor="decoder_layer_3.moe", mesh="8x8")
    assert (len(several.chosen), several.pictures) == (6, ())


def test_local_files_have_places_and_no_pieces(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "model")
    name = next(iter(expected))
    picture = one(tmp_path / "model", f"^{name}$")
    assert (picture.piece_length, picture.regions[0].pieces) == (None, ())
    assert picture.places and all(place.path.endswith(".safetensors") for place in picture.places)
    assert sum(place.nbytes for place in picture.places) == expected[name].nbytes


def test_without_a_mesh_one_device_holds_it_all() -> None:
    picture = one("grok-1", WEIGHT)
    assert (picture.mesh, picture.spec, len(picture.regions)) == (Mesh(), PartitionSpec(), 1)


def test_a_mesh_without_the_rules_axes_is_completed() -> None:
    assert one("grok-1", WEIGHT, mesh="8").mesh == Mesh((("data", 1), ("model", 8)))


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("params.transformer.decoder_layer_3.moe.linear_1.w.weigth", WEIGHT.removesuffix(".weight")),
        ("ROUTER", ".router.w"),
        ("in_out_embedding", "in_out_embed.embeddings"),
        ("nothing like it", ""),
    ],
)
def test_an_unknown_name_brings_those_near_it(pattern: str, near: str) -> None:
    with pytest.raises(RequestError, match="grok-1 has no tensor") as caught:
        api.inspect("grok-1", tensor=pattern)
    assert near in caught.value.hint and caught.value.hint


def test_an_exact_name_is_meant_alone() -> None:
    names = [("a.w", None), ("a.w.b", None), ("aXw", None)]
    assert choose("a.w", names, "x") == ((0,), True)
    assert choose("a", names, "x") == ((0, 1, 2), False)
