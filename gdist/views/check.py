"""Whether the index of a view is the one that its manifest describes, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gdist.core.view import Entry
from gdist.views.ocdbt import MANIFEST, nodes_path
from gdist.views.ocdbt_format import encode_database, parse_state

_TIME = slice(
    -13, -5
)  # of the newest state, in nanoseconds: before the empty list of older nodes and the checksum


def index_faults(read: Callable[[str], bytes | None], entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Files of the index that are wrong, and what is; `read` gives a file below the view's root, or None."""
    manifest = read(MANIFEST)
    state = parse_state(manifest) if manifest is not None else None
    if manifest is None or state is None:
        yield MANIFEST, "is missing" if manifest is None else "is damaged, or no index of gdist's"
        return
    uuid, generation = state
    path = nodes_path(uuid, generation)
    when = int.from_bytes(manifest[_TIME], "little")
    nodes, expected = encode_database(entries, path, uuid=uuid, generation=generation, commit_ns=when)
    if manifest != expected:
        yield MANIFEST, "is another index than the store's manifest describes"
    found = read(path)
    if found != nodes:
        yield path, "is missing" if found is None else "is another index than the store's manifest describes"
