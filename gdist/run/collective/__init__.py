"""The collective exchange of a cluster: every host takes in an even share of every tensor, then XLA moves it.

    fetch_shares ──▶ DEST/.gdist/.../shares     1/H of every tensor, a store like any other
    start_move   ──▶ DEST                       this host's shards, as any other way would have written them
    (a process)      rounds of parcels, in step with all other hosts, while shares shrink

shares      taking in, and where shares lie
dealing     who sends what to whom
opened      shares and store of this host while it moves, and the end of that
move        shares of all hosts to shards of this one
landing     what arrives: placed, committed, written down
child       the same in a process of its own, which may use JAX
"""

from gdist.run.collective.child import MoveRequest, start_move
from gdist.run.collective.move import move_shares
from gdist.run.collective.opened import all_here, finish_alone
from gdist.run.collective.shares import fetch_shares, taken

__all__ = ["MoveRequest", "all_here", "fetch_shares", "finish_alone", "move_shares", "start_move", "taken"]
