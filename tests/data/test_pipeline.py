"""Order, resume and failures of the pipeline, over small real files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from data.mp4 import write_mp4
from data.pipeline import Pipeline, decode, uniform_indices
from data.types import Example
from data.video import Decoder, VideoError

CLIPS, LENGTH, FPS = 11, 12, 6


def children(pid="self"):
    """Process ids of a process's children, whichever of its threads started them."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for t in threads for child in (t / "children").read_text().split()]


def gone(pids, seconds=10.0):
    """Whether processes end within some seconds; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stats = [path.read_text() for path in map(_stat, pids) if path.exists()]
        if all(text.rsplit(")", 1)[1].split()[0] == "Z" for text in stats):
            return True
        time.sleep(0.05)
    return False


def _stat(pid):
    return Path(f"/proc/{pid}/stat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of 2 seconds; frame t of clip i has the grey value 20 i + t."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        grey = 20 * i + np.arange(LENGTH, dtype=np.uint8)
        frames = np.broadcast_to(grey[:, None, None, None], (LENGTH, 32, 48, 3))
        write_mp4(folder / f"{i:02}.mp4", frames, FPS)
    return folder


@pytest.fixture(scope="module")
def examples(folder):
    return [Example(id=path.stem, video=str(path)) for path in sorted(folder.iterdir())]


def seen(batch):
    """What has come: of each example the id and the grey values, which say clip and frames."""
    return [(e.id, e.frames.mean((1, 2, 3)).round().astype(int).tolist()) for e in batch]


def read(*datasets, state=None, stop=None, **settings):
    """The batches of a run from `state` on, at most `stop` of them, and the state then."""
    settings = {"batch": 4, "frames": 2, "seed": 5, "workers": 1, **settings}
    batches = []
    with Pipeline(datasets, **settings) as pipeline:
        if state is not None:
            pipeline.set_state(state)
        while stop is None or len(batches) < stop:
            batch = next(pipeline, None)
            if batch is None:
                break
            batches.append(seen(batch))
        return batches, pipeline.get_state()


def ids(batches):
    return [name for batch in batches for name, _ in batch]


# Order


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_stream_equals_the_uninterrupted_one(examples, processes):
    every = []
    for index in range(processes):
        share = {"epochs": 2, "process_index": index, "process_count": processes}
        whole, _ = read(examples, workers=0, **share)
        every += ids(whole)
        # Either side of the cut with each number of workers.
        for before, after in ((0, 2), (1, 0), (2, 1))[index * 2 :]:
            begun, state = read(examples, workers=before, stop=2, **share)
            assert begun + read(examples, workers=after, state=state, **share)[0] == whole
    assert sorted(every) == sorted(2 * [e.id for e in examples])


def test_frames_are_those_of_their_example(examples):
    batches, _ = read(examples, workers=2)
    for name, grey in (item for batch in batches for item in batch):
        assert grey == pytest.approx([20 * int(name) + 3, 20 * int(name) + 9], abs=2)


def test_passes_are_shuffled_anew(examples):
    order = ids(read(examples, epochs=3)[0])
    passes = [order[i : i + CLIPS] for i in range(0, 3 * CLIPS, CLIPS)]
    assert all(sorted(one) == [e.id for e in examples] for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert ids(read(examples, epochs=3, seed=6)[0]) != order
    assert ids(read(examples, shuffle=False)[0]) == [e.id for e in examples]


def test_every_process_takes_as_many_steps(examples):
    # 11 examples for 4 processes: shares of 3, 3, 3 and 2, so 9 or 6 in three passes.
    runs = [read(examples, epochs=3, process_index=i, process_count=4)[0] for i in range(4)]
    assert [[len(batch) for batch in run] for run in runs] == 3 * [[4, 4, 1]] + [[4, 2, 0]]
    assert sorted(name for run in runs for name in ids(run)) == sorted(3 * [e.id for e in examples])
    share = {"epochs": 3, "process_count": 4, "drop_remainder": True}
    runs = [read(examples, process_index=i, **share)[0] for i in (0, 3)]
    assert [[len(batch) for batch in run] for run in runs] == 2 * [[4]]


def test_mixture(examples):
    rare, common = examples[:3], examples[3:]
    settings = {"weights": [0.3, 0.7], "epochs": None, "batch": 5}
    whole, _ = read(rare, common, stop=10, **settings)
    order = ids(whole)
    assert sum(name in {"00", "01", "02"} for name in order) in (15, 16)  # of 50
    for names, size in ((["00", "01", "02"], 3), ([e.id for e in common], 8)):
        own = [name for name in order if name in names]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == names
    begun, state = read(rare, common, stop=4, workers=1, **settings)
    assert begun + read(rare, common, stop=6, state=state, workers=0, **settings)[0] == whole
    with Pipeline([rare, common], weights=[0.3, 0.7], batch=5, frames=1) as pipeline:
        assert pipeline.steps == 2  # 10 examples: the three rare ones once, and 7 of the others


def test_a_killed_run_goes_on_where_its_state_was_kept(examples, folder, tmp_path):
    code = f"""
