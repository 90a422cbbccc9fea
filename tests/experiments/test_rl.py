"""RL's device side and its batches: gradients, and what they must not depend on."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pupil
import pytest
from flax import nnx

from experiments import rl, step
from experiments.mesh import single
from experiments.method import Method
from experiments.rewards import Rewards
from vlm.model import forward

pytestmark = pytest.mark.slow  # a gradient compiles for seconds

SPIKE = [
    *("--config.surprise.steps=4", "--config.surprise.window=2", "--config.surprise.budget=2"),
    *("--config.caption_tokens=3", "--config.train_from=2", "--config.surprise.hypotheses=2"),
]


@pytest.fixture(scope="module")
def found():
    return pupil.make()


def played(found, method, *changes):
    """The batches that a method makes of its first prompts, with rewards out of the blue."""
    own = Method(found, pupil.config(method, *changes))
    policy = single(found.model)
    rollouts = own.sample(policy, own.prompts(0))
    total = np.random.default_rng(0).normal(size=rollouts.grid)
    rewards = Rewards(total, {"any": total})
    advantages = own.advantages(rewards)
    return own, policy, own.batches(policy, rollouts, rewards, advantages)


def learned(found, own, batch, parts=1):
    """Loss, gradient and metrics of a batch in so many micro-batches."""
    graph, state = step.start(found.model, optax.sgd(1.0))
    update = step.updater(graph, optax.sgd(1.0), own.loss, parts)
    before = jax.tree.map(jnp.copy, state.params)
    after, metrics = update(
        dataclasses.replace(state, params=jax.tree.map(jnp.copy, before)), batch
    )
    return jax.tree.map(jnp.subtract, before, after.params), metrics


@pytest.mark.parametrize("method", ["crpo", "strive", "spike_rl"])
def test_the_gradient_is_that_of_finite_differences(found, method):
    """Along the gradient, and along its share in the tower and in the decoder alone."""
    changes = SPIKE if method == "spike_rl" else ["--config.beta=0.1"]
    own, policy, (batch, *_) = played(found, method, *changes)
    # What the loss holds fixed: the policy that sampled, and a reference that is another one.
    how = (batch.prompts, batch.tokens, batch.mask)
    other = single(pupil.make(seed=1).model)
    batch = dataclasses.replace(
        batch,
        behaviour=policy.fetch(policy(rl.logprobs, *how)),
        reference=other.fetch(other(rl.logprobs, *how)),
    )
    graph, params = nnx.split(found.model)
    value = jax.jit(lambda params: own.loss(nnx.merge(graph, params), batch)[0])
    gradient, _ = learned(found, own, batch)
    for part in ("", "vision", "decoder"):
        direction = jax.tree_util.tree_map_with_path(
            lambda path, leaf, part=part: leaf * float(part in jax.tree_util.keystr(path)), gradient
        )
        norm = float(optax.tree.norm(direction))
        assert norm > 1e-4
        sides = [
            float(value(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)))
            for s in (3e-3 / norm, -3e-3 / norm)
        ]
        np.testing.assert_allclose((sides[0] - sides[1]) / 6e-3, norm, rtol=2e-3)


def test_an_update_depends_neither_on_micro_batches_nor_on_padding(found):
    own, _, (batch,) = played(found, "grpo")
    gradient, metrics = learned(found, own, batch)
    longer = np.pad(batch.tokens, [(0, 0)] * 3 + [(0, 5)])
    rest = {"mask": np.bool_, "sampler": np.float32}
    wider = dataclasses.replace(
        batch,
        tokens=longer,
        **{
            name: np.pad(vars(batch)[name], [(0, 0)] * 3 + [(0, 5)]).astype(kind)
            for name, kind in rest.items()
        },
    )
    room = np.add(rl.sizes(batch.prompts), (16, 2, 64))  # tokens, patches, slots
    prompts = rl.padded(batch.prompts, room, found.config.vision.merge**2)
    assert rl.sizes(prompts) == tuple(room)
    for parts, other in ((4, batch), (2, wider), (1, dataclasses.replace(batch, prompts=prompts))):
        again, told = learned(found, own, other, parts)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=0), gradient, again)
        for name, figure in metrics.items():
            np.testing.assert_allclose(told[name], figure, atol=1e-5, err_msg=name)


def test_log_probabilities_are_those_of_whole_prompts(found):
    """Against one uncached pass over the processor's own layout; and the sampler agrees."""
    own, _, (batch,) = played(found, "crpo")
    processor, (group, view) = found.processor, (2, 1)
    clip = own.prompts(0).views[group].trained[view]
    length = int(batch.prompts.valid[group, view].sum())
    ids = batch.prompts.ids[group, view, :length].tolist()
    visual = processor.video(clip.frames, clip.seconds)
    text = re.sub(r"(<\|video_pad\|>)+", "<|video_pad|>", processor.decode(ids, False))
    inputs = processor([text], [[visual]])
    np.testing.assert_array_equal(inputs.input_ids[0], ids)
    logp = rl.logprobs(found.model, batch.prompts, batch.tokens, batch.mask)
    for g in range(2):
        said = batch.tokens[group, view, g][batch.mask[group, view, g]]
        whole = np.concatenate([ids, said])[None].astype(np.int32)
        longer = dataclasses.replace(
            inputs, input_ids=whole, attention_mask=np.ones(whole.shape, bool)
        )
        z = jax.nn.log_softmax(forward(found.model, longer)[0, length - 1 : -1])
        expected = np.take_along_axis(np.asarray(z), said[:, None], axis=1)[:, 0]
        mine = logp[group, view, g, : len(said)]
        np.testing.assert_allclose(mine, expected, atol=2e-5)
        np.testing.assert_allclose(batch.sampler[group, view, g, : len(said)], mine, atol=2e-5)


