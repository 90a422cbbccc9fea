import dataclasses
import json

import numpy as np
import pytest
from scripted import ScriptedModel

from surprise import (
    Episode,
    Settings,
    Trace,
    TraceError,
    episode_frames,
    select,
    watch,
)


def scored(settings, name="clip", frame_count=240, fps=24.0):
    frames = episode_frames(settings, seconds=frame_count / fps, frame_count=frame_count)
    seconds = tuple((frames / fps).tolist())
    (steps,) = watch(ScriptedModel(), settings, [Episode(name, tuple(frames.tolist()), seconds)])
    trace = Trace(
        video=f"{name}.mp4", id=name, fps=fps, frame_count=frame_count, seconds=frame_count / fps,
        width=64, height=48, model="scripted", settings=settings.to_dict() | {"dtype": "float32"},
        steps=steps,
    )  # fmt: skip
    return dataclasses.replace(trace, selected=select(trace, settings))


def recompute(record):
    """Every derived number of a trace, from its other fields, in plain NumPy."""
    settings, chosen = record["settings"], record["selected"]
    for step in record["steps"][1:]:
        prior = np.exp(-np.array(step["prior_nll"]) / settings["tau"])
        prior = prior / prior.sum()
        if "probe_yes" in step:
            likelihood = np.array(step["probe_yes"])
            posterior = prior * likelihood / (prior * likelihood).sum()
        else:
            likelihood = np.exp(-np.array(step["posterior_nll"]) / settings["tau"])
            posterior = likelihood / likelihood.sum()
        middle = (prior + posterior) / 2
        kl = (posterior * np.log(posterior / prior)).sum()
        js = (posterior * np.log2(posterior / middle) + prior * np.log2(prior / middle)).sum() / 2
        yield step, prior, posterior, kl, js, -np.log((prior * likelihood).sum())
    weights = np.exp([step["score"] / chosen["tau"] for step in record["steps"][1:]])
    ends = np.array([step["frame"] for step in record["steps"]]) + 1
    rng = np.random.default_rng([chosen["seed"], *record["id"].encode()])
    pick, place = rng.random((2, chosen["budget"]))
    i = 1 + np.searchsorted(np.cumsum(weights), pick * weights.sum(), side="right")
    starts = np.where(i == 1, 0, ends[i - 1])
    yield np.unique(starts + np.floor(place * (ends[i] - starts)).astype(int))


@pytest.mark.parametrize("settings", [Settings(seed=3), Settings(posterior="probe", score="js")])
def test_everything_derived_can_be_recomputed_from_the_file(settings):
    record = json.loads(scored(settings).to_line())
    *steps, frames = recompute(record)
    assert len(steps) == 7
    for step, *numbers in steps:
        for name, value in zip(
            ("prior", "posterior", "kl", "js", "evidence"), numbers, strict=True
        ):
            np.testing.assert_allclose(step[name], value, atol=1e-6, err_msg=name)
        assert step["score"] == step[settings.score]
    assert record["selected"]["frames"] == frames.tolist()
    np.testing.assert_allclose(record["selected"]["seconds"], frames / 24.0, atol=1e-9)


def test_the_other_reduction_follows_from_the_token_counts():
    mean, total = scored(Settings()).steps[1], scored(Settings(reduction="sum")).steps[1]
    assert mean.hypotheses == total.hypotheses
    np.testing.assert_allclose(
        np.multiply(mean.prior_nll, mean.tokens), total.prior_nll, rtol=1e-12
    )


def test_the_schema():
    record = scored(Settings()).to_dict()
    assert list(record) == [
        "schema", "video", "id", "fps", "frame_count", "seconds", "width", "height", "model",
        "settings", "steps", "selected",
    ]  # fmt: skip
    assert record["schema"] == 1
    required = {
        "frame", "seconds", "window", "history", "hypotheses", "prior_nll", "posterior_nll",
        "prior", "posterior", "kl", "js", "evidence", "caption", "score",
    }  # fmt: skip
    assert all(required <= set(step) and "probe_yes" not in step for step in record["steps"])
    probed = scored(Settings(posterior="probe")).to_dict()
    assert all("probe_yes" in s and "posterior_nll" not in s for s in probed["steps"])
    assert {"method", "budget", "tau", "seed", "frames", "seconds"} <= set(record["selected"])
    first = record["steps"][0]
    assert (first["frame"], first["score"], first["hypotheses"]) == (0, 0.0, [])


