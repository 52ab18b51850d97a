"""The lines of a resume journal, as values.

JSON lines beside the store: first the plan they belong to, then facts, each appended and synced after what
it says is durable on disk. The journal is the only record of progress; a torn last line (the machine died
while it was written) says nothing and is dropped.

    {"gdist_journal": 1, "plan": "<digest>"}
    {"pieces": [[0, 12], [40, 41]]}                      placed in shards not yet whole; half-open ranges
    {"shard": ["layer.0.w", [0, 1]], "digests": [...]}   whole, synced, renamed
    {"file": "ckpt-0/tensor00000_000"}                   its headers agree with the manifest
    {"asset": ["ckpt-0/README.md", 312, "<digest>"]}      kept under assets/
    {"rest": ["ckpt-0/tensor00000_000", "<base64>"]}      all its bytes that are in no tensor
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gdist.errors import ResumeError

VERSION = 1


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Proof that a shard was written: BLAKE3 digests of its inner chunks, hex, in C order of the chunks."""

    tensor: str
    index: tuple[int, ...]
    digests: tuple[str, ...]

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """What names the shard in a store."""
        return self.tensor, self.index


@dataclass(slots=True)
class Progress:
    """What a journal says in sum."""

    plan: str
    shards: dict[tuple[str, tuple[int, ...]], ShardRecord] = field(default_factory=dict)
    pieces: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    assets: dict[str, tuple[int, str]] = field(default_factory=dict)
    rest: dict[str, bytes] = field(default_factory=dict)


def kind_of(job: str) -> str:
    """What a job is called in messages: `fetch` or `reshard`."""
    return "reshard" if job.startswith("reshard ") else "fetch"


def header_line(plan: str) -> str:
    """The first line of the journal of a plan."""
    return json.dumps({"gdist_journal": VERSION, "plan": plan})


def shard_line(record: ShardRecord) -> str:
    """The line of one whole shard."""
    return json.dumps({"shard": [record.tensor, record.index], "digests": record.digests})


def pieces_line(pieces: Iterable[int]) -> str:
    """The line of some placed pieces."""
    return json.dumps({"pieces": list(_ranges(pieces))})


def file_line(path: str) -> str:
    """The line of a payload file whose headers were checked."""
    return json.dumps({"file": path})


def asset_line(path: str, nbytes: int, digest: str) -> str:
    """The line of a file kept under `assets/`."""
    return json.dumps({"asset": [path, nbytes, digest]})


def rest_line(path: str, data: bytes) -> str:
    """The line of what a payload file holds beside tensors."""
    return json.dumps({"rest": [path, base64.b64encode(data).decode()]})


def _ranges(pieces: Iterable[int]) -> Iterator[list[int]]:
    current: list[int] = []
    for piece in sorted(pieces):
        if current and piece == current[1]:
            current[1] += 1
            continue
        if current:
            yield current
        current = [piece, piece + 1]
    if current:
        yield current


def parse_journal(data: bytes, progress: Progress | None = None) -> tuple[Progress | None, int]:
    """What a journal says, and how many of its bytes are whole lines; None for a journal without its header.

    With `progress`, `data` are later lines of the journal that it came from; what they say is added to it.

    Raises:
        ResumeError: when a whole line is not one of ours.
    """
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            if progress is None:
                if entry["gdist_journal"] != VERSION:
                    raise ResumeError(
                        f"the journal is of version {entry['gdist_journal']}, this gdist writes {VERSION}",
                        hint="finish with the gdist that began, or delete the destination",
                    )
                progress = Progress(str(entry["plan"]))
            elif "shard" in entry:
                name, index = entry["shard"]
                record = ShardRecord(str(name), tuple(map(int, index)), tuple(map(str, entry["digests"])))
                progress.shards[record.key] = record
            elif "pieces" in entry:
                for start, stop in entry["pieces"]:
                    progress.pieces.update(range(int(start), int(stop)))
            elif "asset" in entry:
                path, nbytes, digest = entry["asset"]
                progress.assets[str(path)] = (int(nbytes), str(digest))
            elif "rest" in entry:
                path, text = entry["rest"]
                progress.rest[str(path)] = base64.b64decode(text, validate=True)
            else:
                progress.files.add(str(entry["file"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"line {number} of the journal cannot be read", hint="delete the destination and fetch again"
            ) from error
    return progress, whole