def test_a_step_without_a_finite_gradient_changes_nothing_but_the_count(found):
    own, _, (batch,) = played(found, "grpo")
    bad = np.where(np.arange(4)[:, None, None] == 1, np.nan, batch.advantages)
    rule = optax.adamw(1e-2)
    graph, state = step.start(pupil.make().model, rule)
    before = jax.device_get(state)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        after, metrics = step.updater(graph, rule, own.loss)(
            state, dataclasses.replace(batch, advantages=bad.astype(np.float32))
        )
    assert metrics["skipped"] == 1.0 and after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(after.params))
    jax.tree.map(np.testing.assert_array_equal, before.optimizer, jax.device_get(after.optimizer))


def test_shared_answers_stand_behind_every_prompt_with_their_own_advantages(found):
    """Share-GRPO: joint z-score for all, and the view's own for what was said to the view."""
    own = Method(found, pupil.config("share_grpo"))
    policy = single(found.model)
    rollouts = own.sample(policy, own.prompts(0))
    total = np.zeros(rollouts.grid)
    total[0, 0] = [1, 0, 0, 0]
    rewards = Rewards(total, {"any": total})
    (batch,) = own.batches(policy, rollouts, rewards, own.advantages(rewards))
    assert batch.tokens.shape[:3] == (4, 2, 8)
    np.testing.assert_array_equal(batch.tokens[:, 0], batch.tokens[:, 1])
    joint = (total[0].reshape(-1) - 1 / 8) / (total[0].std(ddof=1) + 1e-6)
    apart = np.concatenate([(total[0, 0] - 0.25) / (total[0, 0].std(ddof=1) + 1e-6), np.zeros(4)])
    np.testing.assert_allclose(batch.advantages[0, 0], joint + apart, rtol=1e-5)
    np.testing.assert_allclose(batch.advantages[0, 1], joint, rtol=1e-5)
    assert (batch.advantages[1:] == 0).all()
    assert np.isfinite(batch.sampler[:, 0, :4]).all() and np.isnan(batch.sampler[:, 0, 4:]).all()


def test_a_trajectory_is_one_action(found):
    """Its advantage stands at all of its hypotheses, and its loss is their sum (eq. 5)."""
    own, policy, (batch,) = played(found, "spike_rl", *SPIKE, "--config.beta=0.0")
    groups, steps, rows, _ = batch.tokens.shape
    assert (groups, steps, rows) == (4, 2, 8)  # steps 2 and 3, and trajectories x hypotheses
    per = batch.advantages.reshape(groups, steps, 4, 2)
    np.testing.assert_array_equal(per, np.broadcast_to(per[:, :1, :, :1], per.shape))
    logp = policy.fetch(policy(rl.logprobs, batch.prompts, batch.tokens, batch.mask))
    summed = (logp * batch.mask).sum(-1).reshape(groups, steps, 4, 2).sum((1, 3))
    value, _ = own.loss(found.model, batch)
    np.testing.assert_allclose(value, -(per[:, 0, :, 0] * summed).mean(), rtol=1e-4)
