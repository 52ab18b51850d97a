"""Profiles as files: those shipped, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdist.errors import RequestError
from gdist.profile_files import check_profile, join_profiles, profile_named, read_profile
from gdist.releases import known_release, release_names

GOOD = """name = "mine"
files = 'r(?P<shard>\\d)'
[[tensor]]
match = '(w)'
"""


def test_shipped_profiles_are_named_as_their_files_and_names_are_one_profiles() -> None:
    names = [name for profile in join_profiles() for name in profile.names]
    assert len(set(names)) == len(names)
    assert {"llama-1", "llama-2", "llama-3", "mixtral-8x7b", "bloom", "gpt-j", "deepspeed"} <= set(names)
    assert "stable-diffusion-1" in names and profile_named("grok-9") is None
    for name in [*names, "grok-1", None]:
        check_profile(name)


def test_an_unknown_profile_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RequestError, match="'llama' is not known") as error:
        check_profile("llama")
    assert "grok-1, llama-1, llama-2" in error.value.hint and ".toml" in error.value.hint
    with pytest.raises(RequestError, match=r"no profile 'nowhere.toml'"):
        check_profile("nowhere.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "cannot be used"),
        (GOOD.replace("name", "nmae"), "has or lacks nmae, name"),
        (GOOD.replace("'(w)'", "'(w'"), "is no regular expression"),
        (GOOD + "name = '\\2'", "invalid group reference"),
        (GOOD + "join = 'glued'", "'glued' is none of concatenate, replicated"),
        (GOOD + "split = 4", "no {index}"),
        (GOOD + "shape = [1.5]", "no list of numbers and names"),
        (GOOD + "dimension = -1", "dimension -1"),
        (GOOD + "drop = 1", "drop is neither"),
        (GOOD.replace("files", 'prefix = "{layer}"\nfiles'), "no group of files"),
        (GOOD.replace("files", "sizes = 3\nfiles"), "sizes is no table"),
        ('name = "a"\nfiles = "b"\ntensor = 3', "no array of tables"),
    ],
)
def test_what_is_no_profile_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(GOOD)
    assert read_profile(tmp_path / "p.toml").name == "mine"
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(RequestError) as error:
        read_profile(tmp_path / "p.toml")
    assert words in error.value.message


def test_the_profiles_that_releases_name_are_there() -> None:
    for name in release_names():
        manifest = known_release(name)
        assert manifest is not None
        check_profile(manifest.profile)


def test_a_path_that_is_none_is_an_error() -> None:
    with pytest.raises(RequestError, match="null"):
        profile_named("a\0.toml")
