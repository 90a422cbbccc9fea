"""One softmax over a shared prefix and the rows' own slots, against plain attention in numpy, and
every back end against the XLA path."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as cudnn_internals
from jax.sharding import AxisType, PartitionSpec

import vlm
from vlm import attention
from vlm.attention import attend_within, obstacle, unusable
from vlm.loading import SourceError
from vlm.model import Model
from vlm.text import Cache, Decoder

# B prompts, N rows, T queries, S own slots, P prefix slots.
B, N, T, S, P, HEADS, KV, H = 2, 3, 4, 5, 6, 6, 2, 8


def slots_first(function):
    """An attention as `plain` takes it: the slots of keys and values before their heads."""

    def call(q, k, v, valid, prefix=None, *more, **how):
        k, v = jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3)
        if prefix is not None:
            prefix = (jnp.swapaxes(prefix[0], 1, 2), jnp.swapaxes(prefix[1], 1, 2), prefix[2])
        shared = () if prefix is None and not more else (prefix,)
        return function(q, k, v, valid, *shared, *more, **how)

    return call


attend = slots_first(attention.attend)
run = small.jit(attend, static_argnames=("start", "backend"))


def drawn(shape, seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def case():
    """The first query stands at slot 1; slot 0 can be seen by all."""
    rng = np.random.default_rng(5)
    own = rng.random((B, N, S)) < 0.6
    own[..., 0] = True
    valid = rng.random((B, P)) < 0.6
    valid[:, 1] = True
    return {
        "q": drawn((B, N, T, HEADS, H), 0),
        "k": drawn((B, N, S, KV, H), 1),
        "v": drawn((B, N, S, KV, H), 2),
        "valid": jnp.asarray(own),
        "prefix": (drawn((B, P, KV, H), 3), drawn((B, P, KV, H), 4), jnp.asarray(valid)),
        "start": 1,
    }


def plain(q, k, v, valid, prefix=None, start=None):
    """float64, a loop over heads, the prefix copied to every row."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    mask = np.repeat(np.asarray(valid)[:, :, None], q.shape[2], axis=2)
    if start is not None:
        mask = mask & np.tri(q.shape[2], k.shape[2], k=start, dtype=bool)
    if prefix is not None:
        pk, pv, seen = (np.asarray(x) for x in prefix)
        rows = q.shape[1]
        k = np.concatenate([k, np.repeat(pk[:, None], rows, 1)], axis=2)
        v = np.concatenate([v, np.repeat(pv[:, None], rows, 1)], axis=2)
        shape = (*mask.shape[:3], seen.shape[1])
        mask = np.concatenate([mask, np.broadcast_to(seen[:, None, None], shape)], axis=3)
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


@pytest.mark.parametrize("start", [0, 3, None])
def test_without_a_prefix(case, start):
    case |= {"prefix": None, "start": start}
    np.testing.assert_allclose(run(**case), plain(**case), atol=1e-6)


def test_a_traced_start_is_the_same(case):
    traced = small.jit(attend)(**case | {"start": jnp.int32(1)})
    np.testing.assert_array_equal(traced, run(**case))


@pytest.mark.parametrize("kv_heads", [1, 6])
def test_one_key_head_for_all_and_one_for_each(kv_heads, case):
    case["k"], case["v"] = (drawn((B, N, S, kv_heads, H), i) for i in (1, 2))
    case["prefix"] = (*(drawn((B, P, kv_heads, H), i) for i in (3, 4)), case["prefix"][2])
    np.testing.assert_allclose(run(**case), plain(**case), atol=1e-6)


def test_two_equal_scores_worked_by_hand():
    """One own slot and one of the prefix, scores 0 and 0: the mean of 1 and 3; by ln 3: 2.5."""
    one = jnp.ones((1, 1, 1, 1, 1))
    own, valid = jnp.ones((1, 1, 1), bool), jnp.ones((1, 1), bool)

    def mixed(prefix_key):
        prefix = (jnp.full((1, 1, 1, 1), prefix_key), jnp.full((1, 1, 1, 1), 3.0), valid)
        return float(run(one, 0 * one, one, own, prefix)[0, 0, 0, 0, 0])

    assert mixed(0.0) == pytest.approx(2.0)
    assert mixed(np.log(3.0)) == pytest.approx(2.5)


