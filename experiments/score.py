"""`saccade score`: videos in, surprise traces out. Read `run` top to bottom for the whole job."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.video import Decoder, VideoError
from experiments import folder as folders
from experiments import sources
from experiments.arguments import Parser, plain
from experiments.folder import UNTRAINED, Folder
from experiments.options import Options
from experiments.progress import Progress
from surprise import Step, TooShortError, Trace, select

if TYPE_CHECKING:
    from experiments.flow import Clip

log = logging.getLogger(__name__)

USAGE = "VIDEO|GLOB|DIR|MANIFEST.jsonl ... [--model=tiny|DIR|HF_ID] [--out=DIR] [--config=FILE]"
_PACKAGES = ("saccade", "jax", "flax", "numpy", "decord", "av")


def main(argv: Sequence[str]) -> int:
    parser = Parser("score", USAGE, "Writes trace.jsonl, pictures and report.html to --out.")
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--model", default="tiny", help="directory, hub id, `tiny` or `tiny-qwen3`")
    parser.add_argument("--out", default="runs/score", help="folder of the results")
    parser.add_argument(
        "--merge", action="store_true", help="join what several processes have written to --out"
    )
    parser.add_config("score.py")
    found = parser.parse(argv)
    if found.merge:
        return merge(found.out, plain(found.config))
    return run(found.videos, model=found.model, out=found.out, config=plain(found.config))


def run(names: Sequence[str], *, model: str, out: str, config: dict[str, Any]) -> int:
    """Scores every video that `names` stand for and writes traces, pictures and report to `out`.

    What an earlier call with the same settings has finished is kept and not done again. One of
    several processes scores its share and writes its part, for `merge`. Returns 0, or 1 where
    `failures.jsonl` lists a video. Raises UsageError before any work is done.
    """
    options = Options.from_config(config)
    index, count = options.join()
    videos = sources.find(names, options.roots)[index::count]
    part = f"{index:05d}-of-{count:05d}" if count > 1 else ""
    folder = Folder.open(out, {"model": model, **config}, shaped_by=options.shaped_by(), part=part)
    todo = [video for video in videos if video.id not in folder.finished]
    if todo:
        score(todo, folder, options, model)
    if part:
        status = folder.finish()
        if options.coordinator and index == 0:
            folder.wait_for_others()  # jax.distributed ends with process 0, and all others with it
        return status
    return _show(folder, options)


def merge(out: str, config: dict[str, Any]) -> int:
    """Joins the parts that several processes have written to `out`, and shows the whole."""
    return _show(folders.merge(out), Options.from_config(config))


def _show(folder: Folder, options: Options) -> int:
    """Pictures and report of a folder's traces; the exit status of the command."""
    if options.pictures:
        folder.pictures(options.timeout)
    if options.report:
        folder.report(options.timeout)
    return folder.status()


def score(videos: Sequence[sources.Source], folder: Folder, options: Options, model: str) -> None:
    """Traces of videos, each kept in the folder as soon as it is done, or listed as failed."""
    from experiments.flow import Ahead, Flow, read
    from experiments.viewer import Viewer
    from vlm.loading import BUNDLED

    settings = options.settings
    # Without a history the steps of a video go side by side; with one, only videos do.
    chains = len(videos) * (settings.cap if settings.history == "none" else 1)
    vlm, driver = options.load(model, chains=chains)
    if not vlm.trained:
        log.warning(UNTRAINED)
    elif model in BUNDLED and settings.observation != "pair":
        log.warning("%s has been taught steps as --config=score.py:toy shows them", model)
    batch = min(options.batch * driver.replicas, chains)
    viewer = Viewer(vlm, batch=batch, driver=driver)
    with (
        Decoder(timeout=options.timeout) as decoder,
        Ahead(videos, lambda video: read(video, decoder, settings, viewer.frame_size)) as clips,
        Progress(len(videos), "video", each=True) as progress,
    ):
        for source, clip, done in Flow(viewer, settings).run(clips):
            progress.add(name=source.path)
            if isinstance(done, Exception):
                folder.fail(source, _stage(done), str(done) or type(done).__name__)
                log.debug("%s", source.path, exc_info=done)
            else:
                folder.keep(_trace(clip, done, options, model, viewer))


def _stage(error: Exception) -> str:
    """Where a video failed: a stage of its decoder, manifest, frames or score."""
    from experiments.flow import InputError

    if isinstance(error, VideoError):
        return error.stage
    kinds = {InputError: "manifest", TooShortError: "frames"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "score")


def _trace(clip: Clip, steps: tuple[Step, ...], options: Options, model: str, viewer) -> Trace:
    info = clip.info
    run = {
        "trained": viewer.trained,
        "dtype": viewer.dtype,
        "hf_compat": viewer.hf_compat,
        "frame_size": list(clip.frames.shape[1:3]),
        "backend": info.backend,
        "versions": versions(),
    }
    trace = Trace(
        video=clip.source.path,
        id=clip.source.id,
        fps=info.fps,
        frame_count=info.frame_count,
        seconds=info.seconds,
        width=info.width,
        height=info.height,
        model=model,
        settings={**options.settings.to_dict(), "run": run},
        steps=steps,
    )
    chosen = select(trace, options.settings)
    seconds = clip.times[list(chosen.frames)]
    return replace(trace, selected=replace(chosen, seconds=tuple(seconds.tolist())))


def versions() -> dict[str, str]:
    """Versions of the packages that shape numbers."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
