"""From the arrays found in files to named, logical tensors.

A profile knows what a numbered file holds (`gdist.core.profiles`). Without one, the key of an array is its
name where the format has names, and any other array is named after its file. Both halves of a quantised
pair share a name and become `NAME.weight` and `NAME.scales`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from gdist.core.order import loading_order
from gdist.core.payload import Payload
from gdist.core.profiles import PROFILES, Profile, Role
from gdist.core.rules import Rules
from gdist.core.tensor import (
    UNREAD,
    FoundArray,
    Part,
    Quantisation,
    StoredTensor,
    TensorSpec,
    check_name,
    check_readable,
)
from gdist.errors import CorruptError, RequestError, UnsupportedError

INDEX_SUFFIX = ".safetensors.index.json"  # says which file of a checkpoint holds which tensor
_LEAVE_INDEX = f"leave the index out with --ignore '*{INDEX_SUFFIX}'"
_INDEX_HINT = f"get the file again, or {_LEAVE_INDEX}"
LISTED = 20  # how many of a list of faults a message names


@dataclass(frozen=True, slots=True)
class FileArrays:
    """The arrays found in one file of a payload.

    `path` is relative to the payload's root, `offset` is where the file starts in the payload, in bytes.
    `keys_are_names` is true where the key of an array is its name, wherever the file lies.
    """

    path: str
    offset: int
    arrays: tuple[FoundArray, ...]
    keys_are_names: bool = False

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


# A name, the file, and of its arrays the one of that name or the halves of a pair.
NamedArrays = tuple[str, FileArrays, Sequence[FoundArray]]


@dataclass(frozen=True, slots=True)
class Naming:
    """Named tensors in loading order, the profile that named them, and its partition rules."""

    tensors: tuple[StoredTensor, ...]
    profile: str | None
    rules: Rules | None


def name_tensors(files: Sequence[FileArrays], profile: str | None = None) -> Naming:
    """Names every array found, by the profile of that name, or by the first that fits, or by file.

    Raises:
        RequestError: for an unknown profile.
        UnsupportedError: for a name that is not allowed or is also a group of others, or a profile that the
            files do not fit.
        CorruptError: for two tensors of one name, or the halves of a pair that do not belong together.
    """
    files = [file for file in files if file.arrays]
    if profile is not None and profile not in PROFILES:
        known = ", ".join(sorted(PROFILES))
        raise RequestError(
            f"profile {profile!r} is not known", hint=f"known profiles: {known}", profile=profile
        )
    for candidate in [PROFILES[profile]] if profile else list(PROFILES.values()):
        roles, misfit = _roles_of(candidate, files)
        if misfit is None:
            named = [(roles[file.path].path, file, file.arrays) for file in files]
            return Naming(join_arrays(named), candidate.name, candidate.rules)
        if profile:
            raise UnsupportedError(
                f"the files do not fit profile {profile!r}: {misfit}",
                hint="name the tensors by their files instead: give no profile",
                profile=profile,
            )
    return Naming(join_arrays(_by_file(files)), None, None)


def check_index(index_json: bytes, files: Iterable[FileArrays]) -> None:
    """That a `model.safetensors.index.json` and the files it speaks of agree on which file holds what.

    A file is found by the index's own path for it, at the end of the file's path in the payload. Files the
    index does not mention are not looked at.

    Raises:
        CorruptError: when the index is not one, names a file that is missing, or when a tensor is missing,
            is in another file, or is not in the index; names up to `LISTED` faults.
    """
    expected: defaultdict[str, set[str]] = defaultdict(set)
    for name, file in _weight_map(index_json).items():
        expected[file].add(name)
    faults = []
    files = tuple(files)
    for target, names in sorted(expected.items()):
        holders = [file for file in files if file.path == target or file.path.endswith("/" + target)]
        if len(holders) != 1:
            times = f"in the payload {len(holders)} times" if holders else "not in the payload"
            faults.append(f"file {target!r} is {times}")
            continue
        found = {array.key for array in holders[0].arrays}
        faults += [f"tensor {name!r} is not in {target!r}" for name in sorted(names - found)]
        faults += [f"tensor {name!r} of {target!r} is not listed for it" for name in sorted(found - names)]
    if faults:
        raise CorruptError(
            f"the safetensors index and its files disagree: {listed(faults)}",
            hint=f"get what is missing, or {_LEAVE_INDEX}",
            faults=tuple(faults),
        )


def _weight_map(index_json: bytes) -> Mapping[str, str]:
    try:
        index = json.loads(index_json)
    except (ValueError, RecursionError) as error:
        raise CorruptError(
            f"the safetensors index is not JSON: {str(error)[:200]}", hint=_INDEX_HINT
        ) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CorruptError(
            "the safetensors index has no 'weight_map' of tensor names to file names", hint=_INDEX_HINT
        )
    return weight_map


def _roles_of(profile: Profile, files: Sequence[FileArrays]) -> tuple[dict[str, Role], str | None]:
    """The role of every file by its path, and why the files do not fit the profile, or None."""
    indices: dict[int, FileArrays] = {}
    for file in files:
        match = re.fullmatch(profile.file_pattern, file.file_name)
        if not match:
            return {}, f"{file.path!r} is not named like its files"
        if int(match[2]):
            return (
                {},
                f"{file.path!r} was written by process {int(match[2])}; only one process's files are read",
            )
        if int(match[1]) in indices:
            return {}, f"{indices[int(match[1])].path!r} and {file.path!r} have the same index"
        indices[int(match[1])] = file
    missing = sorted(set(range(max(indices, default=0) + 1)) - set(indices))
    if missing:
        return {}, f"no file has index {listed(map(str, missing))}"
    layers = profile.layers(len(files))
    if layers is None:
        return {}, f"{len(files)} files are not {len(profile.head)} and {len(profile.layer)} for each layer"
    roles = {}
    for index, role in enumerate(profile.roles(layers)):
        file = indices[index]
        shapes = [array.shape for array in file.arrays]
        if any(array.key for array in file.arrays) or any(len(shape) != role.ndim for shape in shapes):
            return {}, f"{file.path!r} holds shapes {shapes}, {role.path!r} has {role.ndim} dimensions"
        roles[file.path] = role
    return roles, None


def _by_file(files: Sequence[FileArrays]) -> list[NamedArrays]:
    """Names by key or by file; files that share their last part go by their whole path."""
    same = Counter(file.file_name for file in files if not file.keys_are_names)
    named: list[NamedArrays] = []
    for file in files:
        stem = file.file_name if same[file.file_name] <= 1 else file.path
        keys: dict[str, list[FoundArray]] = {}
        for array in file.arrays:
            keys.setdefault(array.key, []).append(array)
        for key, arrays in keys.items():
            if file.keys_are_names:
                named.append((key, file, arrays))
            else:
                named.append((f"{stem}.{key}" if key else stem, file, arrays))
    return named


def join_arrays(named: Iterable[NamedArrays]) -> tuple[StoredTensor, ...]:
    """The tensors that named arrays are, in loading order.

    Raises:
        UnsupportedError, CorruptError: as `in_order` and `tensors_of` do.
    """
    return in_order(
        (tensor, file.path)
        for name, file, arrays in named
        for tensor in tensors_of(name, arrays, file.offset, file.path)
    )


def in_order(found: Iterable[tuple[StoredTensor, str]]) -> tuple[StoredTensor, ...]:
    """Tensors in loading order; the texts say where each was found.

    Raises:
        UnsupportedError: for names that cannot be shown; what can be stored, `check_storable` says.
        CorruptError: for a name given twice.
    """
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, str] = {}
    twice, strange, other = [], [], ""
    for tensor, where in found:
        try:
            check_readable(tensor.spec.name)
        except UnsupportedError as error:
            strange.append(f"{error.message}, in {where!r}")
        if tensor.spec.name in tensors:
            twice.append(f"{tensor.spec.name!r} (again in {where!r})")
            other = other or _apart(where, places[tensor.spec.name])
        tensors[tensor.spec.name], places[tensor.spec.name] = tensor, where
    if strange:
        raise UnsupportedError(listed(strange))
    if twice:
        raise CorruptError(
            f"tensors are there more than once: {listed(twice)}",
            hint=f"of several models take one: --ignore '{other}'; files of several ranks are joined by a "
            "profile: --profile NAME",
            tensors=tuple(twice),
        )
    return tuple(tensors[name] for name in loading_order(tensors))


def _apart(second: str, first: str) -> str:
    """The pattern of the second of two files that hold the same: its directory, where that is another."""
    above, beside = (path.rpartition("/")[0] for path in (second, first))
    return second if above == beside else f"{above or beside}/*"


def check_storable(tensors: Iterable[StoredTensor], payload: Payload) -> None:
    """That the store can keep these tensors: under their names, in their types.

    Raises:
        UnsupportedError: naming up to `LISTED` of those that it cannot, each with its file in the payload;
            and for names that are those of groups, too.
    """
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    refused = []
    for name, tensor in sorted(by_name.items()):
        try:
            check_name(name)
        except UnsupportedError as error:
            refused.append(error.message + _place(tensor, payload))
        for factor in tensor.sources:
            kind = factor.tensor.spec.encoding
            if kind.startswith(UNREAD):
                kind = kind.removeprefix(UNREAD)
                what = f"tensor {name!r} has element type {kind}, which gdist does not store"
                refused.append(what + _place(tensor, payload))
    if refused:
        raise UnsupportedError(
            listed(refused),
            hint="fetch, plan and view take others with --select; reshard leaves files out with --ignore",
        )
    _check_groups(by_name.keys())


def _place(tensor: StoredTensor, payload: Payload) -> str:
    parts = (part for factor in tensor.sources for part in factor.tensor.parts)
    numbers = [segment.file for part in parts for segment in payload.segments(part.extent)]
    return f", in {payload.files[numbers[0]].path!r}" if numbers else ""


def check_names(names: Iterable[str], hint: str = "leave the files of these out with --ignore") -> None:
    """That names are allowed and that none is also a group of others (`a` and `a/b`).

    Names that differ only in case are allowed: they are different names to every model and to the file
    systems and buckets of a cluster.

    Raises:
        UnsupportedError: naming up to `LISTED` of those that are not allowed, or are array and group at once.
    """
    names = set(names)
    refused = []
    for name in sorted(names):
        try:
            check_name(name)
        except UnsupportedError as error:
            refused.append(error.message)
    if refused:
        raise UnsupportedError(listed(refused), hint=hint)
    _check_groups(names)


def _check_groups(names: Set[str]) -> None:
    groups = {name[:i] for name in names for i, char in enumerate(name) if char == "/"}
    if names & groups:
        both = [f"{name!r}" for name in sorted(names & groups)]
        raise UnsupportedError(
            f"names are those of a tensor and of a group of tensors: {listed(both)}",
            hint="a store has no place for both: leave the files of one out with --ignore",
        )


def tensors_of(name: str, arrays: Sequence[FoundArray], offset: int, path: str) -> tuple[StoredTensor, ...]:
    """The tensor of one array, or the two of a quantised pair, of a file that starts at payload `offset`.

    Raises:
        CorruptError: when the arrays are neither one nor a pair that fits; names `path`.
    """
    halves = {array.role: array for array in arrays}
    if len(arrays) == 1 and "" in halves:
        return (_stored(name, arrays[0], offset, None),)
    if len(arrays) != 2 or set(halves) != {"weight", "scales"}:
        roles = ", ".join(array.role or "plain" for array in arrays)
        raise CorruptError(f"{path!r} holds {len(arrays)} arrays for {name!r} ({roles}), not one or a pair")
    weight, scales = halves["weight"], halves["scales"]
    groups = _groups(weight.shape, scales.shape)
    if groups is None:
        raise CorruptError(
            f"scales {list(scales.shape)} do not fit weight {list(weight.shape)} of {name!r} in {path!r}",
            weight=weight.shape,
            scales=scales.shape,
        )
    dimension = len(weight.shape) - 2
    return tuple(
        _stored(f"{name}.{half.role}", half, offset, Quantisation(name, half.role, groups, dimension))
        for half in (weight, scales)
    )


def _groups(weight: tuple[int, ...], scales: tuple[int, ...]) -> int | None:
    """How many groups of rows (second last dimension) have a scale each; None when the shapes do not fit."""
    if len(weight) != len(scales) or len(weight) < 2:
        return None
    groups = scales[-2]
    if weight[:-2] != scales[:-2] or weight[-1] != scales[-1] or not groups or weight[-2] % groups:
        return None
    return groups


def _stored(name: str, array: FoundArray, offset: int, quantisation: Quantisation | None) -> StoredTensor:
    spec = TensorSpec(name, array.shape, array.dtype, array.encoding)
    parts = tuple(Part(part.extent.shift(offset), part.box, part.order) for part in array.parts)
    return StoredTensor(spec, parts, quantisation)


def listed(items: Iterable[str]) -> str:
    """Up to `LISTED` of the items for a message, and how many more there are."""
    items = list(items)
    more = f", and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more
