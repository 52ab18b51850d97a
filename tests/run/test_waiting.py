"""Waiting ends when what was waited for is there, when it will not come, and when nobody works on it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from gdist.core.failure import FAILED_NAME
from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup
from gdist.errors import InterruptedRun, NoPeersError, RequestError, SpaceError, TransferError
from gdist.events import Event, TensorReady
from gdist.run.failures import left_behind
from gdist.run.fetch import fetch
from gdist.run.journal_file import Lock
from gdist.run.status_of_events import StatusOfEvents
from gdist.run.waiting import wait
from gdist.run.watch import Sight
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import Array, fetch_options, stopped_when
from gdist.testing.swarm import Seeded, seed

pytestmark = pytest.mark.torrent

MESH = "2x4"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Array]]:
    root = tmp_path_factory.mktemp("from") / "llama"
    return root, write_safetensors(root, emb=64)


@pytest.fixture(scope="module")
def seeded(content: tuple[Path, dict[str, Array]]) -> Iterator[Seeded]:
    with seed(content[0], piece_length=1 << 14) as found:
        yield found


@pytest.fixture(scope="module")
def half(seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose fetch was stopped after its first tensors."""
    dest, magnet = tmp_path_factory.mktemp("half") / "s", format_magnet(seeded.magnet)
    stopped_when(
        lambda told: len(told.of(TensorReady)) >= 3,
        lambda observe, stop: fetch(magnet, dest, fetch_options(MESH), observe=observe, stop=stop),
    )
    return dest


@pytest.fixture
def copy(half: Path, tmp_path: Path) -> Path:
    shutil.copytree(half, tmp_path / "s")
    return tmp_path / "s"


@contextmanager
def at_work(dest: Path) -> Iterator[None]:
    """A run that works, and does nothing."""
    lock = Lock(dest / ".gdist/lock", "a test")
    try:
        yield
    finally:
        lock.release()


def on_a_thread(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_complete_store_is_not_waited_for(seeded: Seeded, tmp_path: Path) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))
    (sight,) = wait(str(tmp_path / "s"), start_seconds=0)
    assert sight.complete
    wait(str(tmp_path / "s"), ["layers:0", "head"], start_seconds=0, timeout=0)
    with pytest.raises(RequestError, match="layers that are not here"):
        wait(str(tmp_path / "s"), ["layers:999"], start_seconds=0)


def test_a_wait_begins_before_the_fetch_and_ends_with_it(seeded: Seeded, tmp_path: Path) -> None:
    shown: list[int] = []
    looked = threading.Event()

    def show(sights: Sequence[Sight]) -> None:
        shown.append(len(sights))
        looked.set()

    found: list[tuple[Sight, ...]] = []
    waiting = on_a_thread(lambda: found.append(wait(str(tmp_path / "s"), start_seconds=30, show=show)))
    assert looked.wait(60)
    fetch(format_magnet(seeded.magnet), tmp_path / "s", fetch_options(MESH))
    waiting.join(60)
    assert found[0][0].complete and shown[0] == 0


def test_the_first_layers_are_waited_for_while_the_last_ones_come(seeded: Seeded, tmp_path: Path) -> None:
    dest, go_on, told = tmp_path / "s", threading.Event(), StatusOfEvents("")

    def observe(event: Event) -> None:
        told(event)
        if told.ready("layers:0").ready:
            go_on.wait(60)  # the run stands still until the wait has ended

    fetching = on_a_thread(
        lambda: fetch(format_magnet(seeded.magnet), dest, fetch_options(MESH), observe=observe)
    )
    try:
        (sight,) = wait(str(dest), ["layers:0"], timeout=60)
        assert sight.ready("layers:0").ready and not sight.complete
    finally:
        go_on.set()
        fetching.join()
    assert wait(str(dest), start_seconds=0)[0].complete


def test_the_error_of_the_run_ends_the_wait_at_once(copy: Path) -> None:
    lock, looked = Lock(copy / ".gdist/lock", "a test"), threading.Event()

    def fail() -> None:
        assert looked.wait(60)  # what is there at the first look is of an earlier run
        with pytest.raises(SpaceError), left_behind(copy / ".gdist"):
            raise SpaceError("no space left", hint="free some")
        lock.release()

    failing = on_a_thread(fail)
    with pytest.raises(SpaceError, match=r"the run that wrote to .* ended: no space left") as ended:
        wait(str(copy), start_seconds=1000, timeout=60, show=lambda sights: looked.set())
    failing.join()
    assert ended.value.hint == "free some"


def test_what_an_earlier_run_left_is_believed_when_none_begins_again(copy: Path, seeded: Seeded) -> None:
    start = time.monotonic()
    with pytest.raises(InterruptedRun):
        wait(str(copy), start_seconds=0.5)
    assert time.monotonic() - start > 0.5
    looked = threading.Event()

    def again() -> None:
        assert looked.wait(60)
        fetch(format_magnet(seeded.magnet), copy, fetch_options(MESH))

    fetching = on_a_thread(again)
    wait(str(copy), start_seconds=30, show=lambda sights: looked.set())
    fetching.join()


def test_a_run_that_was_killed_is_not_waited_for_for_ever(copy: Path) -> None:
    (copy / ".gdist" / FAILED_NAME).unlink()
    script = (
        f"from gdist.run.journal_file import Lock; from pathlib import Path; import time; "
        f"lock = Lock(Path({str(copy / '.gdist/lock')!r}), 'x'); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        alive: list[float] = []

        def show(sights: Sequence[Sight]) -> None:
            if sights[0].running:
                alive.append(time.monotonic())
            if len(alive) == 4:
                process.send_signal(signal.SIGKILL)

        with pytest.raises(TransferError, match=r"no run was at work .* tensors are ready") as ended:
            wait(str(copy), start_seconds=0.5, show=show)
        assert len(alive) >= 4 and time.monotonic() - alive[-1] > 0.5 and "goes on" in ended.value.hint


def test_where_nothing_begins_the_wait_ends(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="nothing is there"):
        wait(str(tmp_path / "absent"), start_seconds=0.3)
    with pytest.raises(TransferError, match="nothing is there"):
        wait(str(tmp_path / "absent"), host=HostGroup(1, 2), start_seconds=0.3)


def test_a_wait_has_its_time(copy: Path) -> None:
    with at_work(copy), pytest.raises(TransferError, match=r"waited \d+ seconds for layers:0 and head at"):
        wait(str(copy), ["layers:0", "head"], timeout=0.3)


def test_what_cannot_be_waited_for_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not understood"):
        wait(str(tmp_path), ["layer:0"], start_seconds=1000)


def test_a_host_that_failed_ends_the_wait_for_all(seeded: Seeded, tmp_path: Path) -> None:
    dest = tmp_path / "s"
    fetch(format_magnet(seeded.magnet), dest, fetch_options(MESH, "0/2"))
    work = dest / ".gdist/gdist.host-00001-of-00002"
    lock = Lock(work / "lock", "a test")
    with pytest.raises(NoPeersError), left_behind(work):
        raise NoPeersError("nobody")
    lock.release()
    with pytest.raises(NoPeersError):
        wait(str(dest), start_seconds=0.3)
    wait(str(dest), host=HostGroup(0, 2), start_seconds=0.3)