import sys
from pathlib import Path
from data.pipeline import Pipeline
from data.types import Example
examples = [Example(id=p.stem, video=str(p)) for p in sorted(Path({str(folder)!r}).iterdir())]
with Pipeline([examples], batch=4, frames=2, seed=5, epochs=2, workers=2) as pipeline:
    for batch in pipeline:
        Path({str(tmp_path / "state")!r}).write_bytes(pipeline.get_state())
        print(*[example.id for example in batch], flush=True)
        sys.stdin.readline()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as run:
        begun = run.stdout.readline().split()
        run.stdin.write("\n")
        run.stdin.flush()
        begun += run.stdout.readline().split()
        workers_then = children(run.pid)
        run.send_signal(signal.SIGKILL)
    assert len(workers_then) == 2
    state = (tmp_path / "state").read_bytes()
    rest, _ = read(examples, epochs=2, state=state, workers=1)
    assert begun + ids(rest) == ids(read(examples, epochs=2)[0])
    assert gone(workers_then)


def test_a_state_survives_grains_checkpoint_handler(examples, tmp_path):
    import grain
    from etils import epath

    handler = grain.checkpoint.CheckpointHandler()
    with Pipeline([examples], batch=4, frames=2) as pipeline:
        next(pipeline)
        handler.save(epath.Path(tmp_path), item=pipeline)
        rest = [seen(batch) for batch in pipeline]
    with Pipeline([examples], batch=4, frames=2) as pipeline:
        handler.restore(epath.Path(tmp_path), item=pipeline)
        assert [seen(batch) for batch in pipeline] == rest != []


def test_a_state_of_another_run_is_refused(examples):
    _, state = read(examples, stop=1)
    for name, change in {"seed": {"seed": 6}, "batch": {"batch": 3}, "sizes": {}}.items():
        data = examples[1:] if name == "sizes" else examples
        with pytest.raises(ValueError, match=f"the state is of {name}"):
            read(data, state=state, **change)


# Failures


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path, source):
    data = source.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.fixture(scope="module")
def tenth(folder, tmp_path_factory):
    """Forty files, four of them bad, and the reason of each."""
    there = tmp_path_factory.mktemp("tenth")
    for i in range(36):
        shutil.copy(folder / f"{i % CLIPS:02}.mp4", there / f"{i:02}_good.mp4")
    cut(there / "03_cut.mp4", folder / "00.mp4")
    (there / "11_empty.mp4").touch()
    audio_only(there / "20_audio.m4a")
    os.mkfifo(there / "29_hangs.mp4")  # opening it blocks for ever: nobody writes
    reasons = {
        "03_cut": ("open", "cut short"),
        "11_empty": ("open", "not a video file"),
        "20_audio": ("open", "no video stream"),
        "29_hangs": ("timeout", "no answer"),
    }
    return [Example(id=path.stem, video=str(path)) for path in sorted(there.iterdir())], reasons


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_and_reported_once(tenth, workers):
    examples, reasons = tenth
    reports = []

    def report(example, error):
        reports.append(example.id)
        stage, reason = reasons[example.id]
        assert error.stage == stage and re.search(reason, error.reason)

    settings = {"epochs": 2, "batch": 8, "timeout": 1.0, "on_failure": report}
    begun, state = read(examples, workers=workers, stop=3, **settings)
    assert json.loads(state)["failed"] == sorted([0, i] for i, e in enumerate(examples)
                                                 if e.id in reports)  # fmt: skip
    rest, state = read(examples, workers=2, state=state, **settings)
    whole = begun + rest
    assert sorted(reports) == sorted(reasons)
    good = [e.id for e in examples if e.id not in reasons]
    assert sorted(ids(whole)) == sorted(2 * good)
    # The following ones fill the batch: 72 in nines of 8, and a tenth that 80 would have filled.
    assert [len(batch) for batch in whole] == 9 * [8] + [0]
    assert sorted(ids(whole)[:36]) == good


def test_an_endless_stream_gives_full_batches_only(tenth, examples):
    bad = [e for e in tenth[0] if e.id in ("03_cut", "11_empty")]
    batches, _ = read(bad + examples[:3], batch=2, epochs=None, stop=8)
    assert [len(batch) for batch in batches] == 8 * [2]
    assert set(ids(batches)) == {"00", "01", "02"}
    with pytest.raises(RuntimeError, match="not one of 2 examples can be read"):
        read(bad, epochs=None)
    batches, _ = read(bad + examples[:3], batch=2, epochs=2, drop_remainder=True)
    assert [len(batch) for batch in batches] == 5 * [2]


