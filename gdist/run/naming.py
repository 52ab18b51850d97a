"""Which profile names and joins what was found in the files of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from gdist.core.joins import JoinProfile, join_files
from gdist.core.profile import FileArrays, Naming, listed, name_tensors
from gdist.errors import CorruptError, GdistError
from gdist.profile_files import check_profile, join_profiles, profile_named
from gdist.run.documents import FindDocuments

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def name_arrays(files: Sequence[FileArrays], profile: str | None, find_documents: FindDocuments) -> Naming:
    """Named tensors by a profile, or as the files name them.

    Without a `profile`, files whose keys repeat are joined by the first profile that they fit.
    `find_documents` gives the small files whose last part of the path is among the names, by path.

    Raises:
        RequestError: for an unknown profile.
        UnsupportedError, CorruptError: when the files do not fit the profile, or their names do not fit.
    """
    files = [file for file in files if file.arrays]
    _check_splits(files)
    if profile is not None:
        check_profile(profile)
        joined = profile_named(profile)
        if joined:
            return _joined(joined, files, _documents([joined], find_documents))
    elif _repeat(files):
        candidates = [profile for profile in join_profiles() if profile.may_be(files)]
        documents = _documents(candidates, find_documents)  # once: each may be a piece to fetch
        whys = []
        for candidate in candidates:
            try:
                return _joined(candidate, files, documents)
            except GdistError as error:
                whys.append(f"{candidate.name}: {error.message[:300]}")
        try:
            return name_tensors(files)
        except CorruptError as error:
            more = f"; no profile joins them ({'; '.join(whys)})" if whys else ""
            raise CorruptError(error.message + more, hint=error.hint, **error.facts) from error
    return name_tensors(files, profile)


def _check_splits(files: Sequence[FileArrays]) -> None:
    """That no file of a model in several is missing: `m-00002-of-00003.gguf`, as llama.cpp names them.

    Raises:
        CorruptError: naming those that are missing.
    """
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for file in files:
        if split := _SPLIT.fullmatch(file.path):
            found[split[1], split[3]].add(int(split[2]))
    missing = [
        f"{stem}-{number:05}-of-{count}.gguf"
        for (stem, count), numbers in found.items()
        for number in range(1, int(count) + 1)
        if number not in numbers
    ]
    if missing:
        raise CorruptError(
            f"the model is in several files, of which {len(missing)} are missing: {listed(missing)}",
            hint="get them too, or leave out the others with --ignore: a part of a model is none",
            missing=tuple(missing),
        )


def _documents(profiles: Iterable[JoinProfile], find_documents: FindDocuments) -> Mapping[str, bytes]:
    names = {profile.document for profile in profiles if profile.document}
    return find_documents(names) if names else {}


def _joined(profile: JoinProfile, files: Sequence[FileArrays], documents: Mapping[str, bytes]) -> Naming:
    return Naming(join_files(profile, files, documents), profile.name, None)


def _repeat(files: Sequence[FileArrays]) -> bool:
    """True when two files have a name in common."""
    keys = Counter(key for file in files if file.keys_are_names for key in {a.key for a in file.arrays})
    return any(count > 1 for count in keys.values())
