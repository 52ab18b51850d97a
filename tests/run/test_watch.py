"""What can be seen of a run from outside: of one that is stopped, one that works, one that is gone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gdist.core.failure import FAILED_NAME
from gdist.core.journal import header_line
from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup
from gdist.core.order import loading_order
from gdist.core.status import AgentStatus, Stage
from gdist.errors import RequestError, StalledError
from gdist.events import Event, StageStarted, TensorReady
from gdist.exchange import Key, Request, Response, Server
from gdist.run.collective import fetch_shares, taken
from gdist.run.destination import find_destination
from gdist.run.fetch import fetch
from gdist.run.journal_file import Lock
from gdist.run.local_agent import AGENT_NAME, find_agent
from gdist.run.reshard import reshard
from gdist.run.resolve import resolve
from gdist.run.watch import Sight, Watch, all_ready
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


def stopped(seeded: Seeded, dest: Path, host: str = "0/1", tensors: int = 3) -> list[str]:
    """A fetch that was stopped after some tensors; their names."""
    magnet, options = format_magnet(seeded.magnet), fetch_options(MESH, host)
    recorder = stopped_when(
        lambda told: len(told.of(TensorReady)) >= tensors,
        lambda observe, stop: fetch(magnet, dest, options, observe=observe, stop=stop),
    )
    return [event.tensor for event in recorder.of(TensorReady)]


@pytest.fixture(scope="module")
def half(seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    dest = tmp_path_factory.mktemp("half") / "s"
    return dest, stopped(seeded, dest)


@pytest.fixture
def copy(half: tuple[Path, list[str]], tmp_path: Path) -> Path:
    shutil.copytree(half[0], tmp_path / "s")
    return tmp_path / "s"


def look(dest: Path, **options: object) -> tuple[Sight, ...]:
    with Watch(str(dest), **options) as watch:  # type: ignore[arg-type]  # by name
        return watch.look()


def test_of_a_run_that_was_stopped_all_is_seen_but_rates(
    half: tuple[Path, list[str]], content: tuple[Path, dict[str, Array]], seeded: Seeded
) -> None:
    (sight,) = look(half[0])
    status = sight.status
    assert sight.names == loading_order(content[1])
    assert sight.here >= set(half[1]) and not sight.running and not sight.complete
    assert (status.stage, status.live, status.error_kind) == (Stage.FAILED, False, "InterruptedRun")
    assert "asked to stop" in status.error and sight.failure is not None
    assert status.bytes_wanted == sum(array.nbytes for array in content[1].values())
    assert sum(content[1][name].nbytes for name in sight.here) <= status.bytes_placed < status.bytes_wanted
    assert (status.tensors, status.tensors_ready) == (len(content[1]), len(sight.here))
    assert status.next_tensor == next(name for name in sight.names if name not in sight.here)
    assert (status.release, status.info_hash) == ("llama", seeded.magnet.info_hash.hex)
    assert sight.ready(f"tensors:^{half[1][0]}$").ready and not sight.ready("all").ready


def test_a_run_that_works_is_followed_to_its_end(copy: Path, seeded: Seeded) -> None:
    with Watch(str(copy)) as watch:
        seen = [watch.look()[0]]
        stages = {seen[0].status.stage}
        go_on = threading.Event()

        def observe(event: Event) -> None:
            if isinstance(event, TensorReady):
                go_on.wait(60)  # the run stands still until it was seen at work

        magnet, options = format_magnet(seeded.magnet), fetch_options(MESH)
        again = threading.Thread(target=fetch, args=(magnet, copy, options), kwargs={"observe": observe})
        again.start()
        deadline = time.monotonic() + 60
        while not seen[-1].complete and time.monotonic() < deadline:
            seen.append(watch.look()[0])
            stages.add(seen[-1].status.stage)
            if seen[-1].running and seen[-1].status.stage is Stage.FETCH:
                go_on.set()
        go_on.set()
        again.join()
        assert Stage.FETCH in stages and stages >= {Stage.FAILED, Stage.DONE}
        assert any(sight.running and sight.failure is None for sight in seen)
        ready = [sight.status.tensors_ready for sight in seen if sight.names]
        assert ready == sorted(ready)
        (last,) = watch.look()
        assert (last.status.stage, last.running, last.status.live) == (Stage.DONE, False, True)
        assert last.ready("all").ready and last.status.bytes_placed == last.status.bytes_wanted
        assert last.status.next_tensor == ""


def test_of_a_run_that_was_killed_nothing_is_known_but_what_it_did(copy: Path) -> None:
    (copy / ".gdist" / FAILED_NAME).unlink()
    (sight,) = look(copy)
    assert (sight.status.stage, sight.running, sight.status.live) == (Stage.FETCH, False, False)
    assert sight.failure is None and sight.status.tensors_ready > 0
    (copy / ".gdist" / FAILED_NAME).write_bytes(b"{")
    assert look(copy)[0].failure is None, "a torn record of the end hides nothing else"


def test_the_stages_before_there_is_a_plan_show_in_its_files(tmp_path: Path) -> None:
    work = tmp_path / "s/.gdist"
    lock = Lock(work / "lock", "a test")
    try:
        (sight,) = look(tmp_path / "s")
        assert (sight.status.stage, sight.running, sight.names) == (Stage.METADATA, True, ())
        assert not sight.ready("layers:0-3").ready
        (work / "source.torrent").write_bytes(b"")
        assert look(tmp_path / "s")[0].status.stage is Stage.HEADERS
        (work / "journal.jsonl").write_text(header_line("discard none 1 " + "0" * 32) + "\n")
        assert look(tmp_path / "s")[0].status.stage is Stage.PLAN
        (work / "journal.jsonl").write_text(header_line("reshard none 1 " + "0" * 32) + "\n")
        assert look(tmp_path / "s")[0].status.stage is Stage.RESHARD
    finally:
        lock.release()


def test_a_reshard_is_seen_when_it_is_done(
    half: tuple[Path, list[str]], seeded: Seeded, tmp_path: Path
) -> None:
    fetch(format_magnet(seeded.magnet), tmp_path / "a", fetch_options(MESH))
    reshard(tmp_path / "a", tmp_path / "b")
    assert look(tmp_path / "b")[0].complete


def test_a_shard_whose_file_is_gone_is_not_ready(copy: Path, half: tuple[Path, list[str]]) -> None:
    name = half[1][0]
    next(path for path in (copy / name / "c").rglob("*") if path.is_file()).unlink()
    assert name not in look(copy)[0].here
    assert look(copy)[0].status.bytes_placed < look(half[0])[0].status.bytes_placed


def test_a_run_with_another_plan_takes_the_place_of_the_one_that_was_followed(
    copy: Path, seeded: Seeded, content: tuple[Path, dict[str, Array]]
) -> None:
    with Watch(str(copy)) as watch:
        watch.look()
        shutil.rmtree(copy)
        magnet, options = format_magnet(seeded.magnet), fetch_options("1", select=("layers",))
        stopped_when(
            lambda told: told.of(TensorReady),
            lambda observe, stop: fetch(magnet, copy, options, observe=observe, stop=stop),
        )
        for _ in range(3):
            (sight,) = watch.look()
        assert sight.names == tuple(name for name in loading_order(content[1]) if "layers" in name)


# --- several hosts ----------------------------------------------------------------------------------------


def test_hosts_that_share_a_directory_are_seen_together(seeded: Seeded, tmp_path: Path) -> None:
    dest, magnet = tmp_path / "s", format_magnet(seeded.magnet)
    fetch(magnet, dest, fetch_options(MESH, "0/2"))
    assert [sight.status.index for sight in look(dest)] == [0]
    stopped(seeded, dest, "1/2")
    first, second = look(dest)
    assert first.complete and not second.complete
    assert (second.status.index, second.status.count) == (1, 2)
    assert first.status.bytes_wanted < sum(sight.status.bytes_wanted for sight in (first, second))
    assert not all_ready((first, second), "all").ready and all_ready((first,), "all").ready
    assert [sight.status.index for sight in look(dest, host=HostGroup(1, 2))] == [1]
    assert look(dest, host=HostGroup(0, 4)) == ()


def test_bytes_of_a_host_are_those_of_its_shards(
    seeded: Seeded, content: tuple[Path, dict[str, Array]], tmp_path: Path
) -> None:
    total = 0
    for host in range(4):  # of a mesh that splits every tensor over all hosts, or not at all
        stopped(seeded, tmp_path / str(host), f"{host}/4", tensors=1)
        (sight,) = look(tmp_path / str(host))
        total += sight.status.bytes_wanted
    assert total >= sum(array.nbytes for array in content[1].values())


# --- buckets ----------------------------------------------------------------------------------------------


def test_the_run_of_a_bucket_is_seen_where_it_works(
    seeded: Seeded, content: tuple[Path, dict[str, Array]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, magnet = f"memory://{request.node.name}/s", format_magnet(seeded.magnet)
    options = fetch_options(MESH, work=tmp_path / "work")
    with Watch(url, work=tmp_path / "work") as watch:
        assert watch.look() == () and not watch.local
        recorder = stopped_when(
            lambda told: told.of(TensorReady),
            lambda observe, stop: fetch(magnet, url, options, observe=observe, stop=stop),
        )
        (sight,) = watch.look()
        assert sight.status.error_kind == "InterruptedRun" and sight.names == loading_order(content[1])
        assert set(sight.here) >= {event.tensor for event in recorder.of(TensorReady)}
        fetch(magnet, url, options)
        assert watch.look()[0].complete
    with Watch(url, work=tmp_path / "elsewhere") as watch:
        assert watch.look()[0].complete, "a manifest is seen from everywhere"


# --- what is no run ---------------------------------------------------------------------------------------


def test_where_nothing_is_nothing_is_seen(tmp_path: Path) -> None:
    assert look(tmp_path / "absent") == look(tmp_path) == ()
    assert look(tmp_path / "absent", host=HostGroup(1, 2)) == ()


def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(RequestError, match="no gdist store"):
        look(tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        look(tmp_path / "holiday.jpg")


# --- agents -----------------------------------------------------------------------------------------------


def leave_agent(work: Path, address: str, key: Key) -> None:
    content = {"pid": 1, "address": address, "key": key.hex(), "encrypt": False}
    (work / AGENT_NAME).write_text(json.dumps(content))


def test_an_agent_that_answers_is_believed_about_rates(copy: Path) -> None:
    status = AgentStatus(0, 1, "node0", str(copy), Stage.FETCH, 5.0, True, wan_rate=123)
    key = Key.from_secret("a test")

    def answer(request: Request) -> Response:
        return Response.json(status.to_json()) if request.path == "/status" else Response.error(404, "no")

    lock = Lock(copy / ".gdist/lock", "a test")
    try:
        with Server("127.0.0.1:0", key, handler=answer) as server:
            leave_agent(copy / ".gdist", f"127.0.0.1:{server.port}", key)
            (sight,) = look(copy, ask=True)
            assert sight.status == status and sight.names, "tensors are seen as before"
            assert look(copy)[0].status.wan_rate == 0, "nobody is asked who was not meant to be"
            leave_agent(copy / ".gdist", f"127.0.0.1:{server.port}", Key.from_secret("another"))
            assert look(copy, ask=True)[0].status.wan_rate == 0
        (sight,) = look(copy, ask=True)
        assert sight.running and sight.status == replace(look(copy)[0].status, seconds=sight.status.seconds)
    finally:
        lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"address": 3, "key": "x", "encrypt": false}'])
def test_what_is_left_of_an_agent_may_be_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / AGENT_NAME).write_text(text)
    assert find_agent(tmp_path) is None
    assert find_agent(tmp_path / "absent") is None


def test_a_collective_fetch_is_seen_from_its_first_share_to_its_last_shard(
    seeded: Seeded, tmp_path: Path
) -> None:
    magnet, options, dest = format_magnet(seeded.magnet), fetch_options(MESH, "1/2"), tmp_path / "s"
    where, resolved = find_destination(str(dest), options.host), resolve(magnet)
    seen: list[Sight] = []

    def observe(event: Event) -> None:
        if isinstance(event, StageStarted):
            seen.extend(look(dest))

    with pytest.raises(StalledError), taken(where, resolved, options) as unfinished:
        assert unfinished
        fetch_shares(magnet, dest, options, observe=observe)
        seen.extend(look(dest))
        raise StalledError("nothing moved")
    stages = [sight.status.stage for sight in seen]
    assert stages == [Stage.METADATA, Stage.HEADERS, Stage.HEADERS, Stage.FETCH, Stage.EXCHANGE]
    assert all(sight.running and not sight.complete for sight in seen)
    last = seen[-1].status
    assert (last.tensors_ready, last.bytes_placed) == (0, 0) and last.tensors == len(seen[-1].names) > 0
    (ended,) = look(dest)
    assert not ended.running and ended.failure is not None and ended.failure.message == "nothing moved"


def test_what_is_not_ours_is_left_as_it_was_by_who_would_take_it(seeded: Seeded, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    options = fetch_options(MESH, "1/2")
    where = find_destination(str(tmp_path), options.host)
    with (
        pytest.raises(RequestError, match="not empty"),
        taken(where, resolve(format_magnet(seeded.magnet)), options),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
