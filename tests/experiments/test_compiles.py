"""Scoring compiles one program a bucket: not one a video, a size or a length."""

import jax
import numpy as np
import pytest

import vlm
from experiments import viewer as viewer_module
from experiments.viewer import Viewer
from surprise import Episode, Settings, watch
from surprise.schedule import observation, window

STEPS = [viewer_module._encode, viewer_module._extend, viewer_module._nll, viewer_module._generate]
QUICK = Settings(hypothesis_tokens=3, caption_tokens=3, hypotheses=2, window=2)
RNG = np.random.default_rng(0)


def _score(viewer, name, count, height, width, factor):
    frames = RNG.integers(0, 256, (count, height * factor, width * factor, 3), dtype=np.uint8)
    seconds = np.arange(count) * float(RNG.uniform(0.1, 30))
    steps = range(1, count)
    views = [window(k, QUICK.window) for k in steps] + [observation(k, "frame") for k in steps]
    viewer.add(name, frames, seconds, views)
    watch(viewer, QUICK, [Episode(name, tuple(range(count)), tuple(seconds.tolist()))])
    viewer.drop(name)


def _programs():
    return sum(step._cache_size() for step in STEPS)


@pytest.mark.parametrize("source", ["tiny", pytest.param("tiny-qwen3", marks=pytest.mark.slow)])
def test_videos_of_any_length_size_and_orientation_share_programs(source, monkeypatch):
    model = vlm.load(source, dtype="float32")
    viewer, factor = Viewer(model), model.config.vision.factor
    buckets, calls = set(), []

    def counted(name):
        step = getattr(viewer_module, name)

        def call(graph, params, *args, **kwargs):
            shapes = [getattr(leaf, "shape", leaf) for leaf in jax.tree.leaves(args)]
            calls.append(name)
            buckets.add((name, str(jax.tree.structure(args)), str(shapes), str(kwargs)))
            return step(graph, params, *args, **kwargs)

        monkeypatch.setattr(viewer_module, name, call)

    for step in ("_encode", "_extend", "_nll", "_generate"):
        counted(step)
    before = _programs()
    # Landscape, portrait, square; several lengths; sides that fill windows and sides that don't.
    sizes = [(4, 2, 3), (5, 3, 2), (6, 3, 3), (4, 4, 2), (5, 2, 3), (4, 3, 3), (6, 4, 2), (5, 3, 3)]
    for n, (count, height, width) in enumerate(sizes):
        _score(viewer, f"video{n}", count, height, width, factor)
    assert _programs() - before <= len(buckets)
    assert len(calls) > 100 and len(buckets) < len(calls) / 5
