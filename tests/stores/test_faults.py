"""Many faults as one error."""

from __future__ import annotations

import pytest

from gdist.errors import (
    CorruptError,
    FilesystemError,
    GdistError,
    RequestError,
    SpaceError,
    TransferError,
    UnsupportedError,
)
from gdist.stores.faults import raise_faults


@pytest.mark.parametrize(
    ("kinds", "raised"),
    [
        ((TransferError, TransferError), TransferError),  # an outage: the same command may succeed later
        ((SpaceError, SpaceError), SpaceError),
        ((TransferError, CorruptError), CorruptError),
        ((TransferError, RequestError), RequestError),  # what stays: trying again alone does not help
        ((TransferError, FilesystemError, RequestError), FilesystemError),
        ((RequestError, TransferError, CorruptError), CorruptError),
        ((UnsupportedError, RequestError), UnsupportedError),
        ((TransferError,), TransferError),
    ],
)
def test_faults_that_stay_come_before_those_that_may_pass(
    kinds: tuple[type[GdistError], ...], raised: type[GdistError]
) -> None:
    faults = [kind(f"fault {number}", hint=str(number)) for number, kind in enumerate(kinds)]
    with pytest.raises(GdistError) as error:
        raise_faults(faults)
    assert type(error.value) is raised
    assert error.value.hint == str(kinds.index(raised))
    assert all(fault.message in error.value.message for fault in faults)
