"""Softmax, log-softmax, negative log-likelihood and cross entropy for JAX.

distributions   logsumexp, softmax, log_softmax
losses          cross_entropy, nll_loss, binary_cross_entropy; LossStatistics, debug_checks
linear          linear_cross_entropy
closed forms    closed_form.softmax_jacobian, .cross_entropy_gradient, .cross_entropy_hessian
"""

from jaxsoftmax import closed_form
from jaxsoftmax._batch import debug_checks
from jaxsoftmax._loss import LossStatistics
from jaxsoftmax._version import __version__
from jaxsoftmax.distributions import log_softmax, logsumexp, softmax
from jaxsoftmax.linear import linear_cross_entropy
from jaxsoftmax.losses import binary_cross_entropy, cross_entropy, nll_loss

__all__ = [
    "LossStatistics",
    "__version__",
    "binary_cross_entropy",
    "closed_form",
    "cross_entropy",
    "debug_checks",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "softmax",
]
