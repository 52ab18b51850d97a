"""A model of a cluster that fetches a checkpoint: how long it takes, and what binds, on clusters of any size.

`model` has what goes in, `run` the run itself, `outcome` what comes of it; `demand` makes what goes in from
tensors on a mesh.
"""
