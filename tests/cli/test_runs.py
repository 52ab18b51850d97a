"""The program as people run it: real processes, a real swarm on loopback."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import pytest

from gdist.core.magnet import format_magnet, parse_magnet
from gdist.testing.checkpoints import dequantised, write_grok1, write_safetensors
from gdist.testing.fetches import Array, assert_holds
from gdist.testing.swarm import LOCALHOST, Seeded, Slow, seed

pytestmark = pytest.mark.torrent

LOOPBACK = ("--no-dht", "--listen", "127.0.0.1:0")
GDIST = (sys.executable, "-W", "error", "-m", "gdist")


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GDIST_")}
    return {**kept, **changes}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


def gdist(*arguments: object, cwd: Path | None = None, **variables: str) -> Done:
    """One run of the program; whatever happens, it shows no traceback."""
    done = subprocess.run(
        [*GDIST, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(**variables),
        cwd=cwd,
        timeout=180,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Seeded, dict[str, Array], Path]]:
    root = tmp_path_factory.mktemp("small") / "tiny-grok"
    expected = write_grok1(root, layers=2)
    with seed(root) as seeded:
        yield seeded, dict(expected), root


@pytest.fixture(scope="module")
def magnet(small: tuple[Seeded, dict[str, Array], Path]) -> str:
    return format_magnet(small[0].magnet)


def test_fetch_again_verify_inspect(
    small: tuple[Seeded, dict[str, Array], Path], magnet: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = gdist("fetch", magnet, store, "--mesh", "2x2", *LOOPBACK)
    assert (first.code, first.out) == (0, f"{store}\n"), first.err
    assert "fetching" in first.err and "complete: " in first.err and "threads' time went to: " in first.err
    assert_holds(store, small[1])  # type: ignore[arg-type]  # arrays by name

    again = gdist("fetch", magnet, store, "--mesh", "2x2", *LOOPBACK)
    assert (again.code, again.out) == (0, f"{store}\n")
    assert "is complete already" in again.err

    other = gdist("fetch", magnet, store, "--mesh", "4x1", *LOOPBACK)
    assert (other.code, other.out) == (15, "")

    good = gdist("verify", store)
    assert (good.code, good.out) == (0, f"{store}\n"), good.err

    seen = gdist("inspect", store, "--json").lines[-1]
    assert (seen["kind"], seen["mesh"]) == ("store", {"data": 2, "model": 2})
    assert {tensor["name"] for tensor in seen["tensors"]} == set(small[1])  # type: ignore[attr-defined]

    shard = next(path for path in sorted(store.rglob("c/*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    bad = gdist("verify", store)
    name = str(shard.relative_to(store))
    assert (bad.code, bad.out) == (12, "")
    assert f"error: 1 fault in {store}: {name}" in bad.err and f"\n{name}" in f"\n{bad.err}"
    lines = gdist("verify", store, "--json").lines
    assert [line["event"] for line in lines[-2:]] == ["report", "error"]
    assert lines[-2]["faults"][0]["path"] == name  # type: ignore[index]


def test_json_is_one_object_a_line_and_the_result_comes_last(magnet: str, tmp_path: Path) -> None:
    done = gdist("fetch", magnet, tmp_path / "store", "--json", "--mesh", "2x2", *LOOPBACK)
    assert (done.code, done.err) == (0, "")
    names = [line["event"] for line in done.lines]
    for name in (
        "stage_started",
        "metadata_received",
        "planned",
        "piece_verified",
        "tensor_ready",
        "finished",
    ):
        assert name in names
    assert names[-1] == "result"
    assert done.lines[-1]["path"] == str(tmp_path / "store")
    assert all(line["v"] == 1 and line["host"] == 0 and line["time"] for line in done.lines)


def test_options_come_from_the_environment(magnet: str, tmp_path: Path) -> None:
    done = gdist(
        "fetch",
        magnet,
        GDIST_MESH="data=2,model=1",
        GDIST_DHT="0",
        GDIST_LISTEN="127.0.0.1:0",
        GDIST_PAYLOAD="keep",
        GDIST_QUIET="1",
        cwd=tmp_path,
    )
    assert (done.code, done.out, done.err) == (0, "tiny-grok\n", "")
    assert (tmp_path / "tiny-grok" / "payload").is_dir()
    seen = gdist("inspect", tmp_path / "tiny-grok", "--json").lines[-1]
    assert seen["mesh"] == {"data": 2, "model": 1}


def test_some_tensors_in_another_type(
    small: tuple[Seeded, dict[str, Array], Path], magnet: str, tmp_path: Path
) -> None:
    chosen = {name: a for name, a in small[1].items() if "layer_1.moe" in name or "embed" in name}
    select, dtype = ("--select", "embed", "--select", r"layer_1\.moe"), ("--dtype", "float16")
    fetched = gdist("fetch", magnet, tmp_path / "s", *LOOPBACK, *select, *dtype, "--quiet")
    assert fetched.code == 0, fetched.err
    assert_holds(tmp_path / "s", dequantised(chosen, "float16"))
    again = gdist("fetch", magnet, tmp_path / "s", GDIST_SELECT=r"layer_1\.moe,embed", GDIST_DTYPE="float16")
    assert again.code == 0 and "complete" in again.err
    other = gdist("fetch", magnet, tmp_path / "s", *select)
    assert other.code == 15 and "in float16, asked for" in other.err
    seen = gdist("inspect", tmp_path / "s", "--select", "embed")
    assert "embeddings" in seen.out and "moe" not in seen.out
    planned = gdist("plan", magnet, *LOOPBACK, *select, *dtype, "--json").lines[-1]
    assert planned["tensors"] == len(dequantised(chosen, "float16"))


def test_hosts_write_their_parts(
    small: tuple[Seeded, dict[str, Array], Path], magnet: str, tmp_path: Path
) -> None:
    for host in ("0/2", "1/2"):
        done = gdist(
            "fetch", magnet, tmp_path / "store", "--mesh", "2x2", "--host", host, "--json", *LOOPBACK
        )
        assert done.code == 0, done.out
        assert {line["host"] for line in done.lines} == {int(host[0])}
        result = done.lines[-1]
        assert 0 < result["kept_nbytes"] < result["nbytes"]  # type: ignore[operator]  # of JSON
    assert_holds(tmp_path / "store", small[1])  # type: ignore[arg-type]  # arrays by name


def test_a_magnet_is_inspected_and_planned_and_nothing_is_kept(magnet: str, tmp_path: Path) -> None:
    seen = gdist("inspect", magnet, *LOOPBACK, "--mesh", "2x2", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert seen.code == 0, seen.err
    assert "torrent: 26 files" in seen.out and "params.language_model.in_out_embed.embeddings" in seen.out
    planned = gdist(
        "plan",
        magnet,
        *LOOPBACK,
        "--mesh",
        "2x2",
        "--hosts",
        "2",
        "--json",
        cwd=tmp_path,
        TMPDIR=str(tmp_path),
    )
    assert planned.code == 0, planned.err
    result = planned.lines[-1]
    assert (result["piece_length_assumed"], len(result["hosts"])) == (False, 2)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_ends_with_10_and_the_evidence(tmp_path: Path) -> None:
    done = gdist(
        "fetch", "2" * 40, tmp_path / "x", *LOOPBACK, "--metadata-timeout", "1s", "--peer", "127.0.0.1:9"
    )
    assert (done.code, done.out) == (10, "")
    assert "error: no metadata of 2222" in done.err and "hint: " in done.err


def test_make_torrent_then_seed_then_fetch(tmp_path: Path) -> None:
    model = tmp_path / "model"
    expected = write_safetensors(model)
    made = gdist("make-torrent", model, "--torrent-version", "hybrid", "--piece-length", "16KiB")
    assert made.code == 0, made.err
    bare, _ = parse_magnet(made.out)
    assert bare.info_hash.v1 and bare.info_hash.v2 and bare.name == "model"
    assert gdist("make-torrent", model, "--torrent-version", "hybrid", "--piece-length", "16KiB").code == 0
    assert gdist("make-torrent", model, "--torrent-version", "v1").code == 2  # would replace another
    with seeding(tmp_path / "model.torrent", model) as (link, process):
        assert parse_magnet(link)[0].info_hash == bare.info_hash
        done = gdist("fetch", link, tmp_path / "store", "--payload", "keep", *LOOPBACK)
        assert done.code == 0, done.err
        assert_holds(tmp_path / "store", expected)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for directory in (tmp_path, tmp_path / "store"):  # above the payload; a store that kept it
        with seeding(tmp_path / "model.torrent", directory):
            pass
    (model / "model-00001-of-00002.safetensors").write_bytes(b"")
    short = gdist("seed", tmp_path / "model.torrent", model, *LOOPBACK)
    assert (short.code, "does not hold the 3 files" in short.err) == (2, True)


@contextmanager
def seeding(torrent: Path, directory: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`gdist seed` while it is entered, and the magnet it prints."""
    command = [
        *GDIST,
        "seed",
        str(torrent),
        str(directory),
        "--advertise",
        "127.0.0.1",
        *LOOPBACK,
        *arguments,
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(GDIST_QUIET="1")
    ) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.terminate()


