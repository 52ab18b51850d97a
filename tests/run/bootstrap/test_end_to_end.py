"""The printed scripts with gdist itself, by Slurm's daemons and by ssh; the seeder is on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gdist
from gdist.cli import main
from gdist.core.magnet import format_magnet
from gdist.exchange.ports import free_ports
from gdist.run.verify import verify
from gdist.testing import slurm as slurm_rig
from gdist.testing import ssh as ssh_rig
from gdist.testing.checkpoints import write_grok1
from gdist.testing.fetches import Array, assert_holds
from gdist.testing.swarm import Seeded, seed

pytestmark = [pytest.mark.torrent, pytest.mark.slow]

HOSTS = 4
FLAGS = ("--no-dht", "--listen", "127.0.0.1:0", "--linger", "30s", "--memory", "64MiB")
GDIST = f"env PYTHONPATH={Path(gdist.__file__).parents[1]} {sys.executable} -m gdist"


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "grok"
    return root, write_grok1(root, layers=2, emb=64, ffn=256, vocab=512)


@pytest.fixture
def seeded(grok: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(grok[0], piece_length=1 << 14) as found:
        yield found


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment without a word about clusters, also for this process."""
    for name in [name for name in os.environ if name.startswith(("GDIST_", "SLURM_"))]:
        monkeypatch.delenv(name)
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def addresses() -> tuple[str, ...]:
    """An address for each host: all are this machine, and ports tell them apart."""
    return tuple(f"127.0.0.{n + 1}:{port}" for n, port in enumerate(free_ports(HOSTS)))


def printed(kind: str, *words: str, capsys: pytest.CaptureFixture[str], into: Path) -> Path:
    """The script that `gdist bootstrap` prints, in a file."""
    assert (
        main(["bootstrap", kind, *words, "--mesh", "2x4", "--gdist", GDIST, "--encrypt", "--", *FLAGS]) == 0
    )
    into.write_text(capsys.readouterr().out)
    return into


def nbytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def assert_fetched_once(dest: Path, grok: tuple[Path, dict[str, Array]], seeded: Seeded) -> None:
    """That the store holds everything, of all hosts' parts, and the seeder gave each byte once."""
    assert_holds(dest, {name: np.asarray(array) for name, array in grok[1].items()})
    assert verify(str(dest)).ok
    assert len(list(dest.glob("gdist.host-*.json"))) == HOSTS
    assert nbytes(grok[0]) <= seeded.stats().uploaded <= 1.05 * nbytes(grok[0])


