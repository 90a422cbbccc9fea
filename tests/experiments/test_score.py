"""`saccade score` from the command line to the files, on real mp4 files that the tests write."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vlm
from data.mp4 import write_mp4
from experiments.cli import main

QUICK = [
    "--config=score.py:tiny",
    "--config.steps=4",
    "--config.window=2",
    "--config.hypothesis_tokens=6",
    "--config.caption_tokens=4",
    "--config.budget=5",
    "--config.driver=single",
    "--config.batch=1",
]
PLAIN = [*QUICK, "--config.pictures=false", "--config.report=false"]
ASSETS = Path(__file__).resolve().parents[3] / "shared/assets/videos"


def _movie(path, frames=24, seed=0, size=(56, 84)):
    """A bright square that wanders over noise: no two frames alike."""
    rng = np.random.default_rng(seed)
    clip = np.tile(rng.integers(0, 120, (1, *size, 3), np.uint8), (frames, 1, 1, 1))
    for i in range(frames):
        clip[i, 10 + i % 20 : 30 + i % 20, 2 * i : 2 * i + 20] = 200 - 5 * seed
    write_mp4(str(path), clip, 12)
    return str(path)


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movies")
    return [_movie(folder / f"movie{n}.mp4", seed=n) for n in range(3)]


def _lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def first(movies, tmp_path_factory):
    """Two videos in one call, with everything that is written."""
    out = tmp_path_factory.mktemp("first")
    assert main(["score", *movies[:2], f"--out={out}", *QUICK]) == 0
    return out


def test_a_run_writes_traces_pictures_and_a_report(first, movies):
    traces = _lines(first / "trace.jsonl")
    assert [trace["video"] for trace in traces] == movies[:2]
    for trace in traces:
        assert trace["schema"] == 1 and len(trace["steps"]) == 4
        assert (trace["fps"], trace["frame_count"]) == (12.0, 24)
        assert (trace["width"], trace["height"]) == (84, 56)
        assert trace["settings"]["run"]["versions"]["jax"]
        assert (first / "pictures" / f"{trace['id']}.png").stat().st_size > 10_000
        assert [step["frame"] for step in trace["steps"]] == [0, 7, 15, 23]
        np.testing.assert_allclose([step["seconds"] for step in trace["steps"]],
                                   np.array([0, 7, 15, 23]) / 12, atol=1e-3)  # fmt: skip
        seconds = trace["selected"]["seconds"]
        np.testing.assert_allclose(seconds, np.array(trace["selected"]["frames"]) / 12, atol=1e-3)
    assert (first / "failures.jsonl").read_text() == ""
    assert "movie0.mp4" in (first / "report.html").read_text()
    assert json.loads((first / "config.json").read_text())["steps"] == 4


def _recomputed(trace):
    """A trace's numbers from its other fields, in plain NumPy."""
    settings, steps = trace["settings"], []
    for step in trace["steps"][1:]:
        e = np.exp(-np.array(step["prior_nll"]) / settings["tau"])
        prior = e / e.sum()
        if settings["posterior"] == "nll":
            likelihood = np.exp(-np.array(step["posterior_nll"]) / settings["tau"])
            posterior = likelihood / likelihood.sum()
        else:
            likelihood = np.array(step["probe_yes"])
            posterior = prior * likelihood / (prior * likelihood).sum()
        middle = (prior + posterior) / 2
        kl = np.sum(posterior * np.log(posterior / prior))
        js = np.sum(posterior * np.log2(posterior / middle) + prior * np.log2(prior / middle)) / 2
        evidence = -np.log(np.sum(prior * likelihood))
        steps.append((prior, posterior, {"kl": kl, "js": js, "evidence": evidence}))
    return steps


def _selected(trace):
    """The frames that SPIKE's sampler draws from a trace's scores, in plain NumPy."""
    settings, steps = trace["settings"], trace["steps"]
    weights = np.exp([step["score"] / settings["frames_tau"] for step in steps[1:]])
    ends = np.array([step["frame"] + 1 for step in steps[1:]])  # segment i: (f_(i-1), f_i]
    starts = np.array([0, *ends[:-1]])
    rng = np.random.default_rng([settings["seed"], *trace["id"].encode()])
    pick, place = rng.random((2, settings["budget"]))
    segment = np.searchsorted(np.cumsum(weights / weights.sum()), pick)
    frames = starts[segment] + np.floor(place * (ends - starts)[segment])
    return sorted(set(frames.astype(int).tolist()))


