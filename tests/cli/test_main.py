"""What the program says and how it ends, without a network."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import gdist
from gdist.cli import cli, main
from gdist.errors import RequestError
from gdist.testing.checkpoints import llama_tree, write_safetensors
from gdist.testing.stores import write_store

GROK_TENSORS = 1218


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests' own environment must not choose options."""
    for name in [name for name in os.environ if name.startswith("GDIST_")]:
        monkeypatch.delenv(name)
    yield


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fetch"], "Missing argument 'SOURCE'"),
        (["fetsch"], "No such command"),
        (["fetch", "nowhere"], "nor a known release"),
        (["fetch", "grok-1", "--mesh", "8by8"], "'8by8' is not a mesh"),
        (["fetch", "grok-1", "--host", "8/8"], "host index 8"),
        (["fetch", "grok-1", "--host", "three"], "not INDEX/COUNT"),
        (["fetch", "grok-1", "--memory", "much"], "memory 'much'"),
        (["fetch", "grok-1", "--peer", "nobody"], "not a peer's address"),
        (["fetch", "grok-1", "--tracker", "t.example:1"], "no address of a tracker"),
        (["fetch", "grok-1", "--web-seed", "nonsense"], "no address of an HTTP mirror"),
        (["fetch", "grok-1", "--listen", "nonsense"], "cannot listen at 'nonsense'"),
        (["fetch", "grok-1", "--listen", ":99999"], "cannot listen at ':99999'"),
        (["fetch", "grok-1", "--listen", "[::1]:0,127.0.0.1:65536"], "cannot listen at '127.0.0.1:65536'"),
        (["make-torrent", "/etc/hostname", "--tracker", "t.example:1"], "no address of a tracker"),
        (["make-torrent", "/etc/hostname", "--web-seed", "ftp://x"], "no address of an HTTP mirror"),
        (["fetch", "grok-1", "--stall-timeout", "soon"], "stall-timeout 'soon'"),
        (["fetch", "grok-1", "--max-download", "10G"], "max-download '10G'"),
        (["fetch", "grok-1", "--rules", "nothing.json"], "neither a file nor a name that gdist knows"),
        (["fetch", "grok-1", "--payload", "burn"], "'burn' is not one of"),
        (
            ["cluster", "fetch", "grok-1", "--min-hosts", "9", "--deadline", "1m"],
            "more than the job has, 1 host",
        ),
        (["cluster", "fetch", "grok-1", "--min-hosts", "1"], "at the deadline, and there is none"),
        (["cluster", "fetch", "grok-1", "--http", "here"], "'here' is no address"),
        (["plan", "grok-1", "--mesh", "7x7"], "does not divide 513 tensors"),
        (["plan", "grok-1", "--mesh", "8x8", "--hosts", "3"], "3 hosts do not divide"),
        (["plan", "grok-1", "--mesh", "8x8", "--hosts", "0"], "0 is not in the range"),
        (["plan", "grok-1", "--mesh", "8x8", "--hosts", "8", "--host", "1/4"], "do not go together"),
        (["plan", "grok-1", "--mesh", "8x8", "--wan", "0"], "no rate to plan with"),
        (["inspect", "grok-1", "--tensor", "("], "not a regular expression"),
        (["inspect", "grok-1", "--profile", "grok-1", "--bogus"], "No such option"),
        (["inspect", "grok-1", "--tensor", "nothing like it"], "grok-1 has no tensor 'nothing like it'"),
        (["inspect", "grok-1", "--plot", "a.svg"], "--plot draws one tensor"),
        (["inspect", "grok-1", "--tensor", "router", "--plot", "a.svg"], "'router' is found in 64"),
        (["inspect", "grok-1", "--tensor", "router", "--plot", "a.png"], "'a.png' is named otherwise"),
        (["inspect", "grok-1", "--tensor", "r", "--plot", "/nonexistent/a.svg"], "cannot be a file"),
        (["plan", "grok-1", "--report", "a.pdf"], "--report writes HTML"),
        (["verify", "/nonexistent/store"], "/nonexistent/store"),
        (["seed", "/nonexistent.torrent", "/"], "cannot read '/nonexistent.torrent'"),
        (["make-torrent", "/nonexistent"], "neither a file nor a directory"),
        (["make-torrent", "/"], "/ has no name of its own"),
        (["make-torrent", ""], "it is empty; the working directory is '.'"),
        (["publish", ""], "it is empty"),
        (["view", ""], "it is empty"),
        (["reshard", "", "out"], "it is empty"),
        (["reshard", "in", ""], "it is empty"),
        (["export", "", "out"], "it is empty"),
        (["verify", ""], "it is empty"),
        (["make-torrent", "/etc/hostname", "--output", ""], "it is empty"),
    ],
)
@pytest.mark.parametrize("form", ["words", "json", "variable"])
def test_what_is_asked_wrongly_ends_with_2_and_one_sentence(
    arguments: list[str],
    said: str,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if form == "variable":
        monkeypatch.setenv("GDIST_JSON", "1")
    assert main([*arguments, "--json"] if form == "json" else arguments) == 2
    out, err = capsys.readouterr()
    if form == "words":
        assert out == ""
        assert err.startswith("error: ") and said in err
    else:
        assert err == ""
        last = json.loads(out.splitlines()[-1])
        assert (last["event"], last["code"], last["retry"]) == ("error", 2, False)
        assert said in last["message"]
    assert "Traceback" not in out + err


def test_a_torrent_goes_where_a_file_can_be_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").write_bytes(b"mine")
    monkeypatch.setattr("gdist.api.make_torrent", lambda *args, **values: pytest.fail("hashed"))
    for name, said in (
        ("m", "m is a directory"),
        ("fifo", "fifo is no regular file"),
        ("other", "other exists and has other content"),
        ("nowhere/t", "nowhere is no directory"),
        ("other/t", "other is no directory"),
        ("m/m.torrent", "cannot lie in what the torrent is of"),
        ("m/x", "cannot lie in what the torrent is of"),
    ):
        for force in ([], ["--force"]) if name != "other" else ([],):
            assert main(["make-torrent", str(tmp_path / "m"), "--output", str(tmp_path / name), *force]) == 2
            err = capsys.readouterr().err
            assert said in err and "\nhint: " in err
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    monkeypatch.setattr("os.access", lambda *args: False)  # root may write anywhere
    assert main(["make-torrent", str(tmp_path / "m")]) == 17
    assert "cannot be written to\nhint: " in capsys.readouterr().err


def test_hints_follow_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "nowhere"]) == 2
    assert "\nhint: known releases: bloom, gpt-j-6b, grok-1" in capsys.readouterr().err


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_it_tells_its_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"gdist {gdist.__version__}\n"


