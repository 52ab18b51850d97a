"""What hosts send each other so that each gets the boxes it wants of tensors that are spread over them.

A tensor's *shards* lie with some hosts, one or several each. A *parcel* is what one host sends to another in
one *round*: boxes, each of one shard and of one wanted box, one after the other. In a round every host may
send a parcel to every other, and all parcels have room for the same number of bytes, the *slot*; so a round
is one collective of a fixed shape, of a kind that is chosen by which parcels have anything in them:

    GATHER    each sends the same to all others       replicas                          all-gather
    ALL       about all to about all, all different   rows become columns               all-to-all
    PAIRS     some to some                            a mesh's subgroups, odd shapes    permutations

All hosts work out the same rounds from the same facts, so nobody has to be told. Who sends a shard that
several hold: the host itself that wants it, else the holders by turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from gdist.core.box import Box, row_parts, tiles_of
from gdist.core.layout import CACHE_LINE

HEADER_BYTES = CACHE_LINE  # of a parcel: the digest of what follows, and its length
FULL = 0.7  # parcels on average over the slot: below it a collective of all with all moves too much padding
ROUND_COST_BYTES = 2**18  # of a host: what a network moves while a round begins and ends, about a millisecond
LEAST_SLOT = 2**12

Index = tuple[int, ...]
Pair = tuple[int, int]  # sender, receiver


class Kind(Enum):
    """Who sends what to whom in a round."""

    GATHER = "gather"
    ALL = "all"
    PAIRS = "pairs"


@dataclass(frozen=True, slots=True)
class Item:
    """A box of a tensor on its way to a host, for the `target`-th of the boxes that the host wants."""

    box: Box
    target: int


@dataclass(frozen=True, slots=True)
class Deal:
    """How one tensor gets where it is wanted: `own` never leaves its host, `stages` are parcels by pair.

    A stage's parcels each fit into a slot. `absent` are shards that a host wants and none has.
    """

    own: tuple[tuple[Item, ...], ...]
    stages: tuple[Stage, ...]
    absent: tuple[tuple[int, Index], ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """Parcels of one tensor that travel in the same round.

    `alike`: each host sends the same to all others.
    """

    parcels: Mapping[Pair, tuple[Item, ...]]
    nbytes: Mapping[Pair, int]
    alike: bool

    def elements_for(self, receiver: int, hosts: int) -> int:
        """Elements that a host gets."""
        senders = range(hosts)
        return sum(item.box.size for s in senders for item in self.parcels.get((s, receiver), ()))


@dataclass(frozen=True, slots=True)
class Round:
    """One collective of `hosts`: stages of tensors, by their numbers, that share its parcels.

    What a host sends, and what it gets, are rows of `slot` bytes. `pairs` are those with anything to send;
    `hops` the distances, counted in hosts from sender to receiver and around, that occur among them.
    """

    hosts: int
    stages: tuple[tuple[int, Stage], ...]
    kind: Kind
    slot: int
    pairs: tuple[Pair, ...] = field(repr=False)
    hops: tuple[int, ...] = field(repr=False)

    def parcel(self, sender: int, receiver: int) -> Iterator[tuple[int, Item]]:
        """What one host sends to another, in order: the tensor's number, and a box of it."""
        for number, stage in self.stages:
            for item in stage.parcels.get((sender, receiver), ()):
                yield number, item

    @property
    def rows_sent(self) -> int:
        """Parcels that each host hands in: the same one for all, one for each host, or one for each hop."""
        return {Kind.GATHER: 1, Kind.ALL: self.hosts, Kind.PAIRS: len(self.hops)}[self.kind]

    @property
    def rows_received(self) -> int:
        """Parcels that each host gets: one of each host, or one for each hop; some hold nothing."""
        return len(self.hops) if self.kind is Kind.PAIRS else self.hosts

    def sends(self, host: int) -> Iterator[tuple[int, int]]:
        """The rows that a host has to fill, and for whom each is."""
        receivers = sorted(receiver for sender, receiver in self.pairs if sender == host)
        for receiver in receivers[:1] if self.kind is Kind.GATHER else receivers:
            yield self._row(receiver, receiver - host), receiver

    def receives(self, host: int) -> Iterator[tuple[int, int]]:
        """The rows with something for a host in them, and from whom each is."""
        for sender in sorted(sender for sender, receiver in self.pairs if receiver == host):
            row = sender if self.kind is Kind.GATHER else self._row(sender, host - sender)
            yield row, sender

    def pairs_at(self, hop: int) -> tuple[Pair, ...]:
        """The pairs that are so far apart; no host sends or gets twice among them."""
        return tuple(pair for pair in self.pairs if (pair[1] - pair[0]) % self.hosts == hop)

    def _row(self, other: int, hop: int) -> int:
        match self.kind:
            case Kind.GATHER:
                return 0
            case Kind.ALL:
                return other
            case Kind.PAIRS:
                return self.hops.index(hop % self.hosts)


def deal(
    shard: Sequence[int],
    holders: Mapping[Index, Sequence[int]],
    wants: Sequence[Sequence[Box]],
    itemsize: int,
    limit: int,
) -> Deal:
    """How a tensor gets where it is wanted.

    `shard` is the shape of its shards, `holders` says which hosts have each; `wants` are the boxes that each
    host wants, disjoint. `limit` is the room of a parcel in bytes; a parcel holds one element at least.
    """
    own: list[tuple[Item, ...]] = []
    sent: dict[Pair, list[Item]] = {}
    absent = []
    for receiver, boxes in enumerate(wants):
        kept = []
        for target, box in enumerate(boxes):
            for index, part in tiles_of(box, shard):
                having = holders.get(index, ())
                if receiver in having:
                    kept.append(Item(part, target))
                elif having:
                    sender = having[(receiver + sum(index)) % len(having)]
                    sent.setdefault((sender, receiver), []).append(Item(part, target))
                else:
                    absent.append((receiver, index))
        own.append(tuple(kept))
    return Deal(tuple(own), tuple(_stages(sent, itemsize, limit, len(wants))), tuple(absent))


