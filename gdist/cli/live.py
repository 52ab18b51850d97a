"""Progress on a terminal: a few lines redrawn in place, gone at the end, on standard error.

grok-1  5f96d435  318.24 GB · data=8,model=8
fetch    ━━━━━━━━━━━━━━━━━━━━╸──────────────────  52.1%   ETA 4m 12s
placed   165.92 GB of 318.24 GB   412 of 1218 tensors ready
swarm    in 612 MB/s   peers 12 (8 seeds)   binds: network
ready    params.transformer.decoder_layer_21.router.w

With other hosts two lines more, below the swarm's:

cluster  hosts 8 of 8, 2 done   inside 45.0% of 318.24 GB   slowest host 5
between  in 1.2 GB/s   out 800 MB/s   holds 2.10 GB   brings in 40 pieces
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gdist.cli import words
from gdist.cli.pace import Pace
from gdist.core.units import format_bytes, format_seconds
from gdist.events import (
    ClusterProgress,
    Event,
    Finished,
    HashFailed,
    MemberChanged,
    MetadataReceived,
    MovePlanned,
    MoveProgress,
    Note,
    PeerBanned,
    PeerCount,
    Planned,
    Progress,
    ReshardPlanned,
    ReshardProgress,
    Stage,
    StageStarted,
    TensorReady,
    TrackerAnswer,
)

REFRESH_HERTZ = 4
NAMES_SHOWN = 3
LABEL_WIDTH = 9
_LABELS = {Stage.EXCHANGE: "move"}  # its own word is too wide

_FROM = {Progress: "swarm", ReshardProgress: "source", MoveProgress: "hosts"}  # where bytes come from


class LiveView:
    """An observer that keeps a small picture of the run; the picture is drawn by a thread of rich."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._pace = Pace()
        self._start = time.monotonic()
        self._stage: Stage | None = None
        self._name = ""
        self._mesh = ""
        self._peers = PeerCount(0, 0)
        self._plan: words.Plan | None = None
        self._progress: Progress | ReshardProgress | MoveProgress | None = None
        self._cluster: ClusterProgress | None = None
        self._members = words.Members()
        self._ready: deque[str] = deque(maxlen=NAMES_SHOWN)
        self._trackers: dict[str, TrackerAnswer] = {}
        self._failed = self._banned = 0
        self._live = Live(
            console=self._console,
            get_renderable=self.draw,
            refresh_per_second=REFRESH_HERTZ,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def __call__(self, event: Event) -> None:
        """Takes note of an event; some leave a line above the picture."""
        match event:
            case StageStarted():
                self._stage = event.stage
                if event.stage is Stage.EXCHANGE:
                    self._progress = None  # that was of the shares
            case MetadataReceived():
                self._name = f"{event.name}  {event.info_hash.hex[:8]}  {format_bytes(event.nbytes)}"
            case Note():
                self._say(f"note: {event.text}")
            case Planned() | ReshardPlanned() | MovePlanned():
                self._plan = event
                host = f" · host {event.host_index}/{event.host_count}" if event.host_count > 1 else ""
                self._mesh = f" · {event.mesh}{host}" if event.mesh != "1" else host
                if event.bytes_resumed:
                    self._say(f"goes on: {format_bytes(event.bytes_resumed)} are here already")
            case PeerCount():
                self._peers = event
            case TrackerAnswer():
                self._trackers[event.url] = event
            case PeerBanned():
                self._banned += 1
            case HashFailed():
                self._failed += 1
            case TensorReady():
                self._ready.append(event.tensor)
            case Progress() | ReshardProgress() | MoveProgress():
                self._progress = event
                self._pace.update(event.seconds, event.bytes_placed)
            case ClusterProgress():
                self._cluster = event
            case MemberChanged():
                if text := self._members.text(event):
                    self._say(text, "yellow")
            case Finished():
                self.close()
                self._say(words.finished(event, self._plan), "bold")
                if spent := words.timing(event):
                    self._say(spent, "dim")

    def close(self) -> None:
        """Takes the picture away; may be called again."""
        self._live.stop()

    def _say(self, text: str, style: str = "") -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone does not end a fetch
            self._console.print(Text(text, style=style))

    def draw(self) -> RenderableType:
        """The picture as it is now."""
        stage = words.STAGES[self._stage] if self._stage else "starting"
        lines: list[RenderableType] = []
        if self._name:
            lines.append(_line(self._name + self._mesh, "bold"))
        event = self._progress
        if event is None or self._stage not in (Stage.FETCH, Stage.RESHARD, Stage.EXCHANGE):
            waited = format_seconds(time.monotonic() - self._start)
            looking = self._stage is Stage.METADATA or self._peers.peers
            peers = f"   peers {self._peers.peers}{self._tracker_words()}" if looking else ""
            lines.append(_line(f"{stage} … {waited}{peers}"))
            return Group(*lines, *self._others())
        lines.append(self._bar(event))
        placed = f"{format_bytes(event.bytes_placed)} of {format_bytes(event.bytes_wanted)}"
        ready = f"{event.tensors_ready} of {event.tensors} tensors ready"
        lines.append(_line(f"{'placed':<{LABEL_WIDTH}}{placed}   {ready}"))
        label = _FROM[type(event)]
        lines.append(_line(f"{label:<{LABEL_WIDTH}}{words.rates(event, self._cluster)}"))
        lines += self._others()
        for label, name in zip(("ready", "", ""), tuple(self._ready), strict=False):
            lines.append(_line(f"{label:<{LABEL_WIDTH}}{name}", "dim"))
        if self._failed or self._banned:
            failed, banned = words.count(self._failed, "piece"), words.count(self._banned, "peer")
            lines.append(_line(f"{failed} failed their hash, {banned} banned", "yellow"))
        return Group(*lines)

    def _others(self) -> list[RenderableType]:
        """The cluster and what goes between its hosts, where there is one."""
        if self._cluster is None:
            return []
        rows = (("cluster", words.hosts(self._cluster)), ("between", words.between(self._cluster)))
        return [_line(f"{label:<{LABEL_WIDTH}}{text}") for label, text in rows]

    def _bar(self, event: Progress | ReshardProgress | MoveProgress) -> RenderableType:
        left = words.remaining(self._pace.remaining(event.bytes_wanted - event.bytes_placed))
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(width=LABEL_WIDTH - 2)
        row.add_column(ratio=1)
        row.add_column(justify="right", width=5)
        row.add_column(justify="right", width=12)
        bar = ProgressBar(total=max(event.bytes_wanted, 1), completed=event.bytes_placed)
        row.add_row(
            _LABELS.get(self._stage, self._stage.value) if self._stage else "",
            bar,
            words.share(event.bytes_placed, event.bytes_wanted),
            f"ETA {left}",
        )
        return row

    def _tracker_words(self) -> str:
        if not self._trackers:
            return ""
        good = sum(answer.ok for answer in self._trackers.values())
        bad = len(self._trackers) - good
        return f"   trackers {good} ok" + (f", {bad} failed" if bad else "")


@contextlib.contextmanager
def byte_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that is gone at the end; call it with the bytes done so far."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=max(total, 1))
        yield lambda done: bars.update(task, completed=done)


def _line(text: str, style: str = "") -> Text:
    """One line, cut where the terminal ends: a line that wraps makes the picture jump."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
