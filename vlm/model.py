"""A vision-language model as one module, and the pure steps that drivers jit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm.attention import BACKENDS
from vlm.config import Qwen3Vision, VLMConfig
from vlm.frames import Frames, lay_out
from vlm.inputs import Inputs
from vlm.layers import linear, unstacked
from vlm.positions import HF_COMPAT, mrope_positions
from vlm.text import Cache, Decoder
from vlm.vision_qwen3 import Qwen3Tower
from vlm.vision_qwen25 import Qwen25Tower


class Model(nnx.Module):
    """Vision tower, token embedding, decoder and head of one Qwen2.5-VL or Qwen3-VL.

    `attention` is a back end of `vlm.attention.BACKENDS`, for tower and decoder; static.
    """

    def __init__(
        self, config: VLMConfig, *, dtype=jnp.bfloat16, attention: str = "auto", rngs: nnx.Rngs
    ):
        if attention not in BACKENDS:
            raise ValueError(f"attention is {attention!r}; choices: {', '.join(BACKENDS)}")
        text, kwargs = config.text, {"dtype": dtype, "rngs": rngs}
        self.config = config
        tower = Qwen3Tower if isinstance(config.vision, Qwen3Vision) else Qwen25Tower
        self.vision = tower(config.vision, attention=attention, **kwargs)
        self.embed = nnx.Embed(
            text.vocab,
            text.hidden,
            dtype=dtype,
            param_dtype=dtype,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.decoder = Decoder(text, attention=attention, **kwargs)
        self.head = None if text.tied else linear(text.hidden, text.vocab, bias=False, **kwargs)

    @property
    def dtype(self):
        return self.embed.embedding.dtype

    def unstacked(self) -> Model:
        """The same model with the layers of tower and decoder as lists (see `layers.unstacked`)."""
        model, config = nnx.merge(*nnx.split(self)), self.config
        model.vision.blocks = unstacked(self.vision.blocks, config.vision.depth)
        model.decoder.layers = unstacked(self.decoder.layers, config.text.layers)
        return model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A chunk of T tokens for N rows of B prompts, as the device sees it."""

    ids: Int[np.ndarray | Array, "B N T"]
    positions: Int[np.ndarray | Array, "3 B N T"]
    valid: Bool[np.ndarray | Array, "B N T"]
    visual: Int[np.ndarray | Array, "B N T"] | None = None
    """Row of the features that stands in a token's place; -1 for a text token. None: all text."""


def encode(model: Model, frames: Frames, *, remat: bool = False) -> Float[Array, "rows features"]:
    """Visual features of every merged cell of every frame, flattened to [F * cells, features].

    D features are the cell's token; a Qwen3-VL tower adds D more for each deepstack tap. With
    `remat` the backward pass recomputes activations.
    """
    frames = jax.tree.map(jnp.asarray, frames)
    frames = dataclasses.replace(frames, patches=frames.patches.astype(model.dtype))
    features = model.vision(frames, remat=remat)
    return features.reshape(-1, features.shape[-1])


def run(
    model: Model,
    tokens: Tokens,
    features: Float[Array, "rows features"] | None = None,
    *,
    prefix: Cache | None = None,
    own: Cache | None = None,
    slot: Int[Array, ""] | int = 0,
    remat: bool = False,
) -> tuple[Float[Array, "B N T D"], Cache]:
    """Embeds a chunk, puts visual features in their places and runs the decoder.

    See `Decoder.__call__` for `prefix`, `own` and `slot`. Returns hidden states and the cache.
    """
    tokens = jax.tree.map(jnp.asarray, tokens)
    x, deepstack = model.embed(tokens.ids), None
    if tokens.visual is not None:
        if features is None:
            raise ValueError("tokens.visual is given without features")
        is_visual = (tokens.visual >= 0)[..., None]
        shown = features[jnp.maximum(tokens.visual, 0)].astype(x.dtype)
        shown, *added = jnp.split(shown, features.shape[-1] // x.shape[-1], axis=-1)
        x = jnp.where(is_visual, shown, x)
        if added:
            deepstack = jnp.where(is_visual[None], jnp.stack(added), 0)
    return model.decoder(
        x,
        tokens.positions,
        tokens.valid,
        deepstack=deepstack,
        prefix=prefix,
        own=own,
        slot=slot,
        remat=remat,
    )


def logits(model: Model, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Next-token logits in float32."""
    kernel = model.embed.embedding[...].T if model.head is None else model.head.kernel[...]
    return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)


def last(
    hidden: Float[Array, "B N T D"], valid: Bool[np.ndarray | Array, "B N T"]
) -> Float[Array, "B N D"]:
    """The hidden state of each row's last valid token."""
    places = jnp.arange(valid.shape[-1])[None, None]
    end = jnp.max(jnp.where(valid, places, 0), axis=-1)
    return jnp.take_along_axis(hidden, end[..., None, None], axis=2)[:, :, 0]


def forward(
    model: Model, inputs: Inputs, *, hf_compat: str = HF_COMPAT[0]
) -> Float[Array, "B T V"]:
    """Logits of a whole batch of prompts, uncached: the function that parity is proved on.

    The host part (layout, positions) is numpy; what remains is `encode`, `run` and `logits`.

    Raises:
      ValueError: placeholders in `input_ids` and grids disagree, or an unknown `hf_compat`.
    """
    frames, tokens = prepare(inputs, model.config, hf_compat=hf_compat)
    features = None if frames is None else encode(model, frames)
    hidden, _ = run(model, tokens, features)
    return logits(model, hidden)[:, 0]


def prepare(
    inputs: Inputs, config: VLMConfig, *, hf_compat: str = HF_COMPAT[0]
) -> tuple[Frames | None, Tokens]:
    """Host side of a batch: frames of all its images and videos, and tokens with N = 1."""
    positions, _ = mrope_positions(
        inputs.input_ids,
        inputs.attention_mask,
        inputs.image_grid_thw,
        inputs.video_grid_thw,
        inputs.second_per_grid_ts,
        inputs.grid_seconds,
        config,
        hf_compat,
    )
    visual = np.full(inputs.input_ids.shape, -1, np.int32)
    kinds = [
        (config.image_token, inputs.pixel_values, inputs.image_grid_thw),
        (config.video_token, inputs.pixel_values_videos, inputs.video_grid_thw),
    ]
    shown = [(token, pixels, grid) for token, pixels, grid in kinds if pixels is not None]
    frames = None
    if shown:
        pixels = np.concatenate([pixels for _, pixels, _ in shown])
        grids = np.concatenate([grid for _, _, grid in shown])
        frames, index = lay_out(pixels, grids, config.vision)
        start = 0
        for token, _, grid in shown:
            places = (inputs.input_ids == token) & inputs.attention_mask
            count = int(np.prod(grid, axis=1).sum()) // config.vision.merge**2
            if places.sum() != count:
                raise ValueError(f"{places.sum()} placeholders of token {token} for {count} cells")
            visual[places] = index[start : start + count]
            start += count
    tokens = Tokens(
        ids=inputs.input_ids[:, None],
        positions=positions[:, :, None],
        valid=inputs.attention_mask[:, None],
        visual=None if frames is None else visual[:, None],
    )
    return frames, tokens
