"""Every public function of arrays: eager = jit = vmap, bfloat16 in and float32 out, and gradients
against finite differences, on one batch of shared shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import FUNCTIONS

import objectives as o

B, M, G, L = 2, 2, 4, 5
NOISE = np.random.default_rng(0)


def normal(mean, std, shape):
    """Random numbers that bfloat16 holds exactly."""
    return np.asarray(NOISE.normal(mean, std, shape), jnp.bfloat16).astype(np.float64)


LOGP, OLD, REFERENCE = normal(-1.5, 0.2, (3, B, M, G, L))
MASK = np.arange(L) < NOISE.integers(1, L + 1, (B, M, G, 1))
ADVANTAGES, REWARDS, OTHER = normal(0, 1, (3, B, M, G))
VALID = NOISE.random((B, M, G)) < 0.8
VALID[..., :2] = True
TASK = np.array([[0, 1], [1, 1]])
LENGTHS = NOISE.integers(1, 100, (B, M, G))
CORRECT = REWARDS > 0


def case(*arrays, smooth=True, **options):
    return arrays, options, smooth


TOKENS = (LOGP, OLD, MASK)
LOSS = (LOGP, OLD, ADVANTAGES, MASK)
# The first array is the one that gradients go through. Not smooth: constant in part for them
# (stop_gradient), a step, or of integers.
CASES = {
    "sequence_sum": case(LOGP, MASK),
    "sequence_mean": case(LOGP, MASK),
    "mean_of_sequence_means": case(LOGP, MASK),
    "mean_of_sequence_sums": case(LOGP, MASK),
    "token_mean": case(LOGP, MASK),
    "constant_length": case(LOGP, MASK, length=7),
    "normalise": case(REWARDS, VALID, mean="joint", std="group"),
    "group_zscore": case(REWARDS, VALID),
    "group_centred": case(REWARDS, VALID),
    "leave_one_out": case(REWARDS, VALID),
    "batch_zscore": case(REWARDS, VALID),
    "joint_zscore": case(REWARDS, VALID),
    "share_grpo": case(REWARDS, VALID),
    "mixture": case(REWARDS, VALID, weight=0.3),
    "hierarchical": case(REWARDS, VALID, weight=0.7),
    "gdpo": case(REWARDS, VALID),
    "update_task_moments": case(REWARDS, TASK, VALID, smooth=False),
    "task_ema": case(REWARDS, TASK, VALID),
    "zero_signal_share": case(REWARDS, VALID, smooth=False),
    "zero_signal_probability": case(np.abs(REWARDS) / 4, samples=4),
    "between_variant_variance": case(REWARDS, VALID),
    "token_log_ratio": case(*TOKENS),
    "sequence_log_ratio": case(*TOKENS),
    "gspo_token_log_ratio": case(*TOKENS, smooth=False),
    "clipped_surrogate": case(LOGP - OLD, ADVANTAGES, dual=3.0),
    "policy_gradient": case(LOGP, ADVANTAGES),
    "clipped_weight": case(LOGP, LOGP - OLD, ADVANTAGES),
    "kl_estimate": case(LOGP, REFERENCE, MASK),
    "full_kl": case(LOGP, REFERENCE),
    "entropy": case(LOGP),
    "importance_weights": case(LOGP, OLD, MASK, smooth=False),
    "off_policy_keep": case(LOGP, OLD, ADVANTAGES, MASK, threshold=0.0, smooth=False),
    "high_entropy_keep": case(-LOGP, MASK, smooth=False),
    "clip_shares": case(LOGP - OLD, ADVANTAGES, MASK, smooth=False),
    "grpo_loss": case(*LOSS),
    "dr_grpo_loss": case(*LOSS, length=7),
    "dapo_loss": case(*LOSS),
    "gspo_loss": case(*LOSS, low=0.2, high=0.2),
    "cispo_loss": case(*LOSS, smooth=False),
    "reinforce_loss": case(LOGP, ADVANTAGES, MASK),
    "spike_rl_loss": case(LOGP, ADVANTAGES[:, 0, 0], MASK),
    "is_dynamic": case(TASK, smooth=False),
    "behaves": case(CORRECT, VALID, TASK > 0, smooth=False),
    "t_grpo_bonus": case(REWARDS, OTHER, smooth=False),
    "arrow_rl_reward": case(REWARDS, OTHER, ADVANTAGES[..., 0]),
    "arrow_gev_reward": case(REWARDS, OTHER, TASK > 0),
    "length_bonus": case(LENGTHS, CORRECT, smooth=False),
    "overlong_penalty": case(LENGTHS, longest=80, cache=30, smooth=False),
    "pairwise_diversity": case(REWARDS, VALID[..., 0]),
    "crr_terms": case(CORRECT, VALID, smooth=False),
    "crpo_rewards": case(CORRECT, VALID, smooth=False),
}


def prepared(name, dtype):
    """(function of the arrays alone, the arrays)."""
    arrays, options, _ = CASES[name]
    function = getattr(o, name)
    if name in ("update_task_moments", "task_ema"):
        moments = o.TaskMoments(*jnp.array([[0.1, 0.2], [0.8, 0.9]], dtype), jnp.ones(2, bool))
        place = 0 if name == "update_task_moments" else 2
        inner = function

        def function(*given):
            return inner(*given[:place], moments, *given[place:])

    def run(*given):
        return function(*given, **options)

    arrays = [jnp.asarray(x, dtype) if np.issubdtype(x.dtype, np.floating) else x for x in arrays]
    return run, arrays


def assert_close(ours, theirs, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), ours, theirs)


def test_every_public_function_of_arrays_is_a_case():
    assert set(CASES) == set(FUNCTIONS)


@pytest.mark.parametrize("name", CASES)
def test_eager_jit_vmap_and_bfloat16_agree(name):
    """Plainly in float32; and compiled, mapped over a mirror image and itself, from bfloat16."""
    function, arrays = prepared(name, jnp.float32)

    def short(x):
        x = np.stack([np.flip(x, 0), x])
        return x.astype(jnp.bfloat16) if x.dtype == np.float32 else x

    eager = function(*arrays)
    mapped = jax.device_get(jax.jit(jax.vmap(function))(*map(short, arrays)))
    assert_close(jax.tree.map(lambda x: x[1], mapped), eager, 1e-5)
    assert all(leaf.dtype in (np.float32, np.bool_) for leaf in jax.tree.leaves(mapped))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2]])
def test_gradients_against_finite_differences(name):
    """(f(x + hv) - f(x - hv)) / 2h = <∇f, v> in float64, along a random v."""
    with jax.enable_x64(True):
        function, (first, *rest) = prepared(name, jnp.float64)
        direction = np.random.default_rng(1).normal(size=first.shape)
        shape = jax.eval_shape(function, first, *rest).shape
        weights = np.random.default_rng(2).normal(size=shape)

        def scalar(x):
            return jnp.sum(weights * function(x, *rest))

        first = np.asarray(first)
        ends = np.stack([first + 1e-6 * direction, first - 1e-6 * direction])
        ends = jax.jit(jax.vmap(jax.value_and_grad(scalar)))(ends)
    (ahead, behind), gradients = jax.device_get(ends)
    assert gradients.dtype == np.float64
    slope = np.sum(gradients.mean(0) * direction)
    assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-6, abs=1e-7)
    assert abs(slope) > 1e-6
