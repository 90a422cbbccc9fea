"""Sentences and questions of the toy world: true where they say so, balanced, paired."""

from collections import Counter

import numpy as np
import pytest

from data.toyquestions import TASKS, answer_text, pairs, prompt, questions
from data.toyscene import COLOURS, SHAPES, actions
from data.toywords import (
    PREDICATES,
    caption,
    clauses,
    description,
    futures,
    lasting_name,
    statements,
)
from data.toyworld import make, simulate, transformed

CHANGED_BY = {
    "spatial": {"flip"},
    "temporal": {"reversal"},
    "either": {"flip", "reversal"},
    "static": set(),
}
NULL = "None of the above"


@pytest.fixture(scope="module")
def clips():
    """Forty-five clips, every third of the level with brief events."""
    return [make(index, level="brief" if index % 3 == 2 else "full") for index in range(45)]


def _one(kind, split="test", level="one"):
    """A scene with one object and one event of a kind."""
    return simulate(7, split=split, level=level, kinds=(kind,))


def test_the_grammar_is_small_and_its_sentences_are_simple(clips):
    words = Counter()
    for clip in clips:
        scene = clip.scene
        texts = [caption(scene), *(description(scene, t) for t in range(1, scene.steps, 3))]
        texts += [one.text for one in statements(scene, 7)]
        texts += [text for example in questions(clip) for text in prompt(example)]
        for text in texts:
            words.update(text.lower().replace(",", " ").replace(".", " ").replace("?", " ").split())
    assert 70 < len(words) < 110


def test_sentences_of_an_event():
    scene = _one("recolor")
    event = scene.events[0]
    old, new = (COLOURS[scene.colour[0, t]] for t in (event.step - 1, event.step))
    shape = SHAPES[scene.shape[0, 0]]
    assert description(scene, event.step) == f"the {old} {shape} turns {new}"
    assert description(scene, event.step - 1).startswith(f"the {old} {shape} ")
    assert description(scene, event.step + 1).startswith(f"the {new} {shape} ")
    assert caption(scene).endswith(f"Then the {old} {shape} turns {new}.")
    assert lasting_name(scene, 0) == shape

    gone = _one("vanish")
    assert description(gone, gone.events[0].step + 1) == "nothing is there"
    halves = _one("split")
    after = description(halves, halves.events[0].step + 1)
    assert after.startswith("the two ") and after.split(" ")[3].endswith("s")
    assert caption(simulate(7, kinds=(None,))).endswith("Nothing odd happens.")


def test_what_is_odd_comes_first():
    for index in range(30):
        scene = simulate(index, level="three", kinds=("jump", "vanish", "morph"))
        step = scene.events[0].step
        first, *others = clauses(scene, step)
        assert any(word in first for word in ("jumps", "vanishes", "becomes"))
        assert len(others) == 2 and not any("jumps" in other for other in others)


def test_statements_are_true_where_they_say_so(clips):
    """Sentences about two steps are compared with the tracks themselves."""
    checked = Counter()
    for clip in clips[:30]:
        scene = clip.scene
        for t in range(1, scene.steps, 4):
            did = [row[t] for row in actions(scene)]
            found = statements(scene, t)
            said = {one.text for one in found if one.true}
            for i, phrase in enumerate(did):
                visible = scene.count[i, t - 1] > 0 and phrase in PREDICATES
                if visible and scene.count[i, t - 1] == 1:
                    assert any(text.endswith(phrase) for text in said), (scene.id, t, phrase)
            for one in found:
                checked[one.predicate, one.true] += 1
                if one.predicate.startswith("moves") and not one.true:
                    i = _subject(scene, t, one.text)
                    if i is not None and scene.count[i].min() > 0:
                        x, y = scene.centre[i, t] - scene.centre[i, t - 1]
                        way = {"left": -x, "right": x, "up": -y, "down": y}[one.text.split()[-1]]
                        assert way <= 0 or max(abs(x), abs(y)) > 8
    for predicate in ("moves left", "bounces", "vanishes", "stays still", "there is", "count"):
        assert checked[predicate, True] and checked[predicate, False]
    assert checked["absent", False] and not checked["absent", True]


def _subject(scene, t, text):
    """The object that a sentence names by colour and shape just before the step."""
    for i in range(scene.objects):
        words = COLOURS[scene.colour[i, t - 1]], SHAPES[scene.shape[i, t - 1]]
        if not scene.flashing[i] and text.startswith(f"the {' '.join(words)} "):
            return i
    return None


def test_what_can_be_argued_about_is_left_out():
    for index in range(40):
        scene = simulate(index, level="one", kinds=("reverse", "stop", "recolor"))
        if scene.flashing[0]:
            continue
        step = scene.events[0].step
        said = {one.predicate: one.true for one in statements(scene, step)}
        kind = scene.events[0].kind
        before = actions(scene)[0][step - 1]
        if kind == "reverse":
            assert "bounces" not in said and said["turns back"]
            if before.startswith("moves"):
                assert said[before] is False  # the old way is refuted
        elif kind == "stop":
            assert "stays still" not in said and said["stops"]
        elif before.startswith("moves"):
            assert actions(scene)[0][step].startswith("turns") and before not in said


