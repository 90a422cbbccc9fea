"""`saccade bench score`: SPIKE's time step beside two `transformers` programs and beside the floor.

a  the released pattern on `transformers`
b  `transformers` used well, a prompt a call (`Batched`), and with prefixes kept between calls, the
   best that we could make of it (`Shared`)
c  saccade
d  counted FLOPs and bytes over measured rates

All of them run `surprise.watch` on the same weights, frames and words (see `workload`, `peers` and
`floor`), in turn, in one process; the least time of each counts.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.arguments import Parser, UsageError
from experiments.floor import PHASES, Cost, bandwidth, floor, matmul_rate
from experiments.workload import Clip, Run, Scorer, make_clips, random_model, run, work_of
from surprise import Settings

if TYPE_CHECKING:
    from vlm import VLM

log = logging.getLogger(__name__)

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Most that beliefs, and mean NLLs in nats a token, may differ between implementations."""
DRAWN = ("sample", "caption")
SWEEPS = {"in_flight": (1, 2, 4, 8), "hypotheses": (1, 4, 8, 16)}


def option(default: Any, text: str) -> Any:
    """A field of options, and what --help says of it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """What is run, as the command line has it. Raises UsageError."""

    model: str = option("mini", "mini (35 M parameters), tiny, or a size that vlm.load knows")
    dtype: str = option("float32", "of the parameters: float32 or bfloat16")
    videos: int = option(4, "videos to score")
    in_flight: int = option(0, "videos that go through a step together; 0: all")
    hypotheses: int = option(8, "N, sampled and scored at each step")
    tokens: int = option(24, "of a hypothesis")
    caption_tokens: int = option(30, "of a caption")
    steps: int = option(8, "K, frames of a video; the first of them has nothing before it")
    window: int = option(4, "frames shown before each")
    side: int = option(224, "of a frame, in pixels")
    only: str = option("abcd", "what to run: a released pattern, b batched, c saccade, d floor")
    repeats: int = option(3, "of everything but a, which runs once; the least time counts")
    profile: bool = option(False, "say where saccade's time goes, phase by phase")
    table: bool = option(False, "throughput over videos in flight and over N as well")

    def __post_init__(self):
        for name, least in {"videos": 1, "in_flight": 0, "hypotheses": 1, "tokens": 2,
                            "caption_tokens": 2, "steps": 2, "window": 1, "side": 28,
                            "repeats": 1}.items():  # fmt: skip
            if vars(self)[name] < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}")
        if self.dtype not in TOLERANCE:
            raise UsageError(f"--dtype={self.dtype}: choose from {', '.join(TOLERANCE)}")
        if self.window >= self.steps:
            raise UsageError(f"--window={self.window} must be below --steps={self.steps}")
        if not self.only or not set(self.only) <= set("abcd"):
            raise UsageError(f"--only={self.only}: letters among a, b, c and d")
        if (self.profile or self.table) and not set("cd") <= set(self.only):
            raise UsageError("--profile and --table need c and d among --only")
        if set("ab") & set(self.only) and importlib.util.find_spec("torch") is None:
            raise UsageError("a and b need PyTorch: install saccade[parity], or give --only=cd")

    @property
    def settings(self) -> Settings:
        return Settings(
            schedule="fixed",
            steps=self.steps,
            window=self.window,
            hypotheses=self.hypotheses,
            hypothesis_tokens=self.tokens,
            caption_tokens=self.caption_tokens,
        )


def add_flags(parser: Parser, options: type = Options) -> None:
    """A flag for each field of a class of options."""
    for entry in fields(options):
        name = f"--{entry.name.replace('_', '-')}"
        if isinstance(entry.default, bool):
            parser.add_argument(name, action="store_true", **entry.metadata)
        else:
            kind = type(entry.default)
            parser.add_argument(name, type=kind, default=entry.default, **entry.metadata)


def bench_score(**values: Any) -> dict[str, Any]:
    """Times the whole work of SPIKE's steps, and scoring alone; `values` are those of `Options`.

    Raises UsageError, and RuntimeError where two implementations disagree about the beliefs.
    """
    from vlm.weights import count

    options = Options(**values)
    settings = options.settings
    vlm = random_model(options.model, options.dtype)
    clips = make_clips(vlm.processor, settings, options.videos, options.side)
    machine, figures = Machine(options.dtype), {}
    subjects: dict[str, Subject] = {}
    table: list[dict[str, Any]] = []
    with Compilations() as compiled:
        if "c" in options.only:
            subjects["saccade"] = _saccade(vlm, options, clips, compiled, figures)
        if set("ab") & set(options.only):
            subjects |= _peers(vlm, options, clips)
        figures |= _agree(subjects, settings, clips, TOLERANCE[options.dtype])
        if "d" in options.only:
            machine.measure()
        warm = compiled.count
        for number in range(options.repeats):
            log.info("repeat %d of %d", number + 1, options.repeats)
            if "d" in options.only and number:
                machine.measure()
            for subject in subjects.values():
                subject.time(number)
        figures["compiles_when_warm"] = compiled.count - warm
        costs = floors(vlm, settings, clips, options.in_flight)
        _compare(subjects, machine, costs, vlm, options, clips, figures, table)
        if options.profile:
            table += _profile(subjects["saccade"], machine, costs)
        if options.table:
            table += _sweep(vlm, machine, options, figures)
    settled = asdict(options) | {
        "parameters": count(vlm.model),
        "peers": {name: subject.note for name, subject in subjects.items()},
    }
    return {"settings": settled, "figures": figures, "table": table}


# What is timed --------------------------------------------------------------------------------


@dataclass
class Subject:
    """One implementation: the part of the work that is timed, and what it stands for."""

    model: Scorer
    settings: Settings
    clips: Sequence[Clip]
    in_flight: int
    note: str
    repeats: int = 1_000_000
    videos: int = 1
    """Videos of the whole work for each that is timed; `hypotheses` likewise, those of a step."""
    hypotheses: int = 1
    whole: list[Run] = field(default_factory=list)
    scoring: list[Run] = field(default_factory=list)

    def time(self, number: int) -> None:
        """Both works once, unless there have been enough."""
        if number < self.repeats:
            for draw, runs in ((True, self.whole), (False, self.scoring)):
                runs.append(run(self.model, self.settings, self.clips, self.in_flight, draw=draw))

    def seconds(self, *, draw: bool) -> float:
        """The least of all runs, for the whole work."""
        return min(self._scaled(one) for one in (self.whole if draw else self.scoring))

    def _scaled(self, one: Run) -> float:
        each = sum(one.clock.seconds[name] for name in ("sample", "prior", "posterior"))
        return self.videos * (one.seconds + (self.hypotheses - 1) * each)


def _saccade(
    vlm: VLM, options: Options, clips: Sequence[Clip], compiled: Compilations, figures: dict
) -> Subject:
    """Compiles in a first run, before PyTorch is there to share the memory that is reported."""
    from experiments.bench import peak_mb
    from experiments.viewer import Viewer

    settings, padding = options.settings, Padding()
    viewer = Viewer(vlm, batch=options.in_flight or len(clips))
    run(viewer, settings, clips, options.in_flight, see=padding.see)
    figures["compiles"], figures["compile_seconds"] = compiled.count, compiled.seconds
    figures["padding_share"], figures["peak_mb"] = padding.share, peak_mb()
    note = "Viewer: features, prefixes and caches shared"
    return Subject(viewer, settings, clips, options.in_flight, note)


def _peers(vlm: VLM, options: Options, clips: Sequence[Clip]) -> dict[str, Subject]:
    from experiments import peers

    settings, model = options.settings, peers.load(vlm)
    subjects = {}
    if "b" in options.only:
        for kind in (peers.Batched, peers.Shared):
            for size in sorted({1, options.in_flight or len(clips)}):
                note = f"{kind.__doc__.splitlines()[0]} {size} videos in a batch."
                name = f"{kind.__name__.lower()}_{size}"
                subjects[name] = Subject(kind(vlm, model), settings, clips, size, note)
    if "a" in options.only:
        note = f"one of {len(clips)} videos, one of {settings.hypotheses} hypotheses, all steps, "
        subjects["released"] = Subject(
            peers.Released(vlm, model),
            replace(settings, hypotheses=1),
            [clips[0].part(settings.steps, 1)],
            1,
            note + "once; the rest in proportion, for it works on one at a time",
            repeats=1,
            videos=len(clips),
            hypotheses=settings.hypotheses,
        )
    return subjects


def _agree(
    subjects: dict[str, Subject], settings: Settings, clips: Sequence[Clip], tolerance: float
) -> dict[str, float]:
    """The most that priors, posteriors and mean NLLs of any two differ; raises RuntimeError.

    The released pattern is asked about the first video up to its first full window.
    """
    short = replace(settings, steps=min(settings.steps, settings.window + 2))
    beliefs, nats = 0.0, 0.0
    first: Run | None = None
    for name, subject in subjects.items():
        one = name == "released"
        shown = [clips[0].part(short.steps, settings.hypotheses)] if one else clips
        found = run(subject.model, short if one else settings, shown, subject.in_flight, draw=False)
        first = first or found
        for ours, theirs in zip(first.steps, found.steps, strict=False):
            for mine, other in zip(ours[1:], theirs[1:], strict=False):
                for key in ("prior", "posterior"):
                    beliefs = max(beliefs, _apart(mine, other, key))
                    nats = max(nats, _apart(mine, other, f"{key}_nll"))
        if max(beliefs, nats) > tolerance:
            raise RuntimeError(
                f"{name} disagrees with {next(iter(subjects))}: probabilities by {beliefs:.2g}, "
                f"NLLs by {nats:.2g} nats a token; at most {tolerance} was expected"
            )
    return {"agreement": beliefs, "agreement_nll": nats} if len(subjects) > 1 else {}


def _apart(one: Any, other: Any, key: str) -> float:
    return float(np.abs(np.subtract(vars(one)[key], vars(other)[key])).max())


# What comes out -------------------------------------------------------------------------------


def floors(vlm: VLM, settings: Settings, clips: Sequence[Clip], in_flight: int) -> dict[str, Cost]:
    """The floor's costs by phase, all batches of videos together."""
    total = dict.fromkeys(PHASES, Cost())
    size = in_flight or len(clips)
    for first in range(0, len(clips), size):
        work = work_of(vlm, settings, clips[first : first + size])
        for name, cost in floor(vlm.config, work).items():
            total[name] += cost
    return total


