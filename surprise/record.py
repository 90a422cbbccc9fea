"""What is kept of a scored video: one `Trace`, one line of trace.jsonl (schema 1)."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from surprise.frames import Selection, select_frames
from surprise.settings import Settings

SCHEMA = 1
_LARGEST = 2**32 - 1
"""Of the whole numbers in a trace: beyond any frame, token or pixel count, and any seed."""


class TraceError(ValueError):
    """A line that is no trace; the message is one line and names the field."""


@dataclass(frozen=True)
class Step:
    """The beliefs about one frame. Lists run over the valid hypotheses only, at most N of them.

    `prior` and `posterior` have one entry more where settings.other adds "something else". Step 0
    observes nothing: its lists are empty and its numbers 0.
    """

    frame: int
    seconds: float
    window: tuple[int, ...] = ()
    """Frame numbers, as in `observation`."""
    observation: tuple[int, ...] = ()
    history: str = ""
    """What had happened, without the prompt around it."""
    hypotheses: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    """Tokens of each hypothesis: with them, a mean NLL gives the sum and the other way round."""
    prior_nll: tuple[float, ...] = ()
    """Nats, as settings.reduction reduced it; `posterior_nll` likewise."""
    posterior_nll: tuple[float, ...] | None = None
    probe_yes: tuple[float, ...] | None = None
    """P(yes), where settings.posterior is `probe`."""
    prior: tuple[float, ...] = ()
    posterior: tuple[float, ...] = ()
    kl: float = 0.0
    js: float = 0.0
    evidence: float = 0.0
    caption: str = ""
    score: float = 0.0
    cut_off: tuple[bool, ...] = ()
    """Hypotheses that the token limit ended."""
    duplicates: int = 0
    """Samples that repeated another; `empty`: those without a word."""
    empty: int = 0

    @property
    def shift(self) -> tuple[float, ...]:
        """How far the observation moved each hypothesis: posterior - prior."""
        return tuple(b - a for a, b in zip(self.prior, self.posterior, strict=True))


@dataclass(frozen=True)
class Trace:
    """The surprise of one video, and the frames chosen by it."""

    video: str
    id: str
    fps: float
    frame_count: int
    seconds: float
    width: int
    height: int
    model: str
    settings: Mapping[str, Any]
    """`Settings.to_dict()` and whatever else shaped the numbers (frame size, dtype, versions)."""
    steps: tuple[Step, ...]
    selected: Selection | None = None

    @property
    def scores(self) -> Float[np.ndarray, " K"]:
        return np.array([step.score for step in self.steps], np.float64)

    @property
    def frames(self) -> Int[np.ndarray, " K"]:
        return np.array([step.frame for step in self.steps], np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The object of design's trace.jsonl; raises ValueError for a number that isn't finite."""
        record = {"schema": SCHEMA, **dataclasses.asdict(self)}
        for step in record["steps"]:
            for name in ("posterior_nll", "probe_yes"):
                if step[name] is None:
                    del step[name]
        # Through JSON text and back: tuples become lists, and no NaN gets past.
        return json.loads(json.dumps(record, allow_nan=False))

    def to_line(self) -> str:
        """`to_dict` as one line of ASCII JSON without its line end; floats keep full precision."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, record: Any) -> Trace:
        """Reads `to_dict`'s object; TraceError for anything else. Unknown fields are left out."""
        if not isinstance(record, Mapping):
            raise TraceError("not a JSON object")
        if record.get("schema") != SCHEMA:
            raise TraceError(f"schema is {record.get('schema')!r}; this reads schema {SCHEMA}")
        steps = _list(lambda value, name: _fields(Step, _STEP, value, name))
        trace = _fields(cls, _TRACE | {"steps": steps}, record, "")
        if not trace.steps:
            raise TraceError("steps is empty")
        for i, step in enumerate(trace.steps):
            count = len(step.hypotheses)
            if not count == len(step.prior_nll) <= len(step.prior) == len(step.posterior):
                raise TraceError(f"steps[{i}]: hypotheses and their numbers differ in length")
        return trace

    @classmethod
    def from_line(cls, line: str) -> Trace:
        """Reads one line of a trace.jsonl; raises TraceError."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"not JSON: {error}") from None
        return cls.from_dict(record)


def select(trace: Trace, settings: Settings) -> Selection:
    """The frames that `settings` chooses from a trace, with their times.

    The draws are seeded by (settings.seed, *bytes of the id): no two videos share their luck.
    Times are read off the line through the steps' true times, which also serves variable frame
    rates; a caller with the decoder at hand can replace them by the exact ones. Raises ValueError.
    """
    chosen = select_frames(
        trace.scores,
        budget=settings.budget,
        frame_count=trace.frame_count,
        frames=trace.frames,
        method=settings.method,
        tau=settings.frames_tau,
        seed=(settings.seed, *trace.id.encode("utf-8", "surrogatepass")),
        refill=settings.refill,
        segments=settings.segments,
        gumbel=settings.gumbel,
    )
    if len(trace.steps) > 1:
        seconds = np.interp(chosen, trace.frames, [step.seconds for step in trace.steps])
    else:
        seconds = chosen / trace.fps
    return Selection(
        method=settings.method,
        budget=settings.budget,
        tau=settings.frames_tau,
        seed=settings.seed,
        refill=settings.refill,
        segments=settings.segments,
        gumbel=settings.gumbel,
        frames=tuple(chosen.tolist()),
        seconds=tuple(seconds.tolist()),
    )


# A trace file may come from anywhere: each field is read by a function that lets one type through.
_Reader = Callable[[Any, str], Any]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TraceError(f"{name} must be text")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TraceError(f"{name} must be true or false")
    return value


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise TraceError(f"{name} must be a whole number from 0 to {_LARGEST}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"{name} must be a number")
    if not abs(value) <= sys.float_info.max:  # NaN compares false; a huge int has no float
        raise TraceError(f"{name} must be a finite number")
    return float(value)


def _rate(value: Any, name: str) -> float:
    if _number(value, name) <= 0:
        raise TraceError(f"{name} must be positive")
    return float(value)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TraceError(f"{name} must be an object")
    return dict(value)


def _list(reader: _Reader) -> _Reader:
    def read(value: Any, name: str) -> tuple:
        if not isinstance(value, list | tuple):
            raise TraceError(f"{name} must be a list")
        return tuple(reader(entry, f"{name}[{i}]") for i, entry in enumerate(value))

    return read


def _selection(value: Any, name: str) -> Selection | None:
    return None if value is None else _fields(Selection, _SELECTED, value, name)


def _fields(kind: type, readers: Mapping[str, _Reader], value: Any, name: str) -> Any:
    """Makes a `kind` of an object: its fields through their readers, all but _OPTIONAL there."""
    value = _mapping(value, name)
    prefix = f"{name}." if name else ""
    if missing := set(readers) - set(value) - _OPTIONAL:
        raise TraceError(f"{prefix}{min(missing)} is missing")
    return kind(**{key: readers[key](value[key], prefix + key) for key in readers if key in value})


# Beyond the fields that schema 1 promises, and those of which a trace has one or the other.
_OPTIONAL = frozenset(
    {"observation", "tokens", "cut_off", "duplicates", "empty", "refill", "segments", "gumbel"}
    | {"posterior_nll", "probe_yes", "selected"}
)
_STEP: dict[str, _Reader] = {
    "frame": _whole,
    "seconds": _number,
    "window": _list(_whole),
    "observation": _list(_whole),
    "history": _text,
    "hypotheses": _list(_text),
    "tokens": _list(_whole),
    "prior_nll": _list(_number),
    "posterior_nll": _list(_number),
    "probe_yes": _list(_number),
    "prior": _list(_number),
    "posterior": _list(_number),
    "kl": _number,
    "js": _number,
    "evidence": _number,
    "caption": _text,
    "score": _number,
    "cut_off": _list(_flag),
    "duplicates": _whole,
    "empty": _whole,
}
_SELECTED: dict[str, _Reader] = {
    "method": _text,
    "budget": _whole,
    "tau": _number,
    "seed": _whole,
    "refill": _flag,
    "segments": _text,
    "gumbel": _flag,
    "frames": _list(_whole),
    "seconds": _list(_number),
}
_TRACE: dict[str, _Reader] = {
    "video": _text,
    "id": _text,
    "fps": _rate,
    "frame_count": _whole,
    "seconds": _number,
    "width": _whole,
    "height": _whole,
    "model": _text,
    "settings": _mapping,
    "selected": _selection,
}
