"""`saccade validate` over small clips, each broken in its own way."""

import io
import json
import os
import wave

import av
import numpy as np
import pytest

from data import video
from data.mp4 import write_mp4
from data.types import Example
from data.video import VideoInfo
from experiments import cli, validate
from experiments.arguments import UsageError

FPS, FRAMES = 10, 20  # two seconds


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The bytes of a whole clip: noise, so that a cut takes frames away."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 64, 3), dtype=np.uint8)
    write_mp4(path, frames, FPS)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, clip):
    """Three whole clips, and one of each kind of broken file."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, name in enumerate(["a", "b", "c"]):
        free = (8 + number).to_bytes(4, "big") + b"free" + bytes(number)  # bytes of no meaning
        (videos / f"{name}.mp4").write_bytes(clip + free)
    (videos / "cut.mp4").write_bytes(clip[: len(clip) // 2])
    (videos / "damaged.mp4").write_bytes(damaged(clip))
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("this is no video " * 50)
    (videos / "dir.mp4").mkdir()
    os.mkfifo(videos / "pipe.mp4")  # whoever opens it waits for ever
    with wave.open(str(videos / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        sound.writeframes(bytes(16000))
    return videos


def damaged(clip):
    """The clip with zeros for the data of its last frames; the tables know nothing of it."""
    with av.open(io.BytesIO(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(clip)
    for packet in packets[-6:]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    return bytes(data)


def manifest(folder, rows):
    path = folder / "m.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def call(tmp_path, dataset, *flags):
    """Exit status, and (id, check, error) of each problem."""
    out = tmp_path / "out"
    status = cli.main(["validate", str(dataset), f"--out={out}", "--workers=2", *flags])
    lines = (out / "problems.jsonl").read_text().splitlines()
    problems = [json.loads(line) for line in lines]
    assert all(list(problem) == ["video", "id", "check", "error"] for problem in problems)
    return status, [(p["id"], p["check"], p["error"]) for p in problems]


def test_a_clean_manifest(tmp_path, folder, capsys):
    rows = [
        {"video": "a.mp4", "frame_count": FRAMES, "fps": FPS, "duration": 2.0, "span": [0, 2]},
        {"video": "b.mp4", "events": [[0.5, 1.0]], "duration": "short"},
        {"video": "c.mp4", "question": "Q", "options": ["x", "y"], "answer": "B"},
    ]
    assert call(tmp_path, manifest(folder, rows)) == (0, [])
    assert capsys.readouterr().out == "3 items, 3 files: no problem found\n"


def test_every_broken_file_of_a_directory(tmp_path, folder, capsys):
    status, problems = call(tmp_path, folder)
    assert status == 1
    assert {(name, check) for name, check, _ in problems} == {
        ("cut.mp4", "truncated"),
        ("damaged.mp4", "undecodable"),
        ("empty.mp4", "empty"),
        ("text.mp4", "unreadable"),
        ("dir.mp4", "unreadable"),
        ("pipe.mp4", "unreadable"),
        ("sound.mp4", "no video"),
    }
    header, *rows, blank, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["check", "id", "video", "error"] and not blank
    at = header.index("video")
    assert all(row[at:].startswith(str(folder)) for row in rows)
    assert summary.startswith("10 items, 10 files: 3 unreadable, ")


def test_items_that_do_not_fit_their_video_or_each_other(tmp_path, folder):
    rows = [
        {"video": "a.mp4", "id": "x"},
        {"video": "b.mp4", "id": "x"},
        {"video": "gone.mp4", "id": "gone"},
        {"video": "c.mp4", "id": "span", "span": [1, 9]},
        {"video": "c.mp4", "id": "event", "events": [[0, 1], [8, 9]]},
        {"video": "c.mp4", "id": "count", "frame_count": 40},
        {"video": "c.mp4", "id": "fps", "fps": 30},
        {"video": "c.mp4", "id": "duration", "duration": 7.5},
        {"video": "c.mp4", "id": "answer", "question": "Q", "options": ["x", "y"], "answer": "C"},
        {"video": "c.mp4", "id": "question", "options": ["x", "y"], "answer": "A"},
        {"video": "../../secret.mp4", "id": "escape"},
        '{"video": ',
    ]
    status, problems = call(tmp_path, manifest(folder, rows))
    assert status == 1
    assert [(name, check) for name, check, _ in problems] == [
        *((f"line {line}", "annotation") for line in (9, 10, 11, 12)),
        ("x", "duplicate"),
        ("gone", "missing"),
        ("span", "span"),
        ("event", "event"),
        ("count", "frame_count"),
        ("fps", "fps"),
        ("duration", "duration"),
    ]
    errors = [error for _, _, error in problems]
    assert errors[0].startswith(f"{folder}/m.jsonl, line 9, column 'answer': ")
    assert errors[4:] == [
        f"id also of {folder}/a.mp4",
        "no such file",
        "1 to 9 s, and the video has 2.00 s",
        "8 to 9 s, and the video has 2.00 s",
        "40, and the video has 20",
        "30, and the video has 10",
        "7.5 s, and the video has 2.00 s",
    ]


def test_the_same_bytes_under_two_names_are_a_warning(tmp_path, folder):
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    rows = [{"video": name} for name in ("a.mp4", "b.mp4", "copy.mp4")]
    status, problems = call(tmp_path, manifest(folder, rows))
    assert status == 0
    same = f"warning: the same bytes as {folder}/a.mp4"
    assert problems == [("copy.mp4", "same content", same)]


def test_a_published_dataset_by_name_and_root(tmp_path, folder):
    rows = {name: {"t": [1, 1, 9], "n_notfound": 0} for name in ("a", "b", "lost")}
    rows["b"]["t"] = [1, 9, 9]
    path = tmp_path / "transition_times.json"
    path.write_text(json.dumps(rows))
    status, problems = call(tmp_path, f"oops:{path}", f"--root={folder}")
    assert status == 1
    assert [(name, check) for name, check, _ in problems] == [("b", "event"), ("lost", "missing")]


def test_a_file_of_annotations_that_can_not_be_read(tmp_path):
    path = tmp_path / "m.json"
    path.write_text("[{")
    status, problems = call(tmp_path, path)
    assert status == 1 and [check for _, check, _ in problems] == ["annotation"]


def test_decoders_that_hang_are_killed(tmp_path, folder, monkeypatch):
    """A worker that starts, and never answers."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys, time\n"
        "from multiprocessing.connection import Connection\n"
        "connection = Connection(int(sys.argv[1]))\n"
        "connection.send(('ok', None))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(video, "_WORKER", worker)
    path = manifest(folder, [{"video": name} for name in ("a.mp4", "b.mp4", "empty.mp4")])
    status, problems = call(tmp_path, path, "--timeout=0.2")
    assert (status, [(name, check) for name, check, _ in problems]) == (
        1,
        [("a.mp4", "timeout"), ("b.mp4", "timeout"), ("empty.mp4", "empty")],
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jsonl"], "no directory of videos, and no manifest"),
        (["imagenet:x.json"], "no dataset 'imagenet'; choose from oops"),
        (["oops:nowhere.json"], "nowhere.json: no such file or directory"),
        (["."], "no video in this directory; a dataset is NAME:"),
        (["m.jsonl", "--root=nowhere"], "--root=nowhere: no such directory"),
        (["m.jsonl", "--workers=0"], "must be positive"),
        (["m.jsonl", "--timeout=-1"], "must be positive"),
        (["m.jsonl", "--out=m.jsonl"], "--out=m.jsonl: "),
        ([], "the following arguments are required: dataset"),
        (["m.jsonl", "--bogus"], "no such flag"),
    ],
)
def test_wrong_calls(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").touch()
    with pytest.raises(UsageError, match=says.replace(".", r"\.")):
        validate.main(arguments)
    assert cli.main(["validate", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_mismatch():
    """Rounded annotations, a clip encoded again, and columns of words."""
    info = VideoInfo("a.mp4", 29.97, 300, 10.0, 64, 48, "decord")
    extra = {"frame_count": "302", "fps": 30, "duration": 10.9}
    example = Example("a", "a.mp4", span=(0.0, 10.4), events=((9.0, 10.5),), extra=extra)
    assert list(validate.mismatches(example, info)) == []
    words = example.replace(extra={"duration": "short", "fps": None})
    assert list(validate.mismatches(words, info)) == []
    late = example.replace(span=(10.0, 10.2))
    assert [problem.check for problem in validate.mismatches(late, info)] == ["span"]


def test_questions_that_can_not_be_graded():
    good = Example("a", "a.mp4", question="Q", options=("x", "y"), answer="B")
    assert list(validate.unanswerable(good)) == []
    assert list(validate.unanswerable(good.replace(answer=""))) == []  # withheld
    for bad, check in (
        (good.replace(answer="C"), "answer"),
        (good.replace(question=""), "question"),
    ):
        assert [problem.check for problem in validate.unanswerable(bad)] == [check]
