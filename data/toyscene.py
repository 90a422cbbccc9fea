"""A scene of the toy world: the tracks of its objects, and what they show to be true.

Truth is not what the simulator meant but what the tracks show, so it holds for a flipped or
reversed scene as well.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from data.types import Transform

SIZE, FPS = 64, 4
CELL = 16
"""Pixels along the side of a cell, which has one set of dense labels."""
LOW, HIGH = 8, SIZE - 8
"""Walls: the least and the greatest coordinate of a centre that moves."""
SHAPES = ("ring", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*WAYS, "still", "grow", "shrink")
VERBS = {
    "vanish": "vanishes", "jump": "jumps", "reverse": "turns back", "recolor": "turns",
    "stop": "stops", "split": "splits", "morph": "becomes",
}  # fmt: skip
"""How `actions` tells of each event."""
EVENTS = tuple(VERBS)


@dataclass(frozen=True)
class Event:
    """What is odd: to which object it happens, and the first step whose frame shows it.

    Kinds are those of `EVENTS`, and what becomes of them when they are undone or run backwards:
    appear, merge, start.
    """

    kind: str
    object: int
    step: int


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that is true of a clip; n objects, K steps, pixels, x to the right, y down.

    `colour` and `shape` are places in COLOURS and SHAPES; `count` is 0 while an object is away and
    2 after it has split. Within a clip no two objects share a shape or a colour at any step.
    """

    id: str
    split: str
    level: str
    centre: Int[np.ndarray, "n K 2"]
    radius: Float[np.ndarray, "n K"]
    colour: Int[np.ndarray, "n K"]
    shape: Int[np.ndarray, "n K"]
    count: Int[np.ndarray, "n K"]
    spread: Int[np.ndarray, " n"]
    """Axis, 0 for x, along which the two parts of a split object lie apart."""
    flashing: Bool[np.ndarray, " n"]
    """Changes its colour by a regular beat, as its white rim tells: expected, no event."""
    lamps: Int[np.ndarray, "lamps 2"]
    lit: Bool[np.ndarray, "lamps K"]
    """Lamps are discs that blink at random, in colours that no object has at first."""
    spark: Int[np.ndarray, "K 2"] | None
    """A diamond that hops about, or None."""
    lights: Int[np.ndarray, " lights"]
    """Colours of the lamps, then of the spark; len(COLOURS) is white."""
    gain: Float[np.ndarray, " K"]
    """Brightness of the whole picture, 1 where it does not flicker."""
    events: tuple[Event, ...]
    transform: Transform | None = None

    @property
    def steps(self) -> int:
        return self.centre.shape[1]

    @property
    def objects(self) -> int:
        return self.centre.shape[0]


def verb(phrase: str) -> str:
    """What tells one kind of action from another: the first word, or `turns back`."""
    return phrase if phrase == "turns back" else phrase.split(" ")[0]


@functools.lru_cache(maxsize=64)  # a scene is asked again for every step
def motions(scene: Scene) -> tuple[tuple[str, ...], ...]:
    """How every object moves from step t - 1 to t: [n][K] phrases, "" at step 0 and while away.

    moves left, right, up, down | bounces | turns back | stops | starts to move | jumps | stays
    still | grows | shrinks. Where nothing is known of the way before, an object just moves.
    """
    return tuple(tuple(_motion(scene, i)) for i in range(scene.objects))


def _motion(scene: Scene, i: int) -> list[str]:
    phrases, before = [""], None  # the way of the last step; None where it has not been seen
    for t in range(1, scene.steps):
        if not (scene.count[i, t - 1] and scene.count[i, t]):
            phrases.append("")
            before = None
            continue
        last = scene.centre[i, t - 1]
        delta = scene.centre[i, t] - last
        way = (int(np.sign(delta[0])), int(np.sign(delta[1])))
        if abs(delta).max() > 8:
            phrases.append("jumps")
            continue  # whoever jumps keeps its way
        if way == (0, 0):
            growth = scene.radius[i, t] - scene.radius[i, t - 1]
            still = "stays still" if before in (None, (0, 0)) else "stops"
            phrases.append("grows" if growth > 0 else "shrinks" if growth < 0 else still)
        elif before == (0, 0):
            phrases.append("starts to move")
        elif before == (-way[0], -way[1]):
            along = last[0] if way[0] else last[1]
            phrases.append("bounces" if along in (LOW, HIGH) else "turns back")
        else:
            phrases.append(f"moves {_WAY_NAMES[way]}")
        before = way
    return phrases


_WAY_NAMES = {way: name for name, way in WAYS.items()}


