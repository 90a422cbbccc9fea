"""`saccade evaluate`: when scores tell that something happened, beside every baseline.

On the toy world (`toy`): a model looks at every clip once (`recording`), every score and baseline
is made of what it said (`candidates`), settings are chosen on validation clips and reported once on
test clips (`localise`); a frame budget is spent by them (`budget`); and what the model knows of the
world is examined (`gates`). On published sets with annotated moments: `annotated`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.arguments import Parser, UsageError, plain
from experiments.bench import write_results
from experiments.configs import score as score_config
from experiments.folder import UNTRAINED
from experiments.options import Options
from experiments.tables import markdown
from surprise import Settings

if TYPE_CHECKING:
    from experiments.examiner import Examiner
    from experiments.recording import ClipSet, Shelf

Result = tuple[dict[str, Any], list[dict[str, Any]]]
"""Figures, and the rows of the table."""

log = logging.getLogger(__name__)

USAGE = "[--config=FILE[:ARG]] [--model=tiny|DIR|HF_ID] [--out=DIR] [--config.KEY=VALUE]"


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        "evaluate", USAGE, "Writes results.json and table.md to --out. Modes: toy, demo."
    )
    parser.add_argument("--model", default="tiny", help="directory, hub id, `tiny` or `tiny-qwen3`")
    parser.add_argument("--out", default="runs/evaluate", help="folder of the results")
    parser.add_config("evaluate.py")
    found = parser.parse(argv)
    command = " ".join(["saccade evaluate", *argv])
    return run(found.model, Path(found.out), plain(found.config), command=command)


def run(model: str, out: Path, config: dict[str, Any], *, command: str) -> int:
    """Evaluates, writes results.json and table.md to `out`; 0, or 1 where an input failed.

    What an earlier call with the same settings has recorded is not done again. Raises UsageError.
    """
    scoring = Options.from_config({name: config[name] for name in score_config.get_config()})
    if scoring.processes != 1 or scoring.coordinator:
        raise UsageError(
            "evaluate is one process; score with several, then name their --config.traces"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out={out}: {error.strerror}") from None
    if config["dataset"] == "toy":
        status, (figures, table) = 0, toy(model, out, config, scoring)
    else:
        from experiments.annotated import annotated

        status, figures, table = annotated(model, out, config, scoring)
    settings = {"model": model, **config}
    write_results(out, command, settings=settings, figures=figures, table=table)
    text = markdown(table)
    (out / "table.md").write_text(text, encoding="utf-8")
    log.info("%s", text)
    log.info("results in %s", out / "results.json")
    return status


def toy(model: str, out: Path, config: dict[str, Any], options: Options) -> Result:
    """Figures and rows of a model's evaluation on the toy world. Raises UsageError."""
    from experiments.examiner import Examiner
    from experiments.recording import Shelf, fingerprint

    check(config, options)
    vlm, driver = options.load(model, chains=options.batch)
    if not vlm.trained:
        log.warning(UNTRAINED)
    examiner = Examiner(vlm, batch=options.batch, driver=driver)
    records = out / "records"
    shelf = Shelf.open(records, examiner, options.settings, model=fingerprint(vlm.model))
    return examine(examiner, shelf, config, options.settings)


def examine(examiner: Examiner, shelf: Shelf, config: dict[str, Any], settings: Settings) -> Result:
    """The whole evaluation on the toy world, level by level."""
    from experiments import budget, exams, gates, localise
    from experiments.candidates import candidates

    ways = [replace(settings, observation=observation) for observation in config["observations"]]
    # What the model knows of this world.
    known, table = gates.gates(
        examiner,
        ways[0],
        windows=config["gate_windows"],
        clips=config["gate_clips"],
        seed=config["world"],
    )
    figures = {f"gate_{name}": estimate for name, estimate in known.items()}
    answered, rows = exams.figures(
        examiner,
        settings.prompts.system,
        pairs=config["pairs"],
        moments=config["moments"],
        kinds=config["moment_kinds"],
        seed=config["world"],
    )
    figures, table = figures | answered, table + rows
    found = candidates(settings, tuple(config["observations"]))
    for level in ("full", "easy", "brief"):
        sets = clip_sets(level, config)
        if not all(clips.count for clips in sets.values()):
            continue
        # What it says about every step; then, when that and everything else tell of an event.
        recorded = {
            split: {way.observation: shelf.records(clips, way) for way in ways}
            for split, clips in sets.items()
        }
        report = localise.report(level, found, recorded["validation"], recorded["test"])
        prefix = "" if level == "full" else f"{level}_"
        figures |= {prefix + name: estimate for name, estimate in report.figures.items()}
        table += report.table
        if level == "brief":
            # What the frames chosen by it are worth.
            spent, rows = budget.spend(
                examiner,
                settings.prompts.system,
                report.chosen,
                *((recorded[split], list(clips.clips())) for split, clips in sets.items()),
                budgets=[int(number) for number in config["budgets"]],
                seed=config["world"],
            )
            figures, table = figures | spent, table + rows
    return localise.flat(figures), table


def clip_sets(level: str, config: dict[str, Any]) -> dict[str, ClipSet]:
    """A level's validation and test clips. All have an event: a brief one is a change of colour,
    whose question no other frame helps to answer."""
    from data.toyscene import EVENTS
    from experiments.recording import ClipSet

    kinds = ("recolor",) if level == "brief" else EVENTS
    return {
        split: ClipSet(level, split, config[f"{level}_{split}"], config["world"], kinds)
        for split in ("validation", "test")
    }


def check(config: dict[str, Any], options: Options) -> None:
    """Raises UsageError for settings that the records or the examinations can't serve."""
    from data.toyworld import BRIEF

    settings = options.settings
    if settings.history != "none" or settings.jitter:
        raise UsageError("--config: the toy world is evaluated with history none and no jitter")
    if settings.caption_tokens == 0:
        raise UsageError("--config.caption_tokens is 0; the model's own caption is a baseline")
    if not config["moment_kinds"]:
        raise UsageError("--config.moment_kinds is empty; set moments=0 to ask about none")
    for key, possible in (("observations", ("frame", "pair")), ("moment_kinds", BRIEF)):
        if wrong := [name for name in config[key] if name not in possible]:
            names = ", ".join(possible)
            raise UsageError(f"--config.{key} has {wrong[0]!r}; choose from {names}")
