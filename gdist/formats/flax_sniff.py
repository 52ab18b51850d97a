"""Whether a file is Flax's msgpack, by its first bytes.

msgpack has no magic: a first byte alone fits a seventeenth of all files. So the head is walked from key to
key, down to the first array, and must be what Flax or EasyLM write; see `gdist.formats.flax_msgpack`.
"""

from __future__ import annotations

from gdist.formats.msgpack import LONGEST_HEAD, Kind, parse_head

ARRAY, COMPLEX, SCALAR = 1, 2, 3  # Flax's extension types
MAX_PARTS = 64  # of a pair's path

SPEC_KEYS = frozenset({"kvstore", "driver"})  # of a TensorStore spec, where a leaf should be
SPECS = "a checkpoint of t5x or PaxML that says where its arrays lie"
SPECS_HINT = (
    "gdist opens no place that a file names, which could be any on this machine; its arrays are read where "
    "they lie beside it as plain Zarr directories"
)


def has_specs(head: bytes) -> bool:
    """True where the words of a TensorStore spec are in the head of a file."""
    return all(key.encode() in head for key in SPEC_KEYS)


def sniff(head: bytes, size: int) -> bool:
    """True for a map with text as keys, down to the first array or as far as `head` reaches; or for a pair.

    A pickle is none: as msgpack its first byte is a map without entries. Nor is what t5x writes.
    """
    first = parse_head(head, 0)
    if first is None or has_specs(head):
        return False
    if first[0].kind is Kind.MAP:
        return _is_tree(head, size, first[0].number, first[1])
    return first[0].kind is Kind.ARRAY and first[0].number == 2 and _is_pair(head, first[1])


def _is_tree(head: bytes, size: int, count: int, at: int) -> bool:
    """True for a map of so many entries that begin at a place of the file's head."""
    left = [(True, count)]  # of the maps (and lists) that are open: what is still to come
    while True:
        while left and not left[-1][1]:
            left.pop()
        if not left:
            return at == size and at > 1
        is_map, remaining = left.pop()
        left.append((is_map, remaining - 1))
        if is_map:
            after = _after_text(head, at)
            if after is None:
                return False
            at = after
            if at >= len(head):
                return at < size
        value = parse_head(head, at)
        if value is None:
            return size > len(head) and at + LONGEST_HEAD > len(head)
        found, at = value
        match found.kind:
            case Kind.MAP | Kind.ARRAY:
                left.append((found.kind is Kind.MAP, found.number))
            case Kind.EXTENSION if found.code in (ARRAY, SCALAR):
                return head[at : at + 1] in (b"\x93", b"") and at < size
            case Kind.EXTENSION if found.code != COMPLEX:
                return False
            case Kind.EXTENSION | Kind.TEXT | Kind.BYTES:
                at += found.number
        if at >= len(head) and at < size:
            return True


def _is_pair(head: bytes, at: int) -> bool:
    """True for a path, and bytes in which an array or a map begins."""
    path = parse_head(head, at)
    if path is None or path[0].kind is not Kind.ARRAY or not 0 < path[0].number <= MAX_PARTS:
        return False
    at = path[1]
    for _ in range(path[0].number):
        after = _after_text(head, at)
        if after is None:
            return False
        at = after
    holds = parse_head(head, at)
    inside = parse_head(head, holds[1]) if holds and holds[0].kind is Kind.BYTES else None
    return inside is not None and (
        inside[0].kind is Kind.MAP or (inside[0].kind is Kind.EXTENSION and inside[0].code == ARRAY)
    )


def _after_text(head: bytes, at: int) -> int | None:
    """Where a text that begins at a place ends, or None: it is none, or not printable."""
    found = parse_head(head, at)
    if found is None or found[0].kind is not Kind.TEXT:
        return None
    stop = found[1] + found[0].number
    return stop if _is_text(head[found[1] : stop]) else None


def _is_text(raw: bytes) -> bool:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and bool(text)
