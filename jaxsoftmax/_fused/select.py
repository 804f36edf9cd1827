"""Which implementation serves a call, and the sentence why another one cannot."""

from __future__ import annotations

IMPLEMENTATIONS = ("auto", "reference", "chunked")


def choose(implementation: object, chunk_size: int | None) -> str:
    """The name of the implementation; an error where what was asked for is not to be had."""
    if not isinstance(implementation, str) or implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, "
            f"got {implementation!r}"
        )
    if implementation == "reference" and chunk_size is not None:
        raise ValueError(
            f'chunk_size={chunk_size} is for implementation="chunked", got '
            'implementation="reference", which has all logits at once'
        )
    return "chunked" if implementation == "auto" else implementation
