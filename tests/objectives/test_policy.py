import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled, o, value_and_grad

import objectives

RATIOS = np.array([0.5, 0.79, 1.0, 1.25, 1.5, 4.0], np.float32)
# One token a sequence, so that the terms below are the numbers of the reference table.
LOG_RATIOS = np.log(RATIOS)[:, None]
UP, DOWN = np.ones(6, np.float32), -np.ones(6, np.float32)

CLIPS = [
    ({}, UP, [-0.5, -0.79, -1, -1.2, -1.2, -1.2]),
    ({}, DOWN, [0.8, 0.8, 1, 1.25, 1.5, 4]),
    ({"high": 0.28}, UP, [-0.5, -0.79, -1, -1.25, -1.28, -1.28]),
    ({"dual": 3.0}, DOWN, [0.8, 0.8, 1, 1.25, 1.5, 3]),
    ({"dual": 3.0}, UP, [-0.5, -0.79, -1, -1.2, -1.2, -1.2]),
    ({"delta": 2.0}, DOWN, [0.8, 0.8, 1, 1.25, 1.5, 2]),
    ({"delta": 2.0, "low": 0.1, "high": 5.0}, UP, [-0.5, -0.79, -1, -1.25, -1.5, -2]),
]


@pytest.mark.parametrize("options,advantages,wanted", CLIPS, ids=str)
def test_the_reference_table_of_clips(options, advantages, wanted):
    loss = o.clipped_surrogate(LOG_RATIOS, advantages, **options)
    np.testing.assert_allclose(loss[:, 0], wanted, rtol=1e-6)


