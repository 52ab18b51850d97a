"""Arrays found in files get the names a model's users know, or an error that says why not."""

from __future__ import annotations

import dataclasses
import json
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.profile import FileArrays, Naming, check_index, check_names, check_storable, name_tensors
from gdist.core.tensor import UNREAD, FoundArray, Order
from gdist.errors import CorruptError, RequestError, UnsupportedError
from gdist.formats import SNIFF_BYTES, drive
from gdist.formats.detect import detect
from gdist.testing.checkpoints import write_grok1, write_safetensors


def files_in(root: Path) -> list[FileArrays]:
    """Every file with arrays, laid end to end in the order of their paths."""
    files, position = [], 0
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        kind = detect(data[:SNIFF_BYTES], len(data))
        if kind:
            arrays = drive(kind.scan(len(data)), lambda e, data=data: data[e.start : e.stop])  # type: ignore[misc]
            files.append(FileArrays(path.relative_to(root).as_posix(), position, arrays, kind.KEYS_ARE_NAMES))
        position += len(data)
    return files


def payload_of(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def array(*shape: int, key: str = "", role: str = "", dtype: str = "int8", start: int = 100) -> FoundArray:
    kind = BY_NAME[dtype]
    return FoundArray(key, Extent(start, int(np.prod(shape)) * kind.itemsize), shape, kind, Order.C, role)


def pair(weight: tuple[int, ...], scales: tuple[int, ...], key: str = "") -> tuple[FoundArray, FoundArray]:
    return (
        array(*weight, key=key, role="weight"),
        array(*scales, key=key, role="scales", dtype="bfloat16", start=10**9),
    )


def names(naming: Naming) -> list[str]:
    return [tensor.spec.name for tensor in naming.tensors]


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_a_grok_checkpoint_is_recognised_and_every_tensor_lies_where_it_says(
    tmp_path: Path, layers: int
) -> None:
    expected = write_grok1(tmp_path, layers=layers, emb=16, ffn=32, kv=8, vocab=32)
    (tmp_path / "LICENSE").write_text("Apache License")
    naming = name_tensors(files_in(tmp_path))
    payload = payload_of(tmp_path)
    assert naming.profile == "grok-1" and naming.rules is not None
    assert set(names(naming)) == set(expected) and len(expected) == 2 + 19 * layers
    for tensor in naming.tensors:
        (part,) = tensor.parts
        assert payload[part.extent.start : part.extent.stop] == expected[tensor.spec.name].tobytes()
        assert tensor.spec.shape == expected[tensor.spec.name].shape
        assert naming.rules.spec_for(tensor.rule_name) is not None


def test_file_26_of_grok_is_layer_10(tmp_path: Path) -> None:
    write_grok1(tmp_path, layers=64, emb=8, ffn=8, kv=8, vocab=8)
    files = {file.file_name: file for file in files_in(tmp_path)}
    naming = name_tensors(list(files.values()))
    at = files["tensor00026_000"].offset + files["tensor00026_000"].arrays[0].extent.start
    (tensor,) = [t for t in naming.tensors if t.parts[0].extent.start == at]
    assert tensor.rule_name == "params.transformer.decoder_layer_10.moe.linear.w"


def test_scales_know_their_groups(tmp_path: Path) -> None:
    write_grok1(tmp_path, layers=1, emb=16, ffn=32, groups=4)
    by_name = {tensor.spec.name: tensor for tensor in name_tensors(files_in(tmp_path)).tensors}
    for name, groups, dimension in (
        ("moe.linear_1.w", 4, 1),
        ("moe.linear.w", 1, 1),
        ("multi_head_attention.linear.w", 4, 0),
    ):
        for role in ("weight", "scales"):
            tensor = by_name[f"params.transformer.decoder_layer_0.{name}.{role}"]
            assert tensor.quantisation is not None
            assert (tensor.quantisation.groups, tensor.quantisation.dimension) == (groups, dimension)
            assert (tensor.quantisation.role, tensor.rule_name) == (
                role,
                f"params.transformer.decoder_layer_0.{name}",
            )


def grok_files(layers: int = 1) -> list[FileArrays]:
    ndims = [2, 1, *([3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 2] * layers)]
    return [
        FileArrays(f"ckpt/tensor{i:05d}_000", i * 1000, (array(*[2] * ndim),)) for i, ndim in enumerate(ndims)
    ]


def test_any_folder_and_unquantised_arrays_fit_the_profile() -> None:
    assert name_tensors(grok_files()).profile == "grok-1"
    assert len(name_tensors(grok_files(3), "grok-1").tensors) == 38


def changed(index: int, **changes: object) -> list[FileArrays]:
    files = grok_files()
    files[index] = dataclasses.replace(files[index], **changes)  # type: ignore[arg-type]
    return files


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (grok_files()[:-1], "13 files are not 2 and 12 for each layer"),
        (grok_files()[:2], "2 files"),
        (grok_files()[1:], "no file has index 0"),
        (grok_files()[:5] + grok_files()[6:], "no file has index 5"),
        (changed(3, path="ckpt/tensor00003_001"), "process 1"),
        (changed(3, path="ckpt/other"), "not named like"),
        (changed(3, path="other/tensor00004_000"), "same index"),
        (changed(3, arrays=(array(2, 2),)), "has 3 dimensions"),
        (changed(3, arrays=(array(2, 2, 2, key="w"),)), "has 3 dimensions"),
        ([], "no file has index 0"),
    ],
)
def test_other_files_do_not_fit_the_profile(files: list[FileArrays], word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        name_tensors(files, "grok-1")
    assert name_tensors(files).profile is None


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        name_tensors([], "grok-9")
    assert "grok-1" in caught.value.hint


def test_pickles_are_named_after_their_files() -> None:
    naming = name_tensors(
        [
            FileArrays(
                "a/weights.pkl",
                0,
                (array(2, key="layer.0.w"), array(3, key="layer.0.b", start=500)),
            ),
            FileArrays("a/norm", 1000, (array(4),)),
            FileArrays("a/q", 2000, pair((8, 4), (2, 4))),
            FileArrays("a/r", 3000, pair((8, 4), (2, 4), key="k")),
            FileArrays("b/same", 4000, (array(4),)),
            FileArrays("d/same", 5000, (array(5),)),
            FileArrays("d/nothing", 6000, ()),
        ]
    )
    assert naming.profile is None and naming.rules is None
    assert set(names(naming)) == {
        "weights.pkl.layer.0.w",
        "weights.pkl.layer.0.b",
        "norm",
        "q.weight",
        "q.scales",
        "r.k.weight",
        "r.k.scales",
        "b/same",
        "d/same",
    }
    norm = next(tensor for tensor in naming.tensors if tensor.spec.name == "norm")
    assert norm.parts[0].extent == Extent(1100, 4)


def test_safetensors_names_are_kept(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path, shards=3)
    naming = name_tensors(files_in(tmp_path))
    assert set(names(naming)) == set(expected)
    assert names(naming)[0] == "model.embed_tokens.weight" and names(naming)[-1] == "lm_head.weight"
    payload = payload_of(tmp_path)
    for tensor in naming.tensors:
        extent = tensor.parts[0].extent
        assert payload[extent.start : extent.stop] == expected[tensor.spec.name].tobytes()


def test_keys_are_names_only_where_the_format_has_names() -> None:
    files = [
        FileArrays("x/a.safetensors", 0, (array(1, key="w"),), True),
        FileArrays("x/a.bin", 0, (array(1, key="w"),)),
    ]
    assert names(name_tensors(files)) == ["a.bin.w", "w"]


def test_a_name_in_two_files_is_corrupt_and_said_where() -> None:
    files = [FileArrays(f"{n}.safetensors", 0, (array(1, key="w"),), True) for n in "ab"]
    with pytest.raises(CorruptError, match=r"'w' \(again in 'b.safetensors'\)"):
        name_tensors(files)


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        (("m1/a.safetensors", "m2/a.safetensors"), "m2/*"),
        (("m/a.safetensors", "m/b.safetensors"), "m/b.safetensors"),  # of one model
        (("m1/a.safetensors", "z.safetensors"), "m1/*"),
    ],
)
def test_one_of_several_models_is_taken_by_leaving_the_others_out(
    paths: tuple[str, ...], pattern: str
) -> None:
    files = [FileArrays(path, 0, (array(1, key="w"),), True) for path in paths]
    with pytest.raises(CorruptError) as caught:
        name_tensors(files)
    assert f"--ignore '{pattern}'" in caught.value.hint and "--profile NAME" in caught.value.hint
    assert name_tensors([file for file in files if not fnmatchcase(file.path, pattern)]).tensors


