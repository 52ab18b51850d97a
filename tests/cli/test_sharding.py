"""Sharding on a terminal: small drawings to the letter, large ones within their width; files beside them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from gdist.cli import main
from gdist.cli.sharding import picture_lines, plain_text
from gdist.core.dtypes import BY_NAME
from gdist.core.mesh import HostGroup, PartitionSpec, parse_mesh, split_counts
from gdist.core.picture import TensorPicture, choose_view, regions_of
from gdist.core.tensor import TensorSpec
from gdist.testing.stores import write_store

PAIR = "params.transformer.decoder_layer_3.moe.linear.w"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GDIST_")]:
        monkeypatch.delenv(name)


def drawn(
    mesh: str, dims: tuple[tuple[str, ...], ...], shape: tuple[int, ...], hosts: int = 1
) -> TensorPicture:
    on, spec = parse_mesh(mesh), PartitionSpec(dims)
    view = choose_view(shape, split_counts(on, spec, len(shape)))
    tensor = TensorSpec("w", shape, BY_NAME["float32"])
    return TensorPicture(tensor, on, spec, hosts, view, regions_of(on, spec, shape, hosts))


def text_of(picture: TensorPicture, width: int = 80) -> str:
    return plain_text(list(picture_lines(picture, width)))


GOLDEN = [
    (
        drawn("2x4", (("data",), ("model",)), (8, 16), 2),
        """\
w
8x16 float32, 512 B; P(data, model) on mesh data=2,model=4
8 devices of 2 hosts; 8 slabs of 4x4, 64 B each

dimension 0 (8 by data) down; dimension 1 (16 by model) across
   0         4         8         12
  ┌─────────┬─────────┬─────────┬─────────┐
0 │    0    │    1    │    2    │    3    │
  ├─────────┼─────────┼─────────┼─────────┤
4 │    4    │    5    │    6    │    7    │
  └─────────┴─────────┴─────────┴─────────┘""",
    ),
    (
        drawn("2x4", ((), ("model",)), (3, 8)),
        """\
w
3x8 float32, 96 B; P(None, model) on mesh data=2,model=4
8 devices; 4 slabs of 3x2, 24 B each, each on 2 devices

dimension 1 (8 by model) across
 0         2         4         6
┌─────────┬─────────┬─────────┬─────────┐
│   0,4   │   1,5   │   2,6   │   3,7   │
└─────────┴─────────┴─────────┴─────────┘
whole in every slab: dimension 0 (3)""",
    ),
    (
        drawn("2x4", (), (3, 8)),
        """\
w
3x8 float32, 96 B; P() on mesh data=2,model=4
8 devices, each with all of it

┌─────────┐
│   0-7   │
└─────────┘""",
    ),
    (
        drawn("1", (), ()),
        """\
w
scalar float32, 4 B
one device, which holds all of it

┌─────────┐
│    0    │
└─────────┘""",
    ),
    (
        drawn("a=2,b=2,c=2", (("a",), ("b",), ("c",)), (2, 4, 4)),
        """\
w
2x4x4 float32, 128 B; P(a, b, c) on mesh a=2,b=2,c=2
8 devices; 8 slabs of 1x2x2, 16 B each

dimension 1 (4 by b) down; dimension 2 (4 by c) across
dimension 0: 0 to 1
   0         2
  ┌─────────┬─────────┐
0 │    0    │    1    │
  ├─────────┼─────────┤
2 │    2    │    3    │
  └─────────┴─────────┘
dimension 0: 1 to 2
   0         2
  ┌─────────┬─────────┐
0 │    4    │    5    │
  ├─────────┼─────────┤
2 │    6    │    7    │
  └─────────┴─────────┘""",
    ),
    (
        drawn("64", (("model",),), (6400,)),
        """\
w
6400 float32, 25.60 kB; P(model) on mesh model=64
64 devices; 64 slabs of 100, 400 B each

dimension 0 (6400 by model) across
 0        800      1600     2400     3200     4000     4800     5600
