"""The device side of group-relative RL: sampling, scoring and the loss, pure functions of a model.

One layout serves all three. B groups of M prompts each; the prompts of a group share F temporal
patches, which are encoded once, and the R rows behind a prompt share its cache, which is never
copied: in the update as well. The first axis of every array is B, or B times something, so that a
batch can be cut into micro-batches anywhere between groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from objectives import (
    clip_shares,
    clipped_surrogate,
    constant_length,
    gspo_token_log_ratio,
    kl_estimate,
    mean_of_sequence_means,
    mean_of_sequence_sums,
    policy_gradient,
    sequence_log_ratio,
    token_log_ratio,
    token_mean,
)
from vlm import sampling
from vlm.frames import Frames
from vlm.logprobs import continuation_logprobs
from vlm.model import Model, Tokens, encode, last, run
from vlm.text import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """B groups of M prompts about the same F temporal patches."""

    frames: Frames | None
    """[B x F, ...], those of a group behind one another; None: prompts are text alone."""
    ids: Int[np.ndarray | Array, "B M T"]
    positions: Int[np.ndarray | Array, "B M 3 T"]
    valid: Bool[np.ndarray | Array, "B M T"]
    visual: Int[np.ndarray | Array, "B M T"]
    """Row, among the features of the group, that stands in a token's place; -1 at text."""
    start: Int[np.ndarray | Array, "B M"]
    """Position of an answer's first token."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
    """G answers to each prompt, padded behind their ends."""

    tokens: Int[np.ndarray | Array, "B M G L"]
    lengths: Int[np.ndarray | Array, "B M G"]
    """In tokens, the stop token included."""
    finished: Bool[np.ndarray | Array, "B M G"]
    logprobs: Float[np.ndarray | Array, "B M G L"]
    """As the sampler had them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Experience:
    """What an update learns from: R rows of tokens behind each prompt, and what each was worth."""

    prompts: Prompts
    tokens: Int[np.ndarray | Array, "B M R L"]
    mask: Bool[np.ndarray | Array, "B M R L"]
    """True at tokens that were said, the stop token included."""
    advantages: Float[np.ndarray | Array, "B M R"]
    sampler: Float[np.ndarray | Array, "B M R L"]
    """Log-probabilities as sampled, for the record of how far the trainer's are off; NaN where a
    row was said to another prompt."""
    sequences: Float[np.ndarray | Array, " B"]
    """How many sequences the whole batch holds, and `count` how many tokens: the denominators of
    the loss, alike in every group, so that micro-batches add up."""
    count: Float[np.ndarray | Array, " B"]
    behaviour: Float[np.ndarray | Array, "B M R L"] | None = None
    """log π_old, by this module's `logprobs`; None where the policy has not moved since."""
    reference: Float[np.ndarray | Array, "B M R L"] | None = None
    """log π_ref, where the loss holds the policy near it."""


LOSSES = ("grpo", "dr_grpo", "dapo", "reinforce")
_RATIOS = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
    "sequence_token": gspo_token_log_ratio,
}


@dataclass(frozen=True)
class Objective:
    """A policy loss, by the names that TRL gives to its parts. Raises ValueError.

    grpo       mean over the tokens of a sequence, then over sequences
    dr_grpo    sum over tokens / (sequences x max_tokens)
    dapo       mean over all tokens of the batch
    reinforce  no ratio and no clip: sum over tokens / sequences (SPIKE-RL; RLOO)
    """

    loss_type: str
    max_tokens: int
    importance_sampling_level: str = "token"
    """Of the ratio: token, sequence (GSPO), sequence_token (GSPO-token)."""
    epsilon: float = 0.2
    epsilon_high: float = 0.0
    """0: as `epsilon`."""
    delta: float = 0.0
    """Cap of the ratio where the advantage is negative; 0: none."""
    beta: float = 0.0
    """Weight of the KL to the reference model."""
    temperature: float = 1.0

    def __post_init__(self):
        for name, choices in (
            ("loss_type", LOSSES),
            ("importance_sampling_level", tuple(_RATIOS)),
        ):
            if vars(self)[name] not in choices:
                found = vars(self)[name]
                raise ValueError(f"{name} is {found!r}; choose from {', '.join(choices)}")


