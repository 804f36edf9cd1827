"""What the loss of a linear layer is given, and what it is differentiated by.

A divergence is given two layers: the target of its logits are those of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from jax import Array
from jaxtyping import Bool, Float

from jaxsoftmax._arguments import Head
from jaxsoftmax._options import Numbers
from jaxsoftmax._row.targets import Labels, SoftLabels, SparseLabels

Wanted = frozenset[str]  # names of `Differentiable`
TARGET: Wanted = frozenset({"target_hidden", "target_kernel", "target_bias"})
_PREFIXES = ("", "target_")
HIDDEN, KERNELS = ("hidden", "target_hidden"), ("kernel", "target_kernel")
VECTORS = ("bias", "target_bias", "class_weights")
Kernel = Float[Array, "D V"] | Float[Array, "V D"]


class OfHead(NamedTuple):
    """The gradients or tangents of a `Head`."""

    hidden: Float[Array, "*batch D"] | None
    kernel: Kernel | None
    bias: Float[Array, "V"] | None


class Rows(NamedTuple):
    """What has a row for each token."""

    hidden: Float[Array, "*batch D"]
    labels: Labels | None
    ignored: Bool[Array, "*batch"] | None
    where: Bool[Array, "*batch V"] | None
    weights: Float[Array, "*batch"]  # in a sum of losses
    target_hidden: Float[Array, "*batch E"] | None = None  # in place of labels


class Layer(NamedTuple):
    """What all tokens share."""

    kernel: Kernel
    bias: Float[Array, "V"] | None
    class_weights: Float[Array, "V"] | None
    where: Bool[Array, "V"] | None
    numbers: Numbers
    target_kernel: Kernel | None = None
    target_bias: Float[Array, "V"] | None = None


class Given(NamedTuple):
    """Both."""

    rows: Rows
    layer: Layer

    def heads(self) -> list[Head]:
        """One, or two that are compared."""
        rows, layer = self
        heads = [Head(rows.hidden, layer.kernel, layer.bias)]
        if rows.target_hidden is not None and layer.target_kernel is not None:
            heads.append(Head(rows.target_hidden, layer.target_kernel, layer.target_bias))
        return heads


class Differentiable(NamedTuple):
    """What the loss is differentiated by, but for the weights of the rows.

    Also the gradients and the tangents, with None for one that is not wanted, or 0.
    """

    hidden: Float[Array, "*batch D"] | None
    target_hidden: Float[Array, "*batch E"] | None
    soft_labels: Float[Array, "*batch V"] | None
    kernel: Kernel | None
    target_kernel: Kernel | None
    bias: Float[Array, "V"] | None
    target_bias: Float[Array, "V"] | None
    class_weights: Float[Array, "V"] | None
    label_smoothing: Float[Array, ""] | None
    z_loss: Float[Array, ""] | None
    soft_cap: Float[Array, ""] | None
    temperature: Float[Array, ""] | None

    def of_rows(self) -> tuple[Array | None, ...]:
        """The first of them, of each row."""
        return self[:3]

    def of_layer(self) -> tuple[Array | None, ...]:
        """The others, which all rows share."""
        return self[3:]

    @property
    def numbers(self) -> Numbers:
        """The last of them."""
        return Numbers(*self[-len(Numbers._fields) :])

    def head(self, k: int) -> OfHead:
        """Those of one of `Given.heads`."""
        return OfHead(*(getattr(self, _PREFIXES[k] + name) for name in OfHead._fields))

    def with_head(self, k: int, head: OfHead) -> Differentiable:
        """The same with that one replaced."""
        named = head._asdict().items()
        return self._replace(**{_PREFIXES[k] + name: x for name, x in named})

    def plus(self, **more: Array | None) -> Differentiable:
        """The same with more added to some of them."""
        named = {name: x for name, x in more.items() if x is not None}
        return self._replace(**{name: getattr(self, name) + x for name, x in named.items()})

    @classmethod
    def whole(cls, given: Given) -> Wanted:
        """Names of those that devices which split the classes have in full, and not a part of."""
        named = {"soft_labels"} if isinstance(given.rows.labels, SparseLabels) else set()
        return frozenset(named | set(Numbers._fields))

    @classmethod
    def of(cls, given: Given) -> Differentiable:
        """Of what is given, or of its tangents."""
        rows, layer = given
        labels = rows.labels
        soft = labels.weights if isinstance(labels, (SoftLabels, SparseLabels)) else None
        return cls(
            rows.hidden,
            rows.target_hidden,
            soft,
            layer.kernel,
            layer.target_kernel,
            layer.bias,
            layer.target_bias,
            layer.class_weights,
            *layer.numbers,
        )

    def names(self) -> Wanted:
        """Of those that are not None."""
        pairs = zip(self._fields, self, strict=True)
        return frozenset(name for name, x in pairs if x is not None)

    def only(self, wanted: Wanted) -> Differentiable:
        """The others None."""
        pairs = zip(self._fields, self, strict=True)
        return Differentiable(*(x if name in wanted else None for name, x in pairs))


Tree = TypeVar("Tree", Layer, Differentiable)


def with_each(tree: Tree, names: Sequence[str], f: Callable[[Array, int], Array]) -> Tree:
    """The same with f(x, k) for each of these fields, the k-th name, that is not None."""
    found = {name: getattr(tree, name) for name in names if getattr(tree, name) is not None}
    named = {name: f(x, names.index(name)) for name, x in found.items()}
    return tree._replace(**named)  # type: ignore[arg-type]
