"""Three-axis rotary positions (time, height, width) from token ids and grids, in host numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from vlm.config import VLMConfig

HF_COMPAT = ("5.23", "4.57")
"""Rule sets, by the release of `transformers` that they equal; the first is the default.

Qwen2.5-VL, a video of t grids that starts at position `start`:
"5.23"  T = start + floor(arange(t) * tokens_per_second * second_per_grid), products in float32;
        text goes on at start + max(h, w) / merge, even where T is further.
"4.57"  second_per_grid is cut to an integer first (0.5 -> 0, 1.9 -> 1);
        text goes on behind the largest position of all three axes.

Qwen3-VL writes the time of every temporal grid out, `<1.5 seconds>`, and wraps each grid in its
own vision tokens, so a video is t blocks of (1, h, w) with text between them. Positions follow
from the ids alone and are the same in both rule sets; the ids differ in the tokens around:
"5.23"  the vision tokens of the prompt stay, as an outer pair around all blocks (since 5.10);
"4.57"  the blocks replace them.
"""

# Times come from containers in microseconds at best; this keeps 0.999999.. from losing a step.
_STEP_TOLERANCE = 1e-6


def check_hf_compat(name: str) -> str:
    """Returns the name of a rule set, or raises ValueError that lists the choices."""
    if name not in HF_COMPAT:
        choices = ", ".join(repr(choice) for choice in HF_COMPAT)
        raise ValueError(f"hf_compat is {name!r}; choices: {choices}")
    return name


def mrope_positions(
    input_ids: Int[np.ndarray, "B T"],
    attention_mask: Bool[np.ndarray, "B T"],
    image_grid_thw: Int[np.ndarray, "images 3"] | None,
    video_grid_thw: Int[np.ndarray, "videos 3"] | None,
    second_per_grid_ts: Float[np.ndarray, " videos"] | Sequence[float] | None,
    grid_seconds: Sequence[np.ndarray] | None,
    config: VLMConfig,
    hf_compat: str = HF_COMPAT[0],
) -> tuple[Int32[np.ndarray, "3 B T"], Int32[np.ndarray, " B"]]:
    """Gives every token its (time, height, width) position, and every row the one to decode at.

    Grids are (t, h, w) in patches, in the order in which the rows show them, images and videos
    apart. `second_per_grid_ts` (seconds; None means 1.0 each) spaces a video's grids evenly.
    `grid_seconds`, where given and not empty for a video, holds the true time of each of its grids
    and replaces the scalar: T = start + floor((s_g - s_0) * tokens_per_second). Qwen3-VL reads
    neither: its times are in `input_ids`. Padding, left or right, holds 1 on all axes. The second
    result is the largest position of a row's tokens + 1.

    Raises ValueError where placeholders and grids disagree, where a list of times has the wrong
    length, and for an unknown `hf_compat`. Source: `get_rope_index` of Qwen2.5-VL (section 2.1 of
    arXiv:2502.13923) and of Qwen3-VL.
    """
    check_hf_compat(hf_compat)
    images = _rows(image_grid_thw)
    videos = _rows(video_grid_thw)
    _check_counts(input_ids[attention_mask], images, videos, config)
    if config.family == "qwen3_vl":
        videos = [(1, h, w) for t, h, w in videos for _ in range(t)]
        steps = [np.zeros(1, np.int64)] * len(videos)
    else:
        steps = _time_steps(videos, second_per_grid_ts, grid_seconds, config, hf_compat)
    grids = {
        config.image_token: iter([(grid, np.zeros(grid[0], np.int64)) for grid in images]),
        config.video_token: iter(list(zip(videos, steps, strict=True))),
    }
    positions = np.ones((3, *input_ids.shape), np.int32)
    following = np.zeros(len(input_ids), np.int32)
    for row, (ids, valid) in enumerate(zip(input_ids, attention_mask, strict=True)):
        own = _row_positions(ids[valid], grids, config, hf_compat)
        positions[:, row, valid] = own
        following[row] = own.max(initial=-1) + 1
    return positions, following


def _row_positions(
    ids: np.ndarray,
    grids: dict[int, Iterator[tuple[tuple[int, int, int], np.ndarray]]],
    config: VLMConfig,
    hf_compat: str,
) -> np.ndarray:
    """Positions [3, n] of one row without padding; takes its grids off the two iterators."""
    merge, qwen3 = config.vision.merge, config.family == "qwen3_vl"
    visual = np.flatnonzero(np.isin(ids, list(grids))).tolist()
    parts: list[np.ndarray] = [np.zeros((3, 0), np.int64)]
    start = at = 0  # position and index of the next token
    for index in visual:
        if index < at:  # inside the visual placed last
            continue
        parts.append(_text(start, index - at))
        start += index - at
        token = ids[index]
        (t, h, w), steps = next(grids[token])
        rows, columns = h // merge, w // merge
        at = index + t * rows * columns
        if not (len(ids) >= at and (ids[index:at] == token).all()):
            held = int((ids[index:at] == token).sum())
            raise ValueError(
                f"a visual of grid {(t, h, w)} needs {at - index} placeholders in one run,"
                f" but the prompt holds {held} there"
            )
        if qwen3 and token == config.video_token and (ids[at : at + 1] == token).any():
            raise ValueError(
                f"more than {at - index} video placeholders in one run: Qwen3-VL shows every"
                f" temporal grid of a video, here {h} x {w} patches, by itself behind its time"
            )
        block = np.stack(
            np.meshgrid(steps, np.arange(rows), np.arange(columns), indexing="ij")
        ).reshape(3, -1)
        parts.append(start + block)
        start += int(block.max()) + 1 if hf_compat == "4.57" else max(rows, columns)
    parts.append(_text(start, len(ids) - at))
    return np.concatenate(parts, axis=1)


def _text(start: int, count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + count), (3, count))


def _time_steps(
    videos: list[tuple[int, int, int]],
    second_per_grid_ts: np.ndarray | Sequence[float] | None,
    grid_seconds: Sequence[np.ndarray] | None,
    config: VLMConfig,
    hf_compat: str,
) -> list[np.ndarray]:
    """For each video the offset on the time axis of each of its t grids, as integers."""
    scalars = np.ones(len(videos)) if second_per_grid_ts is None else second_per_grid_ts
    times = [()] * len(videos) if grid_seconds is None else grid_seconds
    if len(scalars) != len(videos):
        raise ValueError(f"{len(videos)} videos, but {len(scalars)} second_per_grid_ts")
    if len(times) != len(videos):
        raise ValueError(f"{len(videos)} videos, but grid_seconds for {len(times)}")
    rate = config.tokens_per_second
    steps = []
    for (t, _, _), scalar, own in zip(videos, scalars, times, strict=True):
        if len(own) not in (0, t):
            raise ValueError(f"a video of {t} temporal grids, but {len(own)} grid_seconds")
        if len(own):
            elapsed = (np.asarray(own, np.float64) - own[0]) * rate
            offsets = np.floor(elapsed + _STEP_TOLERANCE)
        elif hf_compat == "4.57":
            offsets = np.trunc(np.arange(t) * int(scalar) * rate)
        else:
            # float32 as in torch, where the scalars arrive as a tensor of that type.
            interval = np.float32(rate) * np.float32(scalar)
            offsets = np.trunc(np.arange(t, dtype=np.float32) * interval)
        steps.append(offsets.astype(np.int64))
    return steps


def _rows(grid_thw: np.ndarray | None) -> list[tuple[int, int, int]]:
    return [] if grid_thw is None else [tuple(int(n) for n in grid) for grid in grid_thw]


def _check_counts(
    ids: np.ndarray,
    images: list[tuple[int, int, int]],
    videos: list[tuple[int, int, int]],
    config: VLMConfig,
) -> None:
    for name, token, grids in (
        ("image", config.image_token, images),
        ("video", config.video_token, videos),
    ):
        held = int((ids == token).sum())
        cells = sum(t * h * w for t, h, w in grids) // config.vision.merge**2
        if held != cells:
            raise ValueError(
                f"the prompts hold {held} {name} placeholders, but {len(grids)} {name} grids"
                f" make {cells}"
            )
