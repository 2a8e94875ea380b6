"""`python -m spectrim` and the `spectrim` command."""

import sys

from spectrim.cli import main


def run() -> None:
    """Run the command line and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
