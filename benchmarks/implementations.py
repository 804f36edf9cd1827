"""The peers of each operation; importing this module registers all of them.

A peer is a function from arrays to arrays, which the runner jits, differentiates and times. A peer
that does not use JAX runs in a separate process (see `workers`), because two thread pools in one
process slow each other down; its functions are in its worker's module.
"""

from __future__ import annotations

from benchmarks.peers import chapter, linear, logits
from benchmarks.registry import OURS, Implementation, of

__all__ = ["OURS", "Implementation", "chapter", "linear", "logits", "of"]
