"""Memory for arrays: read-only maps of shard files, and aligned buffers.

JAX on CPU takes host memory without a copy when it starts at a multiple of 64; a shard's slabs do, and so
does what `aligned_empty` gives.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import prod
from types import EllipsisType
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 and its kin with NumPy, by name
import numpy as np
from numpy.typing import NDArray

from gdist.core.box import Box
from gdist.core.dtypes import DType
from gdist.core.layout import CACHE_LINE
from gdist.core.store_manifest import StoreTensor
from gdist.core.tensor import Order
from gdist.errors import RequestError

Array = NDArray[Any]  # Any: the element types of ml_dtypes have no static type
Bytes = NDArray[np.uint8]


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """NumPy's type of that name, from ml_dtypes where NumPy has none."""
    return np.dtype(dtype.name)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised C-ordered array that starts at a multiple of 64 bytes."""
    nbytes = prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + CACHE_LINE, np.uint8)
    skip = -raw.ctypes.data % CACHE_LINE
    return raw[skip : skip + nbytes].view(dtype).reshape(shape)


_MANY = 32 << 20  # bytes from which a read is worth several threads
_BLOCK = 8 << 20  # bytes that one thread copies at a time


def threads_for(nbytes: int) -> int:
    """How many threads are worth starting to hash or copy so many bytes: one, or one a core."""
    return (os.cpu_count() or 1) if nbytes >= _MANY else 1


def workers_of(asked: int | None) -> int:
    """So many threads as were asked for: one a core where none were named.

    Raises:
        RequestError: fewer than one.
    """
    if asked is not None and asked < 1:
        raise RequestError(f"{asked} workers do nothing", hint="give 1 or more, or none: one a core")
    return asked or os.cpu_count() or 1


def copy_arrays(pairs: Iterable[tuple[Array, Array]], nbytes: int) -> None:
    """Copies each (source, destination) pair, of the same shape and type; `nbytes` is their sum."""
    # NumPy lets other threads run while it copies integers, not while it copies the types of ml_dtypes.
    plain = ((_as_integers(source), _as_integers(out)) for source, out in pairs)
    workers = threads_for(nbytes)
    if workers == 1:
        for source, out in plain:
            np.copyto(out, source)
        return
    blocks = (block for source, out in plain for block in _blocks(source, out))
    with ThreadPoolExecutor(workers, thread_name_prefix="gdist-copy") as pool:
        for _ in pool.map(lambda block: np.copyto(block[1], block[0]), blocks):
            pass


def _as_integers(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize in (1, 2, 4, 8) else array


def _blocks(source: Array, out: Array) -> Iterator[tuple[Array, Array]]:
    """A pair cut along its first dimension that is longer than one."""
    axis = next((n for n, size in enumerate(out.shape) if size > 1), None)
    if axis is None:
        yield source, out
        return
    rows = max(1, _BLOCK * out.shape[axis] // max(1, out.nbytes))
    for first in range(0, out.shape[axis], rows):
        at = (slice(None),) * axis + (slice(first, first + rows),)
        yield source[at], out[at]


def region(array: Array, box: Box) -> Array:
    """A box of an array as an array over the same memory, also where it is a scalar."""
    at: tuple[slice | EllipsisType, ...] = (*box.slices(), ...)
    return array[at]


def stored_order(tensor: StoreTensor, chunk: Array) -> Array:
    """The elements of a chunk in the order in which they lie: what its digest is of."""
    fortran = tensor.view is not None and tensor.view.order is Order.F
    return chunk.T if fortran else chunk


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


class _Mapping:
    """Memory that is unmapped when the last array over it is gone."""

    def __init__(self, descriptor: int, length: int):
        libc = _libc()
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }
        # Not at exit: a live array of another library may still be read then.
        weakref.finalize(self, libc.munmap, address, length).atexit = False


def map_file(descriptor: int, length: int) -> Bytes:
    """The first `length` bytes of an open file as a read-only array; the file may be closed at once.

    Python's own `mmap` keeps a descriptor for every map (up to 3.12 it cannot be told not to), and a
    model has more shards than a process may have open files.
    """
    return np.asarray(_Mapping(descriptor, length))


def will_read(mapped: Bytes) -> None:
    """Tells the kernel that this part of a map is read soon: it begins to fetch all of it at once.

    Left to page faults, it reads a disk in steps of 128 KiB.
    """
    skip = mapped.ctypes.data % mmap.PAGESIZE
    # A kernel that does not want to know loses nothing.
    _libc().madvise(mapped.ctypes.data - skip, mapped.nbytes + skip, mmap.MADV_WILLNEED)