def test_an_error_of_a_transform_comes_in_its_turn(examples):
    def picky(example):
        if example.id == "05":
            raise KeyError("no such label")
        return example

    settings = {"shuffle": False, "batch": 2, "transforms": [picky], "workers": 2}
    with Pipeline([examples], frames=1, **settings) as pipeline:
        assert [e.id for batch in (next(pipeline), next(pipeline)) for e in batch] == [
            "00", "01", "02", "03",
        ]  # fmt: skip
        before = pipeline.get_state()
        for _ in range(2):  # the same batch again, and not the one after it
            with pytest.raises(KeyError, match="no such label"):
                next(pipeline)
            assert pipeline.get_state() == before
        assert pipeline.failures == 0


# Decoding one example


def test_decode(examples):
    sizes = []

    def half(info, frames):
        sizes.append((info.height, info.width, frames))
        return info.height // 2, info.width // 2

    with Decoder() as decoder:
        got = decode(examples[1], decoder, frames=3, size=half)
        assert got.indices.tolist() == [2, 6, 10]
        assert got.seconds == pytest.approx([2 / 6, 1.0, 10 / 6])
        assert got.frames.shape == (3, 16, 24, 3) and got.frames.dtype == np.uint8
        assert (got.fps, got.frame_count, sizes) == (6.0, 12, [(32, 48, 3)])
        given = examples[1].replace(indices=np.array([11, 0]))
        assert seen([decode(given, decoder, frames=3)])[0][1] == pytest.approx([31, 20], abs=2)
        # From 0.5 s (frame 3) to before 1.5 s (frame 9).
        span = examples[1].replace(span=(0.5, 1.5))
        assert decode(span, decoder, frames=3).indices.tolist() == [4, 6, 8]
        assert decode(span, decoder, frames=99).indices.tolist() == [3, 4, 5, 6, 7, 8]
        moment = examples[1].replace(span=(0.6, 0.61))
        assert decode(moment, decoder, frames=3).indices.tolist() == [3]
        late = examples[1].replace(span=(1.9, 99.0))
        assert decode(late, decoder, frames=3).indices.tolist() == [11]
        for wrong in ((2.0, 3.0), (1.0, 1.0), (-1.0, 1.0)):
            with pytest.raises(VideoError, match="there is nothing from") as error:
                decode(examples[1].replace(span=wrong), decoder, frames=3)
            assert error.value.stage == "span"
        with pytest.raises(ValueError, match="no frame indices"):
            decode(examples[1], decoder)


def test_a_size_that_no_model_takes_is_a_failure_of_the_video(examples):
    def refuse(info, frames):
        raise ValueError("aspect ratio is above 200")

    reports = []
    read(examples[:2], size=refuse, on_failure=lambda example, error: reports.append(error.stage))
    assert reports == ["size", "size"]


def test_uniform_indices():
    assert uniform_indices(4, 0, 8).tolist() == [1, 3, 5, 7]
    assert uniform_indices(2, 10, 15).tolist() == [11, 13]
    assert uniform_indices(9, 3, 5).tolist() == [3, 4]


# Processes and memory


def test_closing_ends_workers_at_once(examples, tmp_path):
    path = tmp_path / "hangs.mp4"
    os.mkfifo(path)
    hanging = [Example(id="hangs", video=str(path))]
    settings = {"frames": 1, "shuffle": False, "workers": 2}
    with Pipeline([examples[:1] + hanging], batch=1, **settings) as pipeline:
        next(pipeline)
        time.sleep(0.2)
        workers = children()
        assert len(workers) == 2
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    assert gone(workers)


@pytest.mark.parametrize(
    "change",
    [{"process_index": 2}, {"process_count": 99}, {"weights": [1.0, 2.0]}, {"weights": [0.0]},
     {"batch": 0}, {"frames": 0}, {"epochs": 0}, {"workers": -1}, {"prefetch": 0}],
)  # fmt: skip
def test_settings_that_make_no_sense(examples, change):
    with pytest.raises(ValueError):
        Pipeline([examples], **{"batch": 1, "process_count": 2, **change})


def test_importing_the_pipeline_is_light():
    code = "import sys, data.pipeline; print({'jax', 'grain', 'av', 'decord'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def resident_mb(pids):
    """Resident memory of processes, what they share counted once."""
    texts = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(re.search(r"^Pss:\s+(\d+) kB", text, re.M).group(1)) / 1000 for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat(examples, workers):
    marks = []
    with Pipeline([examples], batch=10, frames=4, epochs=None, workers=workers) as pipeline:
        for step in range(1, 151):
            next(pipeline)
            if step % 50 == 0:
                marks.append(resident_mb(["self", *children()]))
    assert marks[2] < marks[0] + 40, marks
