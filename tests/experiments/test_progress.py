import sys
import time

import pytest

from experiments import progress
from experiments.progress import Progress


@pytest.fixture
def clock(monkeypatch, caplog):
    """Every look at the clock is a second later."""
    ticks = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    caplog.set_level("INFO")


def test_lines_tell_rate_and_time_left(clock, caplog, monkeypatch):
    monkeypatch.setattr(progress, "_TELL_SECONDS", 2.0)
    with Progress(8, "file", about="reading") as job:
        for _ in range(4):
            job.add(2)
    assert caplog.messages == [
        "reading [4/8], 2 files/s, 2 s left",
        "reading [8/8], 2 files/s, 0 s left",
    ]


def test_each_is_told_by_name(clock, caplog):
    with Progress(2, "video", each=True) as job:
        job.add(name="a.mp4")
        job.add(name="b.mp4")
    assert caplog.messages == [
        "[1/2] a.mp4, 1 videos/s, 1 s left",
        "[2/2] b.mp4, 1 videos/s, 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(2, "video") as job:
        job.add(2)
    assert "2/2" in capsys.readouterr().err and not caplog.messages
