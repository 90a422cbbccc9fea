"""`saccade score`: videos in, surprise traces out. Read `run` top to bottom for the whole job."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.video import Decoder, VideoError, VideoInfo
from experiments import sources
from experiments.arguments import Parser, UsageError, plain
from surprise import (
    Episode,
    Settings,
    SettingsError,
    TooShortError,
    Trace,
    advance,
    begin,
    episode_frames,
    select,
)
from surprise.schedule import observation, window

if TYPE_CHECKING:
    from experiments.viewer import Viewer

log = logging.getLogger(__name__)

USAGE = "VIDEO|GLOB|DIR|MANIFEST.jsonl ... [--model=tiny|DIR|HF_ID] [--out=DIR] [--config=FILE]"
UNTRAINED = (
    "The model has random weights: its words mean nothing, and so does its surprise. "
    "What this run shows is the path from a video file to a trace."
)
_PACKAGES = ("saccade", "jax", "flax", "numpy", "decord", "av")


def main(argv: Sequence[str]) -> int:
    parser = Parser("score", USAGE, "Writes trace.jsonl, pictures and report.html to --out.")
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--model", default="tiny", help="directory, hub id or `tiny`")
    parser.add_argument("--out", default="runs/score", help="folder of the results")
    parser.add_config("score.py")
    found = parser.parse(argv)
    return run(found.videos, model=found.model, out=found.out, config=plain(found.config))


def run(names: Sequence[str], *, model: str, out: str, config: dict[str, Any]) -> int:
    """Scores every video that `names` stand for and writes traces, pictures and report to `out`.

    What an earlier call with the same settings has finished is kept and not done again. Returns 0,
    or 1 where `failures.jsonl` lists a video. Raises UsageError before any work is done.
    """
    options = Options.from_config(config)
    videos = sources.find(names, options.roots)
    folder = Folder.open(out, {"model": model, **config})
    todo = [video for video in videos if video.id not in folder.traces]
    vlm = _load(model, options) if todo else None
    if vlm is not None and not vlm.trained:
        log.warning(UNTRAINED)

    with Decoder(timeout=options.timeout) as decoder:
        if todo:
            from experiments.viewer import Viewer

            viewer = Viewer(vlm)
            for video, tell in _progress(todo):
                if video.error:
                    folder.fail(video, "manifest", video.error)
                    continue
                try:
                    trace = score(video, decoder, viewer, options, model, tell)
                    folder.keep(trace)
                    if options.pictures:
                        folder.picture(trace, decoder)
                except VideoError as error:
                    folder.fail(video, error.stage, error.reason)
                except TooShortError as error:
                    folder.fail(video, "frames", str(error))
                except (ValueError, RuntimeError, MemoryError) as error:
                    log.debug("%s", video.path, exc_info=True)
                    folder.fail(video, "score", str(error) or type(error).__name__)
        if options.report:
            folder.report(decoder)
    log.info("%d traces in %s", len(folder.traces), folder.path / "trace.jsonl")
    if folder.failed:
        log.warning("%d failed, listed in %s", folder.failed, folder.path / "failures.jsonl")
    return 1 if folder.failed else 0


def score(
    video: sources.Source,
    decoder: Decoder,
    viewer: Viewer,
    options: Options,
    model: str,
    tell: Callable[[str], None] = lambda text: None,
) -> Trace:
    """The trace of one video: frames -> features -> a step for each frame -> frames chosen.

    Raises VideoError, TooShortError, BeliefError.
    """
    settings = options.settings
    info = decoder.info(video.path)
    numbers = episode_frames(settings, seconds=info.seconds, frame_count=info.frame_count)
    size = viewer.frame_size(info.height, info.width, frames=settings.window)
    frames = decoder.frames(video.path, numbers, size=size)
    times = decoder.times(video.path, numbers)
    steps = range(1, len(numbers))
    views = [window(k, settings.window) for k in steps]
    views += [observation(k, settings.observation) for k in steps]
    viewer.add(video.id, frames, times, views)
    try:
        viewing = begin(settings, Episode(video.id, tuple(numbers.tolist()), tuple(times.tolist())))
        while not viewing.done:
            tell(f"step {viewing.step}/{len(numbers) - 1}")
            [viewing] = advance(viewer, settings, [viewing])
    finally:
        viewer.drop(video.id)
    trace = _trace(video, info, viewing.steps, options, model, viewer, size)
    chosen = select(trace, settings)
    seconds = decoder.times(video.path, chosen.frames)
    return replace(trace, selected=replace(chosen, seconds=tuple(seconds.tolist())))


@dataclass(frozen=True)
class Options:
    """The configuration in two parts: what shapes the numbers, and what only runs them."""

    settings: Settings
    dtype: str
    hf_compat: str | None
    timeout: float
    roots: tuple[str, ...]
    pictures: bool
    report: bool

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Options:
        own = {name: config[name] for name in cls.__annotations__ if name != "settings"}
        if own["timeout"] <= 0:
            raise UsageError(f"--config.timeout is {own['timeout']}; it must be positive")
        own |= {"hf_compat": own["hf_compat"] or None, "roots": tuple(own["roots"])}
        try:
            settings = Settings.from_dict({k: v for k, v in config.items() if k not in own})
        except SettingsError as error:
            raise UsageError(f"--config: {error}") from None
        return cls(settings=settings, **own)


def _load(model: str, options: Options):
    import jax

    import vlm

    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        return vlm.load(model, dtype=dtype, hf_compat=options.hf_compat)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from None


def _trace(video, info: VideoInfo, steps, options: Options, model: str, viewer, size) -> Trace:
    run = {
        "trained": viewer.trained,
        "dtype": viewer.dtype,
        "hf_compat": viewer.hf_compat,
        "frame_size": list(size),
        "backend": info.backend,
        "versions": versions(),
    }
    return Trace(
        video=video.path,
        id=video.id,
        fps=info.fps,
        frame_count=info.frame_count,
        seconds=info.seconds,
        width=info.width,
        height=info.height,
        model=model,
        settings={**options.settings.to_dict(), "run": run},
        steps=steps,
    )


def versions() -> dict[str, str]:
    """Versions of the packages that shape numbers."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class Folder:
    """An output directory: whole lines only, and never a finished video twice."""

    def __init__(self, path: Path, traces: dict[str, dict]):
        self.path, self.traces, self.failed = path, traces, 0

    @classmethod
    def open(cls, out: str, config: dict[str, Any]) -> Folder:
        """Makes the directory, or takes up what an equal call has left in it."""
        path = Path(out)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "failures.jsonl").write_text("")  # what failed before is tried again
            before = path / "config.json"
            if before.exists():
                _check_same(path, json.loads(before.read_text()), config)
            before.write_text(json.dumps(config, indent=2) + "\n")
            return cls(path, _read_traces(path / "trace.jsonl"))
        except OSError as error:
            raise UsageError(f"--out={out}: {error.strerror or error}") from None

    def keep(self, trace: Trace) -> None:
        line = trace.to_line()
        _append(self.path / "trace.jsonl", line)
        self.traces[trace.id] = json.loads(line)

    def fail(self, video: sources.Source, stage: str, error: str) -> None:
        self.failed += 1
        error = " ".join(error.split())
        log.warning("%s: %s", video.path, error)
        record = {"video": video.path, "id": video.id, "stage": stage, "error": error}
        _append(self.path / "failures.jsonl", json.dumps(record))

    def picture(self, trace: Trace, decoder: Decoder) -> None:
        from experiments.report import figure

        pictures = self.path / "pictures"
        pictures.mkdir(exist_ok=True)
        record = self.traces[trace.id]
        figure(record, _thumbnails(record, decoder), pictures / f"{_file_name(trace.id)}.png")

    def report(self, decoder: Decoder) -> None:
        from experiments.report import html

        lines = (self.path / "failures.jsonl").read_text(encoding="utf-8").splitlines()
        failures = [json.loads(line) for line in lines]
        traces = list(self.traces.values())
        thumbnails = (_thumbnails(trace, decoder) for trace in traces)
        trained = all(trace["settings"]["run"]["trained"] for trace in traces)
        note = "" if trained else UNTRAINED
        html(traces, thumbnails, failures, self.path / "report.html", note=note)


