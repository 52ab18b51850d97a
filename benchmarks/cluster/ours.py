"""`gdist cluster fetch`: the same line on every host."""

from __future__ import annotations

import compileall
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any  # values of JSON

from trial import Trial

import gdist
from gdist.run.verify import verify

PORT = 7611
MESHES = {"shards": "8x8", "copies": "replica={hosts},data=1,model=1"}


def fetch(trial: Trial) -> dict[int, float]:
    """Runs it; a host is done when its line has returned. With `kill` one of them dies and starts again."""
    compileall.compile_dir(Path(gdist.__file__).parent, quiet=1)  # as an installed package is
    rig, secret, start, began = trial.rig, secrets.token_hex(16), time.monotonic(), time.time()
    running = {host: _start(trial, host, secret) for host in range(rig.hosts)}
    if trial.kill is not None:
        before = rig.traffic()
        while (rig.traffic() - before).wan.into.payload < trial.release.nbytes / 2:
            assert running[trial.kill].poll() is None, "it ended before half the union was inside"
            time.sleep(0.02)
        running[trial.kill].kill()
        running[trial.kill].wait()
        trial.notes["killed_at"] = time.monotonic() - start
        running[trial.kill] = _start(trial, trial.kill, secret)
    seconds = trial.wait(lambda host: running[host].poll() is not None, range(rig.hosts), start)
    told = [_told(trial, host, running[host]) for host in range(rig.hosts)]
    trial.notes["needed"] = [events[-1]["kept_nbytes"] for events in told]
    trial.notes["stages"] = [
        {
            event["stage"]: round(event["time"] - began, 3)
            for event in events
            if event["event"] == "stage_started"
        }
        for events in told
    ]
    return seconds


def check(trial: Trial) -> None:
    """Every host's store is right, by its own digests; those were made of verified pieces."""
    for host in range(trial.rig.hosts):
        report = verify(str(trial.directory(host) / "store"))
        assert report.ok, report.faults


def _start(trial: Trial, host: int, secret: str) -> subprocess.Popen[bytes]:
    rig = trial.rig
    words = [sys.executable, "-m", "gdist", "cluster", "fetch", trial.release.magnet]
    words += [str(trial.directory(host) / "store"), "--mesh", MESHES[trial.mode].format(hosts=rig.hosts)]
    words += ["--host", f"{host}/{rig.hosts}", "--coordinator", f"{rig.address(0)}:{PORT}"]
    words += ["--secret", secret, "--no-dht", "--json"]
    if trial.gateways is not None:
        words += ["--gateways", ",".join(map(str, trial.gateways))]
    # A directory of its own for what is kept between runs: the rig's hosts share this machine's disk.
    env = {**os.environ, "XDG_CACHE_HOME": str(trial.directory(host) / "cache")}
    with (
        (trial.scratch / f"out-{host}").open("wb") as out,
        (trial.scratch / f"err-{host}").open("wb") as err,
    ):
        return rig.popen(host, words, env=env, stdout=out, stderr=err)


def _told(trial: Trial, host: int, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """The events of a host that ended well; the last is its result."""
    lines = (trial.scratch / f"out-{host}").read_text().splitlines()
    said = (trial.scratch / f"err-{host}").read_text()
    assert process.returncode == 0, f"host {host} ended with {process.returncode}: {lines[-1:]} {said}"
    return [json.loads(line) for line in lines]
