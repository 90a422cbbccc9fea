"""Questions whose one right answer is known exactly, and how a model answers them.

About a brief moment, of a few frames of its clip. And in pairs: the same question of a clip and of
its mirrored or reversed copy, where what is dynamic has another answer, and what is static has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.toyquestions import answer_text, pairs, prompt, questions
from data.toyscene import FPS
from data.toyworld import Clip, make, transformed
from data.types import Example
from experiments.examiner import Examiner
from experiments.gates import FAR
from experiments.localise import Row, spread
from experiments.progress import Progress
from surprise import Context
from surprise.frames import uniform_frames
from surprise.hypotheses import same_form
from surprise.localisation import Estimate, bootstrap

Frames = tuple[int, ...]
_Key = tuple[int, str, Frames]
_ANSWER_TOKENS = 16
_BRIEF_FRAMES = 8
_FIRST = 3 * FAR
_TRANSFORMS = ("flip", "reversal")


@dataclass(frozen=True)
class Exam:
    """A question about a clip, and the frames that show its brief event, if it is about one."""

    clip: Clip
    example: Example

    @property
    def moment(self) -> range:
        first, last = self.clip.scene.events
        return range(first.step, last.step)

    def shown(self, frames: Sequence[int] | np.ndarray) -> float:
        """The share of the frames that show what the question is about that are among `frames`."""
        return float(np.isin(self.moment, frames).mean())

    def seen(self, frames: Sequence[int] | np.ndarray) -> bool:
        """Whether one of the frames shows what the question is about."""
        return self.shown(frames) > 0


def of_moments(clips: Sequence[Clip], *, seed: int) -> list[Exam | None]:
    """The question about the moment, None for a clip that has none."""
    found = []
    for clip in clips:
        about = [e for e in questions(clip, seed=seed) if e.task.startswith("brief_")]
        found.append(Exam(clip, about[0]) if about else None)
    return found


def figures(
    examiner: Examiner,
    system: str,
    *,
    pairs: int,
    moments: int,
    kinds: Sequence[str],
    seed: int,
    split: str = "test",
) -> tuple[dict[str, Estimate], list[Row]]:
    """Figures and rows of pairs of questions, about `pairs` clips, and of `moments` brief ones, at
    which something of these kinds happens.

    p_acc: of pairs about what is dynamic, how often both answers are right (CRPO's P-Acc); i_acc:
    each one. Of those about what is static, static_acc; agreement, how often both are the same.
    brief_acc: about moments, by 8 evenly spaced frames. Clips are numbered from the far end, so
    that they are none of those that scores are measured on.
    """
    values = {}
    if pairs:
        drawn = [make(_FIRST + i, seed=seed, split=split) for i in range(pairs)]
        values |= _of_pairs(examiner, system, drawn, seed)
    if moments:
        drawn = [make(_FIRST + i, seed=seed, split=split, level="brief", kinds=tuple(kinds))
                 for i in range(moments)]  # fmt: skip
        asked = [exam for exam in of_moments(drawn, seed=seed) if exam]
        few = [
            (exam, tuple(uniform_frames(_BRIEF_FRAMES, exam.clip.scene.steps).tolist()))
            for exam in asked
        ]
        values["brief_acc"] = right(asked, answered(examiner, system, few))
    found = {name: bootstrap(rows.astype(np.float64)) for name, rows in values.items()}
    rows = [
        {"part": "questions", "name": name, "n": estimate.n} | spread({"share": estimate})
        for name, estimate in found.items()
    ]
    return found, rows


def _of_pairs(
    examiner: Examiner, system: str, clips: Sequence[Clip], seed: int
) -> dict[str, np.ndarray]:
    both = [pair for i, clip in enumerate(clips) if (pair := _pair(clip, i, seed))]
    sides = [exam for pair in both for exam in pair]
    whole = [(exam, tuple(range(exam.clip.scene.steps))) for exam in sides]
    said = answered(examiner, system, whole)
    correct = right(sides, said).reshape(-1, 2)
    alike = np.array([one == other for one, other in zip(said[::2], said[1::2], strict=True)])
    dynamic = np.array([pair[0].example.route != "static" for pair in both], bool)
    return {
        "p_acc": correct[dynamic].all(1),
        "i_acc": correct[dynamic].mean(1),
        "static_acc": correct[~dynamic].mean(1),
        "agreement": alike[~dynamic],
    }


def _pair(clip: Clip, number: int, seed: int) -> tuple[Exam, Exam] | None:
    """One pair of questions about a clip and its copy; of every three two are dynamic."""
    rng = np.random.default_rng([seed, 7, number])
    transform = _TRANSFORMS[number % 2]
    able = [
        pair
        for pair in pairs(clip, transform, seed=seed)
        if (pair[0].route == "static") == (number % 3 == 0)
    ]
    if not able:
        return None
    task = str(rng.choice(sorted({one.task for one, _ in able})))
    same = [pair for pair in able if pair[0].task == task]
    ours, other = same[rng.integers(len(same))]
    return Exam(clip, ours), Exam(transformed(clip, transform), other)


def answered(examiner: Examiner, system: str, asked: Sequence[tuple[Exam, Frames]]) -> list[str]:
    """The model's greedy answer, by word, to each exam when it is shown the frames beside it.

    What is asked twice is answered once. Prompts of a batch show equally many frames.
    """
    exams = {(len(frames), exam.example.id, frames): exam for exam, frames in asked}
    wanted = sorted(exams)
    said: dict[tuple[str, Frames], str] = {}
    with Progress(len(wanted), "answer", about="questions") as progress:
        for part in _batches(wanted, examiner.batch):
            shown = [(exams[key], key[2]) for key in part]
            clips = {exam.example.video: exam.clip for exam, _ in shown}
            for video, clip in clips.items():
                views = [frames for exam, frames in shown if exam.example.video == video]
                seconds = np.arange(clip.scene.steps) / FPS
                examiner.show(video, clip.frames, seconds, views, shown=len(views[0]))
            contexts = [
                Context(exam.example.video, 0, system, "", frames) for exam, frames in shown
            ]
            texts = [prompt(exam.example)[0] for exam, _ in shown]
            answers = examiner.answer(examiner.look(contexts), texts, max_tokens=_ANSWER_TOKENS)
            said |= {key[1:]: same_form(one) for key, one in zip(part, answers, strict=True)}
            for video in clips:
                examiner.drop(video)
            progress.add(len(part))
    return [said[exam.example.id, frames] for exam, frames in asked]


def right(asked: Sequence[Exam], answers: Sequence[str]) -> Float[np.ndarray, " exams"]:
    """1 where an answer is the right word, else 0."""
    truth = [same_form(answer_text(exam.example)) for exam in asked]
    return np.array([own == wanted for own, wanted in zip(answers, truth, strict=True)], np.float64)


def _batches(wanted: Sequence[_Key], size: int) -> Iterator[Sequence[_Key]]:
    """Parts of at most `size` whose first entries, the numbers of frames, are equal."""
    start = 0
    while start < len(wanted):
        stop = start
        while stop < min(start + size, len(wanted)) and wanted[stop][0] == wanted[start][0]:
            stop += 1
        yield wanted[start:stop]
        start = stop
