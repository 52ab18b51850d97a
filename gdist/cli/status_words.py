"""Where runs and clusters stand, in words: one screen each, the same on a terminal and in a log."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from gdist.cli import words
from gdist.cli.words import count, share, table
from gdist.core.order import stage_of
from gdist.core.ready import Readiness
from gdist.core.status import AgentStatus, ClusterStatus, MemberState, MemberStatus, Stage
from gdist.core.text import numbers, printable, shorten
from gdist.core.units import format_bytes, format_rate, format_seconds
from gdist.errors import InterruptedRun
from gdist.run.watch import Sight

LABEL_WIDTH = 10
MOST_HOSTS = 40  # rows of a table; those that are furthest behind
NAME_WIDTH = 72


def run_text(dest: str, sights: Sequence[Sight]) -> str:
    """What is seen of the runs that write to a destination."""
    if len(sights) == 1:
        return "\n".join((f"{dest}: {_headline(sights[0])}", *_details(sights[0])))
    done = sum(sight.complete for sight in sights)
    placed, wanted = (
        sum(getattr(s.status, f"bytes_{kind}") for s in sights) for kind in ("placed", "wanted")
    )
    head = (
        f"{dest}: {done} of {count(len(sights), 'host')} seen here complete, "
        f"{format_bytes(placed)} of {format_bytes(wanted)} placed, {share(placed, wanted)}"
    )
    behind = sorted(sights, key=lambda sight: (sight.status.share, sight.status.index))[:MOST_HOSTS]
    rows = [
        (
            str(sight.status.index),
            _headline(sight),
            share(sight.status.bytes_placed, sight.status.bytes_wanted),
            f"{sight.status.tensors_ready}/{sight.status.tensors}",
            format_rate(sight.status.wan_rate) if sight.status.wan_rate else "",
        )
        for sight in sorted(behind, key=lambda sight: sight.status.index)
    ]
    lines = table(("host", "is", "placed", "tensors", "outside"), rows, right=(0, 2, 3, 4))
    if len(sights) > MOST_HOSTS:
        lines.append(f"and {len(sights) - MOST_HOSTS} hosts that are further")
    return "\n".join((head, *lines))


def _headline(sight: Sight) -> str:
    status = sight.status
    if status.stage is Stage.SERVE:
        return words.STAGES[Stage.SERVE]
    if sight.complete:
        return "complete"
    if sight.failure is not None and sight.failure.kind == InterruptedRun.__name__:
        return f"stopped after {format_seconds(status.seconds)}"
    if sight.failure is not None:
        return f"failed after {format_seconds(status.seconds)}"
    if not sight.running:
        return "not complete, and nobody works on it"
    hung = "" if status.live else ", and gives no sign of life"
    return f"{words.STAGES[status.stage]}, for {format_seconds(status.seconds)}{hung}"


def _details(sight: Sight) -> Iterator[str]:
    status = sight.status
    if status.release:
        yield _line("release", f"{printable(status.release)}   {status.info_hash}")
    if status.count > 1:
        name = f" ({printable(status.name)})" if status.name else ""
        yield _line("host", f"{status.index} of {status.count}{name}")
    if status.tensors:
        yield _line(
            "placed",
            f"{format_bytes(status.bytes_placed)} of {format_bytes(status.bytes_wanted)}   "
            f"{share(status.bytes_placed, status.bytes_wanted)}",
        )
        yield _line(
            "ready", f"{status.tensors_ready} of {count(status.tensors, 'tensor')}   {_stages(sight)}"
        )
    if status.next_tensor:
        yield _line("next", shorten(printable(status.next_tensor), NAME_WIDTH))
    if status.wan_bytes or status.wan_rate or status.peers:
        plural = count(status.peers, "peer")
        yield _line(
            "outside", f"in {format_rate(status.wan_rate)}, {format_bytes(status.wan_bytes)} so far, {plural}"
        )
    if status.lan_in_bytes or status.lan_out_bytes or status.leased or status.held_bytes:
        yield _line(
            "hosts",
            f"in {format_rate(status.lan_in_rate)}, out {format_rate(status.lan_out_rate)}, holds "
            f"{format_bytes(status.held_bytes)} for others, brings in {count(status.leased, 'piece')}",
        )
    if sight.running and status.wan_bytes and not status.over:
        yield _line("binds", words.BINDS[status.binds])
    if status.hash_failures or status.transfer_errors:
        failed = count(status.hash_failures, "piece")
        yield _line(
            "faults", f"{failed} failed their hash, {status.transfer_errors} peers, trackers or hosts failed"
        )
    if status.note:
        yield _line("note", printable(status.note))
    if sight.failure is not None:
        yield _line("error", printable(sight.failure.message))
        if sight.failure.hint:
            yield _line("hint", printable(sight.failure.hint))


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"


def _stages(sight: Sight) -> str:
    """What is whole of what loads together: `embedding, layers 0-20`."""
    whole = [
        stage
        for stage, names in itertools.groupby(sight.names, stage_of)
        if all(name in sight.here for name in names)
    ]
    layers = numbers((int(stage.removeprefix("layer ")) for stage in whole if stage.startswith("layer ")), 40)
    named = [stage for stage in whole if not stage.startswith("layer ")]
    text = [*named[:1], f"layers {layers}", *named[1:]] if layers else named
    return ", ".join(text)


def ready_text(readiness: Readiness) -> str:
    """How far something is, in one line."""
    if not readiness.tensors:
        return f"{readiness.what}: not ready, its tensors are not known yet"
    if readiness.ready:
        return f"{readiness.what}: ready, {count(readiness.tensors, 'tensor')}"
    following = shorten(printable(readiness.next_tensor), NAME_WIDTH)
    return (
        f"{readiness.what}: not ready, {readiness.tensors_ready} of {count(readiness.tensors, 'tensor')}; "
        f"next is {following}"
    )


# --- clusters -------------------------------------------------------------------------------------------


def cluster_text(status: ClusterStatus) -> str:
    """A cluster on one screen: what it has, what binds, and its hosts, all or those furthest behind."""
    lines = list(_cluster_head(status))
    shown = sorted(status.members, key=lambda member: (member.status.share, member.status.index))[:MOST_HOSTS]
    rows = [_member_row(member) for member in sorted(shown, key=lambda member: member.status.index)]
    head = ("host", "name", "is", "placed", "tensors", "outside in", "hosts in", "out", "holds", "binds")
    lines += table(head, rows, right=(0, 3, 4, 5, 6, 7, 8))
    more = len(status.members) - len(shown)
    if more:
        lines.append(f"and {count(more, 'host')} that {'is' if more == 1 else 'are'} as far or further")
    return "\n".join(lines)


def _cluster_head(status: ClusterStatus) -> Iterator[str]:
    states = Counter(member.state for member in status.members)
    lost = f", {states[MemberState.LOST]} lost" if states[MemberState.LOST] else ""
    left = f", {states[MemberState.LEFT]} left" if states[MemberState.LEFT] else ""
    hosts, since = count(status.count, "host"), format_seconds(status.seconds)
    yield f"{hosts}: {status.done} done{lost}{left}, for {since}; host {status.coordinator} coordinates"
    if status.missing:
        yield f"missing: {numbers(status.missing, 60)}"
    if status.union_bytes:
        again = status.wan_bytes / status.union_bytes
        yield (
            f"outside: {format_bytes(status.inside_bytes)} of {format_bytes(status.union_bytes)} are inside, "
            f"{share(status.inside_bytes, status.union_bytes)}; {format_bytes(status.wan_bytes)} came in, "
            f"{again:.2f} times the union"
        )
        yield f"pieces: {status.pieces}, of which {status.held} are held for others, {status.spent} with all"
    bound = status.share_of_bound
    if bound is not None and status.bound_seconds is not None:
        least = format_seconds(status.bound_seconds)
        yield f"bound: {least} at the fastest rates seen, for what came so far: {bound:.0%} of them reached"
    slowest = f"; the slowest is host {status.slowest}" if status.slowest is not None else ""
    if status.done < status.count:
        yield f"binds: {words.BINDS[status.binds]}{slowest}"


def _member_row(member: MemberStatus) -> tuple[str, ...]:
    status = member.status
    return (
        str(status.index),
        shorten(printable(status.name), 24),
        _member_is(member),
        share(status.bytes_placed, status.bytes_wanted) if status.bytes_wanted else "",
        f"{status.tensors_ready}/{status.tensors}" if status.tensors else "",
        _amount(status.wan_bytes, status.wan_rate, status),
        _amount(status.lan_in_bytes, status.lan_in_rate, status),
        _amount(status.lan_out_bytes, status.lan_out_rate, status),
        format_bytes(status.held_bytes) if status.held_bytes else "",
        status.binds.value if member.works else "",
    )


def _member_is(member: MemberStatus) -> str:
    if member.state in (MemberState.LOST, MemberState.LEFT):
        return f"{member.state.value}, {format_seconds(member.seen_seconds)} ago"
    hung = "" if member.status.live or member.status.over else ", hangs"
    return f"{member.status.stage.value}{hung}"


def _amount(nbytes: int, rate: int, status: AgentStatus) -> str:
    if not nbytes and not rate:
        return ""
    return format_bytes(nbytes) + (f" {format_rate(rate)}" if rate and not status.over else "")
