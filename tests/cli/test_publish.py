"""`gdist publish` and `gdist manifest check` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdist.cli import main
from gdist.testing.checkpoints import write_safetensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "model", emb=16, vocab=32)
    return tmp_path / "model"


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_a_release_is_made_signed_and_checked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, out = str(tmp_path / "key.pem"), tmp_path / "out"
    assert main(["publish", "--new-key", key]) == 0
    public = capsys.readouterr().out.strip()
    assert len(public) == 64
    asked = ["publish", str(model), "--output", str(out), "--sign", key, "--licence", "MIT"]
    assert main(asked) == 0
    words = capsys.readouterr()
    assert words.out.startswith("magnet:?xt=urn:btih:") and f"public key {public}" in words.err
    assert f"gdist seed {out / 'model.torrent'} {model}" in words.err
    assert main([*asked, "--json"]) == 0
    made = said(capsys)
    assert (made["event"], made["name"], made["tensors"]) == ("result", "model", 21)
    manifest = str(out / "model.json")
    assert made["manifest"] == manifest and made["signature"] == f"{manifest}.sig"
    check = ["manifest", "check", manifest, str(model), "--verify-key", public]
    assert main(check) == 0
    assert "3 files, 21 arrays, 21 digests compared" in capsys.readouterr().out
    assert main([*check, "--no-digests", "--json"]) == 0
    assert said(capsys)["digests"] == 0
    assert main(["inspect", manifest, "--verify-key", public]) == 0
    assert "21 tensors" in capsys.readouterr().out
    assert main(["plan", manifest, "--mesh", "2x2", "--verify-key", public]) == 0


def test_what_differs_ends_with_12_and_is_listed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(model), "--output", str(tmp_path / "out"), "--quiet"]) == 0
    manifest = str(tmp_path / "out/model.json")
    for path in model.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert main(["manifest", "check", manifest, str(model)]) == 12
    words = capsys.readouterr()
    assert words.out.count("has digest") == 2 and words.err.startswith("error: ")
    assert main(["manifest", "check", manifest, str(model), "--json"]) == 12
    report, error = map(json.loads, capsys.readouterr().out.splitlines()[-2:])
    assert (report["event"], len(report["faults"]), report["ok"]) == ("report", 2, False)
    assert (error["event"], error["code"], error["facts"]["faults"]) == ("error", 12, report["faults"])


def test_exit_codes_of_what_is_wrong(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, other = str(tmp_path / "key.pem"), str(tmp_path / "other.pem")
    assert main(["publish", "--new-key", key]) == main(["publish", "--new-key", other]) == 0
    theirs = capsys.readouterr().out.splitlines()[-1]
    assert main(["publish", str(model), "--output", str(tmp_path / "out"), "--sign", key]) == 0
    manifest = str(tmp_path / "out/model.json")
    for arguments, code, word in (
        (["publish"], 2, "not given"),
        (["publish", str(model), "--new-key", key], 2, "nothing else"),
        (["publish", "--new-key", key], 2, "exists"),
        (["publish", str(tmp_path / "absent")], 2, "neither a file"),
        (["publish", str(model), "--sign", manifest], 2, "is no private key"),
        (["publish", str(model), "--rules", "nothing"], 2, "nothing"),
        (["fetch", manifest, str(tmp_path / "s"), "--verify-key", theirs], 12, "is not what the owner"),
        (["fetch", manifest, str(tmp_path / "s"), "--verify-key", "zz"], 2, "cannot be read"),
        (["fetch", "grok-1", str(tmp_path / "s"), "--verify-key", theirs], 2, "no manifest"),
        (["fetch", "ab" * 20, str(tmp_path / "s"), "--manifest", manifest], 2, "the torrent is"),
        (["inspect", str(model), "--manifest", manifest], 2, "no torrent that a manifest"),
        (["manifest", "check", manifest, str(tmp_path / "absent")], 2, "neither a payload"),
        (["manifest", "check", str(tmp_path / "absent"), str(model)], 2, "cannot read"),
        (["manifest", "check", str(model / "model.safetensors.index.json"), str(model)], 2, "manifest"),
    ):
        capsys.readouterr()
        assert main(arguments) == code, arguments
        err = capsys.readouterr().err
        assert err.startswith("error: ") and word in err, (arguments, err)
    assert not (tmp_path / "s").exists()