def test_a_clipped_token_has_no_gradient():
    program = value_and_grad(lambda *arrays: jnp.sum(objectives.clipped_surrogate(*arrays)))

    def slope(advantages):
        return program(LOG_RATIOS, advantages)[1][:, 0]

    # d(-ρA)/d log ρ = -ρA where the clip does not bind.
    np.testing.assert_allclose(slope(UP), [-0.5, -0.79, -1, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(slope(DOWN), [0, 0, 1, 1.25, 1.5, 4], rtol=1e-6)


def test_clip_shares():
    mask = np.ones((6, 1), bool)
    low, high = o.clip_shares(LOG_RATIOS, DOWN, mask)
    assert (float(low), float(high)) == (pytest.approx(2 / 6), 0.0)
    low, high = o.clip_shares(LOG_RATIOS, UP, mask, high=0.28)
    assert (float(low), float(high)) == (0.0, pytest.approx(2 / 6))


@pytest.mark.parametrize(
    "logp,reference,k1,k2,k3",
    [
        (-1.0, -1.2, 0.2, 0.02, 0.018731),
        (-0.5, -2.0, 1.5, 1.125, 0.723130),
        (-3.0, -0.5, -2.5, 3.125, 8.682494),
    ],
)
def test_the_reference_table_of_kl(logp, reference, k1, k2, k3):
    arrays = np.array([logp], np.float32), np.array([reference], np.float32), np.ones(1, bool)
    for kind, wanted in (("k1", k1), ("k2", k2), ("k3", k3)):
        np.testing.assert_allclose(o.kl_estimate(*arrays, kind=kind), [wanted], atol=1e-5)
        bounded = o.kl_estimate(*arrays, kind=kind, max_value=1.0)
        np.testing.assert_allclose(bounded, [np.clip(wanted, -1, 1)], atol=1e-5)


def test_kl_is_clamped_where_it_would_overflow():
    far = np.array([-200.0], np.float32), np.array([0.0], np.float32), np.ones(1, bool)
    value, gradient = value_and_grad(lambda *a: objectives.kl_estimate(*a)[0])(*far)
    assert float(value) == pytest.approx(np.exp(20) - 201, rel=1e-6)
    assert np.all(np.isfinite(gradient))


def test_unknown_choices_are_named():
    """By the function, or before it by the type checker of the tests."""
    with pytest.raises((ValueError, TypeError), match="k4"):
        o.kl_estimate(LOGP, OLD, MASK, kind="k4")
    for option in ("level", "mode"):
        with pytest.raises((ValueError, TypeError), match="everything"):
            o.importance_weights(LOGP, OLD, MASK, **{option: "everything"})


def test_what_the_estimators_teach():
    """Mean gradient over the policy's own tokens: k1 none, k2 that of the KL, k3 another one."""
    logits, reference = np.array([0.3, -0.2, 1.0]), np.array([0.0, 0.5, 0.1])
    p = np.exp(logits) / np.exp(logits).sum()
    mask = np.ones(3, bool)

    def expected(z, kind):
        logp = jax.nn.log_softmax(z)
        return jnp.sum(
            p * objectives.kl_estimate(logp, jax.nn.log_softmax(reference), mask, kind=kind)
        )

    @jax.jit
    def everything(z):
        true = jax.value_and_grad(objectives.full_kl)(z, reference)
        return true, [jax.value_and_grad(expected)(z, kind) for kind in ("k1", "k2", "k3")]

    with jax.enable_x64(True):
        (kl, true), ((v1, k1), (_, k2), (v3, k3)) = everything(logits)
    np.testing.assert_allclose(k1, 0, atol=1e-12)
    np.testing.assert_allclose(k2, true, atol=1e-12)
    assert np.abs(np.asarray(k3 - true)).max() > 0.01
    np.testing.assert_allclose([v1, v3], kl, rtol=1e-12)  # as values, k1 and k3 are unbiased


def test_full_kl_and_entropy():
    p, q = np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.25, 0.25, 0.5, 0.0])
    with np.errstate(divide="ignore"):
        logits, reference = np.log(p).astype(np.float32) + 3, np.log(q).astype(np.float32)
    assert float(o.full_kl(logits, reference)) == pytest.approx(0.25 * np.log(2), rel=1e-5)
    assert float(o.entropy(logits)) == pytest.approx(1.5 * np.log(2), rel=1e-5)
    assert float(o.full_kl(logits, logits)) == 0.0
    one = np.array([0.0, -np.inf, -np.inf, -np.inf], np.float32)
    assert float(o.full_kl(logits, one)) == np.inf
    assert np.all(np.isfinite(value_and_grad(objectives.full_kl)(logits, reference)[1]))
    assert np.all(np.isfinite(value_and_grad(objectives.entropy)(logits)[1]))


LOGP = -1.0 + 0.5 * np.sin(np.arange(12, dtype=np.float32)).reshape(3, 4)
OLD = LOGP - np.array([[0.1, -0.2, 0.3, 9.0], [0.5, 9, 9, 9], [-0.1, -0.2, 0.4, 0.5]], np.float32)
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
ADVANTAGES = np.array([1.0, -0.5, 0.25], np.float32)


def test_ratios():
    np.testing.assert_allclose(
        o.token_log_ratio(LOGP, OLD, MASK),
        [[0.1, -0.2, 0.3, 0], [0.5, 0, 0, 0], [-0.1, -0.2, 0.4, 0.5]],
        atol=1e-6,
    )
    sequence = o.sequence_log_ratio(LOGP, OLD, MASK)
    np.testing.assert_allclose(np.exp(sequence[0]), [1.068939] * 3 + [1], atol=1e-6)
    np.testing.assert_allclose(sequence[1:, 0], [0.5, 0.15], atol=1e-6)
    np.testing.assert_allclose(o.gspo_token_log_ratio(LOGP, OLD, MASK), sequence, atol=1e-6)
    np.testing.assert_array_equal(o.token_log_ratio(LOGP, None, MASK), np.zeros((3, 4)))


