"""What comes out of a store is what went in: the torrent's own files, or safetensors of the same tensors."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from gdist.core.extent import Extent
from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError, GdistError, InterruptedRun, RequestError, UnsupportedError
from gdist.events import Event
from gdist.rule_files import named_rules
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.output_files import Exported
from gdist.run.rebuild import Rebuilder
from gdist.run.reshard import ReshardOptions, reshard
from gdist.run.view import ViewOptions, make_view
from gdist.sources.torrent import Version, make_torrent
from gdist.testing.checkpoints import llama_tree, write_grok1, write_safetensors
from gdist.testing.fetches import Array, Recorder, fetch_options, tree_of
from gdist.testing.llama import HUGGING_FACE, META, SHAPES
from gdist.testing.stores import write_store
from gdist.testing.swarm import WebSeed, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


def write_model(root: Path) -> dict[str, Array]:
    """Two safetensors files with their index, and files without tensors, some empty."""
    expected = write_safetensors(root, emb=32, vocab=128)
    (root / "config.json").write_bytes(b'{"architectures": ["LlamaForCausalLM"]}\n')
    (root / "a-empty.txt").write_bytes(b"")
    (root / "z-empty.txt").write_bytes(b"")
    (root / "tokenizer").mkdir()
    (root / "tokenizer/vocab.txt").write_bytes(b"a b c" * 5000)
    return expected


def write_odd(root: Path) -> None:
    """Pickles: Fortran order, scalars, arrays cut within elements, nothing at a multiple of anything."""
    rng = np.random.default_rng(3)
    root.mkdir()
    arrays = {
        "a.pkl": np.asfortranarray(rng.random((40, 96), dtype=np.float32)),
        "b.pkl": np.asfortranarray(rng.integers(0, 99, (8, 6, 16, 24))),
        "c.pkl": rng.random((7, 9)),
        "d.pkl": np.array(2.5, np.float32),
        "e.pkl": rng.random((64, 127)).astype(ml_dtypes.bfloat16),
        "f.pkl": rng.integers(0, 2, (3, 5)).astype(bool),
    }
    for name, array in arrays.items():
        (root / name).write_bytes(pickle.dumps(array, protocol=4))


def content(kind: str, root: Path) -> Path:
    if kind == "grok":
        write_grok1(root / kind, layers=1, emb=32, ffn=64, kv=8, vocab=64)
    elif kind == "odd":
        write_odd(root / kind)
    else:
        write_model(root / kind)
    return root / kind


def fetched(origin: Path, store: Path | str, version: Version = "v1", **changes: Any) -> None:
    with seed(origin, version=version, piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), store, fetch_options(**changes))


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
@pytest.mark.parametrize("kind", ["llama", "grok", "odd"])
def test_the_torrent_s_own_files_come_back(kind: str, version: Version, tmp_path: Path) -> None:
    origin = content(kind, tmp_path)
    fetched(origin, tmp_path / "s", version, mesh="2x4" if kind != "odd" else "1")
    done = export(tmp_path / "s", tmp_path / "out")
    assert tree_of(tmp_path / "out") == {f"{kind}/{path}": data for path, data in tree_of(origin).items()}
    assert sorted(done.files) == sorted(tree_of(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["llama", "grok"])
@pytest.mark.parametrize("where", ["zstd", "memory", "keep", "resharded"])
def test_whatever_the_store_is(where: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    origin = content(kind, tmp_path)
    store: Path | str = tmp_path / "s"
    if where == "memory":
        store = f"memory://{request.node.name}"
        fetched(origin, store, mesh="2x4", work=tmp_path / "work")
    elif where == "resharded":
        fetched(origin, tmp_path / "first", mesh="2x2")
        reshard(tmp_path / "first", store, ReshardOptions(mesh=fetch_options("4").mesh))
    else:
        changes = {"codec": "zstd"} if where == "zstd" else {"payload": "keep"}
        fetched(origin, store, mesh="2x4", **changes)
    export(store, tmp_path / "out")
    assert tree_of(tmp_path / "out" / kind) == tree_of(origin)


@pytest.mark.parametrize("how", ["fetched", "both", "torrent", "beside", "select"])
@pytest.mark.parametrize("kind", ["llama", "grok", "odd"])
def test_views_give_their_files_back(kind: str, how: str, tmp_path: Path) -> None:
    origin, root = content(kind, tmp_path), tmp_path / "v"
    torrent = tmp_path / "t.torrent"
    torrent.write_bytes(make_torrent(origin, piece_length=PIECE))
    match how:
        case "fetched":
            fetched(origin, root, codec="view", payload="keep")
        case "both":
            fetched(origin, tmp_path / "both", payload="keep")
            known = ViewOptions(torrent=tmp_path / "both/source/source.torrent")  # as `--layout both` does
            root = tmp_path / "both/view"
            make_view(tmp_path / "both/payload", root, known)
        case "torrent":
            make_view(origin, root, ViewOptions(torrent=torrent))
        case "beside":
            make_view(origin, root)
            shutil.copy(torrent, root)
        case _:
            chosen = {"llama": "norm", "grok": "decoder", "odd": "a"}[kind]
            make_view(origin, root, ViewOptions(torrent=torrent, select=(chosen,)))
    export(root, tmp_path / "out")
    assert tree_of(tmp_path / "out" / kind) == tree_of(origin)


def test_of_a_view_what_is_damaged_missing_or_not_known_is_said(tmp_path: Path) -> None:
    origin = content("llama", tmp_path)
    make_view(origin, tmp_path / "bare")
    with pytest.raises(RequestError, match=r"has no \.torrent file of its payload") as caught:
        export(tmp_path / "bare", tmp_path / "out")
    assert "gdist view --torrent" in caught.value.hint
    with WebSeed(tmp_path) as web, pytest.raises(RequestError) as caught:
        export(f"{web.url}bare", tmp_path / "out")
    assert "gdist view --torrent" in caught.value.hint
    fetched(origin, tmp_path / "v", codec="view", payload="keep")
    path = next((tmp_path / "v/payload").rglob("model-00002*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"piece \d \(in .*model-00002-of.* differs from the torrent"):
        export(tmp_path / "v", tmp_path / "out")
    path.unlink()
    with pytest.raises(RequestError, match="model-00002"):
        export(tmp_path / "v", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_parts_of_hosts_are_put_together(tmp_path: Path) -> None:
    origin = content("grok", tmp_path)
    for index in range(2):
        fetched(origin, tmp_path / str(index), mesh="2x4", host=f"{index}/2")
    with pytest.raises(
        RequestError, match=r"does not hold every byte.*written by a host whose part is not here"
    ):
        export(tmp_path / "0", tmp_path / "out")
    with pytest.raises(RequestError, match=r"has no source/source\.torrent"):
        export(tmp_path / "1", tmp_path / "out")
    export([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    assert tree_of(tmp_path / "out/grok") == tree_of(origin)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"select": ("norm",)}, r"model-00001-of-00002\.safetensors bytes 0-.*--select"),
        ({"dtype": "float32"}, "converted to float32"),
        ({"ignore": ("tokenizer/*",)}, r"tokenizer/vocab\.txt bytes 0-25000 .*left out"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    fetched(content("llama", tmp_path), tmp_path / "s", **changes)
    with pytest.raises(RequestError, match=what):
        export(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["payload", "safetensors"])
def test_what_is_refused_leaves_no_directory(to: str, tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), ml_dtypes.int4)})
    (tmp_path / "mine").mkdir()
    for place in ("out", "deep/er/out", "mine/out", "mine"):
        with pytest.raises(GdistError):
            export(tmp_path / "s", tmp_path / place, to=to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "s"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_store_that_does_not_know_its_torrent_says_so(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), np.float32)})
    with pytest.raises(RequestError, match=r"has no source/source\.torrent"):
        export(tmp_path / "s", tmp_path / "out")


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "rest", "asset"])
def test_damage_is_never_exported(harm: str, tmp_path: Path) -> None:
    fetched(content("llama", tmp_path), tmp_path / "s", mesh="2x4")
    path = tmp_path / "s/model.layers.1.mlp.up_proj.weight/c/0/0"
    if harm in ("rest", "asset"):
        path = tmp_path / "s" / ("source/rest.bin" if harm == "rest" else "assets/config.json")
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data[:-1] if harm == "cut" else data)
    if harm == "missing":
        path.unlink()
    with pytest.raises(CorruptError, match=r"pieces? .*differs? from the torrent"):
        export(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_destination_with_files_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), np.float32)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    for to in ("payload", "safetensors"):
        with pytest.raises(RequestError, match="is not empty"):
            export(tmp_path / "s", tmp_path / "out", to=to)


@pytest.mark.parametrize("place", ["out", "deep/er/out", "mine"])
def test_what_was_stopped_can_be_asked_for_again(place: str, tmp_path: Path) -> None:
    fetched(content("llama", tmp_path), tmp_path / "s")
    (tmp_path / "mine").mkdir()
    for most in (0, 30_000):  # in the first file, whose directory is made; where some are whole
        stop = threading.Event()

        def then(event: Event, most: int = most, stop: threading.Event = stop) -> None:
            assert isinstance(event, Exported)
            if event.nbytes > most:
                stop.set()

        with pytest.raises(InterruptedRun, match="asked to stop"):
            export(tmp_path / "s", tmp_path / place, observe=then, stop=stop)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "mine", "s"]
        assert not list((tmp_path / "mine").iterdir())
    export(tmp_path / "s", tmp_path / place)
    assert tree_of(tmp_path / place / "llama") == tree_of(tmp_path / "llama")


def test_a_file_is_no_destination(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), np.float32)})
    (tmp_path / "out").touch()
    for to in ("payload", "safetensors"):
        with pytest.raises(RequestError, match=r"is a file$") as caught:
            export(tmp_path / "s", tmp_path / "out", to=to)
        assert type(caught.value) is RequestError


def test_a_file_s_size_may_be_a_text_and_must_hold_something(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), np.float32), "x": np.zeros((4, 4), np.float32)})
    assert len(export(tmp_path / "s", tmp_path / "out", to="safetensors", file_bytes="64B").files) == 3
    for wrong in (-1, 0, "0", "much"):
        with pytest.raises(RequestError, match="file size"):
            export(tmp_path / "s", tmp_path / "no", to="safetensors", file_bytes=wrong)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_any_extent_is_read_as_it_was(codec: str, tmp_path: Path) -> None:
    origin = content("odd", tmp_path)
    fetched(origin, tmp_path / "s", codec=codec)
    data = b"".join(path.read_bytes() for path in sorted(origin.iterdir()))
    source = Rebuilder(tmp_path / "s")
    rng = np.random.default_rng(0)
    for _ in range(300):
        start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        stop = min(stop, start + int(rng.integers(1, 3000)))
        out = memoryview(bytearray(b"x" * (stop - start)))
        assert source.read(Extent(start, stop - start), out) == []
        assert bytes(out) == data[start:stop], (start, stop)
    source.close()


# --- safetensors ------------------------------------------------------------------------------------------


def read_back(root: Path) -> dict[str, Array]:
    found = {}
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                found[name] = file.get_tensor(name)
    return found


@pytest.mark.parametrize(("file_bytes", "files"), [(10**9, 1), (60_000, 6)])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_tensors_come_out_as_safetensors(file_bytes: int, files: int, codec: str, tmp_path: Path) -> None:
    expected = write_model(tmp_path / "llama")
    fetched(tmp_path / "llama", tmp_path / "s", mesh="2x4", codec=codec)
    recorder = Recorder()
    done = export(tmp_path / "s", tmp_path / "out", to="safetensors", file_bytes=file_bytes, observe=recorder)
    found = read_back(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
    written = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert (len(written) > 1) == (files > 1)
    index = tmp_path / "out/model.safetensors.index.json"
    assert index.exists() == (files > 1)
    if files > 1:
        assert all(path.stat().st_size < 80_000 for path in (tmp_path / "out").glob("*.safetensors"))
        about = json.loads(index.read_text())
        assert about["metadata"]["total_size"] == sum(array.nbytes for array in expected.values())
        for name, file in about["weight_map"].items():
            with safe_open(tmp_path / "out" / file, "np") as opened:
                assert name in opened.keys()  # noqa: SIM118
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "llama/config.json").read_bytes()
    assert recorder.of(Exported)[-1].nbytes == done.nbytes


def test_scalars_and_empty_tensors_are_exported(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "scalar": np.array(7.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False, True]),
        "fp8": np.arange(6).astype(ml_dtypes.float8_e4m3fn).reshape(2, 3),
    }
    write_store(tmp_path / "s", arrays)
    export(tmp_path / "s", tmp_path / "out", to="safetensors")
    raw = (tmp_path / "out/model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, array in arrays.items():
        start, stop = header[name]["data_offsets"]
        assert raw[8 + length + start : 8 + length + stop] == array.tobytes(), name
        assert header[name]["shape"] == list(array.shape)


def test_a_type_that_safetensors_lacks_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), ml_dtypes.int4)})
    with pytest.raises(UnsupportedError, match=r"'w' \(int4\)"):
        export(tmp_path / "s", tmp_path / "out", to="safetensors")


def test_a_damaged_chunk_is_not_exported_as_safetensors(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"w": np.ones((64, 64), np.float32)}, chunk_bytes=1024)
    path = tmp_path / "s/w/c/0/0"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="differs from its digest"):
        export(tmp_path / "s", tmp_path / "out", to="safetensors")
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_store_names_who_has_the_rest(tmp_path: Path) -> None:
    origin = content("llama", tmp_path)
    for index in range(2):
        fetched(origin, tmp_path / "s", mesh="2x4", host=f"{index}/2")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "s/gdist.host-00001-of-00002.json").unlink()
    with pytest.raises(RequestError, match="host 1"):
        export(tmp_path / "s", tmp_path / "out", to="safetensors")


# --- under other names ------------------------------------------------------------------------------------


def loaded(directory: Path) -> dict[str, Array]:
    """All tensors below a directory, as the safetensors library reads them."""
    found: dict[str, Array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    return found


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("file_bytes", [10**9, 50_000])
def test_a_renaming_table_gives_other_names(tmp_path: Path, codec: str, file_bytes: int) -> None:
    old = dict(llama_tree(layers=11))
    write_store(tmp_path / "s", old, mesh="2x4", rules=named_rules("llama"), chunk_bytes=512, codec=codec)
    export(tmp_path / "s", tmp_path / "o", to="safetensors", rename="hf-maxtext", file_bytes=file_bytes)
    found = loaded(tmp_path / "o")
    assert len(found) == 12
    downs = [old[f"model.layers.{layer}.mlp.down_proj.weight"].T for layer in range(11)]
    norms = [old[f"model.layers.{layer}.input_layernorm.weight"] for layer in range(11)]
    same_bits(found["params.decoder.layers.mlp.wo.kernel"], np.stack(downs, 1))
    same_bits(found["params.decoder.layers.pre_self_attention_layer_norm.scale"], np.stack(norms, 1))
    same_bits(found["params.decoder.logits_dense.kernel"], old["lm_head.weight"].T)
    if file_bytes < 10**9:
        index = json.loads((tmp_path / "o/model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == found.keys()


def same_bits(found: Array, expected: Array) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_metas_names_go_to_hugging_faces_and_on_to_flax(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    old = {META[role]: rng.standard_normal(shape).astype(np.float32) for role, shape in SHAPES.items()}
    write_store(tmp_path / "s", old)
    export(tmp_path / "s", tmp_path / "hf", to="safetensors", rename="llama-hf-names")
    found = loaded(tmp_path / "hf")
    assert found.keys() == set(HUGGING_FACE.values())
    for role, name in HUGGING_FACE.items():
        same_bits(found[name], old[META[role]])
    write_store(tmp_path / "t", found)
    export(tmp_path / "t", tmp_path / "flax", to="safetensors", rename="hf-flax")
    flax = loaded(tmp_path / "flax")
    same_bits(flax["params.model.layers.0.self_attn.k_proj.kernel"], old[META["key"]].T)


def test_a_table_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"a": np.ones(3, np.float32)})
    with pytest.raises(RequestError, match="the torrent's own files have the names that they have"):
        export(tmp_path / "s", tmp_path / "o", rename="hf-flax")
    with pytest.raises(RequestError, match="'hf-flax' has no rule for 1 tensors: a"):
        export(tmp_path / "s", tmp_path / "o", to="safetensors", rename="hf-flax")
    with pytest.raises(RequestError, match="'absent' is no table"):
        export(tmp_path / "s", tmp_path / "o", to="safetensors", rename="absent")
    assert tree_of(tmp_path / "o") == {}
