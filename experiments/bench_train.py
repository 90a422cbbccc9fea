"""`saccade bench train`: a GRPO step beside that of TRL, and how many videos an hour recipes train.

A step is what `saccade train` does with a batch of prompts: G completions of each are sampled, then
rewarded, and the policy is updated. TRL's GRPOTrainer does the same to the same decoder, in text
(it trains on no video); both are steps in full, taken in turn in one process, in float32 on the
CPU, and their medians count. Nothing is reported unless both find the same advantages, loss and
gradient for the same completions.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from experiments import rl, train
from experiments.arguments import UsageError, plain, read_config
from experiments.bench_score import Compilations, option
from experiments.journal import Metrics
from experiments.mesh import Driver
from experiments.method import Method
from experiments.rollout import Rollouts, sampled
from experiments.workload import WORDS, random_model
from vlm import VLM

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Most that advantages and losses may differ, and gradients, as a share of the largest entry."""
RATE = 1e-6
COUNTED = (
    "counted: sampling, rewards, advantages, loss, gradient, clipping by norm, AdamW; not counted: "
    "compiling, saving, logging. TRL: SDPA, no gradient checkpointing, no vLLM; it computes the "
    "entropy of every token, which it always logs. saccade: prompts prefilled once for their "
    "completions"
)


@dataclass(frozen=True)
class Options:
    """What is run, as the command line has it. Raises UsageError."""

    model: str = option("mini", "whose decoder is trained: mini (35 M parameters) or tiny")
    batch: int = option(2, "prompts of a step")
    generations: int = option(8, "G, completions of each")
    prompts: str = option("64,512", "tokens of a prompt, one workload each")
    completion: int = option(32, "tokens of a completion")
    repeats: int = option(5, "steps of each trainer that are timed, in turn; the median counts")
    recipes: str = option("grpo,spike_rl,crpo,strive", "whose :tiny modes train on videos")
    steps: int = option(4, "of a recipe; the first compiles and does not count")

    def __post_init__(self):
        for name, least in {"batch": 1, "generations": 2, "completion": 1, "repeats": 1,
                            "steps": 2}.items():  # fmt: skip
            if vars(self)[name] < least:
                raise UsageError(f"--{name} must be at least {least}")
        if not all(text.isdigit() and int(text) > 0 for text in self.prompts.split(",")):
            raise UsageError(f"--prompts={self.prompts}: numbers of tokens, with commas")

    @property
    def lengths(self) -> list[int]:
        """Tokens of a prompt, by workload."""
        return [int(text) for text in self.prompts.split(",")]


def bench_train(**values: Any) -> dict[str, Any]:
    """Times steps beside TRL's where it is installed, and recipes; `values` are those of `Options`.

    Raises UsageError, and RuntimeError where the two trainers disagree.
    """
    import jax

    options = Options(**values)
    if jax.default_backend() != "cpu":
        raise UsageError("bench train compares on the CPU: set JAX_PLATFORMS=cpu")
    settings: dict[str, Any] = asdict(options) | {"dtype": "float32", "note": COUNTED}
    figures: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    if all(importlib.util.find_spec(name) for name in ("trl", "torch")):
        settings |= {name: importlib.metadata.version(name) for name in ("trl", "torch")}
        found = random_model(options.model, "float32")
        for length in options.lengths:
            compare(found, options, length, figures, table)
        speedups = [figures[f"speedup_over_trl_{length}"] for length in options.lengths]
        figures = {"speedup_over_trl": min(speedups), **figures}
    else:
        log.warning(
            "no TRL to compare with: pip install 'saccade[peers,parity]', on Python 3.11. "
            "Recipes alone are measured"
        )
    for recipe in filter(None, options.recipes.split(",")):
        rates = videos_per_hour(recipe, options.steps)
        figures[f"videos_per_hour_{recipe}"] = float(np.median(rates))
        table.append({"recipe": recipe, "videos_per_hour": rates})
    if "videos_per_hour_grpo" in figures:
        figures["videos_per_hour"] = figures["videos_per_hour_grpo"]
    return {"settings": settings, "figures": figures, "table": table}


