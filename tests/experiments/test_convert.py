"""`saccade convert` there and back, and `saccade frames` on a trace."""

import json

import numpy as np
import pytest

import vlm
from experiments.cli import main
from surprise import Step, Trace
from vlm.weights import parameters


@pytest.mark.parametrize("source", ["tiny", "tiny-qwen3"])
def test_to_orbax_and_back_is_bit_equal(source, tmp_path):
    there, back = tmp_path / "orbax", tmp_path / "hf"
    assert main(["convert", source, str(there), "--dtype=float32"]) == 0
    assert main(["convert", str(there), str(back), "--dtype=float32"]) == 0
    first, last = vlm.load(source, dtype="float32"), vlm.load(back, dtype="float32")
    before, after = parameters(first.model), parameters(last.model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(after[name]), err_msg=name)
    assert last.config == first.config and last.trained == first.trained
    text = "The red circle bounces."
    assert last.processor.plain(text) == first.processor.plain(text)


def test_wrong_calls_of_convert(tmp_path, capfd):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert main(["convert", "tiny", str(tmp_path / "full")]) == 2
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / "new")]) == 2
    assert main(["convert", "tiny"]) == 2
    errors = capfd.readouterr().err
    assert "exists" in errors and "no such model" in errors and errors.count("\n") == 3
    assert (tmp_path / "full" / "file").read_text() == "kept"


@pytest.fixture
def traces(tmp_path):
    steps = tuple(
        Step(frame=10 * k, seconds=float(k), posterior_nll=(), score=score)
        for k, score in enumerate([0.0, 0.1, 5.0, 0.1])
    )
    trace = Trace("a.mp4", "a", 10.0, 31, 3.1, 64, 48, "tiny", {}, steps)
    path = tmp_path / "trace.jsonl"
    path.write_text(trace.to_line() + "\n")
    return path


def test_frames_follow_the_scores_and_the_seed(traces, capsys):
    def frames(*flags):
        assert main(["frames", str(traces), "--budget=6", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    chosen = frames("--tau=0.5")["a"]
    assert sum(10 < frame <= 20 for frame in chosen) > len(chosen) / 2
    assert frames("--tau=0.5")["a"] == chosen != frames("--tau=0.5", "--seed=1")["a"]
    assert len(frames("--refill")["a"]) == 6
    np.testing.assert_allclose(frames("--format=seconds", "--tau=0.5")["a"], np.array(chosen) / 10)
    assert frames("--format=aks", "--tau=0.5") == [chosen]
    assert frames("--format=bolt", "--method=uniform")["a"][0]["frames"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--budget=0"], "budget is 0"),
        (["--method=luck"], "invalid choice"),
        (["--tau=0"], "frames_tau is 0"),
    ],
)
def test_wrong_calls_of_frames(traces, change, says, capfd):
    assert main(["frames", str(traces), *change]) == 2
    errors = capfd.readouterr().err
    assert says in errors and errors.count("\n") == 1


def test_a_file_that_is_no_trace(traces, capfd):
    traces.write_text("{}\n")
    assert main(["frames", str(traces)]) == 2
    assert "trace.jsonl:1: schema" in capfd.readouterr().err
