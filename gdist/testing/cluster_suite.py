"""The contract of schedulers: what `gdist.clusters` must find in the environment of every rank of a job.

    SAMPLE = Scheduler("slurm", ranks=my_environments, needed=("SLURM_NODEID", ...))

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_scheduler(check): check(SAMPLE)

`ranks(hosts, each, job)` gives the environment of every rank of a job on `hosts` hosts with `each` ranks on
each, as the scheduler itself sets them; a scheduler that starts one process a host may refuse other numbers
by giving none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gdist.clusters import detect
from gdist.clusters.membership import Membership
from gdist.core.mesh import HostGroup
from gdist.errors import RequestError

SIZES = ((1, 1), (2, 1), (4, 1), (12, 1), (3, 4), (2, 8))  # hosts, ranks on each


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a job: its environment, its host's name, and which host and rank it must find."""

    environ: Mapping[str, str]
    hostname: str
    index: int
    local_rank: int


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Jobs of one scheduler, and what can be known of them.

    `needed` are the variables without which it must not guess. `coordinator` and `hosts` say what every rank
    of such a job must find; '' and () where the scheduler does not tell. `has_job`: it gives jobs an id.
    """

    name: str
    ranks: Callable[[int, int, str], list[Rank]]
    needed: tuple[str, ...]
    coordinator: Callable[[int], str] = lambda hosts: ""
    hosts: Callable[[int], tuple[str, ...]] = lambda hosts: ()
    has_job: bool = True


def found(rank: Rank, choice: str = "auto", **changes: str | None) -> Membership:
    """What a rank finds, with some variables changed, or left out where the change is None."""
    environ = {**rank.environ, **{k: v for k, v in changes.items() if v is not None}}
    for name in (k for k, v in changes.items() if v is None):
        environ.pop(name, None)
    return detect(environ, choice, hostname=rank.hostname)


def _jobs(scheduler: Scheduler) -> list[tuple[int, int, list[Rank]]]:
    jobs = [(hosts, each, scheduler.ranks(hosts, each, "17")) for hosts, each in SIZES]
    assert sum(bool(ranks) for _, _, ranks in jobs) >= 3, "too few samples"
    return [job for job in jobs if job[2]]


def check_every_rank_finds_its_host(scheduler: Scheduler) -> None:
    """By name and by itself: host, count, rank on the host; the first rank of a host is its agent."""
    for hosts, each, ranks in _jobs(scheduler):
        assert len(ranks) == hosts * each
        for rank in ranks:
            for choice in ("auto", scheduler.name):
                member = found(rank, choice)
                assert member.host == HostGroup(rank.index, hosts), (choice, rank.environ)
                assert (member.local_rank, member.local_size) == (rank.local_rank, each), (
                    choice,
                    rank.environ,
                )
                assert member.cluster == scheduler.name
                assert member.attaches is (rank.local_rank > 0)


def check_all_ranks_agree(scheduler: Scheduler) -> None:
    """On the coordinator, the hosts and the job; another job has another id where there are any."""
    for hosts, each, ranks in _jobs(scheduler):
        members = [found(rank) for rank in ranks]
        assert {member.coordinator for member in members} == {scheduler.coordinator(hosts)}
        assert {member.hosts for member in members} == {scheduler.hosts(hosts)}
        assert len({member.job for member in members}) == 1
        other = found(scheduler.ranks(hosts, each, "18")[0])
        assert (members[0].job != other.job) is scheduler.has_job
        assert bool(members[0].job) or not scheduler.has_job


def check_evidence_names_what_decided(scheduler: Scheduler) -> None:
    """Every entry is a variable of the environment with its value; those that are needed are among them."""
    for _, _, ranks in _jobs(scheduler):
        for rank in ranks:
            names = {entry.partition("=")[0] for entry in found(rank).evidence}
            assert names <= set(rank.environ)
            assert set(scheduler.needed) & set(rank.environ) <= names
            assert scheduler.name in str(found(rank))


def check_it_never_guesses(scheduler: Scheduler) -> None:
    """With any one variable gone, or any number garbled, it finds the same host or is an error."""
    for _, _, ranks in _jobs(scheduler):
        for rank in (ranks[0], ranks[-1]):
            right = found(rank)
            for name, value in rank.environ.items():
                garbled = ("x", "-1", "7.5", "123456789012") if value.isdecimal() else ()
                for change in (None, "", *garbled):
                    _same_or_told(scheduler, rank, right, name, change)
            for name in scheduler.needed:
                try:
                    found(rank, scheduler.name, **{name: None})
                except RequestError as error:
                    assert error.hint, error
                else:
                    raise AssertionError(f"{scheduler.name} does without {name}")


def _same_or_told(scheduler: Scheduler, rank: Rank, right: Membership, name: str, value: str | None) -> None:
    try:
        member = found(rank, scheduler.name, **{name: value})
    except RequestError as error:
        assert error.hint, f"{name}={value!r}: {error}"
        return
    assert member.host == right.host, f"{name}={value!r}"


def check_it_is_not_there(scheduler: Scheduler) -> None:
    """Without its variables a host is alone; asked for by name, that is an error."""
    bare = Rank({"PATH": "/bin", "HOME": "/root"}, "h0", 0, 0)
    assert found(bare) == Membership(HostGroup())
    try:
        found(bare, scheduler.name)
    except RequestError as error:
        assert scheduler.name in error.message
    else:
        raise AssertionError(f"{scheduler.name} is found where nothing is")


def check_what_was_said_outright_wins(scheduler: Scheduler) -> None:
    """Host, coordinator and hosts; the rank on the host stays what the scheduler says."""
    for hosts, each, ranks in _jobs(scheduler):
        rank = ranks[-1]
        member = found(rank, GDIST_HOST="1/3", GDIST_WORLD=None, GDIST_HOSTS=None)
        assert member.host == HostGroup(1, 3) and member.cluster == "manual"
        if scheduler.name != "kubernetes":  # whose count is one of the variables that were taken away
            assert (member.local_rank, member.local_size) == (rank.local_rank, each)
        member = found(rank, GDIST_COORDINATOR="there:7611")
        assert member.coordinator == "there:7611" and member.host == HostGroup(rank.index, hosts)
        names = ",".join(f"x{n}" for n in range(hosts))
        member = found(rank, GDIST_HOSTS=names)
        assert member.hosts == tuple(names.split(",")) and member.coordinator == "x0"
        assert member.host == HostGroup(rank.index, hosts)


def check_half_of_it_must_agree(scheduler: Scheduler) -> None:
    """A count alone that the scheduler knows otherwise is a contradiction, and named."""
    for hosts, _, ranks in _jobs(scheduler):
        if "GDIST_WORLD" in ranks[0].environ:
            continue
        assert found(ranks[-1], GDIST_WORLD=str(hosts)).host == found(ranks[-1]).host
        try:
            found(ranks[-1], GDIST_WORLD=str(hosts + 1))
        except RequestError as error:
            assert "GDIST_WORLD" in error.message
        else:
            raise AssertionError("two counts, and no word")


CHECKS = (
    check_every_rank_finds_its_host,
    check_all_ranks_agree,
    check_evidence_names_what_decided,
    check_it_never_guesses,
    check_it_is_not_there,
    check_what_was_said_outright_wins,
    check_half_of_it_must_agree,
)
