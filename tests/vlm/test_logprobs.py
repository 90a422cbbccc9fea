"""Log-probabilities of given tokens: equal to the plain formula, and never [rows, V] at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from vlm.logprobs import continuation_logprobs, token_logprobs
from vlm.model import Tokens, last, logits, run

CONFIG = small.CONFIG
V, D = CONFIG.text.vocab, CONFIG.text.hidden


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request):
    text = dataclasses.replace(CONFIG.text, tied=request.param)
    return small.model(dataclasses.replace(CONFIG, text=text))


def states(*rows, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*rows, D)), jnp.float32)
    return hidden, jnp.asarray(rng.integers(0, V, rows), jnp.int32)


def plain(model, hidden, targets):
    """log softmax in float64, gathered."""
    kernel = model.embed.embedding[...].T if model.head is None else model.head.kernel[...]
    z = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    z = z - z.max(-1, keepdims=True)
    z = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return np.take_along_axis(z, np.asarray(targets)[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 4, 20, 21, 1000])  # of 21 rows
def test_equals_the_gathered_log_softmax(model, chunk):
    hidden, targets = states(3, 7)
    found = token_logprobs(model, hidden, targets, chunk=chunk)
    assert found.shape == (3, 7) and found.dtype == jnp.float32
    expected = plain(model, hidden, targets)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_probabilities_of_all_tokens_sum_to_one(model):
    hidden, _ = states(1)
    found = token_logprobs(model, hidden.repeat(V, 0), jnp.arange(V), chunk=7)
    assert float(jnp.exp(found).sum()) == pytest.approx(1.0, abs=1e-5)


def test_no_rows_and_one_row(model):
    assert token_logprobs(model, *states(2, 0)).shape == (2, 0)
    hidden, targets = states()
    np.testing.assert_allclose(
        token_logprobs(model, hidden, targets), plain(model, hidden, targets), atol=1e-5
    )


def test_large_logits_do_not_overflow(model):
    hidden, targets = states(4)
    found = token_logprobs(model, 300 * hidden, targets, chunk=3)
    np.testing.assert_allclose(found, plain(model, 300 * hidden, targets), rtol=1e-5, atol=1e-3)


def test_bfloat16_parameters_still_give_float32():
    model = small.model(dtype=jnp.bfloat16)
    hidden, targets = states(4, 5)
    hidden = hidden.astype(jnp.bfloat16)
    found = token_logprobs(model, hidden, targets, chunk=6)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, plain(model, hidden, targets), atol=1e-4)


def weighted(graph, chunk):
    """A function of (state, hidden, targets) whose gradient weighs rows differently."""

    def loss(state, hidden, targets):
        found = token_logprobs(nnx.merge(graph, state), hidden, targets, chunk=chunk)
        return jnp.sum(found * jnp.linspace(0.5, 2.0, targets.size).reshape(targets.shape))

    return loss


def test_gradients_equal_the_unchunked_ones(model):
    graph, state = nnx.split(model)
    hidden, targets = states(3, 7)

    def unchunked(state, hidden, targets):
        z = jax.nn.log_softmax(logits(nnx.merge(graph, state), hidden), axis=-1)
        found = jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(found * jnp.linspace(0.5, 2.0, 21).reshape(3, 7))

    expected = small.jit(jax.grad(unchunked, argnums=(0, 1)))(state, hidden, targets)
    for chunk in (4, 21):
        gradients = small.jit(jax.grad(weighted(graph, chunk), argnums=(0, 1)))
        found = gradients(state, hidden, targets)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        assert float(jnp.abs(found[1]).max()) > 0.1


def largest(jaxpr):
    """Elements of the largest array that any equation makes, inner programs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [out.aval.size for out in equation.outvars]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                sizes.append(largest(inner))
    return max(sizes)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_logits_of_all_rows_never_exist(model, gradient):
    graph, state = nnx.split(model)
    rows = 960
    hidden, targets = states(8, rows // 8)

    def program(chunk):
        loss = weighted(graph, chunk)
        loss = jax.grad(loss, argnums=(0, 1)) if gradient else loss
        return largest(jax.make_jaxpr(loss)(state, hidden, targets).jaxpr)

    assert program(rows) >= rows * V  # the walk does find them where they are
    assert program(8) <= rows * D < rows * V  # nothing larger than the states themselves


# Continuations of a shared prefix

B, N, L, P = 2, 3, 5, 6


def test_continuations_equal_the_uncached_forward_of_prompt_and_row():
    graph, state = nnx.split(small.model())
    rng = np.random.default_rng(3)
    lengths = np.array([6, 4])
    prompt = rng.integers(0, 36, (B, P)).astype(np.int32)
    rows = rng.integers(0, 36, (B, N, L)).astype(np.int32)
    valid = np.arange(P) < lengths[:, None]
    row_valid = np.ones((B, N, L), bool)
    row_valid[0, 1, 3:] = False  # a row of three tokens

    def tokens(ids, start, valid):
        places = start[:, None, None] + np.arange(ids.shape[2])
        places = np.broadcast_to(places, (3, *ids.shape)).astype(np.int32)
        return Tokens(ids, np.ascontiguousarray(places), valid)

    @small.jit
    def shared(state, prompt, rows):
        model = nnx.merge(graph, state)
        hidden, prefix = run(model, prompt)
        hidden = last(hidden, prompt.valid)[:, 0]
        return continuation_logprobs(model, prefix, hidden, rows, chunk=7)

    @small.jit
    def whole(state, both):
        model = nnx.merge(graph, state)
        return jax.nn.log_softmax(logits(model, run(model, both)[0]), axis=-1)

    found = shared(
        state,
        tokens(prompt[:, None], np.zeros(B, int), valid[:, None]),
        tokens(rows, lengths, row_valid),
    )
    assert found.shape == (B, N, L) and found.dtype == jnp.float32
    for b, length in enumerate(lengths):
        ids = np.concatenate([np.tile(prompt[b, :length], (N, 1)), rows[b]], axis=1)[None]
        ids = np.pad(ids, ((0, 0), (0, 0), (0, P + L - ids.shape[2])))
        z = np.asarray(whole(state, tokens(ids, np.zeros(1, int), np.ones(ids.shape, bool))))
        z = z[0, :, length - 1 : length - 1 + L]
        expected = np.take_along_axis(z, rows[b][..., None], axis=-1)[..., 0]
        good = row_valid[b]
        np.testing.assert_allclose(np.asarray(found[b])[good], expected[good], atol=1e-5)
