"""A frame budget spent by a score: which frames of a clip a question about a brief event is given.

The selector of each score (how its values become frames) is chosen on validation clips by how often
a frame of the event is among the chosen, of equals by how many of its frames are; the model answers
on test clips only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from data.toyworld import Clip
from experiments.candidates import Recorded
from experiments.examiner import Examiner
from experiments.exams import Exam, answered, of_moments, right
from experiments.localise import Chosen, Row, spread, told, whole
from surprise import select_frames
from surprise.baselines import kmeans_frames, peak_frames, random_frames
from surprise.frames import uniform_frames
from surprise.localisation import Estimate, bootstrap, paired

Select = Callable[[np.ndarray, int, int], np.ndarray]
"""(scores of K frames, budget, seed) -> frame numbers, rising."""
Worth = tuple[float, float]
"""Of a way to choose frames, means over clips: whether the event is shown, and its share shown."""


def _drawn(scores: np.ndarray, budget: int, seed: int, *, method: str, tau: float) -> np.ndarray:
    """By `select_frames`; scores are brought to one scale, so that tau means the same to all."""
    scale = scores.std()
    even = (scores - scores.mean()) / (scale if scale > 0 else 1.0)
    return select_frames(
        even, budget=budget, frame_count=len(even), method=method, tau=tau, seed=seed, refill=True
    )


def _as_published(scores: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """SPIKE's own sampler: softmax(score / 0.7), draws that repeat are lost."""
    return select_frames(scores, budget=budget, frame_count=len(scores), seed=seed)


SELECTORS: dict[str, Select] = {
    **{
        f"softmax, tau {tau}": partial(_drawn, method="surprise", tau=tau)
        for tau in (0.3, 0.1, 0.7, 0.03)
    },
    "top": partial(_drawn, method="top", tau=1.0),
    "half even": partial(_drawn, method="linspace_half", tau=1.0),
    "peaks": lambda scores, budget, seed: peak_frames(scores - scores.min(), budget, spread=1),
}
"""How scores become frames: those among which a validation split chooses, for every score alike."""


def spend(
    examiner: Examiner,
    system: str,
    chosen: Mapping[str, Chosen],
    validation: tuple[Recorded, Sequence[Clip]],
    test: tuple[Recorded, Sequence[Clip]],
    *,
    budgets: Sequence[int],
    seed: int,
) -> tuple[dict[str, Estimate], list[Row]]:
    """Figures and rows of the frame budget: accuracy and coverage of every way to choose frames."""
    recorded, clips = validation
    known = [(c, exam) for c, exam in enumerate(of_moments(clips, seed=seed)) if exam]
    scores = {family: whole(one.candidate.scores(recorded)) for family, one in chosen.items()}
    ways = {
        (family, budget): _best_selector(scores[family], known, budget)
        for family in chosen
        for budget in budgets
    }
    recorded, clips = test
    asked = [(c, exam) for c, exam in enumerate(of_moments(clips, seed=seed)) if exam]
    scores = {family: whole(one.candidate.scores(recorded)) for family, one in chosen.items()}
    frames: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    for budget in budgets:
        for family in chosen:
            select = SELECTORS[ways[family, budget][0]]
            frames[family, budget] = [
                _numbers(select(scores[family][c], budget, c)) for c, _ in asked
            ]
        frames["KL as released, SPIKE's sampler", budget] = [
            _numbers(_as_published(scores["KL as released"][c], budget, c)) for c, _ in asked
        ]
        for name, plain in _WITHOUT_SCORES.items():
            frames[name, budget] = [_numbers(plain(exam, budget, c)) for c, exam in asked]
    exams = [exam for _, exam in asked]
    every = [pair for rows in frames.values() for pair in zip(exams, rows, strict=True)]
    correct = right(exams * len(frames), answered(examiner, system, every))
    found = dict(zip(frames, correct.reshape(len(frames), -1), strict=True))
    return _report(chosen, ways, known, asked, frames, found, budgets)


def _truth(exam: Exam, budget: int, seed: int) -> np.ndarray:
    """The frames nearest to the middle of the moment: the ceiling."""
    middle = (exam.moment[0] + exam.moment[-1]) / 2
    apart = np.abs(np.arange(exam.clip.scene.steps) - middle)
    return np.sort(np.argsort(apart, kind="stable")[:budget])


