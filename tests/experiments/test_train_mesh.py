"""Training over a mesh of 8 fake devices: the numbers of one, and checkpoints that fit either."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pupil
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from experiments import mesh, sft, step, train
from experiments.arguments import UsageError, plain, read_config
from experiments.assembly import OFF
from experiments.bench_score import Compilations
from experiments.checkpoint import Checkpoints
from experiments.lessons import Teacher
from experiments.mesh import single
from experiments.method import Method
from experiments.rewards import Rewards
from vlm.layers import linear

ADAM = {
    "learning_rate": 0.01, "muon_learning_rate": 0.0, "ramp_steps": 0, "decay_share": 0.0,
    "weight_decay": 0.0, "clip": 1.0,
}  # fmt: skip
SGD = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
WARM = [
    "--config.pairs=16",
    "--config.warmup_steps=3",
    "--config.steps=3",
    "--config.save_every=1",
]
same = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


def taught(shape, changes=(), rule=SGD):
    """One who learns cells, or lessons, on a mesh: assembly, state, update, and the batches."""
    found = pupil.make()
    config = plain(read_config("sft.py:tiny", [*WARM, *changes]))
    module = sft.Pupil(found.model, rngs=nnx.Rngs(0))
    assembly, state = step.start(module, rule, OFF | {"ema_decay": 0.5}, mesh.read_mesh(shape))
    loss = partial(sft.loss, shares=config["shares"])
    update = step.updater(assembly, rule, loss, decay=0.5)
    return assembly, state, update, Teacher(found.processor, config)


class Layers(nnx.Module):
    """Two layers by names that the rules of `mesh` know."""

    def __init__(self):
        self.up = linear(8, 16, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
        self.down = linear(16, 8, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(1))


def square(module, batch):
    """Of the distance of what two layers make of x to y."""
    return jnp.mean((module.down(jnp.tanh(module.up(batch["x"]))) - batch["y"]) ** 2), {}


def test_training_goes_from_8_devices_to_1_and_back(tmp_path):
    """A second update here, or there from the checkpoint, gives the same; all that is kept does."""
    rng, rule, runs = np.random.default_rng(0), step.optimizer(ADAM, 10), {}
    batches = [{"x": x, "y": y} for x, y in rng.normal(size=(2, 2, 8, 8)).astype(np.float32)]
    for shape in ((1, 1, 1), (2, 2, 2)):
        options, grid = OFF | {"ema_decay": 0.5}, mesh.read_mesh(shape)
        assembly, state = step.start(Layers(), rule, options, grid)
        update = step.updater(assembly, rule, square, decay=0.5)
        state, _ = update(state, batches[0])
        with Checkpoints(tmp_path / str(shape), keep=1) as checkpoints:
            checkpoints.save(1, state)
        with Compilations() as compiled:  # the state lies as the first one did
            runs[shape] = (*update(state, batches[1]), update)
        assert compiled.count == 0
    (one, told, _), (eight, theirs, _) = runs.values()
    assert told["grad_norm"] > 1e-3
    jax.tree.map(same, *jax.device_get((one, eight)))
    jax.tree.map(same, told, theirs)
    kernel = eight.average["up"]["kernel"][...]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size / 4
    for shape, other in (runs, [*runs][::-1]):
        state, _, update = runs[shape]
        with Checkpoints(tmp_path / str(other), keep=1) as checkpoints:
            state = checkpoints.latest(state)
        assert state.step == 1
        state, _ = update(state, batches[1])
        jax.tree.map(same, *jax.device_get((state, one)))


def test_what_an_optimizer_keeps_lies_with_its_parameter():
    rule = step.optimizer(ADAM | {"muon_learning_rate": 0.1}, 10)
    _, state, _, _ = taught((2, 2, 2), rule=rule)
    entries, _ = jax.tree_util.tree_flatten_with_path(state)
    specs = {mesh.dotted(path): leaf.sharding.spec for path, leaf in entries}
    kept = {name: spec for name, spec in specs.items() if name.startswith("optimizer")}
    split = 0
    for name, spec in specs.items():
        if name.startswith("params."):
            own = [other for other in kept if other.endswith(name.removeprefix("params"))]
            assert len(own) == (1 if name.endswith("kernel") else 2)  # of Muon, of AdamW
            assert {specs[other] for other in own} == {spec}
            split += spec != P()
    assert split > 10


def test_adapters_are_split_as_their_kernels_are():
    grid = mesh.make_mesh((2, 2, 2))
    for name, a, b in (("q", P(None, "fsdp"), P(None, None, "tensor")),
                       ("down", P(None, "tensor"), P(None, None, "fsdp"))):  # fmt: skip
        assert mesh.partition(f"x.{name}.a", (1, 8, 4), grid) == a
        assert mesh.partition(f"x.{name}.b", (1, 4, 8), grid) == b


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "options"), [(2, {}), (1, {"lora_rank": 2, "seed": 0}), (1, {"freeze_tower": True})]
)
def test_an_update_of_rl_does_not_depend_on_the_number_of_devices(parts, options):
    found = pupil.make()
    own = Method(found, pupil.config("crpo", "--config.batch=8", "--config.beta=0.1"))
    policy = single(found.model)
    rollouts = own.sample(policy, own.prompts(0))
    total = np.random.default_rng(0).normal(size=rollouts.grid)
    rewards = Rewards(total, {"any": total})
    (batch,) = own.batches(policy, rollouts, rewards, own.advantages(rewards))
    results = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        grid = mesh.read_mesh(shape)
        assembly, state = step.start(pupil.make().model, optax.sgd(1.0), OFF | options, grid)
        update = step.updater(assembly, optax.sgd(1.0), own.loss, parts)
        before = jax.device_get(state.params)
        state, metrics = update(state, batch)
        gradient = jax.tree.map(np.subtract, before, jax.device_get(state.params))
        results.append((gradient, jax.device_get(metrics)))
        with Compilations() as compiled:
            update(state, batch)  # its state lies as the first one's
        assert compiled.count == 0
    assert optax.tree.norm(results[0][0]) > 1e-2
    jax.tree.map(same, *results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cells", "step"])
def test_an_update_of_sft_does_not_depend_on_the_number_of_devices(kind):
    """A lesson names rows of its tower's output across the whole batch."""
    changes = ["--config.windows=4", f"--config.warmup_steps={int(kind == 'cells')}"]
    kinds = ("step", "clip", "brief")
    changes += [f"--config.mix.{name}={int(name == kind)}" for name in kinds]
    results = []
    for shape in ((1, 1, 1), (4, 1, 2)):
        _, state, update, teacher = taught(shape, changes if kind == "step" else changes[:2])
        state, metrics = update(state, teacher(0))
        results.append(jax.device_get((state, metrics)))
    assert results[0][1]["grad_norm"] > 1e-3
    jax.tree.map(same, *results)


