"""`python -m jaxsoftmax`: check this installation on the devices that JAX sees."""

from __future__ import annotations

import sys

import jax

from jaxsoftmax import _selfcheck
from jaxsoftmax._version import __version__

_LINE = "{device:14} {dtype:9} {name:29} {value:>9} {gradient:>9}  {verdict}"


def main() -> int:
    """Print a line a check; 0 where all pass."""
    print(f"jaxsoftmax {__version__}, JAX {jax.__version__}")
    print("relative errors against float64, allowed in brackets where exceeded\n")
    header = {"value": "value", "gradient": "gradient", "verdict": ""}
    print(_LINE.format(device="device", dtype="dtype", name="function", **header))
    failures = total = 0
    for outcome in _selfcheck.run():
        total += 1
        failures += not outcome.passed
        allowed = f"({outcome.allowed_value:.0e}, {outcome.allowed_gradient:.0e})"
        print(
            _LINE.format(
                device=outcome.device,
                dtype=outcome.dtype,
                name=outcome.name,
                value=f"{outcome.value_error:.1e}",
                gradient=f"{outcome.gradient_error:.1e}",
                verdict="ok" if outcome.passed else f"FAILED {allowed}",
            )
        )
    print(f"\n{total - failures} of {total} checks passed")
    return 1 if failures or not total else 0


if __name__ == "__main__":
    sys.exit(main())
