"""Several views of one video for one question: frames that matter to it, drawn anew for each view.

STRIVE (arXiv 2604.01824) trains on M importance-aware variants of a video and normalises rewards
over all of them. Found in its abstract: sampling prefers the frames that are relevant to the
question and keeps temporal coverage. The samplers here are reconstructions with that property, and
those of two selectors with released code, BOLT and AKS. Views never flip or reverse: the answer
stays the same.

A pool of P frames has a score each. A view is F places in the pool, sorted, distinct (but for
`its`). p = softmax(standardised score / temperature).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from data import cache
from data.types import Example

METHODS = ("stratified", "mixture", "anchors", "its", "aks")

Scorer = Callable[[UInt8[np.ndarray, "P height width 3"], str], Sequence[float]]
"""Relevance of each frame to a question, higher for more: (frames, question) -> P floats."""


@dataclass(frozen=True)
class Scores:
    """Relevance scores of a pool of frames."""

    indices: tuple[int, ...]
    """Numbers, in the file, of the pool's frames, rising."""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sampling:
    """How the views of a video are drawn. Raises ValueError for settings that make no sense.

      stratified  F equal segments of the pool, a frame from each, by p within the segment
      mixture     F draws without replacement from (1 - rho) p + rho / P
      anchors     ceil(F / 2) evenly spaced frames, the rest drawn by p without replacement
      its         inverse-transform sampling (BOLT): the F quantiles (i + u) / F of the CDF of
                  (min-max score) ^ power, with one u in [0, 1) a view; frames may repeat
      aks         halve the pool where scores lack contrast (AKS), draw each leaf's share of F in it
                  by p without replacement; as the temperature falls to 0, its best, as published

    `its` has no use for the temperature.
    """

    budget: int
    """F, frames of a view."""
    views: int = 2
    """M."""
    method: str = "stratified"
    temperature: float | int | tuple[float | int, ...] = 0.5
    """One for all views, or one for each."""
    standardise: str = "zscore"
    """zscore or minmax: what is done to scores before p is taken."""
    first_uniform: bool = True
    """View 0 is `uniform_places`, whatever the scores."""
    rho: float | int = 0.1
    """Share of the uniform distribution in `mixture`."""
    power: float | int = 3
    """Of `its`; 3 is BOLT's for Video-MME."""
    contrast: float | int = 0.8
    """t1 of `aks`: a segment stays whole if mean(best F) - mean of its min-max scores is above."""
    spread: float | int = -100
    """t2 of `aks`: and if their standard deviation is above."""
    depth: int = 5
    """Halvings of `aks` at most."""

    def __post_init__(self) -> None:
        if self.budget < 1 or self.views < 1:
            raise ValueError(f"budget and views must be positive: {self.budget}, {self.views}")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; choose from {', '.join(METHODS)}")
        if self.standardise not in ("zscore", "minmax"):
            raise ValueError(f"standardise is {self.standardise!r}; choose from zscore, minmax")
        temperatures = self.temperatures
        if len(temperatures) != self.views:
            raise ValueError(
                f"{len(temperatures)} temperatures for {self.views} views; give one each"
            )
        for temperature in temperatures:
            if not (np.isfinite(temperature) and temperature > 0):
                raise ValueError(
                    f"temperature is {temperature}; it must be positive (1e-6 takes the best)"
                )
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho is {self.rho}; it must lie in [0, 1]")
        if not (np.isfinite(self.power) and self.power > 0):
            raise ValueError(f"power is {self.power}; it must be positive")
        if self.depth < 0:
            raise ValueError(f"depth is {self.depth}; it can't be negative")

    @property
    def temperatures(self) -> tuple[float | int, ...]:
        """One for each view."""
        if isinstance(self.temperature, tuple):
            return self.temperature
        return (self.temperature,) * self.views


