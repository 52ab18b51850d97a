"""Where verified bytes come from: the torrent swarm, or a directory that someone else filled."""
