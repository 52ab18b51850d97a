"""Reading a gdist store: in place where it lies in a directory, through TensorStore where it does not.

    with gdist.open("/data/model") as store:
        store["layer.0.w"][2:4]            # np.ndarray; only the chunks touched are read, and checked
        np.asarray(store["layer.0.w"])

Missing is never zero: a shard that is not there, is cut, has a hole, or differs from its digest is an error
that names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from gdist.core.store_manifest import StoreTensor
from gdist.kvstore import kvstore_spec, local_path
from gdist.stores.local import LocalFiles, LocalReader
from gdist.stores.manifests import Files, Manifests, read_manifests
from gdist.stores.store import LazyArray, Reader, Store

__all__ = ["LazyArray", "Store", "open"]


def open(store: str | os.PathLike[str], *, verify: bool = True) -> Store:
    """Opens a store: a directory, or a URL (`s3://`, `gs://`, `http(s)://`, `memory://`, `file://`).

    With `verify` the BLAKE3 digest of an inner chunk is compared when it is first touched. Where several
    hosts' parts of a store lie together they are one store.

    Raises:
        RequestError: when there is no store, or the parts are of different jobs.
        CorruptError: when its manifest is damaged or cannot be true.
        TransferError: when a remote store does not answer.
    """
    return open_as(store, read_manifests(files_of(store)), verify=verify)


def open_as(store: str | os.PathLike[str], manifests: Manifests, *, verify: bool) -> Store:
    """Opens a store by these manifests, whatever it says of itself."""
    spec = kvstore_spec(store)
    opener: Callable[[StoreTensor], Any] = partial(_tensorstore, spec)
    root = local_path(store)
    reader: Reader
    if root is not None and manifests.joined.codec == "none":
        reader = LocalReader(root, manifests, verify=verify)
    else:
        from gdist.stores.remote import RemoteReader  # TensorStore is imported for remote stores only

        reader = RemoteReader(spec, manifests, verify=verify)
    where = os.fspath(store).rstrip("/") if root is None else str(root)
    return Store(where, manifests, reader, opener)


def files_of(store: str | os.PathLike[str]) -> Files:
    """The small files of the store at an address."""
    root = local_path(store)
    if root is not None:
        return LocalFiles(root)
    from gdist.stores.remote import RemoteFiles  # as above

    return RemoteFiles(os.fspath(store))


def _tensorstore(spec: dict[str, object], tensor: StoreTensor) -> Any:
    from gdist.stores.remote import open_array  # as above

    return open_array(spec, tensor)
