"""Streams a magnet link of a model checkpoint into a verified, sharded Zarr v3 store, and hands it to JAX.

    import gdist

    gdist.fetch("magnet:?...", "/data/model", mesh="8x8")     # while it downloads; safe to repeat
    tree = gdist.load("/data/model", mesh=mesh)               # jax.Array tree on this host's devices

The names below are all that is public. Each is imported when it is first used, so `import gdist` needs
neither libtorrent nor JAX, TensorStore or Zarr.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "fetch": "gdist.api",
    "fetching": "gdist.api",
    "cluster_fetch": "gdist.api",
    "cluster_status": "gdist.api",
    "inspect": "gdist.api",
    "check_rules": "gdist.api",
    "plan": "gdist.api",
    "reshard": "gdist.api",
    "simulate": "gdist.api",
    "make_torrent": "gdist.api",
    "publish": "gdist.api",
    "check_manifest": "gdist.api",
    "verify": "gdist.run.verify",
    "view": "gdist.api",
    "export": "gdist.run.export",
    "repair": "gdist.run.repair",
    "open": "gdist.stores",
    "load": "gdist.loader",
    "stream": "gdist.loader",
    "device_order": "gdist.loader",
    "QuantizedWeight8bit": "gdist.loader",
}

__all__ = [
    "QuantizedWeight8bit",
    "__version__",
    "check_manifest",
    "check_rules",
    "cluster_fetch",
    "cluster_status",
    "device_order",
    "export",
    "fetch",
    "fetching",
    "inspect",
    "load",
    "make_torrent",
    "open",
    "plan",
    "publish",
    "repair",
    "reshard",
    "simulate",
    "stream",
    "verify",
    "view",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gdist' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found once; later look-ups do not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
