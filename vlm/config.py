"""Frozen model configurations, read from and written to Hugging Face's `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


class ConfigError(ValueError):
    """A `config.json` that this package cannot serve; the message names the key."""


@dataclass(frozen=True)
class VisionConfig:
    """The Qwen2.5-VL tower: `depth` blocks of window attention, at `full_layers` within a frame.

    `patch`, `merge` and `temporal_patch` are in pixels, patches and frames; `window` in pixels.
    """

    depth: int = 32
    hidden: int = 1280
    heads: int = 16
    mlp: int = 3420
    out: int = 3584
    channels: int = 3
    patch: int = 14
    temporal_patch: int = 2
    merge: int = 2
    window: int = 112
    full_layers: tuple[int, ...] = (7, 15, 23, 31)
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_features(self) -> int:
        """Values of one flattened patch: channels x temporal_patch x patch x patch."""
        return self.channels * self.temporal_patch * self.patch**2

    @property
    def factor(self) -> int:
        """Frame sides are multiples of this many pixels: one merged cell."""
        return self.patch * self.merge

    @property
    def window_cells(self) -> int:
        """Side of an attention window in merged cells."""
        return self.window // self.factor


@dataclass(frozen=True)
class TextConfig:
    """The Qwen2.5 decoder: grouped-query attention with qkv bias, SwiGLU, sectioned rotary."""

    vocab: int = 152_064
    hidden: int = 3584
    mlp: int = 18_944
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    rope_sections: tuple[int, int, int] = (16, 24, 24)
    tied: bool = False


@dataclass(frozen=True)
class VLMConfig:
    """A whole model; token ids are its tokenizer's, `tokens_per_second` scales video time."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    image_token: int = 151_655
    video_token: int = 151_656
    vision_start_token: int = 151_652
    vision_end_token: int = 151_653
    tokens_per_second: int = 2
    family: str = "qwen2_5_vl"

    @classmethod
    def from_hf(cls, config: Mapping) -> VLMConfig:
        """Reads a `config.json`, in the flat (4.x) or nested (5.x) layout; raises ConfigError."""
        family = config.get("model_type")
        if family != "qwen2_5_vl":
            raise ConfigError(f"model_type is {family!r}; supported: 'qwen2_5_vl'")
        vision = _object(config, "vision_config")
        text = {**config, **_object(config, "text_config")}
        rope = _object(text, "rope_parameters") or _object(text, "rope_scaling")
        supported = [
            ("hidden_act", text.get("hidden_act", "silu"), ("silu",)),
            ("hidden_act", vision.get("hidden_act", "silu"), ("silu",)),
            ("use_sliding_window", bool(text.get("use_sliding_window")), (False,)),
            ("rope_type", rope.get("rope_type", rope.get("type", "mrope")), ("default", "mrope")),
        ]
        for name, value, choices in supported:
            if value not in choices:
                raise ConfigError(
                    f"{name} is {value!r}; supported: {', '.join(map(repr, choices))}"
                )
        hidden, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
        return cls(
            vision=VisionConfig(
                depth=_size(vision, "depth"),
                hidden=_size(vision, "hidden_size"),
                heads=_size(vision, "num_heads"),
                mlp=_size(vision, "intermediate_size"),
                out=_size(vision, "out_hidden_size"),
                channels=_size(vision, "in_channels", vision.get("in_chans", 3)),
                patch=_size(vision, "patch_size"),
                temporal_patch=_size(vision, "temporal_patch_size"),
                merge=_size(vision, "spatial_merge_size"),
                window=_size(vision, "window_size"),
                full_layers=_integers(vision, "fullatt_block_indexes"),
            ),
            text=TextConfig(
                vocab=_size(text, "vocab_size"),
                hidden=hidden,
                mlp=_size(text, "intermediate_size"),
                layers=_size(text, "num_hidden_layers"),
                heads=heads,
                kv_heads=_size(text, "num_key_value_heads"),
                head_dim=_size(text, "head_dim", hidden // heads),
                norm_eps=float(_number(text, "rms_norm_eps")),
                rope_theta=float(_number({**text, **rope}, "rope_theta")),
                rope_sections=_integers(rope, "mrope_section"),
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
            ),
            image_token=_size(config, "image_token_id"),
            video_token=_size(config, "video_token_id"),
            vision_start_token=_size(config, "vision_start_token_id"),
            vision_end_token=_size(config, "vision_end_token_id"),
            # The class default of the family is 4; a checkpoint that leaves it out means that.
            tokens_per_second=_size(vision, "tokens_per_second", 4),
            family=family,
        ).checked()

    def to_hf(self) -> dict:
        """The `config.json` (nested layout) that `transformers` and `from_hf` read back."""
        vision, text = self.vision, self.text
        return {
            "model_type": self.family,
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "image_token_id": self.image_token,
            "video_token_id": self.video_token,
            "vision_start_token_id": self.vision_start_token,
            "vision_end_token_id": self.vision_end_token,
            "tie_word_embeddings": text.tied,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "vocab_size": text.vocab,
                "hidden_size": text.hidden,
                "intermediate_size": text.mlp,
                "num_hidden_layers": text.layers,
                "num_attention_heads": text.heads,
                "num_key_value_heads": text.kv_heads,
                "head_dim": text.head_dim,
                "hidden_act": "silu",
                "rms_norm_eps": text.norm_eps,
                "rope_theta": text.rope_theta,
                "rope_scaling": {
                    "type": "mrope",
                    "rope_type": "default",
                    "mrope_section": list(text.rope_sections),
                    "rope_theta": text.rope_theta,
                },
                "tie_word_embeddings": text.tied,
                "bos_token_id": None,
                "eos_token_id": None,
            },
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                "depth": vision.depth,
                "hidden_size": vision.hidden,
                "num_heads": vision.heads,
                "intermediate_size": vision.mlp,
                "out_hidden_size": vision.out,
                "in_channels": vision.channels,
                "patch_size": vision.patch,
                "temporal_patch_size": vision.temporal_patch,
                "spatial_merge_size": vision.merge,
                "window_size": vision.window,
                "fullatt_block_indexes": list(vision.full_layers),
                "tokens_per_second": self.tokens_per_second,
                "hidden_act": "silu",
            },
        }

    def checked(self) -> VLMConfig:
        """Returns itself, or raises ConfigError where two numbers contradict each other."""
        vision, text = self.vision, self.text
        rules = {
            "mrope_section must sum to head_dim / 2": 2 * sum(text.rope_sections) == text.head_dim,
            "hidden_size must be num_attention_heads x head_dim": text.hidden
            == text.heads * text.head_dim,
            "num_key_value_heads must divide num_attention_heads": text.heads % text.kv_heads == 0,
            "out_hidden_size must equal hidden_size": vision.out == text.hidden,
            "vision num_heads must divide hidden_size": vision.hidden % vision.heads == 0,
            "vision head width must be a multiple of 4": vision.head_dim % 4 == 0,
            "window_size must hold whole merged cells": vision.window >= vision.factor,
            "fullatt_block_indexes must lie below depth": all(
                0 <= layer < vision.depth for layer in vision.full_layers
            ),
            "token ids must lie below vocab_size": text.vocab
            > max(
                self.image_token, self.video_token, self.vision_start_token, self.vision_end_token
            ),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("; ".join(broken))
        return self


def _object(scope: Mapping, key: str) -> Mapping:
    """An optional object of a `config.json`; empty where it is absent or null."""
    value = scope.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {value!r}, not an object")
    return value


def _number(scope: Mapping, key: str, default: float | int | None = None) -> float | int:
    """A positive number of a `config.json`; null counts as absent."""
    value = default if scope.get(key) is None else scope[key]
    if value is None:
        raise ConfigError(f"config.json lacks {key!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{key} is {value!r}, not a positive number")
    return value


def _size(scope: Mapping, key: str, default: int | None = None) -> int:
    value = _number(scope, key, default)
    if not isinstance(value, int):
        raise ConfigError(f"{key} is {value!r}, not a whole number")
    return value


def _integers(scope: Mapping, key: str) -> tuple[int, ...]:
    if key not in scope:
        raise ConfigError(f"config.json lacks {key!r}")
    value = scope[key]
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        raise ConfigError(f"{key} is {value!r}, not a list of whole numbers")
    return tuple(value)


TINY = VLMConfig(
    vision=VisionConfig(depth=3, hidden=128, heads=4, mlp=256, out=192, full_layers=(2,)),
    text=TextConfig(
        vocab=1024, hidden=192, mlp=512, layers=4, heads=6, kv_heads=2, head_dim=32,
        rope_theta=10_000.0, rope_sections=(4, 6, 6), tied=True,
    ),
    image_token=7, video_token=8, vision_start_token=4, vision_end_token=5,
)  # fmt: skip
"""The bundled architecture; its token ids are those of `vlm/tiny/tokenizer.json`."""

_QWEN25_VISION = VisionConfig()

NAMED = {
    "qwen2.5-vl-3b": VLMConfig(
        vision=dataclasses.replace(_QWEN25_VISION, out=2048),
        text=TextConfig(
            vocab=151_936, hidden=2048, mlp=11_008, layers=36, heads=16, kv_heads=2, tied=True
        ),
    ),
    "qwen2.5-vl-7b": VLMConfig(),
}
"""Real sizes, by name, from the published `config.json` files (Qwen2.5-VL-3B, -7B Instruct)."""
