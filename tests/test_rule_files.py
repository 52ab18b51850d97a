"""Rules that gdist knows by name, and files of rules: YAML, JSON, and what is neither."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gdist.core.mesh import parse_mesh
from gdist.core.rules import parse_rules, resolve_specs
from gdist.core.tensor import StoredTensor
from gdist.errors import FilesystemError, RequestError
from gdist.reading import read_rules
from gdist.rule_files import MOST_BYTES, named_rules, read_rules_file, rule_names, rules_text
from gdist.testing.llama import FLAX, HUGGING_FACE, META, llama_tensors

RULES = {
    "axes": ["data", "model"],
    "rules": [["w$", [None, "model"]], ["(^|\\.)v$", [["data", "model"]]], [".*", []]],
}


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RULES),
        json.dumps(RULES, indent="\t"),  # which is no YAML
        "﻿" + json.dumps(RULES),
        "axes: [data, model]\nrules:\n- [w$, [null, model]]\n- ['(^|\\.)v$', [[data, model]]]\n- [.*, []]\n",
        "axes: [data, model]\nrules:\n  - - w$\n    - - ~\n      - model\n"
        '  - ["(^|\\\\.)v$", [[data, model]]]\n  - [.*, []]  # the rest\n',
    ],
    ids=["JSON", "JSON with tabs", "JSON with a byte order mark", "YAML", "YAML in blocks"],
)
def test_a_file_of_rules_is_read(tmp_path: Path, text: str) -> None:
    assert read_rules_file(written(tmp_path / "rules", text)) == parse_rules(RULES)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an object with a list named 'rules'"),
        ("rules: []\nrules: []", "have the key 'rules' twice"),
        ('{"rules": [], "rules": []}', "have the key 'rules' twice"),
        ('{"rules": [["w", []]]', "are not JSON: Expecting"),
        ("rules: [[*, []]]", "no YAML: line 1: expected alphabetic or numeric character"),
        ("a:\n- &a [x, x]\n- &b [*a, *a]\n- [*b, *b]", "line 2 has an anchor"),
        ("rules:\n- *a", r"line 2 .* refers to one \(\*\)"),
        ("rules: &a [['.*', []]]", "line 1 has an anchor"),  # to which nothing refers
        ("? &a rules\n: []", "line 1 has an anchor"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("rules: !!binary x", "no YAML"),
        ("rules: [[w, [2001-99-99]]]", "month must be in 1..12"),
        ("rules: " + "9" * 9999, "hold a value that is none"),
        ("rules:\n- [w, [no]]", "rule 0: partition spec .False. has False"),
        ("rules: []\n---\nrules: []", "line 2: but found another document"),
        ("? [a]\n: b", "unhashable key"),
        ("[" * 9999, "nested too deeply"),
        ("rules: [" + "[" * 9999, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\x00", "no YAML"),
        (b"#" * (MOST_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused(tmp_path: Path, text: str | bytes, why: str) -> None:
    path = written(tmp_path / "rules.yaml", text)
    with pytest.raises(RequestError, match=why) as caught:
        read_rules_file(path)
    assert str(path) in caught.value.message and len(caught.value.message) < 1000


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="neither a file nor a name") as caught:
        read_rules("gork-1")
    assert "grok-1, llama" in caught.value.hint
    with pytest.raises(RequestError, match="are a directory"):
        read_rules(tmp_path)
    with pytest.raises(FilesystemError, match="reading the rules"):
        read_rules(tmp_path / ("long" * 99))
    with pytest.raises(RequestError, match="no path"):
        read_rules("a\0b")


def test_rules_meant_as_json_get_no_hint_for_yaml(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="are not JSON") as caught:
        read_rules(written(tmp_path / "rules.json", '{"rules": [["w", []]]'))
    assert caught.value.hint == "mend them, or write them as YAML"


def test_names_are_known_without_anything_heavy() -> None:
    heavy = "[m for m in ('yaml', 'numpy') if m in sys.modules]"
    script = f"import sys, gdist.rule_files as f; print(f.rule_names(), {heavy})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('grok-1', 'llama') []"


@pytest.mark.parametrize("name", rule_names())
def test_the_text_of_named_rules_is_a_file_to_start_from(name: str, tmp_path: Path) -> None:
    assert read_rules_file(written(tmp_path / "mine.yaml", rules_text(name) or "")) == named_rules(name)
    assert read_rules(name) == named_rules(name)


# --- llama ------------------------------------------------------------------------------------------------

MESH = parse_mesh("2x4")


def specs(tensors: tuple[StoredTensor, ...]) -> dict[str, str]:
    found = resolve_specs(MESH, named_rules("llama"), tensors)
    return {tensor.spec.name: str(spec) for tensor, spec in zip(tensors, found, strict=True)}


@pytest.mark.parametrize("spelling", [HUGGING_FACE, META, FLAX], ids=["Hugging Face", "Meta", "Flax"])
def test_llama_is_split_by_columns_and_rows_in_every_spelling(spelling: dict[str, str]) -> None:
    """What puts out is split where it does, what takes in where it does: per layer one sum each is left."""
    found = specs(llama_tensors(spelling))
    column, row = (
        ("P(model, data)", "P(data, model)") if spelling is not FLAX else ("P(data, model)", "P(model, data)")
    )
    expected = {
        **dict.fromkeys(("query", "key", "value", "gate", "up"), column),
        **dict.fromkeys(("out", "down"), row),
        "embed": "P(model, data)",  # a table of [vocabulary, width] in all of them
        "head": column,
        **dict.fromkeys(("attention_norm", "mlp_norm", "norm"), "P(None)"),
    }
    assert found == {name: expected[role] for role, name in spelling.items()}


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (64,), "P(model)"),  # Qwen
        ("model.layers.0.self_attn.o_proj.bias", (64,), "P(None)"),
        ("model.layers.0.self_attn.q_norm.weight", (64,), "P(None)"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), "P(None)"),
        ("rope.freqs", (64,), "P(None)"),
        ("model.layers.0.block_sparse_moe.gate.weight", (8, 64), "P(None, None)"),  # Mixtral's router
        ("model.layers.0.block_sparse_moe.experts.7.w2.weight", (64, 64), "P(data, model)"),
        (
            "params.params.transformer.h.0.attention.wo.kernel",
            (64, 64),
            "P(model, data)",
        ),  # EasyLM's own root
    ],
)
def test_llama_like_names(name: str, shape: tuple[int, ...], spec: str) -> None:
    (tensor,) = llama_tensors({"x": name}, {"x": shape})
    assert specs((tensor,)) == {name: spec}


@pytest.mark.parametrize("name", ["model.layers.0.mlp.router.weight", "lora_a.weight", "xw1.weight"])
def test_names_that_llama_does_not_have_are_not_guessed(name: str) -> None:
    with pytest.raises(RequestError, match="no rule matches 1 tensor"):
        specs(llama_tensors({"x": name}, {"x": (64, 64)}))
