"""Unsigned numbers in seven bits a byte, the lowest first: LEB128, as OCDBT and Parquet have them."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """A number that is not negative; the highest bit of a byte says that another follows."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
