"""The page of a training run: every metric on it, and text that stays text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from experiments import curves

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>bold</b> \u202e 🐻 \udcff"
SETTINGS = {"steps": 40, "model": "tiny", "seed": 0, "rewards": ["accuracy"], "toy": {"level": "a"}}


def row(group, view, sample, reward, **changes):
    return {
        "step": 40, "group": group, "view": view, "sample": sample, "id": "i", "video": "clip.mp4",
        "transform": "", "frames": [0, 1, 2, 5], "prompt": f"Question {group}?",
        "completion": "left", "answer": "left", "rewards/accuracy": reward, "reward": reward,
        "advantage": None if reward is None else reward - 0.5, **changes,
    }  # fmt: skip


class Parsed(HTMLParser):
    """Tags that were opened and not closed again, all that there are, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.images = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(tmp_path, lines, rows=(), pictures=None, settings=SETTINGS):
    curves.html(lines, rows, pictures or {}, settings, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    parsed = Parsed(text)
    assert not parsed.open
    assert "script" not in parsed.tags and not re.search(r"(?:src|href)=.?https?:", text)
    return text, parsed


def points(svg, kind):
    found = re.search(rf'class="{kind}" points="([^"]*)"', svg)[1]
    return np.array([[float(n) for n in pair.split(",")] for pair in found.split()])


def test_every_metric_is_a_panel_of_its_section(tmp_path):
    lines = [{"step": s, "rewards/accuracy/mean": s / 40, "step_time": 1.0, "eval/reward": 0.5,
              "reward": s / 40, "loss": -1.0 * s} for s in range(1, 41)]  # fmt: skip
    text, parsed = page(tmp_path, lines)
    order = re.findall(r"<h2>(.*?)</h2>|<figcaption><span>(.*?)</span>", text)
    assert [title or name for title, name in order] == [
        *("Learning", "loss", "reward", "Rewards", "rewards/accuracy/mean"),
        *("Validation", "eval/reward", "Other", "step_time"),
    ]
    assert "40 of 40 steps · tiny · rewarded by accuracy" in parsed.text
    assert "toy.level" in parsed.text


def test_a_curve_goes_through_its_points():
    svg = curves.panel("loss", np.arange(1.0, 5.0), np.array([4.0, 0.0, 1.0, 2.0]), (1, 7))
    raw = points(svg, "raw")
    # Three of the axis' six steps.
    assert raw[[0, -1], 0].tolist() == [curves.LEFT, (curves.LEFT + curves.RIGHT) / 2]
    # Heights in proportion, the largest on top.
    share = (curves.BASE - raw[:, 1]) / (curves.BASE - curves.TOP)
    np.testing.assert_allclose(share, [1, 0, 0.25, 0.5], atol=1e-3)
    assert re.findall(r">([^<>]+)</text>", svg) == ["0", "4", "step 1", "7"]


def test_the_smooth_line_is_a_running_mean():
    values = np.arange(90.0)
    values[45] += 70.0
    smooth = curves.smoothed(values)
    np.testing.assert_allclose(smooth[10:40], values[10:40])  # a line stays one
    np.testing.assert_allclose(smooth[42:49], np.arange(42.0, 49.0) + 10)  # 70 over 7 places
    assert smooth[0] == np.mean(values[:4]) and smooth[-1] == np.mean(values[-4:])
    np.testing.assert_array_equal(curves.smoothed(values[:9]), values[:9])


def test_a_long_run_is_drawn_by_few_points():
    steps = np.arange(1.0, 100_001.0)
    svg = curves.panel("loss", steps, 5e4 * np.sin(steps), (1, 100_000))
    assert len(points(svg, "raw")) == len(points(svg, "smooth")) == curves.POINTS
    assert len(svg) < 10_000 and ">100000</text>" in svg


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 3, "loss": 0.0}],
        [{"step": s, "loss": 0.0} for s in range(5)],
        [{"step": 1, "loss": float("inf")}, {"step": 2, "loss": 1.0}],
        [{"step": 1, "loss": float("nan")}],
    ],
)
def test_a_run_of_few_steps_flat_or_not_finite(tmp_path, lines):
    text, _ = page(tmp_path, lines)
    numbers = " ".join(re.findall(r'points="([^"]*)"', text))
    assert "nan" not in numbers and "inf" not in numbers


def test_the_groups_with_signal_are_shown_with_their_frames(tmp_path):
    rows = [
        row(group, 0, g, float(g == 0 and group in (1, 3))) for group in range(5) for g in (0, 1)
    ]
    rows += [row(3, 1, 0, None, transform="reversal", advantage=None)]
    frames = np.zeros((20, 200, 100, 3), np.uint8)
    pictures = {(3, 0): frames, (1, 0): frames[:3]}
    text, parsed = page(tmp_path, [{"step": 40, "loss": 1.0}], rows, pictures)
    questions = re.findall(r"<h3>Question (\d)\?</h3>", text)
    assert questions == ["1", "3", "3", "0"]  # of the third both views
    assert len(parsed.images) == 3 + curves.PICTURES
    assert all(uri.startswith("data:image/webp;base64,") for uri in parsed.images)
    assert "view 1, reversal" in parsed.text and "3 of the 5 prompts of step 40" in parsed.text
    assert "<td>0-2, 5</td>" in text
    assert re.findall(r'<td class="number">(.*?)</td>', text)[:3] == ["1.00", "1.00", "0.50"]


def test_text_stays_text(tmp_path):
    hostile = {name: HOSTILE for name in ("video", "prompt", "completion", "answer", "transform")}
    rows = [row(0, 0, 0, 1.0, **hostile) | {f"rewards/{HOSTILE}": 1.0}]
    lines = [{"step": 1, HOSTILE: 1.0}]
    settings = SETTINGS | {"system": HOSTILE, "rewards": [HOSTILE], "model": HOSTILE}
    _, parsed = page(tmp_path, lines, rows, settings=settings)
    assert "b" not in parsed.tags and not parsed.images
    assert parsed.text.count("onerror=alert(1)") >= 8
