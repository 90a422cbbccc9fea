import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surprise import evidence, js_divergence, kl_divergence, log_evidence
from surprise.divergence import logsumexp

LIBRARIES = [
    pytest.param(lambda values: np.array(values, np.float64), 1e-6, id="numpy"),
    pytest.param(lambda values: jnp.array(values, jnp.float32), 2e-6, id="jax"),
]


@pytest.mark.parametrize("array,atol", LIBRARIES)
@pytest.mark.parametrize(
    "count,kl,js",
    [(3, 1.098612, 0.459148), (5, 1.609438, 0.609987), (10, 2.302585, 0.758277)],
)
def test_uniform_prior_to_one_hot(array, atol, count, kl, js):
    prior = array([1 / count] * count)
    posterior = array([1.0] + [0.0] * (count - 1))
    np.testing.assert_allclose(kl_divergence(posterior, prior), kl, atol=atol)
    np.testing.assert_allclose(js_divergence(posterior, prior), js, atol=atol)


@pytest.mark.parametrize("array,atol", LIBRARIES)
def test_yes_probabilities_of_the_reference_table(array, atol):
    yes = np.array(
        [[0.01, 0.01, 0.01], [0.9, 0.9, 0.9], [0.9, 0.9, 0.01], [0.9, 0.01, 0.01],
         [0.01, 0.02, 0.03]]
    )  # fmt: skip
    prior = array(np.full((5, 3), 1 / 3))
    posterior = array(yes / yes.sum(-1, keepdims=True))
    expected = np.array(
        [[0, 0, 4.6052], [0, 0, 0.1054], [0.3751, 0.1726, 0.5053], [0.9788, 0.3941, 1.1820],
         [0.0872, 0.0325, 3.9120]]
    )  # fmt: skip
    np.testing.assert_allclose(kl_divergence(posterior, prior), expected[:, 0], atol=5e-5)
    np.testing.assert_allclose(js_divergence(posterior, prior), expected[:, 1], atol=5e-5)
    np.testing.assert_allclose(evidence(prior, array(yes)), expected[:, 2], atol=5e-5)
    logs = log_evidence(jnp.log(prior) if atol > 1e-6 else np.log(prior), array(np.log(yes)))
    np.testing.assert_allclose(logs, expected[:, 2], atol=5e-5)


@pytest.mark.parametrize("array,atol", LIBRARIES)
def test_zeros(array, atol):
    half = array([0.5, 0.5, 0.0])
    assert float(kl_divergence(half, half)) == 0.0
    assert float(kl_divergence(array([1.0, 0.0, 0.0]), half)) == pytest.approx(np.log(2))
    assert float(kl_divergence(half, array([1.0, 0.0, 0.0]))) == np.inf
    assert float(js_divergence(array([1.0, 0.0]), array([0.0, 1.0]))) == pytest.approx(1.0)
    assert float(evidence(half, array([0.0, 0.0, 1.0]))) == np.inf
    assert float(logsumexp(array([-np.inf, -np.inf]))) == -np.inf
    assert float(logsumexp(array([-np.inf, 3.0]))) == 3.0


def test_logarithms_keep_what_probabilities_lose():
    logs = np.array([-2000.0, -2001.0])
    assert log_evidence(np.log([0.5, 0.5]), logs) == pytest.approx(
        2000 - np.log(0.5 * (1 + np.exp(-1)))
    )
    assert evidence(np.array([0.5, 0.5]), np.exp(logs)) == np.inf


def test_js_is_symmetric_and_within_one_bit():
    p, q = np.random.default_rng(0).dirichlet(np.full(6, 0.2), (2, 500))
    js = js_divergence(p, q)
    np.testing.assert_allclose(js, js_divergence(q, p), atol=1e-12)
    assert js.shape == (500,) and js.min() >= 0 and js.max() <= 1


def test_numpy_computes_in_float64_and_jax_in_float32_at_least():
    p = np.array([0.3, 0.7], np.float32)
    assert kl_divergence(p, p[::-1]).dtype == np.float64
    assert kl_divergence(jnp.array([0.3, 0.7], jnp.bfloat16), jnp.array([0.5, 0.5])).dtype == (
        jnp.float32
    )
    mixed = kl_divergence(p, jnp.array([0.5, 0.5]))
    assert isinstance(mixed, jax.Array)


def test_works_under_jit_and_vmap():
    p, q = np.random.default_rng(1).dirichlet(np.ones(4), (2, 5)).astype(np.float32)
    expected = kl_divergence(p, q)
    np.testing.assert_allclose(jax.jit(kl_divergence)(p, q), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(kl_divergence)(p, q), expected, rtol=1e-5)


def test_gradients_are_finite_at_zeros_and_right_elsewhere():
    zeros, full = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.2, 0.3, 0.5])
    for function in (kl_divergence, js_divergence, evidence):
        for first, second in ((zeros, full), (full, zeros), (zeros, zeros), (0 * full, full)):
            gradients = jax.grad(function, argnums=(0, 1))(first, second)
            assert all(bool(jnp.isfinite(part).all()) for part in gradients)
    # d KL / d post_i = log(post_i / prior_i) + 1, and d KL / d prior_i = -post_i / prior_i
    posterior = jnp.array([0.6, 0.3, 0.1])
    ours = jax.grad(kl_divergence, argnums=(0, 1))(posterior, full)
    np.testing.assert_allclose(ours[0], jnp.log(posterior / full) + 1, rtol=1e-5)
    np.testing.assert_allclose(ours[1], -posterior / full, rtol=1e-5)
