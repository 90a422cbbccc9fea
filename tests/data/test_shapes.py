import numpy as np
import pytest

from data.shapes import CLIPS, render, write_mp4
from data.video import Decoder


def red(frames):
    """The larger shape: where it is red enough."""
    values = frames.astype(int)
    return values[..., 0] - values[..., 2] > 90


def event_frame(clip):
    (event,) = clip.events
    frame = event.seconds * clip.fps
    assert frame == round(frame)
    return round(frame)


@pytest.mark.parametrize("name", CLIPS)
def test_the_event_is_where_it_is_said_to_be(name):
    clip = render(name, seed=3)
    # How much of the picture changes from frame to frame; motion alone changes it a little.
    differences = np.abs(np.diff(clip.frames.astype(int), axis=0)).max(axis=-1) > 40
    steps = differences.sum(axis=(1, 2))
    typical = np.median(steps)
    assert typical > 0
    if name == "calm":
        assert clip.events == ()
        assert steps.max() < 2 * typical
    elif name == "reverse":
        places = np.array([np.nonzero(mask)[1].mean() for mask in red(clip.frames)])
        turn = event_frame(clip)
        assert (np.diff(places)[: turn - 1] > 0).all()
        assert (np.diff(places)[turn:] < 0).all()
    else:
        assert steps.argmax() + 1 == event_frame(clip)
        assert steps.max() > 2 * typical


def test_vanishing_leaves_nothing():
    clip = render("vanish")
    event = event_frame(clip)
    assert red(clip.frames[event - 1]).sum() > 1000
    assert not red(clip.frames[event:]).any()


def test_the_seed_decides_every_byte():
    once, again, other = (render("jump", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(once.frames, again.frames)
    assert once.events == again.events
    assert not np.array_equal(once.frames, other.frames)


def test_unknown_clip():
    with pytest.raises(ValueError, match="no clip 'explode'"):
        render("explode")


def test_written_clips_read_back(tmp_path):
    clip = render("jump")
    path = tmp_path / "clip.mp4"
    write_mp4(path, clip.frames, clip.fps)
    with Decoder() as decoder:
        info = decoder.info(path)
        frames = decoder.frames(path, range(info.frame_count))
        times = decoder.times(path)
    assert (info.fps, info.frame_count) == (clip.fps, len(clip.frames))
    assert info.seconds == pytest.approx(len(clip.frames) / clip.fps, abs=1e-6)
    assert times[event_frame(clip)] == pytest.approx(clip.events[0].seconds, abs=1e-6)
    assert np.abs(frames.astype(int) - clip.frames).mean() < 3
