"""SPIKE's loop over time steps (arXiv 2509.23433, section 2): beliefs before and after each frame.

The model is whatever keeps the promises of `VideoModel`. Many videos go through a step together;
none of their numbers depends on which others are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt32

from surprise.hypotheses import Hypotheses, append, clean, keep_latest, parse, word_count
from surprise.likelihood import PROBE_FLOOR, reduce_nll, weigh
from surprise.record import Step
from surprise.schedule import observation, window
from surprise.settings import Settings


@dataclass(frozen=True)
class Context:
    """What a model has seen of one video when it is asked what comes next."""

    video: str
    """The id of the episode, by which the model finds the frames."""
    step: int
    system: str
    history: str
    """The text to show before the window, already worded; "" shows nothing."""
    window: tuple[int, ...]
    """Places among the video's K sampled frames, in order of time, at least one."""


@dataclass(frozen=True)
class Generation:
    """One sampled answer; `finished` is false where the token limit cut it off."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How B contexts x n answers are sampled. Temperature 0 is greedy, top_k 0 no limit."""

    max_tokens: int
    temperature: Float[np.ndarray, "B n"]
    top_p: Float[np.ndarray, "B n"]
    top_k: int
    seeds: UInt32[np.ndarray, "B n"]
    """An answer is a function of its context, question and own seed, never of its batch."""


@runtime_checkable
class VideoModel(Protocol):
    """What SPIKE asks of a video-LLM, B contexts at a time. States are the model's own affair.

    A prompt is: system; one user turn of history, window, observation (after `observe`) and the
    question; then the header of the answer. A state may be asked any number of questions.
    """

    def look(self, contexts: Sequence[Context]) -> Any:
        """State after system, history and window."""

    def observe(self, state: Any, observations: Sequence[tuple[int, ...]]) -> Any:
        """The state extended by an observation for each context: places (t,) or (t-1, t)."""

    def generate(self, state: Any, question: str, sampling: Sampling) -> list[list[Generation]]:
        """Answers to the question, B x n."""

    def nll(
        self, state: Any, question: str, answers: Sequence[Sequence[str]]
    ) -> tuple[Float[np.ndarray, "B N"], Int[np.ndarray, "B N"]]:
        """Negative log-likelihood (nats, summed over tokens) and token count of each answer.

        The tokens are those of the answer alone, without the end of the turn. An answer "" is
        padding: what is returned for it is ignored, and need not be finite.
        """

    def p_yes(
        self, state: Any, questions: Sequence[Sequence[str]], yes: Sequence[str], no: Sequence[str]
    ) -> Float[np.ndarray, "B N"]:
        """P(yes) / (P(yes) + P(no)) of the first answer token, each summed over its token texts.

        A question "" is padding, as in `nll`.
        """

    def summarize(self, prompts: Sequence[str], *, system: str, max_tokens: int) -> list[str]:
        """Greedy answers to prompts of text alone. Called for history `summary` only."""


class BeliefError(ValueError):
    """A model's answer that is no number to believe in; `video` is the episode's id."""

    def __init__(self, video: str, message: str):
        super().__init__(message)
        self.video = video


@dataclass(frozen=True)
class Episode:
    """The K frames of a video at which its beliefs are measured: numbers and true times, rising."""

    id: str
    frames: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self):
        if not 0 < len(self.frames) == len(self.seconds):
            raise ValueError(f"{len(self.frames)} frames with {len(self.seconds)} times")


@dataclass(frozen=True)
class Viewing:
    """A stretch of an episode in progress: what is remembered of it and the steps done."""

    episode: Episode
    step: int
    """The next step to do."""
    stop: int
    """The step before which the stretch ends."""
    steps: tuple[Step, ...] = ()
    history: tuple[str, ...] = ()
    """Sentences, oldest first."""

    @property
    def done(self) -> bool:
        return self.step >= self.stop


def begin(settings: Settings, episode: Episode) -> Viewing:
    """An episode after step 0, at which nothing can be expected yet: score 0 and no hypotheses."""
    posterior = {"posterior_nll": ()} if settings.posterior == "nll" else {"probe_yes": ()}
    first = Step(frame=episode.frames[0], seconds=episode.seconds[0], **posterior)
    return Viewing(episode, step=1, stop=len(episode.frames), steps=(first,))


def stretches(settings: Settings, episode: Episode) -> list[Viewing]:
    """The parts of an episode that may go side by side; their steps, joined, are the episode's.

    With a history every step waits for the caption before it, and the episode is one part. Without
    one no step depends on another.
    """
    whole = begin(settings, episode)
    if settings.history != "none":
        return [whole]
    steps = range(1, whole.stop)
    return [replace(whole, stop=1), *(Viewing(episode, step=k, stop=k + 1) for k in steps)]


