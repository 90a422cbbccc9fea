"""Log-probabilities of given tokens, chunked so that [B, T, V] never exists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm.model import Model, logits


def token_logprobs(
    model: Model,
    hidden: Float[Array, "*rows D"],
    targets: Int[Array, "*rows"],
    *,
    chunk: int = 1024,
) -> Float[Array, "*rows"]:
    """log p(target | hidden) in nats, float32, with head and log-softmax over `chunk` rows at a time.

    log p = z_target - logsumexp(z). Chunks are recomputed in the backward pass, so that peak memory
    is [chunk, V] there as well.
    """
    shape, width = targets.shape, hidden.shape[-1]
    rows = targets.size
    chunk = min(chunk, rows)
    padding = -rows % chunk
    hidden = jnp.pad(hidden.reshape(rows, width), ((0, padding), (0, 0)))
    targets = jnp.pad(targets.reshape(rows), (0, padding))

    @jax.checkpoint
    def one(part):
        z = logits(model, part[0])
        chosen = jnp.take_along_axis(z, part[1][:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(z, axis=1)

    parts = (hidden.reshape(-1, chunk, width), targets.reshape(-1, chunk))
    return jax.lax.map(one, parts).reshape(-1)[:rows].reshape(shape)
