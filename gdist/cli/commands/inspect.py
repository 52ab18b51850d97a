"""`gdist inspect`: tensors, shapes, types, bytes and sharding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.files import check_target, write_whole
from gdist.cli.hosts import hosts_option
from gdist.cli.jsonlines import plain
from gdist.cli.options import (
    given,
    hint_at_quotes,
    mesh_options,
    option,
    output_options,
    reading_options,
    rename_option,
    source_argument,
    swarm_options,
)
from gdist.cli.output import Output
from gdist.cli.sharding import draw
from gdist.cli.signals import stop_on_signals
from gdist.cli.words import table
from gdist.core.text import count, printable, shape
from gdist.core.units import format_bytes
from gdist.core.view import VIEW
from gdist.errors import RequestError

if TYPE_CHECKING:
    from gdist.core.picture import TensorPicture
    from gdist.core.rename import RenamePlan
    from gdist.run.inspect import Inspection, TensorInfo

NAMED = 5  # of several tensors, in a hint


@click.command()
@source_argument
@mesh_options(host=False, hosts=True)
@hosts_option("Hosts that share the mesh.  [default: those that wrote a store, else 1]")
@option("--tensor", metavar="NAME|REGEX", help="One tensor or pair, drawn; or all that are found.")
@option("--plot", metavar="FILE.svg", help="Draw the one tensor or pair as SVG, too.")
@option("--files", is_flag=True, help="List the files too.")
@rename_option
@reading_options
@swarm_options
@output_options
def inspect(source: str, output: Output, files: bool, plot: str | None, **values: Any) -> None:
    """Show what SOURCE holds: tensors, shapes, types, bytes, sharding.

    SOURCE is what fetch takes, a store (directory or URL), or a checkpoint on disk. Of a torrent only the
    headers are fetched, and nothing is kept; a known release needs no network at all. One tensor, or a
    quantised pair, is drawn: which devices hold what of it, and which pieces and shards feed them. With
    --rename it is shown what a renaming table makes of each tensor, and which have no rule in it.
    """
    target = check_target("--plot", plot, (".svg",))
    if target and not values.get("tensor"):
        raise RequestError("--plot draws one tensor", hint="name it: --tensor NAME")
    with hint_at_quotes(source, values), stop_on_signals() as stop, output.progress() as observe:
        found = api.inspect(source, observe=observe, stop=stop, **given(values))
    result = _values(found, files)
    if target:
        if not found.pictures:
            raise _several(found, str(values["tensor"]))
        from gdist.pictures.sharding import sharding_svg

        write_whole(target, sharding_svg(found.pictures), output)
        result["plot"] = str(target)
    listed = [] if found.pictures else _tensors(found.chosen)
    if found.renamed:
        listed = [*_renamed(found, found.renamed), *([""] if found.pictures else [])]
    lines = [*listed, *(["", *_files(found)] if files else []), "", *_totals(found)]
    text = "\n".join(map(printable, lines)).lstrip("\n")
    output.result("\n\n".join([*map(draw, found.pictures), text]), result)


def _several(found: Inspection, pattern: str) -> RequestError:
    names = [tensor.quantisation.pair if tensor.quantisation else tensor.name for tensor in found.chosen]
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
    return RequestError(
        f"--plot draws one tensor or pair, and {pattern!r} is found in {len(distinct)}",
        hint=f"name one of {', '.join(distinct[:NAMED])}{more}",
        tensors=tuple(distinct),
    )


def _tensors(tensors: Sequence[TensorInfo]) -> list[str]:
    """A table; the columns of sharding only where something is known of it."""
    specs = any(tensor.spec for tensor in tensors)
    slabs = any(tensor.slab for tensor in tensors)
    head = ["tensor", "shape", "type", "bytes"] + ["spec"] * specs + ["on each device"] * slabs
    rows = []
    for tensor in tensors:
        kind = f"{tensor.dtype} ({tensor.encoding})" if tensor.encoding else tensor.dtype
        row = [tensor.name, shape(tensor.shape), kind, format_bytes(tensor.nbytes)]
        row += [str(tensor.spec) if tensor.spec else "-"] * specs
        row += [shape(tensor.slab) if tensor.slab is not None else "-"] * slabs
        rows.append(row)
    return table(head, rows, right=(3,))


def _renamed(found: Inspection, plan: RenamePlan) -> list[str]:
    """What becomes of each tensor that is asked for, then what is dropped, then what has no rule."""
    asked, shapes = {t.name for t in found.chosen}, {t.name: t.shape for t in found.tensors}
    rows = []
    for renamed in plan.tensors:
        first, *rest = renamed.sources
        if not asked & {*renamed.sources}:
            continue
        more = f" and {len(rest)} more" if rest else ""
        how = ["transposed"] if renamed.transpose else []
        how += [f"{len(renamed.sources)} stacked on {renamed.axis}"] if renamed.axis is not None else []
        rows.append(
            (first + more, shape(shapes[first]), renamed.name, shape(renamed.shape), ", ".join(how) or "-")
        )
    lines = table(("tensor", "shape", "becomes", "shape", "how"), rows) if rows else []
    lines += [f"dropped: {name}" for name in plan.dropped if name in asked]
    lines += [f"unmatched: {name}" for name in plan.unmatched if name in asked]
    return lines


def _files(found: Inspection) -> list[str]:
    def says(tensors: int, kept: bool) -> str:
        if tensors:
            return count(tensors, "tensor")
        return "kept as it is" if kept else "left out"

    rows = [(file.path, format_bytes(file.nbytes), says(file.tensors, file.kept)) for file in found.files]
    return table(("file", "bytes", "holds"), rows, right=(1,))


def _totals(found: Inspection) -> Iterator[str]:
    chosen = f" ({len(found.chosen)} shown)" if len(found.chosen) < len(found.tensors) else ""
    total = format_bytes(sum(tensor.nbytes for tensor in found.tensors))
    yield f"{found.name}: {count(len(found.tensors), 'tensor')}{chosen}, {total}"
    assets = [file for file in found.files if not file.tensors and file.kept]
    if found.kind == "store" and found.codec == VIEW:
        yield f"view of the payload's own files, {count(len(assets), 'other file')}"
    elif found.kind == "store":
        yield f"store on mesh {found.mesh}, codec {found.codec}, {count(len(assets), 'other file')}"
    else:
        kind = {"release": "known release, from its manifest", "torrent": "torrent", "files": "local files"}
        kind["arrays"] = "a directory of arrays in chunks"
        pieces = f", pieces of {found.piece_length} bytes" if found.piece_length else ""
        size = format_bytes(found.nbytes)
        files = count(len(found.files), "file")
        yield f"{kind[found.kind]}: {files}, {size}, {len(assets)} without tensors{pieces}"
    if found.shown_on:
        yield f"shown on mesh {found.shown_on}"
    if found.info_hash:
        yield f"info-hash {found.info_hash}"
    if found.profile:
        yield f"named by profile {found.profile}"
    if found.renamed:
        left = f", {len(found.renamed.unmatched)} have no rule" if found.renamed.unmatched else ""
        made = count(len(found.renamed.tensors), "tensor")
        yield f"renamed by {found.renamed.table}: {made}, {len(found.renamed.dropped)} dropped{left}"
    if found.absent_hosts:
        yield f"parts of hosts {', '.join(map(str, found.absent_hosts))} are not here"
    yield from (f"note: {note}" for note in found.notes)


def _values(found: Inspection, files: bool) -> dict[str, object]:
    values = plain(found)
    assert isinstance(values, dict)
    values["tensors"] = values.pop("chosen")
    if not files:
        del values["files"]
    values["pictures"] = [_drawn(picture) for picture in found.pictures]
    if not found.pictures:
        del values["pictures"]
    if not found.renamed:
        del values["renamed"]
    return values


def _drawn(picture: TensorPicture) -> dict[str, object]:
    values = plain(picture)
    assert isinstance(values, dict)
    return {**values, "tensor": picture.tensor.name}  # its shape and type are among the tensors