def test_the_magnet_of_a_seed_names_the_trackers_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(os.urandom(1 << 16))
    (told, more), web = (f"udp://127.0.0.1:{port}" for port in (1, 2)), "http://127.0.0.1:9/model.bin"
    assert gdist("make-torrent", tmp_path / "model.bin", "--tracker", told).code == 0
    given = ("--tracker", told, "--tracker", more, "--web-seed", web)
    with seeding(tmp_path / "model.bin.torrent", tmp_path / "model.bin", *given) as (link, _):
        magnet, notes = parse_magnet(link)
    assert (magnet.trackers, magnet.web_seeds, notes) == ((told, more), (web,), ())


def test_a_local_checkpoint_is_inspected_without_a_torrent(tmp_path: Path) -> None:
    expected = write_safetensors(tmp_path / "model")
    seen = gdist("inspect", tmp_path / "model", "--json").lines[-1]
    assert seen["kind"] == "files"
    assert {t["name"]: tuple(t["shape"]) for t in seen["tensors"]} == {  # type: ignore[attr-defined]
        name: array.shape for name, array in expected.items()
    }
    one = gdist("inspect", tmp_path / "model" / "model-00001-of-00002.safetensors", "--files")
    assert one.code == 0 and "local files: 1 file," in one.out
    (tmp_path / "empty").mkdir()
    assert gdist("inspect", tmp_path / "empty").code == 14


