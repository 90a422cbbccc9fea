import jax
import jax.numpy as jnp
import numpy as np
import pytest

from surprise import Settings, kl_divergence
from surprise.likelihood import (
    bayes,
    log_beliefs,
    log_probe,
    log_ratio,
    reduce_nll,
    weigh,
    with_other,
)

ALL = np.ones((1, 3), bool)


def test_reduction_by_mean_and_by_sum():
    nll, tokens = np.array([6.0, 2.0, 0.0]), np.array([3, 4, 0])
    assert reduce_nll(nll, tokens).tolist() == [2.0, 0.5, 0.0]
    assert reduce_nll(nll, tokens, reduction="sum").tolist() == [6.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="reduction is 'median'"):
        reduce_nll(nll, tokens, reduction="median")


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_beliefs_are_the_tempered_softmax_of_minus_nll(array):
    # exp(-log 2), exp(-log 4), exp(-log 4): weights 2, 1, 1; tau 0.5 squares them: 4, 1, 1
    nll = array(np.log([2.0, 4.0, 4.0]))
    np.testing.assert_allclose(np.exp(log_beliefs(nll)), [0.5, 0.25, 0.25], rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_beliefs(nll, tau=0.5)), [4 / 6, 1 / 6, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_a_masked_hypothesis_is_as_good_as_absent(array):
    nll = array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]])
    valid = array([[True, False, True], [False, False, False]])
    logs = log_beliefs(nll, valid)
    np.testing.assert_allclose(logs[0, ::2], log_beliefs(array([1.0, 2.0])), rtol=1e-6)
    assert logs[0, 1] == -np.inf
    assert np.all(np.asarray(logs[1]) == -np.inf)


def test_masked_gradients_are_finite():
    valid = jnp.array([True, False, True])

    def loss(nll):
        return jnp.exp(log_beliefs(nll, valid))[0]

    gradient = jax.grad(loss)(jnp.array([1.0, jnp.nan, 2.0]))
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(gradient, [-share * (1 - share), 0, share * (1 - share)], rtol=1e-5)


def test_bayes_rule():
    log_posterior = bayes(np.log([0.5, 0.25, 0.25]), np.log([0.1, 0.2, 0.6]))
    np.testing.assert_allclose(np.exp(log_posterior), [0.2, 0.2, 0.6])  # 5 : 5 : 15


def test_the_ratio_makes_bayes_rule_give_equation_2():
    before, after = np.random.default_rng(0).uniform(0, 5, (2, 4, 3))
    by_bayes = bayes(log_beliefs(before, tau=0.7), log_ratio(after, before, tau=0.7))
    np.testing.assert_allclose(by_bayes, log_beliefs(after, tau=0.7), atol=1e-12)


def test_the_probe_has_a_floor():
    np.testing.assert_allclose(
        log_probe(np.array([0.0, 0.5, 1.0])), [np.log(1e-30), np.log(0.5), 0]
    )


def test_something_else_gives_kl_the_case_it_is_blind_to():
    # Three hypotheses of prior 0.3 and likelihood 0.01 each, "something else" of 0.1 and 0.5:
    # posterior 0.003 : 0.003 : 0.003 : 0.05
    log_prior, log_likelihood = with_other(np.log(np.full(3, 1 / 3)), np.log(np.full(3, 0.01)))
    np.testing.assert_allclose(np.exp(log_prior), [0.3, 0.3, 0.3, 0.1])
    posterior = np.exp(bayes(log_prior, log_likelihood))
    np.testing.assert_allclose(posterior, np.array([3, 3, 3, 50]) / 59)
    expected = 9 / 59 * np.log(9 / 59 / 0.9) + 50 / 59 * np.log(50 / 59 / 0.1)
    assert kl_divergence(posterior, np.exp(log_prior)) == pytest.approx(expected)
    assert expected > 1.5


def test_weigh_by_nll():
    prior_nll, posterior_nll = np.log([[2.0, 4.0, 4.0]]), np.log([[8.0, 2.0, 8.0 / 3]])
    beliefs = weigh(Settings(), ALL, prior_nll, posterior_nll)
    np.testing.assert_allclose(beliefs.prior, [[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(beliefs.posterior, [[0.125, 0.5, 0.375]])
    # .125 log .25 + .5 log 2 + .375 log 1.5
    assert beliefs.kl[0] == pytest.approx(0.25 * np.log(2) + 0.375 * np.log(1.5))
    # likelihoods 1/8, 1/2, 3/8: .5/8 + .25/2 + .25 * 3/8 = 9/32
    assert beliefs.evidence[0] == pytest.approx(np.log(32 / 9))
    # ratios 1/4, 2, 3/2: 1/8 + 1/2 + 3/8 = 1
    ratio = weigh(Settings(likelihood="ratio"), ALL, prior_nll, posterior_nll)
    assert ratio.evidence[0] == pytest.approx(0.0, abs=1e-12)
    assert ratio.kl[0] == pytest.approx(beliefs.kl[0])


def test_weigh_by_probe_sees_only_relative_support_and_evidence_the_rest():
    settings = Settings(posterior="probe")
    refuted = weigh(settings, ALL, np.ones((1, 3)), np.full((1, 3), 0.01))
    assert refuted.kl[0] == 0.0
    assert refuted.evidence[0] == pytest.approx(4.6052, abs=5e-5)
    mixed = weigh(settings, ALL, np.ones((1, 3)), np.array([[0.9, 0.01, 0.01]]))
    assert mixed.kl[0] == pytest.approx(0.9788, abs=5e-5)
    assert mixed.js[0] == pytest.approx(0.3941, abs=5e-5)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(posterior="probe"),
        Settings(posterior="probe", other=True),
        Settings(likelihood="ratio", other=True),
        Settings(reduction="sum"),
    ],
)
def test_padding_changes_nothing_and_an_empty_step_scores_zero(settings):
    prior_nll, support = np.array([[0.5, 2.0, 9.0]]), np.array([[0.8, 0.1, 0.4]])
    whole = weigh(settings, ALL[:, :2], prior_nll[:, :2], support[:, :2])
    padded = weigh(settings, np.array([[True, True, False]]), prior_nll, support)
    for name in ("kl", "js", "evidence"):
        np.testing.assert_allclose(vars(padded)[name], vars(whole)[name], rtol=1e-12)
    assert padded.posterior[0, 2] == 0.0
    assert padded.posterior[0].sum() == pytest.approx(1.0)
    empty = weigh(settings, ~ALL, prior_nll, support)
    assert empty.kl[0] == empty.js[0] == empty.evidence[0] == 0.0
    assert not empty.prior.any() and not empty.posterior.any()


def test_extreme_likelihoods_stay_finite():
    settings = Settings(reduction="sum")
    beliefs = weigh(settings, ALL, np.array([[0.0, 900.0, 9e4]]), np.array([[9e4, 900.0, 0.0]]))
    assert np.isfinite([beliefs.kl[0], beliefs.js[0], beliefs.evidence[0]]).all()
    assert beliefs.kl[0] > 700
