"""`gdist simulate`: a table for people, all of it as JSON."""

from __future__ import annotations

import json
import re

import pytest

from gdist.cli import main

ASKED = ["simulate", "grok-1", "--mesh", "8x8", "--hosts", "8", "--wan", "25Gb/s", "--lan", "100Gb/s"]


def test_what_comes_of_it_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ASKED) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(
        "grok-1 on 8 hosts, mesh data=8,model=8; 18969 pieces of 16777216 bytes (assumed)\n"
    )
    assert "8 groups of hosts that need the same\n" in out
    assert re.search(r"all hosts have all +1m 42s  1\.00 of the least time 1m 42s, set by the wan", out)
    assert re.search(r"over the WAN +318\.24 GB  1\.000 of what has to come in", out)
    assert re.search(r"from +to +binds +wan +receiving +link in +link out +cores +python +disk", out)
    assert re.search(r"0\.00 s +1m 42s +wan +100%", out)


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([*ASKED, "--fail", "1@20s", "--slow", "1@0.5", "--cpu", "place=0.3", "--seed", "2", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["event"] == "result" and result["groups"] == 8
    setting, outcome = result["setting"], result["outcome"]
    assert (setting["costs"]["place"], setting["disk"], setting["seed"]) == (0.3, None, 2)
    assert [when for _, when in setting["fails"]] == [20.0] and [share for _, share in setting["slow"]] == [
        0.5
    ]
    assert outcome["lost"] == 1 and len(outcome["hosts"]) == 7
    assert outcome["seconds"] >= outcome["median_seconds"] >= outcome["first_seconds"] > 0
    assert outcome["seconds"] >= outcome["bound"]["seconds"] and outcome["bound"]["limit"] == "wan"
    assert outcome["ratio"] >= 1 and outcome["wan"] >= outcome["union"]
    assert {used["resource"] for used in outcome["spans"][0]["used"]} >= {"wan", "link in", "python"}


def test_of_many_hosts_some_are_followed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "grok-1", "--mesh", "13x8x8", "--hosts", "104", "--wan", "100Gb/s", "--sample", "16"]
    assert main([*asked, "--select", r"layer_[0-2]\.", "--fail", "2@0.2s"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"8 groups of hosts that need the same, 1\d of them followed\n", out)
    assert "2 hosts failed; the times are those of the others" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "grok-1", "--mesh", "8x8", "--wan", "1Gb/s"], "Missing option '--hosts'"),
        (["simulate", "grok-1", "--mesh", "8x8", "--hosts", "8"], "Missing option '--wan'"),
        ([*ASKED, "--cpu", "sing=1"], "none of receive, hash, place, write, serve, take"),
        ([*ASKED, "--gateways", "none"], "hosts 'none' are no numbers"),
    ],
)
def test_what_makes_no_sense_is_usage(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
