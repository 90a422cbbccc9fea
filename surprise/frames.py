"""Spending a frame budget on scores: any score per segment -> frame indices; files for others.

Paper: arXiv 2509.23433, section 3. A frame budget F is drawn with replacement from
softmax(score / tau) over the segments; each draw falls uniformly within its segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from surprise.schedule import frame_indices

METHODS = ("surprise", "uniform", "linspace_half", "one_per_interval", "top")
FORMATS = ("indices", "seconds", "bolt", "aks")


def select_frames(
    scores: Num[Any, " K"] | Sequence[float | int],
    *,
    budget: int,
    frame_count: int,
    frames: Int[np.ndarray, " K"] | Sequence[int] | None = None,
    method: str = "surprise",
    tau: float | int = 0.7,
    seed: int | Sequence[int] = 0,
    refill: bool = False,
    segments: str = "ends_at",
    gumbel: bool = False,
) -> Int[np.ndarray, " chosen"]:
    """Frame numbers for a budget: int64, sorted, distinct, within [0, frame_count).

    scores [K] belong to the segments of `segment_bounds`; `frames` [K] are the frames at which they
    were taken, linspace(0, frame_count - 1, K) unless given. `seed` is anything that
    numpy.random.default_rng takes. Methods:

      surprise          `budget` draws, as the paper has it; repeated frames count once
      uniform           middles of `budget` equal intervals: no scores, no chance
      linspace_half     half the budget so, half drawn in proportion to the score above its minimum
      one_per_interval  one frame from each segment, the rest as `surprise`
      top               the frames in `frames` with the best scores, ties to the earlier one

    With `refill` the draws go on until min(budget, frame_count) distinct frames are there.
    `gumbel` adds Gumbel(0, 1) noise to the scores first (the later released code). Raises
    ValueError, one line, for what can't be served.
    """
    scores = np.asarray(scores, np.float64)
    frames = _checked(scores, budget, frame_count, frames, method, tau)
    bounds = segment_bounds(frames, frame_count, convention=segments)
    rng = np.random.default_rng(seed)
    if method == "uniform":
        return uniform_frames(budget, frame_count)
    weights = segment_weights(
        scores, bounds, tau=tau, noise=rng.gumbel(size=len(scores)) if gumbel else None
    )
    if method == "surprise":
        chosen = _draw(rng, weights, bounds, budget)
    elif method == "linspace_half":
        above = np.where(np.diff(bounds)[:, 0] > 0, scores - scores.min(), 0.0)
        weights = above / above.sum() if above.sum() > 0 else weights
        even = uniform_frames(budget - budget // 2, frame_count)
        chosen = np.concatenate([even, _draw(rng, weights, bounds, budget // 2)])
    elif method == "one_per_interval":
        open_segments = bounds[bounds[:, 1] > bounds[:, 0]]
        if budget < len(open_segments):
            raise ValueError(
                f"budget is {budget}; one_per_interval needs one for each of the "
                f"{len(open_segments)} segments"
            )
        first = _inside(open_segments, rng.random(len(open_segments)))
        rest = _draw(rng, weights, bounds, budget - len(first))
        chosen = np.concatenate([first, rest])
    else:
        chosen = frames[np.argsort(-scores, kind="stable")[:budget]]
    chosen = np.unique(chosen)
    if refill:
        chosen = _refilled(rng, chosen, weights, bounds, min(budget, frame_count))
    return chosen


def segment_bounds(
    frames: Int[np.ndarray, " K"], frame_count: int, *, convention: str = "ends_at"
) -> Int[np.ndarray, "K 2"]:
    """First frame and one past the last of each score's segment.

    ends_at (paper): segment i runs from behind frame i-1 up to and with frame i, so that the frame
    that surprised is in it. Step 0 observes nothing and is given no segment (unless K = 1); frame 0
    opens segment 1, and what follows the last step ends with it. equal (released code): K equal
    intervals of the video, which shifts score i by up to one interval.
    """
    if convention == "equal":
        edges = np.arange(len(frames) + 1, dtype=np.int64) * frame_count
        edges = -(-edges // len(frames))  # rounded up: the frames f with i/K <= f/count < (i+1)/K
    elif convention == "ends_at":
        edges = np.concatenate([[0], np.asarray(frames, np.int64) + 1])
        edges[-1] = frame_count
        if len(frames) > 1:
            edges[1] = 0
    else:
        raise ValueError(f"segments is {convention!r}; choose from ends_at, equal")
    return np.stack([edges[:-1], edges[1:]], axis=-1)


def segment_weights(
    scores: Float[np.ndarray, " K"],
    bounds: Int[np.ndarray, "K 2"],
    *,
    tau: float | int = 0.7,
    noise: Float[np.ndarray, " K"] | None = None,
) -> Float[np.ndarray, " K"]:
    """Probability of each segment: softmax((score + noise) / tau) over those that hold a frame.

    Equal scores give equal probabilities.
    """
    logits = scores if noise is None else scores + noise
    weights = np.where(bounds[:, 1] > bounds[:, 0], logits, -np.inf)
    # The peak goes before the division: a tiny tau must not overflow into inf - inf.
    weights = np.exp((weights - weights.max()) / tau)
    return weights / weights.sum()


def uniform_frames(budget: int, frame_count: int) -> Int[np.ndarray, " chosen"]:
    """The middle frames of min(budget, frame_count) equal intervals of the video."""
    count = min(budget, frame_count)
    return (2 * np.arange(count, dtype=np.int64) + 1) * frame_count // (2 * count)


def _draw(rng, weights, bounds, count: int) -> np.ndarray:
    """Frames of `count` draws with replacement, by two uniforms each: the segment, the place."""
    pick, place = rng.random((2, count))
    edges = np.cumsum(weights)
    drawn = np.searchsorted(edges, pick * edges[-1], side="right")
    return _inside(bounds[drawn], place)


def _inside(bounds, place) -> np.ndarray:
    """The frame at a fraction `place` in [0, 1) of each segment."""
    return bounds[:, 0] + np.floor(place * (bounds[:, 1] - bounds[:, 0])).astype(np.int64)


def _refilled(rng, chosen, weights, bounds, count: int) -> np.ndarray:
    """Goes on drawing until `count` frames are distinct, in one go.

    Draws that repeat change nothing, so the next new frame has the odds of its weight among those
    left: the order of log weight + Gumbel noise is exactly the order in which frames would appear.
    """
    if len(chosen) >= count:
        return chosen
    log_odds = np.full(bounds.max(), -np.inf)
    for weight, (start, end) in zip(weights, bounds, strict=True):
        # The least positive float stands for odds that underflow: such frames come last.
        log_odds[start:end] = np.log(max(weight, np.finfo(float).tiny)) - np.log(
            max(end - start, 1)
        )
    order = log_odds + rng.gumbel(size=len(log_odds))
    order[chosen] = -np.inf
    extra = np.argsort(-order, kind="stable")[: count - len(chosen)]
    return np.sort(np.concatenate([chosen, extra]))


def _checked(scores, budget, frame_count, frames, method, tau) -> np.ndarray:
    """The frames of the scores, int64; ValueError for arguments that make no sense."""
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores must be one list of numbers; their shape is {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"score {int(np.argmin(np.isfinite(scores)))} is not a finite number")
    if budget < 1:
        raise ValueError(f"budget is {budget}; it must be at least 1")
    if frame_count < len(scores):
        raise ValueError(f"{len(scores)} scores for a video of {frame_count} frames")
    if not (np.isfinite(tau) and tau > 0):
        raise ValueError(f"tau is {tau}; it must be positive")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose from {', '.join(METHODS)}")
    if frames is None:
        return frame_indices(frame_count, len(scores))
    frames = np.asarray(frames, np.int64)
    if frames.shape != scores.shape:
        raise ValueError(f"{len(scores)} scores at {len(frames)} frames")
    if (np.diff(frames) <= 0).any() or frames[0] < 0 or frames[-1] >= frame_count:
        raise ValueError("frames must rise and lie within the video")
    return frames


@dataclass(frozen=True)
class Selection:
    """Chosen frames of one video, and every argument of `select_frames` that chose them."""

    method: str
    budget: int
    tau: float
    seed: int
    """Of the run. The generator's seed is (seed, *bytes of the video's id)."""
    frames: tuple[int, ...]
    seconds: tuple[float, ...]
    """Presentation times of `frames`."""
    refill: bool = False
    segments: str = "ends_at"
    gumbel: bool = False


@dataclass(frozen=True)
class Question:
    """One question of a data set, for selectors' files that list frames by question."""

    video: str
    id: str
    text: str


