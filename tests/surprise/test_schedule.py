import numpy as np
import pytest

from surprise import Settings, TooShortError, episode_frames, frame_indices, time_steps
from surprise.schedule import observation, window

DURATIONS = (60, 119, 120, 180, 240, 300, 400, 600)
OLD = (8, 8, 16, 32, 64, 128, 256, 4096)
NEW = (8, 8, 8, 8, 16, 32, 64, 256)  # 128 at 600 s by its own cap, the default here
PAPER = (8, 16, 16, 32, 64, 128, 512, 4096)


@pytest.mark.parametrize("schedule,table", [("old", OLD), ("new", NEW), ("paper", PAPER)])
def test_steps_by_duration(schedule, table):
    for seconds, steps in zip(DURATIONS, table, strict=True):
        assert time_steps(seconds, 10**6, schedule=schedule, cap=10**5) == steps
        assert time_steps(float(seconds), 10**6, schedule=schedule) == min(steps, 128)


def test_bounds_of_the_number_of_steps():
    assert time_steps(9.0, 270, min_frames=32) == 32  # Oops in the released code
    assert time_steps(9.0, 20, min_frames=32) == 20
    assert time_steps(0.2, 6) == 6
    assert time_steps(7200.0, 216_000) == 128
    assert time_steps(7200.0, 216_000, schedule="fixed", steps=300) == 300
    with pytest.raises(ValueError, match="schedule is 'log'"):
        time_steps(1.0, 30, schedule="log")


def test_frames_run_from_first_to_last():
    assert frame_indices(10, 4).tolist() == [0, 3, 6, 9]
    assert frame_indices(11, 4).tolist() == [0, 3, 6, 10]
    assert frame_indices(1, 1).tolist() == [0]
    for count, steps in ((150, 8), (30, 30), (977, 64), (2, 2)):
        frames = frame_indices(count, steps)
        exact = np.linspace(0, count - 1, steps)
        assert frames[0] == 0 and frames[-1] == count - 1 and frames.dtype == np.int64
        assert (np.diff(frames) > 0).all() and (np.abs(frames - exact) < 1).all()


def test_windows_are_short_at_the_start_and_end_before_the_observation():
    assert [window(i, 4) for i in (1, 2, 4, 5, 9)] == [
        (0,), (0, 1), (0, 1, 2, 3), (1, 2, 3, 4), (5, 6, 7, 8)
    ]  # fmt: skip
    assert observation(5, "frame") == (5,)
    assert observation(5, "pair") == (4, 5)


def test_a_video_must_outlast_the_window():
    assert episode_frames(Settings(), seconds=0.2, frame_count=5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(TooShortError, match=r"window 4 is larger .* 4 frames, 4 sampled.* most 3"):
        episode_frames(Settings(), seconds=0.2, frame_count=4)
    with pytest.raises(TooShortError, match=r"window 8 is larger .* 300 frames, 8 sampled"):
        episode_frames(Settings(window=8), seconds=10.0, frame_count=300)
    with pytest.raises(TooShortError, match="single frame"):
        episode_frames(Settings(), seconds=0.0, frame_count=1)
    with pytest.raises(TooShortError, match="no frames"):
        episode_frames(Settings(), seconds=0.0, frame_count=0)
