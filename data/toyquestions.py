"""Questions about clips of the toy world, with the one right answer.

An object is named by what it keeps throughout the clip, so that one text serves a clip and its
transform. The `route` is exact: the answers of a pair differ if and only if it says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.annotations import LETTERS
from data.toyscene import COLOURS, FPS, SHAPES, SIZE, Scene, actions, motions, verb
from data.toywords import NUMBERS, caption, is_odd, lasting_name, name
from data.toyworld import Clip, transformed
from data.transforms import NULL_OPTION
from data.types import Example, Transform

TASKS = (
    *("direction", "left_right", "up_down", "size", "side", "first", "end_count"),
    *("what", "which", "new_colour", "new_shape", "colour", "shape", "count"),
    *("brief_colour", "brief_shape", "brief_vanish", "brief_split"),
)
"""Every kind of question; those that begin with `brief_` need the frames of a passing event."""
_CHANGED_BY = {"spatial": ("flip",), "temporal": ("reversal",), "either": ("flip", "reversal")}
_WHAT = {
    "vanishes": "something vanishes",
    "appears": "something appears",
    "jumps": "something jumps",
    "turns back": "something turns back",
    "stops": "something stops",
    "starts": "something starts to move",
    "splits": "something splits",
    "merge": "two things merge",
    "turns": "something changes colour",
    "becomes": "something changes shape",
}
_NOTHING = "nothing odd"


@dataclass(frozen=True)
class Asked:
    """A question before its options are chosen: the right word, and words that could be right."""

    task: str
    route: str
    """What changes the answer: flip (spatial), reversal (temporal), each of them (either), none
    (static); "" where the text and its options don't say, or make no sense for a transform."""
    question: str
    answer: str
    pool: tuple[str, ...]
    """The other words, those first that make the best wrong options."""


def questions(clip: Clip, *, seed: int = 0) -> list[Example]:
    """Every question that the clip answers, as multiple choice with two to four options.

    Options are shuffled by `seed`. Where three or more words could be right, "None of the above"
    is sometimes the last option, and right as often as any other.
    """
    examples = []
    for number, asked in enumerate(_asked(clip.scene)):
        rng = np.random.default_rng([seed, number, *clip.scene.id.encode()])
        others = list(asked.pool)
        if len(others) > 1 and rng.random() < 0.4:
            shown = others[:3] if rng.random() < 0.25 else [asked.answer, *others[:2]]
            options = [*_shuffled(rng, shown), NULL_OPTION]
        else:
            options = _shuffled(rng, [asked.answer, *others[:3]])
        answer = asked.answer if asked.answer in options else NULL_OPTION
        examples.append(_example(clip, asked, options, answer, number))
    return examples


def pairs(clip: Clip, transform: Transform, *, seed: int = 0) -> list[tuple[Example, Example]]:
    """The questions with one right answer for the clip and one for its transform.

    Both sides have the same question and options, the right answer of each side among them. The
    answers differ where the route names the transform, and are equal for static questions; the
    questions of other routes, and those that make no sense for one of the sides, are left out.
    """
    other = transformed(clip, transform)
    answers = {(asked.task, asked.question): asked.answer for asked in _asked(other.scene)}
    found = []
    for number, asked in enumerate(_asked(clip.scene)):
        there = answers.get((asked.task, asked.question))
        dynamic = transform in _CHANGED_BY.get(asked.route, ())
        if there is None or not (dynamic or asked.route == "static"):
            continue
        rng = np.random.default_rng([seed, number, *clip.scene.id.encode()])
        words = dict.fromkeys([asked.answer, there, *asked.pool])
        options = _shuffled(rng, list(words)[:4])
        pair = f"{clip.scene.id}-{number}-{transform}"
        sides = ((clip, asked.answer, "a"), (other, there, "b"))
        found.append(
            tuple(
                _example(side, asked, options, answer, number).replace(
                    id=f"{pair}-{letter}", pair=pair
                )
                for side, answer, letter in sides
            )
        )
    return found


def answer_text(example: Example) -> str:
    """The words of the right option."""
    return example.options[LETTERS.index(example.answer)]


def prompt(example: Example, *, by: str = "word") -> tuple[str, str]:
    """The question with its options as text, and the answer: by `word` or by `letter`."""
    if by == "word":
        listed = ", ".join(example.options)
        return f"{example.question} Choose from: {listed}.", answer_text(example)
    if by != "letter":
        raise ValueError(f"by is {by!r}; choose from word, letter")
    return f"{example.question} {lettered(example.options)} Reply with the letter.", example.answer


def lettered(options: Sequence[str], first: int = 0) -> str:
    """Options behind one another, each with its letter; the letters begin at place `first`."""
    pairs = zip(LETTERS[first:], options, strict=False)
    return " ".join(f"({letter}) {option}" for letter, option in pairs)