def videos_per_hour(recipe: str, steps: int, *changes: str) -> list[float]:
    """Of each step of `saccade train` with a recipe's :tiny mode, but for the first."""
    changes = (f"--config.steps={steps}", "--config.log_every=1", *changes)
    config = plain(read_config(f"{recipe}.py:tiny", changes))
    with TemporaryDirectory() as folder:
        if train.run(config, Path(folder)):
            raise RuntimeError(f"{recipe} did not train to the end")
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["videos_per_hour"] for line in lines[1:]]


def compare(
    found: VLM,
    options: Options,
    length: int,
    figures: dict[str, float],
    table: list[dict[str, Any]],
) -> None:
    """Both trainers' steps with prompts of `length` tokens; adds figures, and a row for each."""
    texts = sentences(found, options.batch, length)
    with (
        TemporaryDirectory() as folder,
        Compilations() as compiled,
        closing(Ours(found, options, texts, Path(folder))) as ours,
    ):
        theirs = Theirs(found, options, texts, Path(folder))
        figures |= {f"{name}_{length}": gap for name, gap in agreement(ours, theirs).items()}
        trainers: dict[str, Callable[[], None]] = {"saccade": ours.step, "trl": theirs.step}
        for step in trainers.values():
            step()
        warm = compiled.count
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for number in range(options.repeats):
            log.info("prompts of %d tokens: %d of %d", length, number + 1, options.repeats)
            for name, step in trainers.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
        figures[f"compiles_when_warm_{length}"] = compiled.count - warm
    medians = {name: float(np.median(every)) for name, every in seconds.items()}
    figures[f"speedup_over_trl_{length}"] = medians["trl"] / medians["saccade"]
    for name, every in seconds.items():
        row = {"trainer": name, "prompt": length, "completion": options.completion}
        table.append(row | {"median_seconds": medians[name], "seconds": every})