def _compare(
    subjects: dict[str, Subject],
    machine: Machine,
    costs: dict[str, Cost],
    vlm: VLM,
    options: Options,
    clips: Sequence[Clip],
    figures: dict[str, float],
    table: list[dict[str, Any]],
) -> None:
    """Ratios of the least times, whole and scoring alone."""
    work = work_of(vlm, options.settings, clips)
    for draw, prefix in ((True, ""), (False, "scoring_")):
        seconds = {name: subject.seconds(draw=draw) for name, subject in subjects.items()}
        for kind in ("batched", "shared"):
            sizes = [each for name, each in seconds.items() if name.startswith(kind)]
            if sizes:
                seconds[kind] = min(sizes)
        for name, subject in subjects.items():
            row = {"implementation": name, "work": "scoring" if prefix else "whole"}
            table.append(row | {"seconds": seconds[name], "what": subject.note})
        least = {name: cost for name, cost in costs.items() if draw or name not in DRAWN}
        if "d" in options.only:
            total = sum(machine.seconds(cost) for cost in least.values())
            overlapped = sum(machine.overlapped(cost) for cost in least.values())
            row = {"implementation": "floor", "work": "scoring" if prefix else "whole"}
            table.append(row | {"seconds": total, "what": "FLOPs / rate + bytes / bandwidth"})
        if "saccade" not in seconds:
            continue
        ours = seconds["saccade"]
        for name in ("released", "batched", "shared"):
            if name in seconds:
                figures[f"{prefix}speedup_over_{name}"] = seconds[name] / ours
        if "d" in options.only:
            figures[f"{prefix}times_floor"] = ours / total
            figures[f"{prefix}times_roofline"] = ours / overlapped
        tokens = work.scored + (work.sampled if draw else 0)
        figures[f"{prefix}seconds"] = ours
        figures[f"{prefix}videos_per_hour"] = 3600 * len(clips) / ours
        figures[f"{prefix}tokens_per_second"] = tokens / ours
    if "d" in options.only:
        figures |= {"matmul_gflops": machine.flops / 1e9, "bandwidth_gb_s": machine.bytes / 1e9}


