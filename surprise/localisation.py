"""How well scores tell when something happened: metrics of one video, and intervals over many.

Scores [K] belong to the steps at `seconds` [K]; annotated events are (start, end) in seconds, a
moment having both equal. Two rule sets stand side by side: the paper's (arXiv 2509.23433, App. D),
and the released code's, which is laxer; its functions are called so. Ties go to the first step, as
in both. Means over videos come with an interval by `bootstrap`, differences by `paired`, and those
over a few runs by `student`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy.special import stdtrit

Scores = Num[np.ndarray, " K"]
Seconds = Float[np.ndarray, " K"]
Events = Sequence[tuple[float | int, float | int]]

_ROUNDING = 1e-6  # seconds: times are read from files


# The paper's rules


def hit(scores: Scores, seconds: Seconds, events: Events, *, delta: float | int) -> bool:
    """Acc@delta of one video: the best step's time is within `delta` seconds of an event's centre.

    App. D: |t_hat - t*| <= delta, with t_hat the time of argmax S and t* the transition (Oops!) or
    the middle of the annotated window. Of several events the nearest counts.
    """
    best = float(seconds[np.argmax(scores)])
    return min(abs(best - (start + end) / 2) for start, end in events) <= delta + _ROUNDING


def iou(scores: Scores, seconds: Seconds, events: Events, *, share: float | int = 0.8) -> float:
    """Overlap in time of predicted and annotated windows over their union, within [0, 1].

    App. D: predicted are the maximal runs of steps with S > share * max S. Step i stands for the
    segment that ends with it, from seconds[i - 1] on. nan where no event has a length.
    """
    above = scores > share * scores.max()
    starts = np.concatenate([seconds[:1], seconds[:-1]])
    predicted = _merged(list(zip(starts[above], seconds[above], strict=True)))
    annotated = _merged(events)
    if not _length(annotated) > 0:
        return float("nan")
    shared = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in predicted
        for other_start, other_end in annotated
    )
    return float(shared / (_length(predicted) + _length(annotated) - shared))


# The released code's


def released_truth(
    seconds: Seconds, events: Events, *, length: float | int, oops: bool = False
) -> Bool[np.ndarray, " K"]:
    """Which steps the released code takes for true: those inside an event.

    `oops`: those from 0.8 t* to 0.8 of the video's `length`, which is far laxer than the moment t*.
    Where that leaves none the code marks a fifth of the steps at random; here, the nearest one.
    """
    windows = [(0.8 * start, 0.8 * length) for start, _ in events] if oops else events
    truth = np.zeros(len(seconds), bool)
    for start, end in windows:
        truth |= (seconds >= start - _ROUNDING) & (seconds <= end + _ROUNDING)
    if not truth.any():
        centres = [(start + end) / 2 for start, end in events]
        truth[np.abs(seconds[:, None] - np.array(centres)).min(-1).argmin()] = True
    return truth


def released_hit(
    scores: Scores, seconds: Seconds, truth: Bool[np.ndarray, " K"], *, delta: float | int
) -> bool:
    """The code's Acc@delta: the best step lies within `delta` seconds of any true step."""
    return bool((np.abs(seconds[truth] - seconds[np.argmax(scores)]) <= delta + _ROUNDING).any())


def released_iou(scores: Scores, seconds: Seconds, truth: Bool[np.ndarray, " K"]) -> float:
    """The code's `iou_temporal`: overlap of half a second either side of the best and a true step.

    The best over the true steps, so 1 whenever the best step is one of them.
    """
    apart = np.abs(seconds[truth] - seconds[np.argmax(scores)]).min()
    shared = max(0.0, 1.0 - float(apart))
    return shared / (2.0 - shared)


def released_coverage(scores: Scores, truth: Bool[np.ndarray, " K"]) -> float:
    """The code's `iou_coverage`: the share of true steps with a positive score; no union in it."""
    return float((scores[truth] > 0).mean())


# Of steps and of words


