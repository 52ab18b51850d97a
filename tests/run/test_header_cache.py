"""The cache of headers: what comes back is what was found, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdist.core.dtypes import BY_NAME
from gdist.core.extent import Extent
from gdist.core.payload import Payload, PayloadFile
from gdist.core.tensor import FoundArray, Order
from gdist.formats.detect import Foreign
from gdist.run.header_cache import load_documents, load_headers, save_headers
from gdist.run.headers import FileReport, MemberReport

PAYLOAD = Payload((PayloadFile("a", 0, 100), PayloadFile("d/b", 100, 50)), 16, 150)
REPORTS = {
    0: FileReport(
        "pickle",
        (
            FoundArray("", Extent(7, 12), (3, 4), BY_NAME["int8"], Order.F, "weight"),
            FoundArray("", Extent(30, 8), (1, 4), BY_NAME["bfloat16"], Order.C, "scales"),
        ),
    ),
    1: FileReport(
        "tar",
        members=(
            MemberReport("x/c.json", Extent(2, 5), FileReport()),
            MemberReport("d.gz", Extent(10, 8), FileReport(foreign=Foreign("gzip data", "unpack it"))),
            MemberReport(
                "w",
                Extent(20, 30),
                FileReport(
                    "safetensors", (FoundArray("n", Extent(6, 8), (2,), BY_NAME["float32"]),), None, True
                ),
            ),
        ),
    ),
}


def test_what_was_found_comes_back(tmp_path: Path) -> None:
    save_headers(tmp_path / "h", PAYLOAD, REPORTS)
    assert load_headers(tmp_path / "h", PAYLOAD, [0, 1]) == REPORTS
    assert load_headers(tmp_path / "h", PAYLOAD, [1]) == {1: REPORTS[1]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "",
        lambda text: text.replace('"nbytes": 100', '"nbytes": 101'),
        lambda text: text.replace('"path": "d/b"', '"path": "d/c"'),
        lambda text: text.replace('"gdist_headers": 4', '"gdist_headers": 3'),
        lambda text: json.dumps({"gdist_headers": 4, "ignore": [], "files": [[9, None]]}),
    ],
)
def test_anything_else_is_nothing(damage, tmp_path: Path) -> None:
    save_headers(tmp_path / "h", PAYLOAD, REPORTS)
    (tmp_path / "h").write_text(damage((tmp_path / "h").read_text()))
    assert load_headers(tmp_path / "h", PAYLOAD, [0, 1]) is None


def test_members_that_were_left_out_before_are_asked_for_again(tmp_path: Path) -> None:
    save_headers(tmp_path / "h", PAYLOAD, REPORTS, ["b/x*", "a"])
    assert load_headers(tmp_path / "h", PAYLOAD, [0, 1], ["a", "b/x*"]) == REPORTS
    assert load_headers(tmp_path / "h", PAYLOAD, [0, 1]) is None


def test_files_that_were_not_scanned_are_not_known(tmp_path: Path) -> None:
    save_headers(tmp_path / "h", PAYLOAD, {0: REPORTS[0]})
    assert load_headers(tmp_path / "h", PAYLOAD, [0, 1]) is None
    assert load_headers(tmp_path / "none", PAYLOAD, [0]) is None


def test_documents_come_back(tmp_path: Path) -> None:
    documents = {(0, Extent(90, 10)): bytes(range(10)), (1, Extent(0, 3)): b"{} "}
    save_headers(tmp_path / "h", PAYLOAD, REPORTS, documents=documents)
    assert load_documents(tmp_path / "h", PAYLOAD) == documents
    shorter = Payload((PayloadFile("a", 0, 99), PayloadFile("d/b", 100, 50)), 16, 150)
    assert load_documents(tmp_path / "h", shorter) == {}
    assert load_documents(tmp_path / "none", PAYLOAD) == {}
