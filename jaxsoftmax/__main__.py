"""`python -m jaxsoftmax`: check this installation on the devices that JAX sees."""

from __future__ import annotations

import sys

import jax

from jaxsoftmax import _selfcheck, tuning
from jaxsoftmax._fused import select
from jaxsoftmax._version import __version__

# Tokens, features and classes of heads that people train.
_SHAPES = ((2048, 768, 50257), (8192, 2304, 256000), (16384, 4096, 128256))

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
    print_choices()
    print(f"\n{total - failures} of {total} checks passed")
    return 1 if failures or not total else 0


def print_choices() -> None:
    """What `auto` takes for some heads on the default device, and why."""
    print(f'\nlinear_cross_entropy(..., implementation="auto") on {tuning.device().kind}:')
    for tokens, features, classes in _SHAPES:
        for dtype in ("float32", "bfloat16"):
            call = select.Call(tokens, features, classes, dtype, dtype)
            choice = select.choose("auto", None, call)
            shape = f"{tokens} x {features} x {classes} {dtype}"
            print(f"  {shape:30} {choice.implementation:10} {choice.why}")


if __name__ == "__main__":
    sys.exit(main())
