"""The decoder's cache: however a sequence is cut, padded or shared, the states are the same.

The uncached run of a whole sequence is the reference; parity tests tie that one to `transformers`.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from vlm.text import Cache, Decoder

CONFIG = small.CONFIG.text
B, N, T = 2, 3, 12
CLOSE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def graph_and_state():
    return small.drawn(lambda: Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def decode(graph_and_state):
    """The jitted decoder: `decode(x, positions, valid, prefix=, own=, slot=)`."""
    graph, state = graph_and_state

    @small.jit
    def run(state, x, positions, valid, prefix, own, slot):
        decoder = nnx.merge(graph, state)
        return decoder(x, positions, valid, prefix=prefix, own=own, slot=slot)

    def call(x, positions, valid=None, prefix=None, own=None, slot=0):
        valid = np.ones(x.shape[:3], bool) if valid is None else valid
        return run(state, x, positions, valid, prefix, own, slot)

    return call


def sequence(rows=1, length=T, seed=0):
    """Embeddings and positions of B x rows sequences; the three axes go apart, and jump."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, rows, length, CONFIG.hidden)).astype(np.float32)
    steps = rng.integers(0, 3, (3, B, rows, length)).cumsum(axis=3)
    return x, steps.astype(np.int32)


def part(x, positions, start, stop):
    return x[:, :, start:stop], positions[..., start:stop]


@pytest.fixture(scope="module")
def whole(decode):
    x, positions = sequence()
    hidden, cache = decode(x, positions)
    assert float(hidden.std()) > 0.3
    return x, positions, np.asarray(hidden), cache


def test_prefilled_in_chunks_equals_whole(decode, whole):
    """Each chunk sees those before it as its prefix, and is appended to them."""
    x, positions, hidden, cache = whole
    first, prefix = decode(*part(x, positions, 0, 5))
    second, own = decode(*part(x, positions, 5, 9), prefix=prefix)
    prefix = prefix.append(own)
    third, own = decode(*part(x, positions, 9, T), prefix=prefix)
    prefix = prefix.append(own)
    np.testing.assert_allclose(np.concatenate([first, second, third], axis=2), hidden, **CLOSE)
    np.testing.assert_allclose(prefix.k, cache.k, **CLOSE)
    np.testing.assert_allclose(prefix.v, cache.v, **CLOSE)
    np.testing.assert_array_equal(prefix.valid, cache.valid)


@pytest.mark.parametrize("cuts", [(0, 4, 8, 12), tuple(range(13))], ids=["chunks", "tokens"])
def test_written_into_slots_equals_whole(decode, whole, cuts):
    x, positions, hidden, cache = whole
    own = Cache.empty(CONFIG, B, 1, T + 2, jnp.float32)
    states = []
    for start, stop in itertools.pairwise(cuts):
        out, own = decode(*part(x, positions, start, stop), own=own, slot=np.int32(start))
        states.append(out)
    np.testing.assert_allclose(np.concatenate(states, axis=2), hidden, **CLOSE)
    np.testing.assert_allclose(own.k[..., :T, :], cache.k, **CLOSE)
    np.testing.assert_array_equal(own.valid[0, 0], [True] * T + [False] * 2)


def test_what_unwritten_slots_hold_does_not_matter(decode, whole):
    x, positions, hidden, _ = whole
    empty = Cache.empty(CONFIG, B, 1, T + 2, jnp.float32)
    junk = dataclasses.replace(empty, k=empty.k + 1e3, v=empty.v - 1e3)
    out, own = decode(*part(x, positions, 0, 4), own=junk, slot=np.int32(0))
    np.testing.assert_allclose(out, hidden[:, :, :4], **CLOSE)
    out, _ = decode(*part(x, positions, 4, 8), own=own, slot=np.int32(4))
    np.testing.assert_allclose(out, hidden[:, :, 4:8], **CLOSE)


def test_rows_on_a_shared_prefix_equal_separate_runs(decode, whole):
    """N rows as one batch = each alone = the uncached sequence (prefix + row)."""
    x, positions, *_ = whole
    tail, tail_positions = sequence(rows=N, length=4, seed=1)
    tail_positions = tail_positions + positions.max()
    prefix_hidden, prefix = decode(x, positions)
    together, own = decode(tail, tail_positions, prefix=prefix)
    assert own.k.shape == (CONFIG.layers, B, N, CONFIG.kv_heads, 4, CONFIG.head_dim)
    for row in range(N):
        one = slice(row, row + 1)
        alone, _ = decode(tail[:, one], tail_positions[:, :, one], prefix=prefix)
        uncached, _ = decode(
            np.concatenate([x, tail[:, one]], axis=2),
            np.concatenate([positions, tail_positions[:, :, one]], axis=3),
        )
        np.testing.assert_allclose(together[:, one], alone, **CLOSE)
        np.testing.assert_allclose(together[:, one], uncached[:, :, T:], **CLOSE)
        np.testing.assert_allclose(prefix_hidden, uncached[:, :, :T], **CLOSE)
    assert np.abs(together[:, 0] - together[:, 1]).max() > 0.1


