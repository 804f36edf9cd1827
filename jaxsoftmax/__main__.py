"""`python -m jaxsoftmax`: check this installation on the devices that JAX sees."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import jax

from jaxsoftmax import _selfcheck
from jaxsoftmax._selfcheck import DTYPES, Outcome
from jaxsoftmax._version import __version__

_LINE = "{:14} {:13} {:43} {:>9} {:>9}  {}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per check, or one JSON document; return 0 if all pass."""
    arguments = _parse(argv)
    dtypes = tuple(arguments.dtype or DTYPES)
    if not arguments.json:
        print(f"jaxsoftmax {__version__}, JAX {jax.__version__}")
        print("relative errors against float64, allowed in brackets where exceeded\n")
        print(_LINE.format("device", "dtype", "function", "value", "gradient", ""))
    outcomes = []
    for outcome in _selfcheck.run(dtypes):
        outcomes.append(outcome)
        if arguments.json:
            _progress(f"{len(outcomes)} checks done: {outcome.device}, {outcome.dtype}")
        else:
            print(_line(outcome), flush=True)
    passed = [outcome.passed for outcome in outcomes]
    if arguments.json:
        _progress("")
        print(json.dumps(_document(outcomes), indent=2))
    else:
        print(f"\n{sum(passed)} of {len(passed)} checks passed")
    return 0 if passed and all(passed) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxsoftmax",
        allow_abbrev=False,
        description="Compare losses and gradients with float64 closed forms, on every device.",
        epilog="The exit status is 0 if all checks pass, 1 if one fails.",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        metavar="DTYPE",
        help=f"check these only, of {', '.join(DTYPES)} (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--version", action="version", version=f"jaxsoftmax {__version__}")
    return parser.parse_args(argv)


def _line(outcome: Outcome) -> str:
    device, dtype, name, errors, allowed = outcome
    verdict = "ok" if outcome.passed else "FAILED ({:.0e}, {:.0e})".format(*allowed)
    return _LINE.format(device, dtype, name, *(f"{e:.1e}" for e in errors), verdict)


def _document(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """What was found; an error that is no number is null."""

    def numbers(errors: tuple[float, float]) -> dict[str, float | None]:
        value, gradient = (None if e != e else e for e in errors)
        return {"value": value, "gradient": gradient}

    checks = [
        {
            "device": outcome.device,
            "dtype": outcome.dtype,
            "function": outcome.name,
            "errors": numbers(outcome.errors),
            "allowed": numbers(outcome.allowed),
            "passed": outcome.passed,
        }
        for outcome in outcomes
    ]
    versions = {"jaxsoftmax": __version__, "jax": jax.__version__}
    return {**versions, "passed": all(outcome.passed for outcome in outcomes), "checks": checks}


def _progress(text: str) -> None:
    """One line that overwrites itself, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
