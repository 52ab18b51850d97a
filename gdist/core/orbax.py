"""The documents that make a directory of Zarr v3 arrays an Orbax checkpoint.

Orbax keeps a tree's arrays as one Zarr array each, in a directory named by the leaf's path joined with
".", and the tree itself in `_METADATA`. Since gdist names tensors by the same rule, its store needs two
more files, and Orbax 0.12 restores it unmodified:

    STORE/_METADATA             the tree, and how the arrays are stored
    STORE/commit_success.txt    that the checkpoint is whole; it must appear last
    STORE/NAME/zarr.json ...    the arrays, as they are

`store_array_data_equal_to_fill_value` says that no chunk was left out because it held only fill values;
Orbax then fails on a missing shard instead of filling it. Every leaf is declared `np.ndarray`: a leaf
declared `jax.Array` would want a record of shardings that no mesh of gdist's wrote. A caller who gives
`jax.ShapeDtypeStruct` targets still gets `jax.Array` leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gdist.errors import CorruptError

METADATA = "_METADATA"
COMMIT_MARKER = "commit_success.txt"  # Orbax's CommitFileTemporaryPath; what object stores go by

_DICT_KEY = 2  # Orbax's KeyType.DICT


def orbax_documents(names: Iterable[str], *, ocdbt: bool = False) -> dict[str, bytes]:
    """Contents of the files beside the arrays of these names, by file name, in the order to write them.

    The tree has a level per part between dots, `layers.0.weight` being `{"layers": {"0": {"weight"`,
    unless `tree_paths` keeps it flat. The order of leaves is that of `names`. With `ocdbt` the arrays are
    keys of one OCDBT database in the directory, as those of a view are.
    """
    leaves = {
        str(path): {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in path],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
        for path in tree_paths(names).values()
    }
    metadata = {
        "tree_metadata": leaves,
        "use_ocdbt": ocdbt,
        "use_zarr3": True,
        _DENSE: True,
        "custom_metadata": None,
    }
    return {
        METADATA: json.dumps(metadata, indent=1).encode(),
        COMMIT_MARKER: b"Checkpoint commit was successful\n",
    }


def tree_paths(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The keys that lead to each name's leaf: its parts between dots.

    Where one name's parts begin another's (`a` and `a.b`), a leaf would have to be a branch as well; the
    whole tree is then flat, one key a name. Either way the keys joined by "." are the name.
    """
    paths = {name: tuple(name.split(".")) for name in names}
    branches = {path[:depth] for path in paths.values() for depth in range(1, len(path))}
    if branches.isdisjoint(paths.values()):
        return paths
    return {name: (name,) for name in paths}


@dataclass(frozen=True, slots=True)
class OrbaxTree:
    """What a checkpoint's `_METADATA` says: the names of its arrays, and how they are stored.

    `strange` are leaves that are no arrays, with their kinds; empty branches are left out. Where not `dense`,
    a chunk that is not there holds only its fill value.
    """

    names: tuple[str, ...]
    strange: tuple[tuple[str, str], ...]
    zarr3: bool
    dense: bool


_ARRAYS = ("jax.Array", "np.ndarray", "scalar")
_DENSE = "store_array_data_equal_to_fill_value"


def parse_orbax_tree(data: bytes, where: str) -> OrbaxTree:
    """Reads a `_METADATA` document. Names are as found: they are to be checked before they become paths.

    Raises:
        CorruptError: when it is none; `where` names it.
    """
    try:
        document: Any = json.loads(data)  # Any: checked field by field, all faults become one error
        leaves: dict[str, str] = {}
        for entry in document["tree_metadata"].values():
            name = ".".join(str(key["key"]) for key in entry["key_metadata"])
            value = entry["value_metadata"]
            if value.get("skip_deserialize"):
                continue
            if name in leaves:
                raise ValueError(f"{name!r} is there twice")
            leaves[name] = str(value["value_type"])
        zarr3, dense = bool(document.get("use_zarr3")), bool(document.get(_DENSE))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{where} is no Orbax metadata: {str(error)[:200]!r}", file=where) from error
    names = tuple(name for name, kind in leaves.items() if kind in _ARRAYS)
    strange = tuple((name, kind) for name, kind in leaves.items() if kind not in _ARRAYS)
    return OrbaxTree(names, strange, zarr3, dense)
