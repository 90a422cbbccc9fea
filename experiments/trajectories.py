"""SPIKE-RL's rollouts: the policy goes through the SPIKE pipeline, and its captions are rewarded.

A group is a video. Its M prompts are the steps of the pipeline, one window each; a trajectory
writes N hypotheses at every step, and all of them together are one action (arXiv 2509.23433,
eq. 5). G trajectories share everything but their hypotheses: prompts, the history (captions are
greedy, and no hypothesis enters them), the luck of drawing frames, and the caption's prompt. So
whatever tells their rewards apart, hypotheses have done it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from data.types import Example
from experiments import rl, tasks
from experiments.arguments import UsageError
from experiments.mesh import Driver
from experiments.prompts import Composer
from experiments.rewards import RewardError
from experiments.rollout import FIELDS, Asked, Rollouts, compose, fitted, sampled
from experiments.viewer import Viewer, greedy
from experiments.views import evenly, numbers
from surprise import Context, Episode, Settings, SettingsError, select_frames, watch
from surprise.hypotheses import Hypotheses, parse
from surprise.likelihood import PROBE_FLOOR, reduce_nll, weigh
from surprise.schedule import observation, window
from surprise.trace import sample_seeds
from vlm import VLM

_BY_PROMPT = ("ids", "positions", "valid", "visual", "start")


class Trajectories:
    """G trajectories of the SPIKE pipeline a video. For `config` see `configs/spike_rl.py`."""

    def __init__(self, vlm: VLM, config: dict[str, Any]):
        self.config = config
        try:
            self.settings = Settings.from_dict({**config["surprise"], "seed": config["seed"]})
        except SettingsError as error:
            raise UsageError(f"--config.surprise: {error}") from None
        if self.settings.caption_temperature > 0:
            raise UsageError(
                "--config.surprise.caption_temperature must be 0: the trajectories of a video "
                "share its history"
            )
        self.source = tasks.source(config, vlm.processor, self.settings.steps)
        self._vlm = vlm
        self._composer = Composer(vlm.processor)

    def prompts(self, number: int, *, split: str = "train") -> tuple[int, list[Example]]:
        """Batch `number`: B clips with the K frames at which beliefs are measured."""
        examples = [
            fitted(evenly(example, self.settings.steps), self._vlm.processor)
            for example in self.source(number, split=split)
        ]
        return number, examples

    def sample(self, run: Driver, batch: tuple[int, list[Example]]) -> Rollouts:
        """Hypotheses, beliefs, frames, captions: B x 1 x G of them."""
        number, examples = batch
        config, settings = self.config, self.settings
        viewer = Viewer(self._vlm, driver=run)
        steps = range(1, settings.steps)
        views = [window(k, settings.window) for k in steps]
        views += [observation(k, settings.observation) for k in steps]
        for example in examples:
            viewer.add(example.id, example.frames, example.seconds, views)
        # 1. b_1 .. b_N ~ p(b | H, W) of every trajectory, at every step
        contexts = self._contexts(viewer, examples)
        asked = [[Asked(context, settings.prompts.predict) for context in row] for row in contexts]
        clips = [{example.id: example} for example in examples]
        prompts = compose(self._composer, clips, asked, least=config["prompt_tokens"])
        samples = self._hypotheses(run, prompts, number, examples)
        # 2. how far each observation moves them: scores [B, G, K]
        groups, count, each = len(examples), config["num_generations"], settings.hypotheses
        shape = (groups, len(steps), count, each)
        parsed = self._parsed(samples, shape)
        flat = [context for row in contexts for context in row]
        scores = self._surprise(viewer, flat, parsed, shape)
        # 3. frames drawn by surprise, and 4. their caption
        chosen = [[self._frames(number, example, own) for own in rows]
                  for example, rows in zip(examples, scores, strict=True)]  # fmt: skip
        captions = self._captions(viewer, examples, chosen)
        # What is learned from: the windows that are long enough.
        first = config["train_from"] - 1
        samples = jax.tree.map(lambda part: part[:, first:], samples)
        own = {name: vars(prompts)[name][:, first:] for name in _BY_PROMPT}
        owner = np.arange(count * each) // each
        return Rollouts(
            replace(prompts, **own),
            samples,
            np.broadcast_to(owner, (samples.lengths.shape[1], count * each)),
            (groups, 1, count),
            _columns(examples, captions, chosen, _by_place(parsed, shape)),
            tuple((example,) for example in examples),
            self._told(parsed, scores, examples),
        )

    def _contexts(self, viewer: Viewer, examples: list[Example]) -> list[list[Context]]:
        """What is seen and remembered before each step of each video."""
        settings = self.settings
        remembered = [[""] * settings.steps for _ in examples]
        if settings.history != "none":
            episodes = [
                Episode(example.id, tuple(range(settings.steps)), tuple(example.seconds.tolist()))
                for example in examples
            ]
            traces = watch(viewer, settings, episodes)
            remembered = [[step.history for step in trace] for trace in traces]
        return [
            [
                Context(
                    example.id,
                    k,
                    settings.prompts.system,
                    settings.prompts.history_text(history[k]),
                    window(k, settings.window),
                )
                for k in range(1, settings.steps)
            ]
            for example, history in zip(examples, remembered, strict=True)
        ]

    def _hypotheses(
        self, run: Driver, prompts: rl.Prompts, number: int, examples: list[Example]
    ) -> rl.Samples:
        """N sampled hypotheses of each of G trajectories at every step, [B, K - 1, G x N]."""
        config = self.config
        rows = config["num_generations"] * self.settings.hypotheses
        seeds = [
            sample_seeds(config["seed"], f"{example.id}/{number}", k, rows, kind=0)
            for example in examples
            for k in range(1, self.settings.steps)
        ]
        seeds = np.array(seeds).reshape(*prompts.start.shape, rows)
        return sampled(run, self._vlm.processor, prompts, seeds, config)

    def _parsed(self, samples: rl.Samples, shape: tuple[int, ...]) -> list[Hypotheses]:
        """The hypotheses of every video, step and trajectory, in this order."""
        groups, steps, count, each = shape
        decode = self._vlm.processor.decode
        texts = [
            decode(ids[:length])
            for ids, length in zip(
                samples.tokens.reshape(-1, samples.tokens.shape[-1]),
                samples.lengths.reshape(-1),
                strict=True,
            )
        ]
        whole = samples.finished.reshape(-1).tolist()
        return [
            parse(texts[i : i + each], whole[i : i + each], dedup=self.settings.dedup)
            for i in range(0, groups * steps * count * each, each)
        ]

    def _surprise(
        self,
        viewer: Viewer,
        contexts: list[Context],
        parsed: list[Hypotheses],
        shape: tuple[int, ...],
    ) -> Float[np.ndarray, "B G K"]:
        """The score of each step under each trajectory's beliefs; that of step 0 is 0."""
        settings, prompts = self.settings, self.settings.prompts
        groups, steps, count, each = shape
        texts = [text for one in parsed for text in one.texts]
        rows = [texts[i : i + count * each] for i in range(0, len(texts), count * each)]
        before = viewer.look(contexts)
        prior, tokens = viewer.nll(before, prompts.statement, rows)
        after = viewer.observe(
            before, [observation(context.step, settings.observation) for context in contexts]
        )
        if settings.posterior == "nll":
            support, _ = viewer.nll(after, prompts.statement, rows)
        else:
            probes = [[prompts.probe_text(text) if text else "" for text in row] for row in rows]
            support = viewer.p_yes(after, probes, settings.yes, settings.no)
        prior, tokens, support = (part.reshape(-1, each) for part in (prior, tokens, support))
        valid = np.array([[text != "" for text in one.texts] for one in parsed])
        prior, support = (np.where(valid, part, 0.0) for part in (prior, support))
        if not (np.isfinite(prior).all() and np.isfinite(support).all()):
            raise RewardError("the model's likelihoods are not finite numbers")
        prior = reduce_nll(prior, tokens, reduction=settings.reduction)
        if settings.posterior == "nll":
            support = reduce_nll(support, tokens, reduction=settings.reduction)
        else:
            support = np.clip(support, PROBE_FLOOR, 1.0)
        beliefs = weigh(settings, valid, prior, support)
        scores = vars(beliefs)[settings.score].reshape(groups, steps, count)
        scores = np.concatenate([np.zeros((groups, 1, count)), scores], axis=1)
        return np.moveaxis(scores, 1, 2)

    def _frames(self, number: int, example: Example, scores: Float[np.ndarray, " K"]) -> np.ndarray:
        """`budget` frames drawn by surprise; the draws are those of the whole group."""
        settings = self.settings
        return select_frames(
            scores,
            budget=settings.budget,
            frame_count=settings.steps,
            method=settings.method,
            tau=settings.frames_tau,
            seed=(settings.seed, number, *example.id.encode("utf-8", "surrogatepass")),
            refill=True,  # as many for everybody: no caption sees more than another
            segments=settings.segments,
            gumbel=settings.gumbel,
        )

    def _captions(
        self, viewer: Viewer, examples: list[Example], chosen: list[list[np.ndarray]]
    ) -> list[str]:
        """What the policy says of each trajectory's frames, by one question for all."""
        contexts = []
        for example, rows in zip(examples, chosen, strict=True):
            for g, places in enumerate(rows):
                name, view = f"{example.id}/{g}", tuple(range(len(places)))
                viewer.add(name, example.frames[places], example.seconds[places], [view])
                contexts.append(Context(name, 0, self.config["system"], "", view))
        how = greedy(len(contexts), self.config["caption_tokens"])
        answers = viewer.generate(viewer.look(contexts), self.config["caption_question"], how)
        return [answer.text for row in answers for answer in row]

    def _told(
        self, parsed: list[Hypotheses], scores: np.ndarray, examples: list[Example]
    ) -> dict[str, np.ndarray]:
        """What to log of beliefs: how diverse they are, and whether surprise finds the events."""
        number = self.settings.hypotheses
        found = [
            abs(example.seconds[scores[b].argmax(-1)] - example.events[0][0])
            <= 1.5 * np.diff(example.seconds).mean()
            for b, example in enumerate(examples)
            if example.events
        ]
        return {
            "hypotheses/duplicates": np.array([one.duplicates / number for one in parsed]),
            "hypotheses/empty": np.array([one.empty / number for one in parsed]),
            "hypotheses/cut_off": np.array([sum(one.cut_off) / number for one in parsed]),
            "surprise/mean": scores[:, :, 1:],
            "surprise/peak": scores.max(-1),
            "surprise/event_hit": np.array(found),
        }


def _by_place(parsed: list[Hypotheses], shape: tuple[int, ...]) -> list[list[list[str]]]:
    """Texts of each trajectory of each video, by step; "" for those that were not kept."""
    groups, steps, count, _ = shape
    return [
        [list(parsed[(b * steps + k) * count + g].texts) for k in range(steps)]
        for b in range(groups)
        for g in range(count)
    ]


def _columns(
    examples: list[Example],
    captions: list[str],
    chosen: list[list[np.ndarray]],
    hypotheses: list[list[list[str]]],
) -> dict[str, list]:
    """What rewards are told: the caption as the completion, the example's own as reference."""
    count = len(chosen[0])
    places = [(b, 0, g) for b in range(len(examples)) for g in range(count)]
    own = [examples[b] for b, _, _ in places]
    return {
        "prompts": [example.question for example in own],
        "completions": captions,
        "completion_ids": [[] for _ in places],
        "frames": [numbers(examples[b])[chosen[b][g]].tolist() for b, _, g in places],
        "hypotheses": hypotheses,
        "by": ["word"] * len(places),
        "place": places,
        **{name: [vars(example)[name] for example in own] for name in ("answer", *FIELDS)},
    }
