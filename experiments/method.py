"""A method of group-relative RL: from rollouts to rewards, advantages and what an update learns.

Methods differ in how they expand data (`views.py`), in what they reward (`rewards.py`) and in how
they compare rewards (`ADVANTAGES`), each a key of the configuration. The rest is the same for all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from experiments import hosts, rl
from experiments.arguments import UsageError
from experiments.assembly import driver, untouched
from experiments.judge import open_judge
from experiments.mesh import Driver, replicas, spread_shares
from experiments.rewards import Place, Rewards, rewarder
from experiments.rollout import Answers, Rollouts
from experiments.trajectories import Trajectories
from experiments.views import EXPANSIONS
from objectives import (
    batch_zscore,
    group_centred,
    group_zscore,
    hierarchical,
    joint_zscore,
    leave_one_out,
    mixture,
    normalise,
    zero_signal_share,
)
from vlm import VLM, Model

log = logging.getLogger(__name__)

ADVANTAGES: dict[str, Callable[..., Any]] = {
    "group": lambda r, valid, eps: group_zscore(r, valid, eps=eps),
    "group_centred": lambda r, valid, eps: group_centred(r, valid),
    "batch": lambda r, valid, eps: batch_zscore(r, valid, eps=eps),
    "joint": lambda r, valid, eps: joint_zscore(r, valid, eps=eps),
    "joint_centred": lambda r, valid, eps: normalise(r, valid, mean="joint", std=None),
    "share": lambda r, valid, eps: joint_zscore(r, valid, eps=eps),  # and see `_own`
    "leave_one_out": lambda r, valid, eps: leave_one_out(r, valid),
    "mixture": lambda r, valid, eps: mixture(r, valid, eps=eps),
    "hierarchical": lambda r, valid, eps: hierarchical(r, valid, eps=eps),
}
"""Who is compared with whom: (rewards [B, M, G], valid, eps) -> advantages [B, M, G]."""
_JOINT = ("joint", "joint_centred", "share", "mixture", "hierarchical")


class Method:
    """What a configuration describes (see `configs/rl.py`), for one model. Raises UsageError.

    What a training loop needs of it: `module`, the batch of `prompts` of a step, `loss`, and how
    many `updates` a batch of rollouts makes, in how many `parts` each. `collector` makes rollouts
    where it is given, in place of the one that the configuration names.
    """

    def __init__(
        self,
        found: VLM,
        config: dict[str, Any],
        mesh: Mesh | None = None,
        collector: Any = None,
    ):
        self.config, self.objective = config, objective(config, replicas(mesh))
        self.module, self.trained = found.model, found.trained
        self._cell = found.config.vision.merge**2
        self.loss = partial(
            rl.loss,
            objective=self.objective,
            unroll=config["unroll"],
            remat=config["remat"],
        )
        self.parts, self.spread = config["micro_batches"], spread_shares
        self.updates = config["num_iterations"] * config["num_minibatches"]
        if config["video_pixels"]:
            found = replace(found, processor=found.processor.limited(config["video_pixels"]))
        if collector is None:
            collector = (Trajectories if config["views"] == "steps" else Answers)(found, config)
        self._collector = collector
        self.prompts = collector.prompts
        self._rewarder = rewarder(config, open_judge(config["judge"]))
        self._reference = None
        if config["beta"]:
            self._reference = driver(untouched(found.model, config), mesh)
        self.best = config["best"]
        if self.best and not self.best.startswith("eval/"):
            raise UsageError(f"--config.best is {self.best!r}; an evaluation finds eval/NAME")
        if self.best and not config["eval_every"]:
            raise UsageError(f"--config.best is {self.best!r}; set eval_every, or it is never seen")
        self._in_vain, self._clock = 0, time.monotonic()
        self._validation: list[Any] = []

    def failures(self) -> list[dict[str, str]]:
        """What could not be read since the last call."""
        return self._collector.source.failures()

    def close(self) -> None:
        """Ends what reads videos."""
        self._collector.source.close()

    def sample(self, run: Driver, prompts: Any) -> Rollouts:
        """What the policy that `run` holds makes of a batch of prompts."""
        return self._collector.sample(run, prompts)

    def reward(self, rollouts: Rollouts) -> Rewards:
        """The rewards of every sample. Raises RewardError."""
        return self._rewarder(rollouts.grid, rollouts.columns)

    def advantages(self, rewards: Rewards) -> Float[np.ndarray, "B M G"]:
        """What each sample was worth beside those that it is compared with."""
        compare = ADVANTAGES[self.config["advantage"]]
        everybody = map(hosts.joined, _filled(rewards))
        return hosts.own(np.asarray(compare(*everybody, self.config["advantage_eps"])))

    def batches(
        self, run: Driver, rollouts: Rollouts, rewards: Rewards, advantages: np.ndarray
    ) -> list[rl.Experience]:
        """What one update after the other learns from.

        Old log-probabilities are those of the policy as it was, by the graph that is trained.
        """
        config, samples, prompts = self.config, rollouts.samples, rollouts.prompts
        mask = np.arange(samples.tokens.shape[-1]) < samples.lengths[..., None]
        if config["mask_truncated_completions"]:
            mask &= samples.finished[..., None]
        groups = len(mask)
        rows = advantages.reshape(groups, -1)[:, rollouts.owner]
        if config["advantage"] == "share":
            rows = rows + self._own(rollouts, rewards)
        scored = (rl.logprobs, prompts, samples.tokens, mask)
        # As the update computes its own: in the same graph, ratios begin at 1 exactly.
        how = {"temperature": self.objective.temperature}
        how |= {name: config[name] for name in ("unroll", "remat")}
        behaviour = reference = None
        if self.updates > 1:  # else the update's own are those of the policy that sampled
            behaviour = run.fetch(run(*scored, **how))
        if self._reference is not None:
            reference = self._reference.fetch(self._reference(*scored, **how))
        sizes = np.max(hosts.gather(rl.sizes(prompts)), axis=0)
        whole = rl.Experience(
            prompts=rl.padded(prompts, sizes, self._cell),
            tokens=samples.tokens,
            mask=mask,
            advantages=rows.astype(np.float32),
            sampler=samples.logprobs,
            sequences=np.zeros(groups, np.float32),
            count=np.zeros(groups, np.float32),
            behaviour=behaviour,
            reference=reference,
        )
        minibatches = [
            self._minibatch(whole, number, rollouts.grid)
            for number in range(config["num_minibatches"])
        ]
        return minibatches * config["num_iterations"]

    def told(self, rollouts: Rollouts, rewards: Rewards) -> dict[str, float]:
        """What to log of a batch of rollouts, all processes' shares, under the names of TRL."""
        samples, said = rollouts.samples, rollouts.samples.lengths > 0
        own = {
            **rollouts.seen,
            "length": samples.lengths[said],
            "terminated_length": samples.lengths[said & samples.finished],
            "completions/clipped_ratio": ~samples.finished[said],
            "frames_per_video": np.array([len(row) for row in rollouts.columns["frames"]]),
            "tokens_per_prompt": rollouts.prompts.valid.sum(-1),
        }
        shares, others = zip(*hosts.gather((own, rewards)), strict=True)
        seen = {name: np.concatenate([one[name] for one in shares], axis=None) for name in own}
        rewards, over = Rewards.joined(others), self._over
        (total, valid), axes = _filled(rewards), (-2, -1) if over == "joint" else (-1,)
        counted = np.where(valid, total, np.nan)
        now = time.monotonic()
        values = {**rewards.metrics, "step_time": now - self._clock}
        self._clock = now
        for name in ("length", "terminated_length"):
            if (lengths := seen.pop(name)).size:
                values |= {f"completions/{of}_{name}": float(getattr(lengths, of)())
                           for of in ("mean", "min", "max")}  # fmt: skip
        values |= {name: float(found.mean()) for name, found in seen.items() if found.size}
        if valid.any():
            first = next(iter(rewards.parts.values()))
            flat = float(zero_signal_share(total, valid, over=over))
            spread = np.nanstd(counted, axis=axes, ddof=1) if valid.all() else np.nan
            values |= {
                "reward": float(np.nanmean(counted)),
                "reward_std": float(np.mean(spread)),
                "frac_reward_zero_std": flat,
                "all_wrong": float(np.mean((first <= 0).all(axes))),
                "all_correct": float(np.mean((first >= 1).all(axes))),
            }
            self._explain(flat, len(total))
        return values

    def model(self, module: Model) -> Model:
        """What is exported of the module: all of it."""
        return module

    def evaluates(self, done: int) -> bool:
        """Whether it is time to look at the validation split."""
        every = self.config["eval_every"]
        return bool(every) and done % every == 0

    def evaluate(self, run: Driver) -> Rewards:
        """The policy's rewards on clips of the validation split, always the same ones.

        By the same sampling as in training, and so by the same programs. Raises RewardError.
        """
        found = []
        for number in range(self.config["eval_batches"]):
            if number == len(self._validation):
                self._validation.append(self.prompts(number, split="validation"))
            found.append(self.reward(self.sample(run, self._validation[number])))
        return Rewards.joined(found)

    def evaluated(self, rewards: Rewards) -> dict[str, float]:
        """The means of what `evaluate` has found, all processes' shares. Raises UsageError."""
        rewards = Rewards.joined(hosts.gather(rewards))
        told = {"eval/reward": float(np.nanmean(rewards.total))}
        told |= {f"eval/{name}": value for name, value in rewards.metrics.items()}
        if self.best and self.best not in told:
            names = ", ".join(told)
            raise UsageError(f"--config.best is {self.best!r}; an evaluation finds {names}")
        return told

    def show(self, run: Driver, prompts: Any, *, groups: int = 3) -> None:
        """Logs what is said to a few prompts, and what each reward makes of it."""
        rollouts = self.sample(run, prompts)
        rewards = self.reward(rollouts)
        columns, last = rollouts.columns, None
        for i, (b, m, _) in enumerate(columns["place"]):
            if b >= groups:
                continue
            if (b, m) != last:
                wanted = columns["answer"][i]
                log.info("\n%s\n  wanted: %s", columns["prompts"][i], wanted)
                last = (b, m)
            parts = ", ".join(
                f"{name} {'-' if row[i] is None else format(row[i], '.2f')}"
                for name, row in rewards.every.items()
            )
            log.info("  %r: %s", columns["completions"][i], parts)

    @property
    def _over(self) -> str:
        return "joint" if self.config["advantage"] in _JOINT else "group"

    def _own(self, rollouts: Rollouts, rewards: Rewards) -> np.ndarray:
        """Share-GRPO's second comparison: within the view, for what was said to this very view."""
        views, count = rewards.total.shape[1:]
        own = np.asarray(group_zscore(*_filled(rewards), eps=self.config["advantage_eps"]))
        here = rollouts.owner // count == np.arange(views)[:, None]
        return np.where(here, own.reshape(len(own), -1)[:, rollouts.owner], 0.0)

    def _minibatch(self, whole: rl.Experience, number: int, grid: Place) -> rl.Experience:
        """A minibatch of groups, with the denominators of its loss."""
        count = self.config["num_minibatches"]

        def part(leaf: np.ndarray) -> np.ndarray:
            size = len(leaf) // count
            return leaf[number * size : (number + 1) * size]

        share = jax.tree.map(part, whole)
        # The rows of a trajectory are one action; else each row is a sequence.
        action = self.objective.loss_type == "reinforce"
        sequences = len(share.mask) * grid[1] * grid[2] if action else share.mask.any(-1).sum()
        sequences, count = np.sum(hosts.gather((sequences, share.mask.sum())), axis=0)
        alike = np.ones(len(share.mask), np.float32)
        return replace(
            share, sequences=alike * np.float32(sequences), count=alike * np.float32(count)
        )

    def _explain(self, flat: float, groups: int) -> None:
        """Says why nothing is learned, after many groups in a row without signal."""
        self._in_vain = self._in_vain + groups if flat == 1.0 else 0
        if self._in_vain >= self.config["patience"]:
            log.warning(
                "the last %d groups had equal rewards each: they teach nothing, and a loss of 0 is "
                "right. Is every answer wrong (all_wrong), or unreadable? See what "
                "--dry-run shows of answers and rewards. Is every answer right (all_correct)? Ask "
                "harder questions. Else raise num_generations or the temperature",
                self._in_vain,
            )
            self._in_vain = 0


