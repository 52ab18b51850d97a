"""Partition rules as files: those shipped with gdist, by name, and a user's own, in YAML or JSON.

Shipped ones lie in `gdist/_rules/NAME.yaml`; a new one is a new file. A profile's rules go by its name. The
only home of PyYAML, which is loaded when a file is not JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gdist.core.profiles import PROFILES
from gdist.core.rules import Rules, parse_rules
from gdist.errors import RequestError, translate

FOLDER = Path(__file__).parent / "_rules"
MOST_BYTES = 2**18  # thousands of rules
QUOTES = "put patterns in single quotes: '(^|\\.)wq\\.weight$'"


def rule_names() -> tuple[str, ...]:
    """Names of all rules that gdist knows, sorted."""
    return tuple(sorted({*PROFILES, *(path.stem for path in FOLDER.glob("*.yaml"))}))


def named_rules(name: str) -> Rules | None:
    """The rules of that name, or None."""
    if name not in rule_names():
        return None
    return PROFILES[name].rules if name in PROFILES else read_rules_file(FOLDER / f"{name}.yaml")


def rules_text(name: str) -> str | None:
    """The rules of that name as a file to start from, or None."""
    if name not in rule_names():
        return None
    if name not in PROFILES:
        return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    rules = PROFILES[name].rules
    rows = [f"  - {json.dumps([rule.pattern, rule.spec.to_json()])}" for rule in rules.rules]
    return "\n".join([f"axes: {json.dumps(list(rules.axes))}", "rules:", *rows, ""])


def read_rules_file(path: str | os.PathLike[str]) -> Rules:
    """The rules in a file of YAML or JSON.

    Raises:
        RequestError: when there is no such file, or it does not hold rules.
        FilesystemError: when it cannot be read.
    """
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except IsADirectoryError as error:
        raise RequestError(f"rules {where!r} are a directory", hint="give a file in it") from error
    except FileNotFoundError as error:
        raise RequestError(
            f"rules {where!r} are neither a file nor a name that gdist knows",
            hint=f"known names: {', '.join(rule_names())}",
        ) from error
    except OSError as error:
        raise translate(error, f"reading the rules {where!r}") from error
    except ValueError as error:  # a NUL in the path
        raise RequestError(f"rules {where!r} are no path: {error}") from error
    if len(data) > MOST_BYTES:
        raise RequestError(f"the rules {where!r} are larger than {MOST_BYTES} bytes")
    try:
        return parse_rules(_parse(data))
    except RequestError as error:
        raise RequestError(f"the rules {where!r}: {error.message}", hint=error.hint) from error
    except RecursionError as error:
        raise RequestError(f"the rules {where!r} are nested too deeply") from error


def _parse(data: bytes) -> object:
    """The content of a document: JSON, or else YAML, which takes most JSON too but not its tabs."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError("they are not UTF-8 text") from error
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        fault = error
    try:
        return _yaml(text)
    except RequestError:
        if text.lstrip().startswith("{") and '"rules"' in text:  # meant as JSON
            raise RequestError(
                f"they are not JSON: {fault}", hint="mend them, or write them as YAML"
            ) from fault
        raise


def _once(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are there once; the last of two would win without a word."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise RequestError(f"they have the key {key[:200]!r} twice")
        found[key] = value
    return found


def _yaml(text: str) -> object:
    """YAML without what rules have no use for: anchors, which can blow up, tags, and keys given twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:  # Any: as PyYAML has it
            event = self.peek_event()  # type: ignore[no-untyped-call]  # as in PyYAML
            if getattr(event, "anchor", None):  # an alias has the name of its own
                line = event.start_mark.line + 1
                raise RequestError(f"line {line} has an anchor (&) or refers to one (*)", hint=QUOTES)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = (self.construct_object(key, deep=True) for key, _ in node.value)
            _once((key if isinstance(key, str) else repr(key), None) for key in keys)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise RequestError(f"they are no YAML: {where}{problem or error}", hint=QUOTES) from error
    except (ValueError, OverflowError) as error:  # dates and numbers that are none
        raise RequestError(f"they hold a value that is none: {error}", hint=QUOTES) from error
