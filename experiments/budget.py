"""A frame budget spent by a score: which frames of a clip a question about a brief event is given.

The selector of each score (how its values become frames) is chosen on validation clips by how often
a frame of the event is among the chosen; the model answers on test clips only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data.toyquestions import answer_text, prompt, questions
from data.toyscene import FPS
from data.toyworld import Clip
from data.types import Example
from experiments.candidates import Recorded
from experiments.examiner import Examiner
from experiments.localise import Chosen, Row, spread, told, whole
from experiments.progress import Progress
from surprise import Context, select_frames
from surprise.baselines import kmeans_frames, peak_frames, random_frames
from surprise.frames import uniform_frames
from surprise.hypotheses import same_form
from surprise.localisation import Estimate, bootstrap, paired

ANSWER_TOKENS = 16
Select = Callable[[np.ndarray, int, int], np.ndarray]
"""(scores of K frames, budget, seed) -> frame numbers, rising."""


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


@dataclass(frozen=True)
class Exam:
    """The one question about each clip's brief event, and the frames that show it."""

    clip: Clip
    example: Example

    @property
    def moment(self) -> range:
        first, last = self.clip.scene.events
        return range(first.step, last.step)

    def seen(self, frames: Sequence[int] | np.ndarray) -> bool:
        """Whether one of the frames shows what the question is about."""
        return any(int(frame) in self.moment for frame in frames)


def exams(clips: Sequence[Clip], *, seed: int) -> list[Exam | None]:
    """The question about the moment, None for a clip that has none."""
    found = []
    for clip in clips:
        about = [e for e in questions(clip, seed=seed) if e.task.startswith("brief_")]
        found.append(Exam(clip, about[0]) if about else None)
    return found


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
    known = [(c, exam) for c, exam in enumerate(exams(clips, seed=seed)) if exam]
    scores = {family: whole(one.candidate.scores(recorded)) for family, one in chosen.items()}
    ways = {
        (family, budget): _best_selector(scores[family], known, budget)
        for family in chosen
        for budget in budgets
    }
    recorded, clips = test
    asked = [(c, exam) for c, exam in enumerate(exams(clips, seed=seed)) if exam]
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
    right = answered(examiner, system, [exam for _, exam in asked], frames)
    return _report(chosen, ways, known, asked, frames, right, budgets)


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


def _best_selector(
    scores: np.ndarray, known: Sequence[tuple[int, Exam]], budget: int
) -> tuple[str, float]:
    """The selector that shows the event in most validation clips, ties to the first; the share."""
    shares = {
        name: float(np.mean([exam.seen(select(scores[c], budget, c)) for c, exam in known]))
        for name, select in SELECTORS.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best, shares[best]


def answered(
    examiner: Examiner,
    system: str,
    asked: Sequence[Exam],
    frames: Mapping[tuple[str, int], Sequence[tuple[int, ...]]],
) -> dict[tuple[str, int], np.ndarray]:
    """1 where the model's greedy answer is the right word, else 0, for each way and exam.

    The same frames of the same clip are asked about once. Prompts of a batch show equally many.
    """
    wanted = sorted(
        {(len(rows[i]), i, rows[i]) for rows in frames.values() for i in range(len(asked))}
    )
    right: dict[tuple[int, tuple[int, ...]], bool] = {}
    with Progress(len(wanted), "answer", about="frame budget") as progress:
        for part in _batches(wanted, examiner.batch):
            shown: dict[int, list[tuple[int, ...]]] = {}
            for _, i, places in part:
                shown.setdefault(i, []).append(places)
            for i, views in shown.items():
                clip = asked[i].clip
                seconds = np.arange(clip.scene.steps) / FPS
                most = max(map(len, views))
                examiner.show(clip.scene.id, clip.frames, seconds, views, shown=most)
            contexts = [
                Context(asked[i].clip.scene.id, 0, system, "", places) for _, i, places in part
            ]
            texts = [prompt(asked[i].example)[0] for _, i, _ in part]
            answers = examiner.answer(examiner.look(contexts), texts, max_tokens=ANSWER_TOKENS)
            for (_, i, places), answer in zip(part, answers, strict=True):
                right[i, places] = same_form(answer) == same_form(answer_text(asked[i].example))
            for i in shown:
                examiner.drop(asked[i].clip.scene.id)
            progress.add(len(part))
    return {
        way: np.array([float(right[i, places]) for i, places in enumerate(rows)])
        for way, rows in frames.items()
    }


def _batches(wanted: Sequence[tuple], size: int):
    """Parts of at most `size` whose first entries, the numbers of frames, are equal."""
    start = 0
    while start < len(wanted):
        stop = start
        while stop < min(start + size, len(wanted)) and wanted[stop][0] == wanted[start][0]:
            stop += 1
        yield wanted[start:stop]
        start = stop


def _report(
    chosen: Mapping[str, Chosen],
    ways: Mapping[tuple[str, int], tuple[str, float]],
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
            selector, share = ways[name, budget]
            row |= {"selector": selector, "validation": share, "tried": len(SELECTORS)}
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
    ways: Mapping[tuple[str, int], tuple[str, float]],
    known: Sequence[tuple[int, Exam]],
    budget: int,
) -> str:
    """The way of a group that showed the event in most validation clips; k-means is of pixels."""
    shares = {
        family: ways[family, budget][1]
        for family, one in chosen.items()
        if one.candidate.group == group
    }
    if group == "pixels":
        kmeans = _WITHOUT_SCORES["k-means"]
        shares["k-means"] = float(
            np.mean([exam.seen(kmeans(exam, budget, c)) for c, exam in known])
        )
    return max(shares, key=lambda family: shares[family])
