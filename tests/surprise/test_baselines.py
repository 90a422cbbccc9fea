"""Pixel baselines on clips whose change is known by construction."""

import numpy as np
import pytest

from surprise.baselines import (
    SCORES,
    TUNABLE,
    centre_scores,
    change_of_difference,
    edge_change_ratio,
    frame_difference,
    kmeans_frames,
    lucas_kanade,
    optical_flow,
    peak_frames,
    random_frames,
    random_scores,
    refined,
    rgb_histogram,
    smoothed,
)


def _flat(*levels, size=(16, 24)):
    """Frames of one grey level each."""
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


def _texture(seed=0, size=64):
    """A smooth random picture, float32."""
    coarse = np.random.default_rng(seed).uniform(40, 200, (size // 8 + 1, size // 8 + 1))
    at = np.linspace(0, size // 8 - 1e-6, size)
    low, part = at.astype(int), (at % 1)
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    return (rows[:, low] * (1 - part) + rows[:, low + 1] * part).astype(np.float32)


def _walking(steps, size=48, speed=3):
    """A white square on grey that moves `speed` pixels a frame."""
    frames = np.full((steps, size, size, 3), 60, np.uint8)
    for t in range(steps):
        frames[t, 16:28, 2 + speed * t : 14 + speed * t] = 230
    return frames


def test_differences_by_hand():
    frames = _flat(10, 10, 30, 20)
    assert frame_difference(frames).tolist() == [0, 0, 20, 10]
    assert frame_difference(frames, order=2).tolist() == [
        0,
        0,
        20,
        30,
    ]  # 30 - 20 + 10, 20 - 60 + 10
    assert change_of_difference(frames).tolist() == [0, 0, 20, 10]
    assert change_of_difference(frames, order=2).tolist() == [0, 0, 0, 10]
    assert frame_difference(_flat(7)).tolist() == [0]


def test_deflicker_removes_the_light_and_keeps_the_thing():
    rng = np.random.default_rng(0)
    still = np.tile(rng.integers(40, 90, (1, 32, 32, 3)), (8, 1, 1, 1)).astype(float)
    still[5:, 8:16, 8:16] = 220
    light = np.array([1, 1.1, 0.9, 1.05, 0.95, 1.0, 1.1, 0.9])[:, None, None, None]
    frames = (still * light).clip(0, 255).astype(np.uint8)
    assert frame_difference(frames, deflicker=True).argmax() == 5
    quiet = np.delete(frame_difference(frames, deflicker=True), 5)
    assert frame_difference(frames)[[1, 2, 6, 7]].min() > 3 * quiet.max()


def test_local_pooling_sees_what_is_small():
    frames = np.full((3, 64, 64, 3), 100, np.uint8)
    frames[1:, ::2] += 2  # all over, a little
    frames[2, 8:16, 8:16] += 60  # one cell of 64, a lot
    mean, local = (frame_difference(frames, pool=pool) for pool in ("mean", "max"))
    assert mean[2] == pytest.approx(60 / 64) and mean[1] == 1
    assert local[2] == 60 and local[1] == 1
    with pytest.raises(ValueError, match="choose from mean, max"):
        frame_difference(frames, pool="median")


def test_a_finer_grid_sees_what_is_smaller():
    frames = np.full((2, 64, 64, 3), 100, np.uint8)
    frames[1, 8:12, 8:12] += 60  # a cell of a 16 x 16 grid, a quarter of one of an 8 x 8 grid
    found = {n: frame_difference(frames, pool="max", cells=n)[1] for n in (1, 4, 8, 16)}
    assert found == {1: 60 / 256, 4: 60 / 16, 8: 15, 16: 60}


def test_refined_by_hand():
    scores = np.array([[9.0, 1, 1, 7, 1, 1], [9, 2, 4, 6, 8, 10]])
    assert refined(scores).tolist() == scores.tolist()
    # The first is not a score: changes start behind the second, and what is before comes last.
    change = refined(scores, form="change", first=1)
    assert change.tolist() == [[0, 0, 0, 6, 6, 0], [0, 0, 2, 2, 2, 2]]
    # 7 is above its four neighbours by 6; those have it among theirs.
    excess = refined(scores[0], form="excess", first=1)
    assert excess.tolist() == [-3, -3, -2, 6, -2, -3]
    assert refined(scores[0], smooth=3, first=1).tolist() == [1, 1, 3, 3, 3, 1]
    with pytest.raises(ValueError, match="choose from plain"):
        refined(scores, form="square")


def test_histograms_may_be_deflickered():
    rng = np.random.default_rng(0)
    frames = np.tile(rng.integers(40, 90, (1, 32, 32, 3)), (4, 1, 1, 1)).astype(float)
    frames[2] *= 1.3
    frames = frames.round().astype(np.uint8)
    assert rgb_histogram(frames, bins=16)[2] > 5 * rgb_histogram(frames, bins=16, deflicker=True)[2]


def test_steady_motion_is_no_change_of_difference():
    frames = _walking(10)
    assert frame_difference(frames)[1:].min() > 1
    assert change_of_difference(frames).max() < 1e-6
    stopped = frames.copy()
    stopped[6:] = frames[5]
    assert change_of_difference(stopped).argmax() == 6
    assert frame_difference(stopped).argmax() < 6


def test_histogram_by_hand():
    frames = _flat(10, 10, 200)
    frames[1, :8] = 200  # half of it goes from bin 0 to bin 6, in each of three channels
    assert rgb_histogram(frames).tolist() == pytest.approx([0, 3, 3])
    assert rgb_histogram(_walking(5)).max() < 1e-12  # blind to motion
    assert smoothed(np.array([0.0, 3, 0, 0]), 3).tolist() == [1.5, 1, 1, 0]
    assert smoothed(np.array([0.0, 3]), 1).tolist() == [0, 3]
    with pytest.raises(ValueError, match="odd"):
        smoothed(np.zeros(4), 2)


def test_edge_change_ratio():
    frames = _walking(6, speed=1)
    assert edge_change_ratio(frames).max() == 0  # within the radius
    frames[4:] = 60
    assert edge_change_ratio(frames)[4] == 1 and edge_change_ratio(frames)[5] == 0
    frames[5, 30:40, 5:15] = 250
    assert edge_change_ratio(frames)[5] == 1
    brighter = (frames[:2] * np.array([1, 0.8])[:, None, None, None]).astype(np.uint8)
    assert edge_change_ratio(brighter)[1] == 0


def test_flow_finds_a_shift():
    picture = _texture()
    for shift in ((2, 0), (0, -3), (4, 3)):
        moved = np.roll(picture, (shift[1], shift[0]), (0, 1))
        inner = lucas_kanade(picture, moved)[:, 12:-12, 12:-12]
        assert np.abs(np.median(inner, (1, 2)) - shift).max() < 0.15
    assert np.abs(lucas_kanade(picture, picture)).max() < 1e-3
    blank = np.full((40, 40), 50, np.float32)
    assert np.abs(lucas_kanade(blank, blank)).max() == 0


def test_flow_scores():
    frames = np.stack([np.roll(_texture(), 2 * t, 1) for t in range(6)])
    frames = np.repeat(frames[..., None], 3, -1).astype(np.uint8)
    frames[4:] = frames[3]
    length = optical_flow(frames)
    assert length[1:4].min() > 1.2 and length[4:].max() < 0.1
    assert optical_flow(frames, kind="change").argmax() == 4
    assert optical_flow(frames, kind="residual")[2] < 0.5 * frame_difference(frames)[2]
    frames[5] = np.repeat(_texture(seed=1)[..., None], 3, -1)
    assert optical_flow(frames, kind="residual").argmax() == 5
    with pytest.raises(ValueError, match="choose from"):
        optical_flow(frames, kind="speed")


@pytest.mark.parametrize("name", SCORES)
def test_every_score_of_any_clip(name):
    rng = np.random.default_rng(1)
    for shape in ((1, 20, 30, 3), (2, 9, 9, 3), (5, 33, 21, 3)):
        scores = SCORES[name](rng.integers(0, 256, shape, np.uint8))
        assert scores.shape == shape[:1] and scores.dtype == np.float64
        assert np.isfinite(scores).all() and (scores >= 0).all()
    still = np.tile(rng.integers(0, 256, (1, 24, 24, 3), np.uint8), (6, 1, 1, 1))
    assert SCORES[name](still).max() < 1e-6


def test_tunable_settings_differ():
    rng = np.random.default_rng(2)
    frames = np.stack([np.roll(_texture(size=32), 2 * t, 1) for t in range(4)])[..., None]
    light = np.array([1, 1.2, 0.9, 1.1])[:, None, None, None]
    frames = (frames * light + rng.normal(0, 6, (4, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    for name, settings in TUNABLE.items():
        found = {setting: score(frames) for setting, score in settings.items()}
        assert len({str(scores.round(9).tolist()) for scores in found.values()}) > len(found) // 2
        first = 1 + (name == "second difference")
        assert all((scores[:first] == 0).all() for scores in found.values())


def test_chance():
    assert centre_scores(5).tolist() == [0, 1, 2, 1, 0] and centre_scores(4).argmax() == 1
    assert random_scores(5, seed=1).tolist() == random_scores(5, seed=1).tolist()
    assert random_scores(5)[0] == 0 and len(random_scores(0)) == 0
    chosen = random_frames(4, 10, seed=2)
    assert len(set(chosen.tolist())) == 4 and sorted(chosen) == chosen.tolist()
    assert random_frames(9, 3).tolist() == [0, 1, 2]


def test_kmeans_takes_one_frame_of_each_scene():
    frames = _flat(*[20] * 5, *[120] * 3, *[220] * 6)
    noise = np.random.default_rng(0).integers(0, 3, frames.shape)
    frames = (frames + noise).astype(np.uint8)
    for seed in range(5):
        chosen = kmeans_frames(frames, 3, seed=seed)
        assert [np.searchsorted([5, 8], frame, side="right") for frame in chosen] == [0, 1, 2]
    assert kmeans_frames(frames, 99).tolist() == list(range(14))
    alike = _flat(*[50] * 6)
    assert len(set(kmeans_frames(alike, 4).tolist())) == 4


def test_peaks_share_the_budget_by_height():
    scores = np.zeros(40)
    scores[[10, 30]] = 3, 1
    assert peak_frames(scores, 4, peaks=2).tolist() == [9, 10, 11, 30]
    assert peak_frames(scores, 1).tolist() == [10]
    # 3 to a side at most; what is left goes to the best frames not yet chosen
    assert peak_frames(scores, 9, peaks=1).tolist() == [0, 7, 8, 9, 10, 11, 12, 13, 30]
    assert len(peak_frames(np.zeros(10), 6)) == 6
    assert peak_frames(scores, 60).tolist() == list(range(40))
