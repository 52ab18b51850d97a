"""What may be wrong with a chunk of a shard, and many faults as one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gdist.core.box import Box
from gdist.core.store_manifest import StoreTensor
from gdist.errors import CorruptError, GdistError, TransferError

# A fetch looks only for shards that are missing or cut short: of other damage it says that all is complete.
MEND = (
    "gdist verify --repair mends a store in a directory; delete one that lies elsewhere, and fetch it again"
)
MAKE_AGAIN = "it was converted, so no piece has it: gdist verify says what to delete and to run again"
SHOWN = 8  # faults a message spells out, and hosts a hint names; the rest are in its `faults`


@dataclass(frozen=True, slots=True)
class ChunkFault:
    """An inner chunk whose bytes differ from its digest, counted from the first of its shard, at `path`.

    In a view `path` is a file of the payload, and `offset` where the chunk begins in it.
    """

    tensor: StoreTensor
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    path: str
    offset: int | None = None

    @property
    def box(self) -> Box:
        """Where the chunk lies in the tensor."""
        grid = self.tensor.grid
        start = tuple(
            s * size + c * step
            for s, size, c, step in zip(self.shard, grid.shard, self.chunk, grid.chunk, strict=True)
        )
        return Box(start, tuple(a + c for a, c in zip(start, grid.chunk, strict=True)))

    def error(self) -> CorruptError:
        """The fault as an error."""
        where = ", ".join(f"{a}:{b}" for a, b in zip(self.box.start, self.box.stop, strict=True))
        what = f"chunk {self.chunk} of shard {self.path}"
        if self.offset is not None:
            what = f"chunk {self.shard} at byte {self.offset} of {self.path}"
        return CorruptError(
            f"{what} differs from its digest: {self.tensor.name!r}[{where}]",
            hint=MAKE_AGAIN if self.tensor.stored else MEND,
            tensor=self.tensor.name,
            shard=self.shard,
            chunk=self.chunk,
            box=self.box,
            path=self.path,
            offset=self.offset,
        )


def copy_hint(manifests: Sequence[str]) -> str:
    """What to do where shards are other hosts', whose manifests have these names."""
    if len(manifests) == 1:
        return f"copy that host's directory, with {manifests[0]}, into this one, or load on that host"
    more = f" and {len(manifests) - SHOWN} more" if len(manifests) > SHOWN else ""
    return f"copy those hosts' directories, with {', '.join(manifests[:SHOWN])}{more}, into this one"


def raise_faults(faults: Sequence[GdistError]) -> None:
    """Raises one error for all faults, of the first's class: damage, then what stays, then what may pass.

    Raises:
        CorruptError: when any of them is one.
        RequestError: else, when any is one, or of a class below it.
        TransferError: when trying again may help with all of them.
    """
    if not faults:
        return
    ordered = sorted(faults, key=lambda f: isinstance(f, TransferError) - isinstance(f, CorruptError))
    if len(ordered) == 1:
        raise ordered[0]
    messages = [fault.message for fault in ordered]
    text = "; ".join(messages[:SHOWN])
    if len(messages) > SHOWN:
        text += f"; and {len(messages) - SHOWN} more"
    facts = {**ordered[0].facts, "faults": tuple(messages)}
    absent = dict.fromkeys(str(fault.manifests) for fault in ordered if "manifests" in fault.facts)
    hint = copy_hint([*absent]) if "manifests" in facts else ordered[0].hint
    raise type(ordered[0])(text, hint=hint, **facts)
