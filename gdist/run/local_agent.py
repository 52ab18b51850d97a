"""Asking agents where they stand: the one that runs on this host, or any whose address and secret are known.

An agent leaves `agent.json` in its work directory, readable by its user alone, with its address on loopback
and the key that opens it. What is left there by an agent that is gone answers nobody.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gdist.core.status import AgentStatus, ClusterStatus, parse_agent_status, parse_cluster_status
from gdist.errors import FilesystemError, GdistError, Unreachable
from gdist.exchange import Client, Key
from gdist.stores.local import LocalFiles

AGENT_NAME = "agent.json"
ASK_SECONDS = 5.0  # an agent answers from memory; one that is stopped or swapped out does not


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where an agent answers, and how."""

    address: str
    key: Key = field(repr=False)
    encrypt: bool = False

    def status(self) -> AgentStatus:
        """Where that host stands.

        Raises:
            GdistError: nobody answers there, or somebody else.
        """
        with Client(self.address, self.key, encrypt=self.encrypt, timeout=ASK_SECONDS) as client:
            return parse_agent_status(client.json("GET", "/status"), f"the status of {self.address}")

    def cluster(self) -> ClusterStatus:
        """Where its cluster stands, as the coordinator says; raises like `status`."""
        with Client(self.address, self.key, encrypt=self.encrypt, timeout=ASK_SECONDS) as client:
            return parse_cluster_status(client.json("GET", "/cluster"), f"the cluster of {self.address}")


def find_agent(work: Path) -> AgentAddress | None:
    """The agent that said it works there; None where none did, or another user's."""
    try:
        data = LocalFiles(work).read(AGENT_NAME)
        row = json.loads(data) if data is not None else None
        return AgentAddress(row["address"], Key.from_hex(row["key"]), bool(row["encrypt"])) if row else None
    except (FilesystemError, GdistError, ValueError, KeyError, TypeError):
        return None  # it only adds to what can be seen without it


def ask_cluster(agents: Sequence[AgentAddress]) -> ClusterStatus:
    """Where the cluster stands, from the first of these that answers.

    Raises:
        GdistError: what the last one's trouble is, when none answers.
    """
    assert agents, "nobody to ask"
    for agent in agents[:-1]:
        with contextlib.suppress(Unreachable):
            return agent.cluster()
    return agents[-1].cluster()
