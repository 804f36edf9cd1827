"""How the devices of a mesh divide a linear loss between them: shapes and axes in, a choice out.

Numbers that a device sends, for N tokens, D features and V classes:

`stay`  Tokens stay where they are. The kernel is gathered over its features, once before the loop,
        and each device sums a part of its gradient, which are added once, after it: about 2 D V
        for each device that shares the classes.
`move`  The classes go over all devices, the kernel by an all-to-all from where its features are.
        Each chunk of tokens is gathered, each device has the kernel's gradient of its classes
        complete, and the hidden states' gradient is summed: about 2 N D, and 2 D V / devices.

The cheaper one is taken: with few tokens and a large vocabulary the second, in most steps of
training the first.
"""

from __future__ import annotations

import dataclasses
import math

from jaxsoftmax._fused.given import Given
from jaxsoftmax._fused.plan import Plan
from jaxsoftmax._row.targets import SoftLabels
from jaxsoftmax._xla.layouts import Axes, Layout, Shape, Spec
from jaxsoftmax._xla.programs import Tree


@dataclasses.dataclass(frozen=True)
class Division:
    """Mesh axes of each dimension, as arrays lie and as the work is divided."""

    lies: Spec  # the tokens, each batch dimension, as they lie
    tokens: Spec  # in the work
    features: Axes  # of the kernel, as it lies
    classes: Axes  # of the kernel, as it lies
    shards: Axes  # of the classes, in the work
    moves: bool  # whether tokens are gathered

    @property
    def token_axes(self) -> Axes:
        """All of the tokens."""
        return tuple(axis for axes in self.tokens for axis in axes)

    @property
    def added(self) -> Axes:
        """Axes over which the kernel's whole classes are split before it is moved."""
        return tuple(a for a in self.shards if a not in (*self.classes, *self.features))


def division_of(
    layout: Layout, given: Given, known: Tree, plan: Plan, *, gradients: bool
) -> Division | None:
    """How devices with this layout divide a call; None where they do not.

    `known` has in place of each array what its type says of explicit axes, or None.
    """
    kernel, batch = given.layer.kernel, given.rows.hidden.shape[:-1]
    placed = _kernel_spec(layout, kernel.shape, known.layer.kernel)
    if placed is None or not all(isinstance(n, int) for n in (*batch, *kernel.shape)):
        return None
    at = plan.feature_axis
    features, classes = placed[at], placed[1 - at]
    tokens = _token_spec(layout, given, known, classes)
    if tokens is None or not any((*tokens, *placed)):
        return None
    hidden = layout.of(given.rows.hidden.shape)
    lies = tokens if hidden is None else hidden[:-1]
    of_heads = [head.hidden.shape[-1] for head in given.heads()]
    if any(size % layout.size(features) for size in of_heads):
        return None
    sizes = (math.prod(batch), sum(of_heads), kernel.shape[1 - at])
    candidates = [_stay(lies, tokens, features, classes)]
    if not isinstance(given.rows.labels, SoftLabels) and given.rows.where is None:
        candidates.append(_move(layout, lies, tokens, features, classes))
    possible = [d for d in candidates if d is not None and _fits(layout, d, batch, sizes[1:])]
    return min(possible, key=lambda d: sent(layout, d, sizes, gradients), default=None)


def _stay(lies: Spec, tokens: Spec, features: Axes, classes: Axes) -> Division | None:
    of_tokens = {axis for axes in tokens for axis in axes}
    shards = tuple(axis for axis in classes if axis not in of_tokens)
    # Gathered classes must be neighbours, and a gathered kernel the same for all of its tokens.
    neighbours = classes[: len(shards)] == shards
    own = tuple(axis for axis in features if axis not in of_tokens)
    divided = ((*tokens[0], *own), *tokens[1:]) if tokens else tokens
    if not neighbours or (own and not tokens):
        return None
    return Division(lies, divided, features, classes, shards, False)


