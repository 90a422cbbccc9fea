"""What a processor hands to a model: one padded batch of prompts, as host arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Inputs:
    """A batch of B prompts padded to T tokens, with the patches of every image and video in it.

    Visual items are listed in the order in which the prompts show them, row after row, images and
    videos apart. Grids are (t, h, w) in patches; patches are rows ordered (t, h/merge, w/merge,
    merge, merge) with features (channel, temporal, y, x), normalised.
    """

    input_ids: Int[np.ndarray, "B T"]
    attention_mask: Bool[np.ndarray, "B T"]
    pixel_values: Float[np.ndarray, "P features"] | None = None
    image_grid_thw: Int[np.ndarray, "images 3"] | None = None
    pixel_values_videos: Float[np.ndarray, "P_video features"] | None = None
    video_grid_thw: Int[np.ndarray, "videos 3"] | None = None
    second_per_grid_ts: Float[np.ndarray, " videos"] | None = None
    """Seconds between temporal grids, a video; absent means 1.0 (the rule of the family)."""
    grid_seconds: tuple[np.ndarray, ...] | None = None
    """Per video, the true time of every temporal grid, in place of `second_per_grid_ts`; an empty
    array leaves the scalar in force."""

    @classmethod
    def from_hf(cls, mapping: Mapping) -> Inputs:
        """Takes the arrays under the names that `transformers` processors give them.

        Values may be numpy arrays, lists or anything `numpy.asarray` reads. `input_ids` is
        required; a missing `attention_mask` means no padding.
        """

        def take(name: str, dtype) -> np.ndarray | None:
            value = mapping.get(name)
            return None if value is None else np.asarray(value).astype(dtype)

        ids = take("input_ids", np.int32)
        if ids is None:
            raise ValueError("Inputs.from_hf: the mapping has no 'input_ids'")
        mask = take("attention_mask", bool)
        return cls(
            input_ids=ids,
            attention_mask=np.ones(ids.shape, bool) if mask is None else mask,
            pixel_values=take("pixel_values", np.float32),
            image_grid_thw=take("image_grid_thw", np.int32),
            pixel_values_videos=take("pixel_values_videos", np.float32),
            video_grid_thw=take("video_grid_thw", np.int32),
            second_per_grid_ts=take("second_per_grid_ts", np.float64),
        )