def silent_peer_fetch(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """A fetch that waits for metadata that never comes."""
    command = [*GDIST, "fetch", "1" * 40, str(tmp_path / "x"), *LOOPBACK, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_fetch_with_20(number: signal.Signals, tmp_path: Path) -> None:
    with silent_peer_fetch(tmp_path) as process:
        assert process.stderr
        process.stderr.readline()  # looking for peers
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 20
        assert out == "" and "asked to stop" in err and "Traceback" not in err


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_it_draws_and_cleans_up(no_color: str, magnet: str, tmp_path: Path) -> None:
    mine, theirs = pty.openpty()
    variables = {"TERM": "xterm-256color", "COLUMNS": "80"} | ({"NO_COLOR": "1"} if no_color else {})
    command = [*GDIST, "fetch", magnet, str(tmp_path / "store"), "--mesh", "2x2", *LOOPBACK]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment(**variables)
    ) as process:
        os.close(theirs)
        drawn = b""
        try:
            while block := os.read(mine, 65536):
                drawn += block
        except OSError:
            pass  # how a terminal says that the other side is closed
        os.close(mine)
        assert process.stdout
        assert process.stdout.read().decode() == f"{tmp_path / 'store'}\n"
    text = drawn.decode()
    assert "complete: " in text
    assert "\x1b[?25h" in text  # the cursor is back
    if no_color:
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text.replace("\x1b[?25", ""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_standard_output_without_space_ends_with_13(magnet: str, tmp_path: Path) -> None:
    for form, said in (((), b"error: no space left writing to standard output\nhint: "), (("--json",), b"")):
        command = [*GDIST, "fetch", magnet, str(tmp_path / "store"), *form, "--quiet", *LOOPBACK]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=180
            )
        assert done.returncode == 13 and done.stderr.startswith(said) and b"Traceback" not in done.stderr
        assert (tmp_path / "store" / "gdist.json").exists()
    for command in ("--help", "--version", "fetch --help", "completion bash"):
        with open("/dev/full", "w") as full:
            line = [*GDIST, *command.split()]
            done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=180)
        assert done.returncode == 13 and done.stderr.startswith(b"error: no space left"), command


