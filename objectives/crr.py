"""Rewards of the relation between a video and its altered copy: CRPO and its siblings.

Both branches answer the same question, G rollouts on the video, H on the altered one (flipped,
reversed, shuffled). Every function takes what the answers were and returns one reward a rollout;
advantages and losses are those of every other method.

CRPO's reward design is published (arXiv 2605.21988, project page): the terms, the gates, the two
trained branches. The sum, its weights and the pairing are not: those here are reconstructed, and
keywords.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from objectives.masked import Array, widened

Pairing = Literal["mean", "paired", "majority", "any", "all"]


class Router(IntEnum):
    """CRPO's classes of questions: which alteration, if any, must change the answer."""

    SPATIAL = 0
    TEMPORAL = 1
    SPATIOTEMPORAL = 2
    STATIC = 3


class Branches(NamedTuple):
    """One array for the rollouts on the video, one for those on the altered video."""

    original: Float[Array, "*batch G"]
    counterfactual: Float[Array, "*batch H"]


def is_dynamic(router: Int[Array, "*batch"]) -> Bool[jax.Array, "*batch"]:
    """Whether the answer must change with the video: every class but STATIC."""
    return jnp.asarray(router) != Router.STATIC


def behaves(
    correct: Bool[Array, "*batch H"],
    valid: Bool[Array, "*batch H"],
    dynamic: Bool[Array, "*batch"],
    *,
    require_valid: bool = True,
) -> Bool[jax.Array, "*batch H"]:
    """Whether each answer to the altered video does what its question's class asks: b_j.

    dynamic: valid_j and ã_j ≠ y*; static: ã_j = y* (CRPO, arXiv 2605.21988, R_behave). y* is the
    original label, and valid means parsable and one of the options offered, the null option
    included: a failure to parse is neither change nor agreement. Any wrong option passes for a
    change, "None of the above" always: log its share in each branch.
    """
    correct, valid = jnp.asarray(correct), jnp.asarray(valid)
    changed = ~correct & valid if require_valid else ~correct
    return jnp.where(jnp.asarray(dynamic)[..., None], changed, correct)


def crr_terms(
    correct: Bool[Array, "*batch G"],
    behaved: Bool[Array, "*batch H"],
    *,
    pairing: Pairing = "mean",
    gated: bool = True,
) -> Branches:
    """Counterfactual relation reward: credit for what the other branch did (CRPO, R_CRR).

    original_i = c_i · P_j(b_j), counterfactual_j = b_j · P_i(c_i), P the mean over the other
    branch, its majority (1[mean > 0.5]), any, all, or its partner of the same index ("paired",
    G = H). The factors in front are the gates (found); gated=False drops them. The mean is
    reconstructed from the page's plurals.
    """
    c, b = (jnp.asarray(part).astype(jnp.float32) for part in (correct, behaved))
    original = jnp.broadcast_to(_paired(b, c, pairing), c.shape)
    counterfactual = jnp.broadcast_to(_paired(c, b, pairing), b.shape)
    return (
        Branches(c * original, b * counterfactual)
        if gated
        else (Branches(original, counterfactual))
    )


def crpo_rewards(
    correct: Bool[Array, "*batch G"],
    behaved: Bool[Array, "*batch H"],
    formats: tuple[Float[Array, "*batch G"], Float[Array, "*batch H"]] | None = None,
    *,
    weight: float = 0.5,
    format_weight: float = 1.0,
    pairing: Pairing = "mean",
    gated: bool = True,
) -> Branches:
    """CRPO's rewards of both branches; both are trained (arXiv 2605.21988; the sum reconstructed).

    R_orig(i) = c_i + λ original_i + w_f format_i, R_cf(j) = b_j + λ counterfactual_j + w_f format_j

    The term can vanish: with "mean" pairing, R_orig(i) = c_i (1 + λ b̄), and a z-score in each
    branch cancels the factor, so that without a format term CRR changes no advantage. It acts under
    joint normalisation (`joint_zscore` of the branches stacked to [B, 2, G]), without a std
    (`group_centred`: questions whose other branch behaves weigh more), or with "paired".
    """
    relation = crr_terms(correct, behaved, pairing=pairing, gated=gated)
    own = (jnp.asarray(part).astype(jnp.float32) for part in (correct, behaved))
    extra = (0.0, 0.0) if formats is None else (format_weight * widened(f) for f in formats)
    return Branches(*(c + weight * r + f for c, r, f in zip(own, relation, extra, strict=True)))