def _move(layout: Layout, lies: Spec, tokens: Spec, features: Axes, classes: Axes) -> Division:
    free = tuple(a for a in layout.mesh.axis_names if a not in (*features, *classes))
    return Division(lies, tokens, features, classes, (*classes, *free, *features), True)


def _fits(layout: Layout, division: Division, batch: Shape, sizes: tuple[int, int]) -> bool:
    features, classes = sizes
    pairs = zip(batch, division.tokens, strict=True)
    return (
        all(size % layout.size(axes) == 0 for size, axes in pairs)
        and classes % layout.size(division.shards) == 0
        and classes % layout.size((*division.classes, *division.added)) == 0
        and features % layout.size(division.features) == 0
    )


def sent(layout: Layout, division: Division, sizes: tuple[int, int, int], gradients: bool) -> float:
    """Numbers that a device sends in one pass, with ring algorithms."""
    tokens, features, classes = sizes
    passes = 2 if gradients else 1
    own_tokens = tokens // layout.size(division.token_axes) * features
    of_kernel = features * classes / layout.size(division.shards)
    if division.moves:
        others = layout.size(division.shards) / layout.size(division.token_axes)
        scattered = own_tokens * (layout.size(division.token_axes) - 1)
        summed = 2 * own_tokens * (1 - 1 / others) if gradients else 0.0
        moved = of_kernel * (1 - 1 / layout.size(division.features))
        home = of_kernel * layout.size(division.features) * (layout.size(division.added) - 1)
        return passes * (scattered + moved) + summed + (home if gradients else 0.0)
    gathered = layout.size((*division.features, *division.classes)) // layout.size(division.shards)
    total = of_kernel * (1 - 1 / gathered)
    if gradients:
        total += of_kernel * (1 - 1 / gathered)
        rest = max(1, layout.size(division.token_axes) // gathered)
        total += 2 * of_kernel / gathered * (1 - 1 / rest)
        total += 2 * own_tokens * (1 - 1 / layout.size(division.shards))
    return total


# --- how arrays lie -------------------------------------------------------------------------------


def _kernel_spec(layout: Layout, shape: Shape, known: Spec | None) -> Spec | None:
    found = layout.of(shape)
    if found is None and shape[0] != shape[1]:  # it may be the transpose of an argument
        found = layout.of(shape[::-1])
        found = None if found is None else found[::-1]
    return _agreed(found, known)


def _token_spec(layout: Layout, given: Given, known: Tree, classes: Axes) -> Spec | None:
    """How the batch is split: as an argument of the hidden states' shape, or the labels'.

    Else as one that holds several such batches, or one that begins with as many examples (tokens
    before they are shifted). Where there is none, over all axes that the classes do not use.
    """
    batch = given.rows.hidden.shape[:-1]
    hidden = _agreed(layout.of(given.rows.hidden.shape), known.rows.hidden)
    if hidden is not None and (any(hidden[:-1]) or known.rows.hidden is not None):
        return hidden[:-1]
    found = layout.of(batch)
    if found is not None:
        return found
    for shape, spec in layout.arguments:
        if shape[1:] == batch and len(shape) > 1:
            return spec[1:]
    for shape, spec in layout.arguments:
        if shape[:1] == batch[:1] and any(spec[:1]) and len(shape) <= len(batch):
            return (spec[0], *((),) * (len(batch) - 1))
    free = tuple(axis for axis in layout.mesh.axis_names if axis not in classes)
    divides = batch and batch[0] % layout.size(free) == 0
    return (free, *((),) * (len(batch) - 1)) if divides else None


def _agreed(found: Spec | None, known: Spec | None) -> Spec | None:
    """What types say, which name no automatic axis, with what the arguments say of those."""
    if known is None or found is None:
        return known or found
    pairs = zip(known, found, strict=True)
    return found if all(set(k) <= set(f) for k, f in pairs) else known
