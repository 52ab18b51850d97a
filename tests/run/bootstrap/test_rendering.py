"""What is filled into a script is what the shell, YAML or Kubernetes gets out of it, whatever it holds."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.errors import RequestError
from gdist.run.bootstrap import rendering
from gdist.run.bootstrap.rendering import arg, comment, directive, flow, indented, render, sh, words, yaml

TEXT = st.text(
    st.one_of(st.sampled_from("'\"$`\\!*?~#&|;<>(){}[]%- \u00e9\u6f22\U0001f600:,"), st.characters()),
    max_size=30,
).filter(str.isprintable)


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=8), st.integers(0, 90))
def test_a_shell_gets_the_words_that_were_given(texts: list[str], margin: int) -> None:
    script = f"printf '%s\\0' {words(texts, margin)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == texts
    assert sh(texts[0]) == words(texts[:1])


@given(TEXT)
def test_yaml_gives_back_the_text(text: str) -> None:
    assert pyyaml.safe_load(f"- key: {yaml(text)} # behind it\n") == [{"key": text}]
    assert pyyaml.safe_load(str(flow([text, "x"]))) == [text.replace("$", "$$"), "x"]


@pytest.mark.parametrize("value", [True, False, 0, 7611])
def test_numbers_and_truths_stay_what_they_are(value: int) -> None:
    assert pyyaml.safe_load(str(yaml(value))) is value or pyyaml.safe_load(str(yaml(value))) == value


def expand(text: str) -> str:
    """What Kubernetes makes of an argument: `$$` is a dollar, `$(NAME)` a variable, here always set."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda m: "$" if m[0] == "$$" else "EXPANDED", text)


@given(TEXT)
def test_kubernetes_expands_nothing(text: str) -> None:
    assert expand(pyyaml.safe_load(str(arg(text)))) == text


@pytest.mark.parametrize(
    "text", ["a\nb", "a\rb", "a\0b", "a\x1b[31mb", "a\u202eb", "a\u2028b", "a\x85b", "\ufeff"]
)
@pytest.mark.parametrize("quote", [sh, yaml, arg, comment, directive])
def test_what_does_not_print_is_refused(text: str, quote: object) -> None:
    assert callable(quote)
    with pytest.raises(RequestError, match="do not print") as caught:
        quote(text)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "text", ["gpu", "gpu,cpu", "4:00:00", "1-00:00:00", "a[0-3]", "user@x.org", "%x-%j.out"]
)
def test_directives_take_plain_text(text: str) -> None:
    assert directive(text) == text


@pytest.mark.parametrize("text", ["", "a b", "a#b", "a'b", "$x", "a;b"])
def test_directives_take_nothing_else(text: str) -> None:
    with pytest.raises(RequestError, match="directive"):
        directive(text)


def test_what_was_not_quoted_is_not_shown() -> None:
    template = rendering._environment().from_string("{{ text }}")
    with pytest.raises(TypeError, match="without saying how it is quoted"):
        template.render(text="rm -rf /")
    assert rendering._environment().from_string("{{ text | sh }}").render(text="a b") == "'a b'"


def test_what_is_missing_is_an_error() -> None:
    with pytest.raises(Exception, match="undefined"):
        render("slurm.sh.j2")


def test_long_lines_break_before_options_only() -> None:
    text = words(
        ["gdist", "cluster", "fetch", "x" * 80, "/d", "--mesh", "8x8", "--select", "a b", "--encrypt"]
    )
    assert [line.strip(" \\") for line in text.splitlines()][2:] == [
        "--mesh 8x8",
        "--select 'a b'",
        "--encrypt",
    ]
    assert indented(text, 4).splitlines()[1].startswith("      ")
