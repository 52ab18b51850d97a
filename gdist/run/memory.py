"""Memory that the C library keeps after it was freed, given back to the system.

libtorrent's blocks are made by one thread and freed by others; glibc then keeps what is free between those in
use, and a long download grows to several times of what it uses. Asking costs about a millisecond.
"""

from __future__ import annotations

import ctypes


def _find_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # another C library than glibc
        return None


_trim = _find_trim()


def give_back() -> None:
    """Gives free memory back to the system, where the C library can."""
    if _trim is not None:
        _trim(0)
