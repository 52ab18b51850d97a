"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gdist", deadline=None)  # other work on the machine fails no test
settings.load_profile("gdist")
