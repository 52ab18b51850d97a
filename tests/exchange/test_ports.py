"""Ports that are chosen for another program are free, and stay so while connections come and go."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gdist.errors import TransferError
from gdist.exchange import ports
from gdist.exchange.ports import free_ports


def test_ports_are_free_and_none_of_those_given_to_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = tmp_path / "range"
    given.write_text("20000\t29989\n")
    taken = free_ports(1)[0]  # by the real range: nothing else takes it at the end
    monkeypatch.setattr(ports, "_LOCAL_RANGE", given)
    monkeypatch.setattr(ports, "_RANGE", range(20_000, 30_000))
    with socket.create_server(("127.0.0.1", taken)):
        found = free_ports(5)
        assert len(set(found)) == 5 and all(29_989 < port < 30_000 for port in found)
        monkeypatch.setattr(ports, "_RANGE", range(taken, taken + 1))
        with pytest.raises(TransferError, match="is free on this host"):
            free_ports(1)
    assert free_ports(1) == [taken]
