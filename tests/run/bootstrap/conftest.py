"""A stand-in for gdist on the hosts: it writes down how it was called, and ends as it is told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gdist

_PROGRAM = """\
#!{python}
import json, os, signal, socket, sys, time, uuid
sys.path.insert(0, {package!r})
from gdist.clusters import detect
from gdist.errors import RequestError
home = {home!r}
member = detect(os.environ, hostname=socket.gethostname())
index, stopped = member.host.index, []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
def write(**values):
    path = os.path.join(home, uuid.uuid4().hex)
    with open(path + ".new", "w") as file:
        json.dump(values | {{"index": index, "count": member.host.count}}, file)
    os.rename(path + ".new", path + ".json")
write(argv=sys.argv[1:], hosts=member.hosts, coordinator=member.coordinator, cluster=member.cluster,
      environ=dict(os.environ), stdin=not os.isatty(0) and sys.stdin.read(), pid=os.getpid())
print("standing in on host", index, flush=True)
deadline = time.monotonic() + 60
while os.path.exists(os.path.join(home, "hold")) and time.monotonic() < deadline:
    if stopped:
        write(stopped=True)
        sys.exit(20)
    time.sleep(0.05)
with open(os.path.join(home, "codes")) as file:
    codes = json.load(file).get(str(index), [0])
tries = os.path.join(home, f"tries-{{index}}")
number = os.path.getsize(tries) if os.path.exists(tries) else 0
with open(tries, "a") as file:
    file.write("x")
code = codes[min(number, len(codes) - 1)]
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class StandIn:
    """The program, and where it writes down its calls."""

    program: Path
    home: Path

    def ends_with(self, codes: Mapping[int, Sequence[int]]) -> None:
        """The exit codes of each host's calls, one after the other, the last again and again; 0 without."""
        (self.home / "codes").write_text(json.dumps({str(n): list(c) for n, c in codes.items()}))

    def hold(self, on: bool) -> None:
        """While it is on, calls do not end but for a TERM, then with 20."""
        (self.home / "hold").touch() if on else (self.home / "hold").unlink(missing_ok=True)

    def records(self) -> list[dict[str, Any]]:  # Any: as the program wrote them
        """Everything written down, by host."""
        found = [json.loads(path.read_text()) for path in self.home.glob("*.json")]
        return sorted(found, key=lambda record: (record["index"], "stopped" in record))

    def calls(self) -> list[dict[str, Any]]:
        """How it was called, by host."""
        return [record for record in self.records() if "argv" in record]

    def wait_for(self, calls: int, seconds: float = 60) -> None:
        """Waits until it was called so often."""
        deadline = time.monotonic() + seconds
        while len(self.calls()) < calls:
            assert time.monotonic() < deadline, f"{len(self.calls())} of {calls} calls came"
            time.sleep(0.05)


@pytest.fixture
def standin(tmp_path: Path) -> StandIn:
    home = tmp_path / "stand in"  # a blank in it, so that `--gdist` has to be quoted
    home.mkdir()
    program = home / "gdist"
    package = str(Path(gdist.__file__).parents[1])
    program.write_text(_PROGRAM.format(python=sys.executable, package=package, home=str(home)))
    program.chmod(0o755)
    made = StandIn(program, home)
    made.ends_with({})
    return made


NASTY = (
    'magnet:?xt=urn:btih:0123456789012345678901234567890123456789&dn=it\'s a $HOME `id` "q" $(touch pwned)'
    "&tr=udp://x:1 ; touch pwned | # \\ * ~ {a,b} !! é 漢 ${IFS} END_OF_SCRIPT"
)


@pytest.fixture
def nasty() -> str:
    """A source with everything that any of the languages could take for its own."""
    return NASTY
