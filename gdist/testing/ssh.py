"""A real sshd on loopback, for tests: keys and all in a directory of its own, open to nobody else.

    with ssh_server(tmp_path) as server:
        subprocess.run([*server.command, "127.0.0.2", "hostname"])

Each of 127.0.0.1, 127.0.0.2, ... is a host of its own to whoever connects, and this machine in truth. Needs
Debian's `openssh-server` and `openssh-client`; `missing_programs` says what is not installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gdist.exchange.ports import free_port

PROGRAMS = ("sshd", "ssh", "ssh-keygen")
START_SECONDS, STOP_SECONDS = 60, 10
PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled in; sshd wants it when root runs it, at each connection
_LOCK = Path(tempfile.gettempdir()) / "gdist-sshd.lock"  # of the processes that run tests at once
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # sshd is in sbin

_CONF = """\
Port {port}
{listen}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile {directory}/sshd.pid
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding no
X11Forwarding no
MaxStartups 100
MaxSessions 100
PrintMotd no
"""


def missing_programs() -> str:
    """Why no sshd can be started here, or ''."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: openssh-server, openssh-client)"
    return ""


@dataclass(frozen=True, slots=True)
class SshServer:
    """A running sshd: how to call ssh so that it gets there, and the addresses that are its hosts."""

    command: tuple[str, ...]
    hosts: tuple[str, ...]
    pid: int


@contextlib.contextmanager
def ssh_server(directory: Path, hosts: int = 4) -> Iterator[SshServer]:
    """Starts an sshd on so many addresses of loopback, and stops it with all that runs in its sessions."""
    sshd, keygen = shutil.which("sshd", path=_PATH), shutil.which("ssh-keygen", path=_PATH)
    assert sshd and keygen, missing_programs()
    addresses = tuple(f"127.0.0.{n + 1}" for n in range(hosts))
    for name in ("host_key", "user_key"):
        made = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(made, check=True)
    port = free_port()
    key = (directory / "host_key.pub").read_text().rsplit(" ", 1)[0]
    known = directory / "known_hosts"
    known.write_text("".join(f"[{address}]:{port} {key}\n" for address in addresses))
    listen = "\n".join(f"ListenAddress {address}" for address in addresses)
    conf = directory / "sshd_config"
    conf.write_text(_CONF.format(port=port, listen=listen, directory=directory))
    ssh = f"ssh -F none -p {port} -i {directory}/user_key -o IdentitiesOnly=yes"
    command = tuple(f"{ssh} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes".split())
    with _privilege_separation(), (directory / "sshd.log").open("ab") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(conf)], stdin=subprocess.DEVNULL, stderr=log)
        try:
            _wait_for(port, process, directory / "sshd.log")
            yield SshServer(command, addresses, process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()


@contextlib.contextmanager
def _privilege_separation() -> Iterator[None]:
    """The directory is there. That it was made is noted in the lock its users share; the last removes it."""
    if os.geteuid():
        yield
        return
    with _LOCK.open("a+b") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with contextlib.suppress(FileExistsError):
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
            users.write(b"made here")
            users.flush()
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError):  # another one uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(users.fileno()).st_size:
                    users.truncate(0)
                    PRIVILEGE_SEPARATION.rmdir()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
