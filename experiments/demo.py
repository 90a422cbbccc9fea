"""`saccade demo`: renders a few short clips to mp4 and scores them as it would any video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from data import shapes
from experiments import score
from experiments.arguments import Parser, UsageError, plain
from experiments.configs.score import get_config

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    parser = Parser("demo", "[--out=DIR]", "Renders clips, scores them and writes a report.")
    parser.add_argument("--out", default="demo", help="folder of clips and results")
    out = Path(parser.parse(argv).out)
    clips = render(out / "clips")
    config = get_config()
    config.budget = 12  # of about 70 frames: few enough to see where they fall
    status = score.run(clips, model="tiny", out=str(out), config=plain(config))
    log.info("look at %s", out / "report.html")
    return status


def render(folder: Path) -> list[str]:
    """Writes the demo's clips as mp4 files and returns their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {folder}: {error.strerror}") from None
    paths = []
    for name in shapes.CLIPS:
        clip = shapes.render(name)
        paths.append(str(folder / f"{name}.mp4"))
        shapes.write_mp4(paths[-1], clip.frames, clip.fps)
        for event in clip.events:
            log.info("%s: %s at %.2f s", name, event.kind, event.seconds)
    return paths