def export(
    selections: Mapping[str, Selection],
    *,
    format: str,
    questions: Sequence[Question] | None = None,
) -> Any:
    """Selections by video id -> an object for `json.dump`, in the form that other systems read.

      indices, seconds  {video: [frame numbers, or seconds]}
      bolt  {video: [{question_id, question, frames: [seconds]}]}, as sming256/BOLT writes it
      aks   [[frame numbers], ...] in the order of the data set, as ncTimTang/AKS writes it

    `questions`, in the order of the data set, matter to bolt and aks. Surprise does not look at
    questions, so all of a video share its frames; without them each video counts as one question
    with the video's id and no text. Raises ValueError for a question on a video that isn't there.
    """
    if format == "indices":
        return {video: list(chosen.frames) for video, chosen in selections.items()}
    if format == "seconds":
        return {video: list(chosen.seconds) for video, chosen in selections.items()}
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose from {', '.join(FORMATS)}")
    if questions is None:
        questions = [Question(video=video, id=video, text="") for video in selections]
    for question in questions:
        if question.video not in selections:
            raise ValueError(f"question {question.id!r}: no trace of video {question.video!r}")
    if format == "aks":
        return [list(selections[question.video].frames) for question in questions]
    entries: dict[str, list[dict[str, Any]]] = {}
    for question in questions:
        entries.setdefault(question.video, []).append(
            {
                "question_id": question.id,
                "question": question.text,
                "frames": list(selections[question.video].seconds),
            }
        )
    return entries
