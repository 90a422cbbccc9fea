"""`saccade frames`: from traces to the frames that a budget buys, in the forms others read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from experiments import arguments
from experiments.arguments import UsageError
from surprise import Settings, SettingsError, Trace, TraceError, export, select
from surprise.frames import FORMATS, METHODS

SYNOPSIS = "TRACE.jsonl --budget=64 [--method=...] [--format=indices|seconds|bolt|aks] [--seed=0]"


def main(argv: Sequence[str]) -> int:
    values, defaults = flags.FlagValues(), Settings()
    flags.DEFINE_integer("budget", defaults.budget, "frames a video", flag_values=values)
    flags.DEFINE_enum("method", defaults.method, METHODS, "how to choose", flag_values=values)
    flags.DEFINE_enum("format", "indices", FORMATS, "what to write", flag_values=values)
    flags.DEFINE_integer("seed", defaults.seed, "of the draws", flag_values=values)
    flags.DEFINE_float("tau", defaults.frames_tau, "temperature of scores", flag_values=values)
    flags.DEFINE_bool("refill", defaults.refill, "draw until distinct", flag_values=values)
    flags.DEFINE_enum(
        "segments", defaults.segments, ("ends_at", "equal"), "time of a score", flag_values=values
    )
    flags.DEFINE_string("out", "", "file to write; default: standard output", flag_values=values)
    paths = arguments.parse("frames", SYNOPSIS, argv, values)
    if len(paths) != 1:
        raise UsageError(f"expected one trace.jsonl, got {len(paths)} arguments")
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
        chosen = {trace.id: select(trace, settings) for trace in _read(paths[0])}
        text = json.dumps(export(chosen, format=values.format)) + "\n"
        if values.out:
            Path(values.out).write_text(text)
        else:
            sys.stdout.write(text)
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
