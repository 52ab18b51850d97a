"""Small files of a local store are put in place whole, and a kill leaves none half-written in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gdist.sinks.local import write_atomically


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_kill_before_the_rename_leaves_nothing_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(source: object, target: object) -> None:
        raise Killed

    store, work = tmp_path / "store", tmp_path / "store" / ".gdist"
    write_atomically(store / "assets" / "a.json", b"old", aside=work)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "rename", kill)
        write_atomically(store / "assets" / "a.json", b"new", aside=work)
    assert [path.name for path in (store / "assets").iterdir()] == ["a.json"]
    assert (store / "assets" / "a.json").read_bytes() == b"old"
    assert len(list(work.iterdir())) == 1, "what was written aside lies in the work directory"
