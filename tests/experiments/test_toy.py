"""`saccade toy`, from the command line to the files that the readers take."""

import json

import numpy as np
import pytest

from data.readers import read
from data.toyworld import make
from data.video import Decoder
from experiments.cli import main


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    call = ["toy", f"--out={folder}", "--clips=5", "--seed=3", "--split=test", "--pairs"]
    assert main(call) == 0
    return folder


def test_files_show_the_clips(out):
    assert len(list(out.glob("*.mp4"))) == 15
    with Decoder() as decoder:
        for index in range(3):
            clip = make(index, seed=3, split="test")
            path = out / f"{clip.scene.id}.mp4"
            info = decoder.info(str(path))
            assert (info.frame_count, info.width, info.height, info.fps) == (16, 64, 64, 4.0)
            frames = decoder.frames(str(path), range(16))
            assert np.abs(frames.astype(int) - clip.frames).mean() < 4
            backwards = decoder.frames(str(out / f"{clip.scene.id}-reversal.mp4"), range(16))
            assert np.abs(backwards[::-1].astype(int) - clip.frames).mean() < 4


def test_the_manifest_is_read_as_ours(out):
    examples = read("manifest", out / "manifest.jsonl")
    assert len({example.id for example in examples}) == len(examples) > 20
    for example in examples:
        assert example.kind == "multiple_choice" and example.answer in "ABCD"
        assert (out / example.video).exists() and example.caption
    pairs = read("manifest", out / "pairs.jsonl")
    sides = {}
    for example in pairs:
        sides.setdefault(example.pair, []).append(example)
    assert {len(side) for side in sides.values()} == {2}
    for one, two in sides.values():
        assert one.question == two.question and one.options == two.options
        assert two.extra["transform"] in ("flip", "reversal") and one.video != two.video
        if one.route == "static":
            assert one.answer == two.answer
        else:
            assert one.answer != two.answer


def test_annotations_are_read_as_those_of_oops(out):
    entries = json.loads((out / "annotations.json").read_text())
    assert len(entries) == 15
    found = {example.id: example for example in read("oops", out / "annotations.json", root=out)}
    for index in range(5):
        scene = make(index, seed=3, split="test").scene
        if scene.events:
            moment = scene.events[0].step / 4
            assert found[scene.id].events == ((moment, moment),)
            assert entries[scene.id]["events"][0]["kind"] == scene.events[0].kind
        else:
            assert scene.id not in found and entries[scene.id]["t"] == [-1.0]
    assert len(found) < 15 or all(entry["events"] for entry in entries.values())


def test_a_second_call_continues(out, tmp_path):
    call = ["toy", f"--out={tmp_path}", "--seed=3", "--split=test", "--pairs"]
    assert main([*call, "--clips=2"]) == 0
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    lost = sorted(first)[0]
    (tmp_path / lost).unlink()
    assert main([*call, "--clips=5"]) == 0
    now = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    assert all(now[name] == first[name] for name in first if name != lost)
    for file in ("manifest.jsonl", "pairs.jsonl", "annotations.json"):
        assert (tmp_path / file).read_text() == (out / file).read_text()
    assert not list(tmp_path.glob("*.part*"))


def test_wrong_calls(out, tmp_path, capsys):
    for call, said in (
        (["--clips=5", "--seed=4"], "other settings (pairs, seed, split)"),
        (["--clips=0"], "must be positive"),
        (["--clips=2", "--level=hard"], "invalid choice"),
    ):
        assert main(["toy", f"--out={out}", *call]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1
    (tmp_path / "file").write_text("")
    assert main(["toy", f"--out={tmp_path / 'file'}", "--clips=1"]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_clip_that_cannot_be_written_is_listed(tmp_path, monkeypatch):
    from experiments import toy

    real = toy.write_mp4

    def full(path, frames, fps):
        if "-1." in path.name:
            raise OSError(28, "No space left on device")
        real(path, frames, fps)

    monkeypatch.setattr(toy, "write_mp4", full)
    assert main(["toy", f"--out={tmp_path}", "--clips=3"]) == 1
    (failure,) = _lines(tmp_path / "failures.jsonl")
    assert failure["id"] == "full-train-0-1" and "No space" in failure["error"]
    assert {e["video"] for e in _lines(tmp_path / "manifest.jsonl")} == {
        "full-train-0-0.mp4",
        "full-train-0-2.mp4",
    }
    monkeypatch.undo()
    assert main(["toy", f"--out={tmp_path}", "--clips=3"]) == 0
    assert _lines(tmp_path / "failures.jsonl") == []