@pytest.mark.skipif(bool(slurm_rig.missing_programs()), reason=slurm_rig.missing_programs())
def test_sbatch(
    grok: tuple[Path, dict[str, Array]],
    seeded: Seeded,
    environ: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four nodes fetch, the job trains; submitted again it returns at once."""
    dest, magnet = tmp_path / "a store", format_magnet(seeded.magnet)
    words = (magnet, str(dest), "--hosts", str(HOSTS), "--then", 'echo "trained on $SLURM_JOB_NUM_NODES"')
    script = printed("slurm", *words, capsys=capsys, into=tmp_path / "job.sh")
    with slurm_rig.slurm_cluster(tmp_path / "slurm", nodes=HOSTS) as slurm:
        # The nodes' names do not resolve here; on a cluster nothing has to be said.
        more = {**environ, "GDIST_HOSTS": ",".join(addresses())}
        for run in range(2):
            number = slurm.submit(script, env=more)
            facts = slurm.wait(number, timeout=150)
            said = slurm.output(number)
            assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), said
            assert said.endswith(f"trained on {HOSTS}\n")
            assert said.count(f"{dest}\n") == HOSTS, "each node prints where the store is"
            assert ("complete already" in said) is (run == 1), said
            assert_fetched_once(dest, grok, seeded)


@pytest.mark.skipif(bool(ssh_rig.missing_programs()), reason=ssh_rig.missing_programs())
def test_ssh(
    grok: tuple[Path, dict[str, Array]],
    seeded: Seeded,
    environ: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dest, magnet = tmp_path / "a store", format_magnet(seeded.magnet)
    with ssh_rig.ssh_server(tmp_path, HOSTS) as server:
        words = (magnet, str(dest), "--hosts", ",".join(addresses()), "--ssh", " ".join(server.command))
        script = printed("ssh", *words, "--then", "echo trained", capsys=capsys, into=tmp_path / "fetch.sh")
        for _ in range(2):
            done = subprocess.run(
                ["bash", str(script)], capture_output=True, text=True, env=environ, timeout=150
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stderr == ""
            for host in server.hosts:
                assert f"[{host}] trained" in done.stdout and f"[{host}] {dest}" in done.stdout
            assert_fetched_once(dest, grok, seeded)


@pytest.mark.skipif(bool(ssh_rig.missing_programs()), reason=ssh_rig.missing_programs())
def test_ssh_tells_what_asking_again_does_not_help(
    seeded: Seeded, environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A destination that is somebody else's, on every host."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    with ssh_rig.ssh_server(tmp_path, HOSTS) as server:
        words = (format_magnet(seeded.magnet), str(tmp_path / "taken"), "--hosts", ",".join(addresses()))
        script = printed(
            "ssh", *words, "--ssh", " ".join(server.command), capsys=capsys, into=tmp_path / "fetch.sh"
        )
        done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environ, timeout=150)
    assert done.returncode == 2
    assert done.stderr.count("asking again gives the same answer") == HOSTS
    assert "holds no gdist store (diary.txt)" in done.stdout
    assert seeded.stats().uploaded == 0


@pytest.mark.skipif(bool(slurm_rig.missing_programs()), reason=slurm_rig.missing_programs())
def test_srun_check(environ: dict[str, str], tmp_path: Path) -> None:
    """The line at the head of the batch script, with the nodes meeting one another."""
    with slurm_rig.slurm_cluster(tmp_path / "slurm", nodes=HOSTS) as slurm:
        command = [*GDIST.split(), "bootstrap", "check", str(tmp_path / "m"), "--memory", "64MiB", "--json"]
        more = {**environ, "GDIST_HOSTS": ",".join(addresses()), "GDIST_SECRET": "correct horse"}
        srun = ["srun", f"-N{HOSTS}", "--ntasks-per-node=1", f"--output={tmp_path}/said-%n"]
        slurm.run(*srun, *command, "--together", "60s", env=more, timeout=120)
    for index in range(HOSTS):
        (result,) = map(json.loads, (tmp_path / f"said-{index}").read_text().splitlines())
        assert result["ok"] and result["host"] == index
        found = {finding["check"]: finding["what"] for finding in result["findings"]}
        assert found["membership"].startswith(f"host {index} of {HOSTS}, by slurm (")
        assert found["together"].startswith(f"all {HOSTS} hosts were met; the secret is theirs too")


@pytest.mark.skipif(bool(slurm_rig.missing_programs()), reason=slurm_rig.missing_programs())
def test_several_ranks_a_host_are_one_agent(
    grok: tuple[Path, dict[str, Array]], seeded: Seeded, environ: dict[str, str], tmp_path: Path
) -> None:
    """The line in a script that every rank runs: one of each host's fetches, the others wait for it."""
    dest = tmp_path / "store"
    with slurm_rig.slurm_cluster(tmp_path / "slurm", nodes=HOSTS) as slurm:
        command = [
            *GDIST.split(),
            "cluster",
            "fetch",
            format_magnet(seeded.magnet),
            str(dest),
            "--mesh",
            "2x4",
        ]
        more = {**environ, "GDIST_HOSTS": ",".join(addresses()), "GDIST_SECRET": "correct horse"}
        said = slurm.run("srun", f"-N{HOSTS}", "--ntasks-per-node=2", *command, *FLAGS, env=more, timeout=150)
    assert said.stdout.splitlines() == [str(dest)] * 2 * HOSTS
    assert_fetched_once(dest, grok, seeded)
