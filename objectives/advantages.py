"""Advantages from rewards over a grid [B prompts, M variants, G samples].

`over` says who is compared with whom: "group" is the G samples of one variant (the last axis),
"joint" the M x G samples of one prompt (the last two), "batch" everything. Rewards of one set that
differ by at most `floor` count as equal: their advantage is exactly 0, rounding residue is never
divided by a tiny std. Missing rewards (`valid` False) may be NaN, enter no statistic, and get 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from objectives.masked import Array, kept, widened

Over = Literal["group", "joint", "batch"]


def normalise(
    rewards: Float[Array, "*grid"],
    valid: Bool[Array, "*grid"] | None = None,
    *,
    mean: Over = "group",
    std: Over | None = "group",
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*grid"]:
    """Rewards minus a mean, over a std, each taken where you say: all the others are cases of it.

    A = (r - mean(r)) / (std(r) + eps), std with n - ddof in the denominator; std=None divides by
    nothing. 0 where the rewards that the mean or the std is taken of are all equal. eps 1e-4 and
    ddof 1 are TRL's, eps 1e-6 verl's. mean="joint", std="group" and mean="group", std="joint" are
    STRIVE's mixed variants (reconstructed: the paper's exact rule is not public).
    """
    valid = _present(rewards, valid)
    centred = _centred(rewards, valid, mean, floor)
    if std is None:
        return centred
    flat = _flat(rewards, valid, std, floor)
    scale = _std(rewards, valid, std, ddof) + eps
    return jnp.where(flat, 0.0, centred / jnp.where(flat, 1.0, scale))


def group_zscore(
    rewards: Float[Array, "*batch G"],
    valid: Bool[Array, "*batch G"] | None = None,
    *,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch G"]:
    """GRPO's advantage (arXiv 2402.03300, sec. 4.1.2); on a grid [B, M, G] it is per variant.

    A_i = (r_i - mean_G(r)) / (std_G(r) + eps)
    """
    return normalise(rewards, valid, ddof=ddof, eps=eps, floor=floor)


def group_centred(
    rewards: Float[Array, "*batch G"],
    valid: Bool[Array, "*batch G"] | None = None,
    *,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch G"]:
    """Dr.GRPO's advantage, without a std (arXiv 2503.20783, sec. 3.2): A_i = r_i - mean_G(r)."""
    return normalise(rewards, valid, std=None, floor=floor)


def leave_one_out(
    rewards: Float[Array, "*grid"],
    valid: Bool[Array, "*grid"] | None = None,
    *,
    over: Over = "group",
    floor: float = 1e-6,
) -> Float[jax.Array, "*grid"]:
    """RLOO's advantage (arXiv 2402.14740, sec. 3): the baseline is the mean of the others.

    A_i = r_i - 1/(n-1) Σ_{j≠i} r_j = n/(n-1) (r_i - mean(r)); 0 for a sample that is alone.
    """
    valid = _present(rewards, valid)
    count = _count(rewards, valid, over)
    return _centred(rewards, valid, over, floor) * count / jnp.maximum(count - 1.0, 1.0)


