"""Whether a disk can hold what comes, and what is advised where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdist.errors import SpaceError
from gdist.run.preflight import check_free


@pytest.mark.parametrize(
    ("share", "says"), [(False, "fetch a share: --mesh and --host"), (True, "more hosts")]
)
def test_a_full_disk_says_what_helps(share: bool, says: str, tmp_path: Path) -> None:
    """Who fetches a share already is not told to."""
    with pytest.raises(SpaceError) as caught:
        check_free(tmp_path, 1 << 62, "fetch", share=share)
    assert caught.value.hint == f"choose a destination with more space, or {says}"
