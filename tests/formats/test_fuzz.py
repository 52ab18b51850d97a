"""A short run of the fuzzer in every run of the suite; `fuzz.py` says how to run a long one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gdist_fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _load()


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_mutated_files_give_arrays_or_gdist_s_own_errors(name: str) -> None:
    inputs, _ = fuzz.run(name, seconds=1)
    assert inputs > 0


def test_a_format_that_does_not_stand_an_input_is_told() -> None:
    """The fuzzer sees what it is there for: foreign errors, endless loops, arrays outside the file."""

    def fails(size: int) -> object:
        yield fuzz.Extent(0, 1)
        raise KeyError(size)

    def outside(size: int) -> object:
        yield fuzz.Extent(0, 1)
        return [fuzz.FoundArray("a", fuzz.Extent(0, 8), (8,), fuzz.safetensors.BY_SAFETENSORS["U8"])]

    def endless(size: int) -> object:
        while True:
            yield fuzz.Extent(0, 1)

    for scan, words in ((fails, "KeyError: 4"), (outside, "of 4 bytes"), (endless, "more than")):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(fuzz.Failed, match=words):
            patch.setattr(fuzz, "MAX_CPU_SECONDS", 0.2)
            fuzz.attempt(fuzz.Target(tuple, scan), b"four")