def _stages(sent: Mapping[Pair, Sequence[Item]], itemsize: int, limit: int, hosts: int) -> Iterator[Stage]:
    totals = {pair: sum(padded(item.box, itemsize) for item in items) for pair, items in sent.items()}
    count = max((-(-total // limit) for total in totals.values()), default=0)
    # As large in every stage: rounds of all sizes would be other programs.
    rooms = {pair: min(-(-total // count) + CACHE_LINE, limit) for pair, total in totals.items()}
    bins = {pair: list(_bins(items, itemsize, rooms[pair])) for pair, items in sent.items()}
    for number in range(max(map(len, bins.values()), default=0)):
        parcels = {pair: of_pair[number] for pair, of_pair in bins.items() if number < len(of_pair)}
        nbytes = {pair: sum(padded(item.box, itemsize) for item in items) for pair, items in parcels.items()}
        yield Stage(parcels, nbytes, _alike(parcels, hosts))


def _bins(items: Iterable[Item], itemsize: int, limit: int) -> Iterator[tuple[Item, ...]]:
    """Items, cut into row blocks where they are too large, in as few parcels as their order allows."""
    current: list[Item] = []
    room = limit
    for item in items:
        for block in row_parts(item.box, itemsize, limit):
            nbytes = padded(block, itemsize)
            if current and nbytes > room:
                yield tuple(current)
                current, room = [], limit
            current.append(Item(block, item.target))
            room -= nbytes
    if current:
        yield tuple(current)


def padded(box: Box, itemsize: int) -> int:
    """Bytes that a box takes in a parcel: so many that the next one is aligned."""
    return -(-box.size * itemsize // CACHE_LINE) * CACHE_LINE


def _alike(parcels: Mapping[Pair, tuple[Item, ...]], hosts: int) -> bool:
    """True when every host sends just the same boxes to all others, or nothing."""
    by_sender: dict[int, set[tuple[Box, ...]]] = {}
    counts: dict[int, int] = {}
    for (sender, _), items in parcels.items():
        by_sender.setdefault(sender, set()).add(tuple(item.box for item in items))
        counts[sender] = counts.get(sender, 0) + 1
    return all(len(boxes) == 1 for boxes in by_sender.values()) and set(counts.values()) == {hosts - 1}


def rounds_of(tensors: Iterable[tuple[int, Deal]], hosts: int, limit: int) -> Iterator[Round]:
    """The rounds that bring tensors, by their numbers and in this order, to where they are wanted.

    Stages share a round where they fit into parcels of `limit` bytes together, and where the padding that
    comes of it costs less than another round.
    """
    stages: list[tuple[int, Stage]] = []
    nbytes: dict[Pair, int] = {}
    cost = 0
    for number, one in tensors:
        for stage in one.stages:
            merged = dict(nbytes)
            for pair, more in stage.nbytes.items():
                merged[pair] = merged.get(pair, 0) + more
            together = _cost(merged, hosts)
            apart = cost + _cost(stage.nbytes, hosts) + ROUND_COST_BYTES * hosts
            if stages and (max(merged.values()) > limit or together > apart):
                yield _round(stages, nbytes, hosts)
                stages, merged, together = [], dict(stage.nbytes), _cost(stage.nbytes, hosts)
            stages.append((number, stage))
            nbytes, cost = merged, together
    if stages:
        yield _round(stages, nbytes, hosts)


def _cost(nbytes: Mapping[Pair, int], hosts: int) -> int:
    """Bytes that a round of such parcels moves, padding included."""
    most = max(nbytes.values())
    return most * (hosts * (hosts - 1) if _is_full(nbytes, hosts) else len(nbytes))


def _is_full(nbytes: Mapping[Pair, int], hosts: int) -> bool:
    return sum(nbytes.values()) >= FULL * max(nbytes.values()) * hosts * (hosts - 1)


def _round(stages: Sequence[tuple[int, Stage]], nbytes: Mapping[Pair, int], hosts: int) -> Round:
    kind = Kind.PAIRS
    if _is_full(nbytes, hosts):
        kind = Kind.GATHER if all(stage.alike for _, stage in stages) else Kind.ALL
    hops = sorted({(receiver - sender) % hosts for sender, receiver in nbytes})
    slot = slot_for(HEADER_BYTES + max(nbytes.values()))
    return Round(hosts, tuple(stages), kind, slot, tuple(sorted(nbytes)), tuple(hops))


def slot_for(nbytes: int) -> int:
    """A slot for so many bytes: at most a sixteenth larger, so that few programs serve all rounds."""
    step = max(LEAST_SLOT, 1 << max(nbytes.bit_length() - 5, 0))
    return -(-nbytes // step) * step


def wire_nbytes(one: Round, host: int) -> int:
    """Bytes of a round that arrive at a host, padding included."""
    if one.kind is Kind.PAIRS:
        return one.slot * sum(receiver == host for _, receiver in one.pairs)
    return one.slot * (one.hosts - 1)


def sent_nbytes(one: Round, host: int) -> int:
    """Bytes of a round that leave a host, padding included; of what all get it passes on what it takes."""
    if one.kind is Kind.PAIRS:
        return one.slot * sum(sender == host for sender, _ in one.pairs)
    return wire_nbytes(one, host)
