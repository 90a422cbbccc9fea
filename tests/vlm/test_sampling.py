"""Token choice against hand-worked nuclei and statistics; generation against uncached forwards."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from vlm.model import Tokens, last, logits, run
from vlm.sampling import Sampling, choose, generate

jitted = small.jit(choose)


def seeds(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.uint32).reshape(shape)


def draws(probabilities, count=400, step=0, **sampling):
    """Tokens drawn from one distribution by rows of seeds 0, 1, ..."""
    z = jnp.log(jnp.asarray(probabilities, jnp.float32)) + 3.0  # logits have no fixed origin
    z = jnp.broadcast_to(z, (count, len(probabilities)))
    return np.asarray(jitted(z, seeds(count), step, Sampling(**sampling)))


def kept(probabilities, **sampling):
    return set(draws(probabilities, **sampling).tolist())


# Choice

SHUFFLED = [0.1, 0.4, 0.2, 0.3]  # by rank: tokens 1, 3, 2, 0


def test_greedy_is_the_largest_logit_and_of_equals_the_first():
    z = jnp.asarray([[0.0, 5.0, 5.0, 1.0], [-1.0, -3.0, -2.0, -1.5]])
    for top_p, top_k in [(1.0, 0), (0.1, 0), (1.0, 3)]:
        sampling = Sampling(temperature=0.0, top_p=top_p, top_k=top_k)
        np.testing.assert_array_equal(jitted(z, seeds(2), 0, sampling), [1, 0])


@pytest.mark.parametrize(
    ("top_k", "tokens"),
    [
        (1, {1}),
        (2, {1, 3}),
        (3, {1, 3, 2}),
        (4, {0, 1, 2, 3}),
        (9, {0, 1, 2, 3}),
        (0, {0, 1, 2, 3}),
    ],
)
def test_top_k_keeps_the_k_most_likely(top_k, tokens):
    assert kept(SHUFFLED, top_k=top_k) == tokens


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [
        (0.0, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),  # 0.4 does not reach it; the token that crosses is in
        (0.69, {1, 3}),
        (0.71, {1, 3, 2}),
        (0.91, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_the_nucleus_holds_the_token_that_crosses_the_mass(top_p, tokens):
    assert kept(SHUFFLED, top_p=top_p) == tokens


def test_the_nucleus_is_taken_among_the_top_k_and_after_the_temperature():
    assert kept(SHUFFLED, top_p=0.5) == {1, 3}
    # Of the top two, 0.4 / 0.7 = 0.57 alone reaches 0.5.
    assert kept(SHUFFLED, top_p=0.5, top_k=2) == {1}
    # Temperature 1/2 squares: 16, 9, 4, 1 of 30, and 16/30 alone reaches 0.5.
    assert kept(SHUFFLED, top_p=0.5, temperature=0.5) == {1}
    # Temperature 2 takes roots: 0.325, 0.282, 0.230, 0.163.
    assert kept(SHUFFLED, top_p=0.62, temperature=2.0) == {1, 3, 2}


def test_a_nucleus_of_one_keeps_the_whole_vocabulary(monkeypatch):
    """Also where rounding loses the tail against the rest, and whatever the other rows' top_p."""
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(1 - 2**-23))
    z = jnp.tile(jnp.arange(0.0, -40.0, -0.01), (3, 1))
    last = partial(small.jit(choose), z, seeds(3), 0)
    whole = last(Sampling())
    np.testing.assert_array_equal(whole, [whole[0]] * 3)
    assert int(whole[0]) > 1500  # e^-15 of the mass
    mixed = last(Sampling(top_p=jnp.array([1.0, 0.5, 1.0])))
    np.testing.assert_array_equal(mixed, [whole[0], 69, whole[0]])  # 1 - e^-0.7 crosses a half


