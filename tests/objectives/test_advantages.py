import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled, o

import objectives
from objectives import TaskMoments

f32 = functools.partial(np.array, dtype=np.float32)
EIGHT = f32([2.0, 1, 1, 0, 1.3, 2.3, 0, 1])


def test_the_reference_table():
    four = f32([1.0, 0, 0, 1])
    np.testing.assert_allclose(o.group_zscore(four), 0.865875 * (2 * four - 1), atol=1e-6)
    np.testing.assert_allclose(o.group_zscore(four, eps=1e-6), 0.866024 * (2 * four - 1), atol=2e-6)
    np.testing.assert_allclose(o.group_zscore(four, ddof=0, eps=0.0), 2 * four - 1, atol=1e-6)
    trl = [1.124548, -0.091180, -0.091180, -1.306907, 0.273539, 1.489266, -1.306907, -0.091180]
    verl = [1.124683, -0.091191, -0.091191, -1.307064, 0.273572, 1.489445, -1.307064, -0.091191]
    rloo = [1.057143, -0.085714, -0.085714, -1.228571, 0.257143, 1.4, -1.228571, -0.085714]
    np.testing.assert_allclose(o.group_zscore(EIGHT), trl, atol=1e-6)
    np.testing.assert_allclose(o.group_zscore(EIGHT, eps=1e-6), verl, atol=1e-6)
    np.testing.assert_allclose(o.leave_one_out(EIGHT), rloo, atol=1e-6)
    np.testing.assert_allclose(o.group_centred(EIGHT), EIGHT - 1.075, atol=1e-6)


def test_joint_of_a_split_grid():
    """The shortcut case: a variant all right, the other all wrong."""
    grid = f32([[1] * 8, [0] * 8])
    np.testing.assert_allclose(o.joint_zscore(grid), 0.968058 * (2 * grid - 1), atol=1e-6)
    np.testing.assert_array_equal(o.group_zscore(grid), np.zeros((2, 8)))
    # No variant has a std of its own, so that a joint mean over it is not divided by nothing.
    np.testing.assert_array_equal(o.normalise(grid, mean="joint"), np.zeros((2, 8)))
    np.testing.assert_allclose(o.normalise(grid, mean="joint", std=None), grid - 0.5)


GRID = np.array([[[1, 0, 1, 1], [0, 0, 0, 1]], [[0.5, 2, 2, 0.5], [3, 3, 3, 3]]], np.float32)
# The same among missing rewards. All tests below share this shape, and so the compiled programs.
PADDED = np.full((2, 3, 6), np.nan, np.float32)
PADDED[:, :2, :4] = GRID
VALID = np.isfinite(PADDED)
ALL = np.ones_like(VALID)
EVERY = {
    "group_zscore": objectives.group_zscore,
    "group_centred": objectives.group_centred,
    "leave_one_out": objectives.leave_one_out,
    "leave_one_out joint": lambda r, v=None: objectives.leave_one_out(r, v, over="joint"),
    "batch_zscore": objectives.batch_zscore,
    "joint_zscore": objectives.joint_zscore,
    "share_grpo": objectives.share_grpo,
    "mixture": objectives.mixture,
    "hierarchical": objectives.hierarchical,
    "joint mean, group std": lambda r, v=None: objectives.normalise(
        r, v, mean="joint", std="group"
    ),
    "group mean, joint std": lambda r, v=None: objectives.normalise(
        r, v, mean="group", std="joint"
    ),
    "gdpo": lambda r, v=None: objectives.gdpo(r[None], None if v is None else v[None]),
    "task_ema": lambda r, v=None: objectives.task_ema(
        r, jnp.zeros(r.shape[:-1], int), TaskMoments(*jnp.full((2, 1), 0.5), jnp.ones(1, bool)), v
    ),
}


@functools.cache
def programs(name):
    """The advantages, and the gradient of their squares."""
    function = EVERY[name]
    squares = jax.grad(lambda r, v: jnp.sum(function(r, v) ** 2))
    return compiled(lambda r, v: (function(r, v), squares(r, v)))


