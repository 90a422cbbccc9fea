"""A fixed piece of SPIKE's work: random weights, frames of noise, and the same words for everybody.

Samples are drawn in full, stop tokens ignored, and then replaced by given sentences of as many
tokens, so that every implementation does the same work and their beliefs can be compared.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from experiments.arguments import UsageError
from experiments.floor import PHASES, Work
from surprise import Episode, Generation, Settings, VideoModel, watch
from surprise.hypotheses import append
from surprise.record import Step
from surprise.schedule import observation, window

if TYPE_CHECKING:
    from vlm import VLM
    from vlm.config import VLMConfig
    from vlm.processor import Processor

WORDS = (
    "a the red blue small round ball dog cat man box it then falls rolls stops jumps turns from "
    "to left right up down over under fast slowly again and away near table door hand water"
)


@dataclass(frozen=True)
class Clip:
    """K frames of one video and, for each of its steps 1 .. K - 1, the words about it."""

    id: str
    frames: np.ndarray
    """uint8 [K, height, width, 3], sides as the processor wants them."""
    seconds: np.ndarray
    hypotheses: tuple[tuple[str, ...], ...]
    captions: tuple[str, ...]

    @property
    def episode(self) -> Episode:
        return Episode(self.id, tuple(range(len(self.frames))), tuple(self.seconds.tolist()))

    def part(self, steps: int, hypotheses: int) -> Clip:
        """The first frames of it, with fewer hypotheses."""
        rows = tuple(row[:hypotheses] for row in self.hypotheses[: steps - 1])
        kept = self.captions[: steps - 1]
        return Clip(self.id, self.frames[:steps], self.seconds[:steps], rows, kept)


def mini() -> VLMConfig:
    """Qwen2.5-VL of 35 M parameters: decoder 8 x 512, tower 8 x 256, a tied vocabulary of 8192."""
    from vlm.config import Qwen25Vision, TextConfig, VLMConfig

    return VLMConfig(
        vision=Qwen25Vision(depth=8, hidden=256, heads=4, mlp=688, out=512, full_layers=(3, 7)),
        text=TextConfig(
            vocab=8192, hidden=512, mlp=1408, layers=8, heads=8, kv_heads=2, head_dim=64,
            rope_sections=(8, 12, 12), tied=True,
        ),
    )  # fmt: skip


def random_model(name: str, dtype: str) -> VLM:
    """A VLM of random weights that never ends a turn: `mini`, or what `vlm.load` knows by name.

    Kernels and embeddings have a deviation of 1 / sqrt(D): beliefs come out far from uniform, as
    comparing them needs. Raises UsageError.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import vlm
    from vlm.config import NAMED, TINY, TINY_QWEN3
    from vlm.loading import TOKENIZER, with_tokens_of
    from vlm.processor import Processor
    from vlm.processor_settings import default_settings
    from vlm.weights import random_weights

    configs = {"mini": mini(), "tiny": TINY, "tiny-qwen3": TINY_QWEN3, **NAMED}
    if name not in configs:
        raise UsageError(f"--model: no {name}; choose from {', '.join(configs)}")
    config = with_tokens_of(configs[name], TINY)
    # The limits of the bundled models would shrink the frames.
    pixels = default_settings(mini()).image_pixels
    processor = Processor.from_pretrained(
        TOKENIZER, config, image_pixels=pixels, video_pixels=pixels
    )
    processor.stop_tokens = ()
    graph, state = nnx.split(random_weights(config, dtype=jnp.dtype(dtype)))
    scale = config.text.hidden**-0.5 / 0.02

    def scaled(path, leaf):
        drawn = path[-2].key in ("kernel", "embedding")
        return leaf * jnp.asarray(scale, leaf.dtype) if drawn else leaf

    model = nnx.merge(graph, jax.tree_util.tree_map_with_path(scaled, state))
    return vlm.VLM(model, config, processor, name, trained=False)


def make_clips(
    processor: Processor, settings: Settings, count: int, side: int, *, seed: int = 0
) -> list[Clip]:
    """Clips of side x side pixels, frames 1.5 s apart, sentences of exactly so many tokens."""
    rng = np.random.default_rng(seed)
    size = processor.frame_size(side, side, frames=settings.window)
    steps = settings.steps
    clips = []
    for number in range(count):
        said = tuple(
            tuple(
                _sentence(processor, rng, settings.hypothesis_tokens)
                for _ in range(settings.hypotheses)
            )
            for _ in range(1, steps)
        )
        captions = (_sentence(processor, rng, settings.caption_tokens) for _ in range(1, steps))
        frames = rng.integers(0, 256, (steps, *size, 3), dtype=np.uint8)
        clips.append(Clip(f"video{number}", frames, 1.5 * np.arange(steps), said, tuple(captions)))
    return clips


def _sentence(processor: Processor, rng: np.random.Generator, tokens: int) -> str:
    vocabulary = WORDS.split()
    while True:
        words: list[str] = []
        while (count := len(processor.plain(" ".join(words)))) < tokens:
            words.append(str(rng.choice(vocabulary)))
        if count == tokens:
            return " ".join(words)


def views(settings: Settings) -> list[tuple[int, ...]]:
    """What the steps show of a video, as places among its K frames: windows, then observations."""
    steps = range(1, settings.steps)
    shown = [window(k, settings.window) for k in steps]
    return shown + [observation(k, settings.observation) for k in steps]