@functools.lru_cache(maxsize=64)
def actions(scene: Scene) -> tuple[tuple[str, ...], ...]:
    """What every object does from step t - 1 to t, in one phrase: [n][K], "" at step 0.

    The motion, unless something odd happens: vanishes | appears | splits | merge | turns COLOUR |
    becomes a SHAPE. "" while an object is away.
    """
    phrases = [list(row) for row in motions(scene)]
    for i, row in enumerate(phrases):
        for t in range(1, scene.steps):
            before, now = scene.count[i, t - 1], scene.count[i, t]
            if before != now:
                if not before:
                    row[t] = "appears"
                else:
                    row[t] = "vanishes" if not now else "splits" if now > before else "merge"
            elif not now:
                continue
            elif scene.shape[i, t] != scene.shape[i, t - 1]:
                row[t] = f"becomes a {SHAPES[scene.shape[i, t]]}"
            elif scene.colour[i, t] != scene.colour[i, t - 1] and not scene.flashing[i]:
                row[t] = f"turns {COLOURS[scene.colour[i, t]]}"
    return tuple(map(tuple, phrases))


def expected(scene: Scene, step: int) -> list[str]:
    """What every object does at `step` if nothing odd happens: [n] phrases, "" while away.

    It follows from the steps before. At step 1, where no way can be known, and right after an
    object has appeared, it is what happens.
    """
    shown = motions(scene)
    phrases = []
    for i in range(scene.objects):
        if not scene.count[i, step - 1]:
            phrases.append("")
            continue
        way, start = None, step
        while start > 1 and way is None:  # jumps tell no way
            start -= 1
            if not (scene.count[i, start - 1] and scene.count[i, start]):
                break
            if shown[i][start] != "jumps":
                delta = scene.centre[i, start] - scene.centre[i, start - 1]
                way = (int(np.sign(delta[0])), int(np.sign(delta[1])))
        if way is None:
            phrases.append(shown[i][step])
        elif way == (0, 0):
            growth = scene.radius[i, start] - scene.radius[i, start - 1]
            phrases.append("grows" if growth > 0 else "shrinks" if growth < 0 else "stays still")
        else:
            along = scene.centre[i, step - 1] @ np.abs(way)
            bounces = along == (HIGH if sum(way) > 0 else LOW)
            phrases.append("bounces" if bounces else f"moves {_WAY_NAMES[way]}")
    return phrases


def cell_labels(scene: Scene, cell: int = CELL) -> dict[str, Int[np.ndarray, "K side side"]]:
    """Dense labels: what lies in each square cell of `cell` pixels, by the centres of objects.

    colour and shape: 0 none, else place in COLOURS or SHAPES plus one; motion: 0 none, else place
    in MOTIONS plus one, after the way from t - 1 to t; change: 0 none, else place in EVENTS plus
    one for vanish, jump, recolor, split and morph between t - 1 and t, where the object is, or
    would be; x and y: 0 none, else pixels from the cell's corner to the centre plus one; column and
    row: 0 none, else the cell's own plus one. int64 [K, side, side].
    """
    side = SIZE // cell
    labels = {
        name: np.zeros((scene.steps, side, side), np.int64)
        for name in ("colour", "shape", "motion", "change", "x", "y", "column", "row")
    }
    done = actions(scene)
    for i in range(scene.objects):
        for t in range(scene.steps):
            x, y = scene.centre[i, t] // cell
            if scene.count[i, t]:
                labels["colour"][t, y, x] = scene.colour[i, t] + 1
                labels["shape"][t, y, x] = scene.shape[i, t] + 1
                labels["x"][t, y, x], labels["y"][t, y, x] = scene.centre[i, t] % cell + 1
                labels["column"][t, y, x], labels["row"][t, y, x] = x + 1, y + 1
            if t == 0:
                continue
            labels["change"][t, y, x] = _CHANGES.get(verb(done[i][t]), 0)
            if scene.count[i, t - 1] and scene.count[i, t]:
                labels["motion"][t, y, x] = 1 + MOTIONS.index(_movement(scene, i, t))
    return labels


_CHANGES = {
    VERBS[kind]: EVENTS.index(kind) + 1 for kind in ("vanish", "jump", "recolor", "split", "morph")
}


def _movement(scene: Scene, i: int, t: int) -> str:
    delta = scene.centre[i, t] - scene.centre[i, t - 1]
    growth = scene.radius[i, t] - scene.radius[i, t - 1]
    if abs(delta).max() > 8 or not delta.any():
        return "grow" if growth > 0 else "shrink" if growth < 0 else "still"
    return _WAY_NAMES[(int(np.sign(delta[0])), int(np.sign(delta[1])))]
