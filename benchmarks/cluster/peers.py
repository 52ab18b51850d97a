"""What one would do without gdist. Each gives every host all: they know no tensors, hence no shards."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from origin import PEER_PORT
from trial import HERE, Trial

from gdist.testing.netns import WORLD, Rig

# No DHT and no local discovery: there is nothing to find in a rig. Files are not written ahead.
ARIA2 = ("aria2c", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--quiet")
ARIA2_FILES = ("--file-allocation=none", "--allow-overwrite=true")
CIPHER = "aes128-gcm@openssh.com"  # the cheapest of OpenSSH on CPUs with AES instructions
SSHD = """
Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
"""


def aria2(trial: Trial) -> dict[int, float]:
    """aria2 on every host, told by the tracker of the seeder and of each other; it goes on seeding."""
    start = time.monotonic()
    for host in range(trial.rig.hosts):
        _start_aria2(trial, host, "--seed-ratio=0.0")
    return trial.wait(lambda host: _mark(trial, host).exists(), range(trial.rig.hosts), start)


def swarm(trial: Trial) -> dict[int, float]:
    """libtorrent with its default settings on every host; each is given the seeder and all the others."""
    rig, start = trial.rig, time.monotonic()
    for host in range(rig.hosts):
        others = [rig.address(other) for other in range(rig.hosts) if other != host]
        words = [sys.executable, HERE / "stock.py", rig.address(host), trial.release.torrent]
        words += [trial.directory(host), _mark(trial, host), rig.address(WORLD), *others]
        rig.popen(host, words)
    return trial.wait(lambda host: _mark(trial, host).exists(), range(rig.hosts), start)


def scp(trial: Trial) -> dict[int, float]:
    """aria2 on host 0, which then copies to all the others at once."""
    with ExitStack() as stack:
        keys = _serve_ssh(trial, stack)
        start = time.monotonic()
        seconds = _download(trial, start)
        copies = {host: _copy(trial, keys, 0, host) for host in range(1, trial.rig.hosts)}
        return seconds | trial.wait(lambda host: _ended(copies[host]), copies, start)


def scp_tree(trial: Trial) -> dict[int, float]:
    """aria2 on host 0; then every host that has it copies to one that has not, until all have."""
    with ExitStack() as stack:
        keys = _serve_ssh(trial, stack)
        start = time.monotonic()
        seconds = _download(trial, start)
        free, missing = [0], list(range(1, trial.rig.hosts))
        running: dict[tuple[int, int], subprocess.Popen[bytes]] = {}
        while missing or running:
            while free and missing:
                pair = (free.pop(0), missing.pop(0))
                running[pair] = _copy(trial, keys, *pair)
            for pair in [pair for pair, process in running.items() if _ended(process)]:
                del running[pair]
                free += pair
                seconds[pair[1]] = time.monotonic() - start
            time.sleep(0.02)
        return seconds


def check(trial: Trial) -> None:
    """Every host has every file as it was."""
    files = [path for path in trial.release.directory.rglob("*") if path.is_file()]
    for host in range(trial.rig.hosts):
        base = trial.directory(host)
        for path in files:
            copy = base / path.relative_to(trial.release.directory.parent)
            assert filecmp.cmp(path, copy, shallow=False), f"{copy} differs"


def _download(trial: Trial, start: float) -> dict[int, float]:
    process = _start_aria2(trial, 0, "--seed-time=0")
    return trial.wait(lambda host: _ended(process), [0], start)


def _start_aria2(trial: Trial, host: int, *more: str) -> subprocess.Popen[bytes]:
    hook = trial.scratch / "hook.sh"
    if not hook.exists():
        hook.write_text('#!/bin/sh\nexec touch "$DONE"\n')
        hook.chmod(0o755)
    words = [*ARIA2, *ARIA2_FILES, f"--listen-port={PEER_PORT}", f"--on-bt-download-complete={hook}", *more]
    return trial.rig.popen(
        host,
        [*words, "--dir", trial.directory(host), trial.release.torrent],
        env={**os.environ, "DONE": str(_mark(trial, host))},
    )


def _mark(trial: Trial, host: int) -> Path:
    """The file that says that a host has everything."""
    return trial.scratch / f"done-{host}"


def _serve_ssh(trial: Trial, stack: ExitStack) -> Path:
    """sshd on every host, with keys of this trial."""
    keys = trial.scratch / "keys"
    keys.mkdir()
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(words, check=True)
    (keys / "sshd_config").write_text(SSHD.format(keys=keys))
    Path("/run/sshd").mkdir(exist_ok=True)
    for host in range(trial.rig.hosts):
        server = trial.rig.popen(host, ["/usr/sbin/sshd", "-D", "-f", keys / "sshd_config"])
        stack.callback(server.wait)
        stack.callback(server.kill)
    for host in range(trial.rig.hosts):
        _wait_for_ssh(trial.rig, host)
    return keys


def _wait_for_ssh(rig: Rig, host: int) -> None:
    probe = f"import socket; socket.create_connection(('{rig.address(host)}', 22), 5)"
    for _ in range(100):
        if not rig.run(host, [sys.executable, "-S", "-c", probe]).returncode:
            return
        time.sleep(0.05)
    raise AssertionError(f"sshd does not start on host {host}")


def _copy(trial: Trial, keys: Path, source: int, target: int) -> subprocess.Popen[bytes]:
    options = [f"-oIdentityFile={keys}/user", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"]
    where = f"root@{trial.rig.address(target)}:{trial.directory(target)}"
    name = trial.release.directory.name
    words = ["scp", "-q", "-B", "-r", "-c", CIPHER, *options, trial.directory(source) / name, where]
    return trial.rig.popen(source, words)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    code = process.poll()
    assert not code, f"{process.args} ended with {code}"
    return code is not None
