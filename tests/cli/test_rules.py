"""`gdist rules`, and meshes on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.shell_completion import ShellComplete

from gdist.cli import cli, main
from gdist.rule_files import named_rules, read_rules_file, rule_names
from gdist.testing.stores import write_store


def result(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_check_shows_every_tensor_and_the_shares(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check", "grok-1", "--mesh", "8x8", "--host", "3/8"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 1 + 1218 + 1 + 1 + 3
    embedding = next(line for line in lines if "in_out_embed" in line)
    assert "P(None, (data, model))" in embedding
    assert embedding.split()[-5:] == ["131072x96", "50.33", "MB", "402.65", "MB"]
    assert "each device holds 4.99 GB, host 3/8 39.85 GB" in out


def test_check_names_what_does_not_fit_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check", "grok-1", "--mesh", "7x8"]) == 2
    out, err = capsys.readouterr()
    assert out.count("does not fit") == 513 and "P(data)" in out
    assert "does not divide 513 tensors" in err
    assert "hint: the nearest meshes that do: data=8,model=8 or data=6,model=8" in err


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "check", "grok-1", "--mesh", "7x8", "--json"]) == 2
    *_, report, error = result(capsys)
    assert (report["event"], error["event"], report["ok"]) == ("report", "error", False)
    assert len(report["fit"]["faults"]) == len(error["facts"]["faults"]) == 513
    assert report["fit"]["nearest"][0] == error["facts"]["nearest"][0] == "data=8,model=8"
    assert main(["rules", "check", "grok-1", "--mesh", "2x2", "--device-order", "model,data", "--json"]) == 0
    (report,) = result(capsys)
    assert (report["ok"], report["device_order"], report["hosts"]) == (True, "0,2,1,3", 1)
    assert report["tensors"][0]["slab"] == [131072, 1536] and report["rules"][0]["names"] == 192


def test_check_notes_rules_that_nothing_goes_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s", {"w": np.zeros((4, 4), np.float32)})
    (tmp_path / "r.yaml").write_text("rules: [[w, [model]], [w, []], [v, []]]")
    assert (
        main(["rules", "check", str(tmp_path / "s"), "--rules", str(tmp_path / "r.yaml"), "--mesh", "2"]) == 0
    )
    out = capsys.readouterr().out
    assert "note: rule 1 (w) is never reached" in out and "note: rule 2 (v) matches nothing" in out


def test_rules_are_listed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "list", "--json"]) == 0
    assert [row["name"] for row in result(capsys)[0]["rules"]] == list(rule_names())
    for name in rule_names():
        assert main(["rules", "show", name]) == 0
        (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
        assert read_rules_file(tmp_path / "mine.yaml") == named_rules(name)
    assert main(["rules", "show", "gpt"]) == 2


@pytest.mark.parametrize(
    ("arguments", "mesh"),
    [
        (["--mesh", "2x4x8", "--axes", "replica,data,model"], "replica=2,data=4,model=8"),
        (["--mesh", "-1x8", "--devices", "64"], "data=8,model=8"),
        (["--mesh=-1x8", "--devices-per-host", "8", "--host", "1/4"], "data=4,model=8"),
        (["--mesh", "data=-1,model=8", "--devices", "8"], "data=1,model=8"),
        (["--mesh", "2x2", "--device-order", "3-0"], "data=2,model=2 (devices 3,2,1,0)"),
    ],
)
@pytest.mark.parametrize("command", [["rules", "check"], ["plan"]])
def test_meshes_are_read_alike(
    command: list[str], arguments: list[str], mesh: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "grok-1", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"mesh {mesh}{':' if command == ['rules', 'check'] else ';'}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mesh", "-1x8"], "--devices"),
        (["--mesh", "2x2x2x2"], "--axes axis0,axis1,axis2,axis3"),
        (["--mesh", "2x4", "--axes", "a"], "has 2 axes and 1 names"),
        (["--mesh", "8x8", "--devices", "32"], "has 64 devices, not 32"),
        (["--devices", "32"], "mesh 1 has 1 device, not 32"),
        (
            ["--mesh", "8x8", "--devices", "64", "--devices-per-host", "8", "--host", "0/4"],
            "4 hosts of 8 devices",
        ),
        (["--mesh", "2x2", "--device-order", "0,1"], "has 2 numbers, the mesh 4 devices"),
        (["--mesh", "2x2", "--device-order", "model"], "neither numbers, nor the mesh's axes, nor a file"),
        (["--mesh", "8x8", "--host", "8/8"], "host index 8 is not in 0 to 7"),
        (["--mesh", "8x8", "--host", "0/3"], "3 hosts do not divide the 64 devices"),
        (["--mesh", "dp=8,tp=8"], "has an axis 'dp' that the rules do not know"),
        (["--mesh", "8x8", "--rules", "llama"], "no rule matches 1153 tensors"),
    ],
)
def test_meshes_that_cannot_be_end_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "grok-1", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and "Traceback" not in err


def test_inspect_works_with_a_mesh_that_lacks_an_axis_of_the_rules() -> None:
    assert main(["inspect", "grok-1", "--mesh", "8", "--tensor", "router"]) == 0


def test_names_of_rules_are_completed() -> None:
    complete = ShellComplete(cli, {}, "gdist", "_GDIST_COMPLETE")
    found = complete.get_completions(["fetch", "grok-1", "--rules"], "")
    assert [item.value for item in found] == list(rule_names())
    assert [item.value for item in complete.get_completions(["rules"], "")] == ["check", "list", "show"]
    assert isinstance(cli, click.Group)
