"""Choosing tokens, and generating N continuations of one shared prefix."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from vlm.model import Model, Tokens, logits, run
from vlm.text import Cache

_BLOCK = 128


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Traced values, so that changing one does not compile again.

    temperature 0 is greedy; top_p 1 and top_k 0 keep the whole vocabulary. Each is one number, or
    one a row, [B, N].
    """

    temperature: float | Float[np.ndarray | Array, "..."] = 1.0
    top_p: float | Float[np.ndarray | Array, "..."] = 1.0
    top_k: int | Int[np.ndarray | Array, "..."] = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation:
    """N continuations a prompt: tokens (the stop token included; after it, the first of the stop
    tokens as padding), their number, and whether each ended with a stop token."""

    tokens: Int[np.ndarray | Array, "B N L"]
    lengths: Int[np.ndarray | Array, "B N"]
    finished: Bool[np.ndarray | Array, "B N"]
    logprobs: Float[np.ndarray | Array, "B N L"] | None = None
    """Where asked for: of each token under the model's tempered distribution, before any of it is
    cut off; 0 behind the end."""


def choose(
    z: Float[Array, "*rows V"], seeds: UInt32[Array, "*rows"], step, sampling: Sampling
) -> Int[Array, "*rows"]:
    """One token a row: temperature, then the top k, then the nucleus of mass top_p among those.

    The nucleus is the shortest list of most likely tokens whose mass reaches top_p (Holtzman et al.
    2020); tokens that tie with its last one are in it. A row's draw depends on its own logits and
    seed and on `step`, on nothing else. Nothing is sorted: both lists are found by bisection, and
    one uniform number a row is looked up in the cumulated probabilities.
    """
    temperature, top_p, top_k = (
        jnp.broadcast_to(value, seeds.shape)
        for value in (sampling.temperature, sampling.top_p, sampling.top_k)
    )

    def draw(z):
        p = jax.nn.softmax(z / jnp.maximum(temperature, 1e-6)[..., None], axis=-1)
        p = jax.lax.cond(jnp.any(top_k > 0), among_top_k, lambda p: p, p)
        p = jax.lax.cond(jnp.any(top_p < 1), within_nucleus, lambda p: p, p)
        return _look_up(p, jax.vmap(uniform)(seeds.reshape(-1)).reshape(seeds.shape))

    def among_top_k(p):
        k = jnp.where(top_k > 0, top_k, z.shape[-1])
        return _most_likely(p, lambda kept: jnp.sum(kept, axis=-1) >= k)

    def within_nucleus(p):
        mass = jnp.where(top_p < 1, top_p * jnp.sum(p, axis=-1), jnp.inf)  # inf keeps them all
        return _most_likely(p, lambda kept: jnp.sum(jnp.where(kept, p, 0), axis=-1) >= mass)

    def uniform(seed):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))

    def greedy(z):
        return jnp.argmax(z, axis=-1)

    drawn = jax.lax.cond(jnp.any(temperature > 0), draw, greedy, z)
    best = jax.lax.cond(jnp.any(temperature <= 0), greedy, lambda z: drawn, z)
    return jnp.where(temperature > 0, drawn, best)


def _most_likely(p: Float[Array, "*rows V"], enough) -> Float[Array, "*rows V"]:
    """p without its smallest values: what stays is the least that is `enough`, else all of it.

    The bits of floats that are not negative are ordered as the floats are, so 31 halvings of an
    interval of integers find the threshold exactly.
    """
    bits = jax.lax.bitcast_convert_type(p, jnp.int32)

    def halve(interval):
        low, high = interval
        middle = low + (high - low) // 2
        fits = enough(bits >= middle[..., None])
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    interval = jnp.zeros(p.shape[:-1], jnp.int32), jnp.max(bits, axis=-1) + 1
    low, _ = jax.lax.while_loop(lambda i: jnp.any(i[1] - i[0] > 1), halve, interval)
    return jnp.where(bits >= low[..., None], p, 0)


