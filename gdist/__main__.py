"""`python -m gdist` is `gdist`."""

import gc
import sys
from typing import NoReturn

OBJECTS_BETWEEN_COLLECTIONS = 50_000  # a start makes a hundred thousand that stay, and hardly any in cycles


def run() -> NoReturn:
    """The program: `main` in a process of its own, which neither starts nor ends with looking for garbage."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from gdist.cli import main

        code = main()
    except KeyboardInterrupt:  # before or after all that `main` watches over
        sys.exit(130)
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    run()