def _shuffled(rng: np.random.Generator, options: list[str]) -> list[str]:
    return [options[j] for j in rng.permutation(len(options))]


def _example(clip: Clip, asked: Asked, options: list[str], answer: str, number: int) -> Example:
    scene = clip.scene
    suffix = f"-{scene.transform}" if scene.transform else ""
    indices = np.arange(scene.steps)
    return Example(
        id=f"{scene.id}-{number}{suffix}",
        video=f"{scene.id}{suffix}.mp4",
        question=asked.question,
        options=tuple(options),
        answer=LETTERS[options.index(answer)],
        task=asked.task,
        kind="multiple_choice",
        route=asked.route,
        caption=caption(scene),
        events=tuple((event.step / FPS,) * 2 for event in scene.events),
        transform=scene.transform,
        fps=float(FPS),
        frame_count=scene.steps,
        indices=indices,
        seconds=indices / FPS,
        frames=clip.frames,
    )


def _asked(scene: Scene) -> Iterator[Asked]:
    """Every question that makes sense for a scene; its id decides the order of the other words."""
    moving, doing = motions(scene), actions(scene)
    rng = np.random.default_rng(list(scene.id.encode()))
    odd = [
        (t, i, doing[i][t])
        for t in range(1, scene.steps)
        for i in range(scene.objects)
        if is_odd(doing[i][t])
    ]
    for i in range(scene.objects):
        yield from _of_motion(scene, i, moving[i], rng)
        yield from _of_looks(scene, i, rng)
    yield from _of_numbers(scene)
    yield from _of_order(scene, doing)
    if len(odd) < 2:
        yield from _of_oddity(scene, odd, rng)
    else:
        yield from _of_moment(scene, odd, rng)


_Odd = list[tuple[int, int, str]]  # step, object, phrase, in order


