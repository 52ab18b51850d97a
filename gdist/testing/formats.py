"""For tests of formats: reads a file in memory as `gdist.run.headers` reads one in a torrent."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from gdist.core.extent import Extent
from gdist.core.tensor import FoundArray
from gdist.errors import GdistError
from gdist.formats import SNIFF_BYTES, Scan, drive
from gdist.formats.detect import detect
from gdist.testing.checkpoints import numpy_dtype


class Reader:
    """Gives bytes of `data`; `asked` are the extents it was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[Extent] = []

    def __call__(self, extent: Extent) -> bytes:
        """The bytes of an extent, which must have some and lie in the file."""
        assert extent.length and extent.stop <= len(self.data), f"{extent} of {len(self.data)} bytes"
        self.asked.append(extent)
        return self.data[extent.start : extent.stop]


def found_in(data: bytes, kind: str) -> dict[str, FoundArray]:
    """What is found, by key; the file must be told to be of this format."""
    detected = detect(data[:SNIFF_BYTES], len(data))
    assert detected is not None and kind == detected.NAME, detected
    found = drive(detected.scan(len(data)), Reader(data))
    assert len({array.key for array in found}) == len(found)
    return {array.key: array for array in found}


def value_of(data: bytes, found: FoundArray) -> np.ndarray[Any, Any]:
    """The array, put together from its parts."""
    array: np.ndarray[Any, Any] = np.zeros(found.shape, numpy_dtype(found.dtype))
    for part in found.parts:
        raw = np.frombuffer(data[part.extent.start : part.extent.stop], array.dtype)
        array[part.box.slices()] = raw.reshape(part.box.shape, order=part.order.value)
    return array


def refusal_of(
    scan: Callable[[int], Scan], data: bytes, *, nbytes: int = 1 << 22, seconds: float = 5.0
) -> GdistError:
    """The error a file is refused with, for which so much memory and processor time must be enough.

    Raises:
        AssertionError: when it is read, or takes more.
    """
    begun = time.process_time()
    try:
        found = drive(scan(len(data)), Reader(data))
    except GdistError as error:
        took = time.process_time() - begun
        assert took < seconds, f"{took} s: {error}"
    else:
        raise AssertionError(f"a file of {len(data)} bytes is read: {found}")
    tracemalloc.start()  # which makes it several times slower
    try:
        drive(scan(len(data)), Reader(data))
    except GdistError as error:
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < nbytes + len(data), f"{peak} bytes for a file of {len(data)}: {error}"
        return error
    finally:
        tracemalloc.stop()
    raise AssertionError("a file is refused, and then read")
