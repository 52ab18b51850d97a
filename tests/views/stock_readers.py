"""Readers of a view who have never heard of gdist; each reads all of it in its own way.

    python stock_readers.py LOCATION WAY...

LOCATION is a directory, or the URL of one behind HTTP or in a bucket. Prints JSON by way: `{name: [shape,
dtype, SHA-256 of the bytes]}`, or an error as text. gdist counts as not installed: it cannot be imported, and
zarr does not see its entry points. "zarr JSON, gdist installed" and its like are the exception: there zarr
may find them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Found = Iterator[tuple[str, Any]]


class Absent:
    """Makes gdist a package that is not there."""

    def find_spec(self, name: str, *args: object) -> None:
        if name.split(".")[0] == "gdist":
            raise ModuleNotFoundError(f"no {name} here")


def forget_gdist() -> None:
    sys.meta_path.insert(0, Absent())
    every = importlib.metadata.distributions

    def others(**which: Any) -> Any:
        return (found for found in every(**which) if found.metadata["Name"] != "gdist")

    importlib.metadata.distributions = others


# --- TensorStore ----------------------------------------------------------------------------------------


def url_of(location: str) -> str:
    return location if "://" in location else Path(location).as_uri()


def database(location: str) -> dict[str, Any]:
    base: object = f"{url_of(location)}/"
    if location.startswith("s3://"):  # of a server that is not Amazon's
        bucket, _, path = location.removeprefix("s3://").partition("/")
        base = {
            "driver": "s3",
            "bucket": bucket,
            "path": f"{path}/",
            "endpoint": os.environ["AWS_ENDPOINT_URL"],
            "aws_region": "us-east-1",
        }
    return {"driver": "ocdbt", "base": base}


def with_tensorstore(location: str) -> Found:
    import tensorstore as ts

    keys = ts.KvStore.open(database(location)).result().list().result()
    for key in sorted(keys):
        if key.endswith(b"/zarr.json"):
            name = key.decode().removesuffix("/zarr.json")
            kvstore = {**database(location), "path": f"{name}/"}
            spec = {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False}
            yield name, ts.open(spec).result().read().result()


def with_tensorstore_by_url(location: str) -> Found:
    """As people type it: one string, which finds the drivers itself, and default options."""
    import tensorstore as ts

    base = url_of(location)
    for key in sorted(ts.KvStore.open(f"{base}/|ocdbt:").result().list().result()):
        if key.endswith(b"/zarr.json"):
            name = key.decode().removesuffix("/zarr.json")
            yield name, ts.open(f"{base}/|ocdbt:{name}/|zarr3:").result().read().result()


# --- references: zarr-python, dask ----------------------------------------------------------------------


def json_options(location: str) -> dict[str, Any]:
    """Of a view that lies where it was written, when `location` is that; else the root is named."""
    options: dict[str, Any] = {"fo": f"{location}/references.json", "template_overrides": {"root": location}}
    if "://" in location:
        options |= {"remote_options": {"asynchronous": True}}
    return options


def parquet_options(location: str) -> dict[str, Any]:
    target: dict[str, Any] = {"target_protocol": "http", "target_options": {"asynchronous": True}}
    if "://" not in location:
        target["target_protocol"] = "async_wrapper"
        target["target_options"] |= {"target_protocol": "file", "target_options": {}}
    options = {"path": location, "asynchronous": True, **target}
    return {"fo": f"{location}/references.parquet", "remote_protocol": "dir", "remote_options": options}


def in_place(location: str) -> dict[str, Any]:
    """No word about where the root is."""
    return {"fo": f"{location}/references.json"}


def with_zarr(options: Callable[[str], dict[str, Any]]) -> Callable[[str], Found]:
    def read(location: str) -> Found:
        import zarr

        warnings.filterwarnings("ignore", message="The 'fastparquet' engine is deprecated")
        group = zarr.open_group("reference://", mode="r", storage_options=options(location))
        for name in sorted(group.array_keys()):
            yield name, group[name][...]

    return read


def with_dask(options: Callable[[str], dict[str, Any]], zarr_format: int) -> Callable[[str], Found]:
    def read(location: str) -> Found:
        import dask.array
        import zarr

        warnings.filterwarnings("ignore", message="The 'fastparquet' engine is deprecated")
        group = zarr.open_group("reference://", mode="r", storage_options=options(location))
        for name in sorted(group.array_keys()):
            array = dask.array.from_zarr(
                "reference://", component=name, storage_options=options(location), zarr_format=zarr_format
            )
            yield name, array.compute()

    return read


# --- Orbax ----------------------------------------------------------------------------------------------


def _leaves(tree: Any) -> Found:
    import jax

    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield ".".join(key.key for key in keys), leaf


def with_orbax(location: str) -> Found:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        yield from _leaves(checkpointer.restore(Path(location)))


def with_orbax_pytree(location: str) -> Found:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        yield from _leaves(checkpointer.restore(Path(location)))


def _target(location: str) -> Any:
    """A tree of structs on 4x2 devices, from what Orbax itself says of the checkpoint."""
    import jax
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))

    def struct(leaf: Any) -> Any:
        shape = leaf.shape
        fits = len(shape) > 1 and shape[-2] % 4 == 0 and shape[-1] % 2 == 0
        spec = PartitionSpec(*[None] * (len(shape) - 2), "rows", "columns") if fits else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(struct, checkpointer.metadata(Path(location)).item_metadata.tree)


def _sharded(restored: Any, target: Any) -> Found:
    import jax

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == shardings
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))
    yield from _leaves(restored)


def with_orbax_onto_a_mesh(location: str) -> Found:
    import orbax.checkpoint as ocp

    target = _target(location)
    with ocp.StandardCheckpointer() as checkpointer:
        yield from _sharded(checkpointer.restore(Path(location), target), target)


def with_orbax_pytree_onto_a_mesh(location: str) -> Found:
    import orbax.checkpoint as ocp

    target = _target(location)
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            Path(location), args=ocp.args.PyTreeRestore(item=target, restore_args=arguments)
        )
        yield from _sharded(restored, target)


WAYS: Mapping[str, Callable[[str], Found]] = {
    "tensorstore": with_tensorstore,
    "tensorstore by URL": with_tensorstore_by_url,
    "zarr JSON": with_zarr(json_options),
    "zarr JSON in place": with_zarr(in_place),
    "zarr Parquet": with_zarr(parquet_options),
    "zarr JSON, gdist installed": with_zarr(json_options),
    "zarr Parquet, gdist installed": with_zarr(parquet_options),
    "dask JSON": with_dask(json_options, 3),
    "dask Parquet": with_dask(parquet_options, 2),
    "orbax": with_orbax,
    "orbax pytree": with_orbax_pytree,
    "orbax onto a mesh": with_orbax_onto_a_mesh,
    "orbax pytree onto a mesh": with_orbax_pytree_onto_a_mesh,
}


def read(way: str, location: str) -> dict[str, list[object]] | str:
    found: dict[str, list[object]] = {}
    try:
        for name, array in WAYS[way](location):
            values = np.asarray(array)
            digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
            found[name] = [list(values.shape), values.dtype.name, digest]
    except Exception as error:  # what each library raises is its own; the test reads the text
        return f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_X64"] = "1"  # else JAX makes float32 of float64
    place, ways = sys.argv[1], sys.argv[2:]
    installed = all(way.endswith("gdist installed") for way in ways)
    if not installed:
        forget_gdist()
    answer = {way: read(way, place) for way in ways}
    assert installed or "gdist" not in sys.modules
    print(json.dumps(answer))