def by_hand(rewards):
    """Each advantage of GRID in float64 NumPy, by loops where it helps to see the sets compared."""
    r, zero = np.asarray(rewards, np.float64), np.zeros_like
    group, joint, batch, loo, joint_loo = (zero(r) for _ in range(5))
    within, between = zero(r), zero(r)
    for b in range(len(r)):
        means = r[b].mean(-1)
        joint[b] = (r[b] - r[b].mean()) / (r[b].std(ddof=1) + 1e-4)
        for m in range(r.shape[1]):
            row = r[b, m]
            within[b, m] = row - row.mean()
            group[b, m] = within[b, m] / (row.std(ddof=1) + 1e-4)
            batch[b, m] = within[b, m] / (r.std(ddof=1) + 1e-4)
            between[b, m] = (means[m] - means.mean()) / (means.std(ddof=1) + 1e-4)
            for g in range(r.shape[2]):
                loo[b, m, g] = row[g] - np.delete(row, g).mean()
                others = np.delete(r[b].ravel(), m * r.shape[2] + g)
                joint_loo[b, m, g] = row[g] - others.mean()
    flat = (r.max(-1) == r.min(-1))[..., None]
    tight = np.where(flat, 1, r.std(axis=-1, ddof=1, keepdims=True) + 1e-4)
    wide = r.std(axis=(-2, -1), ddof=1, keepdims=True) + 1e-4
    centre = r.mean(axis=(-2, -1), keepdims=True)
    sharp = [x * (s + 1e-4) / (s + 1e-6) for x, s in ((joint, wide - 1e-4), (group, tight - 1e-4))]
    return {
        "group_zscore": group,
        "group_centred": within,
        "leave_one_out": loo,
        "leave_one_out joint": joint_loo,
        "batch_zscore": batch,
        "joint_zscore": joint,
        "share_grpo": sharp[0] + sharp[1],
        "mixture": 0.5 * joint + 0.5 * group,
        "hierarchical": group + between,
        "joint mean, group std": np.where(flat, 0, (r - centre) / tight),
        "group mean, joint std": within / wide,
        "gdpo": (group - group.mean()) / (group.std(ddof=1) + 1e-4),
        "task_ema": np.clip(within / np.sqrt(0.5 - 0.25), -5, 5),
    }


@pytest.mark.parametrize("name", EVERY)
def test_against_loops_over_the_sets_compared(name):
    """And with rewards missing all around, which get 0 and are as if absent."""

    ours, gradient = programs(name)(PADDED, VALID)
    np.testing.assert_allclose(ours[:, :2, :4], by_hand(GRID)[name], atol=2e-6)
    assert not np.any(ours[~VALID])
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~VALID])


@pytest.mark.parametrize("name", EVERY)
def test_equal_rewards_give_exactly_zero_and_finite_gradients(name):
    for reward in (0.0, 1.0, 0.1, 1 / 3, 12345.678):
        ours, gradient = programs(name)(np.full((2, 3, 6), reward, np.float32), ALL)
        np.testing.assert_array_equal(ours, np.zeros((2, 3, 6)))
        assert np.all(np.isfinite(gradient))
    # Equal but for rounding, as sums of weighted rewards are: no residue over a tiny std.
    nearly = np.tile(np.array([0.3, 0.1 + 0.2, 0.30000004], np.float32), (2, 3, 2))
    np.testing.assert_array_equal(programs(name)(nearly, ALL)[0], np.zeros((2, 3, 6)))


@pytest.mark.parametrize("name", EVERY)
def test_one_reward_alone_teaches_nothing(name):
    """Neither NaN (TRL's std of one) nor the raw reward (verl's singleton)."""
    alone = np.zeros_like(VALID)
    alone[:, 1, 2] = True
    ours, gradient = programs(name)(np.full((2, 3, 6), 3.0, np.float32), alone)
    np.testing.assert_array_equal(ours, np.zeros((2, 3, 6)))
    assert np.all(np.isfinite(gradient))


