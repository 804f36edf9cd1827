"""`python -m jaxsoftmax`: check this installation on the devices that JAX sees."""

from __future__ import annotations

import sys

import jax

from jaxsoftmax import _selfcheck
from jaxsoftmax._version import __version__

_LINE = "{:14} {:13} {:43} {:>9} {:>9}  {}"


def main() -> int:
    """Print one line per check; return 0 if all pass."""
    print(f"jaxsoftmax {__version__}, JAX {jax.__version__}")
    print("relative errors against float64, allowed in brackets where exceeded\n")
    print(_LINE.format("device", "dtype", "function", "value", "gradient", ""))
    passed = []
    for device, dtype, name, errors, allowed in _selfcheck.run():
        passed.append(all(e <= a for e, a in zip(errors, allowed, strict=True)))
        verdict = "ok" if passed[-1] else "FAILED ({:.0e}, {:.0e})".format(*allowed)
        print(_LINE.format(device, dtype, name, *(f"{e:.1e}" for e in errors), verdict))
    print(f"\n{sum(passed)} of {len(passed)} checks passed")
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
