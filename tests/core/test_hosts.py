from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdist.core.hosts import MOST_HOSTS, join_address, parse_hosts, split_address
from gdist.errors import RequestError

SCONTROL = shutil.which("scontrol")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n0", "n0"),
        ("n[0-3,7],gpu-a[01-04]x", "n0 n1 n2 n3 n7 gpu-a01x gpu-a02x gpu-a03x gpu-a04x"),
        ("n[8-11]", "n8 n9 n10 n11"),  # as wide as the first, and wider where it must be
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[3]", "n3"),
        ("n[1,3-4,009]", "n1 n3 n4 n009"),
        ("rack[0-1]n[0-2]", "rack0n0 rack0n1 rack0n2 rack1n0 rack1n1 rack1n2"),
        ("a, b\n c", "a b c"),
        ("10.0.0.1,10.0.0.2", "10.0.0.1 10.0.0.2"),
        ("10.0.0.[1-3]", "10.0.0.1 10.0.0.2 10.0.0.3"),
        ("n[0-1].cluster.local", "n0.cluster.local n1.cluster.local"),
        ("job-[0-1].swarm:7611", "job-0.swarm:7611 job-1.swarm:7611"),
        ("[fd00::2]:7611,fd00::3", "[fd00::2]:7611 fd00::3"),  # brackets of an address, not of a range
    ],
)
def test_lists_of_hosts(text: str, hosts: str) -> None:
    assert parse_hosts(text) == tuple(hosts.split())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no host"),
        (" , ", "no host"),
        ("n[0-3", "brackets"),
        ("n0-3]", "brackets"),
        ("n[[0-3]]", "brackets"),
        ("n[3-0]", "backwards"),
        ("n[a-b]", "no range"),
        ("n[]", "no range"),
        ("n[0-]", "no range"),
        ("n[0-99999999]", f"more than {MOST_HOSTS}"),
        ("n[0-999][0-999]", f"more than {MOST_HOSTS}"),
        ("n0;reboot", "no name"),
        ("$(reboot)", "no name"),
        ("-oProxyCommand=x", "no name"),
        ("n0:99999", "no name"),
    ],
)
def test_what_is_no_list_of_hosts(text: str, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse_hosts(text)
    assert caught.value.hint


RANGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1200), st.integers(0, 12)), min_size=1, max_size=3
).map(
    lambda parts: ",".join(
        f"{first:0{width}d}-{first + more}" if more else f"{first:0{width}d}" for width, first, more in parts
    )
)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,5}[a-z]", fullmatch=True)
ITEMS = st.tuples(NAMES, RANGES).map(lambda p: f"{p[0]}[{p[1]}]")  # Slurm takes nothing after a range
LISTS = st.lists(st.one_of(NAMES, ITEMS), min_size=1, max_size=4).map(",".join)


@given(st.lists(NAMES, min_size=1, max_size=9), st.sampled_from([",", " ", ", ", "\n"]))
def test_names_without_ranges_are_themselves(names: list[str], between: str) -> None:
    assert parse_hosts(between.join(names)) == tuple(names)


@pytest.mark.slow
@pytest.mark.skipif(not SCONTROL, reason="Slurm is not installed (Debian: slurm-client)")
def test_ranges_mean_what_slurm_means(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"  # scontrol wants one, also for what it works out by itself
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    environ, checked = {**os.environ, "SLURM_CONF": str(conf)}, 0

    @settings(max_examples=60)
    @given(LISTS)
    def compare(text: str) -> None:
        nonlocal checked
        command = [str(SCONTROL), "show", "hostnames", text]
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stderr
        assert parse_hosts(text) == tuple(done.stdout.split())
        checked += 1

    compare()
    assert checked > 20


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("h0", "h0", None),
        ("h0:7611", "h0", 7611),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[fd00::2]:7611", "fd00::2", 7611),
        ("[fd00::2]", "fd00::2", None),
        ("fd00::2", "fd00::2", None),
        ("fe80::1%eth0", "fe80::1%eth0", None),
    ],
)
def test_addresses(text: str, host: str, port: int | None) -> None:
    assert split_address(text) == (host, port)
    if port:
        assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text", ["", ":7611", "h0:", "h0:0", "h0:65536", "h0:x", "[h0]:1", "a b", "h/0", "[::1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(RequestError, match="no address"):
        split_address(text)
