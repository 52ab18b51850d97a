"""File systems: those of this machine tried out, and what would follow from others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gdist.errors import FilesystemError, SpaceError
from gdist.run.environment.findings import Finding, Status
from gdist.run.environment.storage import (
    Abilities,
    about_abilities,
    about_inodes,
    about_kind,
    about_space,
    check_storage,
    file_system,
    nearest,
    try_out,
)

GB = 10**9
MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:30 / /scratch rw - lustre 10.0.0.1@tcp:/lus rw
31 22 0:31 / /home rw - nfs4 server:/home rw
32 31 0:32 / /home/me/ram rw - tmpfs tmpfs rw
33 22 0:33 / /mnt/with\\040blank rw - xfs /dev/vdb rw
34 30 0:34 / /scratch rw - fuse.sshfs x rw
35 22 0:35 / /run/../run rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "mount"),
    [
        ("/data", "ext4", "/"),
        ("/home/you", "nfs4", "/home"),
        ("/homely", "ext4", "/"),
        ("/home/me/ram/x", "tmpfs", "/home/me/ram"),
        ("/mnt/with blank/x", "xfs", "/mnt/with blank"),
        ("/scratch/x", "fuse.sshfs", "/scratch"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str, mount: str) -> None:
    assert file_system(Path(path), MOUNTS) == (kind, mount)


def test_this_machine_has_file_systems(tmp_path: Path) -> None:
    kind, mount = file_system(tmp_path)
    assert kind != "unknown" and str(tmp_path).startswith(mount)
    if Path("/dev/shm").is_dir():
        assert file_system(Path("/dev/shm/x"))[0] == "tmpfs"


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("ext4", Status.OK, "ext4"),
        ("tmpfs", Status.WARN, "is RAM"),
        ("nfs4", Status.WARN, "shared"),
        ("lustre", Status.WARN, "shared"),
        ("fuse.gcsfuse", Status.WARN, "shared"),
        ("overlay", Status.WARN, "container's own layer"),
    ],
)
def test_kinds(kind: str, status: Status, says: str) -> None:
    found = about_kind(kind, "/data")
    assert found.status is status and says in found.what


@pytest.mark.parametrize("place", ["disk", "ram"])
def test_what_a_fetch_does_is_tried_out(tmp_path: Path, place: str) -> None:
    directory = tmp_path if place == "disk" else Path("/dev/shm")
    if not directory.is_dir():
        pytest.skip("there is no /dev/shm")
    before = set(os.listdir(directory))
    found = try_out(directory)
    assert found.rename and found.lock and found.preallocate
    assert 0 <= found.sync_seconds < 60
    assert not {name for name in set(os.listdir(directory)) - before if name.startswith(".gdist-check")}


@pytest.mark.parametrize(
    ("abilities", "status", "says"),
    [
        (Abilities(True, True, True, True, 0.01), Status.OK, "work"),
        (Abilities(True, True, False, True, 0.01), Status.WARN, "no preallocation"),
        (Abilities(True, True, True, False, 0.01), Status.WARN, "no holes"),
        (Abilities(True, True, True, True, 4.2), Status.WARN, "took 4.2 s to be durable"),
        (Abilities(True, False, True, True, 0.01), Status.FAIL, "lacks flock"),
        (Abilities(False, False, True, True, 0.01), Status.FAIL, "lacks rename over a file and flock"),
    ],
)
def test_abilities(abilities: Abilities, status: Status, says: str) -> None:
    (found,) = about_abilities(abilities, "/data", "lustre")
    assert found.status is status and says in found.what
    assert (found.family is FilesystemError) is (status is Status.FAIL)


@pytest.mark.parametrize(
    ("free", "needed", "status"),
    [
        (500 * GB, None, Status.OK),
        (500 * GB, 400 * GB, Status.OK),
        (500 * GB, 501 * GB, Status.FAIL),
        (GB // 2, None, Status.WARN),
        (GB // 2, GB // 4, Status.OK),
    ],
)
def test_space(free: int, needed: int | None, status: Status) -> None:
    found = about_space(free, needed, "/data")
    assert found.status is status
    assert (found.family is SpaceError) is (status is Status.FAIL)


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [(0, 0, Status.OK), (10**6, 10**5, Status.OK), (10**6, 5000, Status.WARN), (10**6, 3, Status.FAIL)],
)
def test_inodes(total: int, free: int, status: Status) -> None:
    assert about_inodes(total, free).status is status


def by_check(directory: Path, needed: int | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_storage(directory, needed)}


def test_a_destination_need_not_exist(tmp_path: Path) -> None:
    dest = tmp_path / "not" / "yet"
    found = by_check(dest)
    assert found["destination"].status is Status.OK and str(tmp_path) in found["destination"].what
    assert not dest.exists() and not list(tmp_path.iterdir())
    assert nearest(dest) == tmp_path
    assert by_check(dest, 1 << 60)["disk space"].status is Status.FAIL


def test_a_destination_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = by_check(tmp_path / "file" / "below")
    assert found["destination"].family is FilesystemError and "no directory" in found["destination"].what
    assert by_check(Path("/proc/none"))["destination"].family is FilesystemError