def auroc(scores: Num[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Probability that a true step scores above a false one, ties counting half; nan without both.

    The Mann-Whitney form of the area under the ROC curve.
    """
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not (positive and negative):
        return float("nan")
    ranks = _ranks(scores)
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def spearman(one: Num[np.ndarray, " n"], other: Num[np.ndarray, " n"]) -> float:
    """Rank correlation, within [-1, 1]; nan where one of them is constant."""
    first, second = (_ranks(values) - (len(values) + 1) / 2 for values in (one, other))
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else float("nan")


def diversity(vectors: Num[np.ndarray, "N width"]) -> float:
    """Mean over pairs of 1 - cosine of a step's hypotheses, given as vectors; nan for fewer than 2.

    The paper embeds sentences by a model (all-MiniLM-L6-v2); `word_vectors` needs none.
    """
    if len(vectors) < 2:
        return float("nan")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    upper = np.triu_indices(len(vectors), 1)
    return float((1 - unit @ unit.T)[upper].mean())


def word_vectors(texts: Sequence[str]) -> Float[np.ndarray, "N words"]:
    """Counts of each word in each text, over the words that occur, as vectors for `diversity`."""
    counts = [Counter(text.lower().replace(".", " ").replace(",", " ").split()) for text in texts]
    words = sorted(set().union(*counts))
    table = [[float(count[word]) for word in words] for count in counts]
    return np.array(table).reshape(len(texts), len(words))


# Over many videos


class Estimate(NamedTuple):
    """A mean with its interval; n videos."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    values: Num[np.ndarray, " n"] | Sequence[float | int | bool],
    *,
    rounds: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean over videos and its percentile bootstrap interval (Efron 1979); nan are left out.

    One value a video: what is drawn again are videos, never steps.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return bootstrap_of(lambda chosen: values[chosen].mean(-1), len(values), rounds=rounds,
                        level=level, seed=seed)  # fmt: skip


def bootstrap_of(
    statistic: Callable[[Int[np.ndarray, "*rounds n"]], Any],
    n: int,
    *,
    rounds: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Any statistic of n videos, called with their numbers [n], and with drawn ones [rounds, n]."""
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)))
    block = max(1, 4_000_000 // n)
    drawn = np.concatenate(
        [
            np.atleast_1d(statistic(rng.integers(0, n, (min(block, rounds - start), n))))
            for start in range(0, rounds, block)
        ]
    )
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), n)


def paired(
    one: Num[np.ndarray, " n"] | Sequence[float | int | bool],
    other: Num[np.ndarray, " n"] | Sequence[float | int | bool],
    *,
    rounds: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean of one - other over the same videos, with its interval: above 0, `one` is better."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return bootstrap(first - second, rounds=rounds, level=level, seed=seed)


def student(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The mean of a few runs and its interval by Student's t; nan are left out, and n counts runs.

    Resampling so few would give too narrow an interval.
    """
    kept = np.array([value for value in values if value == value], np.float64)
    if len(kept) < 2:
        mean = float(kept[0]) if len(kept) else float("nan")
        return Estimate(mean, float("nan"), float("nan"), len(kept))
    mean, error = float(kept.mean()), float(kept.std(ddof=1)) / len(kept) ** 0.5
    reach = float(stdtrit(len(kept) - 1, (1 + level) / 2)) * error
    return Estimate(mean, mean - reach, mean + reach, len(kept))


def step_auroc(
    scores: Sequence[Num[np.ndarray, "_"]],
    truths: Sequence[Bool[np.ndarray, "_"]],
    *,
    rounds: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`auroc` over the steps of all videos together, with its interval; videos are drawn again.

    One threshold for all of them, unlike a hit, which ranks the steps of one video.
    """
    videos = np.repeat(np.arange(len(scores)), [len(row) for row in scores])
    values, truth = np.concatenate([*scores]), np.concatenate([*truths])
    order = np.argsort(values, kind="stable")
    values, truth, videos = values[order], truth[order], videos[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])  # of runs of equal scores

    def shares(chosen: Int[np.ndarray, "rounds n"]) -> Float[np.ndarray, " rounds"]:
        places = chosen + len(scores) * np.arange(len(chosen))[:, None]
        counts = np.bincount(places.ravel(), minlength=len(scores) * len(chosen))
        weights = counts.reshape(len(chosen), -1)[:, videos].astype(np.float64)
        positive = np.add.reduceat(weights * truth, starts, axis=-1)
        negative = np.add.reduceat(weights * ~truth, starts, axis=-1)
        won = (positive * (np.cumsum(negative, -1) - negative / 2)).sum(-1)
        pairs = positive.sum(-1) * negative.sum(-1)
        return np.divide(won, pairs, out=np.full(len(chosen), np.nan), where=pairs > 0)

    def statistic(chosen):
        if chosen.ndim == 1:
            return shares(chosen[None])[0]
        parts = np.array_split(chosen, max(1, chosen.shape[0] * len(values) // 500_000))
        return np.concatenate([shares(part) for part in parts])

    if truth.all() or not truth.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return bootstrap_of(statistic, len(scores), rounds=rounds, level=level, seed=seed)


def _ranks(values: Num[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1, the mean of their places for equal values."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _merged(windows: Sequence[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """Windows in order, those that touch joined."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted((float(start), float(end)) for start, end in windows):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _length(windows: Sequence[tuple[float, float]]) -> float:
    return sum(end - start for start, end in windows)
