"""A release is simulated without a network, as the cluster that was asked for."""

from __future__ import annotations

import pytest

import gdist
from gdist.core.mesh import parse_mesh
from gdist.core.rules import parse_rules
from gdist.core.simulation.model import Setting
from gdist.errors import RequestError
from gdist.run.simulate import SimulateOptions, simulate


def test_grok_1_on_eight_hosts_is_as_soon_there_as_the_plan_says_it_can_be() -> None:
    plan = gdist.plan("grok-1", mesh="8x8", hosts=8, wan="10Gb/s", lan="25Gb/s")
    report = gdist.simulate("grok-1", mesh="8x8", hosts=8, wan="10Gb/s", lan="25Gb/s")
    outcome = report.outcome
    assert report.exact and report.groups == 8 and report.piece_length_assumed
    assert report.needed == sum(cost.bytes_wanted for cost in plan.hosts)
    assert plan.bound is not None
    assert outcome.bound.terms == plan.bound.terms
    assert outcome.union == plan.union and outcome.ratio == pytest.approx(1)
    assert 0.95 < outcome.share <= 1
    assert 0.8 < outcome.lan / plan.exchanges[0].lan < 1.1, "who brings in what is nearly as planned"
    assert outcome.first_seconds < 0.1 * outcome.seconds


def test_a_choice_of_tensors_is_all_that_comes_in() -> None:
    chosen = gdist.simulate("grok-1", mesh="8x8", hosts=8, wan="10Gb/s", select="decoder_layer_0\\.")
    assert chosen.outcome.union == pytest.approx(gdist.plan("grok-1", select="decoder_layer_0\\.").union)
    assert chosen.needed < chosen.nbytes / 50
    other = gdist.simulate(
        "grok-1", mesh="8x8", hosts=8, wan="10Gb/s", select="decoder_layer_0\\.", piece_length="4MiB"
    )
    assert other.piece_length == 4 * 2**20 and other.pieces > 3 * chosen.pieces


def test_slow_and_failing_hosts_are_chosen_by_the_seed() -> None:
    def chosen(seed: int) -> tuple[object, object]:
        rules = parse_rules({"rules": [[".*", []]]})
        from gdist.run.survey import SurveyOptions

        options = SimulateOptions(
            Setting(100, 1e9, seed=seed),
            parse_mesh("100"),
            rules,
            slow=((3, 0.5),),
            fail=((2, 1.0), (1, 2.0)),
            survey=SurveyOptions(select=("layer_0.router",)),
        )
        setting = simulate("grok-1", options).setting
        return setting.slow, setting.fails

    slow, fails = chosen(0)
    assert chosen(0) == (slow, fails) != chosen(1)
    assert isinstance(slow, tuple) and isinstance(fails, tuple)
    assert [share for _, share in slow] == [0.5] * 3 and [when for _, when in fails] == [1.0, 1.0, 2.0]
    assert len({host for host, _ in (*slow, *fails)}) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hosts": 3}, "3 hosts do not divide"),
        ({"hosts": 8, "slow": "9@0.5"}, "of 8 hosts 9 cannot be slow"),
        ({"hosts": 8, "fail": ["4@1s", "5@2s"]}, "of 8 hosts 9 cannot be slow or fail"),
        ({"hosts": 8, "fail": "8@1s"}, "every host that may use the outside fails"),
        ({"hosts": 8, "gateways": "8"}, "there is no number 8"),
        ({"hosts": 8, "lan": "fast"}, "is not a rate"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        gdist.simulate("grok-1", mesh="8x8", wan="1Gb/s", **options)  # type: ignore[arg-type]
