"""From RGB frames to the rows that a vision tower reads: sizes, resizing, normalised patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from vlm.config import VisionConfig


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Returns the (height, width) nearest to the frame's that are multiples of `factor`, in limits.

    Halves round to even; below `min_pixels` sides are rounded up, which may pass `max_pixels`.
    Raises ValueError for a side ratio above 200. Source: `smart_resize` of Qwen2-VL.
    """
    return _within(height, width, factor, min_pixels, max_pixels, frames=1, counted=1)


def smart_resize_clip(
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    *,
    frames: int,
    temporal_patch: int,
) -> tuple[int, int]:
    """Returns the size of each of `frames` frames that keeps all of them together in the limits.

    As `smart_resize`, with the frames counted in whole temporal patches (halves round to even) when
    their pixels are compared with a limit, and as they are when sides are scaled to it; a frame
    with a side below `factor` is scaled up first. A single frame, which Qwen3-VL refuses, counts as
    the whole temporal patch that it fills. Source: `smart_resize` of Qwen3-VL's video processor.
    """
    frames = max(frames, temporal_patch)
    if 0 < min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    counted = round(frames / temporal_patch) * temporal_patch
    return _within(height, width, factor, min_pixels, max_pixels, frames, counted)


def _within(
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    frames: int,
    counted: int,
) -> tuple[int, int]:
    if min(height, width) < 1:
        raise ValueError(f"a frame of {height} x {width} pixels has no picture in it")
    if max(height, width) / min(height, width) > 200:
        raise ValueError(f"aspect ratio of a {height} x {width} frame is above 200")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if counted * rows * columns > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif counted * rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def resize(
    frame: UInt8[np.ndarray, "height width channels"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Resizes to `size` (height, width): antialiased bicubic (a = -0.5) in uint8.

    Within 1 of what torchvision, and so `transformers`, makes of a uint8 frame (2 in one value of
    some 100,000). Rounding and clamping after the first axis are part of that rule.
    """
    from PIL import Image

    if frame.shape[:2] == tuple(size):
        return frame
    # Columns first, then rows, as torchvision; in one call Pillow 13 may choose the other order.
    image, bicubic = Image.fromarray(frame), Image.Resampling.BICUBIC
    image = image.resize((size[1], image.height), bicubic).resize((size[1], size[0]), bicubic)
    return np.asarray(image)


def patchify(
    frames: UInt8[np.ndarray, "frames height width channels"],
    vision: VisionConfig,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Float32[np.ndarray, "P features"], tuple[int, int, int]]:
    """Cuts resized frames into normalised patches; returns them with the grid (t, h, w).

    Rows are ordered (t, h/merge, w/merge, merge, merge), features (channel, temporal, y, x). The
    last frame is repeated to fill its temporal patch. Raises ValueError where a side is no multiple
    of patch * merge.
    """
    count, height, width, channels = frames.shape
    patch, span, merge = vision.patch, vision.temporal_patch, vision.merge
    if height % vision.factor or width % vision.factor:
        raise ValueError(f"frame sides {height} x {width} are no multiples of {vision.factor}")
    if channels != vision.channels:
        raise ValueError(f"frames have {channels} channels, the tower takes {vision.channels}")
    if missing := -count % span:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    t, h, w = len(frames) // span, height // patch, width // patch
    cells = frames.reshape(t, span, h // merge, merge, patch, w // merge, merge, patch, channels)
    rows = cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, channels, -1)
    # The fused form of x/255 then (x - mean)/std, in float32 as the reference computes it.
    shift = np.asarray(mean, np.float32)[:, None] * np.float32(255)
    scale = np.asarray(std, np.float32)[:, None] * np.float32(255)
    patches = (rows.astype(np.float32) - shift) / scale
    return patches.reshape(len(rows), -1), (t, h, w)