def _profile(subject: Subject, machine: Machine, costs: dict[str, Cost]) -> list[dict[str, Any]]:
    """Where saccade's time goes: the quickest of as many runs as were timed, phases kept apart."""
    runs = [
        run(subject.model, subject.settings, subject.clips, subject.in_flight, settle=settled)
        for _ in subject.whole
    ]
    best = min(runs, key=lambda one: one.seconds)
    rows = []
    for name in PHASES:
        cost, seconds, least = costs[name], best.clock.seconds[name], machine.seconds(costs[name])
        rows.append(
            {
                "phase": name,
                "seconds": seconds,
                "share": seconds / best.seconds,
                "floor_s": least,
                "times_floor": seconds / least,
                "lost_share": (seconds - least) / best.seconds,
                "gflop_s": cost.flops / 1e9 / seconds,
                "gb_s": cost.bytes / 1e9 / seconds,
                "gflop": cost.flops / 1e9,
                "gb": cost.bytes / 1e9,
                "host_s": best.clock.host[name],
            }
        )
    rows.append({"phase": "host", "seconds": best.loop, "share": best.loop / best.seconds})
    _log_table(rows)
    return rows


def _sweep(
    vlm: VLM, machine: Machine, options: Options, figures: dict[str, float]
) -> list[dict[str, Any]]:
    """Throughput over videos in flight and over N, the other at its default; twice, warm."""
    from experiments.viewer import Viewer

    rows, cost_of = [], {}
    for name, values in SWEEPS.items():
        for value in values:
            changed = {"videos": value} if name == "in_flight" else {"hypotheses": value}
            one = replace(options, in_flight=0, **changed)
            clips = make_clips(vlm.processor, one.settings, one.videos, one.side)
            viewer = Viewer(vlm, batch=one.videos)
            runs = [run(viewer, one.settings, clips) for _ in range(1 + min(2, options.repeats))]
            seconds = min(each.seconds for each in runs[1:])
            least = sum(map(machine.seconds, floors(vlm, one.settings, clips, 0).values()))
            rows.append(
                {
                    "in_flight": one.videos,
                    "hypotheses": one.hypotheses,
                    "seconds": seconds,
                    "videos_per_hour": 3600 * one.videos / seconds,
                    "times_floor": seconds / least,
                }
            )
            if name == "hypotheses":
                cost_of[value] = seconds
    few, many = min(cost_of), max(cost_of)
    slope = (cost_of[many] - cost_of[few]) / (many - few)
    near = min(cost_of, key=lambda n: abs(n - options.hypotheses))
    figures["added_hypothesis_share"] = slope / cost_of[near]
    _log_table(rows)
    return rows


