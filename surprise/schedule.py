"""When SPIKE looks: the number of time steps, their frames, the window before each."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int

from surprise.settings import Settings

_BASE = 8


def time_steps(
    seconds: float | int,
    frame_count: int,
    *,
    schedule: str = "paper",
    steps: int = 32,
    cap: int = 128,
    min_frames: int = 0,
) -> int:
    """K, the frames sampled from a video of `seconds` and `frame_count` frames.

    paper (App. C.2): 8 up to one minute, doubled for each further one begun; old and new: the two
    releases of the code, doubled for each whole minute, or 100 s, past the first. These three stay
    within `min_frames` and `cap`. fixed: `steps`. K is never more than the video has.
    """
    if schedule == "paper":
        doublings = math.ceil(seconds / 60) - 1
    elif schedule == "old":
        doublings = math.floor((seconds - 60) / 60)
    elif schedule == "new":
        doublings = math.floor((seconds - 100) / 100)
    elif schedule == "fixed":
        return min(steps, frame_count)
    else:
        raise ValueError(f"schedule is {schedule!r}; choose from paper, old, new, fixed")
    # 2**32 is past any cap: hours of video must not build astronomical integers.
    count = _BASE * 2 ** min(max(doublings, 0), 32)
    return min(max(count, min_frames), cap, frame_count)


def frame_indices(frame_count: int, steps: int) -> Int[np.ndarray, " K"]:
    """K frames from the first to the last: linspace(0, frame_count - 1, K) rounded down, int64."""
    if steps == 1:
        return np.zeros(1, np.int64)
    # Whole numbers throughout: linspace's floats can fall just short of an exact frame.
    return np.arange(steps, dtype=np.int64) * (frame_count - 1) // (steps - 1)


def window(step: int, size: int) -> tuple[int, ...]:
    """Places of the frames shown before step >= 1: the latest `size`, fewer at the start."""
    return tuple(range(max(0, step - size), step))


def observation(step: int, kind: str) -> tuple[int, ...]:
    """Places that step >= 1 observes: `frame` (step,) or `pair` (step - 1, step)."""
    return (step - 1, step) if kind == "pair" else (step,)


class TooShortError(ValueError):
    """A video with too few frames for the window; the message is one line."""


def episode_frames(
    settings: Settings, *, seconds: float, frame_count: int
) -> Int[np.ndarray, " K"]:
    """The frames that `settings` samples from a video, int64.

    Raises TooShortError unless at least one step sees a full window, that is K > W.
    """
    if frame_count < 1:
        raise TooShortError("the video has no frames")
    steps = time_steps(
        seconds,
        frame_count,
        schedule=settings.schedule,
        steps=settings.steps,
        cap=settings.cap,
        min_frames=settings.min_frames,
    )
    if settings.window >= steps:
        raise TooShortError(
            f"window {settings.window} is larger than the video allows: it has {frame_count} "
            f"frame{'s' * (frame_count != 1)}, {steps} sampled; a window of at most "
            f"{steps - 1} would fit"
            if steps > 1
            else "the video has a single frame: nothing comes next in it"
        )
    return frame_indices(frame_count, steps)
