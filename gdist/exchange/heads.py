"""Heads of HTTP/1.1 messages, as bytes and as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MAC, DIGEST, MEMBER = "gdist-mac", "gdist-digest", "gdist-member"
OURS = {MAC, DIGEST, "content-length", "transfer-encoding"}  # no handler sets these
BODY_BYTES = 64 * 2**20  # of a request
HEAD_BYTES = 16 * 2**10  # a head longer than this is nobody of ours
END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Head:
    """A head as it came: the words of its first line, and its fields by lower case name.

    `signed` is what the signature covers; nothing when there is none.
    """

    words: tuple[str, str, str]
    fields: Mapping[str, str]
    signed: bytes

    @property
    def length(self) -> int:
        """Bytes of body that follow.

        Raises:
            ValueError: when the head does not say it plainly.
        """
        text = self.fields.get("content-length", "0")
        if "transfer-encoding" in self.fields or not (text.isascii() and text.isdigit() and len(text) < 18):
            raise ValueError(f"no plain length: {text!r}")
        return int(text)


def parse_head(raw: bytes) -> Head:
    """The head of a message, `raw` ending with its empty line.

    Strict, because what two readers read differently can be signed by one and believed by the other: a field
    has one line and occurs once, and the signature is the last.

    Raises:
        ValueError: when it is not such a head.
    """
    first, *lines = raw.removesuffix(END).decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) != 3 or not all(words[:2]):
        raise ValueError(f"no first line: {first[:80]!r}")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name in fields or not name.replace("-", "").isalnum() or MAC in fields:
            raise ValueError(f"no field: {line[:80]!r}")
        fields[name] = value.strip()
    signed = raw[: raw.rindex(b"\r\n", 0, -4) + 2] if MAC in fields else b""
    return Head((words[0], words[1], words[2]), fields, signed)


def make_head(first: str, fields: Mapping[str, str]) -> bytes:
    """A head without signature and without the empty line that ends it.

    Raises:
        ValueError: when a field would not stay one.
    """
    for name, value in fields.items():
        if not name.replace("-", "").isalnum() or any(c in value for c in "\r\n\0"):
            raise ValueError(f"{name!r}: {value!r} is no field")
    return "".join((first, "\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()))).encode(
        "latin-1"
    )


def sealed(head: bytes, signature: str) -> bytes:
    """A head with its signature, complete."""
    return b"%sGdist-Mac: %s%s" % (head, signature.encode(), END)
