"""Reading a gdist store: in place where it lies in a directory, through TensorStore where it does not.

    with gdist.open("/data/model") as store:
        store["layer.0.w"][2:4]            # np.ndarray; only the chunks touched are read, and checked
        np.asarray(store["layer.0.w"])

Missing is never zero: a shard that is not there, is cut, has a hole, or differs from its digest is an error
that names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gdist.core.mesh import HostGroup
from gdist.core.store_manifest import StoreTensor
from gdist.core.view import VIEW
from gdist.errors import RequestError
from gdist.kvstore import kvstore_spec, local_path
from gdist.stores.local import LocalFiles, LocalReader
from gdist.stores.manifests import Files, Manifests, read_manifests
from gdist.stores.store import LazyArray, Store
from gdist.stores.views import ViewReader

if TYPE_CHECKING:
    from gdist.stores.remote import RemoteReader

__all__ = ["LazyArray", "Store", "open"]


Address = str | os.PathLike[str]


def open(store: Address | Sequence[Address], *, verify: bool = True) -> Store:
    """Opens a store: a directory, or a URL (`s3://`, `gs://`, `http(s)://`, `memory://`, `file://`).

    With `verify` the BLAKE3 digest of an inner chunk is compared when it is first touched. Where several
    hosts' parts of a store lie together, or in several places which are all given, they are one store.

    Raises:
        RequestError: when there is no store, or the parts are of different jobs.
        CorruptError: when its manifest is damaged or cannot be true.
        TransferError: when a remote store does not answer.
    """
    places: Sequence[Address] = (store,) if isinstance(store, str | os.PathLike) else tuple(store)
    if not places:
        raise RequestError("no store was given", hint="give a directory or a URL, or several")
    return open_as(places, read_manifests(*files_of_all(places)), verify=verify)


def open_as(places: Sequence[Address], manifests: Manifests, *, verify: bool) -> Store:
    """Opens the store whose parts lie in these places by these manifests, whatever it says of itself."""
    opener: Callable[[StoreTensor], Any] = partial(_tensorstore, _specs(places, manifests))
    where = " and ".join(os.fspath(place).rstrip("/") for place in places)
    return Store(where, manifests, reader_of(places, manifests, verify=verify), opener)


def reader_of(
    places: Sequence[Address], manifests: Manifests, *, verify: bool
) -> LocalReader | ViewReader | RemoteReader:
    """What reads the store whose parts lie in these places."""
    roots = [root for place in places if (root := local_path(place)) is not None]
    if manifests.joined.codec == VIEW and len(places) > 1:
        raise RequestError("a view is one store, whole: it has no parts in several places")
    if roots and manifests.joined.codec == VIEW:
        return ViewReader(roots[0], manifests, verify=verify)
    if len(roots) == len(places) and manifests.joined.codec == "none":
        return LocalReader(roots, manifests, verify=verify)
    from gdist.stores.remote import RemoteReader  # TensorStore is imported for remote stores only

    return RemoteReader(_specs(places, manifests), manifests, verify=verify)


def _specs(places: Sequence[Address], manifests: Manifests) -> list[dict[str, object]]:
    """What TensorStore opens: the places themselves, or the index of a view there."""
    specs = [kvstore_spec(place) for place in places]
    if manifests.joined.codec == VIEW:
        return [{"driver": "ocdbt", "base": spec, "path": ""} for spec in specs]
    return specs


def files_of(store: Address, host: HostGroup | None = None) -> Files:
    """The small files of the store at an address, which may be that of one of so many hosts."""
    root = local_path(store)
    if root is not None:
        return LocalFiles(root)
    from gdist.stores.remote import RemoteFiles  # as above

    return RemoteFiles(os.fspath(store), host)


def files_of_all(places: Sequence[Address]) -> list[Files]:
    """The small files of a store whose parts lie in these places, where several those of as many hosts."""
    return [files_of(place, HostGroup(index, len(places))) for index, place in enumerate(places)]


def _tensorstore(specs: Sequence[dict[str, object]], tensor: StoreTensor) -> Any:
    from gdist.stores.remote import open_array  # as above

    if len(specs) > 1:
        raise RequestError(
            f"{tensor.name!r} lies in {len(specs)} places: that is no one TensorStore",
            hint="put the hosts' directories together into one, or use read()",
        )
    return open_array(specs[0], tensor)