def advance(model: VideoModel, settings: Settings, viewings: Sequence[Viewing]) -> list[Viewing]:
    """One step of SPIKE for each of B unfinished viewings, whichever steps these are at.

    The hypotheses are sampled and weighed before the observation, weighed again after it by the
    same question, and the caption of the observation joins the history last. Raises BeliefError.
    """
    prompts = settings.prompts
    viewings = _condensed(model, settings, viewings)
    # H, W: the past as text, the last frames as pictures
    before = model.look([_context(settings, viewing) for viewing in viewings])
    # b_1 .. b_N ~ p(b | H, W)
    answers = model.generate(before, prompts.predict, _hypothesis_sampling(settings, viewings))
    hypotheses = [
        parse(
            [answer.text for answer in row],
            [answer.finished for answer in row],
            dedup=settings.dedup,
        )
        for row in answers
    ]
    statements = [hypothesis.texts for hypothesis in hypotheses]
    # prior: p(b | H, W)
    prior_nll, tokens = model.nll(before, prompts.statement, statements)
    # O: the frame itself
    after = model.observe(
        before, [observation(viewing.step, settings.observation) for viewing in viewings]
    )
    # posterior: p(b | H, W, O), or the yes/no probe that Bayes' rule turns into it
    if settings.posterior == "nll":
        support, _ = model.nll(after, prompts.statement, statements)
    else:
        probes = [[prompts.probe_text(b) if b else "" for b in row] for row in statements]
        support = model.p_yes(after, probes, settings.yes, settings.no)
    captions = _captions(model, settings, after, viewings)
    steps = _steps(settings, viewings, hypotheses, prior_nll, tokens, support, captions)
    return [
        replace(
            viewing,
            step=viewing.step + 1,
            steps=(*viewing.steps, step),
            history=append(viewing.history, step.caption),
        )
        for viewing, step in zip(viewings, steps, strict=True)
    ]


def watch(
    model: VideoModel, settings: Settings, episodes: Sequence[Episode]
) -> list[tuple[Step, ...]]:
    """All steps of each episode, K of them, the episodes side by side. Raises BeliefError."""
    viewings = [begin(settings, episode) for episode in episodes]
    while rows := [row for row, viewing in enumerate(viewings) if not viewing.done]:
        moved = advance(model, settings, [viewings[row] for row in rows])
        for row, viewing in zip(rows, moved, strict=True):
            viewings[row] = viewing
    return [viewing.steps for viewing in viewings]


def sample_seeds(
    seed: int, video: str, step: int, count: int, *, kind: int
) -> UInt32[np.ndarray, " n"]:
    """`count` seeds that depend on these arguments alone; `kind` keeps uses apart.

    numpy's SeedSequence is a fixed hash: the same on every machine, in any order and batch.
    """
    return np.array(
        [_seed_sequence(seed, video, step, kind, i).generate_state(1)[0] for i in range(count)],
        np.uint32,
    )


_HYPOTHESIS, _CAPTION, _JITTER = range(3)


def _seed_sequence(seed: int, video: str, *place: int) -> np.random.SeedSequence:
    # An id made of a file's name can hold what UTF-8 can't: lone surrogates.
    words = [seed, *video.encode("utf-8", "surrogatepass")]
    return np.random.SeedSequence(words, spawn_key=place)


def _condensed(model: VideoModel, settings: Settings, viewings: Sequence[Viewing]) -> list[Viewing]:
    """The viewings with histories of at most settings.history_words words, or their summaries."""
    if settings.history == "none":
        return [replace(viewing, history=()) for viewing in viewings]
    limit = settings.history_words
    if settings.history == "captions":
        return [
            replace(viewing, history=keep_latest(viewing.history, limit)) for viewing in viewings
        ]
    viewings = list(viewings)
    rows = [
        row for row, viewing in enumerate(viewings) if word_count(" ".join(viewing.history)) > limit
    ]
    if not rows:
        return viewings
    summaries = model.summarize(
        [settings.prompts.summary_text(" ".join(viewings[row].history)) for row in rows],
        system=settings.prompts.system,
        max_tokens=settings.summary_tokens,
    )
    for row, summary in zip(rows, summaries, strict=True):
        # A summary that says nothing, or is no shorter, must not end the memory or let it grow.
        text = clean(" ".join(summary.splitlines()))
        kept = (text,) if text else viewings[row].history
        viewings[row] = replace(viewings[row], history=keep_latest(kept, limit))
    return viewings


def _context(settings: Settings, viewing: Viewing) -> Context:
    return Context(
        video=viewing.episode.id,
        step=viewing.step,
        system=settings.prompts.system,
        history=settings.prompts.history_text(" ".join(viewing.history)),
        window=window(viewing.step, settings.window),
    )


