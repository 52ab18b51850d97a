"""Every file of the corpus is refused as it should be; see `corpus/README.md`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gdist import errors
from gdist.formats.detect import CHECKS, FORMATS
from gdist.formats.zip_directory import read_members

CORPUS = Path(__file__).parent / "corpus"
EXPECTED: dict[str, tuple[str, str]] = json.loads((CORPUS / "expected.json").read_text())
SCANS: Mapping[str, Callable[[int], Any]] = {
    kind.NAME: CHECKS.get(kind.NAME, kind.scan) for kind in FORMATS
} | {"zip": read_members}


def test_every_file_is_expected() -> None:
    assert sorted(EXPECTED) == sorted(
        str(path.relative_to(CORPUS))
        for path in CORPUS.glob("*/*")
        if path.parent.name != "tar"  # containers have a test of their own
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_the_corpus_is_refused(name: str) -> None:
    kind, words = EXPECTED[name]
    data = (CORPUS / name).read_bytes()
    scan = SCANS[name.partition("/")[0]](len(data))
    with pytest.raises(getattr(errors, kind)) as caught:
        wanted = next(scan)
        while True:
            assert wanted.stop <= len(data), f"{wanted} of {len(data)} bytes"
            wanted = scan.send(data[wanted.start : wanted.stop])
    assert words in caught.value.message
