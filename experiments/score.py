"""`saccade score`: videos in, surprise traces out. Read `run` top to bottom for the whole job."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.video import Decoder, VideoError, VideoInfo
from experiments import sources
from experiments.arguments import Parser, UsageError, plain
from experiments.folder import UNTRAINED, Folder
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