def _look_up(p: Float[Array, "*rows V"], u: Float[Array, "*rows"]) -> Int[Array, "*rows"]:
    """The token at share u of the mass of p, in the order of ids: first its block, then itself."""
    blocks = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -p.shape[-1] % _BLOCK)])
    blocks = blocks.reshape(*p.shape[:-1], -1, _BLOCK)
    ends = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = (u * ends[..., -1])[..., None]
    block = jnp.sum(ends <= target, axis=-1, keepdims=True)
    start = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0), axis=-1), 0)
    inside = jnp.take_along_axis(blocks, block[..., None], axis=-2)[..., 0, :]
    place = jnp.sum(start + jnp.cumsum(inside, axis=-1) <= target, axis=-1)
    # The two sums may round apart at a block's end; a token without mass is never drawn.
    last = jnp.max(jnp.where(inside > 0, jnp.arange(_BLOCK), 0), axis=-1)
    return block[..., 0] * _BLOCK + jnp.minimum(place, last)


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
    logprobs: bool = False,
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
      logprobs: returns each token's log-probability as well.
    """
    batch, rows = seeds.shape
    model, prefix = model.unstacked(), prefix.unstacked()
    stop = jnp.asarray(stop_tokens, jnp.int32)
    padding = stop_tokens[0] if stop_tokens else 0

    def pick(hidden, step):
        z = every = logits(model, hidden)
        if allowed is not None:
            z = jnp.where(allowed.reshape((1,) * (z.ndim - 1) + (-1,)), z, -jnp.inf)
        token = choose(z, seeds, step, sampling).astype(jnp.int32)
        return token, _logprob(every, token, sampling) if logprobs else None

    def ends(token):
        return jnp.any(token[..., None] == stop.reshape((1,) * token.ndim + (-1,)), axis=-1)

    def body(state):
        step, token, done, tokens, told, own = state
        position = jnp.broadcast_to((start + step - 1)[None, :, None, None], (3, batch, rows, 1))
        chunk = Tokens(ids=token[..., None], positions=position, valid=~done[..., None])
        hidden, own = run(model, chunk, prefix=prefix, own=own, slot=step - 1)
        token, logprob = pick(hidden[:, :, 0], step)
        token = jnp.where(done, padding, token)
        tokens = tokens.at[:, :, step].set(token)
        if logprobs:
            told = told.at[:, :, step].set(jnp.where(done, 0.0, logprob))
        return step + 1, token, done | ends(token), tokens, told, own

    def running(state):
        return (state[0] < max_tokens) & ~jnp.all(state[2])

    shared = jnp.broadcast_to(hidden[:, None], (batch, rows, hidden.shape[-1]))
    token, logprob = pick(shared, 0)
    tokens = jnp.full((batch, rows, max_tokens), padding, jnp.int32).at[:, :, 0].set(token)
    told = jnp.zeros(tokens.shape).at[:, :, 0].set(logprob) if logprobs else None
    own = Cache.empty(model.config.text, batch, rows, max_tokens, model.dtype).unstacked()
    state = (jnp.int32(1), token, ends(token), tokens, told, own)
    _, _, done, tokens, told, _ = jax.lax.while_loop(running, body, state)
    stopped = ends(tokens)
    first = jnp.argmax(stopped, axis=-1)
    return Generation(tokens, jnp.where(done, first + 1, max_tokens), done, told)


def _logprob(
    z: Float[Array, "*rows V"], token: Int[Array, "*rows"], sampling: Sampling
) -> Float[Array, "*rows"]:
    """log-softmax(z / temperature) of a token a row; a greedy row's temperature counts as 1."""
    temperature = jnp.broadcast_to(sampling.temperature, token.shape)
    z = z / jnp.where(temperature > 0, temperature, 1.0)[..., None]
    chosen = jnp.take_along_axis(z, token[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(z, axis=-1)