def _log_table(rows: Sequence[dict[str, Any]]) -> None:
    names = list(rows[0])
    log.info("%s", " ".join(f"{name:>15}" for name in names))
    for row in rows:
        cells = (row.get(name, "") for name in names)
        shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        log.info("%s", " ".join(f"{cell:>15}" for cell in shown))


# Measuring ------------------------------------------------------------------------------------


@dataclass
class Machine:
    """The best rates seen of it: FLOPs and bytes a second."""

    dtype: str
    flops: float = 0.0
    bytes: float = 0.0

    def measure(self) -> None:
        self.flops = max(self.flops, matmul_rate(self.dtype))
        self.bytes = max(self.bytes, bandwidth(self.dtype))

    def seconds(self, cost: Cost) -> float:
        """FLOPs first, then bytes."""
        return cost.flops / self.flops + cost.bytes / self.bytes

    def overlapped(self, cost: Cost) -> float:
        """FLOPs and bytes at once: the roofline."""
        return max(cost.flops / self.flops, cost.bytes / self.bytes)


class Compilations:
    """How many programs jax has compiled, and the seconds that took, while this is open."""

    def __enter__(self) -> Compilations:
        import jax

        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._told)
        return self

    def __exit__(self, *_: object) -> None:
        import jax

        jax.monitoring.unregister_event_duration_listener(self._told)

    def _told(self, event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
            self.seconds += seconds


class Padding:
    """Share of idle slots in the caches of the states that it is shown."""

    def __init__(self):
        self._idle = self._slots = 0

    def see(self, state: Any) -> None:
        valid = np.asarray(state.cache.valid)
        self._idle, self._slots = self._idle + int((~valid).sum()), self._slots + valid.size

    @property
    def share(self) -> float:
        return self._idle / self._slots


def settled() -> None:
    """Waits for everything that jax has been asked for."""
    import jax

    jax.block_until_ready(jax.live_arrays())
