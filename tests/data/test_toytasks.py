"""Lessons about the toy world: answers are true, wrong claims wrong, no word gives them away."""

from collections import Counter

import numpy as np
import pytest

from data.toyquestions import questions
from data.toyscene import actions, expected
from data.toytasks import (
    KINDS,
    STRESS,
    brief_lesson,
    clip_lesson,
    drill,
    step_lesson,
    stressed,
)
from data.toywords import caption, description, is_odd, sentence, statements
from data.toyworld import make, simulate


@pytest.fixture(scope="module")
def lessons():
    """(scene, lesson) of 300 clips, in batches of 50 with a balance each."""
    found = []
    for batch in range(6):
        rng, balance = np.random.default_rng(batch), Counter()
        for index in range(50 * batch, 50 * batch + 50):
            scene = simulate(index)
            found.append((scene, step_lesson(scene, rng, balance)))
    return found


def words(ask):
    return "".join(text for text, _ in ask.answer)


def test_a_lesson_shows_the_window_and_the_pair(lessons):
    for scene, lesson in lessons:
        step = lesson.observation[1]
        assert 1 <= step < scene.steps and lesson.observation == (step - 1, step)
        assert lesson.window == tuple(range(max(0, step - 4), step))
        assert {ask.kind for ask in (*lesson.before, *lesson.after)} <= set(KINDS)


def test_what_is_told_of_a_step_is_true(lessons):
    for scene, lesson in lessons:
        truth = description(scene, lesson.observation[1])
        told = [ask for ask in lesson.after if ask.kind in ("posterior", "caption")]
        told += [ask for ask in lesson.before if ask.kind == "prior"]
        assert len(lesson.before) == 1 and {weight for _, weight in lesson.before[0].answer} == {1}
        assert told and all(words(ask) == truth for ask in told)


