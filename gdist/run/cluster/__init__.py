"""One fetch by all hosts of a cluster: each byte comes in once, each host gets just what its shards need.

agent        one a host: joins, runs the fetch, serves the others until they have what they need
station      what others reach of an agent, and how it reaches them
rendezvous   where the hosts meet: who is here, who has what, who brings in what (in host 0's agent)
link         a host's side of it
way          whom a host asks, and who stands in for a coordinator that is gone
source       pieces from outside and from the other hosts, as one source of a fetch
others       taking pieces from the other hosts
held         pieces that a host has whole, and what it gives of them
learning     what the torrent holds, found out once for all
"""

from gdist.run.cluster.agent import cluster_fetch
from gdist.run.cluster.options import ClusterOptions

__all__ = ["ClusterOptions", "cluster_fetch"]
