"""What a run leaves: lines, events, completions; and how much of it a resumed run takes up."""

import json
import logging
import struct
from dataclasses import replace

import jax
import numpy as np
import pupil
import pyarrow.parquet
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from data.types import Example
from experiments import hosts, journal, rl
from experiments.method import Method
from experiments.rewards import Rewards
from experiments.rollout import Rollouts

CONFIG = {"steps": 10, "model": "tiny", "seed": 0, "rewards": ["accuracy"]}
PLACES = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 0)]


def example(number, transform=None):
    return Example(
        id=f"id{number}", video=f"clip-{number}\udcff.mp4", transform=transform,
        frames=np.full((3, 8, 8, 3), 90 * number, np.uint8),
    )  # fmt: skip


def played(total=((1.0, 0.0), (0.5, np.nan))):
    """Two groups: a view that is trained, of two answers, and a reversed one, watched, of one."""
    count = len(PLACES)
    lengths = np.array([[[2, 4]], [[4, 0]]])
    samples = rl.Samples(
        np.zeros((2, 1, 2, 4), np.int32), lengths, lengths == 2, np.zeros((2, 1, 2, 4), np.float32)
    )
    tokens = np.zeros((2, 1, 6), np.int32)
    prompts = rl.Prompts(None, tokens, None, np.array([[[1] * 6], [[1] * 4 + [0] * 2]]) > 0,
                         tokens, np.zeros((2, 1), np.int32))  # fmt: skip
    columns = {
        "place": PLACES,
        "prompts": [f"Where to? {b}" for b, _, _ in PLACES],
        "completions": [f"said {at}" for at in PLACES],
        "answer": ["left"] * count,
        "frames": [[0, 1, 4]] * count,
        "id": [f"id{b}" for b, _, _ in PLACES],
        "video": [f"clip-{b}\udcff.mp4" for b, _, _ in PLACES],
    }
    views = tuple((example(b), example(b, "reversal")) for b in range(2))
    owner = np.arange(2)[None]
    rollouts = Rollouts(prompts, samples, owner, (2, 1, 2), columns, views)
    grid = np.array(total).reshape(2, 1, 2)
    accuracy = [None if np.isnan(value) else value for value in grid.reshape(-1)] + [1.0, None]
    return rollouts, Rewards(grid, {"accuracy": grid}, {"accuracy": accuracy})


ADVANTAGES = np.array([[[0.7, -0.7]], [[0.0, 0.0]]])


def events(folder):
    """All events of a folder, in the order in which they were written."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda file: file.stat().st_ctime):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            body = data[at + 12 : at + 12 + size]
            assert struct.unpack("<I", data[at + 12 + size : at + 16 + size])[0] == masked_crc32c(
                body
            )
            found.append(Event.FromString(body))
            at += 16 + size
    return found


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run(out, first, last, metrics=None):
    """Steps first + 1 to last, a line each, whose loss is the step's number."""
    metrics = journal.Metrics(out, first, CONFIG)
    for step in range(first + 1, last + 1):
        metrics.add({"loss": jax.numpy.float32(step), "p_acc": float("nan")})
        rollouts, rewards = played()
        metrics.record(rollouts, rewards, ADVANTAGES)
        metrics.write(step)
    metrics.close()