def test_gspo_token_has_the_sequence_value_and_the_token_gradient():
    def slope(ratio):
        def objective(logp):
            return jnp.sum(jnp.where(MASK, jnp.exp(ratio(logp, OLD, MASK)), 0.0))

        return value_and_grad(objective)(LOGP)[1]

    token = slope(objectives.gspo_token_log_ratio)
    np.testing.assert_allclose(
        token, np.exp(o.sequence_log_ratio(LOGP, OLD, MASK)) * MASK, rtol=1e-5
    )
    # With one advantage a sequence, it is GSPO's gradient (arXiv 2507.18071, sec. 4.3).
    np.testing.assert_allclose(token, slope(objectives.sequence_log_ratio), rtol=1e-5)


def on_policy(loss):
    return value_and_grad(lambda lp, a, m: loss(lp, None, a, m))


def test_on_policy_gradients_are_reinforce():
    """The ratio is 1: the value says nothing, the gradient is that of -A log π, GSPO's too."""
    value, grpo = on_policy(objectives.grpo_loss)(LOGP, ADVANTAGES, MASK)
    assert float(value) == pytest.approx(-ADVANTAGES.mean(), rel=1e-6)
    lengths = MASK.sum(-1, keepdims=True)
    np.testing.assert_allclose(grpo, -ADVANTAGES[:, None] / lengths / 3 * MASK, rtol=1e-5)
    np.testing.assert_allclose(
        on_policy(objectives.gspo_loss)(LOGP, ADVANTAGES, MASK)[1], grpo, rtol=1e-5
    )
    per_token = -ADVANTAGES[:, None] / MASK.sum() * MASK
    np.testing.assert_allclose(
        on_policy(objectives.cispo_loss)(LOGP, ADVANTAGES, MASK)[1], per_token, rtol=1e-5
    )


def test_clipped_weight_keeps_every_gradient_and_bounds_its_weight():
    ratio = np.log(np.array([[0.1, 1, 4, 9]], np.float32))
    logp = np.zeros((1, 4), np.float32)
    one = np.ones(1, np.float32)
    program = value_and_grad(lambda *arrays: jnp.sum(objectives.clipped_weight(*arrays)))
    gradient = program(logp, ratio, one)[1]
    np.testing.assert_allclose(gradient, [[-0.1, -1, -4, -5]], rtol=1e-6)