@pytest.mark.slow
def test_a_method_runs_on_a_mesh_and_ends_on_one_device(tmp_path):
    model = pupil.saved(tmp_path / "pupil")
    changes = ["--config.batch=4", "--config.num_generations=2", "--config.ramp_steps=1",
               "--config.beta=0.1", "--config.eval_every=2", "--config.eval_batches=1",
               "--config.save_every=1", f"--config.model={model}"]  # fmt: skip
    steps = {"1,1,1": 3, "2,2,1": 2}
    for shape, stop in steps.items():
        config = pupil.config("grpo", *changes, "--config.steps=3", f"--config.mesh={shape}")
        out = tmp_path / shape
        if stop < 3:
            run_to(config, out, stop)
            config["mesh"] = [1, 1, 1]
        assert train.run(config, out) == 0
    one, other = (read(tmp_path / shape) for shape in steps)
    for line, theirs in zip(one, other, strict=True):
        assert line.keys() == theirs.keys() and "kl" in line
        for name in line.keys() - {"step_time", "videos_per_hour"}:
            np.testing.assert_allclose(theirs[name], line[name], 1e-5, 1e-5, err_msg=name)


def read(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run_to(config, out, stop):
    """A run that ends without notice after step `stop`."""
    stream = train._stream

    def killed(*args):
        for done, prompts in stream(*args):
            if done > stop:
                raise KeyboardInterrupt
            yield done, prompts

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_stream", killed)
        train.run(config, out)


def test_a_mesh_that_makes_no_sense_is_told(tmp_path):
    model = pupil.saved(tmp_path / "pupil")
    for shape, message in (
        ("4,2", "does not fit 8 devices"),
        ("4,4,1", "does not fit 8 devices"),
        ("a,1,1", "mesh is a,1,1; write it as 4,2,1"),
        ("4,2,1", "batch is 4; 8 must divide it, to split it over the mesh"),
    ):
        config = pupil.config("grpo", f"--config.model={model}", f"--config.mesh={shape}")
        with pytest.raises(UsageError, match=message):
            train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_memory_is_that_of_a_device():
    _, state, _, _ = taught((1, 1, 1))
    assembly, spread, _, teacher = taught((1, 4, 2))

    def nothing(module, batch):
        return jnp.sum(nnx.state(module)["head"]["bias"][...]), {}

    alone = dataclasses.replace(assembly, mesh=None)
    whole = step.memory(alone, state, nothing, teacher(0))
    assert step.memory(assembly, spread, nothing, teacher(0)) < whole / 3
