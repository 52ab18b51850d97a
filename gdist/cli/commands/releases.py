"""`gdist releases`: the releases gdist knows by name."""

from __future__ import annotations

from collections.abc import Iterator

import click

from gdist import releases as known
from gdist.cli.options import output_options
from gdist.cli.output import Output
from gdist.cli.words import table
from gdist.core.source_manifest import SourceManifest
from gdist.core.text import count
from gdist.core.units import format_bytes
from gdist.errors import RequestError


@click.command()
@click.argument("name", required=False)
@output_options
def releases(output: Output, name: str | None) -> None:
    """List the releases gdist knows by name, or show one.

    Of a release without a torrent gdist knows how its files are joined: give a magnet of it to fetch, with
    the --profile that is shown.
    """
    if name is not None:
        one = known.known_release(name)
        if one is None:
            raise RequestError(
                f"{name[:100]!r} is no known release",
                hint=f"known releases: {', '.join(known.release_names())}",
            )
        output.result("\n".join(_shown(one)), _values(one))
        return
    found = [known.known_release(name) for name in known.release_names()]
    manifests = [manifest for manifest in found if manifest is not None]
    rows = [(m.name, _size(m), m.licence, m.title + _without(m)) for m in manifests]
    head = ("name", "bytes", "licence", "title")
    output.result(
        "\n".join(table(head, rows, right=(1,))), {"releases": [_values(manifest) for manifest in manifests]}
    )


def _size(manifest: SourceManifest) -> str:
    if manifest.nbytes is not None:
        return format_bytes(manifest.nbytes)
    return f"about {format_bytes(manifest.about_nbytes)}" if manifest.about_nbytes else "-"


def _without(manifest: SourceManifest) -> str:
    if manifest.magnet:
        return ""
    return f"; no torrent known: give a magnet{_profile(manifest)}"


def _shown(manifest: SourceManifest) -> Iterator[str]:
    yield f"{manifest.name}: {manifest.title}"
    yield f"licence    {manifest.licence or 'not known'}"
    yield f"size       {_size(manifest)}"
    if manifest.magnet:
        yield f"info-hash  {manifest.info_hash_v1 or manifest.info_hash_v2}"
        yield f"magnet     {manifest.magnet}"
        yield from (f"tracker    {url}" for url in manifest.all_trackers)
    else:
        yield f"magnet     none known: give one to fetch{_profile(manifest)}"
    yield f"profile    {manifest.profile or 'none: tensors have the names in their files'}"
    if manifest.whole:
        arrays = sum(len(file.arrays) for file in manifest.files)
        files = f"{count(len(manifest.files), 'file')}, {count(arrays, 'array')}"
        yield f"holds      {files}: planned without a network"
    for file in manifest.files if not manifest.whole else ():
        digests = "".join(f", {kind} {digest}" for kind, digest in file.digests)
        size = "length not known" if file.nbytes is None else format_bytes(file.nbytes)
        yield f"file       {file.path}: {size}{digests}"
    yield from (f"note       {text}" for text in manifest.known_incomplete)


def _profile(manifest: SourceManifest) -> str:
    return f", with --profile {manifest.profile}" if manifest.profile else ""


def _values(manifest: SourceManifest) -> dict[str, object]:
    return {
        "name": manifest.name,
        "title": manifest.title,
        "licence": manifest.licence,
        "nbytes": manifest.nbytes,
        "about_nbytes": manifest.about_nbytes,
        "magnet": manifest.magnet or None,
        "trackers": list(manifest.all_trackers),
        "info_hash": manifest.info_hash_v1 or manifest.info_hash_v2 or None,
        "profile": manifest.profile,
        "whole": manifest.whole,
        "known_incomplete": list(manifest.known_incomplete),
    }