def sentences(found: VLM, count: int, tokens: int) -> list[str]:
    """Texts of random words, of exactly so many tokens."""
    rng = np.random.default_rng(tokens)
    vocabulary, texts = WORDS.split(), []
    while len(texts) < count:
        # Each word is one token at least.
        words = rng.choice(vocabulary, tokens).tolist()
        while len(ids := found.processor.plain(" ".join(words))) > tokens:
            words.pop()
        if len(ids) == tokens:
            texts.append(" ".join(words))
    return texts


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs within groups: the share of even tokens."""
    return [float(np.mean(np.asarray(ids) % 2 == 0)) for ids in completion_ids]


# Ours -----------------------------------------------------------------------------------------


class Texts:
    """Completions of texts, where `rollout.Answers` has those of questions about videos."""

    def __init__(self, found: VLM, config: dict[str, Any], texts: list[str]):
        self._processor, self._config, self._texts = found.processor, config, texts
        ids = np.array([found.processor.plain(text) for text in texts], np.int32)[:, None]
        count, _, length = ids.shape
        places = np.broadcast_to(np.arange(length, dtype=np.int32), (count, 1, 3, length))
        self.ids = ids
        self._prompts = rl.Prompts(
            frames=None,
            ids=ids,
            positions=places,
            valid=np.ones(ids.shape, bool),
            visual=np.full(ids.shape, -1, np.int32),
            start=np.full((count, 1), length, np.int32),
        )

    def prompts(self, number: int, *, split: str = "train") -> tuple[int, rl.Prompts]:
        """Batch `number`: the same texts, and other luck."""
        return number, self._prompts

    def sample(self, run: Driver, batch: tuple[int, rl.Prompts]) -> Rollouts:
        """G completions of each text."""
        number, prompts = batch
        grid = (len(self._texts), 1, self._config["num_generations"])
        rng = np.random.default_rng([self._config["seed"], number])
        seeds = rng.integers(2**32, size=grid, dtype=np.uint32)
        samples = sampled(run, self._processor, prompts, seeds, self._config)
        return self.rollouts(samples)

    def rollouts(self, samples: rl.Samples) -> Rollouts:
        """What rewards are told of completions, however they came about."""
        grid = samples.lengths.shape
        places = list(np.ndindex(grid))
        ids = [samples.tokens[at][: samples.lengths[at]].tolist() for at in places]
        columns = {
            "prompts": [self._texts[b] for b, _, _ in places],
            "completions": [self._processor.decode(each) for each in ids],
            "completion_ids": ids,
            "frames": [[] for _ in places],
            "place": places,
        }
        owner = np.arange(grid[2])[None]
        return Rollouts(
            self._prompts, samples, owner, grid, columns, tuple(() for _ in self._texts)
        )


class Ours:
    """saccade's step: the lines of `train.run`'s loop."""

    def __init__(self, found: VLM, options: Options, texts: list[str], folder: Path):
        from experiments import step

        config = plain(read_config("grpo.py:tiny"))
        config |= {
            "batch": len(texts),
            "num_generations": options.generations,
            "max_completion_length": options.completion,
            "loss_type": "dapo",  # TRL's default
            "learning_rate": RATE,
            "freeze_tower": True,  # as there is none in what TRL trains
            "rewards": [f"{__file__}:{even.__name__}"],
        }
        self.texts = Texts(found, config, texts)
        self.recipe = Method(found, config, collector=self.texts)
        rule = step.optimizer(config, config["steps"])
        self.assembly, state = step.start(found.model, rule, config)
        self._state = copied(state)  # an update reuses the memory of what it replaces
        self._update = step.updater(self.assembly, rule, self.recipe.loss)
        self._metrics, self._number = Metrics(folder, 0, config), 0
        self._completion = options.completion

    def step(self) -> None:
        """One step, to its end."""
        import jax

        prompts = self.recipe.prompts(self._number)
        self._number += 1
        batches = train.experience(self.recipe, self.assembly, self._state, prompts, self._metrics)
        for batch in batches:
            self._state, values = self._update(self._state, batch)
            self._metrics.add(values)
        jax.block_until_ready(self._state)
        if not (batches[0].mask.sum(-1) == self._completion).all():
            raise RuntimeError("a completion of ours ended early")

    def learned(self, ids: np.ndarray) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
        """Advantages, loss, and gradient by its names on the hub, for given completions."""
        import jax
        from safetensors.numpy import load_file

        from vlm.weights import save_weights

        grid = ids.shape[:-1]
        full = np.full(grid, ids.shape[-1])
        samples = rl.Samples(ids, full, full > 0, np.zeros(ids.shape, np.float32))
        policy = self.assembly.driver(self._state.params)
        rollouts = self.texts.rollouts(samples)
        rewards = self.recipe.reward(rollouts)
        advantages = self.recipe.advantages(rewards)
        (batch,) = self.recipe.batches(policy, rollouts, rewards, advantages)

        def loss(params):
            return self.recipe.loss(self.assembly.module(params), batch)[0]

        value, gradient = jax.jit(jax.value_and_grad(loss))(self._state.params)
        with TemporaryDirectory() as folder:
            save_weights(self.assembly.module(gradient), folder)
            [file] = Path(folder).glob("*.safetensors")
            named = load_file(file)
        return advantages, float(value), named

    def close(self) -> None:
        self._metrics.close()


def copied(state: Any) -> Any:
    """The same arrays at another place."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(jnp.copy, state)


# TRL's ----------------------------------------------------------------------------------------


