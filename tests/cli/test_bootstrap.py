"""`gdist bootstrap`: what it prints and refuses, and the check, by itself and with other processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gdist.cli import main
from gdist.cli.commands.bootstrap import PERMANENT
from gdist.exchange.ports import free_port

MAGNET = "magnet:?xt=urn:btih:0123456789012345678901234567890123456789&dn=a b"
COMMON = ["--mesh", "8x8", "--hosts", "8"]
COMMANDS = {
    "slurm": [],
    "kubernetes": ["--image", "registry/gdist:1"],
    "tpu": ["--tpu", "t", "--zone", "us-central2-b"],
    "ssh": [],
    "skypilot": [],
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler around, and no option in the environment."""
    for name in os.environ:
        if name.startswith(("GDIST_", "SLURM_", "OMPI_", "TPU_", "JAX_")):
            monkeypatch.delenv(name)


def hosts(kind: str) -> list[str]:
    return ["--mesh", "8x8", "--hosts", "h[0-7]"] if kind == "ssh" else COMMON


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_script_is_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--", "--max-lan", "10Gb/s", "--select", "layer [0-3]$"]
    assert main(["bootstrap", kind, MAGNET, "/data/m", *hosts(kind), *COMMANDS[kind], *flags]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(("#!/", "# "))
    assert "--max-lan" in out and "10Gb/s" in out and "layer [0-3]" in out
    assert main(["bootstrap", kind, MAGNET, "/data/m", *hosts(kind), *COMMANDS[kind], *flags, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(("#!/", "# ")) and "--json" in out, "behind -- it is the fetch's"


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_script_as_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", kind, "grok-1", "/data/m", "--json", *hosts(kind), *COMMANDS[kind]]) == 0
    (result,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert result["event"] == "result" and "grok-1" in result["text"]


def test_options_of_all_scripts_go_into_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "--gateways",
        "0-1",
        "--encrypt",
        "--gdist",
        "/opt/v/bin/python -m gdist",
        "--then",
        "srun train",
    ]
    assert main(["bootstrap", "slurm", "grok-1", "/data/m", *COMMON, *asked]) == 0
    out = capsys.readouterr().out
    line = "/opt/v/bin/python -m gdist cluster fetch grok-1 /data/m --mesh 8x8 --gateways 0-1 --encrypt\n"
    assert line in out.replace(" \\\n ", "")
    assert out.endswith("srun train\n")


def test_memory_of_the_fetch_is_memory_of_the_pod(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "bootstrap",
        "kubernetes",
        "grok-1",
        "/data/m",
        *COMMON,
        "--image",
        "x:1",
        "--",
        "--memory",
        "4GiB",
    ]
    assert main(command) == 0
    job = list(yaml.safe_load_all(capsys.readouterr().out))[-1]
    (agent,) = job["spec"]["template"]["spec"]["initContainers"]
    assert agent["resources"]["requests"]["memory"] == "5120Mi"


def test_hosts_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts").write_text("h0  # the first\n\nh[1-2]\n# h9\n")
    assert (
        main(["bootstrap", "ssh", "grok-1", "/data/m", "--mesh", "3", "--hosts", f"@{tmp_path}/hosts"]) == 0
    )
    assert "hosts=(h0 h1 h2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["slurm", "grok-1", "/d", "--hosts", "8", "--", "--nonsense"], "No such option '--nonsense'"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--", "extra"], "unexpected extra argument (extra)"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--", "--help"], "--help is no flag"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--", "--mesh"], "requires an argument"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--dtype", "bfloat16"], "No such option"),
        (["slurm", "grok-1", "/d", "--hosts", "7", "--mesh", "8x8"], "7 hosts do not divide the 64 devices"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--mesh", "eight"], "is not a mesh"),
        (["slurm", "grok-1", "/d", "--hosts", "0"], "one host or more"),
        (["slurm", "grok-1", "/d"], "Missing option '--hosts'"),
        (["slurm", "grok-1", "d", *COMMON], "'d' is relative"),
        (["slurm", "grok-1", "/../", *COMMON], "'/../' is the root"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--gdist", "'"], "is no command"),
        (["slurm", "grok-1", "/d", "--hosts", "8", "--gdist", ""], "--gdist is empty"),
        (["ssh", "grok-1", "/d", *COMMON], "needs the names"),
        (["ssh", "grok-1", "/d", "--hosts", "h0,h0"], "'h0' is among the hosts twice"),
        (["ssh", "grok-1", "/d", "--hosts", "@/no/such/file"], "cannot be read"),
        (["ssh", "grok-1", "/d", "--hosts", "h[0-"], "brackets"),
        (["kubernetes", "grok-1", "/d", "--hosts", "8"], "Missing option '--image'"),
        (["tpu", "grok-1", "/d", "--hosts", "8", "--tpu", "t"], "Missing option '--zone'"),
        (["slurm", "grok-1", "/d\n#SBATCH --x", "--hosts", "8"], "do not print"),
        (["slurm", "", "/d", "--hosts", "8"], "the source '' is none"),
    ],
)
def test_what_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and "hint: " in err


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--gateways", "9"], "gateway 9 is none of 8 hosts"),
        (["--encrypt", "--", "--exchange", "collective"], "--encrypt cannot be had"),
        (["--", "--deadline", "banana"], "'banana'"),
        (["--", "--max-lan", "frog"], "'frog'"),
        (["--", "--hold", "much"], "'much'"),
        (["--", "--linger", "long"], "'long'"),
        (["--", "--http", "here"], "'here' is no address"),
        (["--", "--report", "run.txt"], "--report writes HTML"),
        (["--", "--payload", "keep"], "keeps no payload"),
        (["--", "--deadline", "1h", "--min-hosts", "9"], "more than the job has, 8 hosts"),
        (["--", "--min-hosts", "8"], "there is none"),
        (["--", "--rules", "no-such-rules"], "no-such-rules"),
        (["--", "--profile", "nobody"], "profile 'nobody'"),
        (["--", "--peer", "nowhere"], "nowhere"),
        (["--", "--host", "3/8"], "--host cannot be given after --"),
        (["--", "--hosts", "h[0-7]"], "--hosts cannot be given after --"),
        (["--", "--coordinator", "h0"], "--coordinator cannot be given after --"),
        (["--", "--cluster", "alone"], "--cluster cannot be given after --"),
        (["--", "--secret", "X"], "--secret cannot be given after --"),
        (["--", "--port", "7"], "--port cannot be given after --"),
        (["--", "--mesh", "4x4"], "--mesh is given before -- and after it"),
        (["--encrypt", "--", "--encrypt"], "--encrypt is given before -- and after it"),
        (["--", "--manifest", "./m.json"], "'./m.json' is relative"),
        (["--", "--manifest", "rel.json"], "'rel.json' is relative"),
        (["--", "--verify-key", "zz"], "'zz' is relative"),
        (["--", "--work-dir", "rel"], "'rel' is relative"),
        (["--secret-file", "rel"], "'rel' is relative"),
        (["--", "--select", "("], "select is no regular expression: '('"),
    ],
)
@pytest.mark.parametrize("kind", COMMANDS)
def test_flags_of_the_line_are_read_as_the_hosts_will_read_them(
    kind: str, asked: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bootstrap", kind, "grok-1", "/d", *hosts(kind), *COMMANDS[kind], *asked]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err


@pytest.mark.parametrize("kind", COMMANDS)
def test_several_hosts_need_a_mesh(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", kind, "grok-1", "/d", *hosts(kind)[2:], *COMMANDS[kind]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "8 hosts do not divide the 1 device of" in err and "hint: give --mesh" in err


def test_a_mesh_after_the_dashes_will_do_too(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--", "--mesh", "-1x8", "--devices-per-host", "8"]
    assert main(["bootstrap", "slurm", "grok-1", "/d", "--hosts", "8", *flags]) == 0
    assert "--mesh -1x8" in capsys.readouterr().out


def test_what_this_host_s_environment_says_is_not_the_hosts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GDIST_DEADLINE", "banana")
    monkeypatch.setenv("GDIST_SECRET", "ours")
    assert main(["bootstrap", "slurm", "grok-1", "/d", *COMMON]) == 0
    assert "ours" not in capsys.readouterr().out


def test_files_that_only_the_hosts_have_are_left_to_them(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rules", "/shared/rules.yaml", "--profile", "/shared/names.toml", "--report", "/shared/r.html"]
    assert main(["bootstrap", "slurm", "/shared/a.torrent", "/d", *COMMON, "--", *flags]) == 0


def test_a_file_that_lies_here_is_not_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.torrent").write_bytes(b"d1:ae")
    for source in ("local.torrent", "./local.torrent", "../other.torrent"):
        assert main(["bootstrap", "slurm", source, "/d", *COMMON]) == 2
        assert f"the file '{source}' is relative" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["not-a-thing", "elsewhere.torrent", "ftp://x/a.torrent", "magnet:?dn=x"])
def test_a_source_that_can_be_none(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "slurm", source, "/d", *COMMON]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and "hint: " in err


def test_what_stands_for_a_file_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--manifest", "grok-1", "--verify-key", "ab" * 32, "--work-dir", "/scratch/w"]
    for source in ("ab" * 20, "https://x/a.torrent"):
        assert main(["bootstrap", "slurm", source, "/d", *COMMON, "--", *flags]) == 0
    assert main(["bootstrap", "slurm", "ab" * 20, "/d", *COMMON, "--", "--manifest", "https://x/m.json"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--time", "banana"],
        ["--time", "1:2:3:4"],
        ["--sbatch", "--nodes=3"],
        ["--sbatch", "-N3"],
        ["--sbatch", "-n 3"],
        ["--sbatch", "--time 4:00:00"],
        ["--sbatch", "--no-requeue"],
    ],
)
def test_what_slurm_would_refuse_or_read_twice(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "slurm", "grok-1", "/d", *COMMON, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words[-1] in err and "hint: " in err


@pytest.mark.parametrize("time", ["30", "30:00", "4:00:00", "1-12", "1-12:30", "1-12:30:00", "UNLIMITED"])
def test_times_of_slurm(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "slurm", "grok-1", "/d", *COMMON, "--time", time]) == 0
    assert f"#SBATCH --time={time}\n" in capsys.readouterr().out


def test_a_pod_s_probes_have_their_port(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bootstrap", "kubernetes", "grok-1", "/d", *COMMON, "--image", "x:1"]
    assert main([*command, "--", "--http", ":9000"]) == 2
    assert "the manifest gives it" in capsys.readouterr().err
    assert main([*command, "--port", "7612"]) == 0
    job = list(yaml.safe_load_all(capsys.readouterr().out))[-1]
    (agent,) = job["spec"]["template"]["spec"]["initContainers"]
    assert [port["containerPort"] for port in agent["ports"]] == [7612, 7611]
    assert agent["command"][-2:] == ["--http", "0.0.0.0:7611"]


def test_codes_after_which_asking_again_is_useless() -> None:
    assert PERMANENT == (2, 12, 14, 15, 17, 70)


# --- the check ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["check"], ["--check"]])
def test_a_lone_host_is_well(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", *words, str(tmp_path / "m"), "--memory", "16MiB"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "membership" in out and "host 0 of 1, by alone" in out
    assert all(line.startswith(("ok ", "warn", " ")) for line in out.splitlines())


def test_the_check_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "check", str(tmp_path / "m"), "--json", "--memory", "16MiB"]) == 0
    (result,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert result["event"] == "result" and result["ok"] is True
    checks = {finding["check"]: finding for finding in result["findings"]}
    assert {"membership", "port", "memory", "disk space", "file system", "clock", "open files"} <= set(checks)
    assert all(finding["status"] in ("ok", "warn") for finding in checks.values())


@pytest.mark.parametrize(
    ("words", "code", "check"),
    [
        (["/proc/none"], 17, "destination"),
        (["/tmp/m", "--need", "1000PB"], 13, "disk space"),
        (["--memory", "1000TB"], 2, "memory"),
        (["--host", "2/2"], 2, "membership"),
        (["--host", "1/2", "--coordinator", "no-such-host.invalid"], 11, "coordinator"),
        (["--host", "1/2"], 2, "coordinator"),
        (["--cluster", "slurm"], 2, "membership"),
    ],
)
def test_the_code_is_that_of_what_would_go_wrong(
    words: list[str], code: int, check: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bootstrap", "check", *words, "--json"]) == code
    report, error = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (report["event"], report["ok"], error["event"], error["code"]) == ("report", False, "error", code)
    failed = [finding["check"] for finding in report["findings"] if finding["status"] == "fail"]
    assert failed == [check] and error["message"].startswith(f"{check}: ") and error["hint"]


def test_a_failure_is_in_the_table_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "check", "--memory", "1000TB"]) == 2
    out, err = capsys.readouterr()
    assert "\nfail  memory" in out and "-> lower --memory" in out
    assert err.startswith("error: memory: ") and "hint: lower --memory" in err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["bootstrap", "check", "--host", "0/2", "--coordinator", f"127.0.0.1:{port}"]) == 2
    assert f"port: {port}: " in capsys.readouterr().err


def test_a_port_of_ones_own_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """The fetch with this --port would end so, on any host."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        where = ["--host", "1/2", "--coordinator", f"127.0.0.1:{free_port()}"]
        assert main(["bootstrap", "check", *where, "--port", str(port)]) == 2
    assert f"port: {port}: " in capsys.readouterr().err


def test_another_program_on_the_coordinators_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gdist.run.environment.network.CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        assert main(["bootstrap", "check", "--host", "1/2", "--coordinator", where]) == 2
    err = capsys.readouterr().err
    assert f"coordinator: {where} takes connections, and does not speak as gdist does" in err
    assert "does not answer" not in err


@pytest.mark.parametrize("words", [["--together", "1s"], ["--host", "0/2", "--together", "0s"]])
def test_a_meeting_needs_others_and_time(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "check", "--coordinator", "127.0.0.1:1", "--host", "0/1", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and "together" in err


@pytest.mark.slow
def test_processes_meet(tmp_path: Path) -> None:
    """The same line everywhere, but for the index; only where host 0 is has to be known."""
    coordinator = f"127.0.0.1:{free_port()}"
    (tmp_path / "secret").write_text("correct horse\n")
    command = [sys.executable, "-m", "gdist", "bootstrap", "check", str(tmp_path / "m"), "--memory", "16MiB"]
    command += [
        "--together",
        "60s",
        "--coordinator",
        coordinator,
        "--secret",
        f"@{tmp_path}/secret",
        "--encrypt",
    ]
    started = [
        subprocess.Popen([*command, "--host", f"{n}/3", "--json"], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for process in started:
        out, _ = process.communicate(timeout=90)
        (result,) = (json.loads(line) for line in out.splitlines())
        checks: dict[str, Any] = {finding["check"]: finding for finding in result["findings"]}
        assert process.returncode == 0, result
        assert checks["together"]["what"].startswith("all 3 hosts were met; the secret is theirs too")
        assert checks["clock"]["what"].endswith("those of 2 other hosts")
