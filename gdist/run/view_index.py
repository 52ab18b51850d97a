"""What a view consists of beside the payload: the index, what other readers look for, the manifest."""

from __future__ import annotations

from pathlib import Path

from gdist.core.orbax import orbax_documents
from gdist.core.store_manifest import MANIFEST_NAME, StoreManifest, store_manifest_to_json
from gdist.core.view_entries import view_entries
from gdist.durable import write_atomically
from gdist.views.ocdbt import next_state, write_ocdbt
from gdist.views.references import write_references


def write_index(root: Path, manifest: StoreManifest) -> None:
    """The index of the tensors of a manifest; who has an earlier one open sees the new one.

    Raises:
        GdistError: translated from what the file system said.
    """
    uuid, generation = next_state(root)
    write_ocdbt(root, view_entries(manifest), uuid=uuid, generation=generation)


def write_documents(root: Path, manifest: StoreManifest) -> None:
    """All of it, and last the manifest: the view is complete.

    Raises:
        GdistError: translated from what the file system said.
    """
    write_index(root, manifest)
    write_references(root, view_entries(manifest))
    for name, data in orbax_documents((tensor.name for tensor in manifest.tensors), ocdbt=True).items():
        write_atomically(root / name, data)
    write_atomically(root / MANIFEST_NAME, store_manifest_to_json(manifest))
