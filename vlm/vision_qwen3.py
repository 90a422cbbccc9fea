"""The Qwen3-VL vision tower (arXiv 2511.21631): learned positions, frames apart, deepstack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm.attention import attend_within
from vlm.config import Qwen3Vision
from vlm.frames import Frames
from vlm.layers import LayerNorm, linear, scan, stack
from vlm.rope import rotate, vision_angles


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP (tanh GELU) over the patches of each frame."""

    def __init__(self, config: Qwen3Vision, *, dtype, backend: str, rngs: nnx.Rngs):
        width, kwargs = config.hidden, {"dtype": dtype, "rngs": rngs}
        self.heads, self.backend = config.heads, backend
        self.norm1 = LayerNorm(width, eps=config.norm_eps, **kwargs)
        self.qkv = linear(width, 3 * width, bias=True, **kwargs)
        self.proj = linear(width, width, bias=True, **kwargs)
        self.norm2 = LayerNorm(width, eps=config.norm_eps, **kwargs)
        self.fc1 = linear(width, config.mlp, bias=True, **kwargs)
        self.fc2 = linear(config.mlp, width, bias=True, **kwargs)

    def __call__(
        self,
        x: Float[Array, "F S D"],
        angles: Float[Array, "F S half"],
        valid: Bool[Array, "F S"],
    ) -> Float[Array, "F S D"]:
        q, k, v = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in (q, k, v))
        q, k = rotate(q, angles), rotate(k, angles)
        mixed = attend_within(q, k, v, valid, run=x.shape[1], backend=self.backend)
        x = x + self.proj(mixed.reshape(x.shape))
        return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=True))


class Merger(nnx.Module):
    """Joins merge^2 neighbouring patches into one token of the decoder's width.

    The tower's own merger norms patches before they are joined; those of deepstack norm the join.
    """

    def __init__(self, config: Qwen3Vision, *, joined_norm: bool, dtype, rngs: nnx.Rngs):
        joined, kwargs = config.hidden * config.merge**2, {"dtype": dtype, "rngs": rngs}
        self.joined_norm = joined_norm
        width = joined if joined_norm else config.hidden
        self.norm = LayerNorm(width, eps=config.norm_eps, **kwargs)
        self.fc1 = linear(joined, joined, bias=True, **kwargs)
        self.fc2 = linear(joined, config.out, bias=True, **kwargs)

    def __call__(self, x: Float[Array, "F S D"]) -> Float[Array, "F cells out"]:
        shape = (x.shape[0], -1, self.fc1.in_features)
        joined = self.norm(x.reshape(shape)) if self.joined_norm else self.norm(x).reshape(shape)
        return self.fc2(jax.nn.gelu(self.fc1(joined), approximate=False))


class Qwen3Tower(nnx.Module):
    """Patches of frames -> merged visual tokens, and those of the tapped blocks beside them."""

    def __init__(self, config: Qwen3Vision, *, dtype, attention: str = "auto", rngs: nnx.Rngs):
        self.config = config
        kwargs = {"dtype": dtype, "rngs": rngs}
        self.patch_embed = linear(config.patch_features, config.hidden, bias=True, **kwargs)
        self.positions = nnx.Embed(
            config.positions,
            config.hidden,
            dtype=dtype,
            param_dtype=dtype,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.blocks = stack(
            config.depth,
            lambda rngs: VisionBlock(config, dtype=dtype, backend=attention, rngs=rngs),
            rngs,
        )
        self.merger = Merger(config, joined_norm=False, **kwargs)
        self.deepstack = stack(
            len(config.taps),
            lambda rngs: Merger(config, joined_norm=True, dtype=dtype, rngs=rngs),
            rngs,
        )

    def __call__(self, frames: Frames, *, remat: bool = False) -> Float[Array, "F cells features"]:
        """Encodes every frame on its own; rows of padding carry no meaning.

        The features of a cell are its token, then what each tap adds to the decoder's first layers:
        (1 + taps) x out values.
        """
        config = self.config
        angles = vision_angles(frames.coordinates, config.head_dim, config.rope_theta)
        x = self.patch_embed(frames.patches)
        x = x + self._learned_positions(frames.coordinates, frames.sizes).astype(x.dtype)
        # The slot of a block among the taps; one past the last, which drops the write, elsewhere.
        slots = np.full(config.depth, len(config.taps))
        slots[list(config.taps)] = np.arange(len(config.taps))

        def body(block, carry, slot):
            x, tapped = carry
            x = block(x, angles, frames.valid)
            return (x, tapped.at[slot].set(x, mode="drop")), None

        tapped = jnp.zeros((len(config.taps), *x.shape), x.dtype)
        (x, tapped), _ = scan(self.blocks, body, (x, tapped), jnp.asarray(slots), remat=remat)

        def merge(merger, carry, x):
            return carry, merger(x)

        _, added = scan(self.deepstack, merge, None, tapped)
        return jnp.concatenate([self.merger(x), *added], axis=-1)

    def _learned_positions(
        self, coordinates: Int[Array, "F S 2"], sizes: Int[Array, "F 2"]
    ) -> Float[Array, "F S D"]:
        """The table of positions stretched over each frame, corner to corner, bilinearly."""
        side = self.config.table_side
        reach = jnp.maximum(sizes - 1, 1)[:, None].astype(jnp.float32)
        at = coordinates.astype(jnp.float32) * (side - 1) / reach
        low = jnp.floor(at)
        table = self.positions.embedding[...]
        total = jnp.zeros((*coordinates.shape[:2], table.shape[-1]), jnp.float32)
        for down in (0, 1):
            for right in (0, 1):
                step = jnp.array([down, right], jnp.float32).reshape(1, 1, 2)
                weight = jnp.prod(1 - jnp.abs(at - low - step), axis=-1)
                corner = jnp.clip(low + step, 0, side - 1).astype(jnp.int32)
                rows = table[corner[..., 0] * side + corner[..., 1]].astype(jnp.float32)
                total = total + weight[..., None] * rows
        return total
