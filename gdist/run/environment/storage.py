"""Whether a file system has what a fetch needs: space, inodes, rename, locks, preallocation."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gdist.core.units import format_bytes, format_seconds
from gdist.errors import FilesystemError, SpaceError
from gdist.run.environment.findings import Finding, fail, ok, warn

LITTLE_BYTES = 1 << 30  # less than that is too little for about every model
LEAST_INODES, FEW_INODES = 64, 10_000  # a store of Grok-1 on 64 devices has some 2,000 files a host
SLOW_SYNC_SECONDS = 1.0  # of a file of a few bytes; disks take milliseconds
RAM = ("tmpfs", "ramfs", "devtmpfs")
SHARED = (
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "cifs", "smb3", "9p", "virtiofs"),
    *("glusterfs", "panfs", "wekafs", "pvfs2", "orangefs", "afs", "ocfs2", "gfs2", "fuse"),
)
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01  # FALLOC_FL_*, of linux/falloc.h
_UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a file system was seen to do; `sync_seconds` is how long a small file took to be durable."""

    rename: bool
    lock: bool
    preallocate: bool
    punch: bool
    sync_seconds: float


def check_storage(directory: Path, needed: int | None) -> Iterator[Finding]:
    """What there is to say of a local destination, which may not exist yet.

    Raises nothing: what cannot be looked at is a finding too.
    """
    there = nearest(directory)
    kind, mount = file_system(there)
    yield about_kind(kind, mount)
    if not there.is_dir():
        yield fail("destination", FilesystemError, f"{there} is no directory", "choose another destination")
        return
    try:
        abilities = try_out(there)
    except OSError as error:
        hint = "choose a destination where this user may write, or make the directory first"
        yield fail("destination", FilesystemError, f"{there}: {error.strerror or error}", hint)
    else:
        yield from about_abilities(abilities, str(there), kind)
    try:
        status = os.statvfs(there)
    except OSError as error:
        yield fail("disk space", FilesystemError, f"{there}: {error.strerror or error}", "choose another one")
        return
    yield about_space(status.f_bavail * status.f_frsize, needed, str(there))
    yield about_inodes(status.f_files, status.f_favail)


def nearest(directory: Path) -> Path:
    """The directory itself or what is above it, as far as it exists."""
    path = Path(os.path.abspath(directory))
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def file_system(path: Path, mountinfo: str | None = None) -> tuple[str, str]:
    """The kind of file system that a path is on, and where it is mounted; `mountinfo` as in proc(5)."""
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return "unknown", "/"
    real, found = os.path.realpath(path), ("unknown", "")
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        mount = fields.split()[4].encode().decode("unicode_escape")  # a blank is \040
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(found[1]):  # the last of several on one place is the one seen
            found = (rest.split()[0], mount)
    return found


def about_kind(kind: str, mount: str) -> Finding:
    """What follows from the kind of file system."""
    check, where = "file system", f"{kind} at {mount}"
    if kind in RAM:
        hint = "what is stored there is memory: it counts against the limit beside --memory"
        return warn(check, f"{where} is RAM", hint)
    if kind.partition(".")[0] in SHARED:
        hint = "good for one store of all hosts; for a part on each, a disk of its own is faster"
        return warn(check, f"{where} is shared or remote", hint)
    if kind == "overlay":
        return warn(
            check, f"{where} is a container's own layer", "mount a volume: this one is slow, and goes"
        )
    return ok(check, where)


def try_out(directory: Path) -> Abilities:
    """Tries on small files what a fetch will do, and removes them.

    Raises:
        OSError: when the directory cannot be written to at all.
    """
    with tempfile.TemporaryDirectory(prefix=".gdist-check-", dir=directory) as scratch:
        one, two = Path(scratch) / "one", Path(scratch) / "two"
        started = time.monotonic()
        with open(one, "wb") as file:
            file.write(b"x" * 8192)
            os.fsync(file.fileno())
            seconds = time.monotonic() - started
            lock = _can(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
            preallocate = _can(lambda: _fallocate(file.fileno(), 0, 0, 1 << 20))
            punch = _can(lambda: _fallocate(file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, 0, 4096))
        two.write_bytes(b"y")
        rename = _can(lambda: os.replace(two, one)) and one.read_bytes() == b"y"
    return Abilities(rename, lock, preallocate, punch, seconds)


def _can(do: Callable[[], object]) -> bool:
    try:
        do()
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        return False
    return True


def _fallocate(descriptor: int, mode: int, start: int, length: int) -> None:
    """The system call itself: `os.posix_fallocate` writes zeros where it is not supported."""
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if function(descriptor, mode, start, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def about_abilities(found: Abilities, where: str, kind: str) -> Iterator[Finding]:
    """What follows from what a file system can do."""
    check = "destination"
    if not found.rename or not found.lock:
        lacks = " and ".join(
            name for name, can in (("rename over a file", found.rename), ("flock", found.lock)) if not can
        )
        hint = "choose another file system; Lustre has locks when mounted with -o flock"
        yield fail(check, FilesystemError, f"{where} on {kind} lacks {lacks}", hint)
        return
    slow = [
        text
        for text, can in (
            ("no preallocation: shards are filled with zeros first", found.preallocate),
            ("no holes: pieces take their room until all hosts have them", found.punch),
        )
        if not can
    ]
    if found.sync_seconds > SLOW_SYNC_SECONDS:
        slow.append(f"a small file took {format_seconds(found.sync_seconds)} to be durable")
    if slow:
        yield warn(check, f"{where}: {'; '.join(slow)}", "a local disk does better")
    else:
        yield ok(check, f"{where} can be written to; rename, locks, preallocation and holes work")


def about_space(free: int, needed: int | None, where: str) -> Finding:
    """What follows from the free bytes."""
    check, what = "disk space", f"{format_bytes(free)} free at {where}"
    hint = "free some, choose another destination, or fetch a share: --mesh"
    if needed is not None and needed > free:
        return fail(check, SpaceError, f"{what}, {format_bytes(needed)} needed", hint)
    if needed is None and free < LITTLE_BYTES:
        return warn(check, what, "gdist plan tells what a fetch takes; --need compares it")
    return ok(check, what)


def about_inodes(total: int, free: int) -> Finding:
    """What follows from the free inodes; a file system without a number of them has no limit."""
    check, what = "inodes", f"{free:,} free"
    if total == 0:
        return ok(check, "no limit")
    if free < LEAST_INODES:
        return fail(check, SpaceError, what, "remove files, or choose another destination")
    if free < FEW_INODES:
        return warn(check, what, "a store has some files for every tensor and host")
    return ok(check, what)
