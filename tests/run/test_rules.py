"""`check`: slabs, shares and faults of every tensor of a release, a store, local files and a torrent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gdist
from gdist.core.magnet import format_magnet
from gdist.core.mesh import HostGroup, Mesh, parse_mesh
from gdist.core.plan import plan_host
from gdist.core.rules import parse_rules
from gdist.core.tensor import Quantisation
from gdist.errors import RequestError
from gdist.releases import known_release
from gdist.run.rules import CheckOptions, RulesReport, check
from gdist.testing.checkpoints import write_safetensors
from gdist.testing.stores import write_store
from gdist.testing.swarm import seed

RULES = {"axes": ["data", "model"], "rules": [["proj", [None, "model"]], ["norm", []], ["embed", ["data"]]]}
WITH_REST = {"rules": [*RULES["rules"], [".*", []]]}


@pytest.mark.parametrize("order", ["", "model,data"])
def test_shares_are_those_of_the_plan(order: str) -> None:
    report = gdist.check_rules("grok-1", mesh="8x8", host="3/8", device_order=order or None)
    manifest = known_release("grok-1")
    assert manifest
    naming = manifest.to_tensors(manifest.payload(2**24))
    plan = plan_host(manifest.payload(2**24), naming.tensors, report.mesh, naming.rules, HostGroup(3, 8))
    assert report.ok and report.host_nbytes == plan.bytes_wanted
    for ours, theirs in zip(report.tensors, plan.tensors, strict=True):
        assert (ours.name, ours.spec, ours.slab) == (theirs.tensor.spec.name, theirs.spec, theirs.grid.slab)
        assert ours.host_nbytes == theirs.nbytes
    assert report.device_nbytes * 8 >= report.host_nbytes


def test_an_order_changes_what_a_host_holds_of_replicated_axes() -> None:
    by_rows, by_columns = (
        check("grok-1", CheckOptions(Mesh((("data", 8), ("model", 8)), order), host=HostGroup(0, 8)))
        for order in ((), tuple(np.arange(64).reshape(8, 8).T.ravel().tolist()))
    )
    router = next(n for n, tensor in enumerate(by_rows.tensors) if tensor.name.endswith("router.w"))
    assert by_rows.tensors[router].host_nbytes == 6144 * 8 * 4 // 8  # its data row alone
    assert by_columns.tensors[router].host_nbytes == 6144 * 8 * 4  # a device of every row


def store(path: Path) -> Path:
    arrays = {
        "a.proj": np.zeros((6, 8), ml_dtypes.bfloat16),
        "a.norm": np.zeros(6, np.float32),
        "embed": np.zeros((12, 6), np.float32),
    }
    write_store(path, arrays, mesh="2x4", rules=RULES)
    return path


def summary(report: RulesReport) -> dict[str, tuple[object, ...]]:
    return {t.name: (t.rule, str(t.spec), t.slab, t.slab_nbytes, t.host_nbytes) for t in report.tensors}


def test_a_store_is_checked_as_it_was_cut_and_by_other_rules(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    own = gdist.check_rules(path, host="0/2")
    assert own.ok and own.mesh == parse_mesh("2x4") and not own.rules
    assert summary(own) == {
        "a.proj": (None, "P(None, model)", (6, 2), 24, 96),
        "a.norm": (None, "P()", (6,), 24, 24),
        "embed": (None, "P(data)", (6, 6), 144, 144),
    }
    other = gdist.check_rules(path, mesh="4x2", rules=WITH_REST)
    assert summary(other)["embed"] == (2, "P(data)", (3, 6), 72, 288)
    assert other.host_nbytes == sum(tensor.nbytes for tensor in other.tensors)


def test_the_scales_of_a_store_follow_the_mesh(tmp_path: Path) -> None:
    arrays = {"m.weight": np.zeros((16, 8), np.int8), "m.scales": np.zeros((2, 8), np.float32)}
    pairs = {name: Quantisation("m", name[2:], 2, 0) for name in arrays}
    write_store(tmp_path / "s", arrays, mesh="2x1", rules={"rules": [["m", ["data"]]]}, quantised=pairs)
    assert [t.slab for t in gdist.check_rules(tmp_path / "s").tensors] == [(8, 8), (1, 8)]
    assert [t.slab for t in gdist.check_rules(tmp_path / "s", mesh="4x1").tensors] == [(4, 8), (2, 8)]


def test_everything_that_does_not_fit_is_in_the_report(tmp_path: Path) -> None:
    rules = {
        "axes": ["data", "model"],
        "rules": [["proj", ["data", "model"]], ["embed", ["data", None, None]]],
    }
    report = gdist.check_rules(store(tmp_path / "s"), mesh="4x3", rules=rules)
    assert not report.ok
    assert report.fit.unmatched == ("a.norm",)
    assert list(map(str, report.fit.faults)) == [
        "mesh axis 'data' (4) does not divide dimension 0 (6) of 'a.proj'",
        "mesh axis 'model' (3) does not divide dimension 1 (8) of 'a.proj'",
        "partition spec P(data, None, None) has 3 dimensions, more than the 2 of 'embed'",
    ]
    assert str(report.fit.nearest[0]) in ("data=3,model=4", "data=3,model=2")
    assert all(6 % mesh.sizes[0] == 8 % mesh.sizes[1] == 0 for mesh in report.fit.nearest)
    assert [tensor.slab for tensor in report.tensors] == [None, None, None]
    with pytest.raises(RequestError, match="3 hosts do not divide"):
        gdist.check_rules(tmp_path / "s", mesh="2x4", rules=WITH_REST, host="0/3")


def test_rules_that_nothing_goes_by_are_noted(tmp_path: Path) -> None:
    rules = [["proj", []], [r"^a\.", []], ["a/proj", []], ["wq", []], [".*", []]]
    report = gdist.check_rules(store(tmp_path / "s"), mesh="2x4", rules={"rules": rules})
    assert [(use.names, use.shadowed) for use in report.rules] == [(1, 0), (1, 1), (0, 1), (0, 0), (1, 2)]
    assert report.notes == (
        "rule 2 (a/proj) is never reached: earlier rules take all it matches (1)",
        "rule 3 (wq) matches nothing",
    )


def test_rules_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the rules match none of the 3 names"):
        gdist.check_rules(store(tmp_path / "s"), mesh="2x4", rules={"rules": [["wq", []], [".*", []]]})
    with pytest.raises(RequestError, match="the rules match none of the 770 names"):
        gdist.plan("grok-1", mesh="8x8", rules={"rules": [["wq", []], [".*", []]]})


def test_without_rules_a_release_is_split_automatically(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model")
    report = check(tmp_path / "model", CheckOptions(parse_mesh("2x2")))
    assert report.ok and any("automatically" in note for note in report.notes)
    named = check(tmp_path / "model", CheckOptions(parse_mesh("2"), parse_rules(WITH_REST)))
    assert named.mesh == Mesh((("data", 1), ("model", 2))), "axes of the rules are added"


def test_a_store_that_nothing_cut_is_split_as_a_reshard_would(tmp_path: Path) -> None:
    write_store(tmp_path / "s", {"a": np.zeros((6, 8), np.float32)})
    assert gdist.check_rules(tmp_path / "s").notes == ("no rules: split as the store is",)
    report = gdist.check_rules(tmp_path / "s", mesh="2x4")
    cut = gdist.reshard(tmp_path / "s", tmp_path / "cut", mesh="2x4").manifest
    assert [t.spec for t in report.tensors] == [t.spec for t in cut.tensors]
    assert any("automatically" in note for note in report.notes)


@pytest.mark.torrent
def test_a_torrent_is_checked_by_its_headers(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model")
    with seed(tmp_path / "model") as seeded:
        report = gdist.check_rules(
            format_magnet(replace(seeded.magnet, peers=())),
            mesh="-1",
            devices=2,
            rules="llama",
            peers=[f"127.0.0.1:{seeded.port}"],
            dht=False,
            listen="127.0.0.1:0",
            stall_timeout="20s",
        )
    specs = {tensor.name: str(tensor.spec) for tensor in report.tensors}
    assert specs["model.layers.0.self_attn.q_proj.weight"] == "P(model, data)"
    assert report.mesh.devices == 2


def test_some_tensors_of_a_store_are_checked_alone(tmp_path: Path) -> None:
    arrays = {"a.w": np.zeros((8, 8), np.float32), "b.w": np.zeros((8, 8), np.float32)}
    write_store(tmp_path / "s", arrays)
    report = gdist.check_rules(tmp_path / "s", mesh="2x2", select="^a")
    assert [split.name for split in report.tensors] == ["a.w"]
