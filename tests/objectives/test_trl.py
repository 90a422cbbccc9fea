"""TRL's own GRPO trainer on a toy batch: its advantages, losses, gradients and logged figures.

The trainer generates with a tiny random model and scores; then the policy is moved, so that ratios
are not 1, and clip. Runs where the extra `peers` is installed.
"""

import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import objectives as o

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the extra `peers`"),
    pytest.mark.filterwarnings("ignore"),
]
GROUP, LENGTH, BETA = 4, 6, 0.1
# By order of generation. Both None: no reward at all; one None: a reward that does not apply. The
# twos are a group without signal.
SCORES = [1.0, 0.0, 0.5, 2.0, 0.3, None, 0.1, 0.9, 2.0, 2.0, 2.0, 2.0]
OTHERS = [0.2, 0.1, 0.9, 0.4, 0.0, None, 1.0, 0.0, 0.3, None, 0.1, 0.6]


def scores(completions, **kwargs):
    return SCORES


def others(completions, **kwargs):
    return OTHERS


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
        import trl
        from datasets import Dataset
        from tokenizers import Tokenizer, models, pre_tokenizers

        folder = tmp_path_factory.mktemp("trl")
        words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 8)}}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, eos_token_id=1,
            bos_token_id=None, initializer_range=0.4, max_position_embeddings=64,
        )  # fmt: skip
        transformers.Qwen2ForCausalLM(config).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        arguments = trl.GRPOConfig(
            output_dir=str(folder / "out"), per_device_train_batch_size=len(SCORES),
            num_generations=GROUP, max_completion_length=LENGTH, beta=BETA, num_iterations=2,
            epsilon=0.2, epsilon_high=0.28, use_cpu=True, bf16=False, report_to=[], seed=3,
            gradient_checkpointing=False, use_bias_correction_kl=False, disable_dropout=True,
            model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model=str(folder / "model"),
            reward_funcs=[scores, others],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["w2 w3", "w4 w5 w6", "w7"]}),
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
    return trainer


def generate(trainer, **settings):
    """TRL's batch: ids, masks, advantages, log-probs of the sampling policy and the reference."""
    import torch

    for name, value in settings.items():
        setattr(trainer, name, value)
    prompts = ["w2 w3", "w4 w5 w6", "w7"]
    torch.manual_seed(0)
    rows = [{"prompt": prompt} for prompt in prompts for _ in range(GROUP)]
    return trainer._generate_and_score_completions(rows)


@pytest.fixture(scope="module")
def batch(trainer):
    """One batch, after which the policy has moved, and its arrays as ours: [3, 4, L]."""
    import torch

    trainer._metrics["train"].clear()
    inputs = generate(trainer, reward_weights=torch.tensor([1.0, 0.0]))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].shape[1]
    logp, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, attention, length, compute_entropy=True
    )
    arrays = {
        "logp": logp, "behaviour": inputs["old_per_token_logps"],
        "reference": inputs["ref_per_token_logps"], "entropies": entropies,
    }  # fmt: skip
    arrays = {k: jnp.array(v.detach().numpy()).reshape(3, GROUP, -1) for k, v in arrays.items()}
    arrays["mask"] = jnp.array(inputs["completion_mask"].numpy() > 0).reshape(3, GROUP, -1)
    arrays["advantages"] = jnp.array(inputs["advantages"].numpy()).reshape(3, GROUP)
    lengths = np.asarray(arrays["mask"]).sum(-1)
    ratios = np.exp(np.asarray(arrays["logp"] - arrays["behaviour"]))[np.asarray(arrays["mask"])]
    # The batch can tell the losses apart: lengths differ, and both clips bind.
    assert len(np.unique(lengths)) > 2 and (ratios < 0.8).any() and (ratios > 1.28).any()
    return inputs, arrays


ONE_EACH = np.array(
    [[np.nan if x is None else x for x in row] for row in (SCORES, OTHERS)], np.float32
).reshape(2, 3, GROUP)
VALID = np.isfinite(ONE_EACH)


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_advantages(trainer, scaling):
    import torch

    inputs = generate(trainer, scale_rewards=scaling, reward_weights=torch.tensor([1.0, 1.0]))
    trainer.scale_rewards = "group"
    total = np.nansum(ONE_EACH, axis=0, dtype=np.float32)
    ours = {"group": o.group_zscore, "batch": o.batch_zscore, "none": o.group_centred}[scaling]
    ours = ours(total, VALID.any(0)).reshape(-1)
    compare(ours, inputs["advantages"].numpy(), f"advantages, {scaling}")


def test_the_share_without_signal(trainer, batch):
    logged = trainer._metrics["train"]["frac_reward_zero_std"][0]
    assert float(o.zero_signal_share(ONE_EACH[0], VALID[0])) == pytest.approx(logged) == 1 / 3


def test_gdpo(trainer):
    import torch

    settings = {"reward_weights": torch.tensor([1.0, 0.5])}
    inputs = generate(trainer, multi_objective_aggregation="normalize_then_sum", **settings)
    trainer.multi_objective_aggregation = "sum_then_normalize"
    ours = o.gdpo(ONE_EACH, VALID, weights=np.array([1.0, 0.5], np.float32))
    compare(ours.reshape(-1), inputs["advantages"].numpy(), "advantages, GDPO")


def clipped(level, reduction, **options):
    def loss(logp, behaviour, advantages, mask):
        return reduction(
            o.clipped_surrogate(level(logp, behaviour, mask), advantages, high=0.28, **options),
            mask,
        )

    return loss, reduction


def dr_grpo(values, mask):
    return o.constant_length(values, mask, length=LENGTH)


