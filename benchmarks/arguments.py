"""The command line, which needs nothing but Python: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from functools import partial

# The suites, as `suites.SUITES` has them.
NAMES = (
    "chapter",
    "distributions",
    "cross_entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "memory",
    "accuracy",
    "compile",
    "aot",
    "sharded",
)
QUICK_JSON = pathlib.Path("benchmark-results-quick.json")
QUICK_ACCELERATOR_JSON = pathlib.Path("benchmark-results-accelerator-quick.json")
FILTERED_JSON = pathlib.Path("benchmark-results-filtered.json")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a help text and exit for --help."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times, memory, communication and accuracy of jaxsoftmax and its peers.",
    )
    add = partial(parser.add_argument, type=pathlib.Path)
    parser.add_argument(
        "--suite",
        nargs="+",
        dest="suites",
        choices=NAMES,
        default=list(NAMES),
        metavar="NAME",
        help=f"any of {', '.join(NAMES)} (default: all)",
    )
    parser.add_argument(
        "--filter",
        nargs="+",
        default=[],
        metavar="REGEX",
        help="only cases that match all of these, such as bfloat16 or 'cross_entropy, forward'",
    )
    parser.add_argument("--quick", action="store_true", help="one small shape, few repetitions")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="exactly N samples of each peer"
    )
    add(
        "--json",
        metavar="PATH",
        help="one file for all suites of the run (default: a file for each suite, benchmarks/"
        f"results/<suite>-<device>.json; with --quick {QUICK_JSON}, with --filter {FILTERED_JSON})",
    )
    add("--markdown", metavar="FILE", help="write the tables as a page")
    parser.add_argument("--plot", action="store_true", help="draw figures beside the JSON")
    add("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two JSON files; no run")
    add("--show", nargs="+", metavar="JSON", help="tables of existing documents; no run")
    parser.add_argument(
        "--update",
        action="store_true",
        help="keep the rows of the existing JSON that this run does not measure",
    )
    parser.add_argument(
        "--accelerator",
        action="store_true",
        help="the most valuable cases first, each saved at once; the same command continues",
    )
    parser.add_argument(
        "--minutes",
        type=_positive,
        default=10,
        metavar="M",
        help="with --accelerator: begin no case after so many (default: 10)",
    )
    arguments = parser.parse_args(argv)
    arguments.suites = list(dict.fromkeys(arguments.suites))
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
