"""What is trained and what is not: adapters, a frozen tower, dtypes, averages, the best kept."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pupil
import pytest
from flax import nnx

import vlm
from experiments import rl, step, train
from experiments.arguments import UsageError, plain, read_config
from experiments.assembly import OFF, untouched
from experiments.checkpoint import Checkpoints, _flat
from experiments.method import Method
from vlm.model import Tokens, logits, run

KERNELS = {f"attention.{name}" for name in "qkvo"} | {
    f"mlp.{name}" for name in ("gate", "up", "down")
}


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


class Line(nnx.Module):
    """w x, by a layer that computes in a dtype of its own, as those of models do."""

    def __init__(self, w=1.0):
        self.layer = nnx.Linear(1, 1, use_bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
        self.layer.kernel[...] = jnp.full((1, 1), w)


def slope(module, batch):
    """A loss whose gradient is the batch."""
    return jnp.sum(module.layer(batch)).astype(jnp.float32), {}


def w(params):
    return float(params["layer"]["kernel"][...][0, 0])


def begin(module, **options):
    rule = optax.sgd(1.0)
    assembly, state = step.start(module, rule, OFF | {"seed": 0} | options)
    return assembly, state, lambda loss, **how: step.updater(assembly, rule, loss, **how)


def test_an_average_follows_the_parameters():
    _, state, updater = begin(Line(), ema_decay=0.75)
    update = updater(slope, decay=0.75)
    for gradient in (1.0, 2.0, np.nan):  # w: 1, 0, -2, -2; the average: 1, 0.75, 0.0625, 0.0625
        state, _ = update(state, np.full((1, 1), gradient, np.float32))
    assert (w(state.params), w(state.average), state.step) == (-2.0, 0.0625, 3)
    assert w(state.result) == 0.0625


def test_options_that_are_off_leave_a_state_as_it_was():
    _, state, _ = begin(Line())
    assert list(_flat(state)) == ["0000.step", "0001.params['layer']['kernel'].value"]


def grpo(*changes):
    return pupil.config("grpo", *changes)


def test_parameters_are_kept_in_float32_and_used_in_bfloat16():
    assembly, state, updater = begin(Line(), compute_dtype="bfloat16")
    layer = assembly.module(state.params).layer
    assert layer.kernel.dtype == layer(jnp.ones((1, 1))).dtype == jnp.bfloat16
    update = updater(slope)
    for _ in range(4):  # each of them less than bfloat16 can tell from 1
        state, _ = update(state, np.full((1, 1), 2.0**-9, np.float32))
    assert w(state.params) == 1 - 2.0**-7
    assert float(assembly.module(state.params).layer.kernel[0, 0]) == 1 - 2.0**-7


def tokens():
    ids = np.arange(5, 11, dtype=np.int32)[None, None]
    positions = np.broadcast_to(np.arange(6, dtype=np.int32), (3, 1, 1, 6))
    return Tokens(ids, positions, np.ones(ids.shape, bool))


def language(model, batch):
    """Minus the log-probability of each next token."""
    hidden, _ = run(model, batch)
    logp = jax.nn.log_softmax(logits(model, hidden)[0, 0, :-1])
    return -jnp.mean(logp[jnp.arange(5), batch.ids[0, 0, 1:]]), {}


def values(tree):
    """Arrays by dotted path."""
    tree = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    entries = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): np.array(
            leaf
        )
        for path, leaf in entries
    }


def test_adapters_are_all_that_is_trained():
    model = pupil.make().model
    before = values(model)
    assembly, state, updater = begin(model, lora_rank=2, lora_alpha=6.0)
    names = {f"decoder.layers.{name}.{part}" for name in KERNELS for part in "ab"}
    assert values(state.params).keys() == names
    np.testing.assert_array_equal(said(assembly.module(state.params)), said(model))
    update, losses = updater(language), []
    for _ in range(3):
        state, metrics = update(state, tokens())
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0] - 1e-3
    own, merged = values(state.params), assembly.merged(state.params)
    assert isinstance(merged.decoder.layers.attention.q, nnx.Linear)
    after = values(merged)
    for name, array in before.items():
        layer, added = name.removesuffix(".kernel"), 0.0
        if f"{layer}.a" in own:
            added = 3.0 * np.einsum("lir,lro->lio", own[f"{layer}.a"], own[f"{layer}.b"])
            assert np.abs(added).max() > 1e-4
        np.testing.assert_allclose(after[name], array + added, atol=1e-5)
    np.testing.assert_allclose(said(merged), said(assembly.module(state.params)), atol=1e-3)
    assert np.abs(said(merged) - said(model)).max() > 0.1
    # The base is what it was, and what is compared with it shares its arrays.
    reference = nnx.state(untouched(model, OFF | {"lora_rank": 2}))
    for leaf, own in zip(jax.tree.leaves(reference), jax.tree.leaves(assembly.frozen), strict=True):
        assert leaf is own


def said(model):
    hidden, _ = run(model, tokens())
    return logits(model, hidden)


def test_the_optimizer_knows_of_adapters_only():
    rule = step.optimizer({"learning_rate": 0.1, "muon_learning_rate": 0.1, "ramp_steps": 0,
                           "decay_share": 0.0, "weight_decay": 0.0, "clip": 1.0}, 4)  # fmt: skip
    _, state = step.start(pupil.make().model, rule, OFF | {"lora_rank": 2, "seed": 0})
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kept = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 2]
    assert sum(leaf.size for leaf in kept) == 2 * size  # two moments of Adam


@pytest.mark.parametrize("warmup", [3, 8])
def test_after_the_warm_up_the_optimizer_begins_anew(warmup):
    config = {"learning_rate": 0.1, "muon_learning_rate": 0.1, "ramp_steps": 2,
              "decay_share": 0.5, "weight_decay": 0.0, "clip": 1.0}  # fmt: skip
    warm = step.optimizer({**config, "warmup_steps": warmup}, warmup + 6)
    fresh = step.optimizer(config, 6)
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    state, other = warm.init(params), fresh.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        for at in range(warmup + 6):
            there = at >= warmup
            gradient = {"kernel": jnp.full((3, 2), at % 2 - 0.5), "bias": jnp.ones(2) * there}
            changes, state = warm.update(gradient, state, params)
            assert bool(changes["kernel"].any()) == (at not in (0, warmup))  # it rises from 0
            assert bool(changes["bias"].any()) == (at > warmup)
            if there:
                wanted, other = fresh.update(gradient, other, params)
                same = partial(np.testing.assert_allclose, rtol=1e-6)
                jax.tree.map(same, changes, wanted)


def test_a_frozen_tower_stays_as_it_is():
    model = pupil.make().model
    config = OFF | {"freeze_tower": True}
    other = untouched(model, config)
    assembly, state, updater = begin(model, freeze_tower=True)
    assert not any("vision" in name for name in values(state.params))
    assert all("vision" in name for name in values(assembly.frozen))
    before = values(assembly.module(state.params))
    state, _ = updater(language)(state, tokens())
    after = values(assembly.module(state.params))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "embed.embedding" in changed and "decoder.layers.mlp.up.kernel" in changed
    assert not any("vision" in name for name in changed)
    # A reference survives that updates reuse the memory of what they replace.
    jax.tree.map(np.testing.assert_array_equal, values(other), before)


def test_the_best_is_kept_beside_the_last(tmp_path):
    _, state, updater = begin(Line())
    update = updater(slope)
    with Checkpoints(tmp_path, keep=1, best="eval/reward") as checkpoints:
        for number, figures in enumerate(
            [None, {"eval/reward": 0.5}, {"eval/reward": np.nan}, {"eval/reward": 0.25}, {}], 1
        ):
            state, _ = update(state, np.ones((1, 1), np.float32))
            checkpoints.save(number, state, figures)
    names = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
    assert names == {"2", "5"}
    with Checkpoints(tmp_path, keep=1, best="eval/reward") as checkpoints:
        assert w(checkpoints.best(state).params) == -1.0
        assert w(checkpoints.latest(state).params) == -4.0
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.best(state) is state


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest(None) is None
        checkpoints.save(1, {"v": np.zeros(2), "w": np.zeros(3)})
    for other, told in (
        ({"v": np.zeros(2), "w": np.zeros(4)}, r"\['w'\] is \(3,\) there and \(4,\) here"),
        ({"v": np.zeros(2)}, r"\['w'\] is \(3,\) there and missing here"),
    ):
        wrong = pytest.raises(UsageError, match=rf"another model: .*{told}; choose another")
        with Checkpoints(tmp_path, keep=1) as checkpoints, wrong:
            checkpoints.latest(other)


@pytest.mark.filterwarnings("ignore")  # of threads of Orbax that end by the error
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, full_disk):
    def state(value):
        return {"w": np.random.default_rng(value).normal(size=10_000)}

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state(1))
    told = pytest.raises(OSError, match="no checkpoint can be written: File too large")
    with full_disk(20_000), told, Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(2, state(2))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        np.testing.assert_array_equal(checkpoints.latest(state(0))["w"], state(1)["w"])
        checkpoints.save(2, state(2))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        np.testing.assert_array_equal(checkpoints.latest(state(0))["w"], state(2)["w"])


def test_recomputing_activations_saves_memory():
    needed = []
    for remat in (False, True):
        found = pupil.make()
        own = Method(found, pupil.config("grpo", f"--config.remat={remat}"))
        batch = experience(own)
        assembly, state = step.start(found.model, optax.sgd(1.0))
        needed.append(step.memory(assembly, state, own.loss, batch))
    assert needed[1] < 0.8 * needed[0]


def experience(own):
    """A batch about the first prompts, with answers and rewards out of the blue."""
    prompts = own.prompts(0).trained
    rng = np.random.default_rng(0)
    shape = (*prompts.start.shape, 2, 4)
    rows = rng.normal(size=shape[:3]).astype(np.float32)
    alike = np.ones(shape[0], np.float32)
    return rl.Experience(
        prompts, rng.integers(5, 300, shape, np.int32), np.ones(shape, bool), rows,
        np.zeros(shape, np.float32), alike * 8, alike * 32,
    )  # fmt: skip


@pytest.mark.slow
def test_recomputing_activations_changes_no_gradient():
    found, gradients = pupil.make(), []
    for remat in (False, True):
        own = Method(found, pupil.config("grpo", f"--config.remat={remat}"))
        _, state, updater = begin(pupil.make().model)
        before = jax.device_get(state.params)
        state, _ = updater(own.loss)(state, experience(own))
        gradients.append(jax.tree.map(np.subtract, before, jax.device_get(state.params)))
    assert optax.tree.norm(gradients[0]) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lora_rank=-1", "lora_rank is -1; it must be positive"),
        ("lora_alpha=0", "lora_alpha is 0.0; it must be positive"),
        ("ema_decay=1", "ema_decay is 1.0; it must be at least 0 and less than 1"),
        ("compute_dtype=float8", "compute_dtype is 'float8'; choose from float32, bfloat16"),
        ("matmul_precision=int8", "choose from default, BF16_BF16_F32"),
        ("best=eval/reward", "best is 'eval/reward'; set eval_every"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(tmp_path, change, message):
    config = grpo(f"--config.{change}")
    config["model"] = pupil.saved(tmp_path / "pupil")
    with pytest.raises(UsageError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_frozen_tower_cannot_be_warmed_up(tmp_path):
    for change in ("freeze_tower=true", "lora_rank=4"):
        config = plain(read_config("sft.py:tiny", [f"--config.{change}"]))
        with pytest.raises(UsageError, match="warmup_steps teach the tower"):
            train.run(config, tmp_path / "run")


@pytest.mark.slow
def test_adapters_with_everything_else_are_trained_kept_and_exported_merged(tmp_path):
    """bfloat16, recomputed activations, an average, a reference and the best of evaluations."""
    model = pupil.saved(tmp_path / "pupil")
    changes = ["--config.steps=4", "--config.batch=2", "--config.num_generations=2",
               "--config.ramp_steps=1", "--config.learning_rate=0.3", "--config.beta=0.1",
               "--config.lora_rank=2", "--config.ema_decay=0.5", "--config.compute_dtype=bfloat16",
               "--config.remat=true", "--config.eval_every=1", "--config.eval_batches=1",
               "--config.best=eval/reward", "--config.save_every=2",
               f"--config.model={model}"]  # fmt: skip
    rewards = tmp_path / "mine.py"
    rewards.write_text(
        "def low(prompts, completions, *, completion_ids, **columns):\n"
        "    return [sum(i for i in ids) % 7 / 7 for ids in completion_ids]\n"
    )
    config = grpo(*changes, f"--config.rewards={rewards}:low")
    assert train.run(config, tmp_path / "run") == 0
    before = values(step.cast(step.cast(load(model), "bfloat16"), "float32"))
    after = values(load(tmp_path / "run" / "export"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and changed <= {f"decoder.layers.{name}.kernel" for name in KERNELS}
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(range(4), key=lambda i: (lines[i]["eval/reward"], i)) + 1
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=2, best="eval/reward") as kept:
        assert kept._manager.best_step() == best
    again = train.run(config, tmp_path / "run")  # nothing is left to do; the export is the same
    assert again == 0
    jax.tree.map(np.testing.assert_array_equal, after, values(load(tmp_path / "run" / "export")))


def load(directory):
    return vlm.load(directory, dtype="float32").model
