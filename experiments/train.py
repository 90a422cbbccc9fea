"""`saccade train`: one loop for every recipe; interrupted, it goes on where it was."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.arguments import Parser, UsageError, plain
from experiments.outputs import take

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from experiments.assembly import Assembly
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
    try:
        return _trained(config, out, dry_run=dry_run)
    except OSError as error:  # a full disk, most of all
        log.error("%s; what was kept before stays, and the same command goes on from there", error)
        return 1


def _trained(config: dict[str, Any], out: Path, *, dry_run: bool) -> int:
    import jax

    import vlm
    from experiments import hosts, step
    from experiments.checkpoint import Checkpoints
    from experiments.journal import Metrics
    from experiments.mesh import read_mesh
    from experiments.rewards import RewardError

    # 1. what is trained, how and where
    hosts.join(*(config[key] for key in hosts.KEYS))
    mesh = read_mesh(config["mesh"])
    found, recipe = _recipe(config, mesh)
    rule = step.optimizer(config, config["steps"] * recipe.updates)
    assembly, state = step.start(recipe.module, rule, config, mesh)
    how = (recipe.parts, config["ema_decay"], recipe.spread)
    update = step.updater(assembly, rule, recipe.loss, *how)
    if dry_run:
        with closing(recipe):
            recipe.show(assembly.driver(state.params), recipe.prompts(0))
        return 0
    # Where a run goes on, on how many devices of how many processes, changes none of its numbers.
    if hosts.first():
        take(out, config, free=["mesh", *hosts.KEYS])
    hosts.wait("folder")
    keeping = {"keep": config["keep"], "best": recipe.best}
    with (
        Checkpoints(out / "checkpoints", **keeping) as checkpoints,
        closing(recipe),
        jax.default_matmul_precision(config["matmul_precision"]),
        _told() as told,
    ):
        # 2. where it stands
        state = checkpoints.latest(state)
        start = int(state.step) // recipe.updates
        metrics = Metrics(out, start, config)
        # 3. the loop
        try:
            for done, prompts in _stream(recipe.prompts, start, config["steps"]):
                batches = experience(recipe, assembly, state, prompts, metrics)
                if done == start + 1 and not isinstance(recipe, Supervised):
                    first = (recipe.loss, batches[0], recipe.parts)
                    _check_memory(step.memory(assembly, state, *first))
                for batch in batches:
                    state, values = update(state, batch)
                    metrics.add(values)
                ended = any(hosts.gather(bool(told)))
                last, seen = done == config["steps"], {}
                if recipe.evaluates(done):
                    look = partial(recipe.evaluate, assembly.driver(state.result))
                    seen = recipe.evaluated(hosts.all_or_none(look, RewardError))
                    metrics.add(seen)
                if done % config["log_every"] == 0 or last or ended:
                    metrics.write(done)
                    metrics.list_failures(recipe.failures())
                if done % config["save_every"] == 0 or recipe.best in seen or last or ended:
                    checkpoints.save(done, state, seen)
                    metrics.report(done)
                if ended and not last:
                    log.info("stopped after step %d; the same command goes on from there", done)
                    return 1
        except RewardError as error:
            done = int(state.step) // recipe.updates
            checkpoints.save(done, state)
            log.error("%s; step %d is kept, and the same command goes on from there", error, done)
            return 1
        finally:
            metrics.close()
        state = checkpoints.best(state)
    # 4. what came of it
    model = step.cast(recipe.model(assembly.merged(state.result)), "bfloat16")
    if hosts.first():
        vlm.save(replace(found, model=model, trained=recipe.trained), out / "export")
        log.info("the model is in %s", out / "export")
    hosts.wait("export")
    return 0


def experience(
    recipe: Supervised | Method,
    assembly: Assembly,
    state: TrainState,
    prompts: Any,
    metrics: Metrics,
) -> list[Any]:
    """Prompts -> the batches of the next updates; supervised ones are that already."""
    from experiments.hosts import all_or_none
    from experiments.rewards import RewardError

    if isinstance(recipe, Supervised):
        return [prompts]
    policy = assembly.driver(state.params)
    # Of several processes each has its share of B; they compare rewards before they go on.
    rollouts = all_or_none(partial(recipe.sample, policy, prompts), RewardError)  # [B, M, G, L]
    rewards = all_or_none(partial(recipe.reward, rollouts), RewardError)  # [B, M, G]
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
    spread: Callable
    """Puts a batch on the mesh; every process makes all of it."""
    updates: int = 1
    """Made of what one call of `prompts` gives."""
    parts: int = 1
    """Micro-batches of an update."""
    trained: bool = True
    best: str = ""
    """No figure of an evaluation."""

    def model(self, module: Any) -> Any:
        """What is exported of the module."""
        return module.model

    def evaluates(self, done: int) -> bool:
        """Never: `saccade evaluate` does."""
        return False

    def failures(self) -> list[dict[str, str]]:
        """None: nothing is read."""
        return []

    def close(self) -> None:
        """Nothing is open."""

    def show(self, *_: Any) -> None:
        """Raises UsageError: there is nothing to show."""
        raise UsageError("--dry-run shows what a policy says; supervised training asks nothing")


def _recipe(config: dict[str, Any], mesh: Mesh | None) -> tuple[VLM, Supervised | Method]:
    """The model that is trained, and the recipe that a configuration names. Raises UsageError."""
    from flax import nnx

    import vlm
    from experiments import assembly
    from experiments.mesh import placement, spread

    assembly.check(config)
    place = None if mesh is None else placement(mesh)
    # What is trained is float32; with adapters none of the model's own parameters are.
    dtype = config["compute_dtype"] if config["lora_rank"] else "float32"
    try:
        if config["recipe"] == "sft":
            from experiments import lessons, sft

            if config["warmup_steps"] and (config["freeze_tower"] or config["lora_rank"]):
                raise UsageError(
                    "--config.warmup_steps teach the tower, and it is frozen; make them 0"
                )

            drawn = config["fresh"] and not Path(config["model"]).is_dir()
            seed = config["seed"] if drawn else None
            found = vlm.load(config["model"], dtype=dtype, seed=seed, place=place)
            if config["decoder"]:
                other = vlm.load(config["decoder"], dtype=dtype).model
                found = replace(found, model=sft.with_decoder(found.model, other))
            pupil = sft.Pupil(found.model, rngs=nnx.Rngs(config["seed"]))
            how = {name: config[name] for name in ("shares", "unroll", "remat")}
            teacher = lessons.Teacher(found.processor, config)
            return found, Supervised(pupil, teacher, partial(sft.loss, **how), spread)
        if config["recipe"] == "rl":
            from experiments.method import Method

            found = vlm.load(config["model"], dtype=dtype, place=place)
            return found, Method(found, config, mesh)
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
            f"{limit / 1e9:.1f}: raise --config.micro_batches, set remat, spread it by mesh, or "
            "lower batch, num_generations or frames"
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
