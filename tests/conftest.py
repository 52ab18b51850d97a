"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

from gdist.exchange import ports

# A port is listened on some time after it was found free: tests that run at once find different ones.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    ports._RANGE = ports._RANGE[int(worker.removeprefix("gw")) % count :: count]

settings.register_profile("gdist", deadline=None)  # other work on the machine fails no test
settings.load_profile("gdist")
