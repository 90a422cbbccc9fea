"""`saccade frames`: from traces to the frames that a budget buys, in the forms others read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.arguments import Parser, UsageError
from surprise import Settings, SettingsError, Trace, TraceError, export, select
from surprise.frames import FORMATS, METHODS

USAGE = "TRACE.jsonl --budget=64 [--method=...] [--format=indices|seconds|bolt|aks] [--seed=0]"


def main(argv: Sequence[str]) -> int:
    defaults = Settings()
    parser = Parser("frames", USAGE, "Writes the chosen frames of every video as one JSON object.")
    parser.add_argument("trace")
    parser.add_argument("--budget", type=int, default=defaults.budget, help="frames a video")
    parser.add_argument("--method", choices=METHODS, default=defaults.method, help="how to choose")
    parser.add_argument("--format", choices=FORMATS, default="indices", help="what to write")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the draws")
    parser.add_argument("--tau", type=float, default=defaults.frames_tau, help="of the softmax")
    parser.add_argument("--segments", choices=("ends_at", "equal"), default=defaults.segments)
    parser.add_argument("--refill", action="store_true", help="until the budget is met")
    parser.add_argument("--out", default="-", help="file to write, - for standard output")
    values = parser.parse(argv)
    try:
        settings = replace(
            defaults,
            budget=values.budget,
            method=values.method,
            seed=values.seed,
            frames_tau=values.tau,
            refill=values.refill,
            segments=values.segments,
        )
        chosen = {trace.id: select(trace, settings) for trace in _read(values.trace)}
        text = json.dumps(export(chosen, format=values.format)) + "\n"
        if values.out == "-":
            sys.stdout.write(text)
        else:
            Path(values.out).write_text(text)
    except (SettingsError, ValueError) as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    return 0


def _read(path: str) -> list[Trace]:
    traces = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                traces.append(Trace.from_line(line))
            except TraceError as error:
                raise UsageError(f"{path}:{number}: {error}") from None
    if not traces:
        raise UsageError(f"{path}: no trace in it")
    return traces