def sizes(prompts: Prompts) -> tuple[int, int, int]:
    """What `padded` can add to: tokens of a prompt, patches of a group, slots of a patch."""
    if prompts.frames is None:
        return prompts.ids.shape[2], 0, 0
    patches, slots = prompts.frames.valid.shape
    return prompts.ids.shape[2], patches // len(prompts.ids), slots


def padded(prompts: Prompts, room: Sequence[int], cell: int) -> Prompts:
    """The same prompts in arrays of the given `sizes`, for shares of a batch that are to be alike.

    cell: slots of a row of the tower's output.
    """
    old = sizes(prompts)
    tokens, patches, slots = (there - now for there, now in zip(room, old, strict=True))
    if tokens == patches == slots == 0:
        return prompts
    frames, visual = prompts.frames, prompts.visual
    if frames is not None:
        patch, row = np.divmod(visual, old[2] // cell)
        visual = np.where(visual >= 0, patch * (room[2] // cell) + row, -1).astype(visual.dtype)

        def larger(leaf: np.ndarray, *, slotted: bool) -> np.ndarray:
            leaf = leaf.reshape(-1, old[1], *leaf.shape[1:])
            leaf = np.pad(leaf, _behind(leaf, 1, patches), mode="edge")  # as `compose` does
            leaf = np.pad(leaf, _behind(leaf, 2, slots)) if slotted else leaf
            return leaf.reshape(-1, *leaf.shape[2:])

        frames = Frames(
            patches=larger(frames.patches, slotted=True),
            coordinates=larger(frames.coordinates, slotted=True),
            valid=larger(frames.valid, slotted=True),
            sizes=larger(frames.sizes, slotted=False),
        )

    def longer(leaf: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(leaf, _behind(leaf, -1, tokens), constant_values=fill)

    return replace(
        prompts,
        frames=frames,
        ids=longer(prompts.ids, 0),
        positions=longer(prompts.positions, 1),
        valid=longer(prompts.valid, 0),
        visual=longer(visual, -1),
    )


def _behind(leaf: np.ndarray, axis: int, count: int) -> list[tuple[int, int]]:
    """Room for `count` more at the end of an axis, as `np.pad` takes it."""
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, count)
    return widths


# Jobs: pure functions of a model and of arrays (see `experiments.mesh`).


def prefill(
    model: Model, prompts: Prompts, *, remat: bool = False
) -> tuple[Float[Array, "P D"], Cache]:
    """Last hidden state and cache of each of P = B x M prompts."""
    groups = len(prompts.ids)
    features = visual = None
    if prompts.frames is not None:
        features = encode(model, prompts.frames, remat=remat)
        first = jnp.arange(groups, dtype=jnp.int32)[:, None, None] * (len(features) // groups)
        visual = _rows(jnp.where(prompts.visual >= 0, prompts.visual + first, -1))
    positions = jnp.moveaxis(jnp.asarray(prompts.positions), 2, 0)
    ids, valid = _rows(prompts.ids), _rows(prompts.valid)
    tokens = Tokens(ids, positions.reshape(3, *ids.shape), valid, visual)
    hidden, cache = run(model, tokens, features, remat=remat)
    return last(hidden, valid)[:, 0], cache


def sample(
    model: Model,
    prompts: Prompts,
    seeds: UInt32[np.ndarray | Array, "B M G"],
    how: sampling.Sampling,
    allowed: Bool[np.ndarray | Array, " V"],
    *,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
) -> Samples:
    """G answers to each prompt, by one seed each; `allowed` tokens may be said."""
    hidden, cache = prefill(model, prompts)
    out = sampling.generate(
        model,
        cache,
        hidden,
        prompts.start.reshape(-1),
        seeds.reshape(-1, seeds.shape[2]),
        how,
        max_tokens=max_tokens,
        stop_tokens=stop_tokens,
        allowed=allowed,
        logprobs=True,
    )
    parts = (out.tokens, out.lengths, out.finished, out.logprobs)
    return Samples(*(part.reshape(*seeds.shape, *part.shape[2:]) for part in parts))


def logprobs(
    model: Model,
    prompts: Prompts,
    tokens: Int[np.ndarray | Array, "B M R L"],
    mask: Bool[np.ndarray | Array, "B M R L"],
    *,
    temperature: float = 1.0,
    unroll: bool = False,
    remat: bool = False,
) -> Float[Array, "B M R L"]:
    """log π(token) of R rows behind each prompt: the graph that is trained.

    `unroll` puts layers in line, unless `remat` recomputes the activations of each in the backward
    pass.
    """
    model = model.unstacked() if unroll and not remat else model
    hidden, cache = prefill(model, prompts, remat=remat)
    ids, valid = (jnp.asarray(part).reshape(-1, *part.shape[2:]) for part in (tokens, mask))
    positions = (
        prompts.start.reshape(-1, 1, 1) + jnp.arange(ids.shape[2], dtype=jnp.int32)[None, None]
    )
    rows = Tokens(ids, jnp.broadcast_to(positions, (3, *ids.shape)), valid)
    logp = continuation_logprobs(model, cache, hidden, rows, temperature=temperature, remat=remat)
    return logp.reshape(tokens.shape)


def loss(
    model: Model,
    batch: Experience,
    *,
    objective: Objective,
    unroll: bool = False,
    remat: bool = False,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The policy loss of a batch and what to log of it, or a micro-batch's share of both.

    reduce(-A ρ, clipped) + beta · reduce(KL). Shares add up; of names in /max the largest counts.
    For `unroll` and `remat` see `logprobs`.
    """
    mask, advantages = batch.mask, batch.advantages
    sequences, count = (jnp.asarray(part)[0] for part in (batch.sequences, batch.count))
    over_tokens = partial(token_mean, mask=mask, tokens=count)
    reduce = {
        "grpo": partial(mean_of_sequence_means, mask=mask, sequences=sequences),
        "dr_grpo": partial(
            constant_length, mask=mask, length=objective.max_tokens, sequences=sequences
        ),
        "dapo": over_tokens,
        "reinforce": partial(mean_of_sequence_sums, mask=mask, sequences=sequences),
    }[objective.loss_type]
    how = {"temperature": objective.temperature, "unroll": unroll, "remat": remat}
    logp = logprobs(model, batch.prompts, batch.tokens, mask, **how)
    ratio = _RATIOS[objective.importance_sampling_level](logp, batch.behaviour, mask)
    clip = {"low": objective.epsilon, "high": objective.epsilon_high or objective.epsilon}
    if objective.loss_type == "reinforce":
        term = policy_gradient(logp, advantages)
    else:
        term = clipped_surrogate(ratio, advantages, **clip, delta=objective.delta or None)
    value = reduce(term)
    old = jax.lax.stop_gradient(logp) if batch.behaviour is None else batch.behaviour
    gap = jnp.where(mask & jnp.isfinite(batch.sampler), jnp.abs(old - batch.sampler), 0.0)
    share = jnp.sum(mask, dtype=count.dtype) / count
    low, high = (part * share for part in clip_shares(ratio, advantages, mask, **clip))
    metrics = {
        "entropy": over_tokens(-jax.lax.stop_gradient(logp)),  # unbiased, at its own samples
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "sampling/sampling_logp_difference/mean": over_tokens(gap),
        "sampling/sampling_logp_difference/max": jnp.max(gap),
    }
    if batch.reference is not None:
        kl = kl_estimate(logp, batch.reference, mask)
        # A sum over all that a trajectory says would drown its reward.
        over = over_tokens if objective.loss_type == "reinforce" else reduce
        value += objective.beta * over(kl)
        metrics["kl"] = over_tokens(kl)
    return value, metrics


def _rows(part: Array | np.ndarray) -> Array:
    """[B, M, T] -> [B x M, 1, T]"""
    return jnp.asarray(part).reshape(-1, 1, part.shape[-1])