def _of_motion(
    scene: Scene, i: int, moving: Sequence[str], rng: np.random.Generator
) -> Iterator[Asked]:
    thing, phrases = lasting_name(scene, i), set(moving) - {""}
    if len(phrases - {"jumps"}) != 1 or sum(phrase != "" for phrase in moving) < 3:
        return
    does, _, way = (phrases - {"jumps"}).pop().partition(" ")
    if does == "moves" and "jumps" not in phrases:
        ways = ("left", "right", "up", "down")
        yield Asked(
            "direction", "", f"Which way does the {thing} move?", way, _rest(rng, ways, way)
        )
        level = way in ways[:2]
        task, route, words = (
            ("left_right", "either", ways[:2]) if level else ("up_down", "temporal", ways[2:])
        )
        question = f"Does the {thing} move {words[0]} or {words[1]}?"
        yield Asked(task, route, question, way, _rest(rng, words, way))
    elif does in ("grows", "shrinks"):
        words = ("it grows", "it shrinks")
        question = f"Does the {thing} grow or shrink?"
        yield Asked("size", "temporal", question, f"it {does}", _rest(rng, words, f"it {does}"))
    elif does == "stays" and "jumps" not in phrases:
        x = scene.centre[i, 0, 0]
        if abs(x - SIZE // 2) >= 8:
            side = "left" if x < SIZE // 2 else "right"
            question = f"Is the {thing} on the left or on the right?"
            yield Asked("side", "spatial", question, side, _rest(rng, ("left", "right"), side))


def _of_looks(scene: Scene, i: int, rng: np.random.Generator) -> Iterator[Asked]:
    colours, shapes = set(scene.colour[i].tolist()), set(scene.shape[i].tolist())
    if len(colours) > 1 or len(shapes) > 1:
        return
    colour, shape = COLOURS[colours.pop()], SHAPES[shapes.pop()]
    seen = [COLOURS[c] for c in dict.fromkeys(np.delete(scene.colour, i, 0).ravel().tolist())]
    others = dict.fromkeys([*seen, *_rest(rng, COLOURS, colour)])  # of other objects, then any
    yield Asked("colour", "static", f"Which colour is the {shape}?", colour, tuple(others))
    yield Asked(
        "shape", "static", f"Which shape is the {colour} object?", shape, _rest(rng, SHAPES, shape)
    )


def _of_numbers(scene: Scene) -> Iterator[Asked]:
    first, last = (int(scene.count[:, t].sum()) for t in (0, -1))
    if (scene.count == 1).all():
        words = tuple(word for word in NUMBERS[1:] if word != NUMBERS[first])
        yield Asked("count", "static", "How many objects are there?", NUMBERS[first], words)
    elif first != last:
        near = sorted(range(len(NUMBERS)), key=lambda n: (n != first, abs(n - last)))
        words = tuple(NUMBERS[n] for n in near if n != last)
        yield Asked(
            "end_count", "temporal", "How many objects are there at the end?", NUMBERS[last], words
        )


def _of_order(scene: Scene, doing: Sequence[Sequence[str]]) -> Iterator[Asked]:
    """Which of two things comes first: what is odd, and bounces of those that bounce once."""
    times = []
    for i, row in enumerate(doing):
        thing = lasting_name(scene, i)
        for kind, noun in _NOUNS.items():
            steps = [t for t, phrase in enumerate(row) if verb(phrase) == kind]
            if len(steps) == 1:
                times.append((steps[0], f"the {noun} of the {thing}"))
    for j, (step, one) in enumerate(times):
        for other_step, other in times[:j]:
            if abs(step - other_step) >= 2:
                words = sorted((one, other))
                right = one if step < other_step else other
                question = f"Which comes first, {words[0]} or {words[1]}?"
                yield Asked("first", "temporal", question, right, tuple({*words} - {right}))


_NOUNS = {
    "bounces": "bounce",
    "jumps": "jump",
    "turns back": "turn",
    "turns": "colour change",
    "becomes": "shape change",
}  # what is the same backwards
_ONE_WAY = ("vanishes", "appears", "stops", "starts", "splits", "merge")


def _of_oddity(scene: Scene, odd: _Odd, rng: np.random.Generator) -> Iterator[Asked]:
    """What is odd in the whole clip, where at most one thing is."""
    step, i, phrase = odd[0] if odd else (0, 0, "")
    what = _WHAT[verb(phrase)] if odd else _NOTHING
    others = _rest(rng, tuple(_WHAT.values()), what)
    others = others if what == _NOTHING else (_NOTHING, *others)
    route = "temporal" if verb(phrase) in _ONE_WAY else "static"
    yield Asked("what", route, "What is odd in this clip?", what, others)
    if scene.objects > 1:
        names = _names(scene)
        right = names[i] if odd else _NO_OBJECT
        others = _rest(rng, (*names, _NO_OBJECT), right)
        route = "" if verb(phrase) in ("turns", "becomes") else "static"  # else another name
        yield Asked("which", route, "Which object does something odd?", right, others)
    thing = lasting_name(scene, i)
    if verb(phrase) == "turns":
        colour = phrase.removeprefix("turns ")
        before = COLOURS[scene.colour[i, step - 1]]
        others = dict.fromkeys([before, *_rest(rng, COLOURS, colour)])
        yield Asked(
            "new_colour", "temporal", f"Which colour does the {thing} turn?", colour, tuple(others)
        )
    if verb(phrase) == "becomes":
        shape = phrase.removeprefix("becomes a ")
        question = f"Which shape does the {thing} become?"
        yield Asked("new_shape", "temporal", question, shape, _rest(rng, SHAPES, shape))


def _of_moment(scene: Scene, odd: _Odd, rng: np.random.Generator) -> Iterator[Asked]:
    """What happens for a moment only; no other frame gives the answer away.

    The wrong words are none that the rest of the clip rules out.
    """
    _, i, phrase = odd[0]
    if verb(phrase) == "turns":
        colour = phrase.removeprefix("turns ")
        free = [word for j, word in enumerate(COLOURS) if j not in np.delete(scene.colour, i, 0)]
        usual = COLOURS[scene.colour[i, 0]]
        others = tuple(word for word in _rest(rng, tuple(free), colour) if word != usual)
        question = f"Which colour does the {SHAPES[scene.shape[i, 0]]} turn for a moment?"
        if others:
            yield Asked("brief_colour", "static", question, colour, others)
    elif verb(phrase) == "becomes":
        shape = phrase.removeprefix("becomes a ")
        free = [word for j, word in enumerate(SHAPES) if j not in np.delete(scene.shape, i, 0)]
        usual = SHAPES[scene.shape[i, 0]]
        others = tuple(word for word in _rest(rng, tuple(free), shape) if word != usual)
        question = f"Which shape does the {lasting_name(scene, i)} become for a moment?"
        if others:
            yield Asked("brief_shape", "static", question, shape, others)
    elif scene.objects > 1:
        task = "brief_vanish" if phrase == "vanishes" else "brief_split"
        question = f"Which object {phrase} for a moment?"
        names = _names(scene)
        yield Asked(task, "static", question, names[i], _rest(rng, names, names[i]))


_NO_OBJECT = "no object"


def _names(scene: Scene) -> tuple[str, ...]:
    """What the objects are called at first, however many parts they have."""
    alone = replace(scene, count=np.ones_like(scene.count))
    return tuple(f"the {name(alone, i, 0)}" for i in range(scene.objects))


def _rest(rng: np.random.Generator, words: tuple[str, ...], word: str) -> tuple[str, ...]:
    """The other words, in random order."""
    return tuple(words[j] for j in rng.permutation(len(words)) if words[j] != word)
