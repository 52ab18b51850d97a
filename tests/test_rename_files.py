"""Renaming tables by name and as files; those shipped speak of every tensor of the models they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdist.core.rename import NamedTensor, RenamePlan, plan_renames
from gdist.errors import FilesystemError, RequestError
from gdist.rename_files import FOLDER, MOST_BYTES, read_rename, rename_names
from gdist.testing.checkpoints import dequantised, llama_tree, write_grok1
from gdist.testing.llama import HUGGING_FACE, META, SHAPES

RULE = "[[rename]]\nmatch = 'a'\nto = 'b'\n"


def planned(name: str, shapes: dict[str, tuple[int, ...]]) -> RenamePlan:
    plan = plan_renames(read_rename(name), [NamedTensor(n, s, "bfloat16") for n, s in shapes.items()])
    plan.check_complete()
    return plan


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RULE)
    assert read_rename(file).rules == read_rename(str(file)).rules
    assert read_rename(file).name == "mine"
    assert read_rename(read_rename(file)) == read_rename(file)
    other = tmp_path / "x"
    other.write_text("\ufeffname = 'mine'\n" + RULE, encoding="utf-8")
    assert read_rename(str(other)) == read_rename(file)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"rename = [", "is no TOML"),
        (b"\xff", "is no TOML"),
        (b"a = " + b"[" * 100_000, "is no TOML"),
        (b"x = 1", "there is no list of"),
        (b"#" * (MOST_BYTES + 1), "is larger than"),
    ],
)
def test_what_is_no_table_is_named_with_its_file(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "t.toml").write_bytes(text)
    with pytest.raises(RequestError, match=rf"t\.toml'.*{why}"):
        read_rename(tmp_path / "t.toml")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="rename 'llama' is no table") as caught:
        read_rename("llama")
    assert "hf-flax" in caught.value.hint
    with pytest.raises(RequestError, match="there is no renaming table"):
        read_rename(str(tmp_path / "absent.toml"))
    with pytest.raises(RequestError, match="is no path"):
        read_rename("a/\0")
    with pytest.raises(FilesystemError):
        read_rename(tmp_path)


# --- the tables that are shipped --------------------------------------------------------------------------


def test_shipped_tables_are_named_as_their_files() -> None:
    names = ("grok-1-hf", "grok-1-stacked", "hf-flax", "hf-maxtext", "llama-hf-names")
    assert rename_names() == names
    for name in names:
        table = read_rename(name)
        assert table.name == name and table.title and not table.keep_other
    assert {path.suffix for path in FOLDER.iterdir()} == {".toml"}


def test_metas_names_become_those_of_hugging_face() -> None:
    shapes = {META[role]: shape for role, shape in SHAPES.items()} | {"rope.freqs": (32,)}
    plan = planned("llama-hf-names", shapes)
    assert {t.sources[0]: t.name for t in plan.tensors} == {META[role]: HUGGING_FACE[role] for role in META}
    assert all(t.is_same for t in plan.tensors) and plan.dropped == ("rope.freqs",)


def test_flax_kernels_are_transposed_and_nothing_else() -> None:
    plan = planned("hf-flax", {name: array.shape for name, array in llama_tree(layers=3)})
    found = {t.name: t for t in plan.tensors}
    assert found["params.model.layers.2.mlp.down_proj.kernel"].transpose
    assert found["params.lm_head.kernel"].sources == ("lm_head.weight",)
    assert all(t.transpose == t.name.endswith(".kernel") for t in plan.tensors) and len(found) == 30
    assert {name.rsplit(".")[-1] for name in found} == {"kernel", "embedding", "weight"}


def test_maxtext_like_layers_are_stacked_on_dimension_1() -> None:
    plan = planned("hf-maxtext", {name: array.shape for name, array in llama_tree(layers=11)})
    found = {t.name: t for t in plan.tensors}
    assert len(found) == 12
    query = found["params.decoder.layers.self_attention.key.kernel"]
    assert query.shape == (64, 11, 16) and query.sources[10] == "model.layers.10.self_attn.k_proj.weight"
    assert found["params.decoder.layers.pre_self_attention_layer_norm.scale"].shape == (64, 11)
    assert found["params.token_embedder.embedding"].is_same


@pytest.mark.parametrize(("name", "count"), [("grok-1-hf", 38), ("grok-1-stacked", 14)])
def test_grok_1s_tensors_all_have_a_rule(tmp_path: Path, name: str, count: int) -> None:
    arrays = dequantised(write_grok1(tmp_path, layers=3, emb=32, ffn=64, vocab=64), "bfloat16")
    plan = planned(name, {key: array.shape for key, array in arrays.items()})
    assert len(plan.tensors) == count
    if name == "grok-1-hf":
        found = {t.name: t.shape for t in plan.tensors}
        assert found["model.layers.2.attn.k_proj.weight"] == (16, 32)
        assert found["model.layers.2.moe_block.experts.linear_1.weight"] == (8, 64, 32)
    else:
        assert {t.shape[0] for t in plan.tensors if ".layers." in t.name} == {3}
