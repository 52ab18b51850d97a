"""The bytes outside tensors are gathered exactly, from pieces in any order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.box import Box
from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.tensor import FoundArray, Part, StoredTensor, TensorSpec
from gdist.errors import CorruptError
from gdist.formats import drive
from gdist.run.collect import Collector
from gdist.run.headers import FileReport, identify
from gdist.testing.checkpoints import write_grok1, write_safetensors


def payload_of(lengths: list[int], piece_length: int) -> Payload:
    files, position = [], 0
    for number, length in enumerate(lengths):
        files.append(PayloadFile(f"f{number}", position, length))
        position += length
    return Payload(tuple(files), piece_length, position)


def tensor(name: str, extent: Extent) -> StoredTensor:
    spec = TensorSpec(name, (extent.length,), BY_NAME["int8"])
    return StoredTensor(spec, (Part(extent, Box.whole(spec.shape)),))


def gather(collector: Collector, payload: Payload, data: bytes, order: list[int]) -> list[int]:
    whole = []
    for piece in order:
        if collector.wants(piece):
            extent = payload.extent_of(piece)
            whole += collector.add(piece, collector.take(piece, memoryview(data)[extent.start : extent.stop]))
    return whole


@given(st.data())
def test_assets_are_gathered_whole_in_any_order(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum))
    payload = payload_of(lengths, data.draw(st.integers(1, 30)))
    content = random.Random(1).randbytes(payload.length)
    wanted = data.draw(st.sets(st.sampled_from(range(len(lengths)))))
    collector = Collector(payload, [], wanted)
    needed = {p for file in wanted for p in payload.pieces_of(payload.files[file].extent)}
    assert set(collector.pieces) == needed
    whole = gather(collector, payload, content, data.draw(st.permutations(range(payload.pieces))))
    assert sorted([*whole, *collector.empty_files()]) == sorted(wanted)
    assert collector.pieces == ()
    for file in wanted:
        extent = payload.files[file].extent
        assert collector.pop(file) == content[extent.start : extent.stop]


@given(st.data())
def test_only_what_is_outside_tensors_is_wanted(data: st.DataObject) -> None:
    payload = payload_of([100, 60], data.draw(st.integers(1, 30)))
    start = data.draw(st.integers(0, 100))
    inside = Extent(start, data.draw(st.integers(0, 100 - start)))
    collector = Collector(payload, [tensor("t", inside)], [0])
    outside = {
        piece
        for piece in range(payload.pieces)
        if any(byte < 100 and not inside.start <= byte < inside.stop for byte in _bytes(payload, piece))
    }
    assert set(collector.pieces) == outside
    assert collector.empty_files() == ([] if outside else [0])
    order = data.draw(st.permutations(range(payload.pieces)))
    assert gather(collector, payload, bytes(160), order) == ([0] if outside else [])


def _bytes(payload: Payload, piece: int) -> range:
    extent = payload.extent_of(piece)
    return range(extent.start, extent.stop)


def files_of(root: Path, kind: str) -> list[Path]:
    if kind == "grok":
        write_grok1(root, layers=1, emb=16, ffn=16, kv=8, vocab=16)
    else:
        write_safetensors(root, emb=16, vocab=32, index=False)
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["grok", "safetensors"])
def test_headers_alone_give_the_same_arrays_as_the_files(kind: str, tmp_path: Path) -> None:
    paths = files_of(tmp_path, kind)
    payload = payload_of([path.stat().st_size for path in paths], 100)
    content = b"".join(path.read_bytes() for path in paths)
    found: dict[int, tuple[FoundArray, ...]] = {}
    tensors = []
    for number, file in enumerate(payload.files):
        data = content[file.offset : file.offset + file.length]

        def read(extent: Extent, data: bytes = data) -> bytes:
            return data[extent.start : extent.stop]

        found[number] = drive(identify(file.length, FileReport()), read)
        tensors += [tensor(f"{number}.{a.role}.{a.key}", a.extent.shift(file.offset)) for a in found[number]]
    collector = Collector(payload, tensors, range(len(paths)))
    order = random.Random(2).sample(range(payload.pieces), payload.pieces)
    assert sorted(gather(collector, payload, content, order)) == list(range(len(paths)))
    for number in found:
        assert collector.scan(number) == found[number]


def test_headers_that_are_none_name_the_file() -> None:
    payload = payload_of([50], 20)
    collector = Collector(payload, [tensor("t", Extent(20, 10))], [0])
    gather(collector, payload, b"\x80\x04\xff" + bytes(47), [2, 1, 0])
    with pytest.raises(CorruptError, match="f0 is not what the manifest says"):
        collector.scan(0)
