"""From a model's answers to beliefs: NLLs and probes -> log prior, log likelihood, log posterior.

All of it is in log space, over the last axis (N hypotheses), in the array library of the arguments
(see `divergence`). A hypothesis that is not there (padding, a duplicate) has a probability of zero,
that is -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from surprise.divergence import (
    js_divergence,
    kl_divergence,
    log_evidence,
    logsumexp,
    together,
)
from surprise.settings import Settings

PROBE_FLOOR = 1e-30
"""P(yes) is taken to be at least this, so that beliefs stay defined where all are refuted."""


def reduce_nll(
    nll: Float[Any, "*batch N"], tokens: Num[Any, "*batch N"], *, reduction: str = "mean"
) -> Float[Any, "*batch N"]:
    """Summed NLLs (nats) -> one figure per hypothesis: their `mean` over tokens, or the `sum`.

    The mean is what the released code takes; the paper (eq. 1) states no normalisation. A count of
    zero counts as one.
    """
    xp, nll, tokens = together(nll, tokens)
    if reduction == "sum":
        return nll
    if reduction == "mean":
        return nll / xp.maximum(tokens, 1.0)
    raise ValueError(f"reduction is {reduction!r}; choose from mean, sum")


def log_beliefs(
    nll: Float[Any, "*batch N"],
    valid: Bool[Any, "*batch N"] | None = None,
    *,
    tau: float = 1.0,
) -> Float[Any, "*batch N"]:
    """log softmax(-NLL / tau) over the valid hypotheses (paper, eq. 1 and 2); -inf at the others.

    Where no hypothesis of a row is valid, all of it is -inf.
    """
    xp, nll = together(nll)
    if valid is None:
        return _normalised(xp, -nll / tau)
    return _normalised(xp, xp.where(valid, -xp.where(valid, nll, 0.0) / tau, -xp.inf))


def bayes(
    log_prior: Float[Any, "*batch N"], log_likelihood: Float[Any, "*batch N"]
) -> Float[Any, "*batch N"]:
    """Bayes' rule: log of prior x likelihood, normalised over the hypotheses."""
    xp, log_prior, log_likelihood = together(log_prior, log_likelihood)
    return _normalised(xp, log_prior + log_likelihood)


def log_ratio(
    posterior_nll: Float[Any, "*batch N"],
    prior_nll: Float[Any, "*batch N"],
    *,
    tau: float = 1.0,
) -> Float[Any, "*batch N"]:
    """log P(b | H, W, O) - log P(b | H, W), each tempered by tau: what O did for each hypothesis.

    As a likelihood it makes Bayes' rule give the posterior of eq. 2 exactly: the prior is
    proportional to exp(-prior_nll / tau), the product to exp(-posterior_nll / tau).
    """
    _, posterior_nll, prior_nll = together(posterior_nll, prior_nll)
    return (prior_nll - posterior_nll) / tau


def log_probe(p_yes: Float[Any, "*batch N"]) -> Float[Any, "*batch N"]:
    """log P(yes), with P(yes) held within [PROBE_FLOOR, 1]."""
    xp, p_yes = together(p_yes)
    return xp.log(xp.clip(p_yes, PROBE_FLOOR, 1.0))


def with_other(
    log_prior: Float[Any, "*batch N"],
    log_likelihood: Float[Any, "*batch N"],
    *,
    prior_other: float = 0.1,
    likelihood_other: float = 0.5,
) -> tuple[Float[Any, "*batch N+1"], Float[Any, "*batch N+1"]]:
    """Appends the hypothesis "something else" to log prior and log likelihood.

    It takes `prior_other` of the prior from the others. Where all of them are refuted alike, the
    belief moves to it and KL sees the event, which without it is blind (posterior = prior).
    """
    xp, log_prior, log_likelihood = together(log_prior, log_likelihood)
    like = xp.zeros_like(log_prior[..., :1])
    return (
        xp.concatenate(
            [log_prior + math.log1p(-prior_other), like + math.log(prior_other)], axis=-1
        ),
        xp.concatenate([log_likelihood, like + math.log(likelihood_other)], axis=-1),
    )


@dataclass(frozen=True)
class Beliefs:
    """B steps' beliefs and the distances between them; 0 where a row has no hypothesis.

    Probabilities are 0 at invalid places and sum to 1; the place after the N-th, if settings.other
    asks for it, is "something else".
    """

    prior: Float[np.ndarray, "B places"]
    posterior: Float[np.ndarray, "B places"]
    kl: Float[np.ndarray, " B"]
    js: Float[np.ndarray, " B"]
    evidence: Float[np.ndarray, " B"]


def weigh(
    settings: Settings,
    valid: Bool[np.ndarray, "B N"],
    prior_nll: Float[np.ndarray, "B N"],
    support: Float[np.ndarray, "B N"],
) -> Beliefs:
    """Prior, posterior, KL, JS and evidence in float64, as `settings` has them.

    `prior_nll` is reduced; `support` is the reduced NLL after the observation (posterior `nll`) or
    P(yes) (`probe`). The likelihood that evidence sums over the prior is P(yes) in the probe form;
    in the NLL form exp(-NLL / tau) after the observation, or its ratio to before (`likelihood`).
    """
    log_prior = log_beliefs(prior_nll, valid, tau=settings.tau)
    if settings.posterior == "probe":
        log_likelihood = log_probe(support)
    elif settings.likelihood == "ratio":
        log_likelihood = log_ratio(support, prior_nll, tau=settings.tau)
    else:
        _, support = together(support)
        log_likelihood = -support / settings.tau
    if settings.other:
        log_prior, log_likelihood = with_other(
            log_prior,
            log_likelihood,
            prior_other=settings.other_prior,
            likelihood_other=settings.other_likelihood,
        )
    if settings.posterior == "nll" and not settings.other:
        log_posterior = log_beliefs(support, valid, tau=settings.tau)
    else:
        log_posterior = bayes(log_prior, log_likelihood)
    there = valid.any(-1, keepdims=True)
    places = np.concatenate([valid, there], -1) if settings.other else valid
    prior, posterior = (_probabilities(log, places & there) for log in (log_prior, log_posterior))
    # Rounding can leave a hair below zero where both are the same.
    return Beliefs(
        prior=prior,
        posterior=posterior,
        kl=np.maximum(kl_divergence(posterior, prior), 0.0),
        js=np.clip(js_divergence(posterior, prior), 0.0, 1.0),
        evidence=np.where(there[:, 0], log_evidence(log_prior, log_likelihood), 0.0),
    )


def _probabilities(
    logs: Float[np.ndarray, "B places"], places: Bool[np.ndarray, "B places"]
) -> Float[np.ndarray, "B places"]:
    """exp, with no hypothesis that is there rounded down to 0: KL, and JSON, know no infinity."""
    return np.where(places, np.exp(np.maximum(logs, np.log(np.finfo(np.float64).tiny))), 0.0)


def _normalised(xp, values):
    total = logsumexp(values)[..., None]
    return values - xp.where(xp.isfinite(total), total, 0.0)
