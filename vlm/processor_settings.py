"""The numbers of a `Processor`: defaults of each family, and the files that state others."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.config import TINY, TINY_QWEN3, VisionConfig, VLMConfig
from vlm.positions import HF_COMPAT, check_hf_compat
from vlm.tokenizer import ProcessorError, read_json, write_json


@dataclass(frozen=True)
class ProcessorSettings:
    """What `preprocessor_config.json` fixes, and two choices of ours.

    Pixel limits are (least, most) of one resized image and of one video frame; in Qwen3-VL those of
    videos are of all frames together (`cap_pixels_per_frame` of `transformers` is not built).
    `times` says how the frames' times reach the positions of Qwen2.5-VL: "auto" gives one scalar
    per video where its temporal grids are evenly spaced (to 1 ms) and the true time of every grid
    elsewhere; "scalar" always gives the scalar, as `transformers` does; "true" always gives the
    times. The prompts of Qwen3-VL always state true times. `hf_compat`: see `vlm.positions`.
    """

    image_pixels: tuple[int, int] = (56 * 56, 16_384 * 28 * 28)
    video_pixels: tuple[int, int] = (128 * 28 * 28, 768 * 28 * 28)
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    hf_compat: str = HF_COMPAT[0]
    times: Literal["auto", "scalar", "true"] = "auto"

    def __post_init__(self):
        check_hf_compat(self.hf_compat)
        if self.times not in ("auto", "scalar", "true"):
            raise ValueError(f"times is {self.times!r}; choices: 'auto', 'scalar', 'true'")


_CAP = "cap_pixels_per_frame"

_PUBLISHED = {
    "qwen2_5_vl": ProcessorSettings(),
    "qwen3_vl": ProcessorSettings(
        image_pixels=(64 * 32 * 32, 16_384 * 32 * 32),
        video_pixels=(4 * 32 * 32, 24_576 * 32 * 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
# Small pictures for the bundled models, which know frames of 64 x 64 pixels: 16 to 24 merged cells,
# in Qwen3-VL for a video of at most 16 such frames.
_BUNDLED = {
    TINY: dataclasses.replace(
        _PUBLISHED["qwen2_5_vl"],
        image_pixels=(64 * 64, 96 * 64),
        video_pixels=(64 * 64, 96 * 64),
    ),
    TINY_QWEN3: dataclasses.replace(
        _PUBLISHED["qwen3_vl"],
        image_pixels=(64 * 64, 96 * 64),
        video_pixels=(2 * 64 * 64, 16 * 64 * 64),
    ),
}


def default_settings(config: VLMConfig) -> ProcessorSettings:
    """Returns what the published checkpoints of a family state; small pictures for `TINY` ones."""
    return _BUNDLED.get(config, _PUBLISHED[config.family])


def read_settings(directory: Path, config: VLMConfig) -> ProcessorSettings:
    """Reads a directory's preprocessor files over `default_settings`; raises ProcessorError."""
    # One file per kind, or (newer releases) both in processor_config.json.
    both = read_json(directory / "processor_config.json")
    image = read_json(directory / "preprocessor_config.json") or both.get("image_processor", {})
    video = read_json(directory / "video_preprocessor_config.json") or both.get(
        "video_processor", {}
    )
    for name, own in (("image", image), ("video", video)):
        for key, value in _tower_keys(config.vision).items():
            if own.get(key, value) != value:
                raise ProcessorError(
                    f"{directory}: {name} processor has {key} {own[key]}, the tower {value}"
                )
    if video.get(_CAP):
        logging.getLogger(__name__).warning(
            "%s: %s is not built; frames of short videos come out larger", directory, _CAP
        )
    defaults = default_settings(config)
    return dataclasses.replace(
        defaults,
        image_pixels=_limits(image, defaults.image_pixels),
        # Without a file of its own a video keeps the family's limits, not those of images.
        video_pixels=_limits(video, defaults.video_pixels),
        mean=tuple(image.get("image_mean", defaults.mean)),
        std=tuple(image.get("image_std", defaults.std)),
    )


def write_settings(directory: Path, settings: ProcessorSettings, config: VLMConfig) -> None:
    """Writes the preprocessor files that `read_settings` and `transformers` read."""
    if config.family == "qwen3_vl":
        # What is built, whatever `transformers` may come to take as its default.
        whole, video, more = "Qwen3VLProcessor", "Qwen3VLVideoProcessor", {_CAP: False}
    else:
        whole, video, more = "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", {}
    common = {
        "processor_class": whole,
        **_tower_keys(config.vision),
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": _size(settings.image_pixels),
            **common,
        },
    )
    write_json(
        directory / "video_preprocessor_config.json",
        {"video_processor_type": video, "size": _size(settings.video_pixels), **common, **more},
    )


def _tower_keys(vision: VisionConfig) -> dict[str, int]:
    return {
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal_patch,
        "merge_size": vision.merge,
    }


def _size(limits: tuple[int, int]) -> dict[str, int]:
    return {"shortest_edge": limits[0], "longest_edge": limits[1]}


def _limits(own: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    size = own.get("size") or {}
    least = own.get("min_pixels") or size.get("shortest_edge") or default[0]
    most = own.get("max_pixels") or size.get("longest_edge") or default[1]
    return int(least), int(most)
