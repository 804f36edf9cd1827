"""Who computes each operation: importing this registers every peer.

A function takes arrays and returns arrays; the runner jits it, differentiates it and times it. A
peer that is not JAX runs in a process of its own (see `workers`), because two thread pools in one
process disturb each other; its functions are in its worker's module.
"""

from __future__ import annotations

from benchmarks.peers import chapter, linear, logits
from benchmarks.registry import OURS, Implementation, of

__all__ = ["OURS", "Implementation", "chapter", "linear", "logits", "of"]
