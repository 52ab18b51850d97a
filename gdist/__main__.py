"""`python -m gdist` is the `gdist` command."""

from gdist.cli import main

if __name__ == "__main__":
    main()