def places(
    scores: Num[Any, " P"] | Sequence[float | int],
    sampling: Sampling,
    *,
    seed: int = 0,
    id: str = "",
) -> Int[np.ndarray, "M F"]:
    """Places in the pool of each of M views, int64, sorted along F.

    View m is a function of scores, settings, seed, id and m: of no other view, and of no order in
    which examples come. Raises ValueError for scores that can't be used and for F > P.
    """
    scores = _checked(scores, sampling.budget)
    rows = []
    for view, temperature in enumerate(sampling.temperatures):
        if view == 0 and sampling.first_uniform:
            rows.append(uniform_places(len(scores), sampling.budget))
            continue
        entropy = [seed, *id.encode("utf-8", "surrogatepass")]
        rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(view,)))
        rows.append(np.sort(_drawn(rng, scores, sampling, temperature)))
    return np.stack(rows)


def views(example: Example, scores: Scores, sampling: Sampling, *, seed: int = 0) -> list[Example]:
    """M copies of an example, `variant` 0 to M - 1, each with its own frames of the pool.

    Without frames, a copy has its `indices`, for a decoder to fill in the rest. An example that
    holds the pool's frames gives each copy its share of frames and seconds. Raises ValueError as
    `places` does, if the example's frames are not those that were scored, and after a transform.
    """
    pool = np.asarray(scores.indices, np.int64)
    if example.transform is not None:
        raise ValueError(f"example {example.id!r} has a {example.transform}; draw its views before")
    for name, count in (
        ("scores", len(scores.values)),
        ("frames", len(pool) if example.frames is None else len(example.frames)),
        ("seconds", len(pool) if example.seconds is None else len(example.seconds)),
    ):
        if count != len(pool):
            raise ValueError(f"example {example.id!r}: {count} {name} for a pool of {len(pool)}")
    if example.indices is not None and not np.array_equal(example.indices, pool):
        raise ValueError(
            f"example {example.id!r} holds other frames than were scored; decode those that the "
            "scores name, or score anew"
        )
    try:
        chosen = places(scores.values, sampling, seed=seed, id=example.id)
    except ValueError as error:
        raise ValueError(f"example {example.id!r}: {error}") from None
    return [
        example.replace(
            variant=variant,
            indices=pool[row],
            seconds=None if example.seconds is None else example.seconds[row],
            frames=None if example.frames is None else example.frames[row],
        )
        for variant, row in enumerate(chosen)
    ]


def cached_scores(
    path: str | os.PathLike[str],
    examples: Iterable[Example],
    scorer: Scorer | None = None,
    *,
    name: str = "",
    load: Callable[[Example], Example] = lambda example: example,
    with_options: bool = False,
) -> dict[str, Scores]:
    """The scores of every example, by id: from the file where it has them, else by the scorer.

    The file is JSONL, {"id", "text": a hash of the text scored, "scorer", "indices", "scores"} a
    line, written as each example is scored, so that an interruption costs one of them. Files made
    elsewhere may leave out "text" and "scorer". Where present they are checked: lines on another
    text count for nothing, nor do those of a scorer other than `name` (with neither a name nor a
    scorer given, anyone's will do). Of several lines the last counts.

    load: gives an example its pool of frames, called for those that need scoring only. The scorer
    sees the question without options, for light ones truncate long texts; `with_options` adds them.
    Raises ValueError for scores that are missing with no scorer at hand, or that can't be used.
    """
    records = {}
    for number, line in enumerate(cache.read(path), start=1):
        if not {"id", "indices", "scores"} <= line.keys():
            raise ValueError(f"{path}, line {number}: needs id, indices and scores")
        if (scorer is None and not name) or line.get("scorer", name) == name:
            records[line["id"], line.get("text")] = line
    found: dict[str, Scores] = {}
    for example in examples:
        text = "\n".join((example.question, *(example.options if with_options else ())))
        key = cache.digest(text)
        record = records.get((example.id, key)) or records.get((example.id, None))
        if record is None:
            if scorer is None:
                raise ValueError(
                    f"{path} has no scores for example {example.id!r} and its question; "
                    "add them, or give a scorer"
                )
            record = {"id": example.id, "text": key, "scorer": name}
            record |= _scored(load(example), text, scorer)
            cache.append(path, [record])
        found[example.id] = _scores(record, f"{path}, example {example.id!r}")
    return found