def pieces(processor: Processor, system: str, history: str, question: str) -> list[str]:
    """A prompt's text, cut behind the window and behind the observation, a single frame."""
    content = [{"type": "text", "text": history}] * bool(history)
    content += [{"type": "video"}, {"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    end = "<|vision_end|>"
    first, second, last = processor.render(messages).split(end)
    return [first + end, second + end, last]


def work_of(vlm: VLM, settings: Settings, clips: Sequence[Clip]) -> Work:
    """The counts of all steps of `clips`, in flight together."""
    processor, vision, prompts = vlm.processor, vlm.config.vision, settings.prompts
    grid = tuple(side // vision.patch for side in clips[0].frames.shape[1:3])

    def tokens(index: int, history: str = "", question: str = "", visuals=()) -> int:
        text = pieces(processor, prompts.system, history, question)[index]
        return len(processor.tokenize(text, visuals))

    counts, histories = [], {clip.id: () for clip in clips}
    for k in range(1, settings.steps):
        row = []
        for clip in clips:
            seconds = clip.seconds[list(window(k, settings.window))]
            history = prompts.history_text(" ".join(histories[clip.id]))
            row.append(tokens(0, history, visuals=[processor.placed(grid, seconds, "video")]))
            histories[clip.id] = append(histories[clip.id], clip.captions[k - 1])
        counts.append(tuple(row))
    span = vision.temporal_patch
    patches = {
        (*view, *[view[-1]] * (-len(view) % span))[i : i + span]
        for view in views(settings)
        for i in range(0, len(view), span)
    }
    return Work(
        grid=grid,
        patches=len(patches),
        prompts=tuple(counts),
        observed=tokens(1, visuals=[processor.placed(grid, clips[0].seconds[:1], "image")]),
        predict=tokens(2, question=prompts.predict),
        statement=tokens(2, question=prompts.statement),
        caption=tokens(2, question=prompts.caption),
        hypotheses=settings.hypotheses,
        hypothesis_tokens=settings.hypothesis_tokens,
        caption_tokens=settings.caption_tokens,
        value_bytes=np.dtype(vlm.model.dtype).itemsize,
    )


# Doing it -------------------------------------------------------------------------------------


class Scorer(VideoModel, Protocol):
    """A VideoModel that is told of a video before it is asked about it."""

    def add(self, video: str, frames: np.ndarray, seconds: np.ndarray, views: Any) -> None: ...
    def drop(self, video: str) -> None: ...


class Clock:
    """Seconds by phase: of the wall, and of the calling thread's own computing.

    `settle` waits for the device, so that a phase pays for what it has started.
    """

    def __init__(self, settle: Callable[[], object] = lambda: None):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.host = dict.fromkeys(PHASES, 0.0)
        self._settle = settle

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, busy = time.perf_counter(), time.thread_time()
        yield
        self.host[name] += time.thread_time() - busy
        self._settle()
        self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class _State:
    contexts: tuple
    inner: Any
    observed: bool = False


class Given:
    """A VideoModel that draws what it is asked for and answers with the clips' words instead.

    Without `draw` it draws nothing: what is left is scoring. `see` is shown the model's state after
    each observation.
    """

    def __init__(
        self,
        model: Scorer,
        clips: Sequence[Clip],
        clock: Clock,
        *,
        draw: bool,
        see: Callable[[Any], object],
    ):
        self._model, self._clock, self._draw, self._see = model, clock, draw, see
        self._clips = {clip.id: clip for clip in clips}

    def look(self, contexts):
        with self._clock.phase("prefill"):
            return _State(tuple(contexts), self._model.look(contexts))

    def observe(self, state, observations):
        with self._clock.phase("observe"):
            inner = self._model.observe(state.inner, observations)
        self._see(inner)
        return replace(state, inner=inner, observed=True)

    def generate(self, state, question, sampling):
        if self._draw:
            with self._clock.phase("caption" if state.observed else "sample"):
                self._model.generate(state.inner, question, sampling)
        rows = []
        for context in state.contexts:
            clip, place = self._clips[context.video], context.step - 1
            texts = (clip.captions[place],) if state.observed else clip.hypotheses[place]
            rows.append([Generation(text, True) for text in texts])
        return rows

    def nll(self, state, question, answers):
        with self._clock.phase("posterior" if state.observed else "prior"):
            return self._model.nll(state.inner, question, answers)

    def p_yes(self, state, questions, yes, no):
        return self._model.p_yes(state.inner, questions, yes, no)

    def summarize(self, prompts, *, system, max_tokens):
        return self._model.summarize(prompts, system=system, max_tokens=max_tokens)


@dataclass
class Run:
    """One pass over clips: seconds in all and by phase, and the steps of each clip."""

    seconds: float
    clock: Clock
    steps: list[tuple[Step, ...]] = field(default_factory=list)

    @property
    def loop(self) -> float:
        """Seconds of the loop itself, outside the model."""
        return self.seconds - sum(self.clock.seconds.values())


def run(
    model: Scorer,
    settings: Settings,
    clips: Sequence[Clip],
    in_flight: int = 0,
    *,
    draw: bool = True,
    settle: Callable[[], object] = lambda: None,
    see: Callable[[Any], object] = lambda state: None,
) -> Run:
    """Scores all clips, `in_flight` at a time (0: all); see `Clock` and `Given` for the rest."""
    clock, steps, start = Clock(settle), [], time.perf_counter()
    given = Given(model, clips, clock, draw=draw, see=see)
    in_flight = in_flight or len(clips)
    for first in range(0, len(clips), in_flight):
        batch = clips[first : first + in_flight]
        with clock.phase("encode"):
            for clip in batch:
                model.add(clip.id, clip.frames, clip.seconds, views(settings))
        steps += watch(given, settings, [clip.episode for clip in batch])
        for clip in batch:
            model.drop(clip.id)
    return Run(time.perf_counter() - start, clock, steps)
