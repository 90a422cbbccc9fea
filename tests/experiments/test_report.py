"""The picture and the page: whole for every trace that can occur, and safe against its text."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.figure import _moments, seconds_of, uniform_frames

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>bold</b> <!-- $x_1$ 熊 \u202e \x00 🐻"


def make_trace(steps=6, hypotheses=3, probe=False, peak=None, caption="a ball rolls", **fields):
    """A video of ten frames a step at 10 fps; the score is 1 at `peak` and 0.1 elsewhere."""
    records = []
    for i in range(steps):
        prior = [1 / hypotheses] * hypotheses if i else []
        posterior = [1.0] + [0.0] * (hypotheses - 1) if i else []
        score = (1.0 if i == peak else 0.1) if i else 0.0
        records.append(
            {
                "frame": 10 * i,
                "seconds": 1.0 * i,
                "window": [10 * j for j in range(max(0, i - 4), i)],
                "history": "" if not caption else " Then, " + caption,
                "hypotheses": [f"guess {n} at {i}" for n in range(hypotheses)] if i else [],
                "prior_nll": [2.0] * len(prior),
                "probe_yes" if probe else "posterior_nll": [0.5] * len(prior),
                "prior": prior,
                "posterior": posterior,
                "kl": score,
                "js": 0.2,
                "evidence": 1.5,
                "caption": caption,
                "score": score,
            }
        )
    count = 10 * (steps - 1) + 1
    chosen = sorted({0, count // 2, count - 1})
    return {
        "schema": 1,
        "video": "clips/ball.mp4",
        "id": "ball",
        "fps": 10.0,
        "frame_count": count,
        "seconds": count / 10,
        "width": 64,
        "height": 36,
        "model": "tiny",
        "settings": {"score": "kl", "window": 4, "prompts": {"caption": "Describe."}},
        "steps": records,
        "selected": {
            "method": "surprise",
            "budget": 4,
            "tau": 0.7,
            "seed": 0,
            "frames": chosen,
            "seconds": [frame / 10 for frame in chosen],
        },
    } | fields


def make_thumbnails(trace, height=18, width=32):
    return {
        frame: np.full((height, width, 3), (200, 40 + frame % 200, 90), np.uint8)
        for frame in report.frames_shown(trace)
    }


class Page(HTMLParser):
    """Elements (tag, attributes), those still open, the text of each script and of the rest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.scripts, self.words = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "br", "img", "wbr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.words += data


def write(tmp_path, traces, failures=(), **options):
    path = tmp_path / "report.html"
    report.html(traces, map(make_thumbnails, traces), list(failures), path, **options)
    text = path.read_text("utf-8")
    page = Page(text)
    return text, page, json.loads(page.scripts[0])


def draw(tmp_path, trace, thumbnails):
    path = tmp_path / "trace.png"
    report.figure(trace, thumbnails, path)
    return np.asarray(Image.open(path).convert("RGB"))


CASES = {
    "plain": make_trace(peak=3),
    "two steps": make_trace(steps=2, hypotheses=1, peak=1),
    "one step": make_trace(steps=1),
    "no time": make_trace(steps=1, seconds=0.0),
    "many": make_trace(steps=128, hypotheses=16, peak=127),
    "all equal": make_trace(peak=None),
    "probe, no captions": make_trace(probe=True, caption="", peak=2),
    "portrait": make_trace(width=36, height=64, peak=1),
    "panorama": make_trace(width=6400, height=36, peak=1),
    "hostile": make_trace(caption=HOSTILE, video=HOSTILE * 3 + "\udcff.mp4", model=HOSTILE, peak=4),
    "long word": make_trace(caption="w" * 300, peak=4),
    "no selection": make_trace(selected=None, peak=2),
}


@pytest.mark.parametrize("trace", CASES.values(), ids=CASES)
def test_figure_is_a_whole_picture(tmp_path, trace):
    size = (32, 18) if trace["height"] > trace["width"] else (18, 32)
    pixels = draw(tmp_path, trace, make_thumbnails(trace, *size))
    assert pixels.shape[1] == 1500 and 700 < pixels.shape[0] < 2000
    assert (pixels[:, :, 0] == 200).sum() > 10_000, "the thumbnails are in it"
    paper = pixels[0, 0]
    for edge in (pixels[:20], pixels[-10:], pixels[:, :20], pixels[:, -20:]):
        assert (edge == paper).all(), "nothing is cut off at an edge"


def test_figure_without_thumbnails_leaves_their_rows_out(tmp_path):
    trace = make_trace(peak=3)
    bare = draw(tmp_path, trace, {})
    assert bare.shape[0] < draw(tmp_path, trace, make_thumbnails(trace)).shape[0] - 300
    assert len(np.unique(bare.reshape(-1, 3), axis=0)) > 50


def test_figure_marks_the_peak_where_it_is(tmp_path):
    """The accent's column of most ink in the curve's rows moves with the peak."""

    def badge(peak):
        pixels = draw(tmp_path, make_trace(peak=peak), {})
        accent = (np.abs(pixels.astype(int) - (0xD0, 0x51, 0x2F)).sum(-1) < 12)[150:330]
        return np.median(np.nonzero(accent.sum(0) > 15)[0])  # the badge is a disc of 24 pixels

    left, right = 1.55 * 150, 9.6 * 150  # the axis of 0 to 5.1 seconds
    for peak in (1, 2, 4):
        assert badge(peak) == pytest.approx(left + (right - left) * peak / 5.1, abs=8)


