"""Settings that depend on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdist.sources.torrent import options


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ("4194304\n", options.RECEIVE_BYTES),
        ("33554432\n", options.RECEIVE_BYTES),
        ("212992\n", 0),  # of older kernels: asking would leave less than not asking
        (None, 0),  # not Linux
    ],
)
def test_a_receive_buffer_is_bounded_only_where_that_slows_nobody(
    content: str | None, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "rmem_max"
    if content is not None:
        limit.write_text(content)
    monkeypatch.setattr(options, "RMEM_MAX", limit)
    assert options.receive_bytes() == asked
    settings = options.session_settings(options.TorrentOptions())
    assert settings["recv_socket_buffer_size"] == asked
