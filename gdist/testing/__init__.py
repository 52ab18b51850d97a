"""Helpers for tests, shipped with gdist: tiny torrents and checkpoints, real swarms on loopback."""