def test_a_token_without_mass_is_never_drawn(monkeypatch):
    for u in (0.0, 0.5, 1 - 2**-23):
        monkeypatch.setattr(jax.random, "uniform", lambda key, u=u: jnp.float32(u))
        z = jnp.full((1, 1000), -jnp.inf).at[0, jnp.array([130, 300, 301])].set(0.1)
        assert int(choose(z, seeds(1), 0, Sampling())[0]) in (130, 300, 301)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_follow_the_softmax_at_the_temperature(temperature):
    """Pearson's chi-square of 20,000 fixed draws: with 5 degrees of freedom, 25.7 is p = 1e-4."""
    p = np.array([0.05, 0.3, 0.02, 0.4, 0.13, 0.1])
    expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum() * 20_000
    found = np.bincount(draws(p, 20_000, temperature=temperature), minlength=6)
    assert ((found - expected) ** 2 / expected).sum() < 25.7
    wrong = p ** (1 / (temperature * 1.2)) / (p ** (1 / (temperature * 1.2))).sum() * 20_000
    assert ((found - wrong) ** 2 / wrong).sum() > 25.7  # the bound tells 20 % of temperature


def test_frequencies_follow_the_renormalised_nucleus():
    found = np.bincount(draws(SHUFFLED, 20_000, top_p=0.8), minlength=4)
    expected = np.array([0.4, 0.2, 0.3]) / 0.9 * 20_000
    assert found[0] == 0
    assert ((found[1:] - expected) ** 2 / expected).sum() < 18.4  # 2 degrees of freedom, p = 1e-4


def test_steps_of_one_seed_are_independent_draws():
    p = np.array([0.2, 0.5, 0.3])
    z = jnp.log(jnp.asarray(p, jnp.float32))[None]
    over = small.jit(jax.vmap(lambda step: choose(z, seeds(1), step, Sampling())[0]))
    tokens = np.asarray(over(jnp.arange(6000)))
    pairs = np.bincount(3 * tokens[:-1] + tokens[1:], minlength=9)
    expected = np.outer(p, p).reshape(-1) * 5999
    assert ((pairs - expected) ** 2 / expected).sum() < 33.4  # below p = 1e-4 at 8 degrees


def test_a_row_depends_on_its_own_logits_and_seed_alone():
    z = np.random.default_rng(1).normal(size=(2, 4, 50)).astype(np.float32)
    own = np.random.default_rng(0).integers(0, 2**32, (2, 4), dtype=np.uint32)
    together = np.asarray(jitted(z, own, 3, Sampling()))
    shuffled = jitted(z[::-1, ::-1], own[::-1, ::-1], 3, Sampling())
    np.testing.assert_array_equal(np.asarray(shuffled)[::-1, ::-1], together)
    for b, n in np.ndindex(2, 4):
        assert jitted(z[b, n][None], own[b, n][None], 3, Sampling())[0] == together[b, n]
    one_moved = z.copy()
    one_moved[1, 2] *= -1
    elsewhere = np.ones((2, 4), bool)
    elsewhere[1, 2] = False
    moved = np.asarray(jitted(one_moved, own, 3, Sampling()))
    np.testing.assert_array_equal(moved[elsewhere], together[elsewhere])
    assert (np.asarray(jitted(z, own, 4, Sampling())) != together).any()
    assert (np.asarray(jitted(z, own + np.uint32(1), 3, Sampling())) != together).any()


def test_each_row_may_have_its_own_settings():
    z = jnp.broadcast_to(jnp.log(jnp.asarray(SHUFFLED, jnp.float32)), (100, 3, 4))
    sampling = Sampling(
        temperature=jnp.asarray([[0.0, 1.0, 1.0]]).repeat(100, 0),
        top_p=jnp.asarray([[1.0, 0.5, 1.0]]).repeat(100, 0),
        top_k=jnp.asarray([[0, 0, 3]]).repeat(100, 0),
    )
    tokens = np.asarray(jitted(z, seeds(100, 3), 0, sampling))
    assert [set(column.tolist()) for column in tokens.T] == [{1}, {1, 3}, {1, 2, 3}]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 50.0}, {"top_k": 4}, {"temperature": 0.0}]
)
def test_forbidden_tokens_are_never_drawn(sampling):
    assert kept([0.0, 0.2, 0.0, 0.8], **sampling) <= {1, 3}


