"""One softmax over a shared prefix and the rows' own slots, against plain attention in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from vlm.attention import attend

# B prompts, N rows, T queries, S own slots, P prefix slots.
B, N, T, S, P, HEADS, KV, H = 2, 3, 4, 5, 6, 6, 2, 8
run = small.jit(attend)


def drawn(shape, seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    mask = rng.random((B, N, T, S)) < 0.6
    mask[..., 0] = True
    valid = rng.random((B, P)) < 0.6
    valid[:, 1] = True
    return {
        "q": drawn((B, N, T, HEADS, H), 0),
        "k": drawn((B, N, S, KV, H), 1),
        "v": drawn((B, N, S, KV, H), 2),
        "mask": jnp.asarray(mask),
        "prefix": (drawn((B, P, KV, H), 3), drawn((B, P, KV, H), 4), jnp.asarray(valid)),
    }


def plain(q, k, v, mask, prefix=None):
    """float64, a loop over heads, the prefix copied to every row."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    mask = np.asarray(mask)
    if prefix is not None:
        pk, pv, valid = (np.asarray(x) for x in prefix)
        rows = q.shape[1]
        k = np.concatenate([k, np.repeat(pk[:, None], rows, 1)], axis=2)
        v = np.concatenate([v, np.repeat(pv[:, None], rows, 1)], axis=2)
        shape = (*mask.shape[:3], valid.shape[1])
        mask = np.concatenate([mask, np.broadcast_to(valid[:, None, None], shape)], axis=3)
    out = np.zeros(q.shape)
    for head in range(q.shape[3]):
        shared = head // (q.shape[3] // k.shape[3])  # consecutive query heads share a key head
        scores = np.einsum("bnth,bnsh->bnts", q[..., head, :], k[..., shared, :])
        scores = np.where(mask, scores / np.sqrt(q.shape[4]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[..., head, :] = np.einsum("bnts,bnsh->bnth", weights, v[..., shared, :])
    return out


def test_equals_plain_attention_over_the_concatenated_keys(case):
    np.testing.assert_allclose(run(**case), plain(**case), atol=1e-6)


def test_without_a_prefix(case):
    case["prefix"] = None
    np.testing.assert_allclose(run(**case), plain(**case), atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 6])
def test_one_key_head_for_all_and_one_for_each(kv_heads, case):
    case["k"], case["v"] = (drawn((B, N, S, kv_heads, H), i) for i in (1, 2))
    case["prefix"] = (*(drawn((B, P, kv_heads, H), i) for i in (3, 4)), case["prefix"][2])
    np.testing.assert_allclose(run(**case), plain(**case), atol=1e-6)


def test_two_equal_scores_worked_by_hand():
    """One own slot and one of the prefix, scores 0 and 0: the mean of 1 and 3; by ln 3: 2.5."""
    one = jnp.ones((1, 1, 1, 1, 1))
    mask, valid = jnp.ones((1, 1, 1, 1), bool), jnp.ones((1, 1), bool)

    def mixed(prefix_key):
        prefix = (jnp.full((1, 1, 1, 1), prefix_key), jnp.full((1, 1, 1, 1), 3.0), valid)
        return float(run(one, 0 * one, one, mask, prefix)[0, 0, 0, 0, 0])

    assert mixed(0.0) == pytest.approx(2.0)
    assert mixed(np.log(3.0)) == pytest.approx(2.5)


def test_masked_slots_may_hold_anything(case):
    clean = run(**case)
    k, v, valid = case["prefix"]
    junk = ~valid[..., None, None]
    case["prefix"] = (jnp.where(junk, 1e4, k), jnp.where(junk, -1e4, v), valid)
    unseen = ~jnp.any(case["mask"], axis=2)[..., None, None]
    assert bool(unseen.any())
    case["k"] = jnp.where(unseen, -1e4, case["k"])
    case["v"] = jnp.where(unseen, 1e4, case["v"])
    np.testing.assert_array_equal(run(**case), clean)


def test_a_row_that_sees_nothing_is_finite_with_finite_gradients(case):
    case["mask"] = case["mask"].at[0, 1].set(False)
    k, v, valid = case["prefix"]
    case["prefix"] = (k, v, valid.at[0].set(False))
    out = run(**case)
    assert np.isfinite(np.asarray(out)).all()
    seen = jax.tree.map(lambda x: x[1:], case)  # the other prompt is as it was
    np.testing.assert_allclose(out[1:], plain(**seen), atol=1e-6)

    def loss(q, k, v, shared_k, shared_v):
        prefix = (shared_k, shared_v, case["prefix"][2])
        return jnp.sum(attend(q, k, v, case["mask"], prefix) ** 2)

    grads = small.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(
        case["q"], case["k"], case["v"], k, v
    )
    for grad in grads:
        assert np.isfinite(np.asarray(grad)).all()
        assert float(jnp.abs(grad).max()) > 0


def test_gradients_equal_those_over_copied_keys(case):
    own_k, own_v = case["k"], case["v"]
    _, _, valid = case["prefix"]
    shape = (B, N, T, P)
    mask = jnp.concatenate([case["mask"], jnp.broadcast_to(valid[:, None, None], shape)], axis=3)

    def shared(q, pk, pv):
        return jnp.sum(jnp.sin(attend(q, own_k, own_v, case["mask"], (pk, pv, valid))))

    def copied(q, pk, pv):
        k, v = (
            jnp.concatenate([own, jnp.repeat(x[:, None], N, axis=1)], axis=2)
            for own, x in ((own_k, pk), (own_v, pv))
        )
        return jnp.sum(jnp.sin(attend(q, k, v, mask)))

    arguments = (case["q"], *case["prefix"][:2])
    ours = small.jit(jax.grad(shared, argnums=(0, 1, 2)))(*arguments)
    theirs = small.jit(jax.grad(copied, argnums=(0, 1, 2)))(*arguments)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_in_but_the_softmax_in_float32():
    """A score of 200 +- 0.25 rounds to one value in bfloat16 (steps of 1); in float32 it does not.

    The output is cast to bfloat16 once, and the weights once before they mix: about 2^-8 each.
    """
    q = jnp.full((1, 1, 1, 1, 64), 1.0, jnp.bfloat16)
    k = jnp.full((1, 1, 2, 1, 64), 25.0, jnp.bfloat16).at[0, 0, 1, 0, 0].set(27.0)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 1, 2, 1, 1)
    v = jnp.broadcast_to(v, (1, 1, 2, 1, 64))
    out = run(q, k, v, jnp.ones((1, 1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.25)), abs=2**-7)


def test_bfloat16_equals_float32_attention_of_the_same_values(case):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, case)
    out = run(**half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), plain(**half), atol=0.02)


def test_scores_and_softmax_are_float32_in_the_program(case):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, case)
    jaxpr = jax.make_jaxpr(attend)(**half)
    exps = [e for e in jaxpr.jaxpr.eqns if e.primitive.name in ("exp", "exp2")]
    dots = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert exps and all(e.outvars[0].aval.dtype == jnp.float32 for e in exps)
    assert len(dots) == 4 and all(e.outvars[0].aval.dtype == jnp.float32 for e in dots)
