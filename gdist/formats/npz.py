"""NumPy's archives (`.npz`): a zip of stored members, each an npy.

A key is a member's name without `.npy`: what the array was called in `np.savez(file, name=array)`, or `arr_0`
and so on. It is the tensor's name wherever the file lies, since trees are saved by their paths (big_vision,
T5X), and a file name would stand in front of what a model expects.

Every member costs one read of its local header and one of its npy header, side by side in the file.
"""

from __future__ import annotations

from gdist.errors import UnsupportedError
from gdist.formats import Scan
from gdist.formats.npy import read_array
from gdist.formats.zip_directory import Member, read_members

NAME = "npz"
KEYS_ARE_NAMES = True

SUFFIX = ".npy"
_LISTED = 20


def sniff(head: bytes, size: int) -> bool:
    """True for a zip whose first member is an npy by its name."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\x03\x04") and name.endswith(SUFFIX.encode())


def scan(size: int) -> Scan:
    """Finds the arrays of an archive of `size` bytes, in the order of its directory.

    Raises:
        UnsupportedError: compressed or encrypted members, others than npy, types gdist does not store.
        CorruptError: a zip or an npy that contradicts itself.
    """
    try:
        members = yield from read_members(size)
    except UnsupportedError as error:
        raise UnsupportedError(
            error.message,
            hint="load it where you trust it, and save it with np.savez, not np.savez_compressed",
            **error.facts,
        ) from error
    _check_names(members)
    found = []
    for member in members:
        key = member.name.removesuffix(SUFFIX)
        found.append((yield from read_array(member.extent, key)))
    return tuple(found)


def _check_names(members: tuple[Member, ...]) -> None:
    odd = [m.name for m in members if not m.name.endswith(SUFFIX) or m.name == SUFFIX]
    if odd:
        more = f" and {len(odd) - _LISTED} more" if len(odd) > _LISTED else ""
        listed = ", ".join(repr(name[:200]) for name in odd[:_LISTED])
        raise UnsupportedError(f"the archive has {len(odd)} members that are no arrays: {listed}{more}")
