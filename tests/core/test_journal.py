"""The journal's lines: what is written is read, what is torn says nothing, what is not ours is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.core.journal import (
    VERSION,
    Progress,
    ShardRecord,
    asset_line,
    file_line,
    header_line,
    parse_journal,
    pieces_line,
    rest_line,
    shard_line,
)
from gdist.errors import ResumeError

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
RECORDS = st.builds(
    ShardRecord,
    NAMES,
    st.lists(st.integers(0, 99), max_size=3).map(tuple),
    st.lists(st.text("0123456789abcdef", min_size=4, max_size=4), max_size=3).map(tuple),
)
FACTS = st.lists(
    st.one_of(
        RECORDS,
        st.sets(st.integers(0, 50)),
        NAMES,
        st.tuples(NAMES, st.integers(0, 10**12), st.text("0123456789abcdef", max_size=4)),
        st.tuples(NAMES, st.binary(max_size=9)),
    ),
    max_size=12,
)


def line_of(fact: object) -> str:
    match fact:
        case ShardRecord():
            return shard_line(fact)
        case set():
            return pieces_line(fact)
        case str():
            return file_line(fact)
        case (path, nbytes, digest):
            return asset_line(path, nbytes, digest)
        case (path, rest):
            return rest_line(path, rest)
    raise AssertionError(fact)


def sum_of(facts: list[object]) -> Progress:
    progress = Progress("plan")
    for fact in facts:
        match fact:
            case ShardRecord():
                progress.shards[fact.key] = fact
            case set():
                progress.pieces |= fact
            case str():
                progress.files.add(fact)
            case (path, nbytes, digest):
                progress.assets[path] = (nbytes, digest)
            case (path, rest):
                progress.rest[path] = rest
    return progress


def journal(facts: list[object]) -> list[bytes]:
    return [line.encode() + b"\n" for line in (header_line("plan"), *map(line_of, facts))]


@given(FACTS)
def test_a_journal_says_the_sum_of_its_lines(facts: list[object]) -> None:
    data = b"".join(journal(facts))
    assert parse_journal(data) == (sum_of(facts), len(data))


@given(FACTS, st.data())
def test_a_journal_torn_anywhere_says_what_its_whole_lines_say(
    facts: list[object], data: st.DataObject
) -> None:
    lines = journal(facts)
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    ends = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    whole = sum(end <= cut for end in ends) - 1
    expected = sum_of(facts[: whole - 1]) if whole else None
    assert parse_journal(content[:cut]) == (expected, ends[whole])


@given(FACTS, FACTS)
def test_a_journal_can_be_read_on(before: list[object], after: list[object]) -> None:
    first = b"".join(journal(before))
    rest = b"".join(journal(after)[1:])
    progress, whole = parse_journal(first)
    assert whole == len(first)
    assert parse_journal(rest, progress) == (sum_of([*before, *after]), len(rest))


@pytest.mark.parametrize(
    ("pieces", "ranges"),
    [([], []), ([5], [[5, 6]]), ([3, 1, 2], [[1, 4]]), ([0, 2, 3, 9], [[0, 1], [2, 4], [9, 10]])],
)
def test_pieces_are_written_as_ranges(pieces: list[int], ranges: list[list[int]]) -> None:
    assert json.loads(pieces_line(pieces)) == {"pieces": ranges}


@pytest.mark.parametrize("version", [0, VERSION + 1, "1", None])
def test_another_version_is_refused(version: object) -> None:
    data = json.dumps({"gdist_journal": version, "plan": "p"}).encode() + b"\n"
    with pytest.raises(ResumeError, match=f"version {version}, this gdist writes {VERSION}") as caught:
        parse_journal(data)
    assert "finish with the gdist that began" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"3",
        b"[]",
        b'"shard"',
        b"{}",
        b"\x00\x00\x00",
        b"\xff",
        b'{"shard": ["w"], "digests": []}',
        b'{"shard": ["w", [0]]}',
        b'{"shard": ["w", ["x"]], "digests": []}',
        b'{"pieces": [1]}',
        b'{"pieces": [[0, 1, 2]]}',
        b'{"asset": ["a", 1]}',
        b'{"rest": ["a"]}',
        b'{"rest": ["a", "not base64"]}',
    ],
)
def test_a_whole_line_that_is_not_ours_is_refused_by_its_number(line: bytes) -> None:
    header = header_line("p").encode() + b"\n"
    for data, number in ((header + line + b"\n", 2), (header + b'{"file": "f"}\n' + line + b"\n", 3)):
        with pytest.raises(ResumeError, match=f"line {number} of the journal cannot be read"):
            parse_journal(data)


def test_a_journal_begins_with_its_header() -> None:
    with pytest.raises(ResumeError, match="line 1"):
        parse_journal(b'{"file": "f"}\n')
    assert parse_journal(b"") == (None, 0)