@pytest.mark.parametrize("settings", [Settings(), Settings(posterior="probe", other=True)])
def test_json_round_trip_is_exact(settings):
    trace = scored(settings, name="café 1")
    line = trace.to_line()
    assert "\n" not in line and line.isascii()
    again = Trace.from_line(line)
    assert again == trace
    assert again.to_line() == line
    # What a later reader re-selects is what the run had selected.
    assert select(again, settings) == trace.selected


def test_a_trace_without_selection_and_optional_fields_can_be_read():
    record = scored(Settings()).to_dict()
    for name in ("refill", "segments", "gumbel"):
        del record["selected"][name]
    assert Trace.from_dict(record).selected == scored(Settings()).selected
    del record["selected"]
    for step in record["steps"]:
        for name in ("tokens", "observation", "cut_off", "duplicates", "empty"):
            del step[name]
    trace = Trace.from_dict(record | {"later": "addition"})
    assert trace.selected is None and trace.steps[1].duplicates == 0


def test_numbers_that_are_none_are_never_written():
    trace = scored(Settings())
    broken = dataclasses.replace(
        trace, steps=(dataclasses.replace(trace.steps[0], score=float("nan")),)
    )
    with pytest.raises(ValueError):
        broken.to_line()


def _at(path, value):
    def change(record):
        *way, last = path
        for key in way:
            record = record[key]
        if value is None:
            del record[last]
        else:
            record[last] = value

    return change


@pytest.mark.parametrize(
    "change,message",
    [
        (_at(["schema"], 2), "schema is 2; this reads schema 1"),
        (_at(["id"], None), "id is missing"),
        (_at(["fps"], 0), "fps must be positive"),
        (_at(["frame_count"], 10**12), "frame_count must be a whole number from 0"),
        (_at(["frame_count"], True), "frame_count must be a whole number"),
        (_at(["steps"], []), "steps is empty"),
        (_at(["steps"], {}), "steps must be a list"),
        (_at(["steps", 1, "score"], None), "steps[1].score is missing"),
        (_at(["selected", "seed"], None), "selected.seed is missing"),
        (_at(["steps", 1, "kl"], "high"), "steps[1].kl must be a number"),
        (_at(["steps", 1, "kl"], 10**400), "steps[1].kl must be a finite number"),
        (_at(["steps", 2, "hypotheses"], ["x", 1]), "steps[2].hypotheses[1] must be text"),
        (_at(["steps", 2, "prior"], [1.0]), "steps[2]: hypotheses and their numbers differ"),
        (_at(["steps", 0], 5), "steps[0] must be an object"),
        (_at(["selected", "frames"], "all"), "selected.frames must be a list"),
        (_at(["settings"], []), "settings must be an object"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(change, message):
    record = scored(Settings()).to_dict()
    change(record)
    with pytest.raises(TraceError) as caught:
        Trace.from_dict(record)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["", "[1]", "{", '{"schema": NaN}', "[" * 100_000])
def test_lines_that_are_no_traces(line):
    with pytest.raises(TraceError):
        Trace.from_line(line)


def test_times_of_a_selection_follow_a_variable_rate():
    settings = Settings(method="uniform", budget=4)
    trace = scored(settings)
    # The second half of the video runs at half the speed.
    slow = tuple(
        dataclasses.replace(step, seconds=step.frame / 24 + max(0, step.frame - 120) / 24)
        for step in trace.steps
    )
    chosen = select(dataclasses.replace(trace, steps=slow), settings)
    assert chosen.frames == (30, 90, 150, 210)
    np.testing.assert_allclose(chosen.seconds[:2], [1.25, 3.75])
    np.testing.assert_allclose(chosen.seconds[3], 210 / 24 + 90 / 24)


def test_videos_do_not_share_their_draws():
    a, b = scored(Settings(), "a"), scored(Settings(), "b")
    b = dataclasses.replace(b, steps=a.steps)
    assert select(b, Settings()).frames != select(a, Settings()).frames
