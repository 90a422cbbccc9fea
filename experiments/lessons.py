"""Batches of supervised training on the toy world, made on the host.

Every batch is a pure function of the seed and the number of the step. The first ones warm the tower
up with a linear head on each cell, which goes on beside all that follows, lest the tower forget.
Then come lessons: at one step of a clip, about whole clips, and about a few frames of clips whose
event passes; all that is asked of one clip shares its prefix. Beside each of them go drills, which
are text alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from data import toytasks
from data.toypictures import as_filmed
from data.toyscene import CELL, COLOURS, EVENTS, FPS, MOTIONS, SHAPES, SIZE, cell_labels
from data.toytasks import KINDS, Ask, Lesson
from data.toyworld import BRIEF, make
from data.toyworld import Clip as ToyClip
from experiments.prompts import EMPTY, Clip, Composer, Row, text_rows
from surprise.hypotheses import Prompts
from surprise.trace import Context
from vlm.frames import Frames, lay_out
from vlm.model import Tokens
from vlm.patches import patchify
from vlm.processor import Processor

LABELS = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "motion": len(MOTIONS) + 1,
    "change": len(EVENTS) + 1,
    "x": CELL + 1,
    "y": CELL + 1,
    "column": SIZE // CELL + 1,
    "row": SIZE // CELL + 1,
}
"""Classes of each dense label of a cell (`data.toyscene.cell_labels`)."""
_CELLS = (SIZE // CELL) ** 2
_LEVELS = ("one", "two", "full", "full")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cells:
    """Temporal patches, and what lies in each of their cells."""

    frames: Frames
    labels: Int[np.ndarray | Array, "rows labels"]
    """By row of the tower's output; -1 at padding, and where frames are no neighbours."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Asked:
    """N questions, with their answers, about each of B clips; rows of padding weigh nothing."""

    tokens: Tokens
    places: Int[np.ndarray | Array, "B N A"]
    """Of the states that predict the answer's tokens."""
    targets: Int[np.ndarray | Array, "B N A"]
    weights: Float[np.ndarray | Array, "B N A"]
    """They sum to 1 over all answers of one kind in the batch."""
    kinds: Int[np.ndarray | Array, "B N"]
    """Place in KINDS."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lessons:
    """B lessons: what is shown, in one or two pieces, and what is asked after each of them.

    And drills, which learn at the same time: learned before, they leave a decoder that is slow to
    learn what is seen, and learned by turns they fade.
    """

    cells: Cells
    window: Tokens
    before: tuple[Asked, ...]
    """Short rows and long ones; so are the other two."""
    drills: tuple[Asked, ...]
    observation: Tokens | None = None
    after: tuple[Asked, ...] = ()


Groups = Sequence[tuple[int, int]]
"""Rows, and tokens of each."""


@dataclass(frozen=True)
class _Line:
    """A text with answers in it: places whose state predicts a target, and its weight."""

    kind: str
    ids: list[int]
    places: Sequence[int]
    targets: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Teacher:
    """Makes the batch of each step. `config`: see `experiments/configs/sft.py`."""

    processor: Processor
    config: dict[str, Any]

    def __call__(self, step: int) -> Cells | Lessons:
        """Batch `step`, a function of the seed and of nothing that came before."""
        config = self.config
        if step < config["warmup_steps"]:
            return self._cells(step)
        rng = np.random.default_rng([config["seed"], 1, step])
        first = step * 1000
        # Few shapes at first, for a while: what one object does is learned from one object.
        easy = step < config["warmup_steps"] + config["easy_steps"]
        levels = _LEVELS[:2] if easy else _LEVELS
        kind = str(rng.choice(list(config["mix"]), p=list(config["mix"].values())))
        about = self._steps if kind == "step" else partial(self._clips, kind)
        clips, lessons = about(rng, first, levels)
        learned = step >= config["warmup_steps"] + config["drill_steps"]
        drills = self._drills(rng, first, levels, config["drills_after" if learned else "drills"])
        return self._batch(clips, lessons, drills, config["lengths"][kind])

    def _clips(
        self, kind: str, rng: np.random.Generator, first: int, levels: Sequence[str]
    ) -> tuple[list[ToyClip], list[Lesson]]:
        """Lessons about whole clips or about a few frames of them."""
        config, clips, lessons = self.config, [], []
        rows = sum(count for count, _ in config["lengths"][kind]["before"])
        for number in range(config["clips" if kind == "clip" else "brief_clips"]):
            index = first + number
            if kind == "clip":  # one row is the caption's
                clip = make(index, seed=config["seed"], level=str(rng.choice(levels)))
                lessons.append(toytasks.clip_lesson(clip, rng, number=rows - 1))
            else:
                kinds = ("recolor",) if number % 2 else BRIEF
                clip = make(index, seed=config["seed"], level="brief", kinds=kinds)
                frames = config["brief_frames"]
                lessons.append(toytasks.brief_lesson(clip, rng, frames=frames, number=rows))
            clips.append(clip)
        if config["blind"]:
            clips = clips[1:] + clips[:1]
        return clips, lessons

    def _steps(
        self, rng: np.random.Generator, first: int, levels: Sequence[str]
    ) -> tuple[list[ToyClip], list[Lesson]]:
        clips, lessons, balance = [], [], Counter()
        for number in range(self.config["windows"]):
            index = first + number // 2
            if number % 2 == 0:  # two lessons at steps of one clip
                level = str(rng.choice(levels))
                clip = make(index, seed=self.config["seed"], level=level)
            clips.append(clip)
            lessons.append(toytasks.step_lesson(clip.scene, rng, balance))
        return clips, lessons

    def _drills(
        self, rng: np.random.Generator, first: int, levels: Sequence[str], count: int
    ) -> tuple[Asked, ...]:
        """Rows of text about `count` clips, each with several letters to be found in it."""
        groups = self.config["lengths"]["drill"]
        lines = []
        for index in range(first, first + count):
            clip = make(index, seed=self.config["seed"], level=str(rng.choice(levels)))
            own = [
                self._drill(toytasks.drill(clip, rng))
                for _ in range(sum(rows for rows, _ in groups))
            ]
            lines.append(own)
        return self._rows(lines, rng.integers(0, 64, count).tolist(), groups)

    def _drill(self, drill: toytasks.Drill) -> _Line:
        plain = self.processor.plain
        ids, places, targets = [], [], []
        for n, (text, letter) in enumerate(drill.listed + drill.asked):
            ids += plain(text)
            (token,) = plain(letter)
            places.append(len(ids) - 1)
            targets.append(token)
            if n >= len(drill.listed):
                ids.append(token)
        return _Line("lookup", ids, places, targets, [1.0] * len(targets))

    def _cells(self, step: int) -> Cells:
        """Pairs (t - 1, t), half of them at events where there are any."""
        config = self.config
        rng = np.random.default_rng([config["seed"], 0, step])
        shown, labels = [], []
        each = 8
        for index in range(step * 1000, step * 1000 + config["pairs"] // each):
            clip = make(index, seed=config["seed"], level=str(rng.choice(_LEVELS)))
            steps = rng.integers(1, clip.scene.steps, each)
            events = [event.step for event in clip.scene.events]
            if events:
                steps[: each // 2] = events[0]
            labels.append(_labels(clip, [(t - 1, t) for t in steps]))
            for t in steps:
                shown += [clip.frames[t - 1], clip.frames[t]]
        pixels = np.stack(shown)
        half = len(pixels) // 4 * 2  # whole pairs
        pixels[:half] = as_filmed(pixels[:half])
        return self._seen(pixels, np.concatenate(labels))[0]

    def _seen(self, frames: np.ndarray, labels: np.ndarray) -> tuple[Cells, np.ndarray]:
        """Frames [2 F, height, width, 3] as F temporal patches, and the output row of each cell.

        `labels` are those of cells in order, LABELS along the last axis.
        """
        vision, settings = self.processor.config.vision, self.processor.settings
        patches, thw = patchify(frames, vision, settings.mean, settings.std)
        shown, index = lay_out(patches, np.array([thw]), vision)
        rows = np.full((shown.valid.size // vision.merge**2, len(LABELS)), -1, np.int32)
        rows[index] = labels.reshape(-1, len(LABELS))
        return Cells(shown, rows), index

    def _batch(
        self,
        clips: Sequence[ToyClip],
        lessons: Sequence[Lesson],
        drills: tuple[Asked, ...],
        lengths: dict[str, Any],
    ) -> Lessons:
        """Lessons about clips, padded to `lengths`."""
        composer = Composer(self.processor)
        contexts = [Context("", 0, Prompts().system, "", lesson.window) for lesson in lessons]
        # Every clip takes as many temporal patches as the longest: repeats of its last.
        views = [
            [*composer.patches(lesson.window), *_pairs(composer, lesson.observation)]
            for lesson in lessons
        ]
        most = lengths["patches"]
        shown = [
            clip.frames[np.array([*view, *[view[-1]] * (most - len(view))]).reshape(-1)]
            for clip, view in zip(clips, views, strict=True)
        ]
        shown[::2] = map(as_filmed, shown[::2])  # so that a file looks no stranger than an array
        labels = np.full((len(clips), most, _CELLS, len(LABELS)), -1)
        for own, clip, view in zip(labels, clips, views, strict=True):
            own[: len(view)] = _labels(clip, view)
        cells, index = self._seen(np.concatenate(shown), labels)
        rows = index.reshape(len(lessons), most, -1, 1)
        side = SIZE // self.processor.config.vision.patch
        found = [
            Clip(
                (side, side),
                np.arange(len(clip.frames)) / FPS,
                dict(zip(view, own, strict=False)),
            )
            for clip, view, own in zip(clips, views, rows, strict=True)
        ]
        first = [composer.window(*pair) for pair in zip(contexts, found, strict=True)]
        window = _placed(*composer.chunk([EMPTY] * len(first), first, lengths["window"]))

        asks = [own.before for own in lessons]
        before = self._asked(composer, contexts, first, asks, lengths["before"])
        if not lessons[0].observation:
            return Lessons(cells, window, before, drills)
        second = [
            composer.observation(row, context, clip, lesson.observation)
            for row, context, clip, lesson in zip(first, contexts, found, lessons, strict=True)
        ]
        observation = _placed(*composer.chunk(first, second, lengths["observation"]))
        asks = [own.after for own in lessons]
        after = self._asked(composer, contexts, second, asks, lengths["after"])
        return Lessons(cells, window, before, drills, observation, after)

    def _asked(
        self,
        composer: Composer,
        contexts: Sequence[Context],
        prefixes: Sequence[Row],
        asks: Sequence[Sequence[Ask]],
        groups: Groups,
    ) -> tuple[Asked, ...]:
        """The questions behind each prefix."""
        prompts, lines = Prompts(), []
        for context, own in zip(contexts, asks, strict=True):
            lines.append([])
            for ask in own:
                question = composer.question(context, _worded(prompts, ask))
                answer, weights = self._answer(ask)
                places = range(len(question) - 1, len(question) - 1 + len(answer))
                lines[-1].append(_Line(ask.kind, question + answer, places, answer, weights))
        return self._rows(lines, [composer.text_start(row) for row in prefixes], groups)

    def _rows(
        self, lines: Sequence[Sequence[_Line]], starts: Sequence[int], groups: Groups
    ) -> tuple[Asked, ...]:
        """Lines of text about each clip, padded in groups; the longest go where there is most room.

        So there is less padding. Should a clip have more long lines than there are long rows, some
        of them are left out.
        """
        longest = self.config["answer_tokens"]
        rest = [sorted(own, key=lambda line: len(line.ids)) for own in lines]
        asked: list[Asked] = []
        for count, length in sorted(groups, key=lambda group: -group[1]):
            shape = (len(lines), count, longest)
            places, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            weights, kinds = np.zeros(shape, np.float32), np.zeros(shape[:2], np.int32)
            ids = [[[self.processor.pad_token]] * count for _ in lines]
            for b, own in enumerate(rest):
                if asked:
                    own[:] = [line for line in own if len(line.ids) <= length]
                for n, line in enumerate(own[-count:]):
                    size = len(line.places)
                    places[b, n, :size], targets[b, n, :size] = line.places, line.targets
                    weights[b, n, :size] = line.weights
                    ids[b][n], kinds[b, n] = line.ids, KINDS.index(line.kind)
                del own[-count:]
            asked.append(Asked(text_rows(ids, starts, length), places, targets, weights, kinds))
        totals = np.zeros(len(KINDS))
        for part in asked:
            np.add.at(totals, part.kinds, part.weights.sum(-1))
        for part in asked:
            part.weights[:] /= np.maximum(totals, 1e-6)[part.kinds][..., None]
        return tuple(asked)

    def _answer(self, ask: Ask) -> tuple[list[int], list[float]]:
        """Tokens of an answer and of its end, with their weights."""
        ids, weights = [], []
        for text, weight in ask.answer:
            part = self.processor.plain(text)
            ids += part
            weights += [weight] * len(part)
        return [*ids, self.processor.stop_tokens[0]], [*weights, 1.0]


def _worded(prompts: Prompts, ask: Ask) -> str:
    """What is asked, as scoring asks it."""
    own = {
        "predict": prompts.predict,
        "prior": prompts.statement,
        "posterior": prompts.statement,
        "caption": prompts.caption,
        "claim": prompts.probe_text(ask.subject),
    }
    return own.get(ask.kind, ask.subject)


def _pairs(composer: Composer, places: tuple[int, ...]) -> list[tuple[int, ...]]:
    return composer.patches(places) if places else []


def _labels(
    clip: ToyClip, view: Sequence[tuple[int, int]]
) -> Int[np.ndarray, "patches cells labels"]:
    """Dense labels of a view's patches; -1 where frames are no neighbours."""
    pairs, found = np.array(view), cell_labels(clip.scene)
    labels = np.stack([found[name][pairs[:, 1]] for name in LABELS], -1)
    labels[pairs[:, 0] + 1 != pairs[:, 1]] = -1
    return labels.reshape(len(view), _CELLS, -1)


def _placed(tokens: Tokens, rows: np.ndarray) -> Tokens:
    """Visual tokens that name rows of the tower's output, where they counted their own clip's."""
    own = np.take_along_axis(rows[:, None, :, 0], np.maximum(tokens.visual, 0), axis=2)
    return replace(tokens, visual=np.where(tokens.visual >= 0, own, -1).astype(np.int32))