def test_importance_weights():
    """e^-1 and e^0.5 a token, their product a sequence; a NaN weighs 1, padding nothing."""
    old = np.array([[-2.0, -0.5, -1, np.nan]], np.float32)
    sampler = np.array([[-1.0, -1.0, np.nan, 0]], np.float32)
    mask = np.array([[True, True, True, False]])
    weights = functools.partial(o.importance_weights, old, sampler, mask)
    low, high = np.exp(-1.0), np.exp(0.5)
    np.testing.assert_allclose(weights(level="token"), [[low, high, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(weights(), [[np.exp(-0.5)] * 3 + [0]], rtol=1e-6)
    truncated = weights(level="token", mode="truncate", low=0.5, high=1.5)
    np.testing.assert_allclose(truncated, [[0.5, 1.5, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(weights(level="token", high=1.5), [[low, 0, 1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(weights(high=0.5), np.zeros((1, 4)))
    program = value_and_grad(lambda *arrays: jnp.sum(objectives.importance_weights(*arrays)))
    slope = program(old, sampler, mask)[1]
    np.testing.assert_array_equal(slope, np.zeros((1, 4)))


def test_off_policy_keep():
    """TRL's example: of KL 2, 0.5 and 2 under threshold 1, only the last is left behind."""
    drift = np.array([[2.0, 2], [0.5, 0.5], [2, 2]], np.float32)
    mask = np.array([[True, True], [True, True], [True, False]])
    advantages = np.array([1.0, -1, -1], np.float32)
    kept = o.off_policy_keep(-drift, np.zeros_like(drift), advantages, mask, threshold=1.0)
    assert kept.tolist() == [[True, True], [True, True], [False, False]]


def test_high_entropy_keep():
    """TRL's example: two of ten tokens lie above the quantile 0.8."""
    entropies = np.array(
        [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.8, 0.9, 1.0, 1.1, 1.2]], np.float32
    )
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    kept = o.high_entropy_keep(entropies, mask, share=0.2)
    assert [float(x) for x in entropies[kept]] == pytest.approx([0.9, 1.0])
    assert not np.any(o.high_entropy_keep(entropies, np.zeros_like(mask)))


def test_rloo_by_hand():
    loss, gradient = value_and_grad(objectives.reinforce_loss)(LOGP, ADVANTAGES, MASK)
    sums = (LOGP * MASK).sum(-1)
    assert float(loss) == pytest.approx(-(ADVANTAGES * sums).mean(), rel=1e-6)
    np.testing.assert_allclose(gradient, -ADVANTAGES[:, None] / 3 * MASK, rtol=1e-6)


def test_spike_rl_by_hand():
    """Two trajectories, K = 3 windows, N = 2 hypotheses; the first window is left out."""
    logp = -1.0 - 0.1 * np.arange(48, dtype=np.float32).reshape(2, 3, 2, 4)
    mask = np.zeros((2, 3, 2, 4), bool)
    mask[:, 1:, :, :3] = True
    mask[1, 2, 1] = False  # a hypothesis that was not written
    advantages = np.array([0.7071, -0.7071], np.float32)
    wanted = -np.mean([a * logp[r][mask[r]].sum() for r, a in enumerate(advantages)])
    loss, gradient = value_and_grad(objectives.spike_rl_loss)(logp, advantages, mask)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    # Good trajectories rise, bad ones fall, every token of an action by the same amount.
    np.testing.assert_allclose(gradient, -0.5 * advantages[:, None, None, None] * mask, rtol=1e-6)
    # KL is a term of its own: its sign does not turn with the advantage's.
    reference = logp - 0.3

    def penalty(lp):
        return objectives.token_mean(objectives.kl_estimate(lp, reference, mask), mask)

    kl = value_and_grad(penalty)(logp)[1]
    assert np.all(kl[mask] > 0)


MASKED = {
    "token_log_ratio": objectives.token_log_ratio,
    "sequence_log_ratio": objectives.sequence_log_ratio,
    "gspo_token_log_ratio": objectives.gspo_token_log_ratio,
    "k1": functools.partial(objectives.kl_estimate, kind="k1"),
    "k2": functools.partial(objectives.kl_estimate, kind="k2"),
    "k3": objectives.kl_estimate,
    "grpo_loss": lambda lp, old, m: objectives.grpo_loss(lp, old, ADVANTAGES, m),
    "gspo_loss": lambda lp, old, m: objectives.gspo_loss(lp, old, ADVANTAGES, m, low=0.9, high=9.0),
    "cispo_loss": lambda lp, old, m: objectives.cispo_loss(lp, old, ADVANTAGES, m),
    "reinforce_loss": lambda lp, old, m: objectives.reinforce_loss(lp, ADVANTAGES, m),
    "spike_rl_loss": lambda lp, old, m: objectives.spike_rl_loss(
        lp[:, None, None], ADVANTAGES, m[:, None, None]
    ),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("poison", [np.nan, -np.inf, 1e30])
def test_padding_may_hold_anything(name, poison):
    program = masked(name)
    clean, clean_gradient = program(LOGP, OLD, MASK)
    value, gradient = program(
        np.where(MASK, LOGP, np.float32(poison)), np.where(MASK, OLD, np.float32(-poison)), MASK
    )
    np.testing.assert_array_equal(value, clean)
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~MASK])
    assert np.any(gradient[MASK])


@functools.cache
def masked(name):
    function = MASKED[name]
    slope = jax.grad(lambda *arrays: jnp.sum(function(*arrays)))
    return compiled(lambda *arrays: (function(*arrays), slope(*arrays)))