@pytest.mark.parametrize("command", ["--help", "--version", "fetch --help", "completion bash", "releases"])
def test_whoever_never_reads_standard_output_is_no_error(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = [*GDIST, *command.split()]
        done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, env=environment(), timeout=180)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_path_is_told_in_its_own_bytes_where_the_stream_has_no_letters_for_it(
    magnet: str, tmp_path: Path
) -> None:
    command = [*GDIST, "fetch", magnet, str(tmp_path / "\u6f22"), "-q", *LOOPBACK]
    variables = environment(PYTHONIOENCODING="ascii")
    done = subprocess.run(command, capture_output=True, env=variables, timeout=180, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, f"{tmp_path / chr(0x6F22)}\n")


def test_whoever_leaves_standard_output_ends_the_fetch_quietly(
    small: tuple[Seeded, dict[str, Array], Path], tmp_path: Path
) -> None:
    with Slow(small[0].port, limit=0) as way:  # nothing comes before nobody reads any more
        magnet = format_magnet(replace(small[0].magnet, peers=((LOCALHOST, way.port),)))
        command = [*GDIST, "fetch", magnet, str(tmp_path / "store"), "--json", *LOOPBACK]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        with process:
            assert process.stdout and process.stderr
            process.stdout.readline()
            process.stdout.close()
            way.limit = inf
            assert process.stderr.read() == b""
            assert process.wait(180) == 141


def test_a_fetch_goes_on_when_nobody_reads_its_progress(magnet: str, tmp_path: Path) -> None:
    command = [*GDIST, "fetch", magnet, str(tmp_path / "store"), *LOOPBACK]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=writer, env=environment(), timeout=180, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout.decode().strip()) == (0, str(tmp_path / "store"))


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_streams_may_be_closed_from_the_start(magnet: str, tmp_path: Path, closed: str) -> None:
    script = f'exec "$@" {closed}'
    command = ["sh", "-c", script, "sh", *GDIST, "fetch", magnet, str(tmp_path / "store"), "-q", *LOOPBACK]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_seed_without_its_files_or_its_port_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(os.urandom(1 << 16))
    assert gdist("make-torrent", tmp_path / "model.bin").code == 0
    torrent = tmp_path / "model.bin.torrent"
    (tmp_path / "empty").mkdir()
    for name, text in (("nowhere", "does not exist"), ("empty", "does not hold the 1 file of 'model.bin'")):
        done = gdist("seed", torrent, tmp_path / name, *LOOPBACK)
        assert done.code == 2 and text in done.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = gdist("seed", torrent, tmp_path / "model.bin", "--no-dht", "--listen", listen)
        assert done.code == 2 and f"cannot listen at {listen}: Address already in use" in done.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0/3", "--mesh", "2x2"], "3 hosts do not divide the 4 devices"),
        (["--tracker", "foo"], "tracker 'foo' is no address"),
        (["--profile", "nope"], "profile 'nope' is not known"),
        (["--select", "layer_("], "select is no regular expression: 'layer_('"),
        (["--dtype", "int8"], "'int8' is not one of 'bfloat16', 'float16', 'float32'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_network(arguments: list[str], text: str) -> None:
    done = gdist("fetch", f"magnet:?xt=urn:btih:{'1' * 40}", *arguments, *LOOPBACK)
    assert done.code == 2 and text in done.err and "looking for peers" not in done.err


def test_a_magnet_cut_by_the_shell_is_hinted_at(tmp_path: Path) -> None:
    bare = f"magnet:?xt=urn:btih:{'1' * 40}"
    done = gdist("fetch", bare, "--metadata-timeout", "1s", *LOOPBACK, cwd=tmp_path)
    assert done.code == 10 and "a shell cuts it at the first &" in done.err


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("nothing.torrent", "'nothing.torrent' does not exist"),
        ("models/grok", "'models/grok' does not exist"),
        ("ftp://127.0.0.1/a.torrent", "ftp:// is not known"),
    ],
)
def test_sources_that_are_not_there(source: str, text: str, tmp_path: Path) -> None:
    for command in ("fetch", "inspect"):
        done = gdist(command, source, *LOOPBACK, cwd=tmp_path)
        assert done.code == 2 and text in done.err, done.err
