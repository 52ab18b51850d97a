"""A model of GGUF files through a real swarm: what its blocks are is known, and their values on request."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import gdist
from gdist.cli import main
from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError, RequestError
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.survey import survey_files
from gdist.run.verify import verify
from gdist.testing.fetches import Array, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import seed

Types = gguf.GGMLQuantizationType
PIECE = 1 << 14
ENCODED = {
    "blk.0.attn_q.weight": "gguf.q4_0",
    "blk.1.ffn_up.weight": "gguf.q8_0",
    "output.weight": "gguf.q6_k",
}


def write_model(directory: Path) -> dict[str, Array]:
    """Two files, as llama.cpp splits a model, of more pieces than one; its tensors as they are stored."""
    random = np.random.default_rng(5)
    tensors: dict[str, tuple[Array, Types | None]] = {
        "token_embd.weight": (random.standard_normal((64, 96)).astype(np.float16), None),
        "blk.0.attn_norm.weight": (random.standard_normal(96).astype(np.float32), None),
        "blk.1.attn_norm.weight": (
            random.standard_normal((3, 40)).astype(ml_dtypes.bfloat16).view(np.uint8),
            Types.BF16,
        ),
    }
    for name, encoding in ENCODED.items():
        kind = Types[encoding.removeprefix("gguf.").upper()]
        elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
        columns = 512 // elements
        if kind == Types.Q6_K:
            blocks = random.integers(0, 256, (32, columns, nbytes), np.uint8)
            blocks[..., -2:] = np.full((32, columns, 1), 0.01, np.float16).view(np.uint8)
            tensors[name] = blocks.reshape(32, -1), kind
        else:
            values = random.standard_normal((64, 512)).astype(np.float32)
            tensors[name] = gguf.quants.quantize(values, kind), kind
    directory.mkdir()
    writer = gguf.GGUFWriter(directory / "m.gguf", "llama", split_max_tensors=3)
    writer.add_array("tokenizer.ggml.tokens", [f"token {n}" for n in range(5000)])
    writer.add_chat_template("{{ messages }}")
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    names = [f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert sorted(path.name for path in directory.iterdir()) == names
    stored: dict[str, Array] = {name: array for name, (array, _) in tensors.items()}
    stored["blk.1.attn_norm.weight"] = stored["blk.1.attn_norm.weight"].view(ml_dtypes.bfloat16)
    return stored


def assert_encoded(root: Path | str) -> None:
    """That a store says of each tensor what its bytes are, in its manifest and to other tools."""
    with gdist.open(root) as store:
        found = {name: array.encoding for name, array in store.items()}
        assert found == {name: ENCODED.get(name, "") for name in found}


def encoding_of(document: dict[str, Any]) -> object:
    return document["attributes"]["gdist"].get("encoding")


@pytest.mark.torrent
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_split_model_is_fetched_and_given_back(codec: str, tmp_path: Path) -> None:
    expected = write_model(tmp_path / "from")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x2", codec=codec))
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    assert_encoded(tmp_path / "s")
    for name in expected:
        assert encoding_of(json.loads((tmp_path / "s" / name / "zarr.json").read_text())) == ENCODED.get(name)
    root = json.loads((tmp_path / "s/zarr.json").read_text())["consolidated_metadata"]["metadata"]
    assert {name: encoding_of(root[name]) for name in ENCODED} == ENCODED

    export(tmp_path / "s", tmp_path / "back", to="payload")
    assert tree_of(tmp_path / "back/from") == tree_of(tmp_path / "from")
    gdist.reshard(tmp_path / "s", tmp_path / "r", mesh="4")
    assert_holds(tmp_path / "r", expected)
    assert_encoded(tmp_path / "r")
    export(tmp_path / "r", tmp_path / "tensors", to="safetensors")
    with safe_open(tmp_path / "tensors/model.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["gdist.encodings"]) == ENCODED
    gdist.reshard(tmp_path / "tensors", tmp_path / "again", mesh="2")
    assert_encoded(tmp_path / "again")


@pytest.mark.torrent
@pytest.mark.parametrize(("mesh", "dtype"), [("1", "float32"), ("2x4", "bfloat16"), ("8x2", "float16")])
def test_blocks_are_dequantised_on_request(mesh: str, dtype: str, tmp_path: Path) -> None:
    """A mesh that divides rows of 512 by 4 or 8 cuts through the blocks of 256 of Q6_K."""
    stored = write_model(tmp_path / "from")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(mesh, dtype=dtype))
    kinds = {name: Types[encoding.removeprefix("gguf.").upper()] for name, encoding in ENCODED.items()}
    expected = {
        name: (gguf.dequantize(array, kinds[name]) if name in kinds else array).astype(np.dtype(dtype))
        for name, array in stored.items()
    }
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    with gdist.open(tmp_path / "s") as store:
        assert not any(array.encoding for array in store.values())
        made = {tensor.name: [kind.name for kind in tensor.stored] for tensor in store.manifest.tensors}
    assert {name: made[name] for name in ENCODED} == {name: [kind] for name, kind in ENCODED.items()}
    gdist.reshard(tmp_path / "s", tmp_path / "r", mesh="2")
    assert_holds(tmp_path / "r", expected)


@pytest.mark.torrent
def test_without_the_package_blocks_are_not_dequantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "from")
    monkeypatch.delitem(sys.modules, "gdist.sinks.gguf_values", raising=False)
    monkeypatch.delattr("gdist.sinks.gguf_values", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        with pytest.raises(RequestError, match="not installed") as caught:
            fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(dtype="bfloat16"))
        fetch(format_magnet(seeded.magnet), tmp_path / "t", fetch_options())
    assert "gdist[gguf]" in caught.value.hint
    assert_encoded(tmp_path / "t")


def test_files_are_viewed_inspected_and_resharded_where_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_model(tmp_path / "m")
    assert main(["inspect", str(tmp_path / "m")]) == 0
    shown = capsys.readouterr().out
    assert all(f"uint8 ({encoding})" in shown for encoding in ENCODED.values())
    gdist.reshard(tmp_path / "m", tmp_path / "s", mesh="2x2")
    assert_holds(tmp_path / "s", expected)
    assert_encoded(tmp_path / "s")

    root = Path(gdist.view(tmp_path / "m").path)
    assert_holds(root, expected)
    assert_encoded(root)
    assert verify(root).ok
    assert main(["inspect", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["tensors"]
    assert {row["name"]: row["encoding"] for row in rows if row["encoding"]} == ENCODED


def test_a_missing_file_of_a_split_is_said(tmp_path: Path) -> None:
    write_model(tmp_path / "from")
    (tmp_path / "from/m-00001-of-00002.gguf").unlink()
    with pytest.raises(CorruptError, match=r"1 are missing: m-00001-of-00002\.gguf"):
        survey_files(tmp_path / "from")