def test_rows_on_a_shared_prefix_token_by_token(decode, whole):
    x, positions, *_ = whole
    tail, tail_positions = sequence(rows=N, length=4, seed=2)
    _, prefix = decode(x, positions)
    expected, _ = decode(tail, tail_positions, prefix=prefix)
    own = Cache.empty(CONFIG, B, N, 4, jnp.float32)
    for t in range(4):
        one = part(tail, tail_positions, t, t + 1)
        out, own = decode(*one, prefix=prefix, own=own, slot=np.int32(t))
        np.testing.assert_allclose(out[:, :, 0], expected[:, :, t], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_the_prefix_changes_nothing(decode, whole, side):
    """Two prompts of 12 and 7 tokens in one batch, and what follows the shorter one."""
    x, positions, *_ = whole
    tail, tail_positions = sequence(rows=N, length=4, seed=3)
    at = slice(T - 7, T) if side == "left" else slice(0, 7)
    x, positions = x.copy(), positions.copy()
    own_x, own_positions = x[1:, :, :7].copy(), positions[:, 1:, :, :7].copy()
    x[1], positions[:, 1] = 1e3, 1
    x[1:, :, at], positions[:, 1:, :, at] = own_x, own_positions
    valid = np.ones((B, 1, T), bool)
    valid[1] = False
    valid[1, :, at] = True

    hidden, prefix = decode(x, positions, valid)
    after, _ = decode(tail, tail_positions, prefix=prefix)
    assert np.isfinite(np.asarray(hidden)).all()
    alone, short = decode(own_x, own_positions)
    after_alone, _ = decode(tail[1:], tail_positions[:, 1:], prefix=short)
    np.testing.assert_allclose(hidden[1:, :, at], alone, **CLOSE)
    np.testing.assert_allclose(after[1:], after_alone, **CLOSE)


def test_a_padded_row_and_padded_tokens_change_nothing(decode, whole):
    x, positions, *_ = whole
    tail, tail_positions = sequence(rows=N, length=4, seed=4)
    _, prefix = decode(x, positions)
    expected, _ = decode(tail, tail_positions, prefix=prefix)
    valid = np.ones((B, N, 4), bool)
    valid[:, 1] = False  # a row of padding
    valid[:, 2, 2:] = False  # a short row
    dirty = np.where(valid[..., None], tail, 1e3).astype(np.float32)
    out, _ = decode(dirty, tail_positions, valid, prefix=prefix)
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(out[:, 0], expected[:, 0], **CLOSE)
    np.testing.assert_allclose(out[:, 2, :2], expected[:, 2, :2], **CLOSE)


def test_no_token_sees_a_later_one_another_row_or_another_prompt(graph_and_state):
    """By gradient: state t of row n of prompt b moves with its prefix and its own past only."""
    graph, state = graph_and_state
    x, positions = sequence(seed=5)
    tail, tail_positions = sequence(rows=N, length=5, seed=6)

    @small.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(x, tail, positions, tail_positions):
        decoder = nnx.merge(graph, state)
        _, prefix = decoder(x, positions, jnp.ones(x.shape[:3], bool))
        valid = jnp.ones(tail.shape[:3], bool)
        hidden, _ = decoder(tail, tail_positions, valid, prefix=prefix)
        return jnp.sum(hidden[1, 2, 3] * jnp.arange(1.0, CONFIG.hidden + 1))

    found = gradients(x, tail, positions, tail_positions)
    by_prefix, by_tail = (np.abs(gradient).max(-1) for gradient in found)
    assert (by_prefix[0] == 0).all() and (by_prefix[1] > 0).all()
    reached = np.zeros((B, N, 5), bool)
    reached[1, 2, :4] = True
    np.testing.assert_array_equal(by_tail > 0, reached)


def test_the_three_axes_all_count(decode, whole):
    x, positions, hidden, _ = whole
    for axis in range(3):
        moved = positions.copy()
        moved[axis, :, :, 6:] += 3
        out, _ = decode(x, moved)
        np.testing.assert_allclose(out[:, :, :6], hidden[:, :, :6], **CLOSE)
        assert np.abs(out[:, :, 6:] - hidden[:, :, 6:]).max() > 1e-3
    # A rotary embedding sees distances only.
    out, _ = decode(x, positions + 100)
    np.testing.assert_allclose(out, hidden, atol=1e-4)


def test_remat_changes_neither_values_nor_gradients(graph_and_state):
    graph, state = graph_and_state
    x, positions = map(jnp.asarray, sequence(length=5, seed=7))

    def value_and_gradients(remat):
        @partial(jax.value_and_grad, argnums=(0, 1))
        def loss(state, x):
            decoder, valid = nnx.merge(graph, state), jnp.ones(x.shape[:3], bool)
            return jnp.mean(jnp.sin(decoder(x, positions, valid, remat=remat)[0]))

        # jax.checkpoint shows as a `remat2` or `checkpoint` equation.
        equations = str(jax.make_jaxpr(loss)(state, x))
        assert remat == ("checkpoint" in equations or "remat" in equations)
        return small.jit(loss)(state, x)

    kept, again = value_and_gradients(False), value_and_gradients(True)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in jax.tree.leaves(kept))


def test_one_layer_is_traced_whatever_the_depth():
    x, positions = map(jnp.asarray, sequence())

    def products(layers):
        config = dataclasses.replace(CONFIG, layers=layers)
        graph, state = small.drawn(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        valid = jnp.ones(x.shape[:3], bool)
        jaxpr = jax.make_jaxpr(lambda state: nnx.merge(graph, state)(x, positions, valid)[0])
        return str(jaxpr(state)).count("dot_general")

    assert products(2) == products(7) > 0


def test_bfloat16_states_stay_near_float32(graph_and_state, whole):
    x, positions, hidden, _ = whole
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), graph_and_state[1])
    graph, _ = small.drawn(lambda: Decoder(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))

    @small.jit
    def run(state, x, positions):
        return nnx.merge(graph, state)(x, positions, jnp.ones(x.shape[:3], bool))

    out, cache = run(half, jnp.asarray(x, jnp.bfloat16), positions)
    assert out.dtype == cache.k.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float32) - hidden)
    assert error.mean() < 0.02 and error.max() < 0.2