def _hypothesis_sampling(settings: Settings, viewings: Sequence[Viewing]) -> Sampling:
    shape = (len(viewings), settings.hypotheses)
    temperature = np.full(shape, settings.temperature, np.float32)
    top_p = np.full(shape, settings.top_p, np.float32)
    if settings.jitter:
        for row, viewing in enumerate(viewings):
            for i in range(settings.hypotheses):
                place = (settings.seed, viewing.episode.id, viewing.step, _JITTER, i)
                noise = np.random.default_rng(_seed_sequence(*place)).uniform(-1.0, 1.0, 2)
                temperature[row, i] = max(settings.temperature + 0.1 * noise[0], 0.05)
                top_p[row, i] = np.clip(settings.top_p + 0.05 * noise[1], 0.05, 1.0)
    return Sampling(
        max_tokens=settings.hypothesis_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=settings.top_k,
        seeds=_seeds(settings, viewings, settings.hypotheses, kind=_HYPOTHESIS),
    )


def _captions(
    model: VideoModel, settings: Settings, after: Any, viewings: Sequence[Viewing]
) -> list[str]:
    if settings.caption_tokens == 0:
        return [""] * len(viewings)
    shape = (len(viewings), 1)
    sampling = Sampling(
        max_tokens=settings.caption_tokens,
        temperature=np.full(shape, settings.caption_temperature, np.float32),
        top_p=np.full(shape, settings.top_p, np.float32),
        top_k=settings.top_k,
        seeds=_seeds(settings, viewings, 1, kind=_CAPTION),
    )
    answers = model.generate(after, settings.prompts.caption, sampling)
    return [clean(row[0].text) for row in answers]


def _seeds(settings: Settings, viewings: Sequence[Viewing], count: int, *, kind: int) -> np.ndarray:
    return np.stack(
        [
            sample_seeds(settings.seed, viewing.episode.id, viewing.step, count, kind=kind)
            for viewing in viewings
        ]
    )


def _steps(
    settings: Settings,
    viewings: Sequence[Viewing],
    hypotheses: Sequence[Hypotheses],
    prior_nll: Float[np.ndarray, "B N"],
    tokens: Int[np.ndarray, "B N"],
    support: Float[np.ndarray, "B N"],
    captions: Sequence[str],
) -> list[Step]:
    """The records of a step from the model's numbers; `support` is NLL sums or P(yes)."""
    valid = np.array([[text != "" for text in each.texts] for each in hypotheses])
    for viewing, row, before, after in zip(viewings, valid, prior_nll, support, strict=True):
        if not (np.isfinite(before[row]).all() and np.isfinite(after[row]).all()):
            raise BeliefError(
                viewing.episode.id,
                f"step {viewing.step}: the model's likelihoods are not finite numbers",
            )
    prior_nll = reduce_nll(np.where(valid, prior_nll, 0.0), tokens, reduction=settings.reduction)
    support = np.where(valid, support, 0.0).astype(np.float64)
    if settings.posterior == "nll":
        support = reduce_nll(support, tokens, reduction=settings.reduction)
    else:
        support = np.clip(support, PROBE_FLOOR, 1.0)
    beliefs = weigh(settings, valid, prior_nll, support)
    steps = []
    for row, (viewing, each) in enumerate(zip(viewings, hypotheses, strict=True)):
        frames, there = viewing.episode.frames, valid[row]
        # Padding is not recorded; "something else", the last place if asked for, is.
        places = np.append(there, [there.any()]) if settings.other else there
        scores = {name: float(vars(beliefs)[name][row]) for name in ("kl", "js", "evidence")}
        support_name = "posterior_nll" if settings.posterior == "nll" else "probe_yes"
        steps.append(
            Step(
                frame=frames[viewing.step],
                seconds=viewing.episode.seconds[viewing.step],
                window=tuple(frames[i] for i in window(viewing.step, settings.window)),
                observation=tuple(
                    frames[i] for i in observation(viewing.step, settings.observation)
                ),
                history=" ".join(viewing.history),
                hypotheses=each.texts[: each.count],
                tokens=tuple(tokens[row, there].tolist()),
                prior_nll=tuple(prior_nll[row, there].tolist()),
                prior=tuple(beliefs.prior[row, places].tolist()),
                posterior=tuple(beliefs.posterior[row, places].tolist()),
                caption=captions[row],
                score=scores[settings.score],
                cut_off=each.cut_off[: each.count],
                duplicates=each.duplicates,
                empty=each.empty,
                **{support_name: tuple(support[row, there].tolist())},
                **scores,
            )
        )
    return steps
