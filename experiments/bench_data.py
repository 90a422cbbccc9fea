"""`saccade bench data`: the pipeline beside decord alone and beside a PyTorch DataLoader.

Every contender is a process of its own that stays alive and reads the same files again each time
it is asked, so that repetitions can be interleaved. The peers are scripts, for nothing here may
import decord or torch.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arguments import UsageError

CLIPS, COPIES, SECONDS, FPS = 4, 3, 10, 30
WIDTH, HEIGHT = 640, 360
SIZE = (364, 644)
"""What Qwen2.5-VL makes of 360 x 640: the nearest multiples of 28."""

# Each script has `job`, reads a line, goes once through the videos, writes "frames seconds".
_HEAD = """
import json, sys, time
job = json.loads(sys.argv[1])

def indices(count):  # the middles of equal parts
    return [(2 * i + 1) * count // (2 * job["frames"]) for i in range(job["frames"])]

def serve(once):
    for _ in sys.stdin:
        begin = time.perf_counter()
        frames = once()
        print(frames, time.perf_counter() - begin, flush=True)
"""

_SACCADE = """
from data.pipeline import Pipeline
from data.types import Example

examples = [Example(id=str(i), video=path) for i, path in enumerate(job["videos"])]
size = job["size"] and tuple(job["size"])
settings = {"batch": job["batch"], "frames": job["frames"], "workers": job["workers"]}
with Pipeline([examples], size=lambda info, frames: size, **settings) as pipeline:
    start = pipeline.get_state()
    def once():
        pipeline.set_state(start)
        return sum(len(example.frames) for batch in pipeline for example in batch)
    serve(once)
"""

_READ = """
import numpy as np
from PIL import Image

def read(path):
    import decord  # in the worker, for it does not survive a fork
    own = job["size"] if job["decord_resizes"] else None
    height, width = own or (-1, -1)
    reader = decord.VideoReader(path, width=width, height=height, num_threads=1)
    frames = reader.get_batch(indices(len(reader))).asnumpy()
    if job["size"] and not own:
        height, width = job["size"]
        images = (Image.fromarray(frame) for frame in frames)
        images = (i.resize((width, i.height), Image.Resampling.BICUBIC) for i in images)
        images = (i.resize((width, height), Image.Resampling.BICUBIC) for i in images)
        frames = np.stack([np.asarray(image) for image in images])
    return frames
"""

# Nothing is sent anywhere: the frames are dropped where they were decoded.
_DECORD = (
    _READ
    + """
from multiprocessing import Pool

def count(path):
    return len(read(path))

with Pool(job["workers"]) as pool:
    serve(lambda: sum(pool.imap_unordered(count, job["videos"])))
"""
)

_TORCH = (
    _READ
    + """
import torch
from torch.utils.data import DataLoader, Dataset

class Clips(Dataset):
    def __len__(self):
        return len(job["videos"])

    def __getitem__(self, number):
        return torch.from_numpy(read(job["videos"][number]))

loader = DataLoader(
    Clips(), batch_size=job["batch"], num_workers=job["workers"], shuffle=True,
    persistent_workers=True,
)
serve(lambda: sum(batch.shape[0] * batch.shape[1] for batch in loader))
"""
)

_MEMORY = """
from data.pipeline import Pipeline
from data.types import Example

examples = [Example(id=str(i), video=path) for i, path in enumerate(job["videos"])]
settings = {"batch": 10, "frames": job["frames"], "workers": job["workers"], "epochs": None}
with Pipeline([examples], size=lambda info, frames: (112, 112), **settings) as pipeline:
    def once():
        return sum(len(next(pipeline)) for _ in range(job["reads"] // 10))
    serve(once)
"""

# Two hours are ten seconds, 720 times: packets are copied, not encoded again.
_LONG = """
import sys, av
with av.open(sys.argv[1]) as short, av.open(sys.argv[2], "w") as long:
    source = short.streams.video[0]
    stream = long.add_stream_from_template(source)
    packets = [packet for packet in short.demux(source) if packet.size]
    [tick] = {packet.time_base for packet in packets}
    for turn in range(720):
        shift = int(turn * 10 / tick)
        short.seek(0)
        for packet in short.demux(source):
            if packet.size:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = stream
                long.mux(packet)
"""


def bench_data(*, repetitions: int = 5, memory: bool = False) -> dict[str, Any]:
    """Frames/s of the pipeline, of decord alone, and of a DataLoader with decord in its workers.

    Twelve H.264 clips (640 x 360, 10 s at 30/s, keyframes as x264 sets them) are gone through by
    as many processes each; the frames are the middles of equal parts.

      saccade     the pipeline: frames arrive in the process that asks for them
      decord      a pool of processes, frames dropped in the worker: spared all transfer
      torch       a DataLoader, decord in its workers

    at 16 and 64 frames, of the file's own size and of the one that Qwen2.5-VL takes. There all
    three resize as the model's processor does (PIL, bicubic), decord after reading; decord_own and
    torch_own let decord resize, by a filter of its own that is cheaper and gives other pixels.

    Shares and speed-ups are the median over repetitions, interleaved, after one to warm up, of the
    ratio within a repetition; the least as NAME_min. `share_of_decord` and `speedup_over_torch` are
    the smallest of the four settings. memory: also resident memory over 5,000 reads and with a
    two-hour file; about ten minutes more.

    Raises UsageError without torch.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError("bench data needs PyTorch: pip install 'saccade[parity]'")
    workers = max(2, (os.cpu_count() or 2) // 2)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = _clips(Path(folder))
        for frames, size in itertools.product((16, 64), (SIZE, None)):
            job = {"videos": videos, "frames": frames, "size": size, "workers": workers, "batch": 4}
            rows.append(_compare(job, repetitions))
            name = f"{frames}_{'native' if size is None else 'resized'}"
            figures |= _ratios(rows[-1], name)
        figures = (
            _least(figures, "share_of_decord") | _least(figures, "speedup_over_torch") | figures
        )
        if memory:
            figures |= _memory(Path(folder), workers)
    settings = {"workers": workers, "clips": len(videos), "width": WIDTH, "height": HEIGHT}
    settings |= {"fps": FPS, "seconds": SECONDS, "resized_to": SIZE, "batch": 4}
    return {"settings": settings | {"repetitions": repetitions}, "figures": figures, "table": rows}


def _compare(job: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Frames/s of every contender in each repetition, and what a frame costs, at one job."""
    scripts = {
        "saccade": (_SACCADE, {}),
        "decord": (_DECORD, {"decord_resizes": False}),
        "torch": (_TORCH, {"decord_resizes": False}),
    }
    if job["size"]:
        scripts["decord_own"] = (_DECORD, {"decord_resizes": True})
        scripts["torch_own"] = (_TORCH, {"decord_resizes": True})
    row: dict[str, Any] = {"frames": job["frames"], "size": job["size"]}
    costs: dict[str, list[float]] = {name: [] for name in scripts}
    row["frames_per_second"] = rates = {name: [] for name in scripts}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(_running(script, {**job, **more}))
            for name, (script, more) in scripts.items()
        }
        for turn in range(repetitions + 1):
            for name, process in running.items():
                before = _cpu_seconds(process.pid)
                frames, seconds = _once(process)
                spent = _cpu_seconds(process.pid) - before
                if frames != job["frames"] * len(job["videos"]):
                    raise RuntimeError(f"{name} gave {frames} frames")
                if turn:
                    rates[name].append(frames / seconds)
                    costs[name].append(1000 * spent / frames)
    row["cpu_ms_per_frame"] = {name: statistics.median(cost) for name, cost in costs.items()}
    return row


def _ratios(row: dict[str, Any], suffix: str) -> dict[str, float]:
    """How many times as many frames as each peer: in a second, and for the same CPU time."""
    figures = {}
    rates, costs = row["frames_per_second"], row["cpu_ms_per_frame"]
    names = {"decord": "share_of_decord", "torch": "speedup_over_torch"}
    names |= {"decord_own": "share_of_decord_own", "torch_own": "speedup_over_torch_own"}
    for peer in rates.keys() & names.keys():
        each = [ours / theirs for ours, theirs in zip(rates["saccade"], rates[peer], strict=True)]
        figures[f"{names[peer]}_{suffix}"] = statistics.median(each)
        figures[f"{names[peer]}_{suffix}_min"] = min(each)
        figures[f"{names[peer]}_{suffix}_cpu"] = costs[peer] / costs["saccade"]
    for name, each in rates.items():
        figures[f"frames_per_second_{name}_{suffix}"] = statistics.median(each)
    return dict(sorted(figures.items()))


def _least(figures: dict[str, float], name: str) -> dict[str, float]:
    """The smallest of a ratio's medians, where all do the same work."""
    same = [f"{name}_{frames}_{size}" for frames in (16, 64) for size in ("native", "resized")]
    return {name: min(figures[one] for one in same)}


@contextmanager
def _running(script: str, job: dict[str, Any]) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", _HEAD + script, json.dumps(job)]
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as process:
        yield process
        process.stdin.close()  # the end of its loop


def _once(process: subprocess.Popen) -> tuple[int, float]:
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline().split()
    if len(answer) != 2:
        raise RuntimeError("a contender has died; what it said is above")
    return int(answer[0]), float(answer[1])


def _clips(folder: Path) -> list[str]:
    """Files of a mottled picture that a camera pans over, with a square that crosses it."""
    from PIL import Image

    from data.mp4 import write_mp4

    paths = []
    for number in range(CLIPS):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8))
        large = np.asarray(coarse.resize((WIDTH + 400, HEIGHT + 200), Image.Resampling.BICUBIC))
        large = (large.astype(int) + rng.integers(-12, 13, large.shape)).clip(0, 255)
        frames = np.empty((SECONDS * FPS, HEIGHT, WIDTH, 3), np.uint8)
        for t, frame in enumerate(frames):
            x, y = int(200 + 180 * np.sin(t / 40 + number)), int(100 + 90 * np.sin(t / 55))
            frame[:] = large[y : y + HEIGHT, x : x + WIDTH]
            left = (7 * t + 31 * number) % (WIDTH - 80)
            frame[100:180, left : left + 80] ^= 255
        paths.append(folder / f"{number}_0.mp4")
        write_mp4(paths[-1], frames, FPS)
        for copy in range(1, COPIES):
            paths.append(folder / f"{number}_{copy}.mp4")
            shutil.copy(paths[-2], paths[-1])
    return [str(path) for path in paths]


# Memory --------------------------------------------------------------------------------------


def _memory(folder: Path, workers: int) -> dict[str, float]:
    """Resident MB of the pipeline's process and its workers, what they share counted once."""
    from data.mp4 import write_mp4
    from data.toyworld import make

    paths = [str(folder / f"small_{number}.mp4") for number in range(3)]
    for number, path in enumerate(paths):
        write_mp4(path, make(number).frames.repeat(4, 0), 12)
    figures = {}
    for suffix, count in (("", workers), ("_one_process", 0)):
        job = {"videos": paths, "frames": 4, "workers": count, "reads": 1000}
        with _running(_MEMORY, job) as process:
            for reads in (1000, 2000, 3000, 4000, 5000):
                _once(process)
                if reads in (1000, 5000):
                    figures[f"resident_mb_after_{reads}{suffix}"] = _resident_mb(process.pid)
    long = str(folder / "two_hours.mp4")
    command = [sys.executable, "-c", _LONG, str(folder / "0_0.mp4"), long]
    subprocess.run(command, check=True)
    job = {"videos": [long], "frames": 64, "workers": 0, "size": SIZE, "batch": 1}
    with _running(_SACCADE, job) as process:
        _, figures["two_hour_seconds"] = _once(process)
        peaks = [_peak_mb(pid) for pid in _family(process.pid)]
        figures["two_hour_peak_mb"], figures["two_hour_worker_peak_mb"] = sum(peaks), max(peaks[1:])
    return figures


def _family(pid: int) -> list[int]:
    """A process and its children, by whichever thread they were started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [pid, *(int(child) for t in threads for child in _text(t / "children").split())]


def _text(path: Path) -> str:
    """A file of /proc; "" if its process or thread has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _cpu_seconds(pid: int) -> float:
    """Of a process, its children that live, and those that it has waited for."""
    ticks = 0
    for one in _family(pid):
        fields = _text(Path(f"/proc/{one}/stat")).rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    """Without what is mapped from files: that is shared with whatever else runs just then."""
    return sum(_megabytes(one, "smaps_rollup", "Pss_Anon") for one in _family(pid))


def _peak_mb(pid: int) -> float:
    return _megabytes(pid, "status", "VmHWM")


def _megabytes(pid: int, file: str, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", _text(Path(f"/proc/{pid}/{file}")), re.M)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
