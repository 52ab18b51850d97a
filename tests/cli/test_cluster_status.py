"""`gdist cluster status` beside a real cluster's fetch: from its hosts, and from anywhere with the secret."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gdist.core.status import MemberState, parse_cluster_status
from gdist.testing.agents import Agents
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.pages import assert_whole_in_itself, read
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

pytestmark = [pytest.mark.torrent, pytest.mark.slow]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    root = tmp_path_factory.mktemp("from") / "llama"
    write_safetensors(root, layers=8, emb=192)
    with seed(root, piece_length=1 << 14) as found:
        yield found


def gdist(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    command = [sys.executable, "-W", "error", "-m", "gdist", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **variables}, timeout=180)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def test_a_cluster_is_seen_from_any_host(seeded: Seeded, tmp_path: Path) -> None:
    with Slow(seeded.port, rate=400_000) as way, Agents(slowed(seeded, way), tmp_path, 3, mesh="3") as agents:
        agents.start(0)
        agents.start(1)
        for index in (0, 1):
            agents.until(lambda index=index: agents.told(index, "planned"), "a plan")  # type: ignore[misc]
        agents.until(lambda: agents.inside(0) > 0, "pieces are inside")
        way.limit = 0
        table = gdist("cluster", "status", agents.dest(1))
        assert table.returncode == 0, table.stderr
        assert table.stdout.startswith("3 hosts: 0 done, for ") and "\nmissing: 2\n" in table.stdout
        # No rate is known before it was seen for ten seconds.
        agents.until(lambda: "\nbound: " in gdist("cluster", "status", agents.dest(1)).stdout, "a bound")

        coordinator = f"{LOCALHOST}:{agents.port}"
        asked = gdist("cluster", "status", "--coordinator", coordinator, "--secret", "tested", "--json")
        status = parse_cluster_status(json.loads(asked.stdout.splitlines()[-1]))
        assert [member.status.index for member in status.members] == [0, 1]
        assert all(member.state is MemberState.LIVE for member in status.members)
        assert status.missing == (2,) and status.coordinator == 0 and status.pieces > 0
        assert status.share_of_bound is not None and 0 < status.share_of_bound <= 1
        assert all(member.status.tensors > 0 for member in status.members)
        assert [member.status.dest for member in status.members] == [*map(str, agents.stores[:2])]

        variables = {"GDIST_COORDINATOR": coordinator, "GDIST_SECRET": "tested"}
        assert gdist("cluster", "status", **variables).returncode == 0
        wrong = gdist("cluster", "status", "--coordinator", coordinator, "--secret", "guessed")
        assert wrong.returncode == 15 and "secret" in wrong.stderr

        one = gdist("status", agents.dest(1))
        assert "\n  host      1 of 3 (" in one.stdout
        way.limit = float("inf")
        way.rate = float("inf")


def test_the_coordinator_writes_a_page_about_the_run(seeded: Seeded, tmp_path: Path) -> None:
    page, other = tmp_path / "run.html", tmp_path / "other.html"
    with Agents(seeded, tmp_path, 3, mesh="3") as agents:
        agents.start(0, "--report", str(page))
        agents.start(1, "--report", str(other))
        agents.start(2)
        assert agents.wait_all() == [0, 0, 0], agents.said()
    text = page.read_text()
    found = read(text)
    assert_whole_in_itself(text, found)
    assert "with 3 hosts" in found.text and "3 of 3 hosts complete" in found.text
    assert seeded.magnet.info_hash.hex in found.text
    ratio = float(found.text.partition(" times what is needed")[0].rpartition("B")[2])
    assert 1 <= ratio <= 1.1
    row = (
        r"<td>(?:done|left)</td>.*<td class=\"n\">(.* [kM]B)</td><td class=\"n\">(.* [kM]B)</td>(?:<td.*){4}"
    )
    placed = re.findall(row, text)
    assert len(placed) == 3 and all(kept == there for kept, there in placed)
    assert "None: all came in time, stayed, and are complete." in found.text
    assert not other.exists(), "it did not coordinate"


def test_a_run_that_ends_early_has_its_page_too(seeded: Seeded, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    with Slow(seeded.port, rate=400_000) as way, Agents(slowed(seeded, way), tmp_path, 3, mesh="3") as agents:
        agents.start(0, "--report", str(page))
        agents.start(1)
        agents.until(lambda: agents.told(0, "cluster_progress"), "progress")
        agents.until(lambda: agents.told(1, "planned"), "host 1 has come")
        way.limit = 0
        agents.kill(0, signal.SIGTERM)
        assert agents.wait(0) == 20, agents.said()
        agents.kill(1)
    assert "never came1 host: 2" in read(page.read_text()).text


def test_where_no_cluster_works_it_says_so(tmp_path: Path) -> None:
    nobody = gdist("cluster", "status", tmp_path / "store")
    assert nobody.returncode == 11 and "no fetch of a cluster is at work" in nobody.stderr
    assert gdist("cluster", "status", "--coordinator", "127.0.0.1:9", "--secret", "x").returncode == 11
    assert gdist("cluster", "status").returncode == 2
    assert gdist("cluster", "status", "--coordinator", "a b").returncode == 2


def slowed(seeded: Seeded, way: Slow) -> Seeded:
    return replace(seeded, magnet=replace(seeded.magnet, peers=((LOCALHOST, way.port),)))
