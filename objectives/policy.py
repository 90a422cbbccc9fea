"""Terms of a policy loss: arrays of one value per completion token, to be reduced by `masked`.

logp is log π_θ(token), the only argument that gradients go through; `behaviour` is log π_old, the
policy that sampled (None: the same as now, so that the ratio is 1 and its gradient REINFORCE's).
Log-ratios come out [*batch, L] at every level, so that terms and reductions combine freely:

    loss = reduction(term, mask) + beta * reduction(kl_estimate(logp, reference, mask), mask)

The functions ending in `_loss` are such compositions under their published names.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Bool, Float

from objectives.masked import (
    Array,
    Count,
    constant_length,
    kept,
    mean_of_sequence_means,
    mean_of_sequence_sums,
    sequence_mean,
    sequence_sum,
    token_mean,
    widened,
)

MAX_LOG_RATIO = 20.0
"""Exponents are clamped to ±20, as in verl: beyond it float32 has nothing sensible to say."""


def token_log_ratio(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    mask: Bool[Array, "*batch L"],
) -> Float[jax.Array, "*batch L"]:
    """log ρ_t = log π_θ(o_t) - log π_old(o_t) (GRPO, arXiv 2402.03300, eq. 3); 0 where masked."""
    logp = kept(logp, mask)
    return logp - stop_gradient(logp if behaviour is None else kept(behaviour, mask))


def sequence_log_ratio(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    mask: Bool[Array, "*batch L"],
) -> Float[jax.Array, "*batch L"]:
    """GSPO's length-normalised ratio of a sequence, repeated over its tokens; 0 where masked.

    log s = 1/|o| Σ_t log ρ_t (arXiv 2507.18071, eq. 7)
    """
    ratio = sequence_mean(token_log_ratio(logp, behaviour, mask), mask)
    return kept(jnp.broadcast_to(ratio[..., None], jnp.shape(mask)), mask)


def gspo_token_log_ratio(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    mask: Bool[Array, "*batch L"],
) -> Float[jax.Array, "*batch L"]:
    """GSPO-token: the value of the sequence's ratio, the gradient of the token's log-probability.

    log s_t = sg[log s] + log π_θ(o_t) - sg[log π_θ(o_t)] (arXiv 2507.18071, eq. 14)
    """
    value = stop_gradient(sequence_log_ratio(logp, behaviour, mask))
    return value + token_log_ratio(logp, None, mask)


def clipped_surrogate(
    log_ratio: Float[Array, "*batch L"],
    advantages: Float[Array, "*batch"],
    *,
    low: float = 0.2,
    high: float | None = None,
    dual: float | None = None,
    delta: float | None = None,
) -> Float[jax.Array, "*batch L"]:
    """PPO's clipped objective as a loss per token (arXiv 1707.06347, eq. 7).

    -min(ρA, clip(ρ, 1 - low, 1 + high) A)

    Args:
      high: defaults to `low`; 0.28 is DAPO's clip-higher (arXiv 2503.14476, eq. 10).
      dual: the loss is at most -dual · A where A < 0 (dual clip, arXiv 1912.09729, eq. 5), 3 in
        verl; None is off.
      delta: in ρA, ρ is at most delta (two-sided clip, arXiv 2505.07291); None is off.
    """
    advantages = widened(advantages)[..., None]
    ratio = _exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + (low if high is None else high))
    capped = ratio if delta is None else jnp.minimum(ratio, delta)
    loss = -jnp.minimum(capped * advantages, clipped * advantages)
    if dual is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)


def policy_gradient(
    logp: Float[Array, "*batch L"], advantages: Float[Array, "*batch"]
) -> Float[jax.Array, "*batch L"]:
    """REINFORCE, without ratio or clip (Williams 1992): -A log π_θ(o_t)."""
    return -widened(advantages)[..., None] * widened(logp)


def clipped_weight(
    logp: Float[Array, "*batch L"],
    log_ratio: Float[Array, "*batch L"],
    advantages: Float[Array, "*batch"],
    *,
    cap: float = 5.0,
) -> Float[jax.Array, "*batch L"]:
    """CISPO: the ratio is a bounded constant weight, and no token loses its gradient.

    -sg[min(ρ, cap)] A log π_θ(o_t) (arXiv 2506.13585, eq. 4-5). `cap` is the paper's 1 + ε_high;
    5 is what ScaleRL (arXiv 2510.13786) and TRL's documentation recommend.
    """
    weight = stop_gradient(jnp.minimum(_exp(log_ratio), cap))
    return weight * policy_gradient(logp, advantages)


def kl_estimate(
    logp: Float[Array, "*batch L"],
    reference: Float[Array, "*batch L"],
    mask: Bool[Array, "*batch L"],
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    max_value: float | None = None,
) -> Float[jax.Array, "*batch L"]:
    """KL(π_θ || π_ref) estimated at the sampled tokens (Schulman 2020); 0 where masked.

    With d = log π_θ - log π_ref: k1 = d; k2 = d²/2; k3 = exp(-d) + d - 1, which is GRPO's (arXiv
    2402.03300, eq. 4). As terms of a loss on the policy's own samples, k1 has a mean gradient of
    zero and k2 that of the KL. The exponent is clamped to ±20; `max_value` clamps the estimate to
    ±max_value (verl: 10). For TRL's correction off policy, multiply by exp(log_ratio).
    """
    difference = token_log_ratio(logp, reference, mask)
    if kind == "k1":
        value = difference
    elif kind == "k2":
        value = 0.5 * difference**2
    elif kind == "k3":
        value = _exp(-difference) + difference - 1.0
    else:
        raise ValueError(f"kind is {kind!r}; choose from k1, k2, k3")
    return value if max_value is None else jnp.clip(value, -max_value, max_value)


def full_kl(
    logits: Float[Array, "*batch V"], reference: Float[Array, "*batch V"]
) -> Float[jax.Array, "*batch"]:
    """KL(π_θ || π_ref) over the whole vocabulary, from logits: exact, and never negative.

    Σ_v π_θ(v) (log π_θ(v) - log π_ref(v)). A token that π_θ rules out (-inf) adds nothing. The
    reference takes no gradient. Two [*batch, V] arrays live at once: chunk them where V is large.
    """
    p, q = _log_softmax(logits), stop_gradient(_log_softmax(reference))
    possible = p > -jnp.inf
    return jnp.sum(jnp.exp(p) * (jnp.where(possible, p, 0.0) - jnp.where(possible, q, 0.0)), -1)


def entropy(logits: Float[Array, "*batch V"]) -> Float[jax.Array, "*batch"]:
    """Shannon entropy in nats, from logits: -Σ_v π(v) log π(v)."""
    p = _log_softmax(logits)
    return -jnp.sum(jnp.exp(p) * jnp.where(p > -jnp.inf, p, 0.0), axis=-1)


def importance_weights(
    logp_old: Float[Array, "*batch L"],
    sampler: Float[Array, "*batch L"],
    mask: Bool[Array, "*batch L"],
    *,
    level: Literal["token", "sequence"] = "sequence",
    mode: Literal["mask", "truncate"] = "mask",
    low: float | None = None,
    high: float | None = 3.0,
) -> Float[jax.Array, "*batch L"]:
    """Correction for a sampler whose probabilities are not the trainer's: a constant weight.

    w = π_old / π_sampler per token, or its product over the sequence; outside [low, high] it is
    clipped ("truncate", TIS, Yao et al. 2025) or 0 ("mask", MIS). The defaults are TRL's
    `sequence_mask`. A token whose sampler value is not finite weighs 1; 0 where masked.
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"level is {level!r}; choose from token, sequence")
    if mode not in ("mask", "truncate"):
        raise ValueError(f"mode is {mode!r}; choose from mask, truncate")
    known = jnp.asarray(mask) & jnp.isfinite(sampler)
    difference = kept(logp_old, known) - kept(sampler, known)
    if level == "sequence":
        total = sequence_sum(difference, known)
        difference = jnp.broadcast_to(total[..., None], difference.shape)
    weight = _exp(difference)
    low, high = 0.0 if low is None else low, jnp.inf if high is None else high
    if mode == "truncate":
        weight = jnp.clip(weight, low, high)
    else:
        weight = jnp.where((weight < low) | (weight > high), 0.0, weight)
    return stop_gradient(kept(weight, mask))


