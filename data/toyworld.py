"""The toy world: clips of moving shapes, drawn from a seed, with the exact truth of every step.

A clip is 64 x 64 pixels and 16 steps long: one to three coloured shapes move over a plain ground,
bounce off the walls, rest, grow or shrink, and in most clips one of them does something odd.
Meanwhile lamps blink, a spark hops about, some shapes flash by a regular beat or move at uneven
speed, and the light flickers: changes as large as those that matter. `data.toypictures` draws a
clip, `data.toyscene` says what is true of it, `data.toywords` puts that into words,
`data.toyquestions` asks about it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, UInt8

from data.toypictures import PART_OFFSET, PART_RADIUS, RADIUS, RGB, render
from data.toyscene import (
    COLOURS,
    EVENTS,
    HIGH,
    LOW,
    MOTIONS,
    SHAPES,
    SIZE,
    WAYS,
    Event,
    Scene,
)
from data.types import Transform

BRIEF = ("vanish", "recolor", "split", "morph")
"""The events that can be undone after a moment."""
SPLITS = ("train", "validation", "test", "novel")
"""`novel` clips each show a combination that the others never do."""
HELD_OUT = frozenset(
    {("red", "cross"), ("blue", "triangle"), ("yellow", "square"), ("purple", "ring")}
)
HELD_OUT_EVENTS = frozenset({("split", "cross"), ("vanish", "triangle"), ("stop", "square")})

_SMALL, _LARGE = 4.0, 10.0  # radii between which a shape grows or shrinks in the course of a clip
_FIRST_EVENT = 5
_LATTICE = np.arange(LOW, HIGH + 1, 4)
_CANDIDATES = 48


@dataclass(frozen=True)
class Level:
    """How hard a clip is: how many shapes, whether things that are no events change as well."""

    objects: tuple[int, ...] = (1, 2, 3)
    distractors: bool = True
    steps: int = 16
    brief: bool = False
    """The event is undone after two or three steps."""


LEVELS = {
    "easy": Level(distractors=False),
    "one": Level((1,)),
    "two": Level((2,)),
    "three": Level((3,)),
    "full": Level(),
    "brief": Level((2, 3), steps=32, brief=True),
}


@dataclass(frozen=True)
class Clip:
    """A scene and its pictures."""

    scene: Scene
    frames: UInt8[np.ndarray, "K height width 3"]


def make(
    index: int,
    *,
    seed: int = 0,
    split: str = "train",
    level: str = "full",
    kinds: tuple[str | None, ...] | None = None,
) -> Clip:
    """Clip `index` of a split: simulated and drawn; a function of its arguments alone.

    `kinds` are the events to choose from, None for a clip without one; as it is, a quarter of the
    clips have none. Clips of two splits never coincide: the split is part of the seed. Raises
    ValueError for a name that is not in SPLITS, LEVELS or EVENTS.
    """
    scene = simulate(index, seed=seed, split=split, level=level, kinds=kinds)
    return Clip(scene, render(scene, _generator(f"pixels of {scene.id}")))


def transformed(clip: Clip, transform: Transform) -> Clip:
    """The clip flipped left to right or reversed in time, with the truth of what it now shows."""
    scene, frames = clip.scene, clip.frames
    if transform == "flip":
        mirror = np.array([-1, 1]), np.array([SIZE, 0])
        changes = {
            "centre": scene.centre * mirror[0] + mirror[1],
            "lamps": scene.lamps * mirror[0] + mirror[1],
            "spark": None if scene.spark is None else scene.spark * mirror[0] + mirror[1],
        }
        mirrored = np.ascontiguousarray(frames[:, :, ::-1])
        return Clip(replace(scene, **changes, transform=transform), mirrored)
    if transform != "reversal":
        raise ValueError(f"transform is {transform!r}; choose from flip, reversal")
    tracks = ("centre", "radius", "colour", "shape", "count", "lit")
    changes = {name: vars(scene)[name][:, ::-1] for name in tracks}
    changes["spark"] = None if scene.spark is None else scene.spark[::-1]
    changes["gain"] = scene.gain[::-1]
    # A change of state shows in two frames, a change of motion in three.
    changes["events"] = tuple(
        Event(
            _BACKWARDS.get(event.kind, event.kind),
            event.object,
            scene.steps - event.step + (event.kind in ("reverse", "stop", "start")),
        )
        for event in reversed(scene.events)
    )
    backwards = np.ascontiguousarray(frames[::-1])
    return Clip(replace(scene, **changes, transform=transform), backwards)


_BACKWARDS = {"vanish": "appear", "appear": "vanish", "stop": "start", "split": "merge"}
_BACKWARDS |= {"start": "stop", "merge": "split"}


# Simulation


def simulate(
    index: int,
    *,
    seed: int = 0,
    split: str = "train",
    level: str = "full",
    kinds: tuple[str | None, ...] | None = None,
) -> Scene:
    """The scene of `make`, without its pictures."""
    for name, value, known in (("split", split, SPLITS), ("level", level, tuple(LEVELS))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(known)}")
    setting = LEVELS[level]
    possible = BRIEF if setting.brief else EVENTS
    if wrong := [kind for kind in kinds or () if kind is not None and kind not in possible]:
        raise ValueError(f"no event {wrong[0]!r}; choose from {', '.join(possible)}")
    rng = _generator(f"{split} {seed} {index}")
    if kinds is None:
        kind = None if rng.random() < 0.25 else str(rng.choice(possible))
    else:
        kind = kinds[rng.integers(len(kinds))]
    cast = _cast(rng, setting, kind, novel=split == "novel")
    placed = None
    while placed is None:
        placed = _placed(rng, cast)
    motions, centre, radius = placed
    n, steps, target, during = cast.n, cast.steps, cast.target, slice(cast.start, cast.end)
    shape = np.repeat(cast.shapes[:n, None], steps, axis=1)
    colour = np.repeat(cast.colours[:n, None], steps, axis=1)
    for i in np.flatnonzero(cast.flashing):
        beat, phase = rng.integers(1, 4), rng.integers(6)
        colour[i, (np.arange(steps) + phase) // beat % 2 == 1] = cast.second[i]
    count = np.ones((n, steps), np.int64)
    events = ()
    if kind is not None:
        events = (Event(kind, target, cast.start),)
        if cast.end < steps:
            events += (Event(_BACKWARDS.get(kind, kind), target, cast.end),)
    if kind in ("vanish", "split"):
        count[target, during] = 0 if kind == "vanish" else 2
    elif kind == "recolor":
        colour[target, during] = cast.colours[n]
    elif kind == "morph":
        shape[target, during] = cast.shapes[n]
    lamps, lit, spark = _distractors(rng, cast, centre, setting)
    # One may be the colour that an object turns: whoever sees the lamps can't rule it out.
    unused = np.setdiff1d(np.arange(len(RGB)), [*cast.colours[:n], *cast.second[cast.flashing]])
    flickers = rng.random() < 0.5
    gain = rng.uniform(0.88, 1.12, steps) if flickers else np.ones(steps)
    return Scene(
        id=f"{level}-{split}-{seed}-{index}",
        split=split,
        level=level,
        centre=centre,
        radius=radius,
        colour=colour,
        shape=shape,
        count=count,
        spread=np.array([int(motion in ("left", "right")) for motion in motions]),
        flashing=cast.flashing,
        lamps=lamps,
        lit=lit,
        spark=spark,
        lights=rng.choice(unused, len(lamps) + 1),
        gain=gain,
        events=events,
    )


def _generator(text: str) -> np.random.Generator:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class _Cast:
    """Who takes part, and what is to happen to whom; start and end are steps of the event."""

    n: int
    steps: int
    kind: str | None
    target: int
    start: int
    end: int
    shapes: Int[np.ndarray, " 4"]  # the first n are the objects'; the next is free for a morph
    colours: Int[np.ndarray, " 6"]  # likewise, and the last two are second colours
    second: Int[np.ndarray, " n"]
    flashing: Bool[np.ndarray, " n"]
    distractors: bool


def _cast(rng: np.random.Generator, level: Level, kind: str | None, *, novel: bool) -> _Cast:
    n = int(rng.choice(level.objects))
    last = level.steps - (4 if level.brief else 1)
    start = int(rng.integers(_FIRST_EVENT, last))
    end = start + int(rng.integers(2, 4)) if level.brief else level.steps
    target = int(rng.integers(n))
    while True:
        flashing = (rng.random(n) < 0.35) & level.distractors & (np.arange(n) < 2)
        flashing[target] &= kind != "recolor"
        shapes, colours = rng.permutation(len(SHAPES)), rng.permutation(len(COLOURS))
        second = np.resize(colours[-2:], n)
        cast = _Cast(n, level.steps, kind, target, start, end, shapes, colours, second, flashing,
                     level.distractors)  # fmt: skip
        if _held_out(cast) == novel:
            return cast


def _held_out(cast: _Cast) -> bool:
    """Whether anything of it is a combination kept for the split `novel`."""
    n, i = cast.n, cast.target
    pairs = [(cast.colours[j], cast.shapes[j]) for j in range(n)]
    pairs += [(cast.second[j], cast.shapes[j]) for j in np.flatnonzero(cast.flashing)]
    if cast.kind == "recolor":
        pairs.append((cast.colours[n], cast.shapes[i]))
    if cast.kind == "morph":
        worn = [cast.colours[i]] + [cast.second[i]] * bool(cast.flashing[i])
        pairs += [(colour, cast.shapes[n]) for colour in worn]
    things = {(COLOURS[colour], SHAPES[shape]) for colour, shape in pairs}
    return bool(things & HELD_OUT) or (cast.kind, SHAPES[cast.shapes[i]]) in HELD_OUT_EVENTS


def _placed(rng: np.random.Generator, cast: _Cast):
    """Motions, centres [n, K, 2] and radii [n, K] without a collision; None if none was found."""
    n, steps, i = cast.n, cast.steps, cast.target
    motions = [str(name) for name in rng.choice(MOTIONS, n, p=_MOTION_SHARES)]
    if cast.kind in ("reverse", "stop", "split") and motions[i] not in WAYS:
        still = cast.kind == "split" and rng.random() < 0.2
        motions[i] = "still" if still else str(rng.choice(tuple(WAYS)))
    ways = np.array([WAYS.get(motion, (0, 0)) for motion in motions])
    moves = ways.any(-1)
    stride = _strides(rng, cast, moves)
    # Coordinates along the way and across it, of all candidates at once; x and y for who rests.
    along, across = (rng.choice(_LATTICE, (_CANDIDATES, n)) for _ in range(2))
    wide = np.array([motion in ("grow", "shrink") for motion in motions])
    wide[i] |= cast.kind == "split"
    across = np.where(wide, across.clip(LOW + 4, HIGH - 4), across)
    along = np.where(wide & ~moves, along.clip(LOW + 4, HIGH - 4), along)
    # Slow movers that can cross without a bounce start where they will.
    heading = np.tile(ways.sum(-1), (_CANDIDATES, 1))
    reach = stride.sum(-1)
    free = moves & (reach <= HIGH - LOW)
    first = LOW + rng.random((_CANDIDATES, n)) * (HIGH - LOW - reach).clip(0)
    first = np.where(heading > 0, first, LOW + HIGH - first).astype(np.int64)
    along = np.where(free, first, along)
    paths, good = _walk(rng, cast, along, across, heading, stride)
    vertical = ways[:, 1] != 0
    paths = np.where(vertical[:, None, None], paths[..., ::-1], paths)
    radius = np.full((n, steps), RADIUS)
    change = (_LARGE - _SMALL) * np.arange(steps) / (steps - 1)
    for j, motion in enumerate(motions):
        if motion in ("grow", "shrink"):
            radius[j] = _SMALL + change if motion == "grow" else _LARGE - change
    reach = radius.copy()
    if cast.kind == "split":
        reach[i, cast.start : cast.end] = PART_OFFSET + PART_RADIUS
    for j in range(n):
        for k in range(j):
            gap = abs(paths[:, j] - paths[:, k]).max(-1) - (reach[j] + reach[k] + 1)
            good &= (gap >= 0).all(-1)
    if not good.any():
        return None
    return motions, paths[np.argmax(good)], radius


_MOTION_SHARES = (0.17, 0.17, 0.17, 0.17, 0.14, 0.09, 0.09)


def _strides(
    rng: np.random.Generator, cast: _Cast, moves: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, "n K"]:
    """Pixels that each object goes at each step: 4 or 2, or about as many where irregular."""
    n, steps = cast.n, cast.steps
    slow = rng.random(n) < 0.5
    stride = np.tile(np.where(slow, 2, 4)[:, None], (1, steps))
    uneven = stride + rng.integers(-1, 2, (n, steps)) * np.where(slow, 1, 2)[:, None]
    irregular = (rng.random(n) < 0.5) & cast.distractors
    stride = np.where(irregular[:, None], uneven, stride) * moves[:, None]
    stride[:, 0] = 0
    return stride


def _walk(
    rng: np.random.Generator,
    cast: _Cast,
    along: Int[np.ndarray, "M n"],
    across: Int[np.ndarray, "M n"],
    heading: Int[np.ndarray, "M n"],
    stride: Int[np.ndarray, "n K"],
) -> tuple[Int[np.ndarray, "M n K 2"], Bool[np.ndarray, " M"]]:
    """Every candidate's way, bounces and the event included; and which can be told apart.

    A turn or a stop next to a wall would look like a bounce, a short jump like a step.
    """
    i, paths = cast.target, []
    good = np.ones(len(along), bool)
    for t in range(cast.steps):
        turns = np.where(heading > 0, along >= HIGH, along <= LOW)
        heading = np.where(turns, -heading, heading)
        pace = stride[:, t].copy()
        if t == cast.start and cast.kind in ("reverse", "stop", "jump"):
            inside = (along[:, i] >= LOW + 8) & (along[:, i] <= HIGH - 8)
            good &= inside | (heading[:, i] == 0)
            if cast.kind == "jump":
                before = along[:, i], across[:, i]
                along, across = along.copy(), across.copy()
                along[:, i], across[:, i] = rng.choice(_LATTICE[1:-1], (2, len(along)))
                apart = [abs(along[:, i] - before[0]), abs(across[:, i] - before[1])]
                good &= np.max(apart, 0) >= 16
                pace[i] = 0
            else:
                heading[:, i] *= -1 if cast.kind == "reverse" else 0
        along = (along + heading * pace).clip(LOW, HIGH)
        paths.append(np.stack([along, across], -1))
    return np.stack(paths, 2), good


def _distractors(
    rng: np.random.Generator, cast: _Cast, centre: Int[np.ndarray, "n K 2"], level: Level
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Lamps [lamps, 2], when they are lit [lamps, K], and the places of the spark [K, 2] or None.

    They lie behind the objects; each is put where it is covered least.
    """
    steps = cast.steps
    number = int(rng.choice(3, p=(0.2, 0.5, 0.3))) if level.distractors else 0
    sparkles = level.distractors and rng.random() < 0.6
    if level.distractors and not (number or sparkles or cast.flashing.any()):
        number = 1
    lamps = np.zeros((number, 2), np.int64)
    for j in range(number):
        places = rng.choice(_LATTICE, (12, 2))
        others = np.concatenate([centre.reshape(-1, 2), np.repeat(lamps[:j], steps, 0)])
        near = abs(places[:, None] - others).max(-1) < RADIUS + 7
        lamps[j] = places[np.argmin(near.sum(-1))]
    lit = (rng.random((number, steps)) < 0.35).cumsum(-1) % 2 == 1
    if not sparkles:
        return lamps, lit, None
    spark, t = np.zeros((steps, 2), np.int64), 0
    while t < steps:
        places = rng.choice(_LATTICE, (12, 2))
        others = np.concatenate([centre[:, t], lamps])
        spark[t:] = places[np.argmax(abs(places[:, None] - others).max(-1).min(-1) >= 13)]
        t += int(rng.integers(1, 4))
    return lamps, lit, spark
