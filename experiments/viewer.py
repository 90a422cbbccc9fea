"""A `surprise.VideoModel` made of a `vlm.VLM`: prompts on the host, jitted steps on the device.

Each pair of frames is encoded once per video, and each prefix prefilled once per step: questions,
hypotheses and the observation extend or share the cache that is already there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from surprise.trace import Context, Generation, Sampling
from vlm import VLM, sampling
from vlm.frames import lay_out
from vlm.logprobs import continuation_logprobs
from vlm.model import Tokens, encode, last, logits, run
from vlm.patches import patchify
from vlm.positions import mrope_positions
from vlm.processor import Visual, visual_fields
from vlm.text import Cache

ENCODE_FRAMES = 8
"""Temporal patches a call of the tower takes."""
_END = "<|vision_end|>"


def bucket(size: int, least: int) -> int:
    """The smallest of least x (1, 1.5, 2, 3, 4, 6, ...) that holds `size`: at most a third idle."""
    while least < size:
        if least * 3 // 2 >= size:
            return least * 3 // 2
        least *= 2
    return least


@dataclass(frozen=True)
class _Row:
    """One prompt so far: token ids, and the visuals whose placeholders are among them."""

    ids: list[int]
    visuals: tuple[Visual, ...]
    rows: np.ndarray
    """For every placeholder, its row among the features of its own video."""

    def extended(self, ids: Sequence[int], visuals=(), rows=()) -> _Row:
        rows = np.concatenate([self.rows, np.asarray(rows, np.int32)])
        return _Row([*self.ids, *ids], (*self.visuals, *visuals), rows)


_EMPTY = _Row([], (), np.zeros(0, np.int32))


@dataclass(frozen=True)
class State:
    """B prompts and the cache of all their tokens."""

    contexts: tuple[Context, ...]
    prompts: tuple[_Row, ...]
    cache: Cache


@dataclass(frozen=True)
class _Clip:
    """A video's frame size in patches, true times, and its features by temporal patch."""

    grid: tuple[int, int]
    seconds: np.ndarray
    features: jax.Array
    rows: dict[tuple[int, ...], np.ndarray]


