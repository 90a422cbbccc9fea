"""The decoders, over rows that may share a prefix, with their key-value cache as a pytree."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm.attention import attend
from vlm.config import TextConfig
from vlm.layers import GatedMLP, RMSNorm, linear, scan, stack
from vlm.rope import interleaved_axes, multimodal_angles, rotate, section_axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of S slots for N rows of B prompts, in every layer; slot order is causal.

    A cache of N = 1 is a prefix: any number of rows may attend to it (see `Decoder`).
    """

    k: Float[Array, "layers B N kv_heads S head_dim"] | list[Array]
    v: Float[Array, "layers B N kv_heads S head_dim"] | list[Array]
    """By layer: stacked, or a list for layers that are one (see `vlm.layers.unstacked`)."""
    valid: Bool[Array, "B N S"]

    @classmethod
    def empty(cls, config: TextConfig, batch: int, rows: int, slots: int, dtype) -> Cache:
        """A cache with no valid slot."""
        shape = (config.layers, batch, rows, config.kv_heads, slots, config.head_dim)
        zeros = jnp.zeros(shape, dtype)
        return cls(zeros, zeros, jnp.zeros((batch, rows, slots), bool))

    def unstacked(self) -> Cache:
        """The same with keys and values as lists by layer."""
        return Cache(list(self.k), list(self.v), self.valid)

    def padded(self, slots: int) -> Cache:
        """The same in a cache of `slots` slots, the last ones idle."""
        more = (0, slots - self.valid.shape[2])
        k, v = (jnp.pad(part, [*[(0, 0)] * 4, more, (0, 0)]) for part in (self.k, self.v))
        return Cache(k, v, jnp.pad(self.valid, [(0, 0), (0, 0), more]))

    def append(self, other: Cache) -> Cache:
        """This cache followed by the slots of another one."""

        def joined(one, more):
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=-2), one, more)

        valid = jnp.concatenate([self.valid, other.valid], axis=2)
        return Cache(joined(self.k, other.k), joined(self.v, other.v), valid)


class Attention(nnx.Module):
    """Grouped-query attention; biases on q, k and v, or RMSNorm on the heads of q and k."""

    def __init__(self, config: TextConfig, *, dtype, backend: str, rngs: nnx.Rngs):
        heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.head_dim, self.backend = config.head_dim, backend
        self.q = linear(config.hidden, heads, bias=config.qkv_bias, **kwargs)
        self.k = linear(config.hidden, kv, bias=config.qkv_bias, **kwargs)
        self.v = linear(config.hidden, kv, bias=config.qkv_bias, **kwargs)
        self.o = linear(heads, config.hidden, bias=False, **kwargs)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps, **kwargs)
            self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps, **kwargs)

    def __call__(self, x, angles, seen, slot, own, prefix):
        """Returns the mixed values and the rows' own keys and values after this chunk."""
        q, k, v = (
            part(x).reshape(*x.shape[:3], -1, self.head_dim) for part in (self.q, self.k, self.v)
        )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3)
        if own is not None:
            k = jax.lax.dynamic_update_slice_in_dim(own[0], k, slot, axis=3)
            v = jax.lax.dynamic_update_slice_in_dim(own[1], v, slot, axis=3)
        mixed = attend(q, k, v, seen, prefix, start=slot, backend=self.backend)
        return self.o(mixed.reshape(*x.shape[:3], -1)), (k, v)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: TextConfig, *, dtype, backend: str, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.norm1 = RMSNorm(config.hidden, eps=config.norm_eps, **kwargs)
        self.attention = Attention(config, backend=backend, **kwargs)
        self.norm2 = RMSNorm(config.hidden, eps=config.norm_eps, **kwargs)
        self.mlp = GatedMLP(config.hidden, config.mlp, bias=False, **kwargs)

    def __call__(self, x, angles, seen, slot, own, prefix):
        mixed, own = self.attention(self.norm1(x), angles, seen, slot, own, prefix)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), own


class Decoder(nnx.Module):
    """A stack of decoder layers and the final norm; `attention`: see `vlm.attention.attend`."""

    def __init__(self, config: TextConfig, *, dtype, attention: str = "auto", rngs: nnx.Rngs):
        self.config = config
        self.layers = stack(
            config.layers,
            lambda rngs: DecoderLayer(config, dtype=dtype, backend=attention, rngs=rngs),
            rngs,
        )
        self.norm = RMSNorm(config.hidden, eps=config.norm_eps, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N T D"],
        positions: Int[Array, "3 B N T"],
        valid: Bool[Array, "B N T"],
        *,
        deepstack: Float[Array, "taps B N T D"] | None = None,
        prefix: Cache | None = None,
        own: Cache | None = None,
        slot: Int[Array, ""] | int = 0,
        remat: bool = False,
    ) -> tuple[Float[Array, "B N T D"], Cache]:
        """Runs a chunk of T tokens of N rows a prompt.

        Token t sees the valid slots of the prefix, the valid slots before it in its own cache, and
        the valid tokens of the chunk up to itself.

        Args:
          x: embeddings.
          positions: time, height and width position of each token.
          valid: False at padding.
          deepstack: what is added to the output of layer i, for the first layers; zero at text.
          prefix: cache with N = 1, shared by the rows of a prompt; read, never copied.
          own: the rows' cache so far, to be written at `slot`; None starts one of T slots.
          slot: first slot of this chunk in `own`. One that is traced must leave room for T slots:
            XLA would move it back to where there is, over what stands there.
          remat: recompute activations in the backward pass.

        Returns:
          Normed hidden states and the rows' own cache after the chunk.

        Raises:
          ValueError: the chunk does not fit into `own` at a slot that is known when traced.
        """
        length = x.shape[2]
        if own is None:
            seen, own_kv, slot = valid, None, 0
        else:
            known = int(slot) if isinstance(slot, (int, np.integer)) else 0
            if known + length > own.valid.shape[2]:
                raise ValueError(
                    f"{length} tokens from slot {known} on, in a cache of {own.valid.shape[2]}"
                )
            seen = jax.lax.dynamic_update_slice_in_dim(own.valid, valid, slot, axis=2)
            own_kv = (own.k, own.v)
        sections = self.config.rope_sections
        interleaved = self.config.rope_interleaved
        axes = interleaved_axes(sections) if interleaved else section_axes(sections)
        angles = multimodal_angles(positions, axes, self.config.rope_theta)
        prefix_kv = None if prefix is None else (prefix.k, prefix.v)

        def body(layer, x, inputs):
            number, own, shared = inputs
            if shared is not None:
                shared = (shared[0][:, 0], shared[1][:, 0], prefix.valid[:, 0])
            x, own = layer(x, angles, seen, slot, own, shared)
            if deepstack is not None:
                x = jax.lax.cond(
                    number < len(deepstack), lambda x: x + deepstack[number], lambda x: x, x
                )
            return x, own

        if isinstance(self.layers, nnx.List):
            depth = self.config.layers
            nothing = [None] * depth
            pairs = (nothing if kv is None else zip(*kv, strict=True) for kv in (own_kv, prefix_kv))
            x, kv = scan(self.layers, body, x, list(zip(range(depth), *pairs, strict=True)))
            k, v = (list(part) for part in zip(*kv, strict=True))
        else:
            numbers = jnp.arange(self.config.layers)
            x, (k, v) = scan(self.layers, body, x, (numbers, own_kv, prefix_kv), remat=remat)
        return self.norm(x), Cache(k, v, seen)
