"""Choosing tokens, and generating N continuations of one shared prefix."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from vlm.model import Model, Tokens, logits, run
from vlm.text import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Traced values, so that changing one does not compile again.

    temperature 0 is greedy; top_p 1 and top_k 0 keep the whole vocabulary. Each is one number, or
    one a row, [B, N].
    """

    temperature: float | Float[Array, "..."] = 1.0
    top_p: float | Float[Array, "..."] = 1.0
    top_k: int | Int[Array, "..."] = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation:
    """N continuations a prompt: tokens (the stop token included; after it, the first of the stop
    tokens as padding), their number, and whether each ended with a stop token."""

    tokens: Int[Array, "B N L"]
    lengths: Int[Array, "B N"]
    finished: Bool[Array, "B N"]


def choose(
    z: Float[Array, "*rows V"], seeds: UInt32[Array, "*rows"], step, sampling: Sampling
) -> Int[Array, "*rows"]:
    """One token a row: temperature, then the top k, then the nucleus of mass top_p among those.

    The nucleus is the shortest list of most likely tokens whose mass reaches top_p (Holtzman et al.
    2020). A row's draw depends on its own logits and seed and on `step`, on nothing else.
    """
    temperature, top_p, top_k = (
        jnp.broadcast_to(value, seeds.shape)[..., None]
        for value in (sampling.temperature, sampling.top_p, sampling.top_k)
    )
    order = jnp.argsort(z, axis=-1, descending=True, stable=True)
    ranked = jnp.take_along_axis(z, order, axis=-1)
    scaled = ranked / jnp.maximum(temperature, 1e-6)
    rank = jnp.arange(z.shape[-1]).reshape((1,) * (z.ndim - 1) + (-1,))
    limit = jnp.where(top_k > 0, top_k, z.shape[-1])
    scaled = jnp.where(rank < limit, scaled, -jnp.inf)
    mass = jax.nn.softmax(scaled, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass
    # The sum may round to 1 before the tail ends, so a nucleus of 1 is told apart.
    kept = (before < top_p) | (top_p >= 1) | (rank == 0)
    scaled = jnp.where(kept, scaled, -jnp.inf)

    def draw(seed, row):
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), step), row)

    drawn = jax.vmap(draw)(seeds.reshape(-1), scaled.reshape(-1, z.shape[-1])).reshape(seeds.shape)
    picked = jnp.where(temperature > 0, drawn[..., None], 0)
    return jnp.take_along_axis(order, picked, axis=-1)[..., 0]


def generate(
    model: Model,
    prefix: Cache,
    hidden: Float[Array, "B D"],
    start: Int[Array, " B"],
    seeds: UInt32[Array, "B N"],
    sampling: Sampling,
    *,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    allowed: Bool[Array, " V"] | None = None,
) -> Generation:
    """Continues each of B prefixes N times; the prefix is shared by its N rows and never copied.

    Args:
      prefix: cache of the prompt, N = 1.
      hidden: hidden state of the prompt's last token.
      start: position of the first new token (the same on all three axes).
      seeds: one a row.
      max_tokens: L.
      stop_tokens: a row ends with the first of these that it draws.
      allowed: tokens that may be drawn; None means all.
    """
    batch, rows = seeds.shape
    stop = jnp.asarray(stop_tokens, jnp.int32)
    padding = stop_tokens[0] if stop_tokens else 0

    def pick(hidden, step):
        z = logits(model, hidden)
        if allowed is not None:
            z = jnp.where(allowed.reshape((1,) * (z.ndim - 1) + (-1,)), z, -jnp.inf)
        return choose(z, seeds, step, sampling).astype(jnp.int32)

    def ends(token):
        return jnp.any(token[..., None] == stop.reshape((1,) * token.ndim + (-1,)), axis=-1)

    def body(state):
        step, token, done, tokens, own = state
        position = jnp.broadcast_to((start + step - 1)[None, :, None, None], (3, batch, rows, 1))
        chunk = Tokens(ids=token[..., None], positions=position, valid=~done[..., None])
        hidden, own = run(model, chunk, prefix=prefix, own=own, slot=step - 1)
        token = jnp.where(done, padding, pick(hidden[:, :, 0], step))
        tokens = tokens.at[:, :, step].set(token)
        return step + 1, token, done | ends(token), tokens, own

    def running(state):
        return (state[0] < max_tokens) & ~jnp.all(state[2])

    shared = jnp.broadcast_to(hidden[:, None], (batch, rows, hidden.shape[-1]))
    token = pick(shared, 0)
    tokens = jnp.full((batch, rows, max_tokens), padding, jnp.int32).at[:, :, 0].set(token)
    own = Cache.empty(model.config.text, batch, rows, max_tokens, model.dtype)
    state = (jnp.int32(1), token, ends(token), tokens, own)
    _, _, done, tokens, _ = jax.lax.while_loop(running, body, state)
    stopped = ends(tokens)
    first = jnp.argmax(stopped, axis=-1)
    return Generation(tokens, jnp.where(done, first + 1, max_tokens), done)