def test_a_right_claim_and_a_wrong_one_are_labelled_so(lessons):
    for scene, lesson in lessons:
        step = lesson.observation[1]
        labels = {one.text: one.true for one in statements(scene, step)}
        labels[description(scene, step)] = True
        claims = [ask for ask in lesson.after if ask.kind == "claim"]
        assert [words(ask) for ask in claims] == ["yes", "no"] * (len(claims) // 2)
        assert 2 <= len(claims) <= 4
        for ask in claims:
            # What is not a statement of its own is a description with one thing wrong in it.
            assert labels.get(ask.subject, False) == (words(ask) == "yes")
        truth = description(scene, step)
        assert claims[0].subject == truth
        assert len(set(claims[1].subject.split(", ")) - set(truth.split(", "))) == 1


def test_no_odd_word_tells_right_from_wrong(lessons):
    said = Counter()
    for _, lesson in lessons:
        for ask in lesson.after:
            if ask.kind == "claim":
                for word in {word.strip(",") for word in ask.subject.split(" ")}:
                    said[word, words(ask)] += 1
    for word in ("vanishes", "jumps", "back", "turns", "stops", "splits", "becomes"):
        assert said[word, "yes"] > 4
        assert abs(said[word, "yes"] - said[word, "no"]) <= 6 + 0.1 * said[word, "yes"], word


def test_events_are_often_shown_but_seldom_taught_to_be_expected(lessons):
    def odd(scene, lesson):
        return any(is_odd(row[lesson.observation[1]]) for row in actions(scene))

    at_event = [lesson for scene, lesson in lessons if odd(scene, lesson)]
    assert 0.2 < len(at_event) / len(lessons) < 0.5
    taught = [lesson for lesson in at_event if lesson.before[0].kind == "prior"]
    assert len(taught) < 0.2 * len(at_event)
    others = len(lessons) - len(at_event)
    priors = sum(lesson.before[0].kind == "prior" for _, lesson in lessons) - len(taught)
    assert 0.4 < priors / others < 0.6


def test_a_future_is_what_is_expected_but_for_one_thing(lessons):
    odd = total = 0
    for scene, lesson in lessons:
        step = lesson.observation[1]
        if lesson.before[0].kind != "predict":
            continue
        future, total = words(lesson.before[0]), total + 1
        likely = set(sentence(scene, step, expected(scene, step)).split(", "))
        assert len(set(future.split(", ")) - likely) <= 1
        odd += future != sentence(scene, step, expected(scene, step))
    assert 0.03 < odd / total < 0.2


def test_stressed_keeps_the_text_and_stresses_what_is_odd():
    text = "the red ring turns blue, two green crosses move left"
    assert stressed(text) == (
        ("the red ring", 1.0),
        (" turns blue,", STRESS),
        (" two green crosses move left", 1.0),
    )
    assert stressed("the two red rings vanish") == (("the two red rings", 1.0), (" vanish", STRESS))
    for index in range(40):
        scene = simulate(index)
        assert "".join(part for part, _ in stressed(caption(scene))) == caption(scene)
        assert any(weight == STRESS for _, weight in stressed(caption(scene))) == bool(scene.events)


def test_a_clip_lesson_asks_for_the_caption_and_for_different_things():
    clip = make(3, level="three")
    first, lookups = set(), 0
    for seed in range(12):
        lesson = clip_lesson(clip, np.random.default_rng(seed))
        first.add(lesson.window[0])
        assert lesson.window == tuple(range(lesson.window[0], 16))
        told, *asked = lesson.before
        assert words(told) == caption(clip.scene) and len(asked) == 4
        assert len({ask.subject for ask in asked}) == 4
        texts = " ".join(example.question for example in questions(clip))
        for ask in asked:
            question, _, options = ask.subject.partition("?")
            if question.startswith("Which one is "):  # the text answers it
                right = question.removeprefix("Which one is ")
                assert ask.kind == "letter" and f"({words(ask)}) {right} " in options
                lookups += 1
            else:
                assert question in texts
    assert first == {0, 1} and 3 <= lookups <= 12


def test_every_task_is_asked_of_before_any_twice_and_every_question_both_ways():
    clip = make(3, level="three")
    able = questions(clip)
    tasks = {example.question: example.task for example in able}
    every = len(set(tasks.values()))
    assert every < len(able)
    for seed in range(6):
        _, *asked = clip_lesson(clip, np.random.default_rng(seed), number=3 * len(able)).before
        assert Counter(ask.kind for ask in asked) == {
            kind: len(able) for kind in ("word", "letter")
        }
        told = [tasks.get(ask.subject.partition("?")[0] + "?") for ask in asked[:every]]
        told = [task for task in told if task]  # the others ask what the text answers
        assert len(set(told)) == len(told)


def test_a_drill_is_answered_by_its_text_and_by_nothing_less():
    rng, again, short = np.random.default_rng(0), 0, 0
    for index in range(20):
        one = drill(make(index), rng)
        options = {}
        for text, letter in one.listed:
            assert text.startswith(f" ({letter}) ")
            options[letter] = text.removeprefix(f" ({letter}) ")
        assert list(options) == list("ABCDE"[: len(options)])
        assert len(set(options.values())) == len(options)
        for text, letter in one.asked:
            option = text.removeprefix(" Which one is ").removesuffix("? ").strip()
            assert option == options[letter]
            short += "Which" not in text
        again += len({letter for _, letter in one.asked}) < len(one.asked)
    assert again > 10  # what is left over is no answer
    assert 35 < short < 65


def test_a_brief_lesson_mostly_shows_the_moment():
    shown = total = 0
    for index in range(40):
        clip = make(index, level="brief", kinds=("recolor",))
        lesson = brief_lesson(clip, np.random.default_rng(index), frames=(4,))
        assert len(lesson.window) == 4 and sorted(set(lesson.window)) == list(lesson.window)
        start, end = (event.step for event in clip.scene.events)
        shown += bool(set(lesson.window) & set(range(start, end)))
        total += 1
    assert 0.7 < shown / total < 1