def test_plan_of_a_known_release(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "grok-1", "--mesh", "8x8", "--hosts", "8", "--wan", "10Gb/s", "--lan", "100Gb/s"]
    assert main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["event"] == "result"
    assert (result["tensors"], result["piece_length_assumed"]) == (GROK_TENSORS, True)
    assert len(result["hosts"]) == 8
    assert sum(host["wan_share"] for host in result["hosts"]) == result["union"]
    assert all(3 < host["amplification"] < 5 for host in result["hosts"])
    assert result["bound"]["limit"] == "wan"
    assert result["bound"]["seconds"] == pytest.approx(result["union"] / 1.25e9)
    swarm, collective = result["exchanges"]
    assert (swarm["exchange"], collective["exchange"]) == ("swarm", "collective")
    assert swarm["wan"] == collective["wan"] == result["union"]
    assert 0 < swarm["lan"] < collective["lan"] < sum(host["bytes_wanted"] for host in result["hosts"])
    assert swarm["bound"]["seconds"] >= result["bound"]["seconds"]
    assert result["choice"]["exchange"] == "swarm"
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert "(assumed: the release's own is not known" in out
    assert "recommended: --exchange swarm (needs nothing but sockets" in out
    assert "least time: 4m 15s, set by the wan" in out
    assert err == ""


def test_an_interconnect_of_its_own_makes_collectives_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "grok-1", "--mesh", "8x8", "--hosts", "8", "--wan", "400Gb/s", "--lan", "25Gb/s"]
    assert main([*asked, "--interconnect", "400Gb/s"]) == 0
    said = capsys.readouterr().out
    assert "recommended: --exchange collective (can be done in 13 s, a swarm in 20 s)" in said
    assert main([*asked, "--interconnect", "5Gb/s"]) == 0
    assert "recommended: --exchange swarm (collectives are not clearly faster" in capsys.readouterr().out


