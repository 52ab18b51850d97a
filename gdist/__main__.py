"""`python -m gdist` is `gdist`."""

import sys

from gdist.cli import main

if __name__ == "__main__":
    sys.exit(main())
