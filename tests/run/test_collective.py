"""Even shares of all hosts become just the stores that each host would have fetched, whatever interrupts it.

Hosts are threads here, and their carrier a barrier; `test_collective_processes.py` has processes and XLA.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup, Mesh
from gdist.core.rules import parse_rules
from gdist.errors import (
    CorruptError,
    FilesystemError,
    GdistError,
    InterruptedRun,
    LockedError,
    RequestError,
    ResumeError,
    Unreachable,
)
from gdist.events import (
    Event,
    Finished,
    MovePlanned,
    MoveProgress,
    Planned,
    ShardCommitted,
    Stage,
    StageStarted,
    TensorReady,
    TensorsPlanned,
)
from gdist.run.collective import all_here, fetch_shares, move_shares
from gdist.run.collective.opened import lock_of
from gdist.run.destination import find_destination
from gdist.run.fetch import FetchResult, fetch
from gdist.run.verify import verify
from gdist.testing.checkpoints import write_grok1, write_safetensors
from gdist.testing.fetches import Recorder, fetch_options, stopped_when, tree_of
from gdist.testing.meeting import Meeting, MeetingCarrier
from gdist.testing.shares import assert_same, fetch_both, odd_tensors
from gdist.testing.swarm import seed

pytestmark = pytest.mark.torrent

ODD = parse_rules(
    {
        "axes": ["data", "model"],
        "rules": [
            ["cut.rows", ["model"]],
            ["cut.cube", [None, "data", "model"]],
            ["cut.words", [["model", "data"]]],
            [".*", []],
        ],
    }
)
MEMORY = 300_000  # parcels of a few kilobytes: many rounds

Source = tuple[str, Path]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """Every element type in odd shapes, and files without tensors."""
    root = tmp_path_factory.mktemp("from") / "odd"
    write_safetensors(root, odd_tensors())
    (root / "config.json").write_text('{"architectures": ["Odd"]}\n')
    (root / "empty.txt").write_bytes(b"")
    with seed(root, piece_length=1 << 15) as seeded:
        yield format_magnet(seeded.magnet), root


@pytest.fixture(scope="module")
def grok(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    root = tmp_path_factory.mktemp("from") / "grok"
    write_grok1(root, layers=1, emb=128, ffn=256, vocab=512)
    with seed(root, piece_length=1 << 15) as seeded:
        yield format_magnet(seeded.magnet), root


def everybody(
    count: int, root: Path, *, meeting: Meeting | None = None, **options: Any
) -> list[FetchResult | BaseException]:
    """Moves the shares of all hosts; what each gets, or fails with. A callable option is asked by host."""
    meeting = meeting or Meeting(count)

    def one(carrier: MeetingCarrier) -> FetchResult:
        mine = {name: value(carrier.index) if callable(value) else value for name, value in options.items()}
        mine.setdefault("memory", MEMORY)
        try:
            return move_shares(
                root / f"moved{carrier.index}", HostGroup(carrier.index, count), carrier, **mine
            )
        except BaseException as error:
            if not isinstance(error, GdistError) or isinstance(error, Unreachable):
                meeting.leave()  # as its sockets would tell the others
            raise

    return meeting.run(one)


def check(count: int, root: Path) -> None:
    for index in range(count):
        assert_same(root / f"plain{index}", root / f"moved{index}")


def failures(results: list[FetchResult | BaseException], kind: type[GdistError]) -> list[str]:
    """The messages, all of one kind."""
    assert [type(result) for result in results] == [kind] * len(results), results
    return [str(result) for result in results]


# --- the same store -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "mesh", "changes"),
    [
        (2, "4x4", {}),
        (3, "3x2", {}),
        (4, "2x6", {}),
        (6, "6x2", {}),
        (2, Mesh((("data", 1), ("model", 4)), (2, 0, 3, 1)), {}),  # devices in another order
        (2, "2x2", {"codec": "zstd"}),
        (2, "2x2", {"dtype": "float32", "select": ("cut",)}),
        (2, "2x2", {"ignore": ("*-00001-of-*", "*.index.json")}),
    ],
)
def test_what_is_written_is_what_a_fetch_writes(
    count: int, mesh: str | Mesh, changes: dict[str, Any], odd: Source, tmp_path: Path
) -> None:
    for _, plain, _ in fetch_both(odd[0], tmp_path, count, mesh, rules=ODD, **changes):
        assert verify(plain).ok
    recorders = [Recorder() for _ in range(count)]
    results = everybody(count, tmp_path, observe=lambda index: recorders[index])
    assert all(isinstance(result, FetchResult) for result in results), results
    check(count, tmp_path)
    for recorder in recorders:
        (planned,), (names,) = recorder.of(MovePlanned), recorder.of(TensorsPlanned)
        last = recorder.of(MoveProgress)[-1]
        assert planned.bytes_wanted == planned.bytes_own + planned.bytes_received == last.bytes_placed
        assert planned.bytes_received == last.bytes_received <= last.bytes_wire
        assert len(recorder.of(ShardCommitted)) == planned.shards
        assert {event.tensor for event in recorder.of(TensorReady)} <= set(names.names)
        assert [event.stage for event in recorder.of(StageStarted)] == [Stage.EXCHANGE, Stage.FINISH]
        assert isinstance(recorder.events[-1], Finished)


@pytest.mark.parametrize(
    ("count", "mesh", "changes"),
    [(4, "2x4", {}), (8, "8x8", {}), (2, "4x2", {"dtype": "bfloat16"})],
)
def test_quantised_pairs(
    count: int, mesh: str, changes: dict[str, Any], grok: Source, tmp_path: Path
) -> None:
    list(fetch_both(grok[0], tmp_path, count, mesh, **changes))
    assert all(isinstance(result, FetchResult) for result in everybody(count, tmp_path))
    check(count, tmp_path)


def test_shares_are_even_and_come_without_amplification(grok: Source, tmp_path: Path) -> None:
    recorders = [Recorder() for _ in range(4)]
    for index, recorder in enumerate(recorders):
        fetch_shares(
            grok[0], tmp_path / f"moved{index}", fetch_options("2x4", f"{index}/4"), observe=recorder
        )
    assert not any(recorder.of(TensorReady) or recorder.of(Finished) for recorder in recorders)
    planned = [recorder.of(Planned)[0] for recorder in recorders]
    total = sum(plan.bytes_wanted for plan in planned)
    assert max(plan.bytes_wanted for plan in planned) <= 1.1 * total / 4
    # Each piece is touched by one host, or lies across an edge of two shares.
    edges = 2 * 4 * sum(plan.tensors for plan in planned) // 4
    assert sum(plan.pieces for plan in planned) <= total // (1 << 15) + edges
    alone = Recorder()
    fetch(grok[0], tmp_path / "alone", fetch_options("2x4", "0/4"), observe=alone)
    assert planned[0].bytes_touched < alone.of(Planned)[0].bytes_touched


def test_shares_go_while_tensors_come(grok: Source, tmp_path: Path) -> None:
    list(fetch_both(grok[0], tmp_path, 2, "1x2"))
    shares = tmp_path / "moved0/.gdist/gdist.host-00000-of-00002/shares"
    whole = sum(len(data) for data in tree_of(shares).values())
    left: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, TensorReady):
            left.append(sum(path.stat().st_size for path in shares.rglob("*") if path.is_file()))

    everybody(2, tmp_path, observe=lambda index: look if index == 0 else None)
    assert left[0] > 0.9 * whole and left[-1] < 0.5 * whole
    check(2, tmp_path)
    assert not (tmp_path / "moved0/.gdist").exists()


# --- again, and after something -----------------------------------------------------------------------------


def test_shares_are_fetched_once(odd: Source, tmp_path: Path) -> None:
    options = fetch_options("2x2", "0/2", rules=ODD)
    first = fetch_shares(odd[0], tmp_path / "s", options)
    again = fetch_shares(odd[0], tmp_path / "s", options)
    assert not first.already and again.already and again.path == first.path
    assert again.manifest == first.manifest
    with pytest.raises(ResumeError, match="on mesh"):
        fetch_shares(odd[0], tmp_path / "s", fetch_options("4x1", "0/2", rules=ODD))
    with pytest.raises(ResumeError, match="split by"):
        other = parse_rules({"axes": ["data", "model"], "rules": [["cut", ["data"]], [".*", []]]})
        fetch_shares(odd[0], tmp_path / "s", fetch_options("2x2", "0/2", rules=other))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    with pytest.raises(RequestError, match="not empty"):
        fetch_shares(odd[0], tmp_path / "mine", options)


class Killed(BaseException):
    """Stands for a kill: nothing of ours takes note of it."""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_killed_at_any_event_ends_all_and_all_go_on(victim: int, odd: Source, tmp_path: Path) -> None:
    list(fetch_both(odd[0], tmp_path, 2, "2x2", rules=ODD))
    ready = tmp_path / "ready"
    for index in range(2):
        shutil.copytree(tmp_path / f"moved{index}", ready / f"moved{index}")
    probe = Recorder()
    everybody(2, tmp_path, observe=lambda index: probe if index == victim else None)
    count = len([event for event in probe.events if not isinstance(event, MoveProgress)])
    for at in (*range(0, count - 1, 9), count - 3, count - 2):
        for index in range(2):
            shutil.rmtree(tmp_path / f"moved{index}")
            shutil.copytree(ready / f"moved{index}", tmp_path / f"moved{index}")
        left = itertools.count()

        def dies(event: Event, at: int = at, left: Iterator[int] = left) -> None:
            if not isinstance(event, MoveProgress) and next(left) == at:
                raise Killed

        results = everybody(2, tmp_path, observe=lambda index, dies=dies: dies if index == victim else None)
        assert isinstance(results[victim], Killed), (at, results)
        other = results[1 - victim]
        if isinstance(other, FetchResult):  # it died after all others had finished
            assert all_here(tmp_path / f"moved{victim}", HostGroup(victim, 2))
            continue
        assert isinstance(other, Unreachable), (at, other)
        assert all(isinstance(result, FetchResult) for result in everybody(2, tmp_path)), at
        check(2, tmp_path)


class StopHalfWay(threading.Event):
    """Set after so many looks at it, and not before a tenth of the bytes is committed below a directory."""

    def __init__(self, looks: int, dest: Path, nbytes: int):
        super().__init__()
        self._looks, self._dest, self._nbytes = looks, dest, nbytes

    def is_set(self) -> bool:
        self._looks -= 1
        end = time.monotonic() + 30
        while self._looks <= 0 and self._committed() < self._nbytes // 10 and time.monotonic() < end:
            time.sleep(0.01)
        return self._looks <= 0

    def _committed(self) -> int:
        places = (path for path in self._dest.iterdir() if path.name != ".gdist")
        return sum(file.stat().st_size for path in places for file in path.rglob("c/**/*") if file.is_file())


def test_what_all_have_is_not_moved_again(grok: Source, tmp_path: Path) -> None:
    stores = [plain for _, plain, _ in fetch_both(grok[0], tmp_path, 2, "1x2")]
    # Each of the 72 rounds has three looks; those after the stop have bytes that are still to come.
    stop = StopHalfWay(111, tmp_path / "moved1", sum(map(len, tree_of(stores[1]).values())))
    never = threading.Event()
    first = everybody(2, tmp_path, memory=60_000, stop=lambda index: stop if index else never)
    assert all(
        "host 1 cannot move: the run was asked to stop" in said for said in failures(first, InterruptedRun)
    )
    assert not all_here(tmp_path / "moved1", HostGroup(1, 2))
    recorders = [Recorder(), Recorder()]
    everybody(2, tmp_path, observe=lambda index: recorders[index])
    check(2, tmp_path)
    for recorder in recorders:
        (planned,) = recorder.of(MovePlanned)
        assert planned.bytes_resumed >= planned.bytes_wanted // 10
        assert planned.bytes_own + planned.bytes_received <= planned.bytes_wanted - planned.bytes_resumed // 2
    assert all(all_here(tmp_path / f"moved{index}", HostGroup(index, 2)) for index in range(2))


def test_a_host_that_has_all_helps_the_others(odd: Source, tmp_path: Path) -> None:
    """It was complete, and its shares still there, when another lost some of its own shards."""
    list(fetch_both(odd[0], tmp_path, 2, "2x2", rules=ODD))
    kept = [tmp_path / f"kept{index}" for index in range(2)]
    for index, copy in enumerate(kept):
        shutil.copytree(tmp_path / f"moved{index}", copy)
    everybody(2, tmp_path)
    # As if host 0 was killed when it had written its manifest, and host 1 before it had moved anything.
    shutil.copytree(kept[0] / ".gdist", tmp_path / "moved0/.gdist")
    shutil.rmtree(tmp_path / "moved1")
    shutil.copytree(kept[1], tmp_path / "moved1")
    recorders = [Recorder(), Recorder()]
    assert all(
        isinstance(r, FetchResult) for r in everybody(2, tmp_path, observe=lambda index: recorders[index])
    )
    check(2, tmp_path)


def test_a_fetch_and_an_exchange_take_over_from_each_other(odd: Source, tmp_path: Path) -> None:
    options = [fetch_options("2x2", f"{index}/2", rules=ODD) for index in range(2)]
    for index in range(2):
        fetch(odd[0], tmp_path / f"plain{index}", options[index])
        moved, asked = tmp_path / f"moved{index}", options[index]
        stopped_when(
            lambda told: told.of(ShardCommitted),
            lambda observe, stop, to=moved, asked=asked: fetch(  # type: ignore[misc]
                odd[0], to, asked, observe=observe, stop=stop
            ),
        )
        fetch_shares(odd[0], moved, asked)
    # There are 53 looks; were the stop told with what is committed, all of it might be by then.
    never, nbytes = threading.Event(), sum(map(len, tree_of(tmp_path / "plain0").values()))
    halt = StopHalfWay(30, tmp_path / "moved0", nbytes)
    failures(everybody(2, tmp_path, stop=lambda i: never if i else halt), InterruptedRun)
    fetch(odd[0], tmp_path / "moved0", options[0])  # it goes on where the exchange stopped
    assert_same(tmp_path / "plain0", tmp_path / "moved0")


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.fixture
def shares(odd: Source, tmp_path: Path) -> Path:
    list(fetch_both(odd[0], tmp_path, 2, "2x2", rules=ODD))
    return tmp_path


def share_files(root: Path, index: int, tensor: str) -> list[Path]:
    below = root / f"moved{index}/.gdist/gdist.host-{index:05}-of-00002/shares/{tensor}/c"
    return sorted(path for path in below.rglob("*") if path.is_file())


def test_a_damaged_share_ends_all_and_names_its_host(shares: Path) -> None:
    path = share_files(shares, 1, "cut.rows")[0]
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for said in failures(everybody(2, shares), CorruptError):
        assert "host 1 cannot move" in said and "'cut.rows'" in said
    path.write_bytes(data)
    assert all(isinstance(result, FetchResult) for result in everybody(2, shares))
    check(2, shares)


def test_a_lost_share_is_named_by_all(shares: Path) -> None:
    share_files(shares, 0, "cut.cube")[0].unlink()
    assert (
        failures(everybody(2, shares), CorruptError)
        == ["no host has some share of 1 tensors that are wanted: 'cut.cube'"] * 2
    )


def test_another_memory_is_told(shares: Path) -> None:
    said = failures(everybody(2, shares, memory=lambda index: MEMORY + index), RequestError)
    assert said == ["host 1 would move with other --memory than host 0"] * 2


def test_shares_of_another_store_are_told(odd: Source, shares: Path) -> None:
    shutil.rmtree(shares / "moved1")
    fetch_shares(odd[0], shares / "moved1", fetch_options("4x1", "1/2", rules=ODD))
    said = failures(everybody(2, shares), RequestError)
    assert said == ["host 1 would move another store than host 0"] * 2


def test_a_host_without_shares_is_told(shares: Path) -> None:
    shutil.rmtree(shares / "moved1")
    for said in failures(everybody(2, shares), RequestError):
        assert "host 1 cannot move" in said and "does not hold the even shares of host 1 of 2" in said


def test_a_destination_that_is_in_use_is_told(shares: Path) -> None:
    lock = lock_of(find_destination(str(shares / "moved1"), HostGroup(1, 2)))
    try:
        for said in failures(everybody(2, shares), LockedError):
            assert "host 1 cannot move: another gdist is writing" in said
    finally:
        lock.release()


def test_a_disk_that_fails_ends_all(shares: Path) -> None:
    """A file stands where a tensor's directory has to be."""
    (shares / "moved1/cut.words").write_text("in the way")
    for said in failures(everybody(2, shares), FilesystemError):
        assert "host 1 cannot move" in said and "cut.words" in said
    (shares / "moved1/cut.words").unlink()
    assert all(isinstance(result, FetchResult) for result in everybody(2, shares))
    check(2, shares)


def test_a_disk_that_fails_for_what_a_host_has_itself_ends_all(shares: Path) -> None:
    parts = shares / "moved1/.gdist/gdist.host-00001-of-00002/parts"

    def breaks(event: Event) -> None:
        if isinstance(event, TensorsPlanned):
            parts.write_text("in the way")

    for said in failures(
        everybody(2, shares, observe=lambda index: breaks if index else None), FilesystemError
    ):
        assert "host 1 cannot move" in said and "parts" in said
    parts.unlink()
    assert all(isinstance(result, FetchResult) for result in everybody(2, shares))
    check(2, shares)


def test_a_host_must_be_the_process_it_says(shares: Path) -> None:
    meeting = Meeting(2)
    results = meeting.run(
        lambda carrier: move_shares(
            shares / f"moved{1 - carrier.index}", HostGroup(1 - carrier.index, 2), carrier, memory=MEMORY
        )
    )
    for said in failures(results, RequestError):  # type: ignore[arg-type]
        assert "this is process 0 of 2 of JAX, and host 1 of 2" in said
