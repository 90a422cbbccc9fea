"""Log-probabilities of given tokens, chunked so that [B, T, V] never exists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm.model import Model, Tokens, logits, run
from vlm.text import Cache


def token_logprobs(
    model: Model,
    hidden: Float[Array, "*rows D"],
    targets: Int[Array, "*rows"],
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> Float[Array, "*rows"]:
    """log p(target | hidden) in nats, float32; head and log-softmax on `chunk` rows at a time.

    log p = z_target - logsumexp(z), z being the logits over the temperature. Chunks are recomputed
    in the backward pass, so that peak memory is [chunk, V] there as well.
    """
    shape, width = targets.shape, hidden.shape[-1]
    rows = targets.size
    chunk = max(1, min(chunk, rows))
    padding = -rows % chunk
    hidden = jnp.pad(hidden.reshape(rows, width), ((0, padding), (0, 0)))
    targets = jnp.pad(targets.reshape(rows), (0, padding))

    @jax.checkpoint
    def one(part):
        z = logits(model, part[0]) / temperature
        chosen = jnp.take_along_axis(z, part[1][:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(z, axis=1)

    parts = (hidden.reshape(-1, chunk, width), targets.reshape(-1, chunk))
    return jax.lax.map(one, parts).reshape(-1)[:rows].reshape(shape)


def continuation_logprobs(
    model: Model,
    prefix: Cache,
    hidden: Float[Array, "B D"],
    rows: Tokens,
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    remat: bool = False,
) -> Float[Array, "B N L"]:
    """log p(token | prefix, the row's tokens before it) of N continuations of each prefix, nats.

    The prefix is shared by its N rows and never copied. `hidden` is the state of its last token,
    which predicts the first token of every row. Rows are padded on the right, and values at
    padding carry no meaning. With `remat` the backward pass recomputes activations.
    """
    states, _ = run(model, rows, prefix=prefix, remat=remat)
    first = jnp.broadcast_to(hidden[:, None, None], (*states.shape[:2], 1, states.shape[-1]))
    states = jnp.concatenate([first, states[:, :, :-1]], axis=2)
    ids = jnp.asarray(rows.ids)
    return token_logprobs(model, states, ids, temperature=temperature, chunk=chunk)