@pytest.mark.parametrize(
    "halves",
    [
        pair((8, 4), (3, 4)),  # does not divide
        pair((8, 4), (2, 5)),  # other columns
        pair((8, 4), (4,)),  # other rank
        pair((8,), (8,)),  # no contracting dimension
        pair((2, 8, 4), (3, 2, 4)),  # other leading
        pair((8, 4), (0, 4)),
        pair((8, 4), (2, 4))[:1],
        (array(1), array(2)),
        (array(1, role="scales"), array(2, role="scales")),
    ],
)
def test_halves_that_do_not_belong_together_are_corrupt(halves: tuple[FoundArray, ...]) -> None:
    with pytest.raises(CorruptError, match="f/x"):
        name_tensors([FileArrays("f/x", 0, halves)])


def test_names_that_are_not_allowed_are_all_listed() -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_names(["ok", "../up", "/abs", "a\nb", "zarr.json"])
    for word in ("'../up'", "'/abs'", "'zarr.json'"):
        assert word in caught.value.message


def test_what_cannot_be_kept_is_named_with_its_file_where_it_is_chosen() -> None:
    payload = Payload((PayloadFile("f", 0, 4), PayloadFile("g", 4, 4)), 1 << 14, 8)
    arrays = (array(4, key="../up", start=0), array(4, key="a", start=4))
    up, a = sorted(name_tensors([FileArrays("f", 0, arrays, True)]).tensors, key=lambda t: t.spec.name)
    check_storable([a], payload)
    with pytest.raises(UnsupportedError, match=r"'\.\./up' is not a plain relative path, in 'f'$") as caught:
        check_storable([up, a], payload)
    assert "--select" in caught.value.hint and "reshard leaves files out with --ignore" in caught.value.hint
    four = dataclasses.replace(a, spec=dataclasses.replace(a.spec, encoding=f"{UNREAD}F4"))
    with pytest.raises(UnsupportedError, match=r"'a' has element type F4, .*, in 'g'$"):
        check_storable([four], payload)


