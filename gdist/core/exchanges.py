"""The ways in which hosts of a cluster get what others brought in."""

from __future__ import annotations

from enum import Enum


class Exchange(Enum):
    """How bytes get from the host that brought them in to those that need them."""

    SWARM = "swarm"
    COLLECTIVE = "collective"


EXCHANGES = tuple(exchange.value for exchange in Exchange)