def test_a_fetch_does_not_choose_an_exchange_and_says_who_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["cluster", "fetch", "grok-1", "--host", "0/2"]
    assert main([*asked, "--exchange", "auto"]) == 2
    assert "there is no 'auto'" in (said := capsys.readouterr().err) and "'gdist plan' recommends" in said
    monkeypatch.setenv("GDIST_EXCHANGE", "auto")
    assert main(asked) == 2
    assert "there is no 'auto'" in capsys.readouterr().err
    with pytest.raises(RequestError, match="exchange 'auto' is none of swarm, collective"):
        gdist.cluster_fetch("grok-1", mesh="2", host="0/2", exchange="auto")


def test_plan_of_one_host_of_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "grok-1", "--mesh", "8x8", "--host", "3/8", "--wan", "1GB/s"]) == 0
    out = capsys.readouterr().out
    assert "3/8" in out and "0/8" not in out
    assert "the least time needs all hosts" in out


def test_inspect_of_a_known_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "grok-1", "--mesh", "8x8", "--tensor", r"layer_9\.moe", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [t["name"].rpartition("layer_9.")[2] for t in result["tensors"]] == [
        f"moe.{name}.w.{half}" for name in ("linear", "linear_1", "linear_v") for half in ("weight", "scales")
    ]
    weight = result["tensors"][0]
    assert (weight["shape"], weight["slab"]) == ([8, 6144, 32768], [8, 768, 4096])
    assert weight["spec"] == [None, "data", "model"]
    assert main(["inspect", "grok-1", "--files"]) == 0
    out = capsys.readouterr().out
    assert f"{GROK_TENSORS} tensors, 318.24 GB" in out
    assert "ckpt-0/tensor00769_000" in out


