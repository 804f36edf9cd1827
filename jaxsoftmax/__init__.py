"""Softmax, log-softmax, negative log-likelihood and cross entropy for JAX."""

from jaxsoftmax import closed_form
from jaxsoftmax._batch.labels import debug_checks
from jaxsoftmax._batch.reduction import LossStatistics
from jaxsoftmax._row.targets import SparseLabels
from jaxsoftmax._version import __version__
from jaxsoftmax.binary import binary_cross_entropy
from jaxsoftmax.distributions import log_softmax, logsumexp, softmax
from jaxsoftmax.divergences import kl_divergence, linear_kl_divergence
from jaxsoftmax.linear import linear_cross_entropy
from jaxsoftmax.losses import cross_entropy, nll_loss

__all__ = [
    "LossStatistics",
    "SparseLabels",
    "__version__",
    "binary_cross_entropy",
    "closed_form",
    "cross_entropy",
    "debug_checks",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "softmax",
]
