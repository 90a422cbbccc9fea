"""Rollouts: prompts laid out, answers sampled, and what rewards are told of them. The host's side.

`compose` turns prompts about the clips of B groups into one pytree (`rl.Prompts`), the same for the
sampler and the update. `Answers` asks questions about views of examples; `trajectories.py` lets the
policy go through the SPIKE pipeline instead. Both return `Rollouts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt32

from data.toyquestions import prompt
from data.types import Example
from experiments import rl, tasks
from experiments.mesh import Driver
from experiments.prompts import EMPTY, Clip, Composer, bucket
from experiments.rewards import Place
from experiments.views import EXPANSIONS, Views, numbers
from surprise.trace import Context, sample_seeds
from vlm import VLM
from vlm.frames import Frames, lay_out
from vlm.patches import patchify, resize
from vlm.processor import Processor
from vlm.sampling import Sampling


@dataclass(frozen=True)
class Asked:
    """A prompt: what is shown of which clip of the group (`context.video`), and a question."""

    context: Context
    question: str


@dataclass(frozen=True)
class Batch:
    """B examples and the prompts about their views."""

    number: int
    views: tuple[Views, ...]
    trained: rl.Prompts
    watched: rl.Prompts | None
    """Of views that are answered for the sake of rewards only."""


@dataclass(frozen=True)
class Rollouts:
    """What a policy did: rows of tokens to learn from, and texts to reward.

    `owner` says which of the M x G samples of its group a row is part of: an answer is one row, a
    trajectory is many, and an answer that all prompts of the group learn from is several.
    """

    prompts: rl.Prompts
    samples: rl.Samples
    """[B, prompts, R, ...]; log-probabilities are NaN where a row was said to another prompt."""
    owner: Int[np.ndarray, "prompts R"]
    grid: Place
    """B, M, G of the samples that are rewarded."""
    columns: dict[str, list]
    """What rewards are called with (`experiments.rewards`)."""
    views: tuple[tuple[Example, ...], ...]
    """What place (b, m, g) is about: views[b][m]."""
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    """What else there is to log: of each figure the values whose mean it is."""


def compose(
    composer: Composer,
    clips: Sequence[Mapping[str, Example]],
    asked: Sequence[Sequence[Asked]],
    *,
    least: int = 64,
) -> rl.Prompts:
    """The prompts of B groups, M each, about the group's clips, in arrays.

    Every temporal patch that a group's prompts show is there once. Prompts are padded to a bucket
    of at least `least` tokens, the patches of a group to a bucket by repeats of the last one.
    """
    frames, found = _laid_out(composer, clips, asked)
    rows = [
        composer.window(one.context, own[one.context.video]).extended(
            composer.question(one.context, one.question)
        )
        for own, group in zip(found, asked, strict=True)
        for one in group
    ]
    length = bucket(max(len(row.ids) for row in rows), least=least)
    tokens, shown = composer.chunk([EMPTY] * len(rows), rows, length)
    visual = np.take_along_axis(shown[:, None, :, 0], np.maximum(tokens.visual, 0), axis=2)
    visual = np.where(tokens.visual >= 0, visual, -1).astype(np.int32)
    start = np.array([composer.positions(row)[1] for row in rows], np.int32)
    positions = np.moveaxis(tokens.positions[:, :, 0], 0, 1)
    shape = (len(asked), len(asked[0]))
    return rl.Prompts(
        frames=frames,
        ids=tokens.ids.reshape(*shape, length),
        positions=positions.reshape(*shape, 3, length),
        valid=tokens.valid.reshape(*shape, length),
        visual=visual.reshape(*shape, length),
        start=start.reshape(shape),
    )


def _laid_out(
    composer: Composer,
    clips: Sequence[Mapping[str, Example]],
    asked: Sequence[Sequence[Asked]],
) -> tuple[Frames, list[dict[str, Clip]]]:
    """The temporal patches that B groups are shown, and each group's clips with the rows, among
    the features of the group, that stand for theirs."""
    vision, settings = composer.config.vision, composer.processor.settings
    shown = [
        list(
            dict.fromkeys(
                (one.context.video, places)
                for one in group
                for places in composer.patches(one.context.window)
            )
        )
        for group in asked
    ]
    room = bucket(max(map(len, shown)), least=4)
    parts, grids = [], []
    for own, row in zip(clips, shown, strict=True):
        for video, places in [*row, *[row[-1]] * (room - len(row))]:
            pixels = own[video].frames[list(places)]
            part, grid = patchify(pixels, vision, settings.mean, settings.std)
            parts.append(part)
            grids.append(grid)
    side = vision.window_cells * vision.merge  # of a window, in patches
    windows = bucket(max(-(-h // side) * -(-w // side) for _, h, w in grids), least=1)
    frames, index = lay_out(np.concatenate(parts), np.array(grids), vision, windows=windows)
    cells = frames.valid.shape[1] // vision.merge**2  # rows of a patch, those of padding too
    ends = np.cumsum([h * w // vision.merge**2 for _, h, w in grids])
    rows = np.split(index, ends[:-1])
    found: list[dict[str, Clip]] = []
    for b, (own, row) in enumerate(zip(clips, shown, strict=True)):
        group: dict[str, Clip] = {}
        for i, (video, places) in enumerate(row, b * room):
            clip = group.setdefault(video, Clip(grids[i][1:], own[video].seconds, {}))
            clip.features[places] = rows[i][:, None] - b * room * cells
        found.append(group)
    return frames, found


def fitted(example: Example, processor: Processor) -> Example:
    """The example with frames of a size that the model takes."""
    size = processor.frame_size(*example.frames.shape[1:3], frames=len(example.frames))
    return example.replace(frames=np.stack([resize(frame, size) for frame in example.frames]))


def sampled(
    run: Driver,
    processor: Processor,
    prompts: rl.Prompts,
    seeds: UInt32[np.ndarray, "B M G"],
    config: dict[str, Any],
) -> rl.Samples:
    """Samples behind each prompt, one a seed, on the host."""
    out = run(
        rl.sample,
        prompts,
        seeds,
        Sampling(config["temperature"], config["top_p"], config["top_k"]),
        processor.speakable(),
        max_tokens=config["max_completion_length"],
        stop_tokens=processor.stop_tokens,
    )
    return run.fetch(out)


class Answers:
    """Questions about views of examples, G answers to each. For `config` see `configs/rl.py`."""

    def __init__(self, vlm: VLM, config: dict[str, Any]):
        self.config = config
        choosing = config["views"] == "importance"  # of frames, among more than are shown
        self.source = tasks.source(
            config, vlm.processor, config["pool"] if choosing else config["frames"]
        )
        self._processor = vlm.processor
        self._composer = Composer(vlm.processor)

    def prompts(self, number: int, *, split: str = "train") -> Batch:
        """Batch `number`, a function of the seed and of nothing that came before."""
        examples = self.source(number, split=split)
        views = tuple(
            EXPANSIONS[self.config["views"]](fitted(example, self._processor), self.config)
            for example in examples
        )
        watched = [view.watched for view in views]
        return Batch(
            number,
            views,
            self._composed([view.trained for view in views]),
            self._composed(watched) if any(watched) else None,
        )

    def sample(self, run: Driver, batch: Batch) -> Rollouts:
        """G answers to each trained view, `watched_generations` to each of the others."""
        config = self.config
        samples = self._sampled(run, batch, batch.trained, config["num_generations"], first=0)
        groups, trained, count = samples.lengths.shape
        told = [samples]
        if batch.watched is not None:
            number = config["watched_generations"]
            told.append(self._sampled(run, batch, batch.watched, number, first=trained))
        owner = np.arange(trained * count).reshape(trained, count)
        columns = self._columns(batch, told)
        if config["share_responses"]:
            owner = np.broadcast_to(owner.reshape(1, -1), (trained, trained * count))
            samples = _shared(samples)
        views = tuple(view.all for view in batch.views)
        return Rollouts(batch.trained, samples, owner, (groups, trained, count), columns, views)

    def _composed(self, views: Sequence[Sequence[Example]]) -> rl.Prompts:
        system = self.config["system"]
        # Views of the same frames share their features.
        names = [[f"{view.transform}-{view.variant}" for view in row] for row in views]
        clips = [dict(zip(*pair, strict=True)) for pair in zip(names, views, strict=True)]
        asked = [
            [
                Asked(
                    Context(name, 0, system, "", tuple(range(len(view.frames)))),
                    self._worded(view)[0],
                )
                for name, view in zip(own, row, strict=True)
            ]
            for own, row in zip(names, views, strict=True)
        ]
        return compose(self._composer, clips, asked, least=self.config["prompt_tokens"])

    def _sampled(
        self, run: Driver, batch: Batch, prompts: rl.Prompts, count: int, *, first: int
    ) -> rl.Samples:
        """Answers on the host; a seed depends on the run's, the step, the example and the view."""
        config = self.config
        seeds = [
            [
                sample_seeds(config["seed"], view.all[0].id, batch.number, count, kind=first + m)
                for m in range(prompts.ids.shape[1])
            ]
            for view in batch.views
        ]
        return sampled(run, self._processor, prompts, np.array(seeds), config)

    def _columns(self, batch: Batch, told: Sequence[rl.Samples]) -> dict[str, list]:
        """What rewards are told, first of trained views and then of the others."""
        rows, first = [], 0
        for samples in told:
            for b, m, g in np.ndindex(samples.lengths.shape):
                view = batch.views[b].all[first + m]
                ids = samples.tokens[b, m, g, : samples.lengths[b, m, g]].tolist()
                question, answer = self._worded(view)
                rows.append(
                    {name: vars(view)[name] for name in FIELDS}
                    | {
                        "prompts": question,
                        "completions": self._processor.decode(ids),
                        "completion_ids": ids,
                        "answer": answer,
                        "by": self.config["answer_by"],
                        "place": (b, first + m, g),
                        "frames": numbers(view).tolist(),
                    }
                )
            first += samples.lengths.shape[1]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _worded(self, view: Example) -> tuple[str, str]:
        """The question as it is put, and the answer as it is to be said."""
        if not view.options:
            return view.question, view.answer
        return prompt(view, by=self.config["answer_by"])


FIELDS = ("id", "video", "options", "task", "kind", "route", "caption", "pair", "extra")
"""Of an Example, beside its question and its answer: what rewards are told."""


def _shared(samples: rl.Samples) -> rl.Samples:
    """Every answer of a group behind each of its prompts: [B, M, M x G, ...]."""
    groups, views, count = samples.lengths.shape

    def spread(part: np.ndarray) -> np.ndarray:
        rows = part.reshape(groups, 1, views * count, *part.shape[3:])
        return np.broadcast_to(rows, (groups, views, *rows.shape[2:]))

    spread_out = jax.tree.map(spread, samples)
    own = np.eye(views, dtype=bool).repeat(count, axis=1)[None, :, :, None]
    return replace(spread_out, logprobs=np.where(own, spread_out.logprobs, np.float32(np.nan)))
