"""Imports go downward only, each foreign library has one home, and `import gdist` stays light.

    cli
    api
    pictures, collective     (a program of its own, which `run` starts)
    run, loader
    formats, sources, sinks, stores, views, clusters, exchange     (never one another)
    reading
    durable, kvstore, profile_files, releases, rename_files, rule_files, zarr_dtypes
                                             (one file each, never one another)
    events
    core
    errors

`testing` may import anything and is imported by nothing else. Imports inside functions and under
`TYPE_CHECKING` count like the others.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gdist

PACKAGE = Path(gdist.__file__).parent

LEVELS = (
    ("errors",),
    ("core",),
    ("events",),
    ("durable", "kvstore", "releases", "rename_files", "rule_files", "profile_files", "zarr_dtypes"),
    ("reading",),
    ("formats", "sources", "sinks", "stores", "views", "clusters", "exchange"),
    ("run", "loader"),
    ("pictures", "collective"),
    ("api",),
    ("cli",),
    ("__main__",),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

PURE = ("core", "errors", "events")  # these import nothing but gdist and the standard library

HOMES = {
    "libtorrent": ("gdist.sources.torrent",),
    "jax": ("gdist.loader",),
    "jaxlib": ("gdist.loader",),
    "click": ("gdist.cli",),
    "rich": ("gdist.cli",),
    "yaml": ("gdist.rule_files",),
    "gguf": ("gdist.sinks.gguf_values",),
    "jinja2": ("gdist.pictures", "gdist.run.bootstrap.rendering"),
    "markupsafe": ("gdist.pictures",),
    "prometheus_client": ("gdist.run.metrics",),
    "cryptography": ("gdist.exchange.certificate", "gdist.run.signing"),
    "tensorstore": ("gdist.kvstore", "gdist.sinks.tensorstore", "gdist.stores"),
}

HEAVY = (
    "libtorrent",
    "jax",
    "tensorstore",
    "zarr",
    "numpy",
    "click",
    "rich",
    "yaml",
    "jinja2",
    "cryptography",
)


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package: its dotted name and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Dotted names a module imports; `from gdist import core` gives `gdist.core`."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """Which of a module's imports break a rule, and why."""
    component = module.split(".")[1] if "." in module else ""
    if component == "testing":
        return []
    found = []
    for target in imports_of(module, source, is_package):
        top, _, rest = target.partition(".")
        if top == "gdist":
            why = _inward_fault(component, rest.split(".")[0])
        else:
            why = _foreign_fault(module, component, top)
        if why:
            found.append(f"{module} imports {target}: {why}")
    return found


def _inward_fault(component: str, target: str) -> str:
    if target == "__version__":
        return "" if component not in PURE else "pure modules know no version"
    if not target:
        return "the bare package reaches every layer; write `from gdist import __version__`"
    if not component:
        return "the package itself imports lazily, by name"
    if component not in LEVEL_OF or target not in LEVEL_OF:
        return f"{component if component not in LEVEL_OF else target!r} has no level"
    if target == component or LEVEL_OF[target] < LEVEL_OF[component]:
        return ""
    return "imports go downward, and never sideways"


def _foreign_fault(module: str, component: str, library: str) -> str:
    if component in ("", *PURE) and library not in sys.stdlib_module_names:
        return "only the standard library here"
    homes = HOMES.get(library)
    if homes and not any(module == home or module.startswith(f"{home}.") for home in homes):
        return f"the home of {library} is {' and '.join(homes)}"
    return ""


@pytest.mark.parametrize(
    ("module", "path"), tuple(modules()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_imports_go_downward(module: str, path: Path) -> None:
    found = faults(module, path.read_text(), path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "is_fault"),
    [
        ("gdist.core.plan", "from gdist.core.box import Box", False),
        ("gdist.core.plan", "import numpy", True),
        ("gdist.core.plan", "def f():\n    import gdist.run.fetch", True),
        ("gdist.core.plan", "from gdist import events", True),
        ("gdist.core.plan", "from ..events import Event", True),
        ("gdist.formats.npy", "from . import Scan", False),
        ("gdist.formats.npy", "from gdist.sinks import local", True),
        ("gdist.sinks.local", "import tensorstore", True),
        ("gdist.sinks.tensorstore", "import tensorstore", False),
        ("gdist.sources.torrent.session", "import libtorrent", False),
        ("gdist.sources.torrentless", "import libtorrent", True),
        ("gdist.run.fetch", "if TYPE_CHECKING:\n    import jax", True),
        ("gdist.run.fetch", "from gdist.loader import load", True),
        ("gdist.run.fetch", "from gdist import __version__", False),
        ("gdist.run.fetch", "import gdist", True),
        ("gdist.run.fetch", "import gdist.testing.torrents", True),
        ("gdist.testing.demo", "import gdist.cli, jax, rich", False),
    ],
)
def test_the_check_sees(module: str, source: str, is_fault: bool) -> None:
    assert bool(faults(module, source, is_package=False)) is is_fault


def test_importing_gdist_loads_nothing_heavy() -> None:
    script = f"import sys, gdist; gdist.__version__; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fetsch'"):
        _ = gdist.fetsch


@pytest.mark.jax
@pytest.mark.parametrize("name", gdist.__all__)
def test_every_public_name_has_a_home(name: str) -> None:
    assert getattr(gdist, name) is not None
    assert name in dir(gdist)
