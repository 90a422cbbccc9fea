"""Distances between two beliefs: arrays [..., N] -> [...].

Each function computes in the array library of its arguments. NumPy input (the traces) is computed
in float64; JAX input in at least float32, differentiably, with finite gradients where a probability
is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float


def kl_divergence(
    posterior: Float[Any, "*batch N"], prior: Float[Any, "*batch N"]
) -> Float[Any, "*batch"]:
    """KL(posterior || prior) in nats, the Bayesian surprise of SPIKE (arXiv 2509.23433, eq. 3).

    sum_i post_i (log post_i - log prior_i), with 0 log 0 = 0, and infinite where the prior rules
    out what the posterior allows.
    """
    xp, posterior, prior = together(posterior, prior)
    return xp.sum(posterior * (_safe_log(xp, posterior) - _safe_log(xp, prior)), -1) + xp.sum(
        xp.where((posterior > 0) & (prior <= 0), xp.inf, 0.0), -1
    )


def js_divergence(
    posterior: Float[Any, "*batch N"], prior: Float[Any, "*batch N"]
) -> Float[Any, "*batch"]:
    """Jensen-Shannon divergence in bits: symmetric, always finite, within [0, 1].

    (KL(post || m) + KL(prior || m)) / (2 ln 2) with m = (post + prior) / 2.
    """
    _, posterior, prior = together(posterior, prior)
    middle = 0.5 * (posterior + prior)
    both = kl_divergence(posterior, middle) + kl_divergence(prior, middle)
    return both * (0.5 / math.log(2.0))


def evidence(
    prior: Float[Any, "*batch N"], likelihood: Float[Any, "*batch N"]
) -> Float[Any, "*batch"]:
    """-log sum_i prior_i likelihood_i in nats: how badly the beliefs as a whole did.

    It is large where every hypothesis is refuted, which KL can't see (the posterior is then the
    prior); infinite where the sum is zero.
    """
    xp, prior, likelihood = together(prior, likelihood)
    total = xp.sum(prior * likelihood, -1)
    return xp.where(total > 0, -_safe_log(xp, total), xp.inf)


def log_evidence(
    log_prior: Float[Any, "*batch N"], log_likelihood: Float[Any, "*batch N"]
) -> Float[Any, "*batch"]:
    """`evidence` from logarithms (-inf for a probability of zero): nothing under- or overflows."""
    _, log_prior, log_likelihood = together(log_prior, log_likelihood)
    return -logsumexp(log_prior + log_likelihood)


def logsumexp(values: Float[Any, "*batch N"]) -> Float[Any, "*batch"]:
    """log sum_i exp(value_i), in the array library of its argument; -inf where all are -inf."""
    xp, values = together(values)
    peak = xp.max(values, -1, keepdims=True)
    peak = xp.where(xp.isfinite(peak), peak, 0.0)
    total = xp.sum(xp.exp(values - peak), -1)
    return xp.where(total > 0, _safe_log(xp, total), -xp.inf) + xp.squeeze(peak, -1)


def together(*arrays: Any) -> tuple[Any, ...]:
    """The array library of the arguments, then the arguments in it: float64, or JAX's float32 up.

    Lists count as NumPy. A mixture of NumPy and JAX is computed by JAX.
    """
    libraries = [
        array.__array_namespace__()
        for array in arrays
        if not isinstance(array, np.ndarray | np.generic | Sequence)
    ]
    xp: ModuleType = libraries[0] if libraries else np
    if xp is np:
        return np, *(np.asarray(array, np.float64) for array in arrays)
    arrays = tuple(xp.asarray(array) for array in arrays)
    dtype = np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32
    return xp, *(array.astype(dtype) for array in arrays)


def _safe_log(xp: ModuleType, values: Any) -> Any:
    """log(value) where value > 0, elsewhere 0 with a gradient of 0."""
    return xp.log(xp.where(values > 0, values, 1.0))
