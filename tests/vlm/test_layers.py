"""Dense layers and their gradient; stacked layers and the same ones in line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from vlm.config import Qwen3Vision
from vlm.frames import lay_out
from vlm.layers import linear
from vlm.model import Tokens, encode, run

QWEN3 = dataclasses.replace(
    small.CONFIG,
    vision=Qwen3Vision(
        depth=3, hidden=32, heads=2, mlp=48, out=32, channels=1, patch=2, temporal_patch=2,
        merge=2, positions=16, deepstack=(0, 2),
    ),
)  # fmt: skip


@pytest.mark.parametrize(("precision", "tolerance"), [(None, 2e-6), ("BF16_BF16_F32", 0.1)])
@pytest.mark.parametrize("outputs", [3, 9])  # narrower and wider than what comes in
@pytest.mark.parametrize("rows", [(), (4,), (2, 3, 4)])
def test_a_dense_layer_and_its_gradient_are_those_of_a_plain_product(
    rows, outputs, precision, tolerance
):
    layer = linear(5, outputs, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    x = jnp.asarray(rng.normal(size=(*rows, 5)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*rows, outputs)), jnp.float32)

    def ours(params, x):
        return jnp.sum(weights * jnp.sin(nnx.merge(graph, params)(x)))

    def plain(params, x):
        return jnp.sum(weights * jnp.sin(jnp.einsum("...i,io->...o", x, params["kernel"][...])))

    with jax.default_matmul_precision(precision):
        got = jax.value_and_grad(ours, argnums=(0, 1))(params, x)
    wanted = jax.value_and_grad(plain, argnums=(0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), got, wanted)
    assert (float(got[0]) == float(wanted[0])) == (precision is None)
    assert np.abs(got[1][0]["kernel"][...]).max() > 0.1


def test_two_layers_of_one_shape_are_one_program():
    """What a layer is made of, weights aside, can be compared: or jit would compile each anew."""
    one, other = (
        nnx.graphdef(linear(5, 3, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(seed)))
        for seed in (0, 1)
    )
    assert one == other


@pytest.mark.parametrize("config", [small.CONFIG, QWEN3], ids=["qwen2.5", "qwen3"])
def test_layers_in_line_change_nothing(config):
    """Neither the tower's, nor the decoder's; and each has its own weights."""
    rng = np.random.default_rng(0)
    grids = np.array([[2, 4, 4]])
    patches = rng.normal(size=(32, config.vision.patch_features)).astype(np.float32)
    frames, index = lay_out(patches, grids, config.vision)
    ids = np.full((1, 1, 12), 3, np.int32)
    visual = np.full(ids.shape, -1, np.int32)
    visual[..., 2:10] = index
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (3, 1, 1, 12))
    tokens = Tokens(ids, positions, np.ones(ids.shape, bool), visual)

    def hidden(model):
        features = encode(model, frames)
        return features, run(model, tokens, features)[0]

    model = small.model(config)
    stacked = hidden(model)
    for a, b in zip(stacked, hidden(model.unstacked()), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    swapped = small.model(config)
    last = jax.tree.map(lambda x: x[::-1], nnx.state(swapped.vision.blocks))
    nnx.update(swapped.vision.blocks, last)
    assert np.abs(hidden(swapped)[0] - stacked[0]).max() > 0.1
