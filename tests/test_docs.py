"""The pages under `docs/` hold: names they give exist, links lead somewhere, marked blocks run.

A block runs when the line before it is a comment `<!-- test -->`. The blocks of a page run in order, in one
process and an empty directory: `python` blocks share their names, `sh` blocks go to bash. A shell block
after `<!-- test: background -->` stays running until the page ends; the next block waits for its first line.
Python inside `<!-- test` and `-->` runs too, and readers do not see it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gdist
from gdist import errors

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "manifests" / "README.md"]

_NAME = re.compile(r"`(gdist(?:\.\w+)*):(\w+(?:\.\w+)*)`")
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(
    r"^<!-- test(?P<background>: background)? -->\n```(?P<language>python|sh)\n(?P<code>.*?)^```$"
    r"|^<!-- test\n(?P<hidden>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)


def page_id(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text())


# --- names and links ------------------------------------------------------------------------------------


def names() -> list[tuple[str, str, str]]:
    """Every `module:name` on a page: page, module, name."""
    return sorted({(page_id(page), *match) for page in PAGES for match in _NAME.findall(prose(page))})


@pytest.mark.parametrize(("page", "module", "name"), names())
def test_names_on_pages_exist(page: str, module: str, name: str) -> None:
    if module.startswith("gdist.loader"):
        pytest.importorskip("jax")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{page}: {module} has no {name}"
        found = getattr(found, part)


def test_the_journey_names_its_steps() -> None:
    assert len([page for page, *_ in names() if page.endswith("journey-of-a-piece.md")]) > 20


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue  # another site's pages are not asked for
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"{page_id(page)}: {broken}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text())}
    pages = [page for page in DOCS if page.parent.name != "changes"]  # fragments come and go
    missing = [page_id(page) for page in pages if page not in {*linked, index}]
    assert not missing


# --- the Python reference -------------------------------------------------------------------------------


def section(name: str) -> str:
    text = (ROOT / "docs/reference/python.md").read_text()
    found = re.search(rf"^## `gdist\.{name}`$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"docs/reference/python.md has no section on gdist.{name}"
    return found[1]


@pytest.mark.jax
@pytest.mark.parametrize("name", gdist.__all__)
def test_every_public_name_is_described_with_its_parameters(name: str) -> None:
    if gdist._HOMES.get(name) == "gdist.loader":
        pytest.importorskip("jax")
    text, value = section(name), getattr(gdist, name)
    if not callable(value):
        return
    parameters = [p for p in inspect.signature(value).parameters.values() if p.kind is not p.VAR_KEYWORD]
    missing = [p.name for p in parameters if not re.search(rf"\b{p.name}\b", text)]
    assert not missing, f"gdist.{name}: {missing}"


def test_every_error_is_described() -> None:
    text = (ROOT / "docs/reference/python.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in text] == []


# --- blocks that run ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page: where its code starts, its language, and whether it stays running."""

    line: int
    language: str
    code: str
    background: bool


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        group = "hidden" if match["hidden"] is not None else "code"
        line = text.count("\n", 0, match.start(group)) + 1
        yield Block(line, match["language"] or "python", match[group], bool(match["background"]))


def run_page(page: Path) -> None:
    """Runs a page's blocks here and now; the first that fails ends it."""
    namespace: dict[str, object] = {"__name__": "__page__", "__file__": str(page.resolve())}
    for block in blocks(page):
        where = f"{page_id(page)}:{block.line}"
        print(f"-- {where}", flush=True)
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page_id(page), "exec"), namespace)
        elif block.background:
            _stay(block.code)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], check=True)


def _stay(code: str) -> None:
    process = subprocess.Popen(["bash", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said, "the command ended and said nothing"
    for copy in map(Path, re.findall(r"\btee (\S+)", code)):  # it writes to its file after its output
        while not copy.exists() or said not in copy.read_text():
            time.sleep(0.02)


PAGE_SECONDS = 300  # a page takes a few, on a busy machine many; imports of JAX and Orbax are most of it
TESTED = [page for page in PAGES if any(blocks(page))]


@pytest.mark.jax
@pytest.mark.torrent
@pytest.mark.slow
@pytest.mark.parametrize("page", TESTED, ids=page_id)
def test_blocks_of_pages_run(page: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": paths,
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    (tmp_path / "page").mkdir()
    said = tmp_path / "said"
    with said.open("w") as output:
        command = [sys.executable, __file__, str(page)]
        process = subprocess.Popen(
            command,
            cwd=tmp_path / "page",
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(PAGE_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing was left
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    assert code == 0, said.read_text()


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
