"""`saccade train`: one loop for every recipe; interrupted, it goes on where it was."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.arguments import Parser, UsageError, plain
from experiments.outputs import take

if TYPE_CHECKING:
    from experiments.journal import Metrics
    from experiments.method import Method
    from experiments.step import TrainState
    from vlm import VLM

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        "train",
        "--config=FILE[:ARG] [--out=DIR] [--dry-run] [--config.KEY=VALUE ...]",
        "Trains by a recipe; writes metrics.jsonl, checkpoints and, at the end, a model to --out.",
    )
    parser.add_config("sft.py:tiny")
    parser.add_argument("--out", default="runs/train", help="folder of this run; it is taken up")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show answers to a few prompts and their rewards; train nothing",
    )
    found = parser.parse(argv)
    return run(plain(found.config), Path(found.out), dry_run=found.dry_run)


def run(config: dict[str, Any], out: Path, *, dry_run: bool = False) -> int:
    """Trains to config["steps"] and exports the model; 0, or 1 where it had to stop before."""
    from flax import nnx

    import vlm
    from experiments import step
    from experiments.checkpoint import Checkpoints
    from experiments.journal import Metrics
    from experiments.mesh import single
    from experiments.rewards import RewardError

    # 1. what is trained, and how
    found, recipe = _recipe(config)
    rule = step.optimizer(config, config["steps"] * recipe.updates)
    graph, state = step.start(recipe.module, rule)
    update = step.updater(graph, rule, recipe.loss, recipe.parts)
    if dry_run:
        recipe.show(single(recipe.module), recipe.prompts(0))
        return 0
    take(out, config)
    with Checkpoints(out / "checkpoints", keep=config["keep"]) as checkpoints, _told() as told:
        # 2. where it stands
        state = checkpoints.latest(state)
        start = int(state.step) // recipe.updates
        metrics = Metrics(out, start, config)
        # 3. the loop
        try:
            for done, prompts in _stream(recipe.prompts, start, config["steps"]):
                batches = experience(recipe, graph, state, prompts, metrics)
                if done == start + 1 and not isinstance(recipe, Supervised):
                    _check_memory(step.memory(graph, state, recipe.loss, batches[0], recipe.parts))
                for batch in batches:
                    state, values = update(state, batch)
                    metrics.add(values)
                last = done == config["steps"]
                if recipe.evaluates(done):
                    metrics.add(recipe.evaluated(single(nnx.merge(graph, state.params))))
                if done % config["log_every"] == 0 or last or told:
                    metrics.write(done)
                if done % config["save_every"] == 0 or last or told:
                    checkpoints.save(done, state)
                    metrics.report(done)
                if told and not last:
                    log.info("stopped after step %d; the same command goes on from there", done)
                    return 1
        except RewardError as error:
            done = int(state.step) // recipe.updates
            checkpoints.save(done, state)
            log.error("%s; step %d is kept, and the same command goes on from there", error, done)
            return 1
        finally:
            metrics.close()
    # 4. what came of it
    model = step.cast(recipe.model(nnx.merge(graph, state.params)), "bfloat16")
    vlm.save(replace(found, model=model, trained=recipe.trained), out / "export")
    log.info("the model is in %s", out / "export")
    return 0


def experience(
    recipe: Supervised | Method, graph: Any, state: TrainState, prompts: Any, metrics: Metrics
) -> list[Any]:
    """Prompts -> the batches of the next updates; supervised ones are that already."""
    from flax import nnx

    from experiments.mesh import single

    if isinstance(recipe, Supervised):
        return [prompts]
    policy = single(nnx.merge(graph, state.params))
    rollouts = recipe.sample(policy, prompts)  # [B, M, G, L]
    rewards = recipe.reward(rollouts)  # [B, M, G]
    advantages = recipe.advantages(rewards)  # [B, M, G]
    batches = recipe.batches(policy, rollouts, rewards, advantages)
    metrics.add(recipe.told(rollouts, rewards))
    metrics.record(rollouts, rewards, advantages)
    return batches


@dataclass(frozen=True)
class Supervised:
    """A recipe whose answers are known; `Method` is the recipe of all that earn rewards."""

    module: Any
    prompts: Callable[[int], Any]
    loss: Callable
    updates: int = 1
    """Made of what one call of `prompts` gives."""
    parts: int = 1
    """Micro-batches of an update."""
    trained: bool = True

    def model(self, module: Any) -> Any:
        """What is exported of the module."""
        return module.model

    def evaluates(self, done: int) -> bool:
        """Never: `saccade evaluate` does."""
        return False

    def show(self, *_: Any) -> None:
        """Raises UsageError: there is nothing to show."""
        raise UsageError("--dry-run shows what a policy says; supervised training asks nothing")


def _recipe(config: dict[str, Any]) -> tuple[VLM, Supervised | Method]:
    """The model that is trained, and the recipe that a configuration names. Raises UsageError."""
    from flax import nnx

    import vlm

    try:
        if config["recipe"] == "sft":
            from experiments import sft

            found = vlm.load(config["model"], dtype="float32", seed=config["seed"])
            pupil = sft.Pupil(found.model, rngs=nnx.Rngs(config["seed"]))
            loss = partial(sft.loss, shares=config["shares"], unroll=config["unroll"])
            return found, Supervised(pupil, sft.Teacher(found.processor, config), loss)
        if config["recipe"] == "rl":
            from experiments.method import Method

            found = vlm.load(config["model"], dtype="float32")
            return found, Method(found, config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    raise UsageError(f"--config.recipe is {config['recipe']!r}; choose from sft, rl")


def _check_memory(needed: int) -> None:
    """Says what an update will hold; UsageError where the device is known to have less."""
    import jax

    log.info("an update holds about %.2f GB", needed / 1e9)
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit", needed)
    if needed > limit:
        raise UsageError(
            f"an update would hold about {needed / 1e9:.1f} GB and the device has "
            f"{limit / 1e9:.1f}: raise --config.micro_batches, or lower batch, num_generations or "
            "frames"
        )


def _stream(make: Callable[[int], Any], start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Batches start to stop - 1, each with the steps that are then done.

    A thread makes them while the device works.
    """
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    source = grain.MapDataset.range(start, stop).map(lambda number: make(int(number)))
    yield from enumerate(source.to_iter_dataset(options), start + 1)


@contextmanager
def _told() -> Iterator[list[int]]:
    """A list that is filled when the process is told to end, so that the loop can end well."""
    told: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: told.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
