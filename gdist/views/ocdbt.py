"""An OCDBT index on the disk: what TensorStore and Orbax open.

    ROOT/manifest.ocdbt             names the newest state; replaced atomically, last
    ROOT/d/<16 hex><16 hex>         its nodes: one file a generation, named by identity and generation

A reader that has the index open looks at the manifest again for every read that may be of a newer time. It
goes on with the new keys when the identity is the same and the generation higher; so `next_state` keeps the
one and raises the other. The nodes of some states before stay, for reads that are on their way.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gdist.core.view import Entry
from gdist.durable import write_atomically
from gdist.errors import translate
from gdist.views.ocdbt_format import encode_database, parse_state

MANIFEST = "manifest.ocdbt"
# States whose nodes stay: from the manifest to a leaf a reader makes three requests, maybe over a slow link.
EARLIER = 8


def next_state(root: Path) -> tuple[bytes, int]:
    """Identity and generation for the next index at a root: what is there, one further, or something new."""
    try:
        state = parse_state((root / MANIFEST).read_bytes())
    except FileNotFoundError:
        state = None
    except OSError as error:
        raise translate(error, f"reading {root / MANIFEST}") from error
    return (state[0], state[1] + 1) if state else (secrets.token_bytes(16), 1)


def nodes_path(uuid: bytes, generation: int) -> str:
    """Where the nodes of a state lie."""
    return f"d/{uuid.hex()[:16]}{generation:016x}"


def write_ocdbt(root: Path, entries: Iterable[Entry], *, uuid: bytes, generation: int) -> None:
    """Puts an index of these entries in place of the one that was there.

    Whoever opens `root`, at any moment and after any crash, finds the old index whole or the new one.

    Raises:
        GdistError: translated from what the file system said.
    """
    path = nodes_path(uuid, generation)
    commit_ns = time.time_ns()
    nodes, manifest = encode_database(entries, path, uuid=uuid, generation=generation, commit_ns=commit_ns)
    write_atomically(root / path, nodes)
    write_atomically(root / MANIFEST, manifest)
    oldest = nodes_path(uuid, max(generation - EARLIER, 0))
    for old in (root / "d").glob(f"{uuid.hex()[:16]}*"):
        if f"d/{old.name}" < oldest:
            with suppress(OSError):  # what stays is only in nobody's way
                old.unlink()
