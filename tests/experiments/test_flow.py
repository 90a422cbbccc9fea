"""The queue of videos: a batch kept full, videos kept apart, several processes' shares."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from data.mp4 import write_mp4
from data.video import VideoInfo
from experiments.cli import main
from experiments.flow import Ahead, Clip, Flow
from experiments.sources import Source
from surprise import Generation, Settings
from surprise.trace import BeliefError

QUICK = [
    "--config=score.py:tiny",
    "--config.steps=3",
    "--config.window=2",
    "--config.hypotheses=2",
    "--config.hypothesis_tokens=4",
    "--config.caption_tokens=3",
    "--config.pictures=false",
    "--config.report=false",
]


# The queue, with a model of a few lines


@dataclass
class Model:
    """Says what video and step it is asked about, and keeps a record of its batches."""

    batch: int
    poison: str = ""
    inside: set = field(default_factory=set)
    batches: list = field(default_factory=list)
    most: int = 0

    def add(self, video, frames, seconds, views):
        self.inside.add(video)
        self.most = max(self.most, len(self.inside))

    def drop(self, video):
        self.inside.remove(video)

    def look(self, contexts):
        assert {context.video for context in contexts} <= self.inside
        self.batches.append([(context.video, context.step) for context in contexts])
        return contexts

    def observe(self, state, observations):
        return state

    def generate(self, state, question, sampling):
        rows = sampling.seeds.shape[1]
        return [
            [Generation(f"{context.video} {context.step} {n}", True) for n in range(rows)]
            for context in state
        ]

    def nll(self, state, question, answers):
        sums = np.array([[float(len(text) + c.step) for text in row] for c, row in
                         zip(state, answers, strict=True)])  # fmt: skip
        sums[[context.video == self.poison for context in state]] = np.nan
        return sums, np.ones(sums.shape, np.int64)

    def p_yes(self, state, questions, yes, no):
        raise NotImplementedError

    def summarize(self, prompts, *, system, max_tokens):
        raise NotImplementedError


def _clip(name, steps):
    info = VideoInfo(name, 10.0, 10 * steps, float(steps), 64, 64, "pyav")
    frames = np.zeros((steps, 4, 4, 3), np.uint8)
    return Clip(Source(name, name), info, 10 * np.arange(steps), frames, np.arange(10.0 * steps))


def _run(model, lengths, settings, broken=()):
    def read(name):
        if name in broken:
            raise ValueError("unreadable")
        return _clip(name, lengths[name])

    with Ahead(list(lengths), read) as clips:
        flow = Flow(model, settings)
        return {source if clip is None else source.id: done for source, clip, done in
                flow.run(clips)}  # fmt: skip


LENGTHS = {"a": 5, "b": 2, "c": 9, "d": 3, "e": 4, "f": 2}


@pytest.mark.parametrize("history", ["captions", "none"])
def test_steps_do_not_depend_on_the_batch(history):
    settings = Settings(hypotheses=2, history=history)
    alone = _run(Model(1), LENGTHS, settings)
    assert {name: len(steps) for name, steps in alone.items()} == LENGTHS
    for batch in (2, 3, 8):
        model = Model(batch)
        assert _run(model, LENGTHS, settings) == alone
        assert not model.inside
        assert max(map(len, model.batches)) <= batch


class Ready:
    """What `Ahead` is to a flow, where all has been read already."""

    def __init__(self, lengths):
        self._rest = [(name, _clip(name, steps)) for name, steps in lengths.items()]
        self.ended = False

    def take(self, *, wait):
        self.ended = not self._rest
        return self._rest.pop(0) if self._rest else None


def test_videos_that_are_done_leave_and_others_enter():
    model = Model(3)
    assert len(list(Flow(model, Settings(hypotheses=2)).run(Ready(LENGTHS)))) == len(LENGTHS)
    # 4 + 1 + 8 + 2 + 3 + 1 steps, three abreast while there are three, in the order of the queue.
    assert sum(map(len, model.batches)) == 19
    assert model.most == 3
    alive = [len({video for video, _ in batch}) for batch in model.batches]
    assert alive == sorted(alive, reverse=True) and alive[0] == 3


def test_without_a_history_the_steps_of_one_video_fill_the_batch():
    model = Model(4)
    _run(model, {"a": 9}, Settings(hypotheses=2, history="none"))
    assert [len(batch) for batch in model.batches] == [4, 4]


def test_a_video_that_fails_harms_no_other():
    settings = Settings(hypotheses=2)
    alone = _run(Model(1), LENGTHS, settings)
    model = Model(4, poison="c")
    found = _run(model, LENGTHS, settings, broken=("e",))
    assert isinstance(found.pop("c"), BeliefError)
    assert str(found.pop("e")) == "unreadable"
    assert found == {name: alone[name] for name in found} and len(found) == 4
    assert not model.inside


def test_few_videos_are_read_ahead():
    read = []
    with Ahead(range(100), lambda i: read.append(i) or i, ahead=3) as ahead:
        assert ahead.take(wait=True) == (0, 0)
        time.sleep(0.2)
        assert len(read) <= 5
    assert len(read) <= 7
    with Ahead([], str) as none:
        assert none.take(wait=True) is None and none.ended


# The command


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movies")
    for n in range(20):
        rng = np.random.default_rng(n)
        frames = rng.integers(0, 255, (8, 56, 56, 3), dtype=np.uint8)
        write_mp4(str(folder / f"movie{n:02d}.mp4"), frames, 8)
    lines = [json.dumps({"video": f"movie{n:02d}.mp4"}) for n in range(20)]
    (folder / "all.jsonl").write_text("\n".join(lines))
    (folder / "few.jsonl").write_text("\n".join(lines[:3]))
    return folder


def _traces(out):
    lines = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    names = [line["id"] for line in lines]
    assert len(names) == len(set(names))
    return {line["id"]: line for line in lines}


def _assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for name, trace in expected.items():
        for step, other in zip(trace["steps"], found[name]["steps"], strict=True):
            assert step["hypotheses"] == other["hypotheses"]
            for key in ("prior_nll", "posterior_nll"):
                np.testing.assert_allclose(step[key], other[key], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(movies, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    one = ["--config.driver=single", "--config.batch=1"]
    assert main(["score", str(movies / "few.jsonl"), f"--out={out}", *QUICK, *one]) == 0
    return _traces(out)


def test_a_batch_scores_as_one_by_one(movies, alone, tmp_path):
    few = str(movies / "few.jsonl")
    assert main(["score", few, f"--out={tmp_path}", *QUICK, "--config.driver=single"]) == 0
    _assert_alike(_traces(tmp_path), alone)


def test_shares_of_two_processes_are_merged(movies, alone, tmp_path, capfd):
    few = str(movies / "few.jsonl")
    one = ["--config.driver=single", "--config.batch=1", "--config.processes=2"]
    share = ["score", few, f"--out={tmp_path}", *QUICK, *one]
    assert main([*share, "--config.process=1"]) == 0
    assert main(["score", "--merge", f"--out={tmp_path}", *QUICK]) == 2
    assert "not finished: 00000-of-00002" in capfd.readouterr().err
    assert main([*share, "--config.process=0"]) == 0
    assert len(_traces(tmp_path / "parts/00000-of-00002")) == 2
    assert main(["score", "--merge", f"--out={tmp_path}", *QUICK]) == 0
    assert _traces(tmp_path) == alone
    # What is done stays done, however many processes there are.
    assert main(["score", few, f"--out={tmp_path}", *QUICK, *one[:2]]) == 0
    assert _traces(tmp_path) == alone
    assert main([*share, "--config.process=2"]) == 2
    assert main(["score", "--merge", f"--out={tmp_path / 'none'}", *QUICK]) == 2


@pytest.mark.slow
def test_a_process_of_two_is_killed_and_started_again(movies, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(process):
        command = [sys.executable, "-m", "experiments.cli", "score", str(movies / "all.jsonl")]
        flags = [f"--config.coordinator=localhost:{port}", "--config.processes=2"]
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [*command, f"--out={tmp_path}", *QUICK, *flags, f"--config.process={process}",
             "--config.batch=1"],
            env=environment,
        )  # fmt: skip

    first, second = start(0), start(1)
    part = tmp_path / "parts/00001-of-00002/trace.jsonl"
    deadline = time.monotonic() + 400
    while not (part.exists() and len(part.read_text().splitlines()) >= 3):
        assert second.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    second.wait()
    done = len(part.read_text().splitlines())
    assert done < 10
    second = start(1)
    assert (first.wait(timeout=300), second.wait(timeout=300)) == (0, 0)
    assert main(["score", "--merge", f"--out={tmp_path}", *QUICK]) == 0
    videos = sorted(trace["video"] for trace in _traces(tmp_path).values())
    assert videos == sorted(map(str, movies.glob("*.mp4")))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_memory_does_not_grow_with_the_queue(tmp_path):
    """200 clips, 8 in flight: resident memory of the process after the first 40."""
    for n in range(200):
        frames = np.random.default_rng(n).integers(0, 255, (8, 112, 112, 3), dtype=np.uint8)
        write_mp4(str(tmp_path / f"movie{n:03d}.mp4"), frames, 8)
    command = [sys.executable, "-m", "experiments.cli", "score", str(tmp_path)]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen([*command, f"--out={tmp_path / 'out'}", *QUICK], env=environment)
    traces, seen = tmp_path / "out/trace.jsonl", []
    while process.poll() is None:
        done = traces.read_bytes().count(b"\n") if traces.exists() else 0
        with open(f"/proc/{process.pid}/statm") as statm:
            seen.append((done, int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6))
        time.sleep(0.1)
    assert process.returncode == 0 and len(_traces(tmp_path / "out")) == 200
    early = max(megabytes for done, megabytes in seen if 20 <= done < 60)
    late = max(megabytes for done, megabytes in seen if done >= 60)
    sys.stdout.write(f"resident: {early:.0f} MB up to clip 60, {late:.0f} MB after it\n")
    assert late < 1.02 * early + 5
