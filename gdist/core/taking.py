"""How the hosts of a cluster take pieces from each other: what the fetch and the model of it share."""

from __future__ import annotations

AT_ONCE = 14  # pieces that are on their way to a host from others
WHOLE_SHARE = 0.9  # of a piece's bytes: who needs so much takes all, and checks it against the torrent