def t_grpo_bonus(
    accuracy: Float[Array, "*batch G"],
    shuffled_accuracy: Float[Array, "*batch H"],
    *,
    bonus: float = 0.3,
    ratio: float = 0.8,
    threshold: float = 0.1,
) -> Float[jax.Array, "*batch G"]:
    """T-GRPO's temporal bonus: right answers pay more where the order of frames did not hurt them.

    bonus · 1[mean_i(acc) >= ratio · mean_j(acc of shuffled frames)] · 1[acc_i > threshold]
    (Video-R1, arXiv 2503.21776, T-GRPO; the numbers are its code's). The shuffled branch takes no
    gradient.
    """
    accuracy, shuffled = widened(accuracy), widened(shuffled_accuracy)
    temporal = jnp.mean(accuracy, -1) >= ratio * jnp.mean(shuffled, -1)
    return jnp.where(temporal[..., None] & (accuracy > threshold), bonus, 0.0)


def arrow_rl_reward(
    fidelity: Float[Array, "*batch G"],
    similarity_to_reversed: Float[Array, "*batch G"],
    reversed_to_target: Float[Array, "*batch"],
    *,
    alpha: float = 0.25,
    gamma: float = 0.75,
) -> Float[jax.Array, "*batch G"]:
    """ArrowRL: the answer fits the target and differs from the one to the reversed video.

    r_i = fid_i + α (1 - Sim(o_i, õ)), with α = 0 where Sim(õ, target) > γ: there time's direction
    does not matter (arXiv 2506.03340; from notes on the paper). õ takes no gradient.
    """
    sensitive = (widened(reversed_to_target) <= gamma)[..., None]
    reverse = jnp.where(sensitive, 1.0 - widened(similarity_to_reversed), 0.0)
    return widened(fidelity) + alpha * reverse


def arrow_gev_reward(
    iou: Float[Array, "*batch G"],
    reversed_iou: Float[Array, "*batch G"],
    sensitive: Bool[Array, "*batch"],
    *,
    weight: float = 0.5,
) -> Float[jax.Array, "*batch G"]:
    """ArrowGEV: grounding forward, and the same place or another one in the reversed video.

    sensitive: IoU_i + w (1 - IoU'_i); insensitive: IoU_i + w IoU'_i (arXiv 2601.06559, released
    code, where IoU' compares the answer to the reversed video with rollout i's own interval
    mirrored in time). The reversed branch takes no gradient.
    """
    reverse = widened(reversed_iou)
    agreement = jnp.where(jnp.asarray(sensitive)[..., None], 1.0 - reverse, reverse)
    return widened(iou) + weight * agreement


def _paired(other, own, pairing: Pairing):
    """What a rollout is credited with of the other branch: [*batch, 1], or its own length."""
    if pairing == "mean":
        return jnp.mean(other, axis=-1, keepdims=True)
    if pairing == "majority":
        return (jnp.mean(other, axis=-1, keepdims=True) > 0.5).astype(other.dtype)
    if pairing == "any":
        return jnp.max(other, axis=-1, keepdims=True)
    if pairing == "all":
        return jnp.min(other, axis=-1, keepdims=True)
    if pairing != "paired":
        raise ValueError(f"pairing is {pairing!r}; choose from mean, paired, majority, any, all")
    if other.shape != own.shape:
        raise ValueError(f"paired branches need as many rollouts: {own.shape}, {other.shape}")
    return other