def off_policy_keep(
    logp: Float[Array, "*batch L"],
    sampler: Float[Array, "*batch L"],
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    threshold: float,
) -> Bool[jax.Array, "*batch L"]:
    """The mask without the bad sequences that the policy has left behind (arXiv 2512.02556).

    Keeps a sequence where A >= 0 or mean_t(log π_sampler - log π_θ) <= threshold.
    """
    mask = jnp.asarray(mask)
    drift = sequence_mean(-token_log_ratio(logp, sampler, mask), mask)
    return mask & ((widened(advantages) >= 0) | (drift <= threshold))[..., None]


def high_entropy_keep(
    entropies: Float[Array, "*batch L"], mask: Bool[Array, "*batch L"], *, share: float = 0.2
) -> Bool[jax.Array, "*batch L"]:
    """The mask without all but the `share` of tokens with the highest entropy of the batch.

    Keeps H_t >= quantile(H, 1 - share) ("Beyond the 80/20 rule", arXiv 2506.01939, eq. 5; TRL
    `top_entropy_quantile`).
    """
    mask = jnp.asarray(mask)
    values = jnp.where(mask, widened(entropies), jnp.nan)
    return mask & (values >= jnp.nanquantile(values, 1.0 - share))


def clip_shares(
    log_ratio: Float[Array, "*batch L"],
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    low: float = 0.2,
    high: float | None = None,
) -> tuple[Float[jax.Array, ""], Float[jax.Array, ""]]:
    """Share of the tokens that the lower and the upper clip silence; TRL `clip_ratio/*_mean`.

    mean(ρ < 1 - low and A < 0), mean(ρ > 1 + high and A > 0)
    """
    ratio, advantages = _exp(log_ratio), widened(advantages)[..., None]
    below = (ratio < 1.0 - low) & (advantages < 0)
    above = (ratio > 1.0 + (low if high is None else high)) & (advantages > 0)
    return token_mean(widened(below), mask), token_mean(widened(above), mask)