def test_moments_are_peaks_and_not_their_shoulders():
    trace = make_trace(steps=9)
    for step, score in zip(
        trace["steps"], (0, 0.1, 0.1, 0.8, 0.9, 0.7, 0.1, 0.3, 0.02), strict=True
    ):
        step["score"] = score
    assert _moments(trace["steps"]) == [4, 7]
    trace["steps"][7]["score"] = 0.05
    assert _moments(trace["steps"]) == [4, 1]
    trace["steps"][4]["score"] = 1.1  # now the rest is less than a tenth of it
    assert _moments(trace["steps"]) == [4]
    assert _moments(make_trace(steps=5)["steps"]) == [1], "all alike: the first stands for them"
    assert _moments(make_trace(steps=1)["steps"]) == []


def test_frames_shown_are_the_scored_and_some_of_the_chosen_ones():
    trace = make_trace(steps=4)
    assert report.frames_shown(trace) == sorted({0, 10, 20, 30, 15, *uniform_frames(trace)})
    trace["selected"] = None
    assert report.frames_shown(trace) == [0, 10, 20, 30]


def test_uniform_frames_and_their_times():
    trace = make_trace(steps=3)  # 21 frames, a budget of 4
    assert uniform_frames(trace) == [2, 7, 13, 18]
    trace["steps"][2]["seconds"] = 4.0  # the second half runs at a third of the rate
    assert seconds_of(trace, [0, 5, 15, 20]) == pytest.approx([0.0, 0.5, 2.5, 4.0])
    assert seconds_of(make_trace(steps=1), [0, 5]) == pytest.approx([0.0, 0.5])


def test_page_holds_the_data_and_asks_nothing_of_a_network(tmp_path):
    traces = [make_trace(peak=3), make_trace(steps=2, probe=True), make_trace(selected=None)]
    text, page, data = write(tmp_path, traces, note="Words mean nothing yet.")
    assert page.open == [], "every element is closed, in order"
    assert data["traces"] == traces
    assert data["uniform"][2] is None
    assert data["uniform"][0]["frames"] == uniform_frames(traces[0])
    assert set(data["thumbnails"][1]) == {str(frame) for frame in report.frames_shown(traces[1])}
    assert all(
        uri.startswith("data:image/webp;base64,")
        for kept in data["thumbnails"]
        for uri in kept.values()
    )
    assert not re.search(r"(https?:)?//[a-z0-9]+\.|url\(|@import|\bfetch\(", text, re.IGNORECASE)
    for _, attributes in page.elements:
        assert attributes.get("href", "#").startswith("#") and "src" not in attributes
    assert "Words mean nothing yet." in page.words
    assert "peak 1 at 3.0 s" in page.words and "all steps score alike" in page.words
    assert "prompts.caption" in page.words and "Describe." in page.words


def test_text_from_traces_is_never_markup(tmp_path):
    trace = make_trace(caption=HOSTILE, video=HOSTILE.replace("/", "⁄"), model=HOSTILE, peak=1)
    trace["steps"][2]["hypotheses"][0] = HOSTILE
    trace["settings"] = {HOSTILE: HOSTILE}
    failure = {"video": HOSTILE, "stage": "decode", "error": HOSTILE}
    text, page, data = write(tmp_path, [trace], [failure], note=HOSTILE)
    assert data["traces"] == [trace]
    assert len(page.scripts) == 2 and text.lower().count("</script") == 2
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags and "b" not in tags and "onerror" not in str(page.elements)
    # The note, the model, two cells of the failure and two of the settings; then the name.
    assert page.words.count(" & <b>bold</b> <!--") == 6
    assert page.words.count(" & <b>bold<⁄b> <!--") == 1
    # The script makes elements by name and text by textContent; it has no way to parse markup.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_names_that_are_no_utf8_and_failures_alone_do_not_stop_the_page(tmp_path):
    _, page, data = write(tmp_path, [make_trace(video="caf\udce9.mp4")])
    assert "caf?.mp4" in page.words
    assert data["traces"][0]["video"] == "caf\udce9.mp4"
    _, page, data = write(tmp_path, [], [{"video": "a.mp4", "stage": "open", "error": "no video"}])
    assert data["traces"] == [] and "no video" in page.words


def test_many_videos_keep_few_thumbnails_each_the_peak_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", 16)
    trace = make_trace(steps=20, peak=7)
    _, _, data = write(tmp_path, [trace] * 4)
    assert [len(kept) for kept in data["thumbnails"]] == [4] * 4
    assert "70" in data["thumbnails"][0]


def test_each_trace_needs_its_thumbnails(tmp_path):
    with pytest.raises(ValueError):
        report.html([make_trace()], [], [], tmp_path / "report.html")


def test_import_is_light():
    """`saccade --help` answers in under a second: no plotting, no jax until they are needed."""
    code = "import sys, experiments.report; print({'matplotlib', 'jax', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
