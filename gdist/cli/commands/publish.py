"""`gdist publish`: a torrent, a signed manifest and a magnet of a checkpoint of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.jsonlines import plain
from gdist.cli.options import Place, given, making_options, option, output_options
from gdist.cli.output import Output
from gdist.core.text import count
from gdist.core.units import format_bytes
from gdist.errors import RequestError, translate

if TYPE_CHECKING:
    from gdist.run.publish import Published


@click.command()
@click.argument("payload", required=False, type=Place())
@option(
    "--output",
    "directory",
    type=Place(),
    metavar="DIR",
    help="Where what is made goes.  [default: beside PAYLOAD]",
)
@option("--name", metavar="NAME", help="The release's.  [default: PAYLOAD's]")
@option("--title", default="", metavar="TEXT", help="What it is, for people.")
@option("--licence", default="", metavar="SPDX", help="The licence of the weights: Apache-2.0.")
@making_options
@option("--profile", metavar="NAME|FILE", help="How to name and join the tensors.  [default: what fits]")
@option(
    "--ignore",
    multiple=True,
    metavar="GLOB",
    help="Files that the manifest does not speak of, by pattern; may be repeated.",
)
@option("--rules", metavar="NAME|FILE", help="Partition rules to go with it.  [default: the profile's]")
@option("--align-tensors", is_flag=True, help="Publish a copy whose tensors start at multiples of 64 bytes.")
@option("--sign", type=Place(), metavar="KEY", help="Sign the manifest: the PEM file of a private key.")
@option("--new-key", type=Place(), metavar="FILE", help="Make a private key for --sign, and nothing else.")
@option("--force", is_flag=True, help="Replace files of other content.")
@output_options
def publish(payload: str | None, output: Output, new_key: str | None, **values: Any) -> None:
    """Make NAME.torrent and NAME.json, a manifest, of PAYLOAD, a file or directory; print the magnet.

    The manifest has the info-hash, and of every tensor its place, shape, type and digest: with it others plan
    offline, and start with the first layer. With --sign there is NAME.json.sig, which fetch --verify-key asks
    for. Every file starts a piece. Nothing is written into PAYLOAD; equal content gives equal files.
    """
    if new_key is not None:
        if payload is not None:
            raise RequestError("--new-key makes a key and nothing else", hint="leave PAYLOAD out")
        from gdist.run.signing import new_key as make

        public = make(Path(new_key))
        output.say(f"wrote {new_key}: keep it secret; others verify with the public key")
        output.result(public, {"private_key_file": new_key, "public_key": public})
        return
    if payload is None:
        raise RequestError(
            "what to publish is not given", hint="gdist publish PAYLOAD, a file or a directory"
        )
    with output.bar("reading", 2 * size_of(Path(payload))) as show:
        done = api.publish(payload, progress=lambda nbytes, total: show(nbytes), **given(values))
    for line in _told(done):
        output.say(line)
    output.result(done.magnet, plain_values(done))


def plain_values(done: Published) -> dict[str, object]:
    """What was made, as JSON."""
    values = plain(done)
    assert isinstance(values, dict)
    return values


def _told(done: Published) -> Iterator[str]:
    yield f"{done.name}: {count(done.tensors, 'tensor')}, {format_bytes(done.nbytes)}"
    yield from (f"wrote {path}" for path in (done.torrent, done.manifest, done.signature) if path)
    yield from (f"note: {note}" for note in done.notes)
    if done.public_key:
        yield f"public key {done.public_key}"
    yield f"serve it with: gdist seed {done.torrent} {done.payload}"


def size_of(path: Path) -> int:
    """Bytes of all files below a path."""
    try:
        return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    except OSError as error:
        raise translate(error, f"reading {error.filename}") from error
