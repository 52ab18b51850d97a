"""The library's functions take what people write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import gdist
from gdist.api import cluster_status, read_rules, torrent_options
from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup, Mesh, PartitionSpec, parse_mesh
from gdist.core.plan import plan_host
from gdist.errors import RefusedError, RequestError, UnsupportedError
from gdist.exchange import Key, Request, Response, Server
from gdist.releases import known_release
from gdist.sources.torrent import TorrentOptions, Version
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.fetches import assert_holds
from gdist.testing.swarm import seed


@pytest.mark.torrent
def test_fetch_with_keywords_and_values_alike(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "model")
    rules = {"axes": ["model"], "rules": [["proj", [None, "model"]], [".*", []]]}
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    with seed(tmp_path / "model") as seeded:
        source = format_magnet(replace(seeded.magnet, peers=()))
        peer = f"127.0.0.1:{seeded.port}"
        for number, (mesh, given) in enumerate(
            [("model=2", tmp_path / "rules.json"), (Mesh((("model", 2),)), rules)]
        ):
            store = tmp_path / f"store-{number}"
            done = gdist.fetch(
                source,
                store,
                mesh=mesh,
                rules=given,
                host="0/1",
                memory="64MiB",
                peers=[peer],
                dht=False,
                listen="127.0.0.1:0",
                stall_timeout="20s",
            )
            assert done.path == str(store)
            specs = {tensor.name: tensor.spec for tensor in done.manifest.tensors}
            assert specs["model.layers.0.self_attn.q_proj.weight"] == PartitionSpec(((), ("model",)))
            assert_holds(store, expected)


def test_one_text_is_one_and_not_its_letters() -> None:
    one = torrent_options(trackers="udp://t.example:1", peers="127.0.0.1:1", web_seeds="http://w.example/m")
    assert (one.trackers, one.web_seeds) == (("udp://t.example:1",), ("http://w.example/m",))
    assert one.peers == (("127.0.0.1", 1),)


def test_ignore_and_select_take_one_text(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model")
    found = gdist.inspect(tmp_path / "model", ignore="*.index.json", select="norm")
    assert [file.path for file in found.files if not file.kept] == ["model.safetensors.index.json"]
    assert found.chosen and all("norm" in tensor.name for tensor in found.chosen)


@pytest.mark.parametrize("call", [gdist.fetch, gdist.plan, gdist.inspect, gdist.check_rules])
def test_a_source_that_is_no_text_is_refused(call: Callable[[object], object]) -> None:
    with pytest.raises(RequestError, match="the source is None"):
        call(None)


@pytest.mark.parametrize("name", ["fetch", "cluster_fetch", "inspect", "check_rules", "plan"])
def test_an_unknown_keyword_is_an_error_of_the_function_called(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'meshes'"):
        getattr(gdist, name)("grok-1", meshes="8x8")


def test_an_unknown_keyword_of_a_job_is_told_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^fetching\(\) got"), gdist.fetching("x", tmp_path, meshes=1):
        pytest.fail("it started")


def test_swarm_keywords_are_the_source_s_options() -> None:
    assert torrent_options() == TorrentOptions()
    asked = torrent_options(
        trackers=["udp://t.example:1"], peers=["[::1]:2"], metadata_timeout="1m", max_upload="8Mb/s", lsd=True
    )
    assert asked.trackers == ("udp://t.example:1",)
    assert asked.peers == (("::1", 2),)
    assert (asked.metadata_timeout_seconds, asked.upload_rate, asked.lsd) == (60, 1_000_000, True)
    with pytest.raises(TypeError, match="speed"):
        gdist.plan("magnet:?xt=urn:btih:" + "1" * 40, speed=3)  # type: ignore[call-arg]


def test_plan_says_what_plan_host_does() -> None:
    report = gdist.plan("grok-1", mesh="8x8", hosts=4, piece_length="4MiB", payload="keep")
    manifest = known_release("grok-1")
    assert manifest
    payload = manifest.payload(4 * 2**20)
    naming = manifest.to_tensors(payload)
    union: set[int] = set()
    for cost in report.hosts:
        plan = plan_host(payload, naming.tensors, parse_mesh("8x8"), naming.rules, cost.host)
        assert (cost.bytes_wanted, cost.bytes_touched) == (plan.bytes_wanted, plan.bytes_touched)
        assert (cost.pieces, cost.shards) == (len(plan.pieces), sum(len(t.shards) for t in plan.tensors))
        assert cost.disk > plan.store_nbytes + plan.bytes_touched
        union.update(plan.pieces)
    assert report.union == sum(payload.extent_of(piece).length for piece in union)
    assert [cost.host for cost in report.hosts] == [HostGroup(index, 4) for index in range(4)]
    assert report.bound is None and report.complete


def test_rules_by_name_file_content_or_value(tmp_path: Path) -> None:
    named = read_rules("grok-1")
    assert named is not None and named.axes == ("data", "model")
    assert read_rules(None) is None
    assert read_rules(named) is named
    assert read_rules(named.to_json()) == named
    (tmp_path / "mine.json").write_text(json.dumps(named.to_json()))
    assert read_rules(tmp_path / "mine.json") == named
    (tmp_path / "broken.json").write_text("{")
    for wrong in (tmp_path / "broken.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(RequestError):
            read_rules(wrong)


def test_make_torrent_gives_bytes_and_magnet(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model")
    torrent, magnet = gdist.make_torrent(tmp_path / "model", torrent_version="v2", piece_length="32KiB")
    assert torrent.startswith(b"d") and magnet.startswith("magnet:?xt=urn:btmh:1220")


@pytest.mark.parametrize("length", [0, 3, 1000, 8192, "24KiB", "256MiB", "1GiB", "4GiB"])
def test_a_piece_length_that_no_torrent_has_is_refused(length: int | str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"1")
    for ask in (
        lambda: gdist.plan("grok-1", mesh="8", piece_length=length),
        lambda: gdist.simulate("grok-1", hosts=8, mesh="8x8", wan="10Gb/s", piece_length=length),
        lambda: gdist.make_torrent(tmp_path / "model", piece_length=length),
        lambda: gdist.publish(tmp_path / "model", tmp_path / "out", piece_length=length),
    ):
        with pytest.raises(RequestError, match=r"not a power of two of at least 16384 and at most 134217728"):
            ask()
    assert gdist.make_torrent(tmp_path / "model", piece_length="128MiB")


def test_a_version_that_no_torrent_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"1")
    with pytest.raises(RequestError, match="'v3' is none of v1, v2, hybrid"):
        gdist.make_torrent(tmp_path / "model", torrent_version="v3")  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
def test_files_that_a_torrent_cannot_name_are_named(version: Version, tmp_path: Path) -> None:
    for names, word in (
        (("A", "a"), "'both/A' and 'both/a' differ in upper and lower case alone"),
        (("\udcff\udcfe",), "is not UTF-8"),
        (("a\tb",), "has control characters"),
    ):
        made = tmp_path / "both"
        made.mkdir()
        for name in names:
            (made / name).write_bytes(b"1")
        with pytest.raises(UnsupportedError, match="a torrent cannot name what is in .*" + word) as caught:
            gdist.make_torrent(made, torrent_version=version)
        assert "hostile" not in caught.value.hint
        shutil.rmtree(made)


def test_a_torrent_of_what_has_no_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "\udcff").mkdir()
    for path, word in (("/", "no name of its own"), (tmp_path / "\udcff", "not UTF-8")):
        with pytest.raises(RequestError, match=word):
            gdist.make_torrent(path)


def test_a_cluster_s_status_says_why_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "17", "JOB_NUM_NODES": "4", "JOB_NODELIST": "n[0-3]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(RequestError, match="not known: slurm: this runs beside job 17 of 4 nodes") as caught:
        cluster_status()
    assert "--coordinator" in caught.value.hint


@pytest.mark.parametrize(("job", "hints"), [(None, True), ("18", False)])
def test_who_asks_for_another_job_is_told_of_it(job: str | None, hints: bool) -> None:
    def nothing(request: Request) -> Response:
        raise AssertionError("nobody was let in")

    key = Key.from_secret("s", "17")
    with (
        Server("127.0.0.1:0", key, handler=nothing) as server,
        pytest.raises(RefusedError, match="works on another job") as caught,
    ):
        cluster_status(coordinator=f"127.0.0.1:{server.port}", secret="s", job=job)
    assert ("it was asked for no job" in caught.value.hint and "--job" in caught.value.hint) == hints