def cispo(logp, behaviour, advantages, mask):
    return o.cispo_loss(logp, behaviour, advantages, mask, cap=1.1)


TOKEN, SEQUENCE = o.token_log_ratio, o.sequence_log_ratio
# TRL's settings, and our composition of the same loss with its reduction, which KL shares.
LOSSES = {
    "grpo": ({}, *clipped(TOKEN, o.mean_of_sequence_means)),
    "bnpo": ({}, *clipped(TOKEN, o.token_mean)),
    "dapo": ({}, *clipped(TOKEN, o.token_mean)),
    "dr_grpo": ({}, *clipped(TOKEN, dr_grpo)),
    "grpo, GSPO level": ({"level": "sequence"}, *clipped(SEQUENCE, o.mean_of_sequence_means)),
    "dapo, GSPO level": ({"level": "sequence"}, *clipped(SEQUENCE, o.token_mean)),
    "grpo, delta": ({"delta": 1.5}, *clipped(TOKEN, o.mean_of_sequence_means, delta=1.5)),
    "cispo": ({"epsilon_high": 1.1}, cispo, o.token_mean),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_losses_and_gradients(trainer, batch, name, beta):
    """Values of the trainer's loss, and its gradient with respect to the log-probabilities."""
    import torch

    settings, loss, reduction = LOSSES[name]
    inputs, ours = batch
    trainer.loss_type = name.split(",")[0]
    trainer.importance_sampling_level = settings.get("level", "token")
    trainer.args.delta = settings.get("delta")
    trainer.epsilon_high = settings.get("epsilon_high", 0.28)
    trainer.beta = beta
    real = trainer._get_per_token_logps_and_entropies
    seen = []

    def watched(*args, **kwargs):
        logp, entropies, extra = real(*args, **kwargs)
        seen.append(logp)
        logp.retain_grad()
        return logp, entropies, extra

    trainer._get_per_token_logps_and_entropies = watched
    try:
        theirs = trainer._compute_loss(trainer.model, dict(inputs))
        theirs.backward()
    finally:
        trainer._get_per_token_logps_and_entropies = real
        trainer.beta, trainer.args.delta, trainer.epsilon_high = BETA, None, 0.28
        trainer.loss_type, trainer.importance_sampling_level = "dapo", "token"

    def total(logp):
        kl = o.kl_estimate(logp, ours["reference"], ours["mask"])
        arrays = ours["behaviour"], ours["advantages"], ours["mask"]
        return loss(logp, *arrays) + beta * reduction(kl, ours["mask"])

    value, gradient = jax.jit(jax.value_and_grad(total))(ours["logp"])
    compare(value, theirs.detach().numpy(), f"{name}, beta {beta}")
    compare(gradient.reshape(12, -1), seen[0].grad.numpy(), f"gradient of {name}, beta {beta}")
    assert isinstance(theirs, torch.Tensor) and float(jnp.abs(gradient).max()) > 1e-3


def test_what_is_logged(trainer, batch):
    inputs, ours = batch
    trainer.loss_type = "grpo"
    trainer._compute_loss(trainer.model, dict(inputs))
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    kl = o.kl_estimate(ours["logp"], ours["reference"], ours["mask"])
    compare(o.token_mean(kl, ours["mask"]), logged["kl"], "kl")
    compare(o.token_mean(ours["entropies"], ours["mask"]), logged["entropy"], "entropy")
    ratio = o.token_log_ratio(ours["logp"], ours["behaviour"], ours["mask"])
    low, high = o.clip_shares(ratio, ours["advantages"], ours["mask"], high=0.28)
    compare(low, logged["clip_ratio/low_mean"], "clip_ratio/low_mean")
    compare(high, logged["clip_ratio/high_mean"], "clip_ratio/high_mean")
    assert float(low) > 0 and float(high) > 0


def test_masks_and_entropy(trainer, batch):
    import torch
    from trl.trainer.utils import entropy_from_logits

    _, ours = batch
    flat = {name: torch.tensor(np.array(ours[name])).reshape(12, -1) for name in ours if name}
    theirs = trainer.get_high_entropy_mask(flat["entropies"], flat["mask"].float(), 0.8)
    kept = o.high_entropy_keep(ours["entropies"], ours["mask"])
    np.testing.assert_array_equal(np.asarray(kept).reshape(12, -1), theirs.numpy())
    advantages = torch.tensor(np.array(ours["advantages"])).reshape(12, 1)
    theirs = trainer.get_off_policy_mask(
        advantages, flat["logp"], flat["behaviour"], flat["mask"].float(), 0.05
    )
    kept = o.off_policy_keep(
        ours["logp"], ours["behaviour"], ours["advantages"], ours["mask"], threshold=0.05
    )
    assert 0 < float(theirs.sum()) < 12
    np.testing.assert_array_equal(
        np.asarray(kept).reshape(12, -1), theirs.numpy().astype(bool) & flat["mask"].numpy()
    )
    logits = np.random.default_rng(0).normal(size=(3, 7, 24)).astype(np.float32)
    compare(o.entropy(logits), entropy_from_logits(torch.tensor(logits)).numpy(), "entropy")


def test_overlong_penalty():
    from trl.rewards import get_soft_overlong_punishment

    lengths = np.array([0, 80, 81, 90, 99, 100, 101, 500])
    theirs = get_soft_overlong_punishment(100, 20)([[0] * int(n) for n in lengths])
    compare(o.overlong_penalty(lengths, longest=100, cache=20), np.array(theirs), "overlong")


def compare(ours, theirs, what):
    difference = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
    print(f"{what}: max |difference| {difference:.1e}")
    assert difference <= 1e-5, what
