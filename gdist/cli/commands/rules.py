"""`gdist rules`: partition rules, and what they make of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from gdist import api
from gdist.cli.jsonlines import JsonLines, plain
from gdist.cli.options import (
    given,
    hint_at_quotes,
    mesh_options,
    output_options,
    reading_options,
    source_argument,
    swarm_options,
)
from gdist.cli.output import Output
from gdist.cli.signals import stop_on_signals
from gdist.cli.streams import put
from gdist.cli.words import count, table
from gdist.core.device_order import format_device_order
from gdist.core.text import shape
from gdist.core.units import format_bytes
from gdist.errors import RequestError
from gdist.rule_files import named_rules, rule_names, rules_text

if TYPE_CHECKING:
    from gdist.run.rules import RulesReport


@click.group()
def rules() -> None:
    """Check partition rules, or show those that gdist knows by name."""


@rules.command()
@source_argument
@mesh_options()
@reading_options
@swarm_options
@output_options
def check(source: str, output: Output, **values: Any) -> None:  # Any: options by name
    """Show how rules split each tensor of SOURCE, and everything that does not fit.

    SOURCE is what fetch takes, a store (directory or URL), or a checkpoint on disk. For each tensor: the spec
    of the first rule that is found in its name, the slab on each device and its bytes, and what the host
    (--host I/N) holds. Of a torrent only the headers are fetched; a known release needs no network. Ends with
    exit code 2 when a tensor has no rule or is not divided evenly, with the nearest meshes that do.
    """
    with hint_at_quotes(source, values), stop_on_signals() as stop, output.progress() as observe:
        report = api.check_rules(source, observe=observe, stop=stop, **given(values))
    result = _values(report)
    if not report.ok:
        if output.json:
            JsonLines().write("report", result)
        else:
            put("\n".join([*_table(report), "", *_notes(report)]) + "\n")
        raise report.fit.error()
    output.result("\n".join([*_table(report), "", *_totals(report), *_notes(report)]), result)


@rules.command("list")
@output_options
def list_(output: Output) -> None:
    """List the rules that gdist knows by name."""
    known = [(name, named_rules(name)) for name in rule_names()]
    rows = [(name, ", ".join(table.axes), str(len(table.rules))) for name, table in known if table]
    values = [{"name": name, **table.to_json()} for name, table in known if table]
    output.result("\n".join(table(("name", "axes", "rules"), rows, right=(2,))), {"rules": values})


@rules.command()
@click.argument("name", type=click.Choice(rule_names()))
@output_options
def show(name: str, output: Output) -> None:
    """Print the rules of that NAME, as a file to start from."""
    text, found = rules_text(name), named_rules(name)
    if text is None or found is None:
        raise RequestError(f"rules {name!r} are not known", hint=f"known names: {', '.join(rule_names())}")
    output.result(text.rstrip(), found.to_json())


def _table(report: RulesReport) -> list[str]:
    head = ["tensor", "shape", "type", "bytes"] + ["rule"] * bool(report.rules)
    head += ["spec", "slab", "on each device", "on this host"]
    rows = []
    for tensor in report.tensors:
        row = [tensor.name, shape(tensor.shape), tensor.dtype, format_bytes(tensor.nbytes)]
        row += ["none" if tensor.rule is None else str(tensor.rule)] * bool(report.rules)
        row.append("-" if tensor.spec is None else str(tensor.spec))
        if tensor.slab is None or tensor.slab_nbytes is None or tensor.host_nbytes is None:
            row += ["does not fit" if tensor.spec else "-", "-", "-"]
        else:
            row += [shape(tensor.slab), format_bytes(tensor.slab_nbytes), format_bytes(tensor.host_nbytes)]
        rows.append(row)
    last = len(head) - 1
    return table(head, rows, right=(3, last - 1, last))


def _totals(report: RulesReport) -> Iterator[str]:
    total = format_bytes(sum(tensor.nbytes for tensor in report.tensors))
    host = f"{report.host.index}/{report.host.count}"
    yield (
        f"{report.name}: {count(len(report.tensors), 'tensor')}, {total}, on mesh {report.mesh}: each device "
        f"holds {format_bytes(report.device_nbytes)}, host {host} {format_bytes(report.host_nbytes)}"
    )


def _notes(report: RulesReport) -> Iterator[str]:
    yield from (f"note: {note}" for note in report.notes)


def _values(report: RulesReport) -> dict[str, object]:
    values = plain(report)
    assert isinstance(values, dict)
    return {
        **values,
        "ok": report.ok,
        "hosts": report.host.count,
        "device_order": format_device_order(report.mesh.order),
        "device_nbytes": report.device_nbytes,
        "host_nbytes": report.host_nbytes,
        "fit": {
            "unmatched": list(report.fit.unmatched),
            "faults": [
                {"tensor": fault.tensor, "kind": fault.kind.value, "what": str(fault)}
                for fault in report.fit.faults
            ],
            "nearest": [str(mesh) for mesh in report.fit.nearest],
        },
    }
