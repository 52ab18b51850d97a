"""What tests of the collective exchange need: odd tensors, stores fetched both ways, and their comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gdist.core.dtypes import BY_SAFETENSORS
from gdist.core.mesh import Mesh, parse_mesh
from gdist.run.collective import fetch_shares
from gdist.run.fetch import fetch
from gdist.testing.fetches import fetch_options, tree_of

Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type


def odd_tensors() -> dict[str, Array]:
    """Random bits of every type that safetensors have, in shapes that few numbers of hosts divide."""
    rng = np.random.default_rng(3)
    shapes = [(), (1,), (7,), (24, 5), (3, 16, 11), (0, 4), (2, 3, 4, 5), (13, 8)]
    found = {}
    for number, (name, dtype) in enumerate(BY_SAFETENSORS.items()):
        kind = np.dtype(getattr(ml_dtypes, dtype.name) if dtype.needs_ml_dtypes else dtype.name)
        shape = shapes[number % len(shapes)]
        data = rng.integers(0, 2 if kind == np.bool_ else 256, int(np.prod(shape)) * kind.itemsize, np.uint8)
        found[f"odd.{name.lower()}"] = data.view(kind).reshape(shape)
    # Larger than the least block of a share: cut among hosts, in rows of odd lengths.
    found["cut.rows"] = rng.integers(0, 256, (48, 5000), np.uint8)
    found["cut.cube"] = rng.standard_normal((2, 36, 1500)).astype(ml_dtypes.bfloat16)
    found["cut.words"] = rng.standard_normal((144, 400))
    return found


def fetch_both(
    magnet: str, root: Path, count: int, mesh: str | Mesh, **changes: Any
) -> Iterator[tuple[int, Path, Path]]:
    """For each host: its number, a store that a fetch wrote, and a destination that has its shares."""
    for index in range(count):
        cut = parse_mesh(mesh) if isinstance(mesh, str) else mesh
        options = replace(fetch_options(host=f"{index}/{count}"), mesh=cut, **changes)
        plain, dest = root / f"plain{index}", root / f"moved{index}"
        fetch(magnet, plain, options)
        fetch_shares(magnet, dest, options)
        yield index, plain, dest


def assert_same(plain: Path, moved: Path) -> None:
    """That two stores are the same to the byte: shards, documents, assets, manifest."""
    first, second = tree_of(plain), tree_of(moved)
    assert first.keys() == second.keys()
    differ = [name for name, data in first.items() if second[name] != data]
    assert not differ