def test_masked_slots_may_hold_anything(case):
    clean = run(**case)
    k, v, valid = case["prefix"]
    junk = ~valid[..., None, None]
    case["prefix"] = (jnp.where(junk, 1e4, k), jnp.where(junk, -1e4, v), valid)
    unseen = ~case["valid"][..., None, None]
    assert bool(unseen.any())
    case["k"] = jnp.where(unseen, -1e4, case["k"])
    case["v"] = jnp.where(unseen, 1e4, case["v"])
    np.testing.assert_array_equal(run(**case), clean)


def test_a_row_that_sees_nothing_is_finite_with_finite_gradients(case):
    case["valid"] = case["valid"].at[0, 1].set(False)
    k, v, valid = case["prefix"]
    case["prefix"] = (k, v, valid.at[0].set(False))
    out = run(**case)
    assert np.isfinite(np.asarray(out)).all()
    seen = {key: jax.tree.map(lambda x: x[1:], case[key]) for key in case if key != "start"}
    np.testing.assert_allclose(out[1:], plain(**seen, start=1), atol=1e-6)  # the other prompt

    def loss(q, k, v, shared_k, shared_v):
        prefix = (shared_k, shared_v, case["prefix"][2])
        return jnp.sum(attend(q, k, v, case["valid"], prefix, start=1) ** 2)

    grads = small.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(
        case["q"], case["k"], case["v"], k, v
    )
    for grad in grads:
        assert np.isfinite(np.asarray(grad)).all()
        assert float(jnp.abs(grad).max()) > 0


def test_gradients_equal_those_over_copied_keys(case):
    own_k, own_v = case["k"], case["v"]
    _, _, valid = case["prefix"]
    own = jnp.concatenate([case["valid"], jnp.repeat(valid[:, None], N, axis=1)], axis=2)

    def shared(q, pk, pv):
        return jnp.sum(jnp.sin(attend(q, own_k, own_v, case["valid"], (pk, pv, valid))))

    def copied(q, pk, pv):
        k, v = (
            jnp.concatenate([own, jnp.repeat(x[:, None], N, axis=1)], axis=2)
            for own, x in ((own_k, pk), (own_v, pv))
        )
        return jnp.sum(jnp.sin(attend(q, k, v, own)))

    arguments = (case["q"], *case["prefix"][:2])
    ours = small.jit(jax.grad(shared, argnums=(0, 1, 2)))(*arguments)
    theirs = small.jit(jax.grad(copied, argnums=(0, 1, 2)))(*arguments)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


def test_bfloat16_in_but_the_softmax_in_float32():
    """A score of 200 +- 0.25 rounds to one value in bfloat16 (steps of 1); in float32 it does not.

    The output is cast to bfloat16 once, and the weights once before they mix: about 2^-8 each.
    """
    q = jnp.full((1, 1, 1, 1, 64), 1.0, jnp.bfloat16)
    k = jnp.full((1, 1, 2, 1, 64), 25.0, jnp.bfloat16).at[0, 0, 1, 0, 0].set(27.0)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 1, 2, 1, 1)
    v = jnp.broadcast_to(v, (1, 1, 2, 1, 64))
    out = run(q, k, v, jnp.ones((1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.25)), abs=2**-7)


def halved(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if getattr(x, "dtype", None) == jnp.float32 else x, tree
    )


def test_bfloat16_equals_float32_attention_of_the_same_values(case):
    half = halved(case)
    out = run(**half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), plain(**half), atol=0.02)


