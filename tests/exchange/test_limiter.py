"""A cap holds over any span of time, whoever asks and however much at once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdist.exchange.limiter import BURST_SECONDS, LEAST_STEP, MOST_STEP, URGENT_BYTES, Limiter


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@given(
    rate=st.floats(1e3, 1e9),
    steps=st.lists(st.tuples(st.integers(URGENT_BYTES + 1, 2**24), st.floats(0, 3)), min_size=1, max_size=30),
)
def test_no_span_of_time_has_more_than_the_rate_and_one_burst(
    rate: float, steps: list[tuple[int, float]]
) -> None:
    clock = Clock()
    limiter = Limiter(rate, clock=clock)
    gone: list[tuple[float, int]] = []
    for nbytes, pause in steps:
        clock.wait(pause)
        limiter.take(nbytes, clock.wait)
        gone.append((clock.now, nbytes))
    for first in range(len(gone)):
        for last in range(first, len(gone)):
            seconds = gone[last][0] - gone[first][0]
            sent = sum(nbytes for _, nbytes in gone[first + 1 : last + 1])  # what began before is not counted
            assert sent <= rate * (seconds + BURST_SECONDS) * 1.001 + 1


@given(
    rate=st.floats(1e3, 1e9), nbytes=st.lists(st.integers(URGENT_BYTES + 1, 2**22), min_size=1, max_size=30)
)
def test_who_always_has_something_to_send_gets_the_whole_rate(rate: float, nbytes: list[int]) -> None:
    clock = Clock()
    limiter = Limiter(rate, clock=clock)
    for size in nbytes:
        limiter.take(size, clock.wait)
    expected = max(0.0, sum(nbytes) / rate - BURST_SECONDS)
    assert clock.now - 100.0 == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_little_is_counted_and_does_not_wait() -> None:
    clock = Clock()
    limiter = Limiter(1000.0, clock=clock)
    limiter.reserve(10_000)
    limiter.take(URGENT_BYTES, clock.wait)
    assert clock.now == 100.0
    assert limiter.reserve(0) == pytest.approx((10_000 + URGENT_BYTES) / 1000 - BURST_SECONDS)


def test_turns_are_given_in_the_order_they_were_asked_for() -> None:
    limiter = Limiter(1000.0, clock=Clock())
    assert [limiter.reserve(1000) for _ in range(3)] == pytest.approx([0.75, 1.75, 2.75])


def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    limiter = Limiter(None, clock=clock)
    for _ in range(10):
        limiter.take(2**40, clock.wait)
    assert clock.now == 100.0


def test_a_new_rate_holds_from_now_on() -> None:
    clock = Clock()
    limiter = Limiter(1000.0, clock=clock)
    limiter.reserve(1_000_000)
    limiter.rate = 2000.0
    assert limiter.rate == 2000.0
    assert limiter.reserve(2000) == pytest.approx(1.0)  # what was promised at the old rate is forgotten
    limiter.rate = None
    assert limiter.reserve(2**40) == 0


@pytest.mark.parametrize(
    ("rate", "step"),
    [(None, MOST_STEP), (1e12, MOST_STEP), (1.0, LEAST_STEP), (2_000_000.0, 100_000)],
)
def test_steps_are_short_at_low_rates(rate: float | None, step: int) -> None:
    assert Limiter(rate).step == step


def test_threads_share_one_rate() -> None:
    limiter = Limiter(1e6, clock=Clock())
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        for _ in range(500):
            limiter.take(10_000, lambda _: None)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limiter.reserve(0) == pytest.approx(8 * 500 * 10_000 / 1e6 - BURST_SECONDS)
