"""Masked reductions, each named after its denominator: the choice between them is the loss type.

A mask is True where a token counts. What it hides may hold anything, NaN included: masking equals
slicing, in values and in gradients. Arithmetic is float32 (float64 where given float64).

A micro-batch that passes the denominator of the whole batch (`sequences=`, `tokens=`) yields its
share of the loss, so that the micro-batches' losses and gradients add up to the batch's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num, Shaped

Array = jax.Array | np.ndarray
Count = int | float | Num[Array, ""]


def widened(values: Shaped[Array, "..."]) -> Float[jax.Array, "..."]:
    """The values in float32, or in float64 where they are that already."""
    values = jnp.asarray(values)
    return values.astype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)


def kept(values: Num[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """The values where the mask is True and exactly 0 elsewhere, with a gradient of 0 there."""
    return jnp.where(mask, widened(values), 0.0)


def sequence_sum(
    values: Float[Array, "*batch L"], mask: Bool[Array, "*batch L"]
) -> Float[jax.Array, "*batch"]:
    """Sum over the tokens of each sequence: Σ_t x_t."""
    return jnp.sum(kept(values, mask), axis=-1)


def sequence_mean(
    values: Float[Array, "*batch L"], mask: Bool[Array, "*batch L"]
) -> Float[jax.Array, "*batch"]:
    """Mean over the tokens of each sequence: Σ_t x_t / |o|; 0 for a sequence without tokens."""
    return sequence_sum(values, mask) / jnp.maximum(sequence_sum(jnp.ones_like(values), mask), 1.0)


def mean_of_sequence_means(
    values: Float[Array, "*batch L"],
    mask: Bool[Array, "*batch L"],
    *,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """Every sequence weighs the same (GRPO, arXiv 2402.03300, eq. 3; TRL `grpo`).

    1/N Σ_i 1/|o_i| Σ_t x_it. N counts the sequences with a token, so that padding rows change
    nothing; TRL counts every row: `sequences=`.
    """
    means = sequence_mean(values, mask)
    return jnp.sum(means) / _sequences(means, mask, sequences)


def mean_of_sequence_sums(
    values: Float[Array, "*batch L"],
    mask: Bool[Array, "*batch L"],
    *,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """Long sequences weigh more (RLOO, arXiv 2402.14740; verl `seq-mean-token-sum`).

    1/N Σ_i Σ_t x_it, N as in `mean_of_sequence_means`.
    """
    sums = sequence_sum(values, mask)
    return jnp.sum(sums) / _sequences(sums, mask, sequences)


def token_mean(
    values: Float[Array, "*batch L"],
    mask: Bool[Array, "*batch L"],
    *,
    tokens: Count | None = None,
) -> Float[jax.Array, ""]:
    """Every token of the batch weighs the same (DAPO, arXiv 2503.14476, eq. 12; TRL `dapo`).

    Σ_i Σ_t x_it / Σ_i |o_i|. With the local count (the default) it is also TRL's `bnpo`.
    """
    values = kept(values, mask)
    count = jnp.sum(mask) if tokens is None else tokens
    return jnp.sum(values) / jnp.maximum(jnp.asarray(count, values.dtype), 1.0)


def constant_length(
    values: Float[Array, "*batch L"],
    mask: Bool[Array, "*batch L"],
    *,
    length: Count,
    sequences: Count | None = None,
) -> Float[jax.Array, ""]:
    """A constant in place of |o_i|, without length bias (Dr.GRPO, arXiv 2503.20783, sec. 3.2).

    1/N Σ_i 1/length Σ_t x_it, `length` being the longest completion allowed, N as in
    `mean_of_sequence_means`; TRL `dr_grpo`.
    """
    mean = mean_of_sequence_sums(values, mask, sequences=sequences)
    return mean / jnp.asarray(length, mean.dtype)


def _sequences(values, mask, sequences):
    """The number of sequences given, else of those with a token; at least 1."""
    count = jnp.sum(jnp.any(mask, axis=-1)) if sequences is None else sequences
    return jnp.maximum(jnp.asarray(count, values.dtype), 1.0)