def _check(trace):
    steps = zip(trace["steps"][1:], _recomputed(trace), strict=True)
    for step, (prior, posterior, scores) in steps:
        np.testing.assert_allclose(step["prior"], prior, atol=1e-6)
        np.testing.assert_allclose(step["posterior"], posterior, atol=1e-6)
        for name, value in scores.items():
            np.testing.assert_allclose(step[name], value, atol=1e-6)
        assert step["score"] == step[trace["settings"]["score"]]


def test_every_number_can_be_recomputed_from_the_trace(first):
    for trace in _lines(first / "trace.jsonl"):
        _check(trace)
        assert trace["selected"]["frames"] == _selected(trace)


def test_the_switches_of_the_released_code(movies, tmp_path):
    """Probe, pair, summary, js; jitter on."""
    switches = {
        "posterior": "probe", "observation": "pair", "history": "summary", "history_words": 1,
        "score": "js", "jitter": "true", "reduction": "sum",
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in switches.items()]
    assert main(["score", movies[0], f"--out={tmp_path}", *PLAIN, *flags]) == 0
    [trace] = _lines(tmp_path / "trace.jsonl")
    _check(trace)
    assert trace["steps"][2]["observation"] == [7, 15]
    assert all(0 < p < 1 for step in trace["steps"] for p in step.get("probe_yes", []))


def test_other_videos_and_their_order_change_nothing(first, movies, tmp_path):
    before = {trace["id"]: trace for trace in _lines(first / "trace.jsonl")}
    assert main(["score", *movies[::-1], f"--out={tmp_path}", *PLAIN]) == 0
    after = {trace["id"]: trace for trace in _lines(tmp_path / "trace.jsonl")}
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


def test_another_seed_is_another_trace(first, movies, tmp_path):
    assert main(["score", movies[0], f"--out={tmp_path}", *PLAIN, "--config.seed=1"]) == 0
    [trace] = _lines(tmp_path / "trace.jsonl")
    assert trace["steps"] != _lines(first / "trace.jsonl")[0]["steps"]


def test_a_second_run_continues_and_mends_a_torn_line(first, movies, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["score", movies[0], f"--out={out}", *PLAIN]) == 0
    traces = out / "trace.jsonl"
    whole = traces.read_text()
    traces.write_text(whole + whole[:500])
    assert main(["score", *movies[:2], f"--out={out}", *PLAIN]) == 0
    assert traces.read_text().startswith(whole)  # not scored again, not even rewritten
    assert _lines(traces) == _lines(first / "trace.jsonl")
    assert main(["score", movies[0], f"--out={out}", *PLAIN, "--config.tau=2"]) == 2
    assert "other settings (tau)" in capfd.readouterr().err
    assert _lines(traces) == _lines(first / "trace.jsonl")