def uniform_places(pool: int, budget: int) -> Int[np.ndarray, " F"]:
    """The middles of F equal parts of P places."""
    return (2 * np.arange(budget, dtype=np.int64) + 1) * pool // (2 * budget)


def segment_edges(pool: int, budget: int) -> Int[np.ndarray, " edges"]:
    """F + 1 edges of F equal segments: segment i holds the places edges[i] to edges[i + 1] - 1.

    A place belongs to the part in which its middle lies: i P / F <= place + 1/2 < (i + 1) P / F. So
    each segment holds its member of `uniform_places`, and none is empty while F <= P.
    """
    return -((budget - 2 * np.arange(budget + 1, dtype=np.int64) * pool) // (2 * budget))


def importance(
    scores: Num[Any, " P"] | Sequence[float | int],
    *,
    temperature: float | int = 0.5,
    standardise: str = "zscore",
) -> Float[np.ndarray, " P"]:
    """p = softmax(standardised score / temperature); equal scores give the uniform distribution."""
    standardised = _standardised(_checked(scores), standardise)
    with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is the 0 that is wanted
        weights = np.exp((standardised - standardised.max()) / temperature)
    return weights / weights.sum()


def inverse_transform(
    scores: Num[Any, " P"] | Sequence[float | int],
    budget: int,
    *,
    power: float | int = 3,
    offset: float | int | None = None,
) -> Int[np.ndarray, " F"]:
    """BOLT's selection: where the CDF of (min-max score) ^ power reaches F quantiles; may repeat.

    The quantiles are BOLT's linspace(1/F, 1 - 1/F, F) (sming256/BOLT, select_frames.py); with an
    offset u in [0, 1) they are (i + u) / F, by which place t is expected F p_t times.
    """
    weights = _standardised(_checked(scores), "minmax") ** power
    weights = weights if weights.any() else np.ones_like(weights)
    cdf = np.cumsum(weights / weights.sum())
    if offset is None:
        quantiles = np.linspace(1 / budget, 1 - 1 / budget, budget) if budget > 1 else [0.5]
    else:
        quantiles = (np.arange(budget) + offset) / budget
    # "right" with an offset: a quantile of 0 must not fall on a place of weight 0.
    chosen = np.searchsorted(cdf, quantiles, side="left" if offset is None else "right")
    # Rounding may leave the CDF's end below 1: what lies beyond is the last place with weight.
    return np.minimum(chosen, np.flatnonzero(weights)[-1]).astype(np.int64)


def contrast_leaves(
    scores: Num[Any, " P"] | Sequence[float | int],
    budget: int,
    *,
    contrast: float | int = 0.8,
    spread: float | int = -100,
    depth: int = 5,
) -> list[tuple[int, int, int]]:
    """AKS' tree: (start, end, share of F) of each leaf, from left to right.

    A segment of the min-max scores stays whole if mean(its best F) - mean > contrast and its
    standard deviation > spread, or at the last depth; else it is halved. A leaf at depth d has a
    share of floor(F / 2^d) (ncTimTang/AKS). It is not halved either where that would leave nothing:
    the published rule then selects no frame at all.
    """
    values = _standardised(_checked(scores, budget), "minmax")

    def leaves(start: int, end: int, level: int) -> list[tuple[int, int, int]]:
        part = values[start:end]
        gap = np.sort(part)[::-1][:budget].mean() - part.mean()
        whole = (gap > contrast and part.std() > spread) or level == depth
        if whole or budget >> (level + 1) == 0:
            return [(start, end, budget >> level)]
        middle = start + len(part) // 2
        return leaves(start, middle, level + 1) + leaves(middle, end, level + 1)

    return leaves(0, len(values), 0)


def _drawn(
    rng: np.random.Generator, scores: np.ndarray, sampling: Sampling, temperature: float | int
) -> np.ndarray:
    """F places, in any order, for one view."""
    pool, budget = len(scores), sampling.budget
    if sampling.method == "its":
        return inverse_transform(scores, budget, power=sampling.power, offset=rng.random())
    # Scores plus temperature x Gumbel(0, 1): the best of any set of places is a draw from it by p,
    # the best n are n draws without replacement, and no temperature is too small.
    standardised = _standardised(scores, sampling.standardise)
    noise = rng.gumbel(size=pool)
    keys = standardised + temperature * noise
    if sampling.method == "stratified":
        edges = segment_edges(pool, budget)
        segments = itertools.pairwise(edges)
        return np.array([start + keys[start:end].argmax() for start, end in segments])
    if sampling.method == "mixture":
        if sampling.rho > 0:
            p = importance(scores, temperature=temperature, standardise=sampling.standardise)
            keys = np.log((1 - sampling.rho) * p + sampling.rho / pool) + noise
        return _top(keys, budget)
    if sampling.method == "anchors":
        taken = uniform_places(pool, budget - budget // 2)
    else:
        tree = contrast_leaves(
            scores,
            budget,
            contrast=sampling.contrast,
            spread=sampling.spread,
            depth=sampling.depth,
        )
        taken = np.concatenate([start + _top(keys[start:end], share) for start, end, share in tree])
    left = np.setdiff1d(np.arange(pool), taken)
    return np.concatenate([taken, left[_top(keys[left], budget - len(taken))]])


def _top(keys: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest keys."""
    return np.argsort(-keys, kind="stable")[:count]


def _standardised(scores: np.ndarray, how: str) -> np.ndarray:
    """z-scores, or scores mapped to [0, 1]; zeros if all are equal."""
    low, high = scores.min(), scores.max()
    if low == high:
        return np.zeros_like(scores)
    # Both ways are blind to scale and shift; sums and squares of huge scores would overflow.
    scores = scores / max(abs(low), abs(high))
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    return scores if how == "minmax" else (scores - scores.mean()) / scores.std()


def _checked(scores: Any, budget: int = 1) -> np.ndarray:
    """The scores as float64 [P]; ValueError for what can't be used."""
    try:
        scores = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        raise ValueError("scores must be one list of numbers") from None
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores must be one list of numbers; their shape is {scores.shape}")
    if not np.isfinite(scores).all():
        place = int(np.argmin(np.isfinite(scores)))
        raise ValueError(f"score {place} is {scores[place]}; score the pool anew, or mend it")
    if budget > len(scores):
        raise ValueError(
            f"budget is {budget} but the pool holds {len(scores)} frames; lower the budget or "
            "score more frames"
        )
    return scores


def _scored(example: Example, text: str, scorer: Scorer) -> dict[str, Any]:
    """What a scorer says of an example's pool, as fields of a cache line."""
    if example.frames is None or example.indices is None:
        raise ValueError(
            f"example {example.id!r} has no frames to score; let `load` decode its pool"
        )
    try:
        values = _checked(scorer(example.frames, text))
    except ValueError as error:
        raise ValueError(f"example {example.id!r}, scorer: {error}") from None
    if len(values) != len(example.frames):
        raise ValueError(
            f"example {example.id!r}: the scorer gave {len(values)} scores for "
            f"{len(example.frames)} frames"
        )
    return {"indices": example.indices.tolist(), "scores": values.tolist()}


def _scores(record: dict[str, Any], where: str) -> Scores:
    """The scores of a cache line."""
    try:
        values = _checked(record["scores"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    indices = record["indices"]
    if not (isinstance(indices, list) and all(type(index) is int for index in indices)):
        raise ValueError(f"{where}: indices must be a list of frame numbers")
    if len(indices) != len(values):
        raise ValueError(f"{where}: {len(values)} scores for {len(indices)} frames; score it anew")
    return Scores(tuple(indices), tuple(values.tolist()))
