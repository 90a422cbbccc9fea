import numpy as np
import pytest

from data.mp4 import write_mp4
from data.toyworld import make
from data.video import Decoder


def test_written_clips_read_back(tmp_path):
    frames, path = make(0).frames, tmp_path / "clip.mp4"
    write_mp4(path, frames, 4)
    with Decoder() as decoder:
        info = decoder.info(path)
        read = decoder.frames(path, range(info.frame_count))
        times = decoder.times(path)
    assert (info.fps, info.frame_count) == (4, len(frames))
    assert info.seconds == pytest.approx(len(frames) / 4, abs=1e-6)
    np.testing.assert_allclose(times, np.arange(len(frames)) / 4, atol=1e-6)
    assert np.abs(read.astype(int) - frames).mean() < 8  # colour is kept at half the resolution