def test_towards_temperature_zero_draws_become_greedy():
    z = jax.random.normal(jax.random.key(2), (200, 30))
    best = jnp.argmax(z, axis=-1)
    for temperature in (1e-4, 1e-8):
        cold = jitted(z, seeds(200), 0, Sampling(temperature=temperature))
        assert (np.asarray(cold == best)).mean() >= (0.99 if temperature > 1e-5 else 1)
    assert (np.asarray(jitted(z, seeds(200), 0, Sampling()) == best)).mean() < 0.6


# Generation

B, N, L = 2, 3, 10
CONFIG = small.CONFIG
LENGTHS = np.array([7, 4])


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Two prompts of 7 and 4 tokens, prefilled, and the jitted generator that continues them."""

    state: nnx.State
    ids: np.ndarray
    prefix: object
    hidden: jax.Array
    graph: nnx.GraphDef

    def __call__(self, seeds, *, only=slice(None), stop=(), allowed=None, tokens=L, **sampling):
        prefix, hidden = self.prefix, self.hidden
        if only != slice(None):
            k, v, valid = prefix.k[:, only], prefix.v[:, only], prefix.valid[only]
            prefix, hidden = dataclasses.replace(prefix, k=k, v=v, valid=valid), hidden[only]
        start = jnp.asarray(LENGTHS[only], jnp.int32)
        allowed = jnp.ones(CONFIG.text.vocab, bool) if allowed is None else jnp.asarray(allowed)
        out = _generate(
            self.graph, self.state, prefix, hidden, start, seeds, Sampling(**sampling), allowed,
            tokens, stop,
        )  # fmt: skip
        return SimpleNamespace(**{k: np.asarray(v) for k, v in vars(out).items()})

    def uncached(self, tokens):
        """Logits [B, N, L, V] that predict each token, from one uncached forward a row."""
        out = np.zeros((B, N, L, CONFIG.text.vocab), np.float32)
        for b, length in enumerate(LENGTHS):
            ids = np.concatenate(
                [np.tile(self.ids[b, :length], (N, 1)), tokens[b], np.zeros((N, 7 - length))], 1
            ).astype(np.int32)
            z = np.asarray(_uncached(self.graph, self.state, ids))
            out[b] = z[:, length - 1 : length - 1 + L]
        return out


@partial(small.jit, static_argnums=(0, 8, 9))
def _generate(graph, state, prefix, hidden, start, seeds, sampling, allowed, tokens, stop):
    return generate(
        nnx.merge(graph, state), prefix, hidden, start, seeds, sampling,
        max_tokens=tokens, stop_tokens=stop, allowed=allowed,
    )  # fmt: skip


@partial(small.jit, static_argnums=0)
def _uncached(graph, state, ids):
    model = nnx.merge(graph, state)
    places = jnp.broadcast_to(jnp.arange(ids.shape[1]), (3, 1, *ids.shape))
    tokens = Tokens(ids=ids[None], positions=places, valid=jnp.ones((1, *ids.shape), bool))
    return logits(model, run(model, tokens)[0])[0]


@pytest.fixture(scope="module")
def prompted():
    graph, state = nnx.split(small.model())
    valid = np.arange(7) < LENGTHS[:, None]
    ids = np.where(valid, np.random.default_rng(0).integers(0, 36, (B, 7)), 0).astype(np.int32)
    places = np.broadcast_to(np.arange(7), (3, B, 1, 7))
    tokens = Tokens(ids[:, None], np.ascontiguousarray(places), valid[:, None])

    @small.jit
    def prefill(state):
        hidden, cache = run(nnx.merge(graph, state), tokens)
        return last(hidden, tokens.valid)[:, 0], cache

    hidden, prefix = prefill(state)
    return Prompted(state, ids, prefix, hidden, graph)


@pytest.fixture(scope="module")
def sampled(prompted):
    return prompted(seeds(B, N))


def test_greedy_is_the_argmax_of_uncached_forwards(prompted):
    out = prompted(seeds(B, N), temperature=0.0)
    z = prompted.uncached(out.tokens)
    np.testing.assert_array_equal(out.tokens, z.argmax(-1))
    np.testing.assert_array_equal(out.tokens[:, 0], out.tokens[:, 2])
    assert (out.lengths == L).all() and not out.finished.any()
    assert len(np.unique(out.tokens)) > 3


def test_samples_are_choices_from_the_logits_of_uncached_forwards(prompted, sampled):
    z = prompted.uncached(sampled.tokens)
    for step in range(L):
        chosen = jitted(jnp.asarray(z[:, :, step]), seeds(B, N), step, Sampling())
        np.testing.assert_array_equal(sampled.tokens[:, :, step], chosen, err_msg=f"step {step}")


def test_samples_on_a_shared_prefix_equal_separate_runs(prompted):
    stop = (3, 30, 12, 17)
    together = prompted(seeds(B, N), stop=stop)
    assert not (together.tokens[:, 0] == together.tokens[:, 1]).all()
    assert together.finished.any() and not together.finished.all()
    for row in range(N):
        alone = prompted(seeds(B, N)[:, row : row + 1], stop=stop)
        for name in ("tokens", "lengths", "finished"):
            whole, own = vars(together)[name][:, row], vars(alone)[name][:, 0]
            np.testing.assert_array_equal(whole, own, err_msg=name)
    for prompt in range(B):
        own = slice(prompt, prompt + 1)
        alone = prompted(seeds(B, N)[own], only=own, stop=stop)
        np.testing.assert_array_equal(together.tokens[own], alone.tokens)


def test_a_stop_token_ends_its_row_and_no_other(prompted, sampled):
    """Stops are picked from what the free run says: row (0, 0) ends at its third token at last."""
    free = sampled.tokens
    stop = (int(free[0, 0, 2]), int(free[1, 1, 5]))
    out = prompted(seeds(B, N), stop=stop)
    hit = np.isin(free, stop)
    assert hit.any(-1).any()
    for b in range(B):
        for n in range(N):
            length = int(hit[b, n].argmax()) + 1 if hit[b, n].any() else L
            assert out.lengths[b, n] == length
            assert out.finished[b, n] == hit[b, n].any()
            np.testing.assert_array_equal(out.tokens[b, n, :length], free[b, n, :length])
            assert (out.tokens[b, n, length:] == stop[0]).all()  # the padding
    assert out.lengths[0, 0] <= 3 and out.lengths[1, 1] <= 6


def test_a_stop_at_the_last_token_counts_as_finished(prompted, sampled):
    """Room for one token only, which is a stop in some rows."""
    stop = (int(sampled.tokens[1, 2, 0]),)
    out = prompted(seeds(B, N), tokens=1, stop=stop)
    np.testing.assert_array_equal(out.tokens, sampled.tokens[:, :, :1])
    np.testing.assert_array_equal(out.finished, sampled.tokens[:, :, 0] == stop[0])
    assert out.finished[1, 2] and not out.finished.all() and (out.lengths == 1).all()


def test_where_all_rows_end_at_once_the_rest_is_padding(prompted):
    """Nothing but the second stop token may be said."""
    allowed = np.arange(CONFIG.text.vocab) == 11
    out = prompted(seeds(B, N), tokens=4, allowed=allowed, stop=(9, 11))
    assert (out.tokens[:, :, 0] == 11).all() and (out.tokens[:, :, 1:] == 9).all()
    assert (out.lengths == 1).all() and out.finished.all()


def test_tokens_that_are_not_allowed_are_never_said(prompted, sampled):
    allowed = np.ones(CONFIG.text.vocab, bool)
    allowed[np.unique(sampled.tokens)[::2]] = False
    out = prompted(seeds(B, N), allowed=allowed)
    assert allowed[out.tokens].all()
