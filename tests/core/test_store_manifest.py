"""Store manifests: every field survives, every edit shows, and parts join only when they belong together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.dtypes import BY_NAME
from gdist.core.grid import ShardGrid
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec
from gdist.core.store_manifest import (
    Step,
    StoreAsset,
    StoreManifest,
    StoreSource,
    StoreTensor,
    manifest_name,
    parse_store_manifest,
    store_manifest_to_json,
    tensor_attributes,
)
from gdist.core.store_parts import join_manifests
from gdist.core.tensor import Quantisation
from gdist.errors import CorruptError, GdistError, RequestError

MESH = Mesh((("data", 2), ("model", 2)))
SPEC = PartitionSpec((("data",), ("model",)))
GRID = ShardGrid((4, 8), (2, 8), (2, 4), (1, 4))


def digest(number: int) -> str:
    return f"{number:064x}"


def shards(*rows: int) -> dict[tuple[int, ...], tuple[str, ...]]:
    return {(row, 0): tuple(digest(10 * row + n) for n in range(4)) for row in rows}


def sample(host: HostGroup | None = None, *rows: int) -> StoreManifest:
    pair = Quantisation("w", "weight", 8, 0)
    tensors = (
        StoreTensor("w.weight", BY_NAME["int8"], GRID, SPEC, pair, shards(*rows or (0, 1))),
        StoreTensor(
            "größe", BY_NAME["bfloat16"], ShardGrid((), (), (), ()), PartitionSpec(), None, {(): ("ab",)}
        ),
        StoreTensor("none", BY_NAME["float32"], ShardGrid((0,), (1,), (1,), (1,)), PartitionSpec(), None),
    )
    return StoreManifest(
        StoreSource("ab" * 20, "cd" * 32, "release", 2**24, 10**12, "magnet:?xt=urn:btih:" + "ab" * 20, "p"),
        "f" * 64,
        MESH,
        host or HostGroup(),
        tensors,
        (StoreAsset("a/tokenizer.json", 17, digest(7)),),
        codec="zstd",
        tool="gdist 0",
    )


def test_every_field_survives() -> None:
    manifest = sample(HostGroup(1, 2), 1)
    assert parse_store_manifest(store_manifest_to_json(manifest), "here") == manifest
    assert manifest.nbytes == 32 + 2


def test_source_files_survive_join_and_are_absent_otherwise() -> None:
    kept = (StoreAsset("parts.json", 3, digest(1)), StoreAsset("rest.bin", 9, digest(2)))
    first, second = (sample(HostGroup(n, 2), n) for n in range(2))
    first = replace(first, source_files=kept)
    assert parse_store_manifest(store_manifest_to_json(first), "here") == first
    assert join_manifests([second, first]).source_files == kept
    assert "source_files" not in json.loads(store_manifest_to_json(second))


def test_what_was_chosen_and_converted_survives_and_is_absent_otherwise() -> None:
    plain = sample()
    made = replace(plain.tensors[1], stored=(BY_NAME["int8"], BY_NAME["float16"]))
    manifest = replace(plain, tensors=(plain.tensors[0], made), select=("^w", "größe"), converted="bfloat16")
    assert parse_store_manifest(store_manifest_to_json(manifest), "here") == manifest
    document = json.loads(store_manifest_to_json(manifest))
    assert document["select"] == ["^w", "größe"] and document["converted"] == {"dtype": "bfloat16"}
    assert [row.get("stored") for row in document["tensors"]] == [None, ["int8", "float16"]]
    assert not {"select", "converted"} & DOCUMENT.keys()


def test_an_encoding_survives_and_is_absent_otherwise() -> None:
    plain = sample()
    blocks = replace(plain.tensors[0], encoding="gguf.q4_0")
    manifest = replace(plain, tensors=(blocks, *plain.tensors[1:]))
    assert parse_store_manifest(store_manifest_to_json(manifest), "here") == manifest
    document = json.loads(store_manifest_to_json(manifest))
    assert [row.get("encoding") for row in document["tensors"]] == ["gguf.q4_0", None, None]
    assert all("encoding" not in row for row in DOCUMENT["tensors"])
    assert tensor_attributes(SPEC, None, "gguf.q4_0")["gdist"] == {
        "partition_spec": SPEC.to_json(),
        "encoding": "gguf.q4_0",
    }
    assert tensor_attributes(SPEC, None) == {"gdist": {"partition_spec": SPEC.to_json()}}
    with pytest.raises(RequestError, match="another job"):
        join_manifests([plain, manifest])


def test_a_device_order_survives_and_is_not_there_without_one() -> None:
    assert "device_order" not in DOCUMENT
    ordered = replace(sample(), mesh=Mesh(MESH.axes, (2, 0, 3, 1)))
    data = store_manifest_to_json(ordered)
    assert json.loads(data)["device_order"] == [2, 0, 3, 1]
    assert parse_store_manifest(data, "here") == ordered


def test_a_tensor_is_one_line() -> None:
    lines = store_manifest_to_json(sample()).decode().splitlines()
    assert sum('"name": "w.weight"' in line for line in lines) == 1
    assert next(line for line in lines if "größe" in line).strip().startswith("{")


def leaves(value: Any, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    return found if isinstance(value, dict | list) and value else [path]


DOCUMENT = json.loads(store_manifest_to_json(sample()))


@pytest.mark.parametrize("path", leaves(DOCUMENT), ids=str)
def test_an_edit_of_any_value_breaks_the_seal(path: tuple[object, ...]) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    value = parent[path[-1]]
    match value:
        case int():
            parent[path[-1]] = value + 1
        case str():
            parent[path[-1]] = value[:-1] + ("x" if value[-1:] != "x" else "y")
        case _:
            parent[path[-1]] = [value]
    with pytest.raises(GdistError) as caught:
        parse_store_manifest(json.dumps(document).encode(), "here")
    if path == ("gdist_store",):  # not damage: a newer gdist's
        assert isinstance(caught.value, RequestError) and "format 2" in str(caught.value)
    else:
        assert isinstance(caught.value, CorruptError) and "here was changed" in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: body["tensors"].pop(),
        lambda body: body["tensors"].reverse(),
        lambda body: body["tensors"][0]["shards"].pop(),
        lambda body: body.update(more=1),
        lambda body: body.pop("plan"),
    ],
    ids=["drop a tensor", "reorder", "drop a shard", "add a field", "drop a field"],
)
def test_other_edits_break_the_seal_too(edit: Callable[[Any], object]) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    edit(document)
    with pytest.raises(CorruptError, match="was changed"):
        parse_store_manifest(json.dumps(document).encode(), "here")


def test_a_manifest_cut_short_anywhere_is_damaged() -> None:
    data = store_manifest_to_json(sample())
    for stop in random.Random(0).sample(range(len(data) - 2), 60):
        with pytest.raises(CorruptError, match="is not a store manifest"):
            parse_store_manifest(data[:stop], "here")


@given(
    st.binary(max_size=20)
    | st.recursive(st.none() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_anything_else_is_no_manifest(data: bytes) -> None:
    with pytest.raises(CorruptError, match="is not a store manifest"):
        parse_store_manifest(data, "here")


def sealed(edit: Callable[[Any], object]) -> bytes:
    """A document that is sealed rightly and yet impossible, as nobody but an attacker writes it."""
    from gdist.core import store_manifest

    document = json.loads(json.dumps(DOCUMENT))
    del document["digest"]
    edit(document)
    document["digest"] = store_manifest._seal(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: body.pop("mesh"),
        lambda body: body.update(source={}),
        lambda body: body.update(source=None),
        lambda body: body.update(host=[2, 2]),
        lambda body: body.update(mesh=[["data", 0]]),
        lambda body: body.update(device_order=[0, 1]),
        lambda body: body.update(device_order=[0, 1, 2, 2]),
        lambda body: body.update(device_order=[0, 1, 2, "x"]),
        lambda body: body.update(device_order=3),
        lambda body: body.update(mesh=[["data", 10**12]], device_order=[0]),
        lambda body: body["tensors"][0].update(shard=[0, 8]),
        lambda body: body["tensors"][0].update(shard=[3, 8]),
        lambda body: body["tensors"][0].update(dtype="float1"),
        lambda body: body["tensors"][0].update(spec=["data", "data"]),
        lambda body: body["tensors"][0].update(shards=[[0, 0]]),
        lambda body: body["tensors"][0].update(quantisation=[]),
    ],
)
def test_a_sealed_manifest_that_cannot_be_is_refused(edit: Callable[[Any], object]) -> None:
    with pytest.raises(GdistError):
        parse_store_manifest(sealed(edit), "here")


def test_each_host_has_its_own_file() -> None:
    assert manifest_name(HostGroup()) == "gdist.json"
    assert manifest_name(HostGroup(3, 8)) == "gdist.host-00003-of-00008.json"


def test_parts_of_one_job_are_one_store() -> None:
    first, second = sample(HostGroup(0, 2), 0), replace(sample(HostGroup(1, 2), 1), plan="e" * 64)
    joined = join_manifests([first, second])
    assert joined.tensors == sample().tensors
    assert joined.host == HostGroup()
    assert join_manifests([joined]) == joined
    assert join_manifests([sample(HostGroup(0, 2), 0, 1), second]).tensors == joined.tensors, "replicas agree"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, source=replace(m.source, info_hash_v1="ef" * 20)),
        lambda m: replace(m, mesh=Mesh((("data", 4),))),
        lambda m: replace(m, mesh=Mesh(MESH.axes, (0, 2, 1, 3))),
        lambda m: replace(m, codec="none"),
        lambda m: replace(m, select=("w",)),
        lambda m: replace(m, converted="bfloat16"),
        lambda m: replace(m, tensors=m.tensors[:2]),
        lambda m: replace(m, tensors=m.tensors[::-1]),
        lambda m: replace(m, tensors=(replace(m.tensors[0], name="v.weight"), *m.tensors[1:])),
        lambda m: replace(m, tensors=(replace(m.tensors[0], dtype=BY_NAME["uint8"]), *m.tensors[1:])),
        lambda m: replace(
            m, tensors=(replace(m.tensors[0], grid=ShardGrid((4, 8), (2, 8), (2, 4), (2, 4))), *m.tensors[1:])
        ),
    ],
    ids=[
        "source",
        "mesh",
        "devices",
        "codec",
        "select",
        "converted",
        "fewer",
        "order",
        "name",
        "dtype",
        "grid",
    ],
)
def test_parts_of_two_jobs_do_not_join(change: Callable[[StoreManifest], StoreManifest]) -> None:
    with pytest.raises(RequestError, match="host 1's part is of another job than host 0's"):
        join_manifests([sample(HostGroup(0, 2), 0), change(sample(HostGroup(1, 2), 1))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: replace(m, codec="none"), ": codec none, and zstd"),
        (lambda m: replace(m, tensors=m.tensors[:1]), ": no tensor, where that has 'größe'"),
        (
            lambda m: replace(
                m,
                tensors=(
                    replace(m.tensors[0], grid=ShardGrid((4, 8), (2, 8), (2, 4), (2, 4))),
                    *m.tensors[1:],
                ),
            ),
            ": 'w.weight' has",
        ),
        (lambda m: replace(m, resharded=(Step("files", "x", "", "1"),)), "files 'x', and no further source"),
    ],
)
def test_what_keeps_two_parts_apart_is_said_and_nothing_else(
    change: Callable[[StoreManifest], StoreManifest], words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        join_manifests([sample(HostGroup(0, 2), 0), change(sample(HostGroup(1, 2), 1))])
    assert words in caught.value.message and "mesh" not in caught.value.message


def test_sources_of_one_name_are_told_apart_by_their_identity() -> None:
    one, other = (replace(sample(), resharded=(Step("files", "x", "", d * 64),)) for d in "12")
    with pytest.raises(RequestError, match=r"'x' with identity 222222222222, and .* identity 111111111111"):
        join_manifests([one, other])


def test_two_hosts_that_digest_one_shard_differently_are_a_damage() -> None:
    other = sample(HostGroup(1, 2), 0, 1)
    wrong = {**shards(0, 1), (0, 0): tuple(digest(99) for _ in range(4))}
    other = replace(other, tensors=(replace(other.tensors[0], shards=wrong), *other.tensors[1:]))
    with pytest.raises(CorruptError, match=r"digests of shard \(0, 0\) of 'w.weight' differ"):
        join_manifests([sample(HostGroup(0, 2), 0), other])
