"""Rounds between hosts that are threads: everything lands as it was sent, or all hosts say the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.box import Box, tiles_of
from gdist.core.parcels import Deal, Item, Kind, Round, deal, rounds_of
from gdist.errors import CorruptError, SpaceError, TransferError, Unreachable
from gdist.stores.agreement import Words, agree, gather_all, is_agreed
from gdist.stores.buffers import Array, Bytes
from gdist.stores.rounds import Carrier, Rounds, parcel_limit
from gdist.testing.meeting import Meeting

SHAPE = (24, 40)
DTYPES = ("u1", "<u2", "<f4", "<c16")


def scene(hosts: int, wanted: str = "columns", seed: int = 0) -> list[tuple[Array, Deal]]:
    """Tensors that lie in rows, and are wanted in columns, whole by all, or one half by half of the hosts."""
    rng = np.random.default_rng(seed)
    found = []
    for dtype in DTYPES:
        kind = np.dtype(dtype)
        array = rng.integers(0, 256, SHAPE[0] * SHAPE[1] * kind.itemsize, np.uint8).view(kind).reshape(SHAPE)
        rows, width = SHAPE[0] // hosts, SHAPE[1] // hosts
        holders = {index: [index[0]] for index, _ in tiles_of(Box.whole(SHAPE), (rows, SHAPE[1]))}
        wants = [[_wanted(wanted, n, hosts, width)] for n in range(hosts)]
        found.append((array, deal((rows, SHAPE[1]), holders, wants, kind.itemsize, 1000)))
    return found


def _wanted(how: str, host: int, hosts: int, width: int) -> Box:
    match how:
        case "columns":
            return Box((0, host * width), (SHAPE[0], (host + 1) * width))
        case "halves":
            half = SHAPE[0] // 2
            return Box((host * 2 // hosts * half, 0), ((host * 2 // hosts + 1) * half, SHAPE[1]))
    return Box.whole(SHAPE)


class Host:
    """One host of a scene: gives what it has, keeps what it gets."""

    def __init__(self, carrier: Carrier, tensors: list[tuple[Array, Deal]], **options: Any):
        self.tensors, self.carrier = tensors, carrier
        self.got = [np.zeros_like(array) for array, _ in tensors]
        self.mask = [np.zeros(array.shape, int) for array, _ in tensors]
        self.lock = threading.Lock()
        sizes = [array.dtype.itemsize for array, _ in tensors]
        self.rounds = Rounds(carrier, sizes, self.view, self.place, **options)

    def view(self, number: int, box: Box) -> Array:
        rows = SHAPE[0] // self.carrier.count
        assert box.start[0] // rows == (box.stop[0] - 1) // rows == self.carrier.index, "only what it has"
        return self.tensors[number][0][box.slices()]

    def place(self, number: int, item: Item, data: Bytes) -> None:
        with self.lock:
            into = self.got[number]
            into[item.box.slices()] = data.view(into.dtype).reshape(item.box.shape)
            self.mask[number][item.box.slices()] += 1

    def run(self, limit: int = 1000) -> None:
        numbered = list(enumerate(one for _, one in self.tensors))
        self.rounds.run(rounds_of(numbered, self.carrier.count, limit))

    def check(self) -> None:
        for number, (array, one) in enumerate(self.tensors):
            for item in one.own[self.carrier.index]:
                assert not self.mask[number][item.box.slices()].any()
                self.got[number][item.box.slices()] = array[item.box.slices()]
                self.mask[number][item.box.slices()] += 1
            assert self.mask[number].max() == 1
            wanted = self.mask[number] == 1
            assert self.got[number][wanted].tobytes() == array[wanted].tobytes()


@settings(max_examples=25)
@given(
    st.sampled_from([2, 4]),
    st.sampled_from(["columns", "whole", "halves"]),
    st.sampled_from([1000, 100_000]),
    st.integers(0, 99),
)
def test_everything_lands_as_it_was_sent(hosts: int, wanted: str, limit: int, seed: int) -> None:
    tensors = scene(hosts, wanted, seed)

    def one(carrier: Carrier) -> Host:
        host = Host(carrier, tensors)
        host.run(limit)
        host.check()
        return host

    results = Meeting(hosts).run(one)
    assert all(isinstance(result, Host) for result in results), results


def both(function: Callable[[Host], Any], kind: type[Exception], **options: Any) -> list[str]:
    """Runs a scene on two hosts, changed by a function; the messages, which have to be of one kind."""

    def one(carrier: Carrier) -> None:
        host = Host(carrier, scene(2), **options)
        function(host)
        host.run()

    results = Meeting(2).run(one)
    assert [type(result) for result in results] == [kind, kind], results
    return list(map(str, results))


def test_a_host_that_cannot_read_is_told_to_all() -> None:
    def breaks(host: Host) -> None:
        if host.carrier.index == 1:
            host.rounds._view = lambda number, box: (_ for _ in ()).throw(
                CorruptError("a bad disk", hint="sell")
            )

    assert both(breaks, CorruptError) == ["host 1 cannot move: a bad disk"] * 2


def test_a_host_that_cannot_write_is_told_to_all() -> None:
    def breaks(host: Host) -> None:
        def full(number: int, item: Item, data: Bytes) -> None:
            raise SpaceError(f"no space on {host.carrier.index}")

        host.rounds._place = full

    assert (
        both(breaks, SpaceError)
        == ["host 0 cannot move: no space on 0; host 1 cannot move: no space on 1"] * 2
    )


def test_a_bug_on_one_host_does_not_leave_the_others_waiting() -> None:
    def breaks(host: Host) -> None:
        if host.carrier.index == 0:
            host.rounds._landed = lambda one: [][1]  # type: ignore[misc]

    from gdist.errors import RequestError

    assert all("host 0 cannot move: IndexError" in said for said in both(breaks, RequestError))


class Noisy:
    """A carrier on whose way a bit flips."""

    def __init__(self, carrier: Carrier):
        self._carrier, self.index, self.count = carrier, carrier.index, carrier.count

    def gathered(self, row: bytes, length: int = 0) -> list[bytes]:
        return self._carrier.gathered(row, length)

    def start(self, one: Round, rows: Bytes) -> Callable[[], Bytes]:
        begun = self._carrier.start(one, rows)

        def flipped() -> Bytes:
            got = begun().copy()
            if self.index == 1:
                row, _ = next(one.receives(1))
                got[row, 100] ^= 4
            return got

        return flipped


def test_a_bit_that_flips_on_the_way_is_noticed() -> None:
    results = Meeting(2).run(lambda carrier: Host(Noisy(carrier), scene(2)).run())
    for result in results:
        assert isinstance(result, CorruptError) and is_agreed(result)
        assert "host 1 cannot move" in str(result) and "bytes from host 0 are not what it sent" in str(result)


def test_a_host_that_is_gone_ends_the_others_at_once() -> None:
    meeting = Meeting(3)

    def one(carrier: Carrier) -> None:
        if carrier.index == 2:
            meeting.leave()
            return
        Host(carrier, scene(3, "whole")).run()

    results = meeting.run(one)
    assert [type(result) for result in results] == [Unreachable, Unreachable, type(None)]


def test_notes_reach_all_between_rounds() -> None:
    heard: dict[int, list[list[bytes]]] = {0: [], 1: []}

    def one(carrier: Carrier) -> None:
        Host(
            carrier,
            scene(2),
            note=lambda: bytes([carrier.index, 9]),
            note_nbytes=2,
            heard=lambda notes: heard[carrier.index].append(notes),
        ).run()

    assert Meeting(2).run(one) == [None, None]
    assert heard[0] == heard[1] and len(heard[0]) > 2
    assert all(notes == [b"\0\x09", b"\x01\x09"] for notes in heard[0])


def test_what_is_gathered_may_be_of_any_length() -> None:
    rows = [b"", b"a" * 5000, b"\0\0"]
    assert Meeting(3).run(lambda carrier: gather_all(carrier.gathered, rows[carrier.index])) == [rows] * 3


def test_those_that_would_do_something_else_are_named() -> None:
    def one(carrier: Carrier) -> None:
        words = Words("host", "hosts", "move", "")
        told = {"the same": "x", "other things": "a" if carrier.index in (0, 2) else "b"}
        agree(carrier.gathered, range(carrier.count), None, told, words)

    said = {str(result) for result in Meeting(4).run(one)}
    assert said == {"hosts 1, 3 would move other things than host 0"}


def test_an_error_is_of_the_first_ones_kind() -> None:
    def one(carrier: Carrier) -> None:
        fault = [None, TransferError("slow", hint="wait"), SpaceError("full")][carrier.index]
        agree(carrier.gathered, range(carrier.count), fault, {}, Words())

    results = Meeting(3).run(one)
    assert [type(result) for result in results] == [TransferError] * 3
    assert {(str(r), r.hint) for r in results if isinstance(r, TransferError)} == {
        ("process 1 cannot load: slow; process 2 cannot load: full", "wait")
    }


@pytest.mark.parametrize("hosts", [2, 8, 64])
def test_rounds_take_the_memory_they_are_given(hosts: int) -> None:
    memory = 2**28
    limit = parcel_limit(memory, hosts)
    assert 2**24 < 2 * hosts * limit < memory  # two rounds, sent and received
    assert parcel_limit(0, hosts) >= 4096


def test_every_kind_of_round_has_run() -> None:
    """So that the tests above have seen them all."""
    kinds = set()
    for wanted in ("columns", "whole", "halves"):
        for number, (_, one) in enumerate(scene(4, wanted)):
            kinds |= {turn.kind for turn in rounds_of([(number, one)], 4, 1000)}
    assert kinds == set(Kind)
