"""Headers are found by fetching the pieces that hold them, all files at once, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gdist.errors import CorruptError, NoPeersError, UnsupportedError
from gdist.run.headers import FileReport, HeaderScan
from gdist.sources.torrent import TorrentSource
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.swarm import LOOPBACK, seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


@contextmanager
def opened(root: Path, scratch: Path) -> Iterator[TorrentSource]:
    with seed(root, piece_length=PIECE) as seeded:
        source = TorrentSource(seeded.magnet, LOOPBACK)
        try:
            source.open(scratch)
            yield source
        finally:
            source.close()


def reports_of(source: TorrentSource) -> tuple[HeaderScan, dict[str, FileReport]]:
    scan = HeaderScan(source)
    files = source.payload.files
    reports = scan.run(range(len(files)))
    return scan, {files[number].path: report for number, report in reports.items()}


def test_only_pieces_with_headers_are_fetched(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"w{number}": rng.random((256, 512), dtype=np.float32) for number in range(4)}
    write_safetensors(tmp_path / "m", tensors, shards=2, index=False)
    with opened(tmp_path / "m", tmp_path / "to") as source:
        scan, reports = reports_of(source)
        runs = [source.payload.pieces_of(file.extent) for file in source.payload.files]
        ends = {piece for run in runs for piece in (run[0], run[-1])}
        assert scan.arrived <= ends, "the first and last piece of each file"
        assert source.payload.pieces > 100
    assert [len(report.arrays) for report in reports.values()] == [2, 2]


def test_arrays_in_the_middle_of_a_file_are_found(tmp_path: Path) -> None:
    tree = {f"w{number}": np.full((100, 1000), number, np.float32) for number in range(3)}
    (tmp_path / "m").mkdir()
    (tmp_path / "m/tree.pkl").write_bytes(pickle.dumps(tree, 4))
    with opened(tmp_path / "m", tmp_path / "to") as source:
        scan, reports = reports_of(source)
        assert len(scan.arrived) < source.payload.pieces / 4
    assert [array.key for array in reports["tree.pkl"].arrays] == list(tree)


def test_every_file_is_told_for_what_it_is(tmp_path: Path) -> None:
    write_grok1(tmp_path / "m", layers=1, emb=16, ffn=16, kv=8, vocab=16)
    (tmp_path / "m/README.md").write_bytes(b"read me")
    (tmp_path / "m/empty").write_bytes(b"")
    (tmp_path / "m/x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    with opened(tmp_path / "m", tmp_path / "to") as source:
        scan, reports = reports_of(source)
        files = {file.path: number for number, file in enumerate(source.payload.files)}
        assert scan.fetch(files["README.md"]) == b"read me"
        assert scan.fetch(files["empty"]) == b""
    assert reports["README.md"] == reports["empty"] == FileReport()
    foreign = reports["x.h5"].foreign
    assert foreign is not None and foreign.what == "an HDF5 file"
    assert all(report.format == "pickle" for path, report in reports.items() if path.startswith("ckpt-0"))


@pytest.mark.parametrize("content", [pickle.dumps(print, 4), b"\x80\x04\x95"])
def test_an_error_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m/below").mkdir(parents=True)
    (tmp_path / "m/below/bad").write_bytes(content)
    (tmp_path / "m/good").write_bytes(pickle.dumps(np.ones(3), 4))
    with opened(tmp_path / "m", tmp_path / "to") as source:
        with pytest.raises((UnsupportedError, CorruptError), match=r"^below/bad: ") as caught:
            reports_of(source)
        assert caught.value.file == "below/bad"


def test_a_swarm_that_goes_away_is_told(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m", emb=16, vocab=32)
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        torrent = seeded.torrent
    source = TorrentSource(torrent, replace(LOOPBACK, stall_seconds=0.5))
    try:
        source.open(tmp_path / "to")
        with pytest.raises(NoPeersError, match="pieces are wanted"):
            reports_of(source)
    finally:
        source.close()


def test_a_wait_can_be_ended(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def tick() -> None:
        raise Enough

    write_safetensors(tmp_path / "m", emb=16, vocab=32)
    with seed(tmp_path / "m", piece_length=PIECE) as seeded:
        torrent = seeded.torrent
    source = TorrentSource(torrent, LOOPBACK)
    try:
        source.open(tmp_path / "to")
        with pytest.raises(Enough):
            HeaderScan(source, tick).run([0])
    finally:
        source.close()