def test_options_come_from_the_environment_and_the_command_line_wins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GDIST_MESH", "8x8")
    monkeypatch.setenv("GDIST_HOSTS", "2")
    monkeypatch.setenv("GDIST_JSON", "1")
    assert main(["plan", "grok-1", "--hosts", "4"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["mesh"], len(result["hosts"])) == ({"data": 8, "model": 8}, 4)


@pytest.mark.parametrize("words", [["plan"], ["simulate", "--wan", "10Gb/s", "--sample", "1"]])
def test_a_list_of_hosts_in_the_environment_is_counted(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod and a script over ssh have the list of `cluster fetch` there."""
    (tmp_path / "hosts").write_text("h0  # the first\nh[1-3]\n")
    command = [words[0], "grok-1", "--mesh", "8x8", "--json", *words[1:]]
    for listed in ("h[0-3]:7611", "10.0.0.1,10.0.0.2 10.0.0.3,h3", f"@{tmp_path}/hosts", "4"):
        monkeypatch.setenv("GDIST_HOSTS", listed)
        assert main(command) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (result["setting"]["hosts"] if words[0] == "simulate" else len(result["hosts"])) == 4
    for wrong, says in (("h0,h0", "among the hosts twice"), ("0", "not in the range"), ("h[0-", "brackets")):
        monkeypatch.setenv("GDIST_HOSTS", wrong)
        assert main([*words, "grok-1", "--mesh", "8x8"]) == 2
        assert says in capsys.readouterr().err
    assert main([*words, "grok-1", "--mesh", "8x8", "--hosts", "h[0-3]"]) == 2, "a number, where it is given"


def test_a_variable_holds_several_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GDIST_PEER", "127.0.0.1:1, 127.0.0.1:2 nonsense")
    assert main(["fetch", "grok-1"]) == 2
    assert "not a peer's address: 'nonsense'" in capsys.readouterr().err


def test_releases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["releases"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:4] == ["grok-1", "318.24", "GB", "Apache-2.0"] for line in lines)
    assert any(line.startswith("mixtral-8x7b ") and "about 87.00 GB" in line for line in lines)
    assert any(line.startswith("bloom ") and line.endswith("with --profile bloom") for line in lines)


@pytest.mark.parametrize("name", ["grok-1", "mixtral-8x7b", "llama-2"])
def test_one_release(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["releases", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ") and "licence" in out
    assert ("none known" in out) == (name == "llama-2")
    assert ("770 files, 1218 arrays" in out) == (name == "grok-1")
    assert ("md5 1faa9bc9b20fcfe81fcd4eb7166a79e6" in out) == (name == "mixtral-8x7b")
    assert main(["releases", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name
    assert main(["releases", "nothing"]) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"_GDIST_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_knows_options_and_releases() -> None:
    def complete(words: str, number: int) -> str:
        script = "import sys; from gdist.cli import main; sys.exit(main())"
        environment = {"_GDIST_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        return subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert "plain,grok-1" in complete("gdist fetch gro", 2)
    assert "plain,--max-download" in complete("gdist fetch --max-d", 2)
    assert "plain,make-torrent" in complete("gdist make", 1)


def test_a_bug_of_ours_ends_with_70_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    @cli.command("stumble")
    def stumble() -> None:
        raise ZeroDivisionError("division by zero")

    try:
        assert main(["stumble"]) == 70
    finally:
        del cli.commands["stumble"]
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and "Traceback" not in err


def test_what_a_library_makes_of_ctrl_c_while_it_is_loaded_is_ctrl_c(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @cli.command("load")
    def load() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as pressed:
            raise ImportError("numpy._core.umath failed to import") from pressed

    try:
        assert main(["load"]) == 130
    finally:
        del cli.commands["load"]
    assert "error: interrupted" in capsys.readouterr().err


def test_ctrl_c_while_the_program_is_loaded() -> None:
    """As early as Python can be interrupted."""
    script = (
        "import builtins, sys; from gdist.__main__ import run; load = builtins.__import__\n"
        "def pressed(name, *rest): raise KeyboardInterrupt if name == 'gdist.cli' else AssertionError\n"
        "builtins.__import__ = pressed; run()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=180)
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_reader_that_leaves_is_no_error() -> None:
    script = "import sys; from gdist.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "inspect", "grok-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 141)


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "grok-1", "--mesh", "8x8"]])
def test_it_starts_without_the_heavy_libraries(arguments: list[str]) -> None:
    heavy = ("libtorrent", "jax", "tensorstore", "zarr", "numpy", "rich", "fsspec", "jinja2")
    script = (
        "import re, sys; from gdist.cli import main; code = main(sys.argv[1:]); "
        # not ru_maxrss: it is handed down over fork and exec, so it would tell the size of this process
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read()); "
        f"print([m for m in {heavy} if m in sys.modules], int(peak[1]) // 1024, code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    names, mebibytes, code = done.stderr.rsplit(" ", 2)
    assert (names, code.strip()) == ("[]", "0")
    assert int(mebibytes) < 200


def test_inspect_shows_what_a_renaming_table_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_safetensors(tmp_path / "llama", {**dict(llama_tree(layers=3)), "odd": np.ones(3, np.float32)})
    assert main(["inspect", str(tmp_path / "llama"), "--rename", "hf-maxtext"]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"model\.layers\.0\.mlp\.down_proj\.weight and 2 more +64x256 +"
        r"params\.decoder\.layers\.mlp\.wo\.kernel +256x3x64 +transposed, 3 stacked on 1",
        text,
    )
    assert "unmatched: odd" in text and "12 tensors, 0 dropped, 1 have no rule" in text
    assert main(["inspect", str(tmp_path / "llama"), "--rename", "hf-maxtext", "--json"]) == 0
    renamed = json.loads(capsys.readouterr().out.splitlines()[-1])["renamed"]
    assert renamed["unmatched"] == ["odd"] and renamed["table"] == "hf-maxtext"
    head = next(t for t in renamed["tensors"] if t["name"] == "params.decoder.logits_dense.kernel")
    assert (head["shape"], head["sources"], head["transpose"]) == ([64, 256], ["lm_head.weight"], True)
    assert main(["inspect", str(tmp_path / "llama"), "--rename", "absent"]) == 2
    assert "'absent' is no table" in capsys.readouterr().err


def test_export_takes_a_renaming_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s", dict(llama_tree()))
    assert main(["export", str(tmp_path / "s"), str(tmp_path / "o"), "--rename", "hf-flax"]) == 2
    assert "--rename goes with --to safetensors" in capsys.readouterr().err
    command = [
        "export",
        str(tmp_path / "s"),
        str(tmp_path / "o"),
        "--to",
        "safetensors",
        "--rename",
        "hf-flax",
    ]
    assert main(command) == 0
    with safe_open(tmp_path / "o/model.safetensors", "np") as file:
        assert "params.model.layers.1.mlp.up_proj.kernel" in set(file.keys())