def grpo_loss(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    low: float = 0.2,
    high: float | None = None,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """GRPO without its KL term (arXiv 2402.03300, eq. 3); advantages by `group_zscore`.

    1/N Σ_i 1/|o_i| Σ_t -min(ρ_it A_i, clip(ρ_it, 1 - low, 1 + high) A_i)
    """
    log_ratio = token_log_ratio(logp, behaviour, mask)
    loss = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return mean_of_sequence_means(loss, mask, sequences=sequences)


def dr_grpo_loss(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    length: Count,
    low: float = 0.2,
    high: float | None = None,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """Dr.GRPO (arXiv 2503.20783, sec. 3.2); advantages by `group_centred`.

    1/N Σ_i 1/length Σ_t -min(ρ_it A_i, clip(ρ_it, 1 - low, 1 + high) A_i)
    """
    log_ratio = token_log_ratio(logp, behaviour, mask)
    loss = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return constant_length(loss, mask, length=length, sequences=sequences)


def dapo_loss(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    low: float = 0.2,
    high: float | None = 0.28,
    tokens: Count | None = None,
) -> Float[jax.Array, ""]:
    """DAPO (arXiv 2503.14476, eq. 8); advantages by `group_zscore`, lengths by `overlong_penalty`.

    1/Σ|o_i| Σ_i Σ_t -min(ρ_it A_i, clip(ρ_it, 1 - low, 1 + high) A_i)
    """
    log_ratio = token_log_ratio(logp, behaviour, mask)
    loss = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return token_mean(loss, mask, tokens=tokens)


def gspo_loss(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    low: float = 3e-4,
    high: float | None = 4e-4,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """GSPO (arXiv 2507.18071, eq. 5); advantages by `group_zscore`.

    1/N Σ_i -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)
    """
    log_ratio = sequence_log_ratio(logp, behaviour, mask)
    loss = clipped_surrogate(log_ratio, advantages, low=low, high=high)
    return mean_of_sequence_means(loss, mask, sequences=sequences)


def cispo_loss(
    logp: Float[Array, "*batch L"],
    behaviour: Float[Array, "*batch L"] | None,
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    cap: float = 5.0,
    tokens: Count | None = None,
) -> Float[jax.Array, ""]:
    """CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4); advantages by `group_zscore`.

    1/Σ|o_i| Σ_i Σ_t -sg[min(ρ_it, cap)] A_i log π_θ(o_it)
    """
    log_ratio = token_log_ratio(logp, behaviour, mask)
    return token_mean(clipped_weight(logp, log_ratio, advantages, cap=cap), mask, tokens=tokens)


def reinforce_loss(
    logp: Float[Array, "*batch L"],
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch L"],
    *,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """REINFORCE on whole sequences (Williams 1992); with `leave_one_out` it is RLOO.

    1/N Σ_i -A_i Σ_t log π_θ(o_it) (RLOO: arXiv 2402.14740)
    """
    return mean_of_sequence_sums(policy_gradient(logp, advantages), mask, sequences=sequences)


def spike_rl_loss(
    logp: Float[Array, "*batch K N L"],
    advantages: Float[Array, "*batch"],
    mask: Bool[Array, "*batch K N L"],
    *,
    trajectories: Count | None = None,
) -> Float[jax.Array, ""]:
    """SPIKE-RL: the N hypotheses of all K windows of a rollout are one action (arXiv 2509.23433).

    1/R Σ_r -A_r Σ_k Σ_n Σ_t log π_θ(b_rknt) (eq. 5, whose K is our N), A by `group_zscore`, one
    update a group. The released code trains on the windows k >= 4 alone (mask the others), and
    multiplies its KL by A, which turns its sign where A < 0. Here KL is a term of its own, added:
    `token_mean(kl_estimate(...), mask)` or of `full_kl`.
    """
    actions = sequence_sum(logp, mask)
    return reinforce_loss(
        actions.reshape(*actions.shape[:-2], -1),
        advantages,
        jnp.any(mask, axis=-1).reshape(*actions.shape[:-2], -1),
        sequences=trajectories,
    )


def _exp(log_ratio):
    return jnp.exp(jnp.clip(widened(log_ratio), -MAX_LOG_RATIO, MAX_LOG_RATIO))


def _log_softmax(logits):
    return jax.nn.log_softmax(widened(logits), axis=-1)
