"""Attention of rows that share a prefix: one softmax over (shared prefix) + (own slots)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30  # finite, so that a row with nothing to see gives numbers and not NaN


def attend(
    q: Float[Array, "B N T heads head_dim"],
    k: Float[Array, "B N S kv_heads head_dim"],
    v: Float[Array, "B N S kv_heads head_dim"],
    mask: Bool[Array, "B N T S"],
    prefix: tuple[
        Float[Array, "B P kv_heads head_dim"],
        Float[Array, "B P kv_heads head_dim"],
        Bool[Array, "B P"],
    ]
    | None = None,
) -> Float[Array, "B N T heads head_dim"]:
    """Grouped-query attention of N rows a prompt, each to its own slots and to one shared prefix.

    The prefix is read once for all N rows and never copied: its scores are joined to the rows' own
    before a single softmax, so the result equals attention over the concatenated keys.

    Args:
      q: queries; `heads` is a multiple of `kv_heads`.
      k, v: the rows' own keys and values.
      mask: which own slots a query sees.
      prefix: keys, values and validity of the shared prefix; every query sees its valid slots.
    """
    batch, rows, length, heads, head_dim = q.shape
    own, kv_heads = k.shape[2], k.shape[3]
    grouped = q.reshape(batch, rows, length, kv_heads, heads // kv_heads, head_dim)

    scores = _dot("bntkgh,bnskh->bnkgts", grouped, k) * head_dim**-0.5
    scores = jnp.where(mask[:, :, None, None], scores, _MASKED)
    if prefix is not None:
        prefix_k, prefix_v, valid = prefix
        shared = _dot("bntkgh,bpkh->bnkgtp", grouped, prefix_k) * head_dim**-0.5
        shared = jnp.where(valid[:, None, None, None, None], shared, _MASKED)
        scores = jnp.concatenate([scores, shared], axis=-1)

    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = _dot("bnkgts,bnskh->bntkgh", weights[..., :own], v)
    if prefix is not None:
        mixed = mixed + _dot("bnkgtp,bpkh->bntkgh", weights[..., own:], prefix_v)
    return mixed.astype(q.dtype).reshape(q.shape)


def attend_within(
    q: Float[Array, "F S heads head_dim"],
    k: Float[Array, "F S heads head_dim"],
    v: Float[Array, "F S heads head_dim"],
    valid: Bool[Array, "F S"],
    *,
    run: int,
) -> Float[Array, "F S heads head_dim"]:
    """Attention among the valid patches of each run of `run` consecutive ones, which divides S."""
    q_run, k_run, v_run = (part.reshape(-1, 1, run, *part.shape[2:]) for part in (q, k, v))
    mask = jnp.broadcast_to(valid.reshape(-1, 1, 1, run), (q_run.shape[0], 1, run, run))
    return attend(q_run, k_run, v_run, mask).reshape(q.shape)


def _dot(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