def test_a_line_holds_means_over_its_steps(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    metrics = journal.Metrics(tmp_path, 0, CONFIG)
    metrics.add({"loss": np.float32(1.0), "kl": np.nan, "reward": 0.25})
    metrics.add({"loss": np.float32(3.0), "kl": 0.5, "skipped": 1.0})
    metrics.write(2)
    metrics.add({"loss": 7.0, "kl": np.nan})
    metrics.write(3)
    metrics.add({"loss": np.float32(np.nan), "skipped": 1.0})
    metrics.write(4)
    metrics.close()
    first = {"step": 2, "loss": 2.0, "kl": 0.5, "reward": 0.25, "skipped": 1.0}
    assert lines(tmp_path) == [first, {"step": 3, "loss": 7.0}, {"step": 4, "skipped": 1.0}]
    assert "100 % of the updates had no finite gradient" in caplog.text
    assert not (tmp_path / "completions").exists()


def test_pace_and_time_left(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    metrics = journal.Metrics(tmp_path, 0, CONFIG)
    for _ in range(2):
        metrics.add({"loss": 0.0})
        metrics.record(*played(), ADVANTAGES)
        clock[0] += 60.0
    metrics.write(2)
    metrics.add({"loss": 0.0})
    metrics.record(*played(), ADVANTAGES)
    clock[0] += 720.0
    metrics.write(3)
    metrics.close()
    # Two steps of two videos in two minutes, and eight steps to go; then one in twelve.
    assert [line["videos_per_hour"] for line in lines(tmp_path)] == pytest.approx([120, 10])
    assert "0.02 steps/s, 120 videos/h, 8 min left" in caplog.text
    assert [journal._duration(s) for s in (89, 91, 7200)] == ["89 s", "2 min", "2.0 h"]


def test_a_resumed_run_takes_up_what_was_before_and_nothing_else(tmp_path):
    run(tmp_path, 0, 4)
    (tmp_path / "completions" / "notes.parquet").touch()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the midst of it
    journal.Metrics(tmp_path, 2, CONFIG).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    kept = sorted(file.stem for file in (tmp_path / "completions").iterdir())
    assert kept == ["00001", "00002", "notes"]
    run(tmp_path, 2, 3)
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 3]


def test_events_are_the_lines(tmp_path):
    run(tmp_path, 0, 3)
    first = events(tmp_path / "tensorboard")
    run(tmp_path, 1, 2)
    found = events(tmp_path / "tensorboard")
    assert found[: len(first)] == first  # a resumed run overwrites no file
    told = [
        {"step": event.step, **{value.tag: value.simple_value for value in event.summary.value}}
        for event in first
        if event.HasField("summary")
    ]
    assert [line["step"] for line in told] == [1, 2, 3]
    for line in told:
        assert line["loss"] == line["step"] and line["videos_per_hour"] > 0
        assert "p_acc" not in line
    starts = [event for event in found if event.HasField("session_log")]
    # From here on, readers drop what older files have.
    assert [(one.step, one.session_log.status) for one in starts] == [(2, SessionLog.START)]


def test_completions_are_kept_with_all_that_belongs_to_them(tmp_path):
    run(tmp_path, 0, 7)
    table = pyarrow.parquet.read_table(tmp_path / "completions" / "00007.parquet")
    rows = table.to_pylist()
    assert [(row["group"], row["view"], row["sample"]) for row in rows] == PLACES
    assert rows[1] == {
        "step": 7, "group": 0, "view": 0, "sample": 1, "id": "id0", "video": "clip-0?.mp4",
        "transform": "", "frames": [0, 1, 4], "prompt": "Where to? 0",
        "completion": "said (0, 0, 1)", "answer": "left", "rewards/accuracy": 0.0, "reward": 0.0,
        "advantage": -0.7,
    }  # fmt: skip
    # Not applicable, and then two of a view that is watched only.
    assert [row["reward"] for row in rows[3:]] == [None, None, None]
    assert [row["rewards/accuracy"] for row in rows[3:]] == [None, 1.0, None]
    assert [row["advantage"] for row in rows[3:]] == [0.0, None, None]
    assert [row["transform"] for row in rows[3:]] == ["", "reversal", "reversal"]


def test_a_disk_that_takes_no_completions_stops_no_run(tmp_path, caplog):
    (tmp_path / "completions").write_text("in the way")
    (tmp_path / "report.html").mkdir()
    metrics = journal.Metrics(tmp_path, 0, CONFIG)
    metrics.add({"loss": 1.0})
    metrics.record(*played(), ADVANTAGES)
    metrics.write(1)
    metrics.report(1)
    metrics.close()
    assert len(lines(tmp_path)) == 1
    assert "of step 1 only metrics.jsonl is kept: " in caplog.text
    assert "report.html is not written: " in caplog.text


def test_the_first_process_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(tmp_path, 0, 2)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def method():
    return Method(pupil.make(), pupil.config("grpo", "--config.patience=6"))


def test_what_is_told_of_rollouts(method):
    told = method.told(*played())
    expected = {
        "completions/mean_length": 10 / 3, "completions/min_length": 2.0,
        "completions/max_length": 4.0, "completions/clipped_ratio": 2 / 3,
        "completions/mean_terminated_length": 2.0, "completions/max_terminated_length": 2.0,
        "frames_per_video": 3.0, "tokens_per_prompt": 5.0, "reward": 0.5,
    }  # fmt: skip
    assert {name: told[name] for name in expected} == pytest.approx(expected)
    whole = method.told(*played(((1.0, 0.0), (1.0, 1.0))))
    assert whole["reward_std"] == pytest.approx(np.sqrt(0.5) / 2)
    assert (whole["frac_reward_zero_std"], whole["all_correct"], whole["all_wrong"]) == (
        0.5,
        0.5,
        0,
    )


def test_what_is_told_is_of_all_processes(method, monkeypatch):
    """Also a spread, which is no mean of spreads, and what only some of them have."""
    rollouts, rewards = played(((1.0, 1.0), (0.0, 0.0)))
    other = replace(rollouts, seen={"surprise/event_hit": np.array([])}), rewards
    rollouts, rewards = played()
    rollouts = replace(rollouts, seen={"surprise/event_hit": np.array([True, False])})
    rewards = replace(rewards, logged={"p_acc": [0.25]})
    shares = []
    monkeypatch.setattr(hosts, "gather", lambda own: shares.append(own) or [own])
    method.told(*other)
    monkeypatch.setattr(hosts, "gather", lambda own: [shares[0], own])
    told = method.told(rollouts, rewards)
    expected = {
        "completions/mean_length": 10 / 3, "completions/min_length": 2.0, "p_acc": 0.25,
        "surprise/event_hit": 0.5, "reward": 3.5 / 7, "frac_reward_zero_std": 3 / 4,
        "rewards/accuracy/mean": 5.5 / 9, "all_correct": 1 / 4,
        "rewards/accuracy/std": np.std([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.5, 1.0]),
    }  # fmt: skip
    assert {name: told[name] for name in expected} == pytest.approx(expected)


def test_groups_in_a_row_without_signal_are_explained_once(method, caplog):
    flat, varied = played(((1.0, 1.0), (0.0, 0.0))), played(((1.0, 0.0), (0.0, 0.0)))
    said = [len(caplog.records)]
    for step in (flat, flat, varied, flat, flat, flat, flat):
        method.told(*step)
        said.append(len(caplog.records))
    # Two groups a step: four are fewer than six, and after one with signal it starts again.
    assert said == [0, 0, 0, 0, 0, 0, 1, 1]
    assert "the last 6 groups had equal rewards each: they teach nothing" in caplog.text
