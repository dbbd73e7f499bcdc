"""`python -m rankrt` and the `rankrt` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from rankrt.cli import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
