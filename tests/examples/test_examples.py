"""The scripts in `examples/` run as they are, each in a process of its own; the page on them quotes them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "how-to" / "frameworks.md"
NEEDS = {"plain_dict": "jax", "flax_linen": "flax", "flax_nnx": "flax", "equinox_model": "equinox"}
NEEDS |= {"haiku_model": "haiku"}
OTHERS = {"small_model", "grok1"}  # what the above load, and what test_grok1.py runs

pytestmark = pytest.mark.jax


def run_example(name: str, *arguments: str | Path) -> str:
    """What an example says; warnings, of which one about a deprecated function would be ours, are none."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples") / "store"
    run_example("small_model", root)
    return root


@pytest.mark.parametrize("name", NEEDS)
def test_a_store_goes_into_every_framework(name: str, store: Path) -> None:
    if not importlib.util.find_spec(NEEDS[name]):
        pytest.skip(f"needs {NEEDS[name]}")
    # the script itself compares with NumPy what the model computes
    said = run_example(name, store)
    assert re.fullmatch(r"layers\.0\.up\.w is split by P\w*\(None, 'model'\)\n", said), said


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NEEDS, *OTHERS}


def test_the_page_quotes_the_examples() -> None:
    quotes = re.findall(
        r"^<!-- from (\S+) -->\n```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert {name for name, _ in quotes} == {f"examples/{name}.py" for name in {*NEEDS, "grok1"}}
    for name, code in quotes:
        assert code in (ROOT / name).read_text(), f"{name} has no such lines:\n{code}"
