"""One pass of a model over toy clips: all that scores are made of, kept on disk.

Whatever can be said afterwards (KL, JS, evidence, by which posterior, from how many hypotheses, at
which tau; the baselines) is a function of these records, and costs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from data.toyscene import FPS
from data.toyworld import LEVELS, Clip, make
from experiments.examiner import Examiner
from experiments.outputs import take, write
from experiments.progress import Progress
from experiments.viewer import greedy
from surprise import Context, Prompts, Sampling, Settings
from surprise.baselines import TUNABLE
from surprise.hypotheses import clean, same_form
from surprise.schedule import observation, window
from surprise.trace import sample_seeds

ODD_CLAIM = "something odd happens"
ODD_QUESTIONS = (
    "Does anything unexpected happen in the newest frame? Reply with yes or no.",
    "Is the newest frame surprising after the ones before it? Reply with yes or no.",
)
"""Zero-shot prompting at each step; the claim, in the words of `Prompts.probe`, is a third form."""
MOMENT_QUESTION = (
    "In which frame of this video does something unexpected happen? Count from 1. "
    "Reply with the number."
)
"""Zero-shot prompting for the whole clip; the numbers' likelihoods are the scores."""
SHAPED_BY = (
    *("seed", "window", "hypotheses", "hypothesis_tokens", "temperature", "top_p", "top_k"),
    *("caption_tokens", "yes", "no", "prompts"),
)
"""The settings that records depend on; the others come in when they are scored."""


@dataclass(frozen=True)
class ClipSet:
    """Clips of the toy world of one level and split, by number."""

    level: str
    split: str
    count: int
    seed: int
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.level}-{self.split}"

    @property
    def steps(self) -> int:
        return LEVELS[self.level].steps

    def clips(self, start: int = 0, stop: int | None = None) -> Iterator[Clip]:
        for index in range(start, self.count if stop is None else stop):
            yield make(index, seed=self.seed, split=self.split, level=self.level, kinds=self.kinds)


@dataclass(frozen=True)
class Records:
    """C clips of k = K - 1 steps, from step 1 on: nothing is observed at step 0.

    Hypotheses stand in the order in which they were sampled, "" where a sample has no word, so the
    first n of them are what n samples would have been. NLLs are sums, in nats.
    """

    lines: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [line["id"] for line in self.lines]

    @property
    def seconds(self) -> np.ndarray:
        """Of each of the K frames."""
        return np.array(self.lines[0]["seconds"])

    def column(self, name: str) -> np.ndarray:
        """One entry of the lines, stacked: [C, k, ...]."""
        return np.array([line[name] for line in self.lines])

    @cached_property
    def texts(self) -> list[list[list[str]]]:
        """[C][k][N]"""
        return [line["hypotheses"] for line in self.lines]

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """tokens, prior_nll, posterior_nll, probe_yes: [C, k, N]."""
        names = ("tokens", "prior_nll", "posterior_nll", "probe_yes")
        return {name: self.column(name) for name in names}

    @cached_property
    def first(self) -> np.ndarray:
        """The place of the first sample that says the same, -1 where a sample says nothing."""

        def places(row: Sequence[str]) -> list[int]:
            forms = [same_form(text) for text in row]
            return [forms.index(form) if form else -1 for form in forms]

        return np.array([[places(row) for row in rows] for rows in self.texts])

    def valid(self, count: int) -> np.ndarray:
        """Which of the first `count` samples are hypotheses: neither empty nor a repetition."""
        places = np.arange(self.first.shape[-1])
        return (self.first == places) & (places < count)

    @cached_property
    def pixels(self) -> dict[tuple[str, str], np.ndarray]:
        """Pixel baselines by family and setting, [C, k]."""
        families = self.lines[0]["pixels"]
        return {
            (family, setting): np.array([line["pixels"][family][setting] for line in self.lines])
            for family in families
            for setting in families[family]
        }


class Shelf:
    """A folder of records: a file for each group of clips, there only when the group is whole.

    Groups are cut from a set's first clip on, so an interruption changes no batch, and no number.
    """

    def __init__(self, folder: Path, examiner: Examiner, settings: Settings):
        self._folder, self._examiner, self._settings = folder, examiner, settings

    @classmethod
    def open(cls, folder: Path, examiner: Examiner, settings: Settings, *, model: str) -> Shelf:
        """Makes the folder, or takes up what an equal call has left; `model` is a fingerprint.

        Raises UsageError where the records there are of another model or of other settings.
        """
        told = settings.to_dict()
        key = {name: told[name] for name in SHAPED_BY} | {
            "model": model,
            "dtype": examiner.dtype,
            "hf_compat": examiner.hf_compat,
            "batch": examiner.batch,
            "zero_shot": [*ODD_QUESTIONS, ODD_CLAIM, MOMENT_QUESTION],
        }
        take(folder, key)
        return cls(folder, examiner, settings)

    def records(self, clips: ClipSet, settings: Settings) -> Records:
        """A set's records: those that are there, and those that are made now."""
        lines: list[dict[str, Any]] = []
        about = f"{clips.name}, {settings.observation}"
        with Progress(clips.count, "clip", about=about) as progress:
            for start in range(0, clips.count, self._examiner.batch):
                stop = min(start + self._examiner.batch, clips.count)
                stem = f"{settings.observation}-{clips.name}-{clips.seed}"
                file = self._folder / f"{stem}-{start:05d}-{stop:05d}.jsonl"
                if not file.exists():
                    group = record(self._examiner, settings, list(clips.clips(start, stop)))
                    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in group)
                    write(file, text)
                lines += [json.loads(line) for line in file.read_text("utf-8").splitlines()]
                progress.add(stop - start)
        return Records(lines)


