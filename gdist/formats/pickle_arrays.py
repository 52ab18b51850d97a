"""Pickles of arrays (protocols 3, 4 and 5): NumPy 1 and 2, ml_dtypes, jax, and Grok-1's quantised pairs.

A pickle is a program. This reader runs none of it: `pickle_lexer` splits the file into the few opcodes that
arrays consist of and passes over the payloads, `pickle_machine` keeps track of what they would make. What
it does not know by exact name and shape it refuses, and there is no looser reader to fall back to.

An array of 1.6 GB costs two or three reads of 512 bytes: at the start, and behind each payload.
"""

from __future__ import annotations

from gdist.core.tensor import FoundArray
from gdist.errors import CorruptError
from gdist.formats import Scan
from gdist.formats.pickle_lexer import Lexer
from gdist.formats.pickle_machine import Machine

NAME = "pickle"
KEYS_ARE_NAMES = False  # they are paths within an object that has no name but the file's

_PROTOCOLS = (3, 4, 5)


def sniff(head: bytes, size: int) -> bool:
    """True for PROTO 3, 4 or 5; older pickles hold arrays as text and cannot be read as ranges."""
    return size > 2 and len(head) > 1 and head[0] == 0x80 and head[1] in _PROTOCOLS


def scan(size: int) -> Scan:
    """Finds the arrays of a pickle of `size` bytes; see `gdist.formats.Format.scan`.

    Keys are the path in the tree joined by `.`, empty when the file is just one array or pair. Plain data
    beside the arrays (numbers, texts, bytes) is passed over.

    Raises:
        UnsupportedError: an opcode, name or call that is not allowed, bytes after the end, a limit passed.
        CorruptError: the file is cut short, or lengths and shapes contradict each other.
    """
    if not size:
        raise CorruptError("the pickle is empty")
    lexer, machine = Lexer(size), Machine()
    while not machine.stopped:
        token = lexer.token()
        if token is None:
            wanted = lexer.wanted()
            data = yield wanted
            assert len(data) == wanted.length, f"{len(data)} bytes sent for {wanted}"
            lexer.feed(data)
        else:
            machine.step(token)
    found: tuple[FoundArray, ...] = machine.found()
    return found