def test_a_name_that_is_also_a_group_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'a', 'b/x'") as caught:
        check_names(["a", "a/b", "b/x", "b/x/d/e"])
    assert "--ignore" in caught.value.hint
    check_names(["a", "a.b", "ab/x", "A"])


def index_of(weight_map: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def test_an_index_that_agrees_passes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "deep" / "er", shards=3)
    check_index((tmp_path / "deep/er/model.safetensors.index.json").read_bytes(), files_in(tmp_path))


TWO = (
    FileArrays("m/a.safetensors", 0, (array(1, key="x"), array(1, key="y")), True),
    FileArrays("m/b.safetensors", 0, (array(1, key="z"),), True),
)
A, B = "a.safetensors", "b.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"x": A, "y": A}, []),
        ({"x": A, "y": B, "z": B}, ["'y' is not in 'b", "'y' of 'a.safetensors' is not listed"]),
        ({"x": A, "y": A, "w": A}, ["'w' is not in"]),
        ({"x": A}, ["'y' of 'a.safetensors' is not listed"]),
        ({"x": A, "y": A, "z": "c.safetensors"}, ["'c.safetensors' is not in the payload"]),
        ({"x": "ma.safetensors"}, ["is not in the payload"]),
    ],
)
def test_an_index_that_disagrees_names_every_tensor(weight_map: dict[str, str], words: list[str]) -> None:
    if not words:
        check_index(index_of(weight_map), TWO)
        return
    with pytest.raises(CorruptError) as caught:
        check_index(index_of(weight_map), TWO)
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"weight_map": {"a": 1}}', b"[" * 100_000])
def test_an_index_that_is_none_is_corrupt(text: bytes) -> None:
    with pytest.raises(CorruptError, match="index") as caught:
        check_index(text, TWO)
    assert "--ignore '*.safetensors.index.json'" in caught.value.hint