class Theirs:
    """A step of TRL's GRPOTrainer, as transformers' training loop does it, without logging."""

    def __init__(self, found: VLM, options: Options, texts: list[str], folder: Path):
        import trl
        from datasets import Dataset
        from transformers import AutoTokenizer

        from vlm.loading import TOKENIZER

        model, rows = text_model(found), len(texts) * options.generations
        arguments = trl.GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0,
            gradient_checkpointing=False,
            per_device_train_batch_size=rows, num_generations=options.generations,
            max_completion_length=options.completion, num_iterations=1, beta=0.0,
            learning_rate=RATE, max_grad_norm=1.0, mask_truncated_completions=False,
            generation_kwargs={"min_new_tokens": options.completion},
        )  # fmt: skip
        self.trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=[even],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=AutoTokenizer.from_pretrained(TOKENIZER),
        )
        self.trainer.create_optimizer_and_scheduler(1000)
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.train()
        self._rows = [{"prompt": text} for text in texts for _ in range(options.generations)]
        self._completion = options.completion

    def step(self) -> None:
        """One step, to its end."""
        trainer = self.trainer
        trainer.training_step(trainer.model, self._rows, None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        if trainer._metrics["train"]["completions/min_length"][-1] != self._completion:
            raise RuntimeError("a completion of TRL's ended early")

    def learned(self) -> tuple[dict[str, np.ndarray], np.ndarray, float, dict[str, np.ndarray]]:
        """Its batch, and the advantages, loss and gradient that it finds for it."""
        trainer = self.trainer
        inputs = trainer._generate_and_score_completions(self._rows)
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, dict(inputs))
        loss.backward()
        gradient = {
            name: parameter.grad.numpy().copy()
            for name, parameter in trainer.model.named_parameters()
        }
        trainer.model.zero_grad()
        batch = {name: inputs[name].numpy() for name in ("prompt_ids", "completion_ids")}
        return batch, inputs["advantages"].numpy(), loss.item(), gradient


def text_model(found: VLM) -> Any:
    """Our decoder's weights in `transformers`, as the language model that it is without images."""
    import transformers

    from experiments import peers

    text = found.config.text
    config = transformers.Qwen2Config(
        vocab_size=text.vocab, hidden_size=text.hidden, intermediate_size=text.mlp,
        num_hidden_layers=text.layers, num_attention_heads=text.heads,
        num_key_value_heads=text.kv_heads, rms_norm_eps=text.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        tie_word_embeddings=text.tied, attn_implementation="sdpa", dtype="float32",
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    whole = peers.load(found)
    model.model.load_state_dict(whole.model.language_model.state_dict())
    if not text.tied:
        model.lm_head.load_state_dict(whole.lm_head.state_dict())
    return model


def agreement(ours: Ours, theirs: Theirs) -> dict[str, float]:
    """How far apart the trainers are for TRL's completions; RuntimeError beyond TOLERANCE."""
    batch, their_advantages, their_loss, their_gradient = theirs.learned()
    asked, said = batch["prompt_ids"], batch["completion_ids"]
    count = len(ours.texts.ids)
    if not (asked.reshape(count, -1, asked.shape[-1]) == ours.texts.ids).all():
        raise RuntimeError("TRL was asked other prompts than saccade")
    ids = said.astype(np.int32).reshape(count, 1, -1, said.shape[-1])
    advantages, loss, gradient = ours.learned(ids)
    largest = max(float(np.abs(part).max()) for part in their_gradient.values())
    gaps = {
        "agreement_advantages": np.abs(advantages.reshape(-1) - their_advantages).max(),
        "agreement_loss": abs(loss - their_loss),
        "agreement_gradient": max(
            np.abs(gradient[name] - part).max() / largest for name, part in their_gradient.items()
        ),
    }
    if not largest > 0 or not all(gap <= TOLERANCE for gap in gaps.values()):
        told = ", ".join(f"{name} {gap:.2g}" for name, gap in gaps.items())
        raise RuntimeError(f"saccade and TRL disagree: {told}; at most {TOLERANCE} was expected")
    return {name: float(gap) for name, gap in gaps.items()}
