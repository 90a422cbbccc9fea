"""What can be said about a clip of the toy world, in a grammar of about a hundred words.

Every sentence is made from the tracks (`data.toyscene.actions`), so a flipped or reversed clip gets
sentences that are true of it. An object is called by the name that fits just before the step: "the
red ring turns blue", from then on "the blue ring".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.toyscene import COLOURS, SHAPES, VERBS, Scene, actions, expected, motions, verb
from data.toyworld import HELD_OUT

NUMBERS = ("zero", "one", "two", "three", "four")
PREDICATES = (
    *("moves left", "moves right", "moves up", "moves down", "stays still", "grows", "shrinks"),
    *("bounces", "vanishes", "jumps", "turns back", "stops", "splits"),
    *(f"turns {colour}" for colour in COLOURS),
    *(f"becomes a {shape}" for shape in SHAPES),
)
"""Everything that an object can be said to do in a clip that runs forward."""
BACKWARD = ("appears", "starts to move", "merge")
"""What it does besides in a reversed clip, and at the end of a brief event."""
ODD = {*VERBS.values(), "appears", "starts", "merge"}
"""Verbs of what is odd."""


@dataclass(frozen=True)
class Statement:
    """A sentence about a step, whether it is true, and the word on which that depends."""

    text: str
    true: bool
    predicate: str


# Names and clauses


def name(scene: Scene, i: int, step: int) -> str:
    """What an object is called at a step: "red ring", "flashing ring", "two red rings"."""
    shape = SHAPES[scene.shape[i, step]]
    colour = "flashing" if scene.flashing[i] else COLOURS[scene.colour[i, step]]
    return f"two {colour} {_many(shape)}" if scene.count[i, step] == 2 else f"{colour} {shape}"


def lasting_name(scene: Scene, i: int) -> str:
    """A name that fits at every step: a colour or shape that the object changes is left out."""
    colours, shapes = set(scene.colour[i].tolist()), set(scene.shape[i].tolist())
    shape = SHAPES[shapes.pop()] if len(shapes) == 1 else "object"
    if scene.flashing[i]:
        return f"flashing {shape}"
    return f"{COLOURS[colours.pop()]} {shape}" if len(colours) == 1 else shape


def clause(scene: Scene, i: int, step: int, phrase: str) -> str:
    """One object doing something from step - 1 to `step`: "the red ring moves left"."""
    before = step - 1 if scene.count[i, step - 1] else step
    if scene.count[i, before] == 2:
        first, *rest = phrase.split(" ")
        phrase = " ".join([first.removesuffix("s"), *rest])
    return f"the {name(scene, i, before)} {phrase}"


def clauses(scene: Scene, step: int) -> list[str]:
    """What every object in view does from step - 1 to `step` >= 1, what is odd first.

    Otherwise they follow in the order of SHAPES.
    """
    return _ordered(scene, step, [row[step] for row in actions(scene)])


def description(scene: Scene, step: int) -> str:
    """All that happens from step - 1 to `step`: "the red ring vanishes, the blue cross grows"."""
    return sentence(scene, step, [row[step] for row in actions(scene)])


def sentence(scene: Scene, step: int, phrases: Sequence[str]) -> str:
    """What `description` would be if every object i did phrases[i], "" for those left out."""
    return ", ".join(_ordered(scene, step, phrases)) or "nothing is there"


def futures(scene: Scene, step: int, rng: np.random.Generator, number: int = 8) -> list[str]:
    """Statements of what may happen at `step`, judged by the steps before it, the likely first.

    One for each object as it is expected, then odd things that could befall one of them, drawn at
    random: at most `number`, all different.
    """
    likely = expected(scene, step)
    sentences = _ordered(scene, step, likely)
    visible = [i for i, phrase in enumerate(likely) if phrase and scene.count[i, step - 1] == 1]
    possible = [(i, phrase) for i in visible for phrase in oddities(scene, i, step, likely[i])]
    for j in rng.permutation(len(possible)):
        sentences.append(clause(scene, possible[j][0], step, possible[j][1]))
    return sentences[:number]


def caption(scene: Scene) -> str:
    """The clip in a few sentences: how everything moves at first, then what is odd, in order."""
    did = actions(scene)
    sentences = [_sentence(", ".join(clauses(scene, 1)) or "nothing is there")]
    odd = [(t, i) for t in range(2, scene.steps) for i, row in enumerate(did) if is_odd(row[t])]
    for t, i in odd:
        sentences.append(_sentence(f"then {clause(scene, i, t, did[i][t])}"))
    return " ".join(sentences if odd else [*sentences, "Nothing odd happens."])


def _ordered(scene: Scene, step: int, phrases: Sequence[str]) -> list[str]:
    shown = [i for i, phrase in enumerate(phrases) if phrase]
    shown.sort(key=lambda i: (not is_odd(phrases[i]), scene.shape[i, step - 1]))
    return [clause(scene, i, step, phrases[i]) for i in shown]


def oddities(scene: Scene, i: int, step: int, likely: str) -> Iterator[str]:
    """What could befall object i at `step` without a sign of it before, as phrases."""
    yield from ("vanishes", "jumps")
    if likely not in ("grows", "shrinks"):
        yield "splits"
    if likely.startswith("moves"):
        yield from ("turns back", "stops")
    colours, shapes = scene.colour[:, step - 1], scene.shape[:, step - 1]
    if not scene.flashing[i]:
        yield from (f"turns {word}" for j, word in enumerate(COLOURS) if j not in colours)
    yield from (f"becomes a {word}" for j, word in enumerate(SHAPES) if j not in shapes)


def is_odd(phrase: str) -> bool:
    """Whether what an object does is none of the motions that go on, and no bounce."""
    return verb(phrase) in ODD


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _many(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


# Statements about a step


def statements(scene: Scene, step: int) -> list[Statement]:
    """Everything that could be said about `step` >= 1 and that is surely true or surely false.

    Every predicate of every object in view, two objects that are not there, and who is in the
    picture. What can be argued about is left out: the way of who bounces, jumps or turns back, the
    motion beside an odd thing, still against stopped.
    """
    moving, doing = motions(scene), actions(scene)
    found: list[Statement] = []
    for i in range(scene.objects):
        if not scene.count[i, step - 1]:
            continue
        for predicate in PREDICATES:
            truth = _truth(scene, i, step, predicate, moving[i], doing[i])
            if truth is not None:
                text = clause(scene, i, step, predicate)
                found.append(Statement(text, truth, predicate))
    rng = np.random.default_rng([step, *scene.id.encode()])
    for _ in range(2):
        colour, shape = _absent(rng, scene)
        phrase = str(rng.choice(PREDICATES[:9]))
        found.append(Statement(f"the {colour} {shape} {phrase}", False, "absent"))
        found.append(Statement(f"there is {_article(colour)} {shape}", False, "there is"))
    for i in range(scene.objects):
        steady = scene.colour[i, step] == scene.colour[i, step - 1]
        if (scene.count[i, step - 1 : step + 1] == 1).all() and steady and not scene.flashing[i]:
            text = f"there is {_article(name(scene, i, step))}"
            if scene.shape[i, step] == scene.shape[i, step - 1]:
                found.append(Statement(text, True, "there is"))
    if (scene.count[:, step] == scene.count[:, step - 1]).all():
        there = int(scene.count[:, step].sum())
        for number in range(1, 5):
            text = "there is one object" if number == 1 else f"there are {NUMBERS[number]} objects"
            found.append(Statement(text, number == there, "count"))
    return found


def _truth(
    scene: Scene, i: int, step: int, predicate: str, moving: Sequence[str], doing: Sequence[str]
) -> bool | None:
    """Whether an object does something; None where one may say yes or no."""
    did, motion = doing[step], moving[step]
    if did == predicate:
        return True
    if did in BACKWARD or predicate == motion:
        return None
    if step == 1 and predicate in ("bounces", "turns back", "stops"):
        return None  # who saw the steps before could tell
    if verb(predicate) == "turns":
        worn = scene.colour[i, step - 1 : step + 1]
        return None if scene.flashing[i] or COLOURS.index(predicate[6:]) in worn else False
    if predicate.startswith("becomes"):
        return None if predicate.endswith(SHAPES[scene.shape[i, step]]) else False
    if did == "jumps" and predicate.startswith(("moves", "turns back", "bounces", "vanishes")):
        return None
    if predicate == "stays still" and motion in ("grows", "shrinks"):
        return None
    if predicate == "stops" and did == "vanishes":
        return None
    if motion in ("bounces", "turns back"):
        if predicate in ("bounces", "turns back"):
            return None
        delta = scene.centre[i, step] - scene.centre[i, step - 1]
        words = ("left", "right") if delta[0] else ("up", "down")
        if predicate == f"moves {words[int(delta.sum() > 0)]}":
            return None
    just_stopped = "stops" in (did, doing[step - 1])
    if just_stopped and predicate in ("stays still", "stops"):
        return None
    if scene.count[i, step - 1] == 2 and predicate in ("splits", "vanishes", "jumps"):
        return None
    return False


def _absent(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A colour and a shape that no object of the clip joins, and one of them is shown."""
    while True:
        colour, shape = int(rng.integers(len(COLOURS))), int(rng.integers(len(SHAPES)))
        words = COLOURS[colour], SHAPES[shape]
        both = ((scene.colour == colour) & (scene.shape == shape)).any()
        near = (scene.colour == colour).any() or (scene.shape == shape).any()
        if not both and near and (words not in HELD_OUT or scene.split == "novel"):
            return words
