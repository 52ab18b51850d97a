"""The rendered ssh script against a real sshd, whose addresses are the hosts, with a stand-in for gdist."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gdist.cli.commands.bootstrap import PERMANENT
from gdist.errors import RequestError
from gdist.run.bootstrap.job import BootstrapJob
from gdist.run.bootstrap.ssh import ssh_script
from gdist.testing.ssh import SshServer, missing_programs, ssh_server

HOSTS = 4
WAIT_SECONDS = 60  # a guard against hangs; the stand-in ends by itself after as much
ssh_is_there = pytest.mark.skipif(bool(missing_programs()), reason=missing_programs())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh"), HOSTS) as server:
        yield server


def job(source: str = "grok-1", hosts: tuple[str, ...] = ("h0", "h1"), **changes: Any) -> BootstrapJob:
    fetch = ("--mesh", "8x8", "--select", "layer [0-3]$")
    return BootstrapJob(
        source, "/data/my models/grok-1", fetch, len(hosts), PERMANENT, hosts=hosts, **changes
    )


@pytest.fixture
def start(server: SshServer, standin: Any, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script for the stand-in on all hosts of the server."""
    started = []

    def start(source: str = "grok-1", ssh: tuple[str, ...] = (), **changes: Any) -> subprocess.Popen[str]:
        made = job(source, server.hosts, program=(str(standin.program),), **changes)
        script = tmp_path / "fetch.sh"
        script.write_text(ssh_script(made, ssh or server.command))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
        started.append(
            subprocess.Popen(
                ["bash", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environ | {"TMPDIR": str(tmp_path)},
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    standin.hold(False)
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def running(standin: Any) -> list[int]:
    """Stand-ins that are still there."""
    return [call["pid"] for call in standin.calls() if Path(f"/proc/{call['pid']}").exists()]


def stopped(standin: Any) -> list[int]:
    return [record["index"] for record in standin.records() if "stopped" in record]


@pytest.mark.slow
@ssh_is_there
def test_every_host_gets_the_line_as_it_was_given(
    start: Callable[..., subprocess.Popen[str]], standin: Any, nasty: str, tmp_path: Path
) -> None:
    then = 'echo "trained as $GDIST_HOST${GDIST_SECRET:+ with the secret}"'
    process = start(nasty, then=then)
    out, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, errors
    calls = standin.calls()
    assert [call["index"] for call in calls] == list(range(HOSTS))
    expected = ["cluster", "fetch", nasty, "/data/my models/grok-1", *job().fetch]
    assert all(call["argv"] == expected and call["count"] == HOSTS for call in calls)
    assert all(call["coordinator"] == "127.0.0.1:7611" for call in calls)
    assert calls[0]["hosts"] == [f"127.0.0.{n + 1}:7611" for n in range(HOSTS)]
    assert all(call["stdin"] == "" for call in calls)
    (secret,) = {call["environ"]["GDIST_SECRET"] for call in calls}
    assert len(secret) == 64 and secret not in out + errors
    assert sorted(out.splitlines()) == sorted(
        f"[127.0.0.{n + 1}] {text}"
        for n in range(HOSTS)
        for text in (f"standing in on host {n}", f"trained as {n}/{HOSTS}")
    )
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    assert not list(tmp_path.glob("tmp.*")), "the script leaves nothing behind"


@pytest.mark.slow
@ssh_is_there
@pytest.mark.parametrize(
    ("codes", "result", "says"),
    [
        ({1: [11], 2: [20]}, 20, "127.0.0.2: ended with 11; run this again, and it goes on"),
        ({0: [20], 1: [15], 2: [11]}, 15, "127.0.0.2: ended with 15; asking again gives the same answer"),
        ({3: [-9]}, 11, "127.0.0.4: ended with 137; run this again"),
    ],
)
def test_the_code_that_matters_most_is_the_scripts(
    start: Callable[..., subprocess.Popen[str]],
    standin: Any,
    codes: dict[int, list[int]],
    result: int,
    says: str,
) -> None:
    standin.ends_with(codes)
    process = start()
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == result
    assert says in errors
    assert len(errors.splitlines()) == len(codes)


@pytest.mark.slow
@ssh_is_there
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_script_ends_every_host_leaves(
    start: Callable[..., subprocess.Popen[str]], standin: Any, how: signal.Signals
) -> None:
    """Also when it is killed and cannot say a word: its end of the hosts' input is gone then."""
    standin.hold(True)
    process = start()
    standin.wait_for(HOSTS)
    process.send_signal(how)
    deadline = time.monotonic() + WAIT_SECONDS
    while stopped(standin) != list(range(HOSTS)) or running(standin):
        assert time.monotonic() < deadline, (stopped(standin), running(standin))
        time.sleep(0.05)
    code = process.wait(WAIT_SECONDS)
    assert code == (-9 if how == signal.SIGKILL else 20)


@pytest.mark.slow
@ssh_is_there
def test_a_lost_connection_lets_the_host_leave_and_is_told(
    start: Callable[..., subprocess.Popen[str]], standin: Any, server: SshServer
) -> None:
    standin.hold(True)
    process = start()
    standin.wait_for(HOSTS)
    for pid in sessions(server.pid, standin.calls()[2]["pid"]):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_SECONDS
    while stopped(standin) != [2]:
        assert time.monotonic() < deadline, stopped(standin)
        time.sleep(0.05)
    standin.hold(False)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 11
    assert errors.strip().endswith("127.0.0.3: ssh did not get there, or lost the connection")


def sessions(server: int, pid: int) -> list[int]:
    """The sshd processes between a server and a process that it started."""
    found = []
    while pid not in (0, 1, server):
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if fields["Name"].strip() == "sshd":
            found.append(pid)
        pid = int(fields["PPid"])
    assert found and pid == server
    return found


@pytest.mark.slow
@ssh_is_there
def test_a_host_that_is_not_there_does_not_keep_the_others(
    start: Callable[..., subprocess.Popen[str]], standin: Any, server: SshServer, tmp_path: Path
) -> None:
    wrapper = tmp_path / "ssh"
    wrapper.write_text(
        '#!/bin/sh\nfor word; do [ "$word" = 127.0.0.2 ] && exit 255; done\n'
        f'exec {" ".join(server.command)} "$@"\n'
    )
    wrapper.chmod(0o755)
    process = start(ssh=(str(wrapper),))
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 11
    assert "127.0.0.2: ssh did not get there" in errors
    assert [call["index"] for call in standin.calls()] == [0, 2, 3]


@pytest.mark.parametrize("then", ["", "python train.py"])
def test_shellcheck_finds_nothing(nasty: str, then: str, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / "fetch.sh"
    script.write_text(ssh_script(job(nasty, then=then), ("ssh", "-l", "my self")))
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ports_are_the_agents() -> None:
    text = ssh_script(job(hosts=("h0", "h1:7000", "fd00::2"), port=7700))
    assert "export GDIST_HOSTS='h0:7700,h1:7000,[fd00::2]:7700'" in text
    assert "hosts=(h0 h1 fd00::2)" in text


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (BootstrapJob("s", "/d", (), 2, (2,)), "needs the names"),
        (BootstrapJob("s", "d", (), 2, (2,), hosts=("a", "b")), "'d' is relative"),
        (BootstrapJob("s", "/d", (), 1, (2,), hosts=("-oProxyCommand=x",)), "no address"),
    ],
)
def test_what_cannot_be_a_script(made: BootstrapJob, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        ssh_script(made)
    assert caught.value.hint
