"""Checkpoints of torch through a real swarm: tied and strided tensors, and the identical file back."""

from __future__ import annotations

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from gdist.core.magnet import format_magnet
from gdist.errors import CorruptError
from gdist.run.export import export
from gdist.run.fetch import fetch
from gdist.run.verify import verify
from gdist.testing.fetches import Array, assert_holds, fetch_options, tree_of
from gdist.testing.swarm import seed

pytestmark = pytest.mark.torrent

PIECE = 1 << 14


def write_model(path: Path, *, legacy: bool = False) -> dict[str, Array]:
    """A model with tied, transposed, sliced, expanded and overlapping tensors, over many pieces."""
    torch.manual_seed(1)
    base = torch.randn(96, 160)
    tree = {
        "embed": base,
        "head": base,
        "transposed": base.t(),
        "rows": base[16:48],
        "columns": base[:, 40:80],
        "expanded": torch.randn(1, 64).expand(8, 64),
        "windows": torch.as_strided(torch.randn(500), (50, 20), (9, 1)),
        "half": torch.randn(70, 33).to(torch.bfloat16),
        "mask": torch.randn(9, 9) > 0,
        "scale": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    path.parent.mkdir(parents=True)
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    expected: dict[str, Array] = {}
    for name, tensor in tree.items():
        plain = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        expected[name] = plain.astype(ml_dtypes.bfloat16) if name == "half" else plain
    return expected


@pytest.mark.parametrize("mesh", ["1", "2x4"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_checkpoint_is_fetched_and_given_back(legacy: bool, mesh: str, tmp_path: Path) -> None:
    expected = write_model(tmp_path / "from/model.pth", legacy=legacy)
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(mesh))
    assert_holds(tmp_path / "s", expected)
    assert verify(tmp_path / "s").ok
    export(tmp_path / "s", tmp_path / "back", to="payload")
    assert tree_of(tmp_path / "back/from") == tree_of(tmp_path / "from")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_was_computed_is_checked_as_the_bytes_arrive(legacy: bool, tmp_path: Path) -> None:
    """A local header, or a count, that disagrees: no scan of the ends sees it, the fetch does."""
    path = tmp_path / "from/model.pth"
    path.parent.mkdir()
    torch.save(
        {name: torch.randn(64, 1024) for name in "xyz"}, path, _use_new_zipfile_serialization=not legacy
    )
    data = bytearray(path.read_bytes())
    at = data.rindex(struct.pack("<q", 64 * 1024)) if legacy else data.index(b"model/data/1")
    data[at] ^= 1
    path.write_bytes(data)
    with (
        seed(path.parent, piece_length=PIECE) as seeded,
        pytest.raises(CorruptError, match=r"model\.pth is not what"),
    ):
        fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options())
    assert not (tmp_path / "s/gdist.json").exists(), "a store that lies is not whole"


def test_hosts_share_a_checkpoint(tmp_path: Path) -> None:
    expected = write_model(tmp_path / "from/model.pth")
    with seed(tmp_path / "from", piece_length=PIECE) as seeded:
        for index in range(2):
            fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options("2x4", f"{index}/2"))
    assert_holds(tmp_path / "s", expected)
    assert np.array_equal(expected["head"], expected["embed"])
