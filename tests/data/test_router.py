import json
import re
from collections import Counter

import numpy as np
import pytest

from data import cache, router
from data.router import (
    LABELS,
    asks_about_text,
    parse_label,
    route_by_model,
    route_by_rules,
    route_prompt,
    routed,
    with_noise,
)
from data.types import Example

CASES = {
    "spatial": [
        ("Which hand holds the knife?", ("Left hand", "Right hand")),
        ("What colour is the mug on the left?", ("Red", "Blue")),
        ("Where is the lamp relative to the bed?", ("To the left", "To the right", "Behind it")),
        ("Which way is the plant facing?", ("Left", "Right")),
        ("Is the dog to the right of the cat?", ()),
        ("Who sits in the bottom left corner?", ("A boy", "A girl")),
        ("Why does the man on the right wave?", ("To say hello", "To stop a bus")),
    ],
    "temporal": [
        ("What does she do before she sits?", ("She sings", "She coughs")),
        ("In what order are the fruits cut?", ("Apple, pear", "Pear, apple")),
        ("What happens first?", ("A bell rings", "A bird sings")),
        ("What is the boy doing?", ("Opening a jar", "Closing a jar")),
        ("Which way does the balloon drift?", ("Up", "Down")),
        ("Is the train coming towards the camera?", ()),
        ("Is the picture growing brighter?", ()),
        ("How does he react?", ("He stands up", "He laughs", "He sits down", "He cries")),
        ("Who stands at the end of the video?", ("A cook", "A judge")),
        ("When does the phone ring?", ("At the beginning", "At the end", "Never")),
    ],
    "either": [
        ("In which direction does the ball roll?", ()),
        ("Where is the car headed?", ("From left to right", "From right to left")),
        ("Does the wheel spin clockwise?", ()),
        ("How does the camera move?", ("It pans left", "It pans right", "It stays")),
        ("What is the ball doing?", ("Moving rightward", "Moving up")),
        ("Which person on the left gets up first?", ("The tall one", "The short one")),
    ],
    "static": [
        ("What colour is the van?", ("White", "Black")),
        ("How many cats are there?", ("1", "2")),
        ("Why does the boy open the window?", ("He is hot", "He heard a noise")),
        ("Which of the following answers is right?", ("A mug", "A cup")),
        ("How does he react?", ("He stands up", "He laughs", "He waves", "He cries")),
        ("What is right next to the oven?", ("A sink", "A shelf")),
        ("Where was it filmed?", ("In a gym", "In a park")),
        ("Which way is the scene moving?", ("Horizontally", "Vertically")),
        ("What does the sign say?", ("Stop", "Yield")),
        ("Is he looking after a child in order to earn money?", ()),
        ("", ()),
    ],
}


@pytest.mark.parametrize(
    "label,question,options",
    [(label, *case) for label, cases in CASES.items() for case in cases],
)
def test_rules(label, question, options):
    assert route_by_rules(question, options) == label
    assert route_by_rules(question.upper(), [option.upper() for option in options]) == label


def test_text_detector():
    for question in ("What is written on the board?", "Read the sign.", "Which word appears?"):
        assert asks_about_text(question)
    assert asks_about_text("Which one?", ["The red sign", "The tree"])
    for question in ("What colour is the van?", "Is she designing a dress?", "Who signals?"):
        assert not asks_about_text(question)


def test_prompt_holds_the_question_word_for_word():
    question, options = "Why {options} {0} %s?", ("Because {question}", "So")
    prompt = route_prompt(question, options)
    assert f"Question: {question}\nA. Because {{question}}\nB. So\nReply" in prompt
    assert all(label in prompt for label in LABELS)


@pytest.mark.parametrize(
    "reply,label",
    [
        ("static", "static"),
        (" **Temporal**.\n", "temporal"),
        ("Label: spatial", "spatial"),
        ("<think>static? no, spatial</think>\neither", "either"),
        ("Spatiotemporal", "either"),
        ("spatial or temporal", None),
        ("It is static.", None),
        ("<think>static", None),
        ("", None),
    ],
)
def test_replies_are_read_strictly(reply, label):
    assert parse_label(reply) == label


def test_model_router(caplog):
    replies = {"one": "temporal", "two": "hard to say", "three": "answer: Static"}

    def ask(prompts):
        return [replies[re.search(r"Question: (\w+)", prompt)[1]] for prompt in prompts]

    routes = route_by_model(ask, [("one", ()), ("two left or right", ()), ("three", ())])
    assert [(route.label, route.by) for route in routes] == [
        ("temporal", "model"),
        ("spatial", "fallback"),
        ("static", "model"),
    ]
    assert routes[1].reply == "hard to say"
    assert "1 of 3 replies named no label" in caplog.text
    with pytest.raises(ValueError, match="1 replies to 2 prompts"):
        route_by_model(lambda prompts: ["static"], [("one", ()), ("two", ())])


def examples(count, **changes):
    return [
        Example(id=str(i), video=f"{i}.mp4", question=f"What is object {i}?", **changes)
        for i in range(count)
    ]


class Model:
    """Answers `static`, counts, and can break down."""

    def __init__(self, limit=10**9, reply="static"):
        self.asked, self.limit, self.reply = [], limit, reply

    def __call__(self, prompts):
        if len(self.asked) + len(prompts) > self.limit:
            raise KeyboardInterrupt
        self.asked += prompts
        return [self.reply] * len(prompts)


