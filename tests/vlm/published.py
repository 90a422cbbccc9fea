"""Small models with the published patch sizes, and a tokenizer that never changes.

Golden vectors are of these, so that the bundled models may change.
"""

import dataclasses
from pathlib import Path

from vlm.config import TINY as BUNDLED_QWEN25
from vlm.config import TINY_QWEN3 as BUNDLED_QWEN3
from vlm.processor import Processor
from vlm.processor_settings import default_settings

TOKENIZER = Path(__file__).parent / "golden" / "tokenizer"

TINY = dataclasses.replace(
    BUNDLED_QWEN25,
    vision=dataclasses.replace(BUNDLED_QWEN25.vision, patch=14, window=112, full_layers=(2,)),
    text=dataclasses.replace(BUNDLED_QWEN25.text, rope_theta=10_000.0),
)
TINY_QWEN3 = dataclasses.replace(
    BUNDLED_QWEN3,
    vision=dataclasses.replace(BUNDLED_QWEN3.vision, patch=16),
    text=dataclasses.replace(BUNDLED_QWEN3.text, rope_theta=10_000.0),
)
_PIXELS = {
    "qwen2_5_vl": ((4 * 28 * 28, 36 * 28 * 28), (4 * 28 * 28, 24 * 28 * 28)),
    "qwen3_vl": ((4 * 32 * 32, 36 * 32 * 32), (4 * 4 * 32 * 32, 4 * 24 * 32 * 32)),
}


def settings_of(config):
    """The family's settings with small pictures."""
    image, video = _PIXELS[config.family]
    return dataclasses.replace(default_settings(config), image_pixels=image, video_pixels=video)


def processor_of(config, **choices):
    """A processor of small pictures."""
    image, video = _PIXELS[config.family]
    choices = {"image_pixels": image, "video_pixels": video} | choices
    return Processor.from_pretrained(TOKENIZER, config, **choices)
