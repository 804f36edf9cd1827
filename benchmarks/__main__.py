"""`python -m benchmarks`: the arguments first, then the libraries that a run needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.arguments import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for."""
    arguments = parse(argv)
    try:
        from benchmarks import command
    except ModuleNotFoundError as error:
        missing = (error.name or "a library").split(".")[0]
        sys.exit(
            f"python -m benchmarks needs {missing}, which is not installed: "
            'pip install -e ".[benchmarks]"'
        )
    return command.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
