"""What a view consists of beside the payload: the index, what other readers look for, the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gdist.core.orbax import orbax_documents
from gdist.core.store_manifest import MANIFEST_NAME, StoreManifest, store_manifest_to_json
from gdist.core.view import Entry
from gdist.core.view_entries import view_entries
from gdist.durable import write_atomically
from gdist.views.ocdbt import next_state, write_ocdbt
from gdist.views.references import (
    JSON_NAME,
    PARQUET_NAME,
    parquet_files,
    references_json,
    write_references,
)


def write_index(root: Path, entries: Iterable[Entry]) -> None:
    """The index with these entries; who has an earlier one open sees the new one.

    Raises:
        GdistError: translated from what the file system said.
    """
    uuid, generation = next_state(root)
    write_ocdbt(root, entries, uuid=uuid, generation=generation)


def small_documents(manifest: StoreManifest, location: str) -> Iterator[tuple[str, bytes]]:
    """What lies beside the index, by path below the root: references, then what makes it an Orbax checkpoint.

    `location` is where the references say that the root is.
    """
    entries = tuple(view_entries(manifest))
    yield JSON_NAME, references_json(entries, location)
    yield from ((f"{PARQUET_NAME}/{path}", data) for path, data in parquet_files(entries))
    yield from orbax_documents((tensor.name for tensor in manifest.tensors), ocdbt=True).items()


def document_faults(
    read: Callable[[str], bytes | None], documents: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[str, str]]:
    """Those of some documents that are wrong, and what is; `read` gives a file of the store, or None."""
    for path, expected in documents:
        found = read(path)
        if found != expected:
            yield path, "is missing" if found is None else "is not what follows from the store's manifest"


def write_documents(root: Path, manifest: StoreManifest) -> None:
    """All of it, and last the manifest: the view is complete.

    Raises:
        GdistError: translated from what the file system said.
    """
    entries = tuple(view_entries(manifest))
    write_index(root, entries)
    write_references(root, entries)
    for name, data in orbax_documents((tensor.name for tensor in manifest.tensors), ocdbt=True).items():
        write_atomically(root / name, data)
    write_atomically(root / MANIFEST_NAME, store_manifest_to_json(manifest))
