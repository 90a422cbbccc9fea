"""`config.json` of both families <-> `VLMConfig`, for `VLMConfig.from_hf` and `to_hf`."""

from __future__ import annotations

from collections.abc import Mapping

from vlm.config import FAMILIES, ConfigError, Qwen3Vision, Qwen25Vision, TextConfig, VLMConfig


def read(config: Mapping) -> VLMConfig:
    """The configuration that a `config.json` describes; raises ConfigError."""
    family = config.get("model_type")
    if family not in FAMILIES:
        supported = ", ".join(map(repr, FAMILIES))
        raise ConfigError(f"model_type is {family!r}; supported: {supported}")
    vision = _object(config, "vision_config")
    return VLMConfig(
        vision=_vision25(vision) if family == "qwen2_5_vl" else _vision3(vision),
        text=_text(config, family),
        image_token=_size(config, "image_token_id"),
        video_token=_size(config, "video_token_id"),
        vision_start_token=_size(config, "vision_start_token_id"),
        vision_end_token=_size(config, "vision_end_token_id"),
        # The class default of Qwen2.5-VL is 4; a checkpoint that leaves it out means that.
        tokens_per_second=_size(vision, "tokens_per_second", 4 if family == "qwen2_5_vl" else 2),
        family=family,
    )


def _text(config: Mapping, family: str) -> TextConfig:
    text = {**config, **_object(config, "text_config")}
    rope = _object(text, "rope_parameters") or _object(text, "rope_scaling")
    qwen3 = family == "qwen3_vl"
    _one_of("hidden_act", text.get("hidden_act", "silu"), "silu")
    _one_of("use_sliding_window", bool(text.get("use_sliding_window")), False)
    _one_of("rope_type", rope.get("rope_type", rope.get("type", "mrope")), "default", "mrope")
    _one_of("attention_bias", bool(text.get("attention_bias", not qwen3)), not qwen3)
    _one_of("mrope_interleaved", bool(rope.get("mrope_interleaved", qwen3)), qwen3)
    hidden, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    return TextConfig(
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
        rope_interleaved=qwen3,
        qkv_bias=not qwen3,
        qk_norm=qwen3,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
    )


def _tower(vision: Mapping) -> dict:
    return {
        "depth": _size(vision, "depth"),
        "hidden": _size(vision, "hidden_size"),
        "heads": _size(vision, "num_heads"),
        "mlp": _size(vision, "intermediate_size"),
        "out": _size(vision, "out_hidden_size"),
        "channels": _size(vision, "in_channels", vision.get("in_chans", 3)),
        "patch": _size(vision, "patch_size"),
        "temporal_patch": _size(vision, "temporal_patch_size"),
        "merge": _size(vision, "spatial_merge_size"),
    }


def _vision25(vision: Mapping) -> Qwen25Vision:
    _one_of("hidden_act", vision.get("hidden_act", "silu"), "silu")
    return Qwen25Vision(
        **_tower(vision),
        window=_size(vision, "window_size"),
        full_layers=_integers(vision, "fullatt_block_indexes"),
    )


def _vision3(vision: Mapping) -> Qwen3Vision:
    _one_of("hidden_act", vision.get("hidden_act", _TANH), _TANH)
    return Qwen3Vision(
        **_tower(vision),
        positions=_size(vision, "num_position_embeddings"),
        deepstack=_integers(vision, "deepstack_visual_indexes"),
    )


_TANH = "gelu_pytorch_tanh"


def write(config: VLMConfig) -> dict:
    """The `config.json`, nested layout."""
    vision, text, qwen3 = config.vision, config.text, config.family == "qwen3_vl"
    if qwen3:
        tower = {
            "num_position_embeddings": vision.positions,
            "deepstack_visual_indexes": list(vision.deepstack),
            "hidden_act": _TANH,
        }
        rope = {"mrope_interleaved": True}
        attention = {"attention_bias": False}
    else:
        tower = {
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_layers),
            "tokens_per_second": config.tokens_per_second,
            "hidden_act": "silu",
        }
        rope, attention = {"type": "mrope"}, {}
    return {
        "model_type": config.family,
        "architectures": [
            "Qwen3VLForConditionalGeneration" if qwen3 else "Qwen2_5_VLForConditionalGeneration"
        ],
        "image_token_id": config.image_token,
        "video_token_id": config.video_token,
        "vision_start_token_id": config.vision_start_token,
        "vision_end_token_id": config.vision_end_token,
        "tie_word_embeddings": text.tied,
        "text_config": {
            "model_type": f"{config.family}_text",
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
                **rope,
                "rope_type": "default",
                "mrope_section": list(text.rope_sections),
                "rope_theta": text.rope_theta,
            },
            **attention,
            "tie_word_embeddings": text.tied,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "vision_config": {
            "model_type": f"{config.family}_vision",
            "depth": vision.depth,
            "hidden_size": vision.hidden,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "out_hidden_size": vision.out,
            "in_channels": vision.channels,
            "patch_size": vision.patch,
            "temporal_patch_size": vision.temporal_patch,
            "spatial_merge_size": vision.merge,
            **tower,
        },
    }


def _one_of(key: str, value, *supported) -> None:
    if value not in supported:
        raise ConfigError(f"{key} is {value!r}; supported: {', '.join(map(repr, supported))}")


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