def _check_same(path: Path, before: dict, now: dict) -> None:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise UsageError(
            f"--out={path} holds results of other settings ({', '.join(changed)}); "
            "choose another folder, or remove this one"
        )


def _read_traces(path: Path) -> dict[str, dict]:
    """Finished traces by id; a line that an interruption left unfinished is cut off."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    traces = [json.loads(line) for line in whole.decode().splitlines()]
    return {trace["id"]: trace for trace in traces}


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _thumbnails(trace: dict, decoder: Decoder) -> dict:
    """Small frames for a trace's pictures; none where the video can't be read any more."""
    from experiments.report import frames_shown

    shown = frames_shown(trace)
    width = min(320, trace["width"])
    size = (max(1, round(trace["height"] * width / trace["width"])), width)
    try:
        return dict(zip(shown, decoder.frames(trace["video"], shown, size=size), strict=True))
    except VideoError as error:
        log.warning("no thumbnails: %s", error)
        return {}


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:120]


def _progress(
    videos: Sequence[sources.Source],
) -> Iterator[tuple[sources.Source, Callable[[str], None]]]:
    """The videos one by one: a bar with rate and time left on a terminal, log lines elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        with logging_redirect_tqdm(), tqdm(videos, unit="video") as bar:
            for video in bar:
                bar.set_description(Path(video.path).name)
                yield video, bar.set_postfix_str
        return
    start = time.monotonic()
    for done, video in enumerate(videos, 1):
        yield video, lambda text: None
        took = time.monotonic() - start
        left = took / done * (len(videos) - done)
        log.info("[%d/%d] %s (%.0f s left)", done, len(videos), video.path, left)