def products(f, *arguments):
    """Dtypes of what goes into each matrix product of the program, and of what comes out."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append([str(x.aval.dtype) for x in (*equation.invars, *equation.outvars)])
            for part in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
                if hasattr(part, "jaxpr"):
                    walk(part.jaxpr)

    walk(jax.make_jaxpr(f)(*arguments).jaxpr)
    return found


def total(case):
    """The sum of an attention, and what it is differentiated by."""
    prefix = case["prefix"]

    def f(q, k, v, pk, pv):
        seen = (pk, pv, prefix[2])
        return jnp.sum(attend(q, k, v, case["valid"], seen, start=1).astype(jnp.float32))

    return f, (case["q"], case["k"], case["v"], *prefix[:2])


def test_scores_and_softmax_are_float32_in_the_program(case):
    f, arguments = total(halved(case))
    exps = [
        equation
        for equation in jax.make_jaxpr(f)(*arguments).jaxpr.eqns
        if equation.primitive.name in ("exp", "exp2")
    ]
    assert exps and all(e.outvars[0].aval.dtype == jnp.float32 for e in exps)
    assert products(f, *arguments) == 4 * [["bfloat16", "bfloat16", "float32"]]


def test_factors_are_bfloat16_in_the_gradient_too(case):
    """Of a float32 factor and a bfloat16 one, XLA would widen the second and multiply slowly."""
    f, arguments = total(halved(case))
    found = products(jax.grad(f, argnums=range(5)), *arguments)
    assert len(found) >= 12 and all(own[:2] == ["bfloat16", "bfloat16"] for own in found)


def test_at_reduced_precision_factors_are_rounded_and_all_else_is_float32(case):
    f, arguments = total(case)
    exact = jax.grad(f, argnums=range(5))(*arguments)
    with jax.default_matmul_precision("BF16_BF16_F32"):
        found = products(jax.grad(f, argnums=range(5)), *arguments)
        rounded = jax.grad(f, argnums=range(5))(*arguments)
    assert len(found) >= 12 and all(own[:2] == ["bfloat16", "bfloat16"] for own in found)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == jnp.float32
        assert 0 < jnp.linalg.norm(a - b) < 0.02 * jnp.linalg.norm(a)


# In blocks of queries.


@pytest.fixture
def blocks_of_eight(monkeypatch):
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)
    monkeypatch.setattr(attention, "_LEAST", 8)


def gradients(f, *arguments, where=True):
    """Values of f(*arguments), and the gradients of the sum of their sines `where` they count."""

    def loss(*arguments):
        out = f(*arguments)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)), where=where), out

    # A new function: what an earlier budget has traced must not be found again.
    both = jax.value_and_grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)
    (_, out), grads = small.jit(both)(*arguments)
    return out, *grads


@pytest.mark.parametrize(("start", "shared"), [(0, True), (2, False), (None, True)])
def test_blocks_of_queries_equal_all_at_once(start, shared, blocks_of_eight):
    """21 queries in blocks of 8, the last of them padded; one row sees nothing."""
    length, slots = 21, 24
    valid = np.random.default_rng(0).random((B, N, slots)) < 0.6
    valid[0, 1] = False
    valid = jnp.asarray(valid)
    seen = jnp.asarray(np.random.default_rng(1).random((B, P)) < 0.6).at[0].set(False)
    own = [drawn((B, N, length, HEADS, H), 0), *(drawn((B, N, slots, KV, H), i) for i in (1, 2))]
    shared_kv = [drawn((B, P, KV, H), i) for i in (3, 4)] if shared else []

    def through(function):
        def call(q, k, v, *pair):
            prefix = (*pair, seen) if pair else None
            return function(q, k, v, valid, prefix, start)

        return call

    def blocked(q, k, v, valid, prefix, start):
        return attend(q, k, v, valid, prefix, start=start)

    assert "scan" in str(jax.make_jaxpr(through(blocked))(*own, *shared_kv))
    ours = gradients(through(blocked), *own, *shared_kv)
    theirs = gradients(through(slots_first(attention._joint)), *own, *shared_kv)
    for a, b in zip(ours, theirs, strict=True):
        assert np.isfinite(np.asarray(a)).all()
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6, rtol=0)


def test_long_frames_run_in_blocks_too(blocks_of_eight):
    q, k, v = (drawn((2, 36, 2, H), i) for i in range(3))
    valid = jnp.asarray(np.arange(36) < np.array([[36], [29]]))
    expected = plain(*(x[:, None] for x in (q, k, v, valid)))[:, 0]
    within = functools.partial(attend_within, run=36)
    assert "scan" in str(jax.make_jaxpr(within)(q, k, v, valid))
    np.testing.assert_allclose(small.jit(within)(q, k, v, valid), expected, atol=1e-6)


def test_block_sizes_worked_by_hand():
    """2^28 bytes, 28 heads, 4096 slots: 4 x 28 x 4096 bytes a query, so 585 queries fit."""
    whole = functools.partial(attention._block, slots=4096)
    assert whole((1, 1, 4096, 28, 128)) == 512  # 8 blocks of at most 585, evenly
    assert whole((1, 1, 585, 28, 128)) == 585
    assert whole((1, 1, 586, 28, 128)) == 296  # half of them, as a multiple of 8
    assert whole((64, 1, 1000, 28, 128)) == 128  # never fewer, or as many as even blocks need
    assert whole((64, 8, 100, 28, 128)) == 100


def test_memory_is_linear_in_the_length(monkeypatch):
    monkeypatch.setattr(attention, "_LEAST", 32)

    def peak(length, budget):
        monkeypatch.setattr(attention, "SCORE_BYTES", budget)
        q, k = (jax.ShapeDtypeStruct((1, 1, length, heads, 4), jnp.float32) for heads in (8, 2))

        def loss(q, k, v):
            valid = jnp.ones((1, 1, length), bool)
            return jnp.sum(attend(q, k, v, valid, start=0) ** 2)

        compiled = small.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(1024, 1) < 2.2 * peak(512, 1)
    assert peak(1024, 2**40) > 3.5 * peak(512, 2**40)  # what it would be


def test_gradients_add_up_over_blocks_in_float32(blocks_of_eight):
    """2048 queries give a value 2048 / 4 in all; adding 2 at a time, bfloat16 would stop at 512.

    With four slots of equal score, each of 256 blocks adds 8 / 4 = 2, and the loss weighs it by
    1.25: the sum is 640, and halfway there 2.5 is less than half a step.
    """
    q, k = (jnp.zeros((1, 1, length, 1, 8), jnp.bfloat16) for length in (2048, 4))

    def loss(v):
        out = attend(q, k, v, jnp.ones((1, 1, 4), bool))
        return 1.25 * jnp.sum(out.astype(jnp.float32))

    grad = small.jit(jax.grad(loss))(jnp.ones((1, 1, 4, 1, 8), jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(grad, np.float32), 640.0)


# The choice.

SHAPES = ((2, 1, 512, 8, 128), (2, 1, 2, 512, 128))


def test_what_keeps_a_kernel_from_a_shape():
    q, k = SHAPES
    why = functools.partial(obstacle, q_shape=q, k_shape=k, dtype="bfloat16", start=0)
    assert why("cudnn") == why("splash") == why("xla") == ""
    assert why("cudnn", start=None) == why("splash", start=None) == ""
    for name in ("cudnn", "splash"):
        assert "prefix" in why(name, prefix=True)
        assert "part of the sequence" in why(name, start=1)
        assert "part of the sequence" in why(name, start=jnp.int32(0))  # known only when it runs
        assert "part of the sequence" in why(name, q_shape=(2, 1, 1, 8, 128))
    assert why("xla", prefix=True, start=1, dtype="float64") == ""
    assert why("cudnn", dtype="float32") == "dtype is float32; supported: bfloat16, float16"
    assert why("splash", dtype="float32") == ""
    assert why("splash", dtype="float16") == "dtype is float16; supported: bfloat16, float32"


@pytest.mark.parametrize(
    ("head_dim", "capability", "fits"),
    [(72, None, True), (80, (8, 0), True), (84, (9, 0), False), (136, None, False),
     (136, (8, 9), False), (256, (9, 0), True), (264, (10, 0), False), (64, (7, 5), False)],
)  # fmt: skip
def test_head_widths_that_cudnn_takes(head_dim, capability, fits):
    shapes = (1, 1, 512, 4, head_dim), (1, 1, 4, 512, head_dim)
    reason = obstacle("cudnn", *shapes, "bfloat16", start=0, capability=capability)
    assert (reason == "") == fits
    assert obstacle("splash", *shapes, "bfloat16", start=0) == ""


def chosen(asked, length=512, dtype=jnp.bfloat16, start=0, prefix=None, slots=None):
    q = jnp.zeros((1, 1, length, 4, 64), dtype)
    k = jnp.zeros((1, 1, 2, slots or length, 64), dtype)
    return attention._choose(asked, q, k, start, prefix)


def test_auto_goes_by_platform_and_shape(monkeypatch):
    assert chosen("auto") == "xla"
    monkeypatch.setattr(attention, "_device", lambda: ("cuda", (9, 0)))
    assert chosen("auto") == chosen("auto", start=None) == "cudnn"
    assert chosen("auto", length=255) == "xla"
    assert chosen("auto", dtype=jnp.float32) == "xla"
    assert chosen("auto", slots=600) == "xla"
    assert chosen("auto", prefix=()) == "xla"
    monkeypatch.setattr(attention, "_device", lambda: ("rocm", None))
    assert chosen("auto") == "xla"


def test_auto_leaves_a_kernel_to_xla_only_where_it_is_not_split(monkeypatch):
    """Eight devices: without a mesh XLA may be about to split; under `shard_map` it is done."""
    monkeypatch.setattr(attention, "_device", lambda: ("tpu", None))
    seen = []

    def note(x):
        seen.append(chosen_for(x))
        return x

    def chosen_for(x):
        q = jnp.broadcast_to(x, (1, 1, 512, 4, 64))
        return attention._choose("auto", q, jnp.swapaxes(q, 2, 3), 0, None)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    x = jax.device_put(jnp.ones((8, 1, 1, 1, 1)), jax.NamedSharding(mesh, spec))
    assert chosen("auto") == "xla"
    jax.jit(jax.shard_map(note, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    jax.jit(lambda x: note(x[:1]))(x)
    jax.pmap(note)(jnp.ones((8, 1, 1, 1, 1, 1)))
    assert seen == ["splash", "xla", "splash"]


def test_a_named_back_end_gives_way_with_one_warning_for_each_constraint(case, caplog):
    attention._warn.cache_clear()

    def trace(case):
        return attend(**case | {"start": 1}, backend="cudnn")

    with caplog.at_level(logging.WARNING, "vlm.attention"):
        for _ in range(2):
            out = run(**case, backend="cudnn")
            jax.eval_shape(trace, case | {"q": case["q"][:, :, :2]})
        assert [record.getMessage() for record in caplog.records] == [
            "attention: 'xla' in place of 'cudnn' where it cannot be used: "
            "rows that share a prefix need log-sum-exps with gradients"
        ]
        jax.eval_shape(trace, case | {"prefix": None})
    assert len(caplog.records) == 2
    np.testing.assert_array_equal(out, run(**case))


def test_back_ends_of_other_platforms_are_refused_with_what_to_choose():
    assert unusable("splash", "tpu") == unusable("cudnn", "cuda") == unusable("auto", "rocm") == ""
    assert unusable("cudnn", "rocm") == (
        "attention 'cudnn' runs on cuda and this is rocm; choose 'auto' or 'xla'"
    )
    with pytest.raises(SourceError, match="'splash' runs on tpu and this is cpu; choose 'auto'"):
        vlm.load("tiny", attention="splash")
    with pytest.raises(SourceError, match="attention is 'flash'; choices: 'auto', 'xla', "):
        vlm.load("tiny", attention="flash")
    with pytest.raises(ValueError, match="attention is 'flash'; choices: auto, xla, "):
        Model(small.CONFIG, attention="flash", rngs=nnx.Rngs(0))


def test_the_choice_reaches_the_tower_and_the_decoder():
    model = nnx.eval_shape(lambda: Model(small.CONFIG, attention="splash", rngs=nnx.Rngs(0)))
    assert model.decoder.layers.attention.backend == model.vision.blocks.backend == "splash"
    assert vlm.load("tiny", attention="xla").model.decoder.layers.attention.backend == "xla"


# The kernels, as far as a CPU can run them.


def long_case(length, dtype=jnp.float32, width=16):
    """Holes in both rows, at either end too; a third row without any token."""
    valid = np.random.default_rng(0).random((3, 1, length)) < 0.7
    valid[0, 0, [0, -1]], valid[1, 0, [0, -1]], valid[2] = True, False, False
    q = drawn((3, 1, length, 4, width), 0).astype(dtype)
    k, v = (drawn((3, 1, length, 2, width), i).astype(dtype) for i in (1, 2))
    return (q, k, v), jnp.asarray(valid)


def assert_agree(kernel, arguments, valid, start, tolerance):
    """At the valid tokens, forward and backward; finite everywhere."""

    def xla(q, k, v):
        return slots_first(attention._joint)(q, k, v, valid, None, start)

    tokens = valid[..., None, None]
    ours = gradients(kernel, *arguments, where=tokens)
    theirs = gradients(xla, *arguments, where=tokens)
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.isfinite(a).all()
        a, b = np.where(tokens, a, 0), np.where(tokens, b, 0)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("start", [0, None])
def test_splash_equals_xla(start, monkeypatch):
    """Interpreted; two blocks of 128, the last of them padded."""
    monkeypatch.setattr(attention, "_TILE", 128)
    arguments, valid = long_case(200)
    splash = functools.partial(
        slots_first(attention._splash), valid=valid, causal=start is not None, interpret=True
    )
    assert_agree(splash, arguments, valid, start, tolerance=2e-6)


@pytest.mark.parametrize("start", [0, None])
def test_tokens_moved_to_the_front_for_cudnn_equal_xla(start):
    """What is given to cuDNN, given to jax's own implementation of the same function."""
    arguments, valid = long_case(20)
    moved = functools.partial(
        slots_first(attention._cudnn), valid=valid, causal=start is not None, implementation="xla"
    )
    assert_agree(moved, arguments, valid, start, tolerance=2e-6)


