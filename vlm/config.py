"""Frozen model configurations, and the named real sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


class ConfigError(ValueError):
    """A `config.json` that this package cannot serve; the message names the key."""


@dataclass(frozen=True)
class VisionConfig:
    """What the towers of both families have in common.

    `patch`, `merge` and `temporal_patch` are in pixels, patches and frames.
    """

    depth: int
    hidden: int
    heads: int
    mlp: int
    out: int
    channels: int = 3
    patch: int = 14
    temporal_patch: int = 2
    merge: int = 2
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
        """Side of an attention window in merged cells; 1 where the tower has no windows."""
        return 1

    @property
    def table_side(self) -> int:
        """Side of the table of learned positions; 0 where the tower has none."""
        return 0

    @property
    def taps(self) -> tuple[int, ...]:
        """Blocks whose output also reaches the decoder (deepstack)."""
        return ()


@dataclass(frozen=True)
class Qwen25Vision(VisionConfig):
    """The Qwen2.5-VL tower: attention within windows, and within the frame at `full_layers`.

    `window` is in pixels.
    """

    depth: int = 32
    hidden: int = 1280
    heads: int = 16
    mlp: int = 3420
    out: int = 3584
    window: int = 112
    full_layers: tuple[int, ...] = (7, 15, 23, 31)

    @property
    def window_cells(self) -> int:
        return self.window // self.factor


@dataclass(frozen=True)
class Qwen3Vision(VisionConfig):
    """The Qwen3-VL tower: attention within the frame, learned positions, deepstack taps.

    `positions` is the number of learned positions, a square; `deepstack` lists the tapped blocks.
    """

    depth: int = 27
    hidden: int = 1152
    heads: int = 16
    mlp: int = 4304
    out: int = 4096
    patch: int = 16
    positions: int = 2304
    deepstack: tuple[int, ...] = (8, 16, 24)

    @property
    def table_side(self) -> int:
        return int(self.positions**0.5)

    @property
    def taps(self) -> tuple[int, ...]:
        return self.deepstack


@dataclass(frozen=True)
class TextConfig:
    """The decoders: grouped-query attention, SwiGLU, multimodal rotary embedding.

    Qwen2.5 has biases on q, k and v and rotary sections in chunks; Qwen3 has RMSNorm on the heads
    of q and k (`qk_norm`) and interleaves the sections.
    """

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
    rope_interleaved: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    tied: bool = False


FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class VLMConfig:
    """A whole model; token ids are its tokenizer's.

    `tokens_per_second` scales video time to positions in Qwen2.5-VL; Qwen3-VL writes times out.
    """

    vision: VisionConfig = Qwen25Vision()
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
        from vlm.hf_config import read

        return read(config).checked()

    def to_hf(self) -> dict:
        """The `config.json` (nested layout) that `transformers` and `from_hf` read back."""
        from vlm.hf_config import write

        return write(self)

    def checked(self) -> VLMConfig:
        """Returns itself, or raises ConfigError where two numbers contradict each other."""
        vision, text = self.vision, self.text
        rules = {
            "mrope_section must sum to head_dim / 2": 2 * sum(text.rope_sections) == text.head_dim,
            "num_key_value_heads must divide num_attention_heads": text.heads % text.kv_heads == 0,
            "out_hidden_size must equal hidden_size": vision.out == text.hidden,
            "vision num_heads must divide hidden_size": vision.hidden % vision.heads == 0,
            "vision head width must be a multiple of 4": vision.head_dim % 4 == 0,
            "token ids must lie below vocab_size": text.vocab
            > max(
                self.image_token, self.video_token, self.vision_start_token, self.vision_end_token
            ),
        }
        if isinstance(vision, Qwen25Vision):
            rules |= {
                "hidden_size must be num_attention_heads x head_dim": text.hidden
                == text.heads * text.head_dim,
                "window_size must hold whole merged cells": vision.window >= vision.factor,
                "fullatt_block_indexes must lie below depth": all(
                    0 <= layer < vision.depth for layer in vision.full_layers
                ),
            }
        if isinstance(vision, Qwen3Vision):
            rules |= {
                "num_position_embeddings must be a square": vision.table_side**2
                == vision.positions,
                "deepstack_visual_indexes must rise and lie below depth": vision.taps
                == tuple(sorted(set(vision.taps) & set(range(vision.depth)))),
                "mrope_section must leave no gap when interleaved": _interleaves(
                    text.rope_sections
                ),
                "num_hidden_layers must be at least the deepstack taps": len(vision.taps)
                <= text.layers,
            }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("; ".join(broken))
        return self


def _interleaves(sections: tuple[int, ...]) -> bool:
    """Whether height and width find their every third frequency below the end."""
    return len(sections) == 3 and max(3 * sections[1] - 2, 3 * sections[2] - 1) < sum(sections)


_TINY_TOKENS = {
    "image_token": 7,
    "video_token": 8,
    "vision_start_token": 4,
    "vision_end_token": 5,
}
_TINY_TEXT = TextConfig(
    vocab=1024, hidden=192, mlp=512, layers=4, heads=6, kv_heads=2, head_dim=32,
    rope_theta=200.0, rope_sections=(4, 6, 6), tied=True,
)  # fmt: skip

TINY = VLMConfig(
    vision=Qwen25Vision(
        depth=3, hidden=128, heads=4, mlp=256, out=192, patch=8, window=32, full_layers=(1, 2)
    ),
    text=_TINY_TEXT,
    **_TINY_TOKENS,
)
TINY_QWEN3 = VLMConfig(
    vision=Qwen3Vision(
        depth=3, hidden=128, heads=4, mlp=256, out=192, patch=8, positions=64, deepstack=(0, 1)
    ),
    text=dataclasses.replace(
        _TINY_TEXT,
        rope_sections=(6, 5, 5),
        rope_interleaved=True,
        qkv_bias=False,
        qk_norm=True,
    ),
    family="qwen3_vl",
    **_TINY_TOKENS,
)
"""The bundled architectures: cells of 16 pixels, and slow rotary angles that leave the few places
of a small frame far enough apart. Their token ids are those of `vlm/tiny/tokenizer.json`."""


def _qwen25(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vision_mlp: int = 3420,
            vocab: int = 152_064, tied: bool = False) -> VLMConfig:  # fmt: skip
    text = TextConfig(
        vocab=vocab, hidden=hidden, mlp=mlp, layers=layers, heads=heads, kv_heads=kv_heads,
        tied=tied,
    )  # fmt: skip
    return VLMConfig(vision=Qwen25Vision(mlp=vision_mlp, out=hidden), text=text)


def _qwen3(hidden: int, mlp: int, layers: int, heads: int, tied: bool) -> VLMConfig:
    text = TextConfig(
        vocab=151_936, hidden=hidden, mlp=mlp, layers=layers, heads=heads, kv_heads=8,
        rope_theta=5_000_000.0, rope_sections=(24, 20, 20), rope_interleaved=True,
        qkv_bias=False, qk_norm=True, tied=tied,
    )  # fmt: skip
    small = {"depth": 24, "hidden": 1024, "mlp": 4096, "deepstack": (5, 11, 17)}
    vision = Qwen3Vision(out=hidden, **(small if tied else {}))
    return VLMConfig(vision=vision, text=text, family="qwen3_vl")


NAMED = {
    "qwen2.5-vl-3b": _qwen25(2048, 11_008, 36, 16, 2, vocab=151_936, tied=True),
    "qwen2.5-vl-7b": _qwen25(3584, 18_944, 28, 28, 4),
    "qwen2.5-vl-32b": _qwen25(5120, 27_648, 64, 40, 8, vision_mlp=3456),
    "qwen2.5-vl-72b": _qwen25(8192, 29_568, 80, 64, 8, vision_mlp=3456),
    "qwen3-vl-2b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3-vl-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-vl-8b": _qwen3(4096, 12_288, 36, 32, tied=False),
    "qwen3-vl-32b": _qwen3(5120, 25_600, 64, 64, tied=False),
}
"""The dense sizes of both families, as their published `config.json` files have them."""
