"""Directories of arrays in a torrent: Orbax checkpoints and Zarr hierarchies, known by the files they have.

Where every chunk of a Zarr hierarchy is a file of nothing but elements, each file is a part of its tensor,
and the tensors are fetched like any others. Else the chunks have to be decoded, which takes whole files; see
`gdist.run.fetch_directory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from posixpath import commonpath, dirname

from gdist.core.extent import Extent
from gdist.core.orbax import METADATA, parse_orbax_tree
from gdist.core.payload import Payload
from gdist.core.profile import FileArrays, listed
from gdist.core.tensor import FoundArray, Part
from gdist.core.zarr_arrays import (
    GROUP_V2,
    ZarrArray,
    check_documents,
    document_paths,
    loose_paths,
    missing_chunks,
    named,
    owner_of,
    parse_hierarchy,
    parts_of,
)
from gdist.errors import CorruptError, UnsupportedError

OCDBT = "manifest.ocdbt"
ROOT_ARRAY = "array"  # the name of an array that is the torrent's own root


class EncodedDirectory(UnsupportedError):
    """The torrent holds a directory of arrays whose chunks must be decoded, each as a whole.

    Attributes: `root`, its path in the payload, and `nbytes` of all its arrays, 0 where that is not known.
    """


@dataclass(frozen=True, slots=True)
class Directories:
    """What was found: the arrays, and the files of the payload that are chunks or documents of arrays.

    `ignored` are those of them that are of arrays left out by name.
    """

    found: tuple[FileArrays, ...] = ()
    inside: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()


def find_directories(
    payload: Payload,
    files: Sequence[int],
    skip: Callable[[str], bool],
    fetch: Callable[[Sequence[int]], Mapping[int, bytes]],
) -> Directories:
    """The directories of arrays among some files of a payload; `fetch` gives small files as they are.

    `skip` names arrays, as well as files, that are left out.

    Raises:
        EncodedDirectory: chunks must be decoded.
        UnsupportedError: there are several, or what is in one is not read.
        CorruptError: it contradicts itself, or chunks are missing.
    """
    numbers = {payload.files[i].path: i for i in files}
    roots = _orbax_roots(numbers)
    documents = [p for p in document_paths(numbers) if not any(_below(p, root) for root in roots)]
    if len(roots) + bool(documents) > 1:
        others = [*roots, *([_common(documents)] if documents else [])]
        raise UnsupportedError(
            f"the torrent holds {len(others)} directories of arrays: {listed(map(repr, others))}",
            hint="leave out all but one with --ignore 'DIRECTORY/*'",
        )
    if roots:
        _check_orbax(numbers, roots[0], skip, fetch)
        raise _encoded(roots[0], "it is an Orbax checkpoint", 0)
    if not documents:
        return Directories()
    check_documents({path: payload.files[numbers[path]].length for path in documents})
    contents = fetch([numbers[path] for path in documents])
    arrays = parse_hierarchy({path: contents[numbers[path]] for path in documents})
    if not arrays:
        return Directories()
    groups = [path for path in numbers if path.rpartition("/")[2] == GROUP_V2]
    return _zarr(payload, numbers, arrays, _common([*documents, *groups]), skip)


def _zarr(
    payload: Payload,
    numbers: Mapping[str, int],
    arrays: Sequence[ZarrArray],
    root: str,
    skip: Callable[[str], bool],
) -> Directories:
    """The arrays of a hierarchy, as parts where that is what its files are."""
    loose = set(loose_paths(numbers, arrays))
    inside = frozenset(number for path, number in numbers.items() if path not in loose)
    below = {array.path: array.path.removeprefix(root).lstrip("/") for array in arrays}
    names = named(arrays, root.rpartition("/")[2] or ROOT_ARRAY, below)
    extents = {path: payload.files[number].extent for path, number in numbers.items()}
    found, encoded, missing = [], [], []
    for name, array in names.items():
        if skip(name):
            continue
        parts = parts_of(array, extents)
        if parts is None:
            encoded.append(name)
            missing += list(_first_missing(array, numbers))
        else:
            found.append(_array(name, array, parts))
    if missing:
        raise CorruptError(
            f"{len(missing)} arrays have chunks that are not in the torrent: {listed(missing)}"
        )
    if encoded:
        nbytes = sum(array.nbytes for name, array in names.items() if not skip(name))
        why = f"chunks of {len(encoded)} arrays are encoded, or do not divide them: {listed(encoded)}"
        raise _encoded(root, why, nbytes)
    out = {array.path for name, array in names.items() if skip(name)}
    ignored = frozenset(number for path, number in numbers.items() if owner_of(path, out) is not None)
    return Directories((FileArrays(root or ".", 0, tuple(found), keys_are_names=True),), inside, ignored)


def _array(name: str, array: ZarrArray, parts: tuple[Part, ...]) -> FoundArray:
    start = min((part.extent.start for part in parts), default=0)
    stop = max((part.extent.stop for part in parts), default=0)
    return FoundArray(name, Extent(start, stop - start), array.shape, array.dtype, runs=parts)


def _first_missing(array: ZarrArray, files: Mapping[str, int]) -> Sequence[str]:
    """The first chunk of an array that is not there, if one is not; looks at no more than there are files."""
    numbers = range(min(array.chunks, len(files) + 1))
    return list(missing_chunks(array, map(array.index_of, numbers), files))[:1]


def _orbax_roots(paths: Mapping[str, int]) -> list[str]:
    marks = (METADATA, OCDBT)
    roots = sorted({dirname(path) for path in paths if path.rpartition("/")[2] in marks})
    return [root for root in roots if not any(root != other and _below(root, other) for other in roots)]


def _check_orbax(
    numbers: Mapping[str, int],
    root: str,
    skip: Callable[[str], bool],
    fetch: Callable[[Sequence[int]], Mapping[int, bytes]],
) -> None:
    """That the tree of a checkpoint is read, before all of it is fetched."""
    path = f"{root}/{METADATA}" if root else METADATA
    if path not in numbers:
        raise UnsupportedError(
            f"{root or '.'} is an OCDBT database without {METADATA}: which arrays it has is not known"
        )
    tree = parse_orbax_tree(fetch([numbers[path]])[numbers[path]], path)
    strange = [f"{name} ({kind})" for name, kind in tree.strange if not skip(name)]
    if strange:
        raise UnsupportedError(
            f"{len(strange)} leaves of {root or 'the checkpoint'} are no arrays: {listed(strange)}",
            hint="leave them out with --ignore 'NAME'",
        )


def _encoded(root: str, why: str, nbytes: int) -> EncodedDirectory:
    return EncodedDirectory(
        f"{root or 'the torrent'} is a directory of arrays that must be decoded: {why}",
        hint="gdist fetch on one host downloads and converts it; by hand: download it with any client, then "
        "gdist reshard DIRECTORY DEST",
        root=root,
        nbytes=nbytes,
    )


def _common(paths: Sequence[str]) -> str:
    return commonpath([f"/{dirname(path)}" for path in paths]).lstrip("/")


def _below(path: str, root: str) -> bool:
    return not root or path.startswith(f"{root}/")
