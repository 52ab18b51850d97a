"""What TensorStore finds in databases that we encode, and whoever has one open while it is replaced."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.view import Entry
from gdist.errors import GdistError
from gdist.views.ocdbt import EARLIER, MANIFEST, next_state, write_ocdbt
from gdist.views.ocdbt_format import ARITY, INLINE_BYTES, encode_database, parse_state

UUID = bytes(range(16))
FILES = {"payload/a": bytes(range(256)), "payload/sub dir/b%20#é": os.urandom(300), "payload/b": b"x"}

_names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
_inline = st.binary(max_size=9) | st.integers(INLINE_BYTES - 1, INLINE_BYTES + 1).map(bytes)


@st.composite
def _runs(draw: st.DrawFn) -> tuple[str, int, int]:
    path = draw(st.sampled_from(sorted(FILES)))
    offset = draw(st.integers(0, len(FILES[path]) - 1))
    return path, offset, draw(st.integers(1, len(FILES[path]) - offset))


def entry_of(key: str, value: bytes | tuple[str, int, int]) -> Entry:
    return Entry(key, value) if isinstance(value, bytes) else Entry(key, None, *value)


def value_of(value: bytes | tuple[str, int, int]) -> bytes:
    if isinstance(value, bytes):
        return value
    path, offset, nbytes = value
    return FILES[path][offset : offset + nbytes]


def open_database(root: Path, **more: object) -> Any:
    return ts.KvStore.open({"driver": "ocdbt", "base": f"file://{root}/", **more}).result()


def write_files(root: Path) -> None:
    for path, content in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


@settings(max_examples=60)
@given(
    values=st.dictionaries(_names, _inline | _runs(), min_size=1, max_size=40),
    arity=st.sampled_from([2, 3, 7, ARITY]),
    generation=st.integers(1, 2**40),
)
def test_tensorstore_reads_every_value(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], arity: int, generation: int
) -> None:
    root = tmp_path_factory.mktemp("database")
    write_files(root)
    entries = [entry_of(key, value) for key, value in values.items()]
    nodes, manifest = encode_database(
        entries, "d/00", uuid=UUID, generation=generation, commit_ns=1, arity=arity
    )
    (root / "d").mkdir()
    (root / "d" / "00").write_bytes(nodes)
    (root / MANIFEST).write_bytes(manifest)
    store = open_database(root)
    assert sorted(store.list().result()) == sorted(key.encode() for key in values)
    for key, value in values.items():
        assert store.read(key.encode()).result().value == value_of(value), key
    assert parse_state(manifest) == (UUID, generation)


def test_statistics_are_those_that_tensorstore_would_write(tmp_path: Path) -> None:
    """Its own database of the same values counts the same keys; a dump of ours names every byte of it."""
    write_files(tmp_path)
    entries = [Entry(f"w/c/{i}", None, "payload/a", i % 200, 50) for i in range(100)]
    entries += [Entry("w/zarr.json", b"{}"), Entry("zarr.json", bytes(INLINE_BYTES + 1))]
    nodes, manifest = encode_database(entries, "d/00", uuid=UUID, generation=3, commit_ns=10**9, arity=8)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "00").write_bytes(nodes)
    (tmp_path / MANIFEST).write_bytes(manifest)
    base = ts.KvStore.open(f"file://{tmp_path}/").result()
    shown = ts.ocdbt.dump(base).result()
    assert shown["config"]["uuid"] == UUID.hex()
    (version,) = shown["versions"]
    root = version["root"]
    assert (version["generation_number"], version["root_height"]) == (3, 2)
    assert root["statistics"] == {
        "num_keys": 102,
        "num_tree_bytes": len(nodes) - INLINE_BYTES - 1,
        "num_indirect_value_bytes": 100 * 50 + INLINE_BYTES + 1,
    }
    below = ts.ocdbt.dump(base, node=root["location"]).result()
    assert [entry["statistics"]["num_keys"] for entry in below["entries"]] == [64, 38]


def test_a_database_of_many_keys_has_several_leaves(tmp_path: Path) -> None:
    write_files(tmp_path)
    keys = [f"layers.{i // 100}.w/c/{i % 100}/0" for i in range(3 * ARITY)]
    write_ocdbt(
        tmp_path, (Entry(k, None, "payload/a", 7, 9) for k in reversed(keys)), uuid=UUID, generation=1
    )
    store = open_database(tmp_path)
    assert sorted(store.list().result()) == sorted(key.encode() for key in keys)
    below = ts.KvStore.KeyRange("layers.4.w/", "layers.4.w0")
    assert len(store.list(below).result()) == 100
    assert store.read(keys[-1]).result().value == FILES["payload/a"][7:16]


def test_an_open_reader_goes_on_with_the_new_keys(tmp_path: Path) -> None:
    write_files(tmp_path)
    entries = [Entry("k0", None, "payload/a", 0, 4)]
    readers = []
    for generation in range(1, 40):
        uuid, following = next_state(tmp_path)
        assert following == generation
        write_ocdbt(tmp_path, entries, uuid=uuid, generation=following)
        readers.append(open_database(tmp_path))
        for store in readers:
            assert len(store.list().result()) == generation
            assert store.read(f"k{generation - 1}").result().value == FILES["payload/a"][generation - 1 :][:4]
        entries.append(Entry(f"k{generation}", None, "payload/a", generation, 4))


def test_nodes_of_the_latest_states_stay_and_older_ones_go(tmp_path: Path) -> None:
    for generation in range(1, EARLIER + 4):
        write_ocdbt(tmp_path, [Entry("k", b"v")], uuid=UUID, generation=generation)
    stranger = tmp_path / "d" / ("ab" * 16)  # what somebody wrote through TensorStore
    stranger.write_bytes(b"")
    write_ocdbt(tmp_path, [Entry("k", b"v")], uuid=UUID, generation=EARLIER + 4)
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert names == [f"{UUID.hex()[:16]}{n:016x}" for n in range(4, EARLIER + 5)] + [stranger.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", MANIFEST]


def test_what_is_written_through_tensorstore_stays_out_of_the_payload(tmp_path: Path) -> None:
    write_files(tmp_path)
    write_ocdbt(tmp_path, [Entry("k", None, "payload/a", 0, 4)], uuid=UUID, generation=6)
    open_database(tmp_path).write("k", b"other" * 100).result()
    assert (tmp_path / "payload/a").read_bytes() == FILES["payload/a"]
    assert open_database(tmp_path, version=6).read("k").result().value == FILES["payload/a"][:4]
    assert next_state(tmp_path) == (UUID, 8)


def test_a_payload_file_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    """A missing one gives an empty value, which the readers of arrays refuse: see `test_stock_readers`."""
    write_files(tmp_path)
    write_ocdbt(tmp_path, [Entry("k", None, "payload/a", 250, 6)], uuid=UUID, generation=1)
    (tmp_path / "payload/a").write_bytes(bytes(255))
    with pytest.raises(ValueError, match=r"\[250, 256\) is not valid"):
        open_database(tmp_path).read("k").result()


def test_a_damaged_manifest_is_no_state(tmp_path: Path) -> None:
    _, manifest = encode_database([Entry("k", b"v")], "d/00", uuid=UUID, generation=300, commit_ns=1)
    assert parse_state(manifest) == (UUID, 300)
    for damaged in (b"", manifest[:20], manifest[:-1], manifest[:40] + b"\1" + manifest[41:]):
        assert parse_state(damaged) is None
    (tmp_path / MANIFEST).write_bytes(manifest[:20])
    uuid, generation = next_state(tmp_path)
    assert uuid != UUID and generation == 1


@pytest.mark.parametrize("path", ["../a", "/a", "a//b", "./a", ""])
def test_paths_that_leave_the_root_are_never_written(path: str) -> None:
    with pytest.raises(AssertionError, match="below a root"):
        encode_database([Entry("k", None, path, 0, 1)], "d/00", uuid=UUID, generation=1, commit_ns=1)


def test_a_manifest_that_cannot_be_replaced_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    (tmp_path / MANIFEST / "x").touch()
    with pytest.raises(GdistError):
        write_ocdbt(tmp_path, [Entry("k", b"v")], uuid=UUID, generation=1)


def test_every_header_says_version_0_uncompressed_and_its_length() -> None:
    nodes, manifest = encode_database([Entry("k", b"v")], "d/00", uuid=UUID, generation=1, commit_ns=1)
    for envelope, magic in ((nodes, 0x0CDB20DE), (manifest, 0x0CDB3A2A)):
        assert struct.unpack_from(">I", envelope) == (magic,)
        assert struct.unpack_from("<QBB", envelope, 4) == (len(envelope), 0, 0)
