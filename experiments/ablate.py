"""`saccade ablate`: configurations side by side, each trained by several seeds, as a table.

A row is a training run's configuration. Every row is trained with every seed, all from one model
where a training run is named that makes it, then examined by `saccade evaluate`, so that all answer
the same questions; rows are compared seed by seed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arguments import Parser, UsageError, plain, read_config
from experiments.outputs import take, write

log = logging.getLogger(__name__)

_FIGURES = "figures.json"
_SOURCES = ("exam", "eval", "train", "rise")


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        "ablate",
        "--config=FILE[:ARG] [--out=DIR] [--config.KEY=VALUE ...]",
        "Trains every row by every seed, examines what came of it, and compares rows seed by seed.",
    )
    parser.add_config("ablate.py:crpo")
    parser.add_argument("--out", default="runs/ablate", help="folder of all runs; it is taken up")
    found = parser.parse(argv)
    command = " ".join(["saccade ablate", *argv])
    return run(plain(found.config), Path(found.out), command=command)


def run(config: dict[str, Any], out: Path, *, command: str) -> int:
    """Runs what is missing, and writes results.json and table.md; 0, or 1 where it was stopped.

    `config`: see `configs/ablate.py`. What is finished is not done again. Raises UsageError.
    """
    from experiments import train

    rows, base, exam = _read(config)
    take(out, config, free=("seeds", "figures", "controls"))
    runs = [(name, seed) for seed in range(config["seeds"]) for name in rows]
    missing = {one for one in runs if not (_folder(out, *one) / _FIGURES).exists()}
    found: dict[tuple[str, int], dict[str, float]] = {}
    with _programs_kept(out / "compiled"):
        if base is not None and missing:
            log.info("what all rows begin with")
            if train.run(base, out / "base"):
                return _stopped()
            model = str(out / "base" / "export")
            rows = {name: row | {"model": model} for name, row in rows.items()}
        for seed in range(config["seeds"]):
            for name, row in rows.items():
                folder = _folder(out, name, seed)
                if (name, seed) in missing:
                    number, every = len(found) + 1, len(rows) * config["seeds"]
                    log.info("run %d of %d: %s, seed %d", number, every, name, seed)
                    if not _finished(row | {"seed": seed}, exam, folder):
                        return _stopped()
                found[name, seed] = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
            _report(config, list(rows), seed + 1, found, out, command)
    return 0


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / name / str(seed)


def _stopped() -> int:
    log.info("the same command goes on from there")
    return 1


@contextmanager
def _programs_kept(folder: Path) -> Iterator[None]:
    """Compiles each program once for all runs and keeps it on disk: in `folder`, unless jax has
    been told another one.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir:
        yield
        return
    ours = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    theirs = {name: getattr(jax.config, name) for name in ours}

    def use(settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it may be open, or have been found to be off

    use(ours)
    try:
        yield
    finally:
        use(theirs)


def _read(
    config: dict[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None, dict[str, Any] | None]:
    """The configurations of each row, of what they begin with and of the examination, None where
    there is none. Raises UsageError.
    """
    if config["seeds"] < 2:
        raise UsageError(f"--config.seeds is {config['seeds']}; an interval needs at least 2")
    if unknown := sorted(set(config["controls"]) - set(config["rows"])):
        names = ", ".join(config["rows"])
        raise UsageError(f"--config.controls: no row {unknown[0]!r}; choose from {names}")
    if wrong := [name for name in config["figures"] if name.partition("/")[0] not in _SOURCES]:
        raise UsageError(
            f"--config.figures has {wrong[0]!r}; write SOURCE/NAME, of {', '.join(_SOURCES)}"
        )
    rows = {name: _configured(row, config["shared"]) for name, row in config["rows"].items()}
    base, exam = (_configured(config[key]) if config[key] else None for key in ("base", "exam"))
    runs = {f"rows.{name}": row for name, row in rows.items()} | ({"base": base} if base else {})
    for name, run in runs.items():
        if "recipe" not in run:
            raise UsageError(f"--config.{name}: that is no configuration of a training run")
        if run["processes"] != 1:
            raise UsageError(f"--config.{name}: processes is not 1; runs are of one process")
    return rows, base, exam


def _configured(words: str, shared: str = "") -> dict[str, Any]:
    """The configuration FILE[:ARG], changed by KEY=VALUE, as words; its own come last."""
    spec, *changes = words.split()
    return plain(read_config(spec, [f"--config.{one}" for one in (*shared.split(), *changes)]))


def _finished(config: dict[str, Any], exam: dict[str, Any] | None, folder: Path) -> bool:
    """Trains and examines one run and keeps its figures; False where it was told to stop.

    exam/NAME is what `saccade evaluate` finds; for others see `_summary`.
    """
    import jax

    from experiments import train

    if train.run(config, folder):
        return False
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    figures = _summary([json.loads(line) for line in lines])
    if exam is not None:
        figures |= _examined(folder / "export", exam, folder.parents[1] / "exams")
    write(folder / _FIGURES, json.dumps(figures, indent=2) + "\n")
    jax.clear_caches()  # what a run leaves in memory no other can use
    return True


def _examined(model: Path, exam: dict[str, Any], exams: Path) -> dict[str, float]:
    """What comes of an examination; models of equal files, as those that learn nothing, have one
    in common.
    """
    from experiments import evaluate

    contents = hashlib.blake2b(digest_size=8)
    for file in sorted(model.iterdir()):
        with file.open("rb") as stream:
            contents.update(hashlib.file_digest(stream, "blake2b").digest())
    out = exams / contents.hexdigest()
    if not (out / "results.json").exists():
        evaluate.run(str(model), out, exam, command=f"saccade evaluate --model={model}")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return {f"exam/{name}": value for name, value in results["figures"].items()}


def _summary(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the metrics of a run, step by step: train/NAME, the mean over all steps; rise/NAME, that
    over the last fifth of them less that over the first; and eval/NAME, the last.
    """
    figures = {}
    for name in dict.fromkeys(name for line in lines for name in line):
        values = [line[name] for line in lines if name in line]
        if name.startswith("eval/"):
            figures[name] = values[-1]
            continue
        fifth = -(-len(values) // 5)
        figures[f"train/{name}"] = float(np.mean(values))
        figures[f"rise/{name}"] = float(np.mean(values[-fifth:]) - np.mean(values[:fifth]))
    return figures


def _report(
    config: dict[str, Any],
    rows: Sequence[str],
    seeds: int,
    found: Mapping[tuple[str, int], Mapping[str, float]],
    out: Path,
    command: str,
) -> None:
    """Writes and shows what the first `seeds` seeds say."""
    from experiments.bench import write_results
    from experiments.localise import flat, spread
    from experiments.tables import markdown
    from surprise.localisation import Estimate, student

    def estimates(name: str, minus: str = "") -> dict[str, Estimate]:
        def value(who: str, figure: str, seed: int) -> float:
            return found[who, seed].get(figure, float("nan")) if who else 0.0

        return {
            figure: student(
                [value(name, figure, s) - value(minus, figure, s) for s in range(seeds)]
            )
            for figure in config["figures"]
        }

    parts = {"mean over seeds": {name: estimates(name) for name in rows}}
    for control in config["controls"]:
        parts[f"minus {control}, seed by seed"] = {
            f"{name} - {control}": estimates(name, control) for name in rows if name != control
        }
    figures = {f"{name}/{figure}": estimate for part in parts.values()
               for name, told in part.items() for figure, estimate in told.items()}  # fmt: skip
    table = [{"part": part, "row": name, "n": seeds, **spread(told)}
             for part, own in parts.items() for name, told in own.items()]  # fmt: skip
    write_results(out, command, settings=config, figures=flat(figures), table=table)
    text = markdown(table)
    write(out / "table.md", text)
    log.info("%s", text)
