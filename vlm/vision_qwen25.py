"""The Qwen2.5-VL vision tower (arXiv 2502.13923, section 2.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlm.attention import attend_within
from vlm.config import Qwen25Vision
from vlm.frames import Frames
from vlm.layers import GatedMLP, RMSNorm, linear, scan, stack
from vlm.rope import rotate, vision_angles


class VisionBlock(nnx.Module):
    """Pre-norm attention and gated MLP over the patches of each frame."""

    def __init__(self, config: Qwen25Vision, *, dtype, backend: str, rngs: nnx.Rngs):
        width, kwargs = config.hidden, {"dtype": dtype, "rngs": rngs}
        self.heads, self.backend = config.heads, backend
        self.norm1 = RMSNorm(width, eps=config.norm_eps, **kwargs)
        self.qkv = linear(width, 3 * width, bias=True, **kwargs)
        self.proj = linear(width, width, bias=True, **kwargs)
        self.norm2 = RMSNorm(width, eps=config.norm_eps, **kwargs)
        self.mlp = GatedMLP(width, config.mlp, bias=True, **kwargs)

    def __call__(
        self,
        x: Float[Array, "F S D"],
        angles: Float[Array, "F S half"],
        valid: Bool[Array, "F S"],
        full: Bool[Array, ""],
        window: int,
    ) -> Float[Array, "F S D"]:
        """One block; attends within runs of `window` patches, or within the frame where `full`."""
        q, k, v = jnp.split(self.qkv(self.norm1(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in (q, k, v))
        q, k = rotate(q, angles), rotate(k, angles)
        mixed = jax.lax.cond(
            full,
            lambda *args: attend_within(*args, run=x.shape[1], backend=self.backend),
            lambda *args: attend_within(*args, run=window, backend=self.backend),
            *(q, k, v, valid),
        )
        x = x + self.proj(mixed.reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Joins merge^2 neighbouring patches into one token of the decoder's width."""

    def __init__(self, config: Qwen25Vision, *, dtype, rngs: nnx.Rngs):
        joined, kwargs = config.hidden * config.merge**2, {"dtype": dtype, "rngs": rngs}
        self.norm = RMSNorm(config.hidden, eps=config.norm_eps, **kwargs)
        self.fc1 = linear(joined, joined, bias=True, **kwargs)
        self.fc2 = linear(joined, config.out, bias=True, **kwargs)

    def __call__(self, x: Float[Array, "F S D"]) -> Float[Array, "F cells out"]:
        joined = self.norm(x).reshape(x.shape[0], -1, self.fc1.in_features)
        return self.fc2(jax.nn.gelu(self.fc1(joined), approximate=False))


class Qwen25Tower(nnx.Module):
    """Patches of frames -> merged visual tokens; window attention, full at `full_layers`."""

    def __init__(self, config: Qwen25Vision, *, dtype, attention: str = "auto", rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = linear(
            config.patch_features, config.hidden, bias=False, dtype=dtype, rngs=rngs
        )
        self.blocks = stack(
            config.depth,
            lambda rngs: VisionBlock(config, dtype=dtype, backend=attention, rngs=rngs),
            rngs,
        )
        self.merger = Merger(config, dtype=dtype, rngs=rngs)

    def __call__(self, frames: Frames, *, remat: bool = False) -> Float[Array, "F cells out"]:
        """Encodes every frame on its own; rows of padding carry no meaning."""
        config = self.config
        angles = vision_angles(frames.coordinates, config.head_dim, config.rope_theta)
        window = (config.window_cells * config.merge) ** 2
        is_full = np.isin(np.arange(config.depth), config.full_layers)

        def body(block, x, full):
            return block(x, angles, frames.valid, full, window), None

        x = self.patch_embed(frames.patches)
        x, _ = scan(self.blocks, body, x, jnp.asarray(is_full), remat=remat)
        return self.merger(x)