def batch_zscore(
    rewards: Float[Array, "*batch G"],
    valid: Bool[Array, "*batch G"] | None = None,
    *,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch G"]:
    """Centred by group, scaled by the std of the whole batch (arXiv 2508.08221; TRL `batch`).

    A_i = (r_i - mean_G(r)) / (std_batch(r) + eps)
    """
    return normalise(rewards, valid, std="batch", ddof=ddof, eps=eps, floor=floor)


def joint_zscore(
    rewards: Float[Array, "*batch M G"],
    valid: Bool[Array, "*batch M G"] | None = None,
    *,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch M G"]:
    """STRIVE's advantage: one mean and std over variants x responses (arXiv 2604.01824).

    A_mg = (r_mg - mean_MG(r)) / (std_MG(r) + eps). The formula is reconstructed from the abstract's
    words; NoisyRollout (arXiv 2504.13055) publishes the same one for clean and noisy rollouts.
    """
    return normalise(rewards, valid, mean="joint", std="joint", ddof=ddof, eps=eps, floor=floor)


def share_grpo(
    rewards: Float[Array, "*batch M G"],
    valid: Bool[Array, "*batch M G"] | None = None,
    *,
    ddof: int = 1,
    eps: float = 1e-6,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch M G"]:
    """Share-GRPO's sum of both comparisons, each own variant (arXiv 2505.16673, released code).

    A = joint_zscore(r) + group_zscore(r)
    """
    options = {"ddof": ddof, "eps": eps, "floor": floor}
    return joint_zscore(rewards, valid, **options) + group_zscore(rewards, valid, **options)


def mixture(
    rewards: Float[Array, "*batch M G"],
    valid: Bool[Array, "*batch M G"] | None = None,
    *,
    weight: float = 0.5,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch M G"]:
    """Between STRIVE (weight 0) and plain GRPO on every variant (weight 1); reconstructed.

    A = (1 - w) joint_zscore(r) + w group_zscore(r)
    """
    options = {"ddof": ddof, "eps": eps, "floor": floor}
    joint = joint_zscore(rewards, valid, **options)
    return (1.0 - weight) * joint + weight * group_zscore(rewards, valid, **options)


def hierarchical(
    rewards: Float[Array, "*batch M G"],
    valid: Bool[Array, "*batch M G"] | None = None,
    *,
    weight: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch M G"]:
    """Deviation within the variant plus deviation of the variant, each standardised; reconstructed.

    A_mg = (r_mg - r̄_m) / (std_G(r_m) + eps) + w (r̄_m - mean_M(r̄)) / (std_M(r̄) + eps), with r̄_m
    the mean reward of variant m. Variants without any reward are left out of mean_M and std_M.
    """
    options = {"ddof": ddof, "eps": eps, "floor": floor}
    valid = _present(rewards, valid)
    between = group_zscore(_mean(rewards, valid, "group")[..., 0], jnp.any(valid, -1), **options)
    return group_zscore(rewards, valid, **options) + weight * kept(
        jnp.broadcast_to(between[..., None], valid.shape), valid
    )


def gdpo(
    rewards: Float[Array, "R *batch G"],
    valid: Bool[Array, "R *batch G"] | None = None,
    *,
    weights: Float[Array, " R"] | None = None,
    ddof: int = 1,
    eps: float = 1e-4,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch G"]:
    """GDPO: normalise each of R rewards in its group, add, normalise over the batch.

    A = z_batch(Σ_k w_k z_G(r_k)), arXiv 2601.05242; TRL `normalize_then_sum`. A sample without any
    of the rewards gets 0.
    """
    valid = _present(rewards, valid)
    options = {"ddof": ddof, "eps": eps, "floor": floor}
    parts = group_zscore(rewards, valid, **options)
    weights = jnp.ones(parts.shape[0]) if weights is None else weights
    total = jnp.tensordot(jnp.asarray(weights, parts.dtype), parts, axes=1)
    return normalise(total, jnp.any(valid, axis=0), mean="batch", std="batch", **options)


class TaskMoments(NamedTuple):
    """Moving mean of the rewards and of their squares, one a task; `seen` after its first batch."""

    first: Float[Array, " tasks"]
    second: Float[Array, " tasks"]
    seen: Bool[Array, " tasks"]

    @classmethod
    def zeros(cls, tasks: int) -> TaskMoments:
        """The state before any reward."""
        return cls(jnp.zeros(tasks), jnp.zeros(tasks), jnp.zeros(tasks, bool))


def update_task_moments(
    moments: TaskMoments,
    rewards: Float[Array, "*batch G"],
    task: Int[Array, "*batch"],
    valid: Bool[Array, "*batch G"] | None = None,
    *,
    decay: float = 0.99,
) -> TaskMoments:
    """EMA-GRPO's two moments per task, after this batch (arXiv 2512.03043, eq. 9).

    m ← β m + (1 - β) mean(r) and likewise for r², over all rewards of the task in the batch. The
    first batch of a task sets its moments, as in the released code; a task without a reward keeps
    them.
    """
    valid = _present(rewards, valid)
    values = kept(rewards, valid)

    def per_task(grid):
        return jnp.zeros_like(moments.first).at[task].add(jnp.sum(grid, axis=-1))

    count = per_task(kept(jnp.ones_like(values), valid))
    present, count = count > 0, jnp.maximum(count, 1.0)

    def moved(old, total):
        new = jnp.where(moments.seen, decay * old + (1.0 - decay) * total / count, total / count)
        return jnp.where(present, new, old)

    return TaskMoments(
        moved(moments.first, per_task(values)),
        moved(moments.second, per_task(values**2)),
        moments.seen | present,
    )


def task_ema(
    rewards: Float[Array, "*batch G"],
    task: Int[Array, "*batch"],
    moments: TaskMoments,
    valid: Bool[Array, "*batch G"] | None = None,
    *,
    min_std: float = 1e-3,
    clip: float = 5.0,
    floor: float = 1e-6,
) -> Float[jax.Array, "*batch G"]:
    """EMA-GRPO (OneThinker): centred by group, scaled by the moving std of the task.

    A_i = clip((r_i - mean_G(r)) / σ_τ, ±5), σ_τ² = m2_τ - m1_τ² (arXiv 2512.03043, eq. 10-11), with
    `moments` updated by this batch before. The released code does not clip: it falls back to the
    group's own std beyond ±5; here the paper decides.
    """
    variance = jnp.asarray(moments.second) - jnp.asarray(moments.first) ** 2
    std = _safe_sqrt(jnp.maximum(variance, min_std**2))[task]
    return jnp.clip(group_centred(rewards, valid, floor=floor) / std[..., None], -clip, clip)


def zero_signal_share(
    rewards: Float[Array, "*grid"],
    valid: Bool[Array, "*grid"] | None = None,
    *,
    over: Literal["group", "joint"] = "group",
    floor: float = 1e-6,
) -> Float[jax.Array, ""]:
    """Share of the groups whose rewards are all equal and teach nothing; log it at every step.

    TRL `frac_reward_zero_std`. Groups without any reward don't count; NaN where no group has one.
    """
    valid = _present(rewards, valid)
    counted = jnp.any(valid, axis=_axes(valid, over))
    flat = jnp.squeeze(_flat(rewards, valid, over, floor), axis=_axes(valid, over))
    return jnp.sum(flat & counted, dtype=jnp.float32) / jnp.sum(counted, dtype=jnp.float32)


def zero_signal_probability(
    accuracy: Float[Array, "*batch M"], *, samples: int
) -> Float[jax.Array, "*batch"]:
    """Chance that M variants of given accuracy, G samples each, carry no joint signal.

    Π_m p_m^G + Π_m (1 - p_m)^G: variants help only where their accuracies differ.
    """
    p = widened(accuracy)
    return jnp.prod(p**samples, axis=-1) + jnp.prod((1.0 - p) ** samples, axis=-1)


def between_variant_variance(
    rewards: Float[Array, "*batch M G"], valid: Bool[Array, "*batch M G"] | None = None
) -> Float[jax.Array, "*batch"]:
    """Variance over variants of their mean reward (n in the denominator): STRIVE's extra signal."""
    valid = _present(rewards, valid)
    means, present = _mean(rewards, valid, "group")[..., 0], jnp.any(valid, axis=-1)
    return _mean(_centred(means, present, "group", 0.0) ** 2, present, "group")[..., 0]


def _present(rewards, valid):
    """The mask as an array; everywhere True if it is None."""
    return jnp.ones(jnp.shape(rewards), bool) if valid is None else jnp.asarray(valid)


def _axes(rewards, over: Over) -> tuple[int, ...]:
    axes = {"group": (-1,), "joint": (-2, -1), "batch": tuple(range(-rewards.ndim, 0))}
    if over not in axes:
        raise ValueError(f"over is {over!r}; choose from group, joint, batch")
    if len(axes[over]) > rewards.ndim:
        raise ValueError(f"over={over!r} needs a grid [..., M, G], not shape {rewards.shape}")
    return axes[over]


def _count(rewards, valid, over: Over):
    return jnp.sum(kept(jnp.ones_like(rewards), valid), axis=_axes(valid, over), keepdims=True)


def _mean(rewards, valid, over: Over):
    total = jnp.sum(kept(rewards, valid), axis=_axes(valid, over), keepdims=True)
    return total / jnp.maximum(_count(rewards, valid, over), 1.0)


def _flat(rewards, valid, over: Over, floor: float):
    """Whether the valid rewards are all equal, or none."""
    axes, rewards = _axes(valid, over), widened(rewards)
    high = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=axes, keepdims=True)
    low = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=axes, keepdims=True)
    return high - low <= floor


def _centred(rewards, valid, over: Over, floor: float):
    """r - mean(r) where valid; exactly 0 elsewhere and where all rewards are equal."""
    deviations = kept(kept(rewards, valid) - _mean(rewards, valid, over), valid)
    return jnp.where(_flat(rewards, valid, over, floor), 0.0, deviations)


def _std(rewards, valid, over: Over, ddof: int):
    deviations = kept(kept(rewards, valid) - _mean(rewards, valid, over), valid)
    squares = jnp.sum(deviations**2, axis=_axes(valid, over), keepdims=True)
    return _safe_sqrt(squares / jnp.maximum(_count(rewards, valid, over) - ddof, 1.0))


def _safe_sqrt(values):
    """√x where x > 0, elsewhere 0 with a gradient of 0."""
    return jnp.where(values > 0, jnp.sqrt(jnp.where(values > 0, values, 1.0)), 0.0)
