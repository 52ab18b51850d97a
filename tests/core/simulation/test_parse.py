"""A cluster in people's words."""

from __future__ import annotations

import math

import pytest

from gdist.core.simulation.model import Costs, Setting
from gdist.core.simulation.parse import parse_costs, parse_fail, parse_hosts, parse_setting, parse_slow
from gdist.errors import RequestError


def test_what_is_not_given_is_no_limit_or_the_usual() -> None:
    assert parse_setting(8, wan="10Gb/s") == Setting(8, 1.25e9)
    asked = parse_setting(
        8,
        wan=1e9,
        lan="100Gb/s",
        host_wan="1GB/s",
        disk="3GB/s",
        gateways="0-2,7",
        cores=4,
        cpu=["place=0.5"],
        latency="1ms",
        round="2s",
        pulls=3,
        sample=5,
        seed=6,
    )
    assert (asked.lan, asked.host_wan, asked.disk, asked.gateways) == (12.5e9, 1e9, 3e9, (0, 1, 2, 7))
    assert (asked.cores, asked.latency, asked.round, asked.pulls) == (4, 0.001, 2.0, 3)
    assert (asked.sample, asked.seed, asked.costs) == (5, 6, Costs(place=0.5))
    assert parse_setting(8, wan=1, gateways=[3]).gateways == (3,)


@pytest.mark.parametrize(
    ("text", "hosts"), [("all", None), ("0", (0,)), ("0-3", (0, 1, 2, 3)), (" 5 , 1-2,2", (1, 2, 5))]
)
def test_hosts_are_numbers_and_ranges(text: str, hosts: tuple[int, ...] | None) -> None:
    assert parse_hosts(text) == hosts


def test_costs_by_name() -> None:
    assert parse_costs(()) == Costs()
    assert parse_costs("hash=2") == parse_costs({"hash": 2}) == Costs(hash=2)
    assert parse_costs(["hash = 2", "serve=.1"]) == Costs(hash=2, serve=0.1)


def test_faults() -> None:
    assert parse_slow(["2@0.05", "1@1"]) == ((2, 0.05), (1, 1.0))
    assert parse_fail("3@1m30s") == ((3, 90.0),)
    assert parse_fail(()) == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: parse_setting(0, wan=1), "hosts is 0"),
        (lambda: parse_setting(8, wan=0), "wan 0 is no rate"),
        (lambda: parse_setting(8, wan=1, lan="fast"), "lan 'fast' is not a rate"),
        (lambda: parse_setting(8, wan=1, gateways="8"), "of 8 hosts there is no number 8"),
        (lambda: parse_setting(8, wan=1, gateways=()), "nobody may use the outside"),
        (lambda: parse_setting(8, wan=1, pulls=0), "pulls is 0"),
        (lambda: parse_setting(8, wan=1, latency="x"), "latency 'x' is not a duration"),
        (lambda: parse_hosts("3-1"), "are no numbers"),
        (lambda: parse_hosts(""), "are no numbers"),
        (lambda: parse_costs("sing=1"), "'sing' is none of receive, hash"),
        (lambda: parse_costs("hash"), "'hash=' is no number"),
        (lambda: parse_costs({"hash": math.nan}), "'hash' is nan"),
        (lambda: parse_slow("2"), "is not NUMBER@SLOW"),
        (lambda: parse_slow("2@0"), "slow hosts have '0'"),
        (lambda: parse_slow("2@1.5"), "slow hosts have '1.5'"),
        (lambda: parse_fail("x@1s"), "is not NUMBER@FAIL"),
        (lambda: parse_fail("1@soon"), "fail 'soon' is not a duration"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object, said: str) -> None:
    assert callable(wrong)
    with pytest.raises(RequestError, match=said):
        wrong()


def test_a_cluster_whose_gateways_all_fail_is_refused() -> None:
    with pytest.raises(RequestError, match="every host that may use the outside fails"):
        Setting(3, 1.0, gateways=(1,), fails=((1, 5.0),))
    assert math.isinf(Setting(3, 1.0, gateways=(1,)).lan)