def test_gdpo_keeps_what_a_sum_hides():
    """Two rewards that cancel in the sum; weights; a sample without one of them."""
    weighted = compiled(lambda r, w: objectives.gdpo(r, weights=w))
    rewards = f32([[1.0, 0, 1, 0], [0, 1, 1, 0]])
    z = np.array([[1, -1, 1, -1], [-1, 1, 1, -1]]) * 0.865875
    total = z[0] + 2 * z[1]
    wanted = total / (total.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(weighted(rewards, f32([1, 2])), wanted, atol=1e-5)
    valid = np.array([[True] * 4, [True, True, True, False]])
    ours = o.gdpo(rewards, valid)
    total = z[0] + np.array([-2, 1, 1, 0]) / 3 / (np.std([0, 1, 1], ddof=1) + 1e-4)
    np.testing.assert_allclose(ours, (total - total.mean()) / (total.std(ddof=1) + 1e-4), atol=1e-5)


def test_task_moments():
    rewards = f32([[1.0, 0, 0, 1], [4, 2, 2, 4], [1, 1, 1, 1]])
    task = np.array([0, 2, 0])
    moments = o.update_task_moments(TaskMoments.zeros(3), rewards, task)
    # The first batch sets: task 0 has mean 6/8 and mean square 6/8, task 2 has 3 and 10.
    np.testing.assert_allclose(moments.first, [0.75, 0, 3])
    np.testing.assert_allclose(moments.second, [0.75, 0, 10])
    assert moments.seen.tolist() == [True, False, True]
    moments = o.update_task_moments(moments, f32([[0, 0, 0, 0]]), np.array([0]), decay=0.9)
    np.testing.assert_allclose(moments.first, [0.675, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(moments.second, [0.675, 0, 10], rtol=1e-6)
    ours = o.task_ema(rewards, task, moments)
    sigma = [math.sqrt(0.675 - 0.675**2), 1.0, math.sqrt(0.675 - 0.675**2)]
    wanted = (rewards - rewards.mean(-1, keepdims=True)) / np.array(sigma)[:, None]
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_task_moments_mask_and_clip():
    rewards = f32([[1.0, 0, 0, np.nan]])
    valid = np.isfinite(rewards)
    moments = o.update_task_moments(TaskMoments.zeros(1), rewards, np.array([0]), valid)
    np.testing.assert_allclose(moments.first, [1 / 3], rtol=1e-6)
    same = o.update_task_moments(moments, rewards, np.array([0]), np.zeros((1, 4), bool))
    np.testing.assert_array_equal(same.first, moments.first)
    # A std at its floor of 1e-3 makes ±500 of ±0.5; the paper clips at 5.
    settled = TaskMoments(f32([1]), f32([1]), np.array([True]))
    clipped = o.task_ema(f32([[1.0, 0, 0, 1]]), np.array([0]), settled)
    np.testing.assert_allclose(clipped, [[5, -5, -5, 5]])


def test_diagnostics():
    rewards = f32([[[1.0, 1], [0, 0]], [[1, 0], [1, 1]]])
    assert float(o.zero_signal_share(rewards)) == 0.75
    assert float(o.zero_signal_share(rewards, over="joint")) == 0.0
    valid = np.array([[[False] * 2] * 2, [[True] * 2] * 2])
    assert float(o.zero_signal_share(rewards, valid)) == 0.5
    assert math.isnan(float(o.zero_signal_share(rewards, np.zeros((2, 2, 2), bool))))
    np.testing.assert_allclose(o.between_variant_variance(rewards), [0.25, 0.0625])
    one = valid & (np.arange(2) == 0)[:, None]
    np.testing.assert_allclose(o.between_variant_variance(rewards, one), [0, 0])


def test_variants_help_where_their_accuracies_differ():
    """STRIVE's arithmetic: accuracies 0.9 and 0.5, four samples each, against eight of one view."""
    two = o.zero_signal_probability(f32([0.9, 0.5]), samples=4)
    assert float(two) == pytest.approx(0.041, abs=5e-4)
    one = o.zero_signal_probability(f32([0.9]), samples=8)
    assert float(one) == pytest.approx(0.43, abs=5e-3)
    same = o.zero_signal_probability(f32([0.9, 0.9]), samples=4)
    assert float(same) == pytest.approx(float(one))


def test_a_joint_scope_needs_two_axes():
    with pytest.raises(ValueError, match=r"over='joint' needs a grid"):
        o.normalise(EIGHT, mean="joint")
