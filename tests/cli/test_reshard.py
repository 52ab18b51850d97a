"""`gdist reshard` as people run it, and what the views make of its events."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gdist.cli import main, words
from gdist.cli.live import LiveView
from gdist.cli.plain import PlainLines
from gdist.core.mesh import HostGroup
from gdist.events import Binds, Finished, ReshardPlanned, ReshardProgress, Stage, StageStarted
from gdist.testing.fetches import Array, assert_holds
from gdist.testing.stores import write_store

RULES = {"axes": ["data", "model"], "rules": [["w$", ["data", "model"]], [".*", []]]}


def sample() -> dict[str, Array]:
    return {f"{n}.w": np.arange(64 * 32, dtype=np.int32).reshape(64, 32) + n for n in range(3)}


def gdist(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One run of the program; whatever happens, it shows no traceback."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    command = [sys.executable, "-W", "error", "-m", "gdist", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def test_the_result_alone_is_on_standard_output(tmp_path: Path) -> None:
    for index in range(2):
        write_store(tmp_path / f"host{index}", sample(), mesh="2x2", rules=RULES, host=HostGroup(index, 2))
    source = (tmp_path / "host0", tmp_path / "host1")
    done = gdist("reshard", *source, tmp_path / "b", "--mesh", "4x2", "--memory", "64MiB")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/b\n"), done.stderr
    assert "3 tensors on mesh data=4,model=2: keeps 24.58 kB, reads 24.58 kB in 12 parts" in done.stderr
    assert_holds(tmp_path / "b", sample())
    again = gdist("reshard", *source, tmp_path / "b", "--mesh", "4x2", "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{tmp_path}/b\n", "")


def test_json_lines_end_with_the_result(tmp_path: Path) -> None:
    write_store(tmp_path / "a", sample(), rules=RULES, mesh="1x2")
    options = ("--mesh", "1x4", "--host", "1/4", "--codec", "zstd", "--json")
    done = gdist("reshard", tmp_path / "a", tmp_path / "b", *options)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["host"] for line in lines} == {1}
    planned = next(line for line in lines if line["event"] == "reshard_planned")
    assert (planned["bytes_read"], planned["bytes_beyond"]) == (12288, 6144), "half of each column's chunk"
    result = lines[-1]
    assert result["event"] == "result" and not result["already"]
    assert (result["kept_nbytes"], result["read_nbytes"], result["beyond_nbytes"]) == (6144, 12288, 6144)
    assert result["info_hash"] == "ab" * 20


def test_errors_have_their_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "a", sample(), rules=RULES, mesh="1x2")
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/b", "--mesh", "2x2", "-q"]) == 0
    capsys.readouterr()
    cases = (
        (("a", "a"), 2),
        (("none", "c"), 2),
        (("a", "c", "--mesh", "3x5"), 2),
        (("a",), 2),
        (("a", "b", "--mesh", "4x2"), 15),
    )
    for words_given, code in cases:
        paths = [f"{tmp_path}/{word}" if word.isalpha() else word for word in words_given]
        assert main(["reshard", *paths, "-q"]) == code, words_given
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1].startswith("hint: "), words_given
    damaged = tmp_path / "a/1.w/c/0/0"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/c", "--mesh", "2x2", "--json"]) == 12
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (error["event"], error["code"], error["retry"]) == ("error", 12, False)
    assert error["facts"]["tensor"] == "1.w"


PLANNED = ReshardPlanned(
    3, 12, 200, 2 * 10**9, 3 * 10**9, 10**9, 5 * 10**8, 2 * 10**9, "data=4,model=2", 1, 4
)
PROGRESS = ReshardProgress(4.0, 15 * 10**8, 10**9, 2 * 10**9, 1, 3, Binds.CONVERT)


def test_the_plan_says_what_is_read_in_vain() -> None:
    assert words.planned(PLANNED) == (
        "3 tensors on mesh data=4,model=2, host 1 of 4: keeps 2.00 GB, reads 3.00 GB in 200 parts, "
        "1.00 GB of it beyond what it keeps, 500.00 MB already here"
    )


def test_a_terminal_shows_where_it_stands() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    view = LiveView(console)
    try:
        for event in (StageStarted(Stage.RESHARD), PLANNED, PROGRESS):
            view(event)
        with console.capture() as captured:
            console.print(view.draw())
    finally:
        view.close()
    shown = captured.get()
    assert "reshard" in shown and "50.0%" in shown and "1 of 3 tensors ready" in shown
    assert "read 1.50 GB" in shown and "binds: read and place" in shown and "peers" not in shown


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines(every=0.0)
    for event in (StageStarted(Stage.RESHARD), PLANNED, PROGRESS, Finished("/b", 8 * 10**9, 3.0, False, ())):
        lines(event)
    lines.close()
    said = capsys.readouterr().err
    assert "resharding" in said and "50.0%  1.00 GB of 2.00 GB   tensors 1/3   read 1.50 GB" in said
    assert "complete: 2.00 GB of 8.00 GB on host 1 of 4" in said


SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "n[0-1]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_scheduler_says_which_host_this_is(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "a", sample(), rules=RULES, mesh="1x2")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    given = ["--host", "job"]
    if way == "variable":
        monkeypatch.setenv("GDIST_HOST", "job")
        given = []
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/b", "--mesh", "2x2", *given]) == 0
    err = capsys.readouterr().err
    assert "host 1 of 2, by slurm (SLURM_JOB_ID=17, SLURM_STEP_NODELIST=n[0-1], SLURM_NODEID=1" in err
    assert [path.name for path in (tmp_path / "b").glob("gdist*.json")] == ["gdist.host-00001-of-00002.json"]
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2)")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/b", "--mesh", "2x2", *given]) == 2
    assert "hint: start one process a host, or say --host INDEX/COUNT" in capsys.readouterr().err


def test_a_lone_host_among_several_hears_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "a", sample(), rules=RULES, mesh="1x2")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/b", "--mesh", "2x2"]) == 0
    note = "all of the store is written by this process: --host job has each host write its part"
    assert f"note: {note}; this is host 1 of 2, by slurm" in capsys.readouterr().err
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/c", "--mesh", "2x2", "--host", "0/1"]) == 0
    assert note not in capsys.readouterr().err
    monkeypatch.delenv("SLURM_NODEID")  # half set: nobody asked
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/d", "--mesh", "2x2"]) == 0
    assert main(["reshard", f"{tmp_path}/a", f"{tmp_path}/e", "--mesh", "2x2", "--host", "job"]) == 2