_WITHOUT_SCORES: dict[str, Callable[[Exam, int, int], np.ndarray]] = {
    "uniform": lambda exam, budget, seed: uniform_frames(budget, exam.clip.scene.steps),
    "random frames": lambda exam, budget, seed: random_frames(
        budget, exam.clip.scene.steps, seed=seed
    ),
    "k-means": lambda exam, budget, seed: kmeans_frames(exam.clip.frames, budget, seed=seed),
    "truth": _truth,
}


def _numbers(frames: np.ndarray) -> tuple[int, ...]:
    return tuple(int(frame) for frame in frames)


def _worth(known: Sequence[tuple[int, Exam]], frames: Sequence[np.ndarray]) -> Worth:
    """Of the frames chosen of each clip."""
    shown = np.array([exam.shown(one) for (_, exam), one in zip(known, frames, strict=True)])
    return float((shown > 0).mean()), float(shown.mean())


def _best_selector(
    scores: np.ndarray, known: Sequence[tuple[int, Exam]], budget: int
) -> tuple[str, Worth]:
    """The selector that shows the most on validation clips, ties to the first; and its worth."""
    worth = {
        name: _worth(known, [select(scores[c], budget, c) for c, _ in known])
        for name, select in SELECTORS.items()
    }
    best = max(worth, key=lambda name: worth[name])
    return best, worth[best]


def _report(
    chosen: Mapping[str, Chosen],
    ways: Mapping[tuple[str, int], tuple[str, Worth]],
    known: Sequence[tuple[int, Exam]],
    asked: Sequence[tuple[int, Exam]],
    frames: Mapping[tuple[str, int], Sequence[tuple[int, ...]]],
    right: Mapping[tuple[str, int], np.ndarray],
    budgets: Sequence[int],
) -> tuple[dict[str, Estimate], list[Row]]:
    figures: dict[str, Estimate] = {}
    table: list[Row] = []
    for (name, budget), found in right.items():
        covered = [
            exam.seen(places) for places, (_, exam) in zip(frames[name, budget], asked, strict=True)
        ]
        row: Row = {"part": "budget", "frames": budget, "chosen by": name, "n": len(found)}
        row |= spread(
            {
                "accuracy": bootstrap(found),
                "minus_uniform": paired(found, right["uniform", budget]),
                "covered": bootstrap(covered),
            }
        )
        if name in chosen:
            selector, (seen, _) = ways[name, budget]
            row |= {"selector": selector, "validation": seen, "tried": len(SELECTORS)}
            row["settings"] = told(chosen[name].candidate)
        table.append(row)
    for budget in budgets:
        best = {
            group: _best(group, chosen, ways, known, budget) for group in ("surprise", "pixels")
        }
        named = {
            "surprise": best["surprise"],
            "best_pixel": best["pixels"],
            "own_caption": "own caption",
            "uniform": "uniform",
            "random": "random frames",
            "kmeans": "k-means",
            "truth": "truth",
        }
        for name, way in named.items():
            figures[f"budget{budget}_{name}"] = bootstrap(right[way, budget])
        surprise = right[best["surprise"], budget]
        figures[f"budget{budget}_gain"] = paired(surprise, right["uniform", budget])
        figures[f"budget{budget}_minus_pixel"] = paired(surprise, right[best["pixels"], budget])
    chance = [1 / len(exam.example.options) for _, exam in asked]
    figures["budget_chance"] = bootstrap(chance)
    return figures, table


def _best(
    group: str,
    chosen: Mapping[str, Chosen],
    ways: Mapping[tuple[str, int], tuple[str, Worth]],
    known: Sequence[tuple[int, Exam]],
    budget: int,
) -> str:
    """The way of a group that showed the most on validation clips; k-means is of pixels."""
    worth = {
        family: ways[family, budget][1]
        for family, one in chosen.items()
        if one.candidate.group == group
    }
    if group == "pixels":
        kmeans = _WITHOUT_SCORES["k-means"]
        worth["k-means"] = _worth(known, [kmeans(exam, budget, c) for c, exam in known])
    return max(worth, key=lambda family: worth[family])
