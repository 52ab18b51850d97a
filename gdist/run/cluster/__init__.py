"""One fetch by all hosts of a cluster: each byte comes in once, each host gets just what its shards need.

agent        one a host: joins, runs the fetch, serves the others until they have what they need
rendezvous   where the hosts meet: who is here, who has what, who brings in what (in host 0's agent)
link         a host's side of it
source       pieces from outside and from the other hosts, as one source of a fetch
serving      what a host gives to the others
"""

from gdist.run.cluster.agent import cluster_fetch

from gdist.run.cluster.options import ClusterOptions

__all__ = ["ClusterOptions", "cluster_fetch"]
