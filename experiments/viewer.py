"""A `surprise.VideoModel` made of a `vlm.VLM`: prompts on the host, jobs on the devices.

Each pair of frames is encoded once per video, and each prefix prefilled once per step: questions,
hypotheses and the observation extend or share the cache that is already there. Features wait on
the host, where videos come and go, and travel with the tokens that show them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mesh import Driver, single
from experiments.prompts import EMPTY, Clip, Composer, Row, bucket, text_rows
from surprise.trace import Context, Generation, Sampling
from vlm import VLM, sampling
from vlm.frames import lay_out
from vlm.logprobs import continuation_logprobs
from vlm.model import Model, encode, last, logits, run
from vlm.patches import patchify

ENCODE_FRAMES = 8
"""Temporal patches a call of the tower takes on each replica."""


@dataclass(frozen=True)
class State:
    """B prompts and the cache of all their tokens; those beyond `count` fill up the batch."""

    count: int
    contexts: tuple[Context, ...]
    prompts: tuple[Row, ...]
    cache: Any


def greedy(count: int, max_tokens: int) -> Sampling:
    """One answer for each of `count` contexts, the likeliest token at every place."""
    ones = np.ones((count, 1), np.float32)
    return Sampling(max_tokens, 0 * ones, ones, 0, np.zeros(ones.shape, np.uint32))


class Viewer:
    """Answers what the surprise loop asks, for the videos that have been added.

    Args:
      vlm: the model.
      batch: prompts a job takes; fewer are filled up to it, so that one shape serves them all.
      driver: where the model is (`experiments.mesh`); the default is the device it is on.
    """

    def __init__(self, vlm: VLM, *, batch: int = 1, driver: Driver | None = None):
        self._vlm, self._processor = vlm, vlm.processor
        self._prompts = Composer(vlm.processor)
        self._run = single(vlm.model) if driver is None else driver
        self.batch = -(-batch // self._run.replicas) * self._run.replicas
        allowed = np.tile(vlm.processor.speakable(), (self._run.replicas, 1))
        self._allowed = self._run.put(allowed)
        self._clips: dict[str, Clip] = {}
        self.dtype = np.dtype(vlm.model.dtype).name
        self.trained = vlm.trained
        self.hf_compat = vlm.processor.settings.hf_compat
        self.frame_size = vlm.processor.frame_size

    # What a driver does with a video before and after asking about it.

    def add(
        self, video: str, frames: np.ndarray, seconds: np.ndarray, views: Iterable[tuple[int, ...]]
    ) -> None:
        """Encodes every temporal patch that `views` will show of a video's K frames.

        Args:
          video: the id that contexts will name.
          frames: uint8 [K, height, width, 3], sides as `processor.frame_size` gives them.
          seconds: true time of each frame, [K].
          views: windows and observations, each as places among the K frames.
        """
        vision = self._vlm.config.vision
        settings = self._processor.settings
        wanted = list(
            dict.fromkeys(patch for view in views for patch in self._prompts.patches(view))
        )
        grid = (frames.shape[1] // vision.patch, frames.shape[2] // vision.patch)
        side = vision.window_cells * vision.factor
        windows = bucket(-(-frames.shape[1] // side) * -(-frames.shape[2] // side), least=1)
        room = ENCODE_FRAMES * self._run.replicas
        features = {}
        for start in range(0, len(wanted), room):
            part = wanted[start : start + room]
            shown = frames[np.array(part).reshape(-1)]
            patches, thw = patchify(shown, vision, settings.mean, settings.std)
            laid, index = lay_out(patches, np.array([thw]), vision, windows=windows, frames=room)
            rows = self._run.fetch(self._run(_encode, laid))
            features |= zip(part, rows[index.reshape(len(part), -1)], strict=True)
        self._clips[video] = Clip(grid, np.asarray(seconds), features)

    def drop(self, video: str) -> None:
        """Forgets a video's features."""
        self._clips.pop(video, None)

    # `surprise.VideoModel`

    def look(self, contexts: Sequence[Context]) -> State:
        count, contexts = len(contexts), tuple(self._filled(contexts))
        prompts = [
            self._prompts.window(context, self._clips[context.video]) for context in contexts
        ]
        return self._extended(State(count, contexts, (EMPTY,) * len(contexts), None), prompts)

    def observe(self, state: State, observations: Sequence[tuple[int, ...]]) -> State:
        rows = zip(state.contexts, state.prompts, self._filled(observations), strict=True)
        prompts = [
            self._prompts.observation(row, context, self._clips[context.video], places)
            for context, row, places in rows
        ]
        return self._extended(state, prompts)

    def generate(
        self, state: State, question: str | Sequence[str], sampling: Sampling
    ) -> list[list[Generation]]:
        """As `surprise.VideoModel` has it; the question may be another for each context."""
        return self._answers(state, self._asked(state, question), sampling)[: state.count]

    def nll(
        self, state: State, question: str, answers: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        asked = self._asked(state, question)
        ids = [[self._processor.plain(text) for text in row] for row in answers]
        tokens = text_rows(self._filled(ids), [self._prompts.text_start(row) for row in asked])
        question_tokens, _ = self._prompts.chunk(state.prompts, asked)
        sums = self._run.fetch(self._run(_nll, state.cache, question_tokens, tokens))
        counts = np.array([[len(text) for text in row] for row in ids])
        return sums[: state.count].astype(np.float64), counts

    def p_yes(
        self,
        state: State,
        questions: Sequence[Sequence[str]],
        yes: Sequence[str],
        no: Sequence[str],
    ) -> np.ndarray:
        ids = [
            [self._prompts.question(context, text) for text in row]
            for context, row in zip(state.contexts, questions, strict=False)
        ]
        starts = [self._prompts.text_start(row) for row in state.prompts]
        tokens = text_rows(self._filled(ids), starts)
        words = {
            "yes": tuple(self._processor.single_tokens(yes)),
            "no": tuple(self._processor.single_tokens(no)),
        }
        odds = self._run.fetch(self._run(_log_odds, state.cache, tokens, **words))
        return np.exp(-np.logaddexp(0.0, -odds[: state.count].astype(np.float64)))

    def summarize(self, prompts: Sequence[str], *, system: str, max_tokens: int) -> list[str]:
        asked = [self._prompts.request(system, prompt) for prompt in prompts]
        answers = self._answers(None, self._filled(asked), greedy(len(prompts), max_tokens))
        return [row[0].text for row in answers[: len(prompts)]]

    # Host side of a prompt

    def _filled(self, rows: Sequence[Any]) -> list[Any]:
        """The rows and, up to a multiple of the batch, the first of them again."""
        return [*rows, *[rows[0]] * (-len(rows) % self.batch)]

    def _asked(self, state: State, question: str | Sequence[str]) -> list[Row]:
        """The prompts with a question and the header of its answer."""
        alike = isinstance(question, str)
        questions = [question] * len(state.contexts) if alike else self._filled(question)
        return [
            row.extended(self._prompts.question(context, text))
            for context, row, text in zip(state.contexts, state.prompts, questions, strict=True)
        ]

    # Device side

    def _extended(self, state: State, prompts: Sequence[Row]) -> State:
        tokens, features = self._prompts.chunk(state.prompts, prompts)
        slots = None
        if state.cache is None:
            # A prefix is prefilled at its length, but kept in one of few sizes: what is asked of
            # it compiles once a size, and an idle slot costs little beside an idle token.
            slots = bucket(tokens.ids.shape[2], least=128, parts=2)
        cache = self._run(_prefix, state.cache, tokens, features, slots=slots)
        return replace(state, prompts=tuple(prompts), cache=cache)

    def _answers(
        self, state: State | None, asked: Sequence[Row], how: Sampling
    ) -> list[list[Generation]]:
        """What is sampled behind the prompts `asked`; rows of `how` are filled up to them."""
        before = [EMPTY] * len(asked) if state is None else state.prompts
        temperature, top_p, seeds = (
            np.stack(self._filled(rows)) for rows in (how.temperature, how.top_p, how.seeds)
        )
        question, _ = self._prompts.chunk(before, asked)
        out = self._run(
            _generate,
            None if state is None else state.cache,
            question,
            np.array([self._prompts.positions(row)[1] for row in asked], np.int32),
            seeds,
            sampling.Sampling(temperature, top_p, np.full(seeds.shape, how.top_k, np.int32)),
            self._allowed,
            max_tokens=how.max_tokens,
            stop_tokens=self._processor.stop_tokens,
        )
        out = self._run.fetch(out)
        return [
            [
                Generation(self._processor.decode(tokens[:length]), bool(finished))
                for tokens, length, finished in zip(*row, strict=True)
            ]
            for row in zip(out.tokens, out.lengths, out.finished, strict=True)
        ]


# The jobs: pure functions of a model and of arrays with a batch axis.


def _encode(model: Model, frames):
    return encode(model, frames)


def _prefix(model: Model, prefix, tokens, features, *, slots: int | None):
    """The prefix with a chunk behind it that may show features [B, rows, features].

    A first chunk is kept in a cache of so many slots.
    """
    if features is not None:
        first = jnp.arange(len(features), dtype=jnp.int32) * features.shape[1]
        visual = jnp.where(tokens.visual >= 0, tokens.visual + first[:, None, None], -1)
        tokens = replace(tokens, visual=visual)
        features = features.reshape(-1, features.shape[-1])
    cache = _extend(model, prefix, tokens, features)[0]
    return cache if slots is None else cache.padded(slots)


def _extend(model: Model, prefix, tokens, features=None):
    """The prefix with a chunk behind it, and the hidden state of the chunk's last token, [B, D]."""
    hidden, own = run(model, tokens, features, prefix=prefix)
    cache = own if prefix is None else prefix.append(own)
    return cache, last(hidden, tokens.valid)[:, 0]


def _nll(model: Model, prefix, question, answers):
    """Summed negative log-likelihood of each answer to the question, [B, N]."""
    prefix, hidden = _extend(model, prefix, question)
    logprobs = continuation_logprobs(model, prefix, hidden, answers)
    return -jnp.sum(jnp.where(answers.valid, logprobs, 0.0), axis=-1)


def _log_odds(model: Model, prefix, questions, *, yes: tuple[int, ...], no: tuple[int, ...]):
    """log P(yes) / P(no) of the first token of the answer to each of N questions, [B, N]."""
    hidden, _ = run(model, questions, prefix=prefix)
    z = logits(model, last(hidden, questions.valid))
    mass = [jax.nn.logsumexp(z[..., jnp.array(words)], axis=-1) for words in (yes, no)]
    return mass[0] - mass[1]


def _generate(
    model: Model, prefix, question, start, seeds, how, allowed, *, max_tokens, stop_tokens
):
    prefix, hidden = _extend(model, prefix, question)
    return sampling.generate(
        model,
        prefix,
        hidden,
        start,
        seeds,
        how,
        max_tokens=max_tokens,
        stop_tokens=stop_tokens,
        allowed=allowed[0],  # alike in every row
    )
