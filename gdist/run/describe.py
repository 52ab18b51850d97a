"""What a manifest says of files on disk: each array, where it lies, its name and its digest."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from gdist.core.payload import PayloadFile
from gdist.core.source_files import SourceArray, SourceFile
from gdist.core.source_manifest import SourceManifest
from gdist.core.tensor import FoundArray, Part, StoredTensor
from gdist.errors import CorruptError, GdistError, InterruptedRun, translate
from gdist.run.survey import Survey, scan_file

WINDOW_BYTES = 8 * 2**20  # read and hashed at once, by each of the threads


@dataclass(frozen=True, slots=True)
class Described:
    """Files of a release as a manifest lists them; `whole` is false where arrays had to be left out.

    That is so where tensors are joined of arrays of several files: the manifest then has lengths and digests
    of the files, and a fetch reads their headers.
    """

    files: tuple[SourceFile, ...]
    whole: bool


class Digester:
    """Hashes parts of files; `tell` is called with the bytes of each window, from any thread."""

    def __init__(
        self, tell: Callable[[int], None] = lambda nbytes: None, stop: threading.Event | None = None
    ):
        self._tell, self._stop = tell, stop

    def array(self, path: Path, array: FoundArray) -> str:
        """BLAKE3 of an array's bytes as they lie in a file, run after run.

        Raises:
            CorruptError: the file ends before.
            FilesystemError: it cannot be read.
        """
        hasher = blake3()
        self.feed(path, [(part.extent.start, part.extent.length) for part in array.parts], hasher.update)
        return hasher.hexdigest()

    def feed(
        self, path: Path, ranges: Sequence[tuple[int, int]], update: Callable[[memoryview], object]
    ) -> None:
        """Gives `update` some ranges of a file, (offset, length) each, in their order."""
        buffer = memoryview(bytearray(min(WINDOW_BYTES, max((length for _, length in ranges), default=0))))
        try:
            with path.open("rb", buffering=0) as file:
                for offset, length in ranges:
                    file.seek(offset)
                    while length:
                        if self._stop is not None and self._stop.is_set():
                            raise InterruptedRun("the run was asked to stop", hint="run it again")
                        count = file.readinto(buffer[: min(length, len(buffer))])
                        if not count:
                            raise CorruptError(f"{path} ends at {file.tell()}, {length} bytes too early")
                        update(buffer[:count])
                        self._tell(count)
                        length -= count
        except OSError as error:
            raise translate(error, f"reading {path}") from error


def describe(
    paths: Mapping[str, Path], found: Survey, digester: Digester, skip: Collection[str] = ()
) -> Described:
    """What a manifest says of the files of a payload, by where they lie; those in `skip` are not listed.

    Raises:
        CorruptError, FilesystemError: a file cannot be read.
    """
    files = [file for file in found.payload.files if file.path not in skip]
    listed = _listed(paths, files, found.tensors)
    if listed is None or not _same(listed, found):
        plain = [SourceFile(file.path, file.length, (), known=False) for file in files]
        holders = {s.file for t in found.tensors for p in t.parts for s in found.payload.segments(p.extent)}
        held = {found.payload.files[number].path for number in holders}
        plain = [file if file.path in held else replace(file, known=True) for file in plain]
        with ThreadPoolExecutor(os.cpu_count() or 1, "gdist-hash") as pool:
            hashed = pool.map(lambda file: _hashed(paths[file.path], file, digester), plain)
            return Described(tuple(hashed), whole=False)
    with ThreadPoolExecutor(os.cpu_count() or 1, "gdist-hash") as pool:
        jobs = [
            [pool.submit(digester.array, paths[file.path], item.array) for item in file.arrays]
            for file in listed
        ]
        try:
            digests = [[job.result() for job in row] for row in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Described(
        tuple(
            replace(file, arrays=tuple(replace(a, digest=d) for a, d in zip(file.arrays, row, strict=True)))
            for file, row in zip(listed, digests, strict=True)
        ),
        whole=True,
    )


def _hashed(path: Path, file: SourceFile, digester: Digester) -> SourceFile:
    hasher = blake3()
    digester.feed(path, [(0, file.nbytes or 0)], hasher.update)
    return replace(file, digests=(("blake3", hasher.hexdigest()),))


def _listed(
    paths: Mapping[str, Path], files: Sequence[PayloadFile], tensors: Sequence[StoredTensor]
) -> tuple[SourceFile, ...] | None:
    """The files with the arrays found in them, named as the tensors are; None where an array is not one, or
    lies in an archive.
    """
    names: defaultdict[tuple[object, ...], list[StoredTensor]] = defaultdict(list)
    for tensor in tensors:
        role = tensor.quantisation.role if tensor.quantisation else ""
        names[tensor.parts, tensor.spec.shape, tensor.spec.dtype, role].append(tensor)
    listed = []
    for file in files:
        arrays = []
        report = scan_file(paths[file.path])
        if report.members:
            return None
        for array in report.arrays:
            place = (_shifted(array.parts, file.offset), array.shape, array.dtype, array.role)
            same = names[place]  # several where tensors are tied: which of them is which is of no matter
            if not same:
                return None
            arrays.append(SourceArray(same.pop(0).rule_name, array))
        listed.append(SourceFile(file.path, file.length, tuple(arrays)))
    return tuple(listed)


def _shifted(parts: Sequence[Part], offset: int) -> tuple[Part, ...]:
    return tuple(Part(part.extent.shift(offset), part.box, part.order) for part in parts)


def _same(files: tuple[SourceFile, ...], found: Survey) -> bool:
    """True where a manifest of these files gives the tensors that were found."""
    try:
        naming = SourceManifest("same", "", files).to_tensors(found.payload)
    except GdistError:
        return False
    return {tensor.spec.name: tensor for tensor in naming.tensors} == {
        tensor.spec.name: tensor for tensor in found.tensors
    }