def test_routed_by_rules_and_kept(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"
    questions = [question for cases in CASES.values() for question in cases]
    asked = [
        Example(id=str(i), video="v.mp4", question=question, options=options)
        for i, (question, options) in enumerate(questions)
    ]
    wanted = [label for label, cases in CASES.items() for _ in cases]
    assert [example.route for example in routed(asked)] == wanted
    assert [example.route for example in routed(asked, path)] == wanted
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["label"] for line in lines] == wanted
    # What is in the file is believed: no rule runs again.
    monkeypatch.setattr(router, "route_by_rules", lambda *_: pytest.fail("asked again"))
    assert [example.route for example in routed(asked, path)] == wanted


def test_a_model_is_asked_once_a_question(tmp_path):
    path = tmp_path / "sub" / "labels.jsonl"
    model = Model()
    asked = examples(5) + [example.replace(id="again") for example in examples(5)]
    assert {example.route for example in routed(asked, path, ask=model, model="m")} == {"static"}
    assert len(model.asked) == 5
    routed(asked, path, ask=model, model="m")
    assert len(model.asked) == 5
    routed(examples(5, options=("x", "y")), path, ask=model, model="m")  # options count too
    assert len(model.asked) == 10
    routed(asked, path, ask=model, model="other")
    assert len(model.asked) == 15
    with pytest.raises(ValueError, match="name the model"):
        routed(asked, path, ask=model)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "labels.jsonl"
    with pytest.raises(KeyboardInterrupt):
        routed(examples(10), path, ask=Model(limit=4), model="m", batch=2)
    with path.open("a") as file:
        file.write('{"key": "half a li')
    model = Model()
    routed(examples(10), path, ask=model, model="m", batch=2)
    assert len(model.asked) == 6
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 10


def test_new_rules_and_new_prompts_count_old_labels_for_nothing(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"
    model = Model()
    routed(examples(3), path)
    routed(examples(3), path, ask=model, model="m")
    assert len(path.read_text().splitlines()) == 6 and len(model.asked) == 3
    monkeypatch.setattr(router, "RULES_VERSION", "rules-of-tomorrow")
    monkeypatch.setattr(router, "PROMPT", router.PROMPT.replace("one word", "a word"))
    routed(examples(3), path)
    routed(examples(3), path, ask=model, model="m")
    assert len(path.read_text().splitlines()) == 12 and len(model.asked) == 6


def test_a_fallback_follows_the_rules_of_today(tmp_path, monkeypatch, caplog):
    path = tmp_path / "labels.jsonl"
    model = Model(reply="who knows")
    assert routed(examples(1), path, ask=model, model="m")[0].route == "static"
    assert json.loads(path.read_text())["by"] == "fallback"
    monkeypatch.setattr(router, "route_by_rules", lambda *_: "either")
    assert routed(examples(1), path, ask=model, model="m")[0].route == "either"
    assert len(model.asked) == 1


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    routed(examples(2), path)
    text = path.read_text()
    path.write_text(text.replace('"static"', '"nope"', 1))
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: label is 'nope'"):
        routed(examples(2), path)
    path.write_text(text + "no json\n")
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 3: no JSON object"):
        routed(examples(2), path)


def test_appending_cuts_off_what_an_interruption_left(tmp_path):
    path = tmp_path / "cache.jsonl"
    cache.append(path, [{"a": 1}, {"b": "é\n"}])
    whole = path.read_bytes()
    for left in (b'{"c": ', b"x"):
        path.write_bytes(whole + left)
        assert cache.read(path) == [{"a": 1}, {"b": "é\n"}]
        cache.append(path, [{"d": 2}])
        assert cache.read(path) == [{"a": 1}, {"b": "é\n"}, {"d": 2}]
    path.write_bytes(b"{")
    cache.append(path, [{"d": 2}])
    assert path.read_bytes() == b'{"d": 2}\n'
    assert cache.read(tmp_path / "absent.jsonl") == []
    assert cache.digest("ab", ["c"]) != cache.digest("a", ["bc"]) != cache.digest("a", ["b", "c"])


def test_noise_of_the_reported_level():
    labels = [LABELS[i % 4] for i in range(20_000)]
    noisy = with_noise(labels, 0.06, seed=3)
    wrong = [(true, said) for true, said in zip(labels, noisy, strict=True) if true != said]
    assert abs(len(wrong) / 20_000 - 0.06) < 4 * np.sqrt(0.06 * 0.94 / 20_000)
    # Each of the twelve ways to be wrong is as likely as the others.
    ways = Counter(wrong)
    assert len(ways) == 12
    expected = len(wrong) / 12
    assert sum((count - expected) ** 2 / expected for count in ways.values()) < 31.3  # 0.1%, 11 df


def test_noise_is_seeded_and_nested():
    labels = [LABELS[i % 4] for i in range(400)]
    assert with_noise(labels, 0, seed=1) == labels
    assert with_noise(labels, 0.5, seed=1) == with_noise(labels, 0.5, seed=1)
    assert with_noise(labels, 0.5, seed=1) != with_noise(labels, 0.5, seed=2)
    assert with_noise(labels[:50], 0.5, seed=1) == with_noise(labels, 0.5, seed=1)[:50]
    some, more = with_noise(labels, 0.1, seed=1), with_noise(labels, 0.4, seed=1)
    assert all(b == a for a, b, true in zip(some, more, labels, strict=True) if a != true)
    assert all(a != b for a, b in zip(with_noise(labels, 1, seed=1), labels, strict=True))
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        with_noise(labels, 1.5, seed=0)
    with pytest.raises(ValueError, match="label is 'none'"):
        with_noise(["none"], 0.1, seed=0)
