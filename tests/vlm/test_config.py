"""`config.json` to `VLMConfig` and back: both layouts, the published files, and what is refused."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from vlm.config import NAMED, TINY, ConfigError, VLMConfig

QWEN = Path(__file__).resolve().parents[2].parent / "shared/assets/qwen"
ODD = VLMConfig(
    vision=dataclasses.replace(
        TINY.vision, channels=1, patch=7, temporal_patch=3, merge=3, window=84, full_layers=(0, 2)
    ),
    text=dataclasses.replace(
        TINY.text, norm_eps=1e-5, rope_theta=5e5, rope_sections=(2, 6, 8), tied=False
    ),
    image_token=11,
    video_token=12,
    vision_start_token=13,
    vision_end_token=14,
    tokens_per_second=5,
)


def edited(**changes):
    """TINY's `config.json` with `a__b=value` set at ["a"]["b"]; `...` deletes the key."""
    config = copy.deepcopy(TINY.to_hf())
    for path, value in changes.items():
        *scopes, key = path.split("__")
        scope = config
        for name in scopes:
            scope = scope[name]
        if value is ...:
            del scope[key]
        else:
            scope[key] = value
    return config


@pytest.mark.parametrize("config", [TINY, ODD, *NAMED.values()])
def test_what_is_written_is_read_back_through_json(config):
    assert VLMConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("config", [TINY, ODD])
def test_the_flat_layout_says_the_same_as_the_nested_one(config):
    nested = config.to_hf()
    flat = {**nested.pop("text_config"), **nested}
    flat["vision_config"]["in_chans"] = flat["vision_config"].pop("in_channels")
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": list(config.text.rope_sections)}
    del flat["head_dim"]  # 4.x leaves it out: hidden / heads
    assert VLMConfig.from_hf(flat) == config


def test_the_newest_layout_keeps_theta_and_sections_in_rope_parameters():
    rope = {"rope_type": "default", "rope_theta": 7.0, "mrope_section": [2, 6, 8]}
    config = edited(
        text_config__rope_parameters=rope,
        text_config__rope_scaling=...,
        text_config__rope_theta=...,
    )
    text = VLMConfig.from_hf(config).text
    assert (text.rope_theta, text.rope_sections) == (7.0, (2, 6, 8))


@pytest.mark.parametrize("name", ["3B", "7B"])
def test_the_named_sizes_are_those_of_the_published_files(name):
    path = QWEN / f"Qwen2.5-VL-{name}-Instruct/config.json"
    if not path.exists():
        pytest.skip(f"needs {path.name} of Qwen2.5-VL-{name} in shared/assets")
    published = json.loads(path.read_text())
    assert VLMConfig.from_hf(published) == NAMED[f"qwen2.5-vl-{name.lower()}"]


def test_transformers_reads_what_is_written_and_writes_what_is_read():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2_5_VLConfig(**ODD.to_hf())
    assert theirs.text_config.rope_parameters["mrope_section"] == [2, 6, 8]
    assert theirs.vision_config.in_channels == 1
    assert VLMConfig.from_hf(theirs.to_dict()) == ODD


def test_defaults_of_absent_keys():
    config = VLMConfig.from_hf(
        edited(vision_config__tokens_per_second=..., vision_config__in_channels=...)
    )
    assert config.tokens_per_second == 4  # the family's class default, not the checkpoints' 2
    assert config.vision.channels == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "llava"}, "model_type is 'llava'"),
        ({"model_type": ...}, "model_type is None"),
        ({"text_config__num_hidden_layers": ...}, "lacks 'num_hidden_layers'"),
        ({"vision_config__fullatt_block_indexes": ...}, "lacks 'fullatt_block_indexes'"),
        ({"video_token_id": ...}, "lacks 'video_token_id'"),
        ({"vision_config": None}, "lacks 'depth'"),
        ({"vision_config": "none"}, "vision_config is 'none', not an object"),
        ({"text_config__num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"text_config__hidden_size": "192"}, "hidden_size is '192'"),
        ({"text_config__num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, not a whole number"),
        ({"text_config__vocab_size": True}, "vocab_size is True"),
        ({"vision_config__fullatt_block_indexes": 3}, "not a list of whole numbers"),
        # Two numbers that contradict each other.
        ({"text_config__rope_scaling": {"mrope_section": [4, 6, 5]}}, "must sum to head_dim / 2"),
        ({"text_config__head_dim": 64}, "hidden_size must be num_attention_heads x head_dim"),
        ({"text_config__num_key_value_heads": 4}, "must divide num_attention_heads"),
        ({"vision_config__out_hidden_size": 128}, "out_hidden_size must equal hidden_size"),
        ({"vision_config__num_heads": 5}, "num_heads must divide hidden_size"),
        ({"vision_config__num_heads": 64}, "multiple of 4"),
        ({"vision_config__window_size": 14}, "whole merged cells"),
        ({"vision_config__fullatt_block_indexes": [3]}, "below depth"),
        ({"image_token_id": 1024}, "below vocab_size"),
        # Features that would silently give other numbers.
        ({"text_config__hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"vision_config__hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ({"text_config__use_sliding_window": True}, "use_sliding_window is True"),
        # The model card's recipe for long text; its other frequencies are not built.
        (
            {"text_config__rope_scaling": {"type": "yarn", "mrope_section": [4, 6, 6]}},
            "rope_type is 'yarn'",
        ),
    ],
)
def test_a_config_that_cannot_be_served_is_one_line_that_names_the_key(changes, says):
    with pytest.raises(ConfigError) as error:
        VLMConfig.from_hf(edited(**changes))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_all_contradictions_are_named_together():
    with pytest.raises(ConfigError, match=r"kv_heads|num_key_value_heads.*; .*out_hidden_size"):
        VLMConfig.from_hf(
            edited(text_config__num_key_value_heads=4, vision_config__out_hidden_size=128)
        )
