"""Scoring compiles one program a bucket: not one a video, a size or a length."""

from dataclasses import dataclass, field

import jax
import numpy as np
import pytest

import vlm
from experiments import mesh
from experiments.viewer import Viewer
from surprise import Episode, Settings, watch
from surprise.schedule import observation, window

QUICK = Settings(hypothesis_tokens=3, caption_tokens=3, hypotheses=2, window=2)
COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass
class Noted:
    """A driver that notes which shapes it is called with."""

    driver: mesh.Driver
    calls: list = field(default_factory=list)

    def __call__(self, job, *args, **static):
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(args)]
        self.calls.append(str((job.__name__, jax.tree.structure(args), shapes, static)))
        return self.driver(job, *args, **static)

    def __getattr__(self, name):
        return getattr(self.driver, name)


def _score(viewer, name, rng, size, factor):
    count, height, width = size
    frames = rng.integers(0, 256, (count, height * factor, width * factor, 3), dtype=np.uint8)
    seconds = np.arange(count) * float(rng.uniform(0.1, 30))
    steps = range(1, count)
    views = [window(k, QUICK.window) for k in steps] + [observation(k, "frame") for k in steps]
    viewer.add(name, frames, seconds, views)
    watch(viewer, QUICK, [Episode(name, tuple(range(count)), tuple(seconds.tolist()))])
    viewer.drop(name)


@pytest.mark.slow
@pytest.mark.parametrize("videos", [50])
@pytest.mark.parametrize("source", ["tiny", "tiny-qwen3"])
def test_videos_of_any_length_size_and_orientation_share_programs(source, videos):
    model, rng = vlm.load(source, dtype="float32"), np.random.default_rng(0)
    driver = Noted(mesh.single(model.model))
    viewer, factor = Viewer(model, driver=driver), model.config.vision.factor
    compiled = []

    def told(event, seconds, **_):
        if event == COMPILED:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(told)
    try:
        for n in range(videos):
            # Landscape, portrait, square; sides that fill windows and sides that don't.
            _score(viewer, f"video{n}", rng, rng.integers((4, 2, 2), (7, 5, 4)), factor)
    finally:
        jax.monitoring.unregister_event_duration_listener(told)
    buckets = set(driver.calls)
    assert 0 < len(compiled) <= len(buckets)
    assert len(driver.calls) > 10 * videos and len(buckets) < 60