def objective(config: dict[str, Any], devices: int = 1) -> rl.Objective:
    """The loss of a configuration, once its keys have been found to make sense; UsageError.

    `devices` are those that a batch is split over.
    """

    def wrong(key: str, why: str) -> UsageError:
        return UsageError(f"--config.{key} is {config[key]!r}; {why}")

    for key, choices in (("views", (*EXPANSIONS, "steps")), ("advantage", tuple(ADVANTAGES))):
        if config[key] not in choices:
            raise wrong(key, f"choose from {', '.join(choices)}")
    if config["num_generations"] < 2:
        raise wrong("num_generations", "answers are compared with each other: at least 2")
    for key in ("batch", "micro_batches", "num_minibatches", "num_iterations",
                "max_completion_length", "watched_generations", "num_views"):  # fmt: skip
        if config[key] < 1:
            raise wrong(key, "it must be at least 1")
    for key in ("temperature", "top_p"):
        if not config[key] > 0:
            raise wrong(key, "it must be positive")
    shares = config["num_minibatches"] * config["micro_batches"]
    if config["batch"] % shares:
        raise wrong("batch", f"num_minibatches x micro_batches = {shares} must divide it")
    if config["batch"] % (shares * devices):
        raise wrong("batch", f"{shares * devices} must divide it, to split it over the mesh: "
                    "num_minibatches x micro_batches x data x fsdp")  # fmt: skip
    if config["answer_by"] not in ("word", "letter"):
        raise wrong("answer_by", "choose from word, letter")
    own = {key: config[key] for key in rl.Objective.__annotations__ if key != "max_tokens"}
    try:
        return rl.Objective(max_tokens=config["max_completion_length"], **own)
    except ValueError as error:
        raise UsageError(f"--config.{error}") from None


def _filled(rewards: Rewards) -> tuple[np.ndarray, np.ndarray]:
    """Rewards with 0 where there is none, float32, and where there is one."""
    return np.nan_to_num(rewards.total).astype(np.float32), rewards.valid