┌────────┬────────┬────────┬────────┬────────┬────────┬────────┬────────┐
│  0-7   │  8-15  │ 16-23  │ 24-31  │ 32-39  │ 40-47  │ 48-55  │ 56-63  │
└────────┴────────┴────────┴────────┴────────┴────────┴────────┴────────┘
a cell stands for 1 x 8 slabs""",
    ),
]


@pytest.mark.parametrize(("picture", "text"), GOLDEN, ids=lambda value: str(getattr(value, "mesh", "")))
def test_small_drawings_to_the_letter(picture: TensorPicture, text: str) -> None:
    assert text_of(picture) == text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("mesh", ["8x8", "32x16", "512x1", "1x512", "31x17"])
def test_large_drawings_keep_to_their_width_and_name_every_device(mesh: str, width: int) -> None:
    on = parse_mesh(mesh)
    picture = drawn(mesh, (("data",), ("model",)), (on.sizes[0] * 6144, on.sizes[1] * 32768), on.sizes[0])
    text = text_of(picture, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) < 50
    cells = [cell.strip() for line in text.splitlines() if "│" in line for cell in line.split("│")[1:-1]]
    assert "…" in text or sum(map(devices_in, cells)) == on.devices


def devices_in(label: str) -> int:
    items, total, last = label.split(","), 0, 0
    for item in items:
        if ".." in item:
            first, end = map(int, item.split(".."))
            total += (end - first) // (first - last) + 1
        else:
            ends = [int(number) for number in item.split("-")]
            total, last = total + ends[-1] - ends[0] + 1, ends[-1]
    return total


def test_many_panels_are_not_all_printed() -> None:
    picture = drawn("a=8,b=2,c=8", (("a",), ("b",), ("c",)), (16, 4, 16))
    text = text_of(picture)
    assert text.count("dimension 1: ") == 2
    picture = drawn("a=8,b=6,c=8", (("a",), ("b",), ("c",)), (16, 6, 16))
    assert "and 2 more like it: --plot draws them, --json lists them" in text_of(picture)


def test_a_pair_of_a_release_with_the_pieces_that_feed_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "grok-1", "--mesh", "8x8", "--hosts", "8", "--tensor", PAIR]) == 0
    out, err = capsys.readouterr()
    assert f"{PAIR}.weight\n" in out and f"{PAIR}.scales\n" in out and err == ""
    assert "0-7      0      201.33 MB  402.65 MB      24  6939-6941,6951-6953..7023-7025" in out
    assert "│0,8..56 │1,9..57 │" in out
    assert "stored in ckpt-0/tensor00278_000, 1.61 GB from byte 201" in out
    assert "their length or order is assumed" in out
    assert "grok-1: 1218 tensors (2 shown), 318.24 GB" in out
    drawing = out[: out.index("grok-1: 1218")]
    assert max(map(len, drawing.splitlines())) <= 80


def test_an_order_says_which_device_holds_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["--device-order", "model,data", "--hosts", "2", "--devices-per-host", "4"]
    plot = ["--plot", f"{tmp_path}/plot.svg"]
    asked = ["inspect", "grok-1", "--mesh=-1x4", "--tensor", "decoder_layer_0.router.w", *order, *plot]
    assert main([*asked, "--json"]) == 0
    (picture,) = json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"]
    assert [region["devices"] for region in picture["regions"]] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert "0,2..6" in (tmp_path / "plot.svg").read_text()


def test_several_tensors_stay_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "grok-1", "--mesh", "8x8", "--tensor", "layer_3.moe"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tensor ") and "┌" not in out and "(6 shown)" in out


def test_a_plot_is_written_beside_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.svg"
    target.write_text("old")
    asked = ["inspect", "grok-1", "--mesh", "8x8", "--tensor", PAIR, "--plot", str(target)]
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert "┌" in out and err == f"wrote {target}\n"
    assert ET.parse(target).getroot().tag.endswith("svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    assert main([*asked, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["plot"] == str(target)
    weight, scales = result["pictures"]
    assert (weight["tensor"], len(weight["regions"]), len(scales["regions"])) == (f"{PAIR}.weight", 64, 8)
    region = weight["regions"][9]
    assert (region["index"], region["devices"]) == ([0, 1, 1], [9])
    assert region["box"] == {"start": [0, 768, 4096], "stop": [8, 1536, 8192]}
    assert region["pieces"][0] == [6941, 6943]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.html"
    (tmp_path / "a.html.part").mkdir()  # in the way
    assert main(["plan", "grok-1", "--report", str(target)]) == 17
    assert f"writing {target}" in capsys.readouterr().err and not target.exists()


def test_a_report_is_written_beside_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plan.html"
    asked = ["plan", "grok-1", "--mesh", "8x8", "--hosts", "2", "--wan", "10Gb/s", "--report", str(target)]
    assert main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"] == str(target) and "details" not in result
    assert "<title>Plan of grok-1 on mesh data=8,model=8</title>" in target.read_text()
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert out.startswith("grok-1: 1218 tensors") and err == f"wrote {target}\n"


def test_a_store_says_which_shards_feed_whom_and_what_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"axes": ["data", "model"], "rules": [[".*", ["data", "model"]]]}
    write_store(tmp_path, {"w": np.zeros((8, 16), np.float32)}, mesh="2x4", rules=rules, host=HostGroup(0, 2))
    assert main(["inspect", str(tmp_path), "--tensor", "w"]) == 0
    out = capsys.readouterr().out
    assert "devices  hosts  of slabs  shards         files\n" in out
    assert "0-3      0         256 B  c/0/0              1\n" in out
    assert "4-7      1         256 B  c/1/0   not all here\n" in out
    assert "parts of hosts 1 are not here" in out
    assert main(["inspect", str(tmp_path), "--tensor", "w", "--mesh", "1x2"]) == 0
    assert "c/0-1/0  not all here" in capsys.readouterr().out


def on_a_terminal(columns: int, **variables: str) -> str:
    mine, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": str(columns), **variables}
    command = [
        sys.executable,
        "-m",
        "gdist",
        "inspect",
        "grok-1",
        "--mesh",
        "8x8",
        "--tensor",
        f"{PAIR}.weight",
    ]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        drawn = b""
        try:
            while block := os.read(mine, 65536):
                drawn += block
        except OSError:
            pass  # how a terminal says that the other side is closed
        os.close(mine)
        assert process.wait(180) == 0
    return drawn.decode()


def test_a_terminal_gets_colour_unless_it_wants_none() -> None:
    text = on_a_terminal(120)
    assert re.search(r"\x1b\[30;48;5;\d+m +0 +\x1b\[0m", text)
    assert len(set(re.findall(r"48;5;(\d+)m", text))) == 8  # one for each place on `data`
    bare = on_a_terminal(120, NO_COLOR="1")
    assert "48;5;" not in bare
    assert re.sub(r"\x1b\[[\d;]*m", "", text).split("\r\n") == bare.split("\r\n")
