"""The releases gdist knows: source manifests shipped as data, found by name or by info-hash.

They lie in `gdist/_manifests/` of an installed package and in `manifests/` of a checkout; adding one is
adding a file there. The working directory plays no part.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from gdist.core.source_manifest import SourceManifest, parse_source_manifest

_SCHEMA = "schema"  # the one JSON file beside the manifests that is not one


def release_names() -> tuple[str, ...]:
    """Names of all known releases, sorted."""
    return tuple(sorted(_files()))


def known_release(name: str) -> SourceManifest | None:
    """The manifest of the release of exactly that name, or None."""
    return _manifest(name) if name in _files() else None


def find_by_info_hash(hex_digits: str) -> SourceManifest | None:
    """The manifest of the torrent with that info-hash (40 digits for v1, 64 for v2, any case), or None."""
    wanted = hex_digits.strip().lower()
    for name in release_names() if wanted else ():
        manifest = _manifest(name)
        if wanted in (manifest.info_hash_v1, manifest.info_hash_v2):
            return manifest
    return None


@cache
def _files() -> dict[str, Traversable]:
    installed = resources.files("gdist") / "_manifests"
    checkout = Path(__file__).resolve().parents[1] / "manifests"
    folder: Traversable = installed if installed.is_dir() else checkout
    if not folder.is_dir():
        return {}
    found = {
        path.name.removesuffix(".json"): path for path in folder.iterdir() if path.name.endswith(".json")
    }
    found.pop(_SCHEMA, None)
    return found


@cache
def _manifest(name: str) -> SourceManifest:
    manifest = parse_source_manifest(_files()[name].read_bytes())
    assert manifest.name == name, f"the manifest {name}.json names itself {manifest.name!r}"
    return manifest
