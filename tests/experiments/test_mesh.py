"""The three drivers against each other on 8 fake devices, and how a mesh splits a model."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import vlm
from experiments import mesh
from experiments.viewer import Viewer
from surprise import Episode, Settings, watch
from surprise.schedule import observation, window
from surprise.trace import Context
from vlm.config import NAMED, TINY, TINY_QWEN3
from vlm.weights import abstract_model

K = 3
SETTINGS = Settings(hypotheses=2, hypothesis_tokens=3, caption_tokens=0, window=1, history="none")
RNG = np.random.default_rng(0)


def _traces(tiny, driver, batch=3):
    """Steps of three videos, watched together."""
    viewer = Viewer(tiny, batch=batch, driver=driver)
    side, episodes = tiny.config.vision.factor, []
    for n in range(3):
        rng = np.random.default_rng(n)
        frames = rng.integers(0, 256, (K, 2 * side, 2 * side, 3), dtype=np.uint8)
        views = [window(k, 1) for k in range(1, K)]
        views += [observation(k, "frame") for k in range(1, K)]
        viewer.add(f"v{n}", frames, np.arange(K) * 0.5, views)
        episodes.append(Episode(f"v{n}", tuple(range(K)), tuple(0.5 * k for k in range(K))))
    return watch(viewer, SETTINGS, episodes)


def _assert_equal(traces, others):
    for steps, theirs in zip(traces, others, strict=True):
        for step, other in zip(steps, theirs, strict=True):
            assert (step.hypotheses, step.caption) == (other.hypotheses, other.caption)
            np.testing.assert_allclose(step.prior_nll, other.prior_nll, atol=1e-5, rtol=1e-6)
            np.testing.assert_allclose(
                step.posterior_nll, other.posterior_nll, atol=1e-5, rtol=1e-6
            )


@pytest.mark.parametrize("source", ["tiny", pytest.param("tiny-qwen3", marks=pytest.mark.slow)])
def test_one_device_replicas_and_a_mesh_give_the_same_traces(source):
    tiny = vlm.load(source, dtype="float32", seed=0)
    alone = _traces(tiny, mesh.single(tiny.model))
    assert alone[0][1].hypotheses != alone[2][1].hypotheses
    replicas = mesh.pmapped(tiny.model)
    assert replicas.replicas == 8
    _assert_equal(alone, _traces(tiny, replicas))
    spread = mesh.sharded(tiny.model, mesh.make_mesh((2, 2, 2)))
    assert spread.replicas == 4
    _assert_equal(alone, _traces(tiny, spread))


def test_a_mesh_splits_parameters_and_caches():
    grid = mesh.make_mesh((2, 2, 2))
    tiny = vlm.load("tiny", dtype="float32", place=mesh.placement(grid))
    query = tiny.model.decoder.layers.attention.q.kernel[...]
    assert query.sharding.spec == P(None, "fsdp", "tensor")
    assert query.addressable_shards[0].data.size == query.size / 4
    driver = mesh.sharded(tiny.model, grid)
    viewer = Viewer(tiny, batch=4, driver=driver)
    side = tiny.config.vision.factor
    viewer.add(
        "v", RNG.integers(0, 256, (2, side, side, 3), dtype=np.uint8), np.arange(2.0), [(0,)]
    )

    state = viewer.look([Context("v", 1, "", "", (0,))])
    spec = state.cache.k.sharding.spec
    assert spec == P(None, ("data", "fsdp"), None, "tensor")


@pytest.mark.parametrize("config", [TINY, TINY_QWEN3, *NAMED.values()])
def test_every_parameter_has_a_rule_and_the_large_ones_are_split(config):
    grid = mesh.make_mesh((1, 2, 4))
    _, state = nnx.split(abstract_model(config))
    split = whole = 0
    for path, leaf in nnx.to_flat_state(state):
        spec = mesh.partition(".".join(map(str, path)), leaf.shape, grid)
        if any(axis is not None for axis in spec):
            split += leaf.size
        else:
            whole += leaf.size
    assert whole < 0.07 * (split + whole)


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"no rule .* decoder\.extra\.weight"):
        mesh.partition("decoder.extra.weight", (4, 4), mesh.make_mesh((1, 1, 1)))


def test_a_mesh_that_does_not_fit_is_refused():
    for shape in [(4, 4, 1), (0, 1, 1), (2, 2)]:
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            mesh.make_mesh(shape)
    assert len(jax.devices()) == 8
