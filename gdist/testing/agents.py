"""Several hosts of a cluster on loopback: real command lines, each a process of its own.

with Agents(seeded, tmp_path, count=4, mesh="2x4") as agents:
    agents.start_all()
    assert agents.wait_all() == [0, 0, 0, 0]
    agents.store  # every host's directory, together one store
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gdist.core.magnet import format_magnet
from gdist.exchange.ports import free_port
from gdist.testing.swarm import LOCALHOST, Seeded

WAIT_SECONDS = 180.0  # a guard against hangs: on a busy machine what takes 7 seconds has taken 60


class Agents:
    """The hosts of one job; `options` are those of `gdist cluster fetch`, the same for all."""

    def __init__(
        self,
        source: Seeded | str,
        directory: Path,
        count: int,
        *options: str,
        mesh: str = "8",
        secret: str = "tested",
    ):
        self._source = source if isinstance(source, str) else format_magnet(source.magnet)
        self._directory, self.count = directory, count
        self._options = ["--mesh", mesh, "--secret", secret, *options]
        self.port = free_port()
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self._started: list[subprocess.Popen[str]] = []

    def dest(self, index: int) -> Path:
        """Where a host's part goes."""
        return self._directory / f"host{index}"

    @property
    def stores(self) -> tuple[Path, ...]:
        """Where all parts are."""
        return tuple(self.dest(index) for index in range(self.count))

    def command(self, index: int, *options: str) -> list[str]:
        """The line of a host; what is given here comes after what is given for all, and wins."""
        return [
            *(
                sys.executable,
                "-m",
                "gdist",
                "cluster",
                "fetch",
                self._source,
                str(self.dest(index)),
            ),
            *("--host", f"{index}/{self.count}", "--coordinator", f"{LOCALHOST}:{self.port}"),
            *("--no-dht", "--listen", f"{LOCALHOST}:0", "--json", *self._options, *options),
        ]

    def start(self, index: int, *options: str) -> subprocess.Popen[str]:
        """Starts the line on one host; its output goes to a file beside the store."""
        out = open(self._directory / f"host{index}.{len(self._started)}.jsonl", "w")  # noqa: SIM115  Popen's
        with out:
            process = subprocess.Popen(
                self.command(index, *options),
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
            )
        process.args = out.name  # where to look
        self.processes[index] = process
        self._started.append(process)
        return process

    def start_all(self, *options: str) -> None:
        """Starts the line on every host."""
        for index in range(self.count):
            self.start(index, *options)

    def wait(self, index: int) -> int:
        """How a host's line ended."""
        try:
            return self.processes[index].wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"host {index} does not end: {self.said()}\n{self._stacks()}") from None

    def _stacks(self) -> str:
        """Where all threads of the hosts that run are; it ends them."""
        found = []
        for index, process in self.processes.items():
            if process.poll() is None:
                process.send_signal(signal.SIGABRT)
                process.wait(WAIT_SECONDS)
                found.append(f"host {index}: {self.errors(index)}")
        return "\n".join(found)

    def wait_all(self) -> list[int]:
        """How all ended."""
        return [self.wait(index) for index in range(self.count)]

    def events(self, index: int) -> list[dict[str, Any]]:  # Any: JSON
        """What a host's newest run has told so far."""
        lines = Path(str(self.processes[index].args)).read_text().splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:  # it is being written
                break
        return found

    def told(self, index: int, kind: str) -> list[dict[str, Any]]:  # Any: JSON
        """The events of one kind."""
        return [event for event in self.events(index) if event.get("event") == kind]

    def inside(self, index: int) -> int:
        """Bytes of the union that came in, as a host knows it."""
        told = self.told(index, "cluster_progress")
        return int(told[-1]["inside_bytes"]) if told else 0

    def serves(self, index: int) -> bool:
        """True once a host has its part and gives to others."""
        stages = self.told(index, "stage_started")
        return bool(stages) and stages[-1]["stage"] == "serve"

    def until(self, done: Callable[[], object], what: str = "it") -> None:
        """Waits until something is true."""
        end = time.monotonic() + WAIT_SECONDS
        while not done():
            failed = [i for i, process in self.processes.items() if process.poll() not in (None, 0, -9)]
            assert not failed, f"{what} did not happen: {self.said()}"
            assert time.monotonic() < end, f"{what} did not happen: {self.said()}"
            time.sleep(0.05)

    def until_ready(self, index: int, tensors: int) -> None:
        """Waits until a host has some tensors."""
        self.until(
            lambda: len(self.told(index, "tensor_ready")) >= tensors, f"host {index}: {tensors} tensors"
        )

    def kill(self, index: int, kind: signal.Signals = signal.SIGKILL) -> None:
        """Sends a host's process a signal."""
        self.processes[index].send_signal(kind)
        if kind == signal.SIGKILL:
            self.processes[index].wait(WAIT_SECONDS)

    def errors(self, index: int) -> str:
        """What a host that ended said on standard error, and the last of its events."""
        process = self.processes[index]
        text = process.stderr.read() if process.stderr and not process.stderr.closed else ""
        return text + "".join(json.dumps(event) + "\n" for event in self.events(index)[-3:])

    def said(self) -> str:
        """The end of what every host told."""
        return "\n".join(f"host {i}: {str(self.events(i)[-2:])[:500]}" for i in sorted(self.processes))

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()