def test_the_first_step_tells_no_turn():
    for index in range(30):
        said = {one.predicate for one in statements(simulate(index, level="one"), 1)}
        assert not said & {"bounces", "turns back", "stops"}


def test_futures_follow_from_the_steps_before():
    rng = np.random.default_rng(0)
    for index in range(20):
        scene = simulate(index, level="two", kinds=("vanish", "jump", "split"))
        step = scene.events[0].step
        texts = futures(scene, step, rng, number=6)
        assert len(texts) == len(set(texts)) == 6
        target = scene.events[0].object
        assert clauses(scene, step)[0] not in texts[:2]  # nobody could tell
        usual = [text for text in clauses(scene, step - 1) if "bounces" not in text]
        other = actions(scene)[1 - target]
        if other[step] == other[step - 1]:
            assert set(texts[:2]) & set(usual)


def test_every_question_has_its_answer(clips):
    tasks, letters, null = Counter(), Counter(), Counter()
    for clip in clips:
        for example in questions(clip):
            assert 2 <= len(example.options) <= 4
            assert len(set(example.options)) == len(example.options)
            assert example.task in TASKS and example.kind == "multiple_choice"
            assert answer_text(example) == example.options["ABCD".index(example.answer)]
            assert example.frames is clip.frames and example.fps == 4.0
            tasks[example.task] += 1
            letters[len(example.options), example.answer] += 1
            if NULL in example.options:
                assert example.options[-1] == NULL and len(example.options) >= 3
                null[len(example.options), answer_text(example) == NULL] += 1
    assert set(tasks) >= {task for task in TASKS if not task.startswith(("brief", "new"))}
    four = [letters[4, letter] for letter in "ABCD"]
    assert min(four) > 0.6 * max(four)
    assert 0.12 < null[4, True] / (null[4, True] + null[4, False]) < 0.4


def test_answers_agree_with_the_tracks(clips):
    for clip in clips:
        scene = clip.scene
        for example in questions(clip):
            said = answer_text(example)
            if example.task == "count":
                number = ("zero", "one", "two", "three", "four").index(said) if said != NULL else -1
                assert number in (-1, scene.objects)
            if example.task == "left_right":
                i = next(i for i in range(scene.objects) if lasting_name(scene, i) in
                         example.question)  # fmt: skip
                steps = np.diff(scene.centre[i, :, 0])
                assert (steps > 0).all() if said == "right" else (steps < 0).all()
            if example.task == "brief_vanish" and said != NULL:
                i = scene.events[0].object
                assert scene.count[i].min() == 0 and SHAPES[scene.shape[i, 0]] in said


@pytest.mark.parametrize("transform", ["flip", "reversal"])
def test_pairs_have_the_true_answer_on_both_sides(clips, transform):
    routes = Counter()
    for clip in clips:
        other = transformed(clip, transform)
        for one, two in pairs(clip, transform):
            assert one.question == two.question and one.options == two.options
            assert one.pair == two.pair and one.id != two.id and one.video != two.video
            assert (one.transform, two.transform) == (None, transform)
            assert np.array_equal(two.frames, other.frames) and two.events == tuple(
                (event.step / 4, event.step / 4) for event in other.scene.events
            )
            assert (one.answer != two.answer) == (transform in CHANGED_BY[one.route])
            routes[one.route] += 1
            opposite = {"left": "right", "right": "left", "up": "down", "down": "up",
                        "it grows": "it shrinks", "it shrinks": "it grows"}  # fmt: skip
            if one.task in ("left_right", "up_down", "size", "side"):
                assert answer_text(two) == opposite[answer_text(one)]
    dynamic = {route for route, changed in CHANGED_BY.items() if transform in changed}
    assert set(routes) == dynamic | {"static"}


def test_a_question_and_its_answer_by_word_and_by_letter(clips):
    example = next(e for clip in clips for e in questions(clip) if e.task == "up_down")
    text, answer = prompt(example)
    assert text.endswith(f"Choose from: {example.options[0]}, {example.options[1]}.")
    assert answer in ("up", "down")
    text, answer = prompt(example, by="letter")
    assert f"(A) {example.options[0]} (B) {example.options[1]}" in text and answer in "AB"
    with pytest.raises(ValueError, match="choose from word, letter"):
        prompt(example, by="number")


def test_brief_questions_need_the_moment(clips):
    """Every wrong option is as possible as the right one to who has not seen the moment."""
    asked = Counter()
    for clip in clips:
        scene = clip.scene
        for example in questions(clip):
            if not example.task.startswith("brief"):
                continue
            asked[example.task] += 1
            assert len(scene.events) == 2
            event = scene.events[0]
            shown = {COLOURS[c] for i in range(scene.objects) for c in scene.colour[i, :1]}
            if example.task == "brief_colour":
                assert not (set(example.options) - {NULL}) & shown
            if example.task == "brief_shape":
                assert SHAPES[scene.shape[event.object, 0]] not in example.options
    assert sum(asked.values()) > 8