class Viewer:
    """Answers what the surprise loop asks, for the videos that have been added."""

    def __init__(self, vlm: VLM):
        self._vlm, self._processor = vlm, vlm.processor
        self._model = nnx.split(vlm.model)  # structure, arrays
        self._allowed = jnp.asarray(vlm.processor.speakable())
        self._clips: dict[str, _Clip] = {}
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
        wanted = list(dict.fromkeys(patch for view in views for patch in self._patches(view)))
        grid = (frames.shape[1] // vision.patch, frames.shape[2] // vision.patch)
        cells = grid[0] * grid[1] // vision.merge**2
        side = vision.window_cells * vision.factor
        windows = bucket(-(-frames.shape[1] // side) * -(-frames.shape[2] // side), least=1)
        chunks, rows = [], {}
        for start in range(0, len(wanted), ENCODE_FRAMES):
            part = wanted[start : start + ENCODE_FRAMES]
            shown = frames[np.array(part).reshape(-1)]
            patches, thw = patchify(shown, vision, settings.mean, settings.std)
            laid, index = lay_out(
                patches, np.array([thw]), vision, windows=windows, frames=ENCODE_FRAMES
            )
            base = sum(len(chunk) for chunk in chunks)
            chunks.append(_encode(*self._model, laid))
            rows |= dict(zip(part, base + index.reshape(-1, cells), strict=True))
        chunks += [jnp.zeros_like(chunks[0])] * (bucket(len(chunks), least=1) - len(chunks))
        self._clips[video] = _Clip(grid, np.asarray(seconds), jnp.concatenate(chunks), rows)

    def drop(self, video: str) -> None:
        """Forgets a video's features."""
        self._clips.pop(video, None)

    # `surprise.VideoModel`

    def look(self, contexts: Sequence[Context]) -> State:
        prompts = [
            self._shown(_EMPTY, context, self._piece(context, 0), context.window, "video")
            for context in contexts
        ]
        return self._extended(None, tuple(contexts), prompts)

    def observe(self, state: State, observations: Sequence[tuple[int, ...]]) -> State:
        prompts = []
        for context, row, places in zip(state.contexts, state.prompts, observations, strict=True):
            kind = "image" if len(places) == 1 else "video"
            prompts.append(self._shown(row, context, self._piece(context, 1, kind), places, kind))
        return self._extended(state, state.contexts, prompts)

    def generate(self, state: State, question: str, sampling: Sampling) -> list[list[Generation]]:
        return self._answers(state, self._asked(state, question), sampling)

    def nll(
        self, state: State, question: str, answers: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        asked = self._asked(state, question)
        ids = [[self._processor.plain(text) for text in row] for row in answers]
        tokens = _text_rows(ids, [self._text_start(row) for row in asked])
        sums = _nll(*self._model, state.cache, self._chunk(state.prompts, asked), tokens)
        return np.asarray(sums, np.float64), np.array([[len(text) for text in row] for row in ids])

    def p_yes(
        self,
        state: State,
        questions: Sequence[Sequence[str]],
        yes: Sequence[str],
        no: Sequence[str],
    ) -> np.ndarray:
        ids = [
            [self._processor.tokenize(self._piece(context, -1, question=text)) for text in row]
            for context, row in zip(state.contexts, questions, strict=True)
        ]
        tokens = _text_rows(ids, [self._text_start(row) for row in state.prompts])
        z = np.asarray(_next_logits(*self._model, state.cache, tokens), np.float64)
        yes_mass, no_mass = (
            np.logaddexp.reduce(z[..., self._processor.single_tokens(texts)], axis=-1)
            for texts in (yes, no)
        )
        return np.exp(-np.logaddexp(0.0, no_mass - yes_mass))

    def summarize(self, prompts: Sequence[str], *, system: str, max_tokens: int) -> list[str]:
        asked = []
        for prompt in prompts:
            messages = [_system(system)] * bool(system) + [{"role": "user", "content": prompt}]
            asked.append(
                _EMPTY.extended(self._processor.tokenize(self._processor.render(messages)))
            )
        ones = np.ones((len(prompts), 1), np.float32)
        greedy = Sampling(max_tokens, 0 * ones, ones, 0, np.zeros(ones.shape, np.uint32))
        return [row[0].text for row in self._answers(None, asked, greedy)]

    # Host side of a prompt

    def _patches(self, view: tuple[int, ...]) -> list[tuple[int, ...]]:
        """A view's frames by temporal patch, the last frame repeated where one is missing."""
        span = self._vlm.config.vision.temporal_patch
        view = (*view, *[view[-1]] * (-len(view) % span))
        return [view[i : i + span] for i in range(0, len(view), span)]

    def _piece(
        self, context: Context, index: int, observation: str = "image", *, question: str = ""
    ) -> str:
        """Part of the prompt's text: 0 up to the window, 1 the observation, -1 what follows."""
        content = [{"type": "text", "text": context.history}] * bool(context.history)
        content += [{"type": "video"}, {"type": observation}, {"type": "text", "text": question}]
        messages = [_system(context.system)] * bool(context.system)
        messages.append({"role": "user", "content": content})
        pieces = self._processor.render(messages).split(_END)
        return pieces[index] if index == -1 else pieces[index] + _END

    def _asked(self, state: State, question: str) -> list[_Row]:
        """The prompts with a question and the header of its answer."""
        return [
            row.extended(self._processor.tokenize(self._piece(context, -1, question=question)))
            for context, row in zip(state.contexts, state.prompts, strict=True)
        ]

    def _shown(
        self, row: _Row, context: Context, text: str, places: tuple[int, ...], kind: str
    ) -> _Row:
        """The prompt with a piece of text that shows `places` of its video."""
        clip = self._clips[context.video]
        visual = self._processor.placed(clip.grid, clip.seconds[list(places)], kind)
        rows = np.concatenate([clip.rows[patch] for patch in self._patches(places)])
        return row.extended(self._processor.tokenize(text, [visual]), [visual], rows)

    def _positions(self, row: _Row) -> tuple[np.ndarray, int]:
        """Positions [3, T] of a prompt's tokens, and where an answer is decoded."""
        ids = np.array([row.ids], np.int32)
        fields = visual_fields(row.visuals)
        positions, following = mrope_positions(
            ids,
            np.ones(ids.shape, bool),
            fields.get("image_grid_thw"),
            fields.get("video_grid_thw"),
            fields.get("second_per_grid_ts"),
            fields.get("grid_seconds"),
            self._vlm.config,
            self._processor.settings.hf_compat,
        )
        return positions[:, 0], int(following[0])

    def _text_start(self, row: _Row) -> int:
        """The position of a text token behind the prompt, as in one pass over the whole."""
        return int(self._positions(row.extended(self._processor.plain(" ")))[0][0, len(row.ids)])

    def _chunk(
        self, before: Sequence[_Row], after: Sequence[_Row], offsets: Sequence[int] | None = None
    ) -> Tokens:
        """The tokens that `after` adds to `before`, padded to a bucket, with N = 1."""
        longest = max(len(b.ids) - len(a.ids) for a, b in zip(before, after, strict=True))
        length = bucket(longest, least=64 if before[0].ids else 128)
        shape = (len(after), 1, length)
        ids, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
        positions, visual = np.ones((3, *shape), np.int32), np.full(shape, -1, np.int32)
        placeholders = [self._vlm.config.image_token, self._vlm.config.video_token]
        for b, (old, new) in enumerate(zip(before, after, strict=True)):
            added = np.array(new.ids[len(old.ids) :], np.int32)
            count = len(added)
            ids[b, 0, :count], valid[b, 0, :count] = added, True
            positions[:, b, 0, :count] = self._positions(new)[0][:, len(old.ids) :]
            if len(new.rows) > len(old.rows):
                shown = np.flatnonzero(np.isin(added, placeholders))
                visual[b, 0, shown] = offsets[b] + new.rows[len(old.rows) :]
        return Tokens(ids, positions, valid, visual if (visual >= 0).any() else None)

    # Device side

    def _extended(
        self, state: State | None, contexts: tuple[Context, ...], prompts: Sequence[_Row]
    ) -> State:
        clips = [self._clips[context.video] for context in contexts]
        banks = [clip.features for clip in clips]
        offsets = np.cumsum([0] + [len(bank) for bank in banks[:-1]])
        features = banks[0] if len(banks) == 1 else jnp.concatenate(banks)
        before = [_EMPTY] * len(prompts) if state is None else state.prompts
        cache, _ = _extend(
            *self._model,
            None if state is None else state.cache,
            self._chunk(before, prompts, offsets),
            features,
        )
        return State(contexts, tuple(prompts), cache)

    def _answers(
        self, state: State | None, asked: Sequence[_Row], how: Sampling
    ) -> list[list[Generation]]:
        before = [_EMPTY] * len(asked) if state is None else state.prompts
        stop = self._processor.stop_tokens
        out = _generate(
            *self._model,
            None if state is None else state.cache,
            self._chunk(before, asked),
            jnp.array([self._positions(row)[1] for row in asked], jnp.int32),
            jnp.asarray(how.seeds),
            sampling.Sampling(jnp.asarray(how.temperature), jnp.asarray(how.top_p), how.top_k),
            self._allowed,
            max_tokens=how.max_tokens,
            stop_tokens=stop,
        )
        tokens, lengths, finished = jax.device_get((out.tokens, out.lengths, out.finished))
        return [
            [
                Generation(
                    self._processor.decode(tokens[b, n, : lengths[b, n]]), bool(finished[b, n])
                )
                for n in range(tokens.shape[1])
            ]
            for b in range(tokens.shape[0])
        ]


def _system(text: str) -> dict:
    return {"role": "system", "content": text}


def _text_rows(ids: Sequence[Sequence[Sequence[int]]], starts: Sequence[int]) -> Tokens:
    """B x N texts as padded rows, row b counting positions from starts[b] on."""
    length = bucket(max(len(text) for row in ids for text in row), least=32)
    shape = (len(ids), max(len(row) for row in ids), length)
    padded, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for b, row in enumerate(ids):
        for n, text in enumerate(row):
            padded[b, n, : len(text)], valid[b, n, : len(text)] = text, True
    positions = np.asarray(starts, np.int32)[:, None, None] + np.arange(length, dtype=np.int32)
    return Tokens(padded, np.broadcast_to(positions, (3, *shape)), valid)


# The jitted steps. `graph` is the model's structure, `params` its arrays.


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph, params, frames):
    return encode(nnx.merge(graph, params), frames)


@functools.partial(jax.jit, static_argnums=0)
def _extend(graph, params, prefix, tokens, features):
    """The prefix with a chunk behind it, and the hidden state of the chunk's last token, [B, D]."""
    hidden, own = run(nnx.merge(graph, params), tokens, features, prefix=prefix)
    cache = own if prefix is None else prefix.append(own)
    return cache, last(hidden, tokens.valid)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _nll(graph, params, prefix, question, answers):
    """Summed negative log-likelihood of each answer to the question, [B, N]."""
    prefix, hidden = _extend(graph, params, prefix, question, None)
    logprobs = continuation_logprobs(nnx.merge(graph, params), prefix, hidden, answers)
    return -jnp.sum(jnp.where(answers.valid, logprobs, 0.0), axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _next_logits(graph, params, prefix, questions):
    """Logits of the first token of the answer to each of N questions, [B, N, V]."""
    model = nnx.merge(graph, params)
    hidden, _ = run(model, questions, prefix=prefix)
    return logits(model, last(hidden, questions.valid))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_tokens", "stop_tokens"))
def _generate(
    graph, params, prefix, question, start, seeds, how, allowed, *, max_tokens, stop_tokens
):
    prefix, hidden = _extend(graph, params, prefix, question, None)
    return sampling.generate(
        nnx.merge(graph, params),
        prefix,
        hidden,
        start,
        seeds,
        how,
        max_tokens=max_tokens,
        stop_tokens=stop_tokens,
        allowed=allowed,
    )
