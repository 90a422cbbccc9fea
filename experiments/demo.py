"""`saccade demo`: the bundled model on clips of the world that it knows, from mp4 to report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from experiments import evaluate, score, toy
from experiments.arguments import Parser, plain
from experiments.configs.evaluate import get_config as evaluate_config
from experiments.configs.score import get_config as score_config

log = logging.getLogger(__name__)

_CLIPS = 8
_WORLD = {"seed": 1, "level": "full", "split": "test", "pairs": False}  # evaluation's has seed 0


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        "demo", "[--out=DIR]", "Clips of the toy world, their surprise, and how often it is right."
    )
    parser.add_argument("--out", default="demo", help="folder of clips and results")
    out = Path(parser.parse(argv).out)
    # 1. clips in which something odd may happen, as any mp4 files
    status = toy.run(out / "clips", _CLIPS, _WORLD)
    # 2. how far each frame moves the model's beliefs: traces, pictures, a report
    videos = [str(out / "clips" / "*.mp4")]
    status |= score.run(videos, model="tiny", out=str(out), config=plain(score_config("toy")))
    # 3. how often surprise finds the event, beside every baseline, on other clips
    config = plain(evaluate_config("demo"))
    status |= evaluate.run("tiny", out / "evaluate", config, command="saccade demo")
    log.info("look at %s", out / "report.html")
    return status