@pytest.mark.parametrize(("start", "mask"), [(0, "CAUSAL"), (None, "PADDING")])
def test_cudnn_lowers_for_cuda(start, mask, monkeypatch):
    """Forward and backward, through the one door, on a machine without a GPU."""
    monkeypatch.setattr(cudnn_internals, "check_cudnn_version", lambda: 91000)
    arguments, valid = long_case(512, jnp.bfloat16, width=80)

    def loss(q, k, v):
        out = attend(q, k, v, valid, start=start, backend="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arguments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert set(re.findall(r"__cudnn\$\w+", text)) == {
        "__cudnn$fmhaSoftmax",
        "__cudnn$fmhaSoftmaxBackward",
    }
    assert set(re.findall(r"mask_type\W+(\w+)", re.sub(r"\\22", '"', text))) == {mask}


# On the hardware itself.


def assert_agree_on(platform, backend, dtype, tolerance, start):
    if attention._device()[0] != platform:
        pytest.skip(f"no {platform} in this process; see JAX_PLATFORMS")
    arguments, valid = long_case(1000, dtype, width=128)
    kernel = functools.partial(attend, valid=valid, start=start, backend=backend)
    assert chosen(backend, dtype=dtype) == backend
    assert_agree(kernel, arguments, valid, start, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("start", [0, None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cudnn_on_a_gpu_equals_xla(dtype, start):
    assert_agree_on("cuda", "cudnn", dtype, 2e-2, start)


@pytest.mark.tpu
@pytest.mark.parametrize("start", [0, None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_splash_on_a_tpu_equals_xla(dtype, start):
    assert_agree_on("tpu", "splash", dtype, 2e-2, start)


# The cache that the decoder writes into.


def test_a_chunk_that_does_not_fit_into_the_cache_is_refused():
    config = small.CONFIG.text
    decoder = nnx.merge(*small.drawn(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    own = Cache.empty(config, 1, 1, 6, jnp.float32)

    def decode(length, slot):
        x, positions = jnp.zeros((1, 1, length, config.hidden)), jnp.zeros((3, 1, 1, length), int)
        valid = jnp.ones((1, 1, length), bool)
        decoder(x, positions, valid, own=own, slot=slot)

    with pytest.raises(ValueError, match="4 tokens from slot 3 on, in a cache of 6"):
        decode(4, 3)
    with pytest.raises(ValueError, match="7 tokens from slot 0 on, in a cache of 6"):
        decode(7, jnp.int32(0))
