"""What the loss of a linear layer is given, and what it is differentiated by."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float

from jaxsoftmax._options import Numbers
from jaxsoftmax._row.targets import ClassLabels, Labels, SparseLabels

Wanted = frozenset[str]  # names of `Differentiable`


class Rows(NamedTuple):
    """What has a row for each token."""

    hidden: Float[Array, "*batch D"]
    labels: Labels
    ignored: Bool[Array, "*batch"] | None
    where: Bool[Array, "*batch V"] | None
    weights: Float[Array, "*batch"]  # in a sum of losses


class Layer(NamedTuple):
    """What all tokens share."""

    kernel: Float[Array, "D V"] | Float[Array, "V D"]
    bias: Float[Array, "V"] | None
    class_weights: Float[Array, "V"] | None
    where: Bool[Array, "V"] | None
    numbers: Numbers


class Given(NamedTuple):
    """Both."""

    rows: Rows
    layer: Layer


class Differentiable(NamedTuple):
    """What the loss is differentiated by, but for the weights of the rows.

    Also the gradients and the tangents, with None for one that is not wanted, or 0.
    """

    hidden: Float[Array, "*batch D"] | None
    soft_labels: Float[Array, "*batch V"] | None
    kernel: Float[Array, "D V"] | Float[Array, "V D"] | None
    bias: Float[Array, "V"] | None
    class_weights: Float[Array, "V"] | None
    label_smoothing: Float[Array, ""] | None
    z_loss: Float[Array, ""] | None
    soft_cap: Float[Array, ""] | None
    temperature: Float[Array, ""] | None

    @property
    def numbers(self) -> Numbers:
        """The last of them."""
        return Numbers(*self[-len(Numbers._fields) :])

    @classmethod
    def whole(cls, given: Given) -> Wanted:
        """Names of those that devices which split the classes have in full, and not a part of."""
        named = {"soft_labels"} if isinstance(given.rows.labels, SparseLabels) else set()
        return frozenset(named | set(Numbers._fields))

    @classmethod
    def of(cls, given: Given) -> Differentiable:
        """Of what is given, or of its tangents."""
        rows, layer = given
        soft = None if isinstance(rows.labels, ClassLabels) else rows.labels.weights
        return cls(rows.hidden, soft, layer.kernel, layer.bias, layer.class_weights, *layer.numbers)

    def names(self) -> Wanted:
        """Of those that are not None."""
        pairs = zip(self._fields, self, strict=True)
        return frozenset(name for name, x in pairs if x is not None)

    def only(self, wanted: Wanted) -> Differentiable:
        """The others None."""
        pairs = zip(self._fields, self, strict=True)
        return Differentiable(*(x if name in wanted else None for name, x in pairs))
