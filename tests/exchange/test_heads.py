"""Heads have one reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.exchange.heads import END, make_head, parse_head, sealed

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,9}(-[A-Za-z0-9]{1,5})?", fullmatch=True)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip)


@given(
    fields=st.dictionaries(NAMES, VALUES, max_size=8),
    signature=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
)
def test_a_head_comes_out_as_it_went_in(fields: dict[str, str], signature: str) -> None:
    fields = {name: value for name, value in fields.items() if name.lower() != "gdist-mac"}
    fields = {name.lower(): value for name, value in fields.items()}
    head = make_head("GET /a?b=c HTTP/1.1", fields)
    read = parse_head(sealed(head, signature))
    assert read.words == ("GET", "/a?b=c", "HTTP/1.1")
    assert read.fields == {**fields, "gdist-mac": signature}
    assert read.signed == head
    assert parse_head(head + b"\r\n").signed == b""


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_a_head_or_a_value_error(raw: bytes) -> None:
    try:
        head = parse_head(raw + END)
        assert head.length >= 0
    except ValueError:
        pass


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"GET",
        b"GET /",
        b" / HTTP/1.1",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\n: nameless",
        b"GET / HTTP/1.1\r\nA: 1\r\na: 2",  # twice
        b"GET / HTTP/1.1\r\nA: 1\r\n folded",
        b"GET / HTTP/1.1\r\nA : 1",
        b"GET / HTTP/1.1\r\nGdist-Mac: 00\r\nA: 1",  # not under the signature
    ],
)
def test_what_could_be_read_in_two_ways_is_no_head(lines: bytes) -> None:
    with pytest.raises(ValueError, match="no "):
        parse_head(lines + END)


@pytest.mark.parametrize(
    "lines",
    [b"Content-Length: +1", b"Content-Length: 1,1", b"Content-Length: ", b"Transfer-Encoding: chunked"],
)
def test_a_length_is_plain_or_none(lines: bytes) -> None:
    head = parse_head(b"GET / HTTP/1.1\r\n" + lines + END)
    with pytest.raises(ValueError, match="no plain length"):
        _ = head.length


@pytest.mark.parametrize("fields", [{"A": "1\r\nB: 2"}, {"A\r\nB": "1"}, {"": "1"}, {"A": "\0"}, {"A": "→"}])
def test_a_field_cannot_become_two(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError):  # two kinds of reasons
        make_head("GET / HTTP/1.1", fields)