def test_interrupted_work_is_whole_and_goes_on(first, movies, tmp_path):
    """The second video takes until the interruption: opening it blocks, as nobody writes."""
    command = [sys.executable, "-m", "experiments.cli", "score", *movies[:2], f"--out={tmp_path}"]
    traces = tmp_path / "trace.jsonl"
    second = Path(movies[1])
    aside = second.rename(second.with_suffix(".aside"))
    os.mkfifo(second)
    try:
        process = subprocess.Popen([*command, *PLAIN], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not (traces.exists() and traces.read_text().endswith("\n")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        aside.rename(second)
    assert process.returncode == 130 and "Traceback" not in errors
    assert _lines(traces) == _lines(first / "trace.jsonl")[:1]
    assert main(["score", *movies[:2], f"--out={tmp_path}", *PLAIN]) == 0
    assert _lines(traces) == _lines(first / "trace.jsonl")


def test_bad_videos_are_listed_and_the_rest_is_done(first, movies, tmp_path, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "text.mp4").write_text("not a film")
    (folder / "cut.mp4").write_bytes(Path(movies[0]).read_bytes()[:700])
    (folder / "empty.mp4").write_bytes(b"")
    _movie(folder / "still.mp4", frames=1)
    os.mkfifo(folder / "hangs.mp4")  # opening it blocks until somebody writes
    (folder / "good.mp4").write_bytes(Path(movies[1]).read_bytes())
    names = ["text", "cut", "empty", "still", "hangs", "good"]
    lines = [json.dumps({"video": f"{name}.mp4", "id": name}) for name in names]
    lines += ["{not json", json.dumps({"video": "../../secret.mp4"}), '{"video": "absent.mp4"}']
    (folder / "list.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    flags = [*PLAIN, "--config.timeout=3"]
    assert main(["score", str(folder / "list.jsonl"), f"--out={out}", *flags]) == 1
    failures = {Path(failure["id"]).name: failure for failure in _lines(out / "failures.jsonl")}
    assert failures["hangs"]["stage"] == "timeout"
    assert "single frame" in failures["still"]["error"]
    assert "no such file" in failures["list.jsonl:9"]["error"]
    assert "outside" in failures["list.jsonl:8"]["error"]
    assert failures["list.jsonl:7"]["stage"] == "manifest"
    assert set(names) - {"good"} <= set(failures) and len(failures) == 8
    assert all("\n" not in failure["error"] for failure in failures.values())
    assert [trace["id"] for trace in _lines(out / "trace.jsonl")] == ["good"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such.mp4"], "no-such.mp4: no such file"),
        ([], "name a video"),
        (["{movie}", "--config.budget=0"], "budget is 0"),
        (["{movie}", "--config.windw=3"], "did you mean window?"),
        (["{movie}", "--config.tau=warm"], "must be float"),
        (["{movie}", "--config.posterior=maybe"], "choose from nll, probe"),
        (["{movie}", "--model={folder}"], "no config.json"),
        (["{movie}", "--model=no/such/model"], "no such model"),
        (["{movie}", "--out={movie}"], "--out"),
        (["{folder}/empty"], "no video file"),
        (["{movie}", "--what"], "no such flag: --what"),
        (["{movie}", "--config.hf_compat=3"], "hf_compat"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(arguments, says, movies, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    out = f"--out={tmp_path}/out"
    filled = [text.format(movie=movies[0], folder=tmp_path) for text in arguments]
    assert main(["score", out, *filled]) == 2
    errors = capfd.readouterr().err
    assert says in errors and errors.count("\n") == 1 and "Traceback" not in errors


def test_a_wrong_model_leaves_the_folder_free(movies, tmp_path):
    out = tmp_path / "out"
    assert main(["score", movies[0], f"--out={out}", *PLAIN, "--model=tinny"]) == 2
    assert main(["score", movies[0], f"--out={out}", *PLAIN]) == 0


def test_a_checkpoint_that_does_not_fit_is_said(movies, tmp_path, capfd):
    model = tmp_path / "model"
    vlm.save(vlm.load("tiny"), model)
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("visual.merger.ln_q.weight")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:7]
    save_file(tensors, file)
    call = ["score", movies[0], f"--out={tmp_path}/out", *PLAIN, f"--model={model}"]
    assert main(call) == 2
    errors = capfd.readouterr().err
    assert "missing: visual.merger.ln_q.weight" in errors and "model.norm.weight: (7,)" in errors
    file.rename(model / "pytorch_model.bin")
    assert main(call) == 2
    assert "pickle" in capfd.readouterr().err


def test_window_larger_than_the_video_is_said(movies, tmp_path):
    flags = [*PLAIN, "--config.steps=100", "--config.window=60"]
    assert main(["score", movies[0], f"--out={tmp_path}", *flags]) == 1
    [failure] = _lines(tmp_path / "failures.jsonl")
    assert "window 60 is larger than the video allows" in failure["error"]


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys; from experiments.cli import main; main(['--help']);"
        "print(sorted({'jax', 'flax', 'numpy', 'matplotlib', 'PIL', 'decord'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "score" in done.stdout and done.stdout.endswith("[]\n")


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason="needs the real videos")
def test_real_videos_are_scored_or_have_a_reason(tmp_path):
    status = main(["score", str(ASSETS), f"--out={tmp_path}", "--config=score.py:tiny"])
    traces, failures = _lines(tmp_path / "trace.jsonl"), _lines(tmp_path / "failures.jsonl")
    videos = {str(path) for path in ASSETS.iterdir()}
    assert {record["video"] for record in traces + failures} == videos
    assert status == (1 if failures else 0) and len(traces) >= 40
    for trace in traces:
        _check(trace)
    assert all(failure["error"] for failure in failures)
