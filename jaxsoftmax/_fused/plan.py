"""How many tokens at a time: shapes in, numbers out; testable without a device."""

from __future__ import annotations

from typing import Any, NamedTuple

# Enough rows to keep a matrix unit busy, and 1/16 of the logits of the usual 8192 tokens.
DEFAULT_TOKENS = 512

# A program that is exported for any number of rows has a loop of so many steps, not knowing how
# many rows a step then takes.
SYMBOLIC_STEPS = 16


class Plan(NamedTuple):
    """`steps` chunks of `tokens` rows each cover all of them, the last padded where needed."""

    tokens: Any  # an int, or a symbolic dimension
    steps: int

    @property
    def rows(self) -> Any:
        """All rows, the padding included."""
        return self.tokens * self.steps


def make_plan(rows: Any, chunk_size: int | None) -> Plan:
    """Chunks of at most `chunk_size` tokens: without padding where that costs few tokens a chunk.

    Padding copies the hidden states and the distributions; chunks down to three quarters of the
    asked size are tried for one that divides the rows.
    """
    if not isinstance(rows, int):
        return Plan(-(-rows // SYMBOLIC_STEPS), SYMBOLIC_STEPS)
    largest = max(1, min(chunk_size or DEFAULT_TOKENS, rows))
    for tokens in range(largest, 3 * largest // 4, -1):
        if rows % tokens == 0:
            return Plan(tokens, max(1, rows // tokens))
    steps = -(-rows // largest)
    return Plan(-(-rows // steps), steps)