def record(examiner: Examiner, settings: Settings, clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """The records of a few clips. As many as the examiner's batch fill all batches.

    Steps know of no history, so those of all clips go side by side.
    """
    for clip in clips:
        steps = range(1, clip.scene.steps)
        views = [window(k, settings.window) for k in steps]
        views += [observation(k, settings.observation) for k in steps]
        views.append(tuple(range(clip.scene.steps)))
        seconds = np.arange(clip.scene.steps) / FPS
        examiner.show(clip.scene.id, clip.frames, seconds, views, shown=settings.window)
    rows = [(clip.scene.id, step) for clip in clips for step in range(1, clip.scene.steps)]
    batches = (rows[i : i + examiner.batch] for i in range(0, len(rows), examiner.batch))
    asked = [row for batch in batches for row in _steps(examiner, settings, batch)]
    moments = _moments(examiner, settings.prompts, clips)
    for clip in clips:
        examiner.drop(clip.scene.id)
    lines, start = [], 0
    for clip, moment in zip(clips, moments, strict=True):
        own = asked[start : (start := start + clip.scene.steps - 1)]
        lines.append(
            {
                **truth(clip),
                **{name: [row[name] for row in own] for name in own[0]},
                "moment": moment,
                "pixels": {
                    family: {name: score(clip.frames)[1:].tolist() for name, score in those.items()}
                    for family, those in TUNABLE.items()
                },
            }
        )
    return lines


def fingerprint(model: nnx.Module) -> str:
    """A hash of all parameters: a model that was trained further is another model."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(nnx.state(model)):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def truth(clip: Clip) -> dict[str, Any]:
    """What a record of a clip says of the clip itself."""
    scene = clip.scene
    return {
        "id": scene.id,
        "kind": scene.events[0].kind if scene.events else "",
        "objects": scene.objects,
        "moments": [event.step for event in scene.events],
        "seconds": (np.arange(scene.steps) / FPS).tolist(),
    }


def _steps(
    examiner: Examiner, settings: Settings, rows: Sequence[tuple[str, int]]
) -> list[dict[str, Any]]:
    """What is asked of one batch of steps (clip, step), before and after the observation."""
    prompts = settings.prompts
    before = examiner.look(
        [
            Context(video, step, prompts.system, "", window(step, settings.window))
            for video, step in rows
        ]
    )
    sampled = examiner.generate(before, prompts.predict, _sampling(settings, rows))
    hypotheses = [[clean(answer.text) for answer in row] for row in sampled]
    after = examiner.observe(before, [observation(step, settings.observation) for _, step in rows])
    told = examiner.generate(after, prompts.caption, greedy(len(rows), settings.caption_tokens))
    captions = [clean(row[0].text) for row in told]
    statements = [[*row, caption] for row, caption in zip(hypotheses, captions, strict=True)]
    prior, tokens = examiner.nll(before, prompts.statement, statements)
    posterior, _ = examiner.nll(after, prompts.statement, statements)
    probes = [
        [prompts.probe_text(text) if text else "" for text in (*row, ODD_CLAIM)]
        for row in hypotheses
    ]
    yes = examiner.p_yes(
        after, [[*row, *ODD_QUESTIONS] for row in probes], settings.yes, settings.no
    )
    count = settings.hypotheses
    there = np.array([[text != "" for text in row] for row in statements])
    prior, posterior = np.where(there, prior, 0.0), np.where(there, posterior, 0.0)
    yes[:, :count] = np.where(there[:, :count], yes[:, :count], 0.0)
    return [
        {
            "hypotheses": hypotheses[i],
            "tokens": tokens[i, :count].tolist(),
            "prior_nll": prior[i, :count].tolist(),
            "posterior_nll": posterior[i, :count].tolist(),
            "probe_yes": yes[i, :count].tolist(),
            "caption": captions[i],
            "caption_tokens": int(tokens[i, count]),
            "caption_prior_nll": float(prior[i, count]),
            "caption_posterior_nll": float(posterior[i, count]),
            "odd": yes[i, count:].tolist(),
        }
        for i in range(len(rows))
    ]


def _moments(examiner: Examiner, prompts: Prompts, clips: Sequence[Clip]) -> list[list[float]]:
    """Log-likelihood of each step's number as the answer to when something unexpected happens."""
    steps = clips[0].scene.steps
    state = examiner.look(
        [Context(clip.scene.id, steps, prompts.system, "", tuple(range(steps))) for clip in clips]
    )
    numbers = [str(step + 1) for step in range(steps)]
    nll, _ = examiner.nll(state, MOMENT_QUESTION, [numbers] * len(clips))
    return (-nll[:, 1:]).tolist()


_HYPOTHESIS = 0  # the kind of seed by which `surprise.trace` samples them


def _sampling(settings: Settings, rows: Sequence[tuple[str, int]]) -> Sampling:
    """As `surprise.trace` samples: a hypothesis depends on its clip, step and number alone."""
    shape = (len(rows), settings.hypotheses)
    seeds = [
        sample_seeds(settings.seed, video, step, settings.hypotheses, kind=_HYPOTHESIS)
        for video, step in rows
    ]
    return Sampling(
        max_tokens=settings.hypothesis_tokens,
        temperature=np.full(shape, settings.temperature, np.float32),
        top_p=np.full(shape, settings.top_p, np.float32),
        top_k=settings.top_k,
        seeds=np.stack(seeds),
    )
