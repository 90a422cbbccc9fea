import time

import numpy as np
import pytest
from programs import o, value_and_grad

import objectives
from objectives import (
    Grade,
    answer_text,
    format_reward,
    grade_interval,
    grade_numeric,
    grade_option,
    grade_yes_no,
    llm_match,
    mean_relative_accuracy,
    ocr_reward,
    parse_interval,
    parse_judge,
    parse_number,
    parse_option,
    parse_yes_no,
    relative_accuracy,
    rouge_l,
    rouge_mean,
    rouge_n,
    temporal_iou,
    word_error_rate,
)

OPTIONS = ["a red ball", "A blue box.", "Nothing moves", "None of the above"]


@pytest.mark.parametrize(
    "completion,wanted",
    [
        ("B", "B"),
        ("b", "B"),
        (" (B). ", "B"),
        ("**C**", "C"),
        ("\\boxed{D}", "D"),
        ("<think>A or B?</think><answer>C</answer>", "C"),
        ("<answer>A</answer> no: <answer>B</answer>", "B"),
        ("<answer>B", "B"),
        ("B\nThe box is blue.", "B"),
        ("The answer is (A) because it moves", "A"),
        ("The answer is A.", "A"),
        ("The answer is A because it moves", "A"),
        ("The answer is **B**", "B"),
        ("The answer is B, no wait, the answer is C.", "C"),
        ("The answer is C since option A is wrong", "C"),
        ("Answer: option D", "D"),
        ("The correct choice is B", "B"),
        ("B. A blue box", "B"),
        ("(C) nothing", "C"),
        ("Option C", "C"),
        ("a red ball", "A"),
        ("A red ball.", "A"),
        ("<answer>nothing  MOVES</answer>", "C"),
        ("None of the above", "D"),
        # No answers:
        ("A dog runs to the box", None),
        ("The answer is A dog.", None),
        ("The answer is not B", None),
        ("I think B", None),
        ("E", None),
        ("The answer is E", None),
        ("", None),
        ("<answer></answer>", None),
        ("AB", None),
        ("A-frame", None),
    ],
)
def test_options(completion, wanted):
    assert parse_option(completion, OPTIONS) == wanted


def test_grades_of_options():
    assert grade_option("B", "B", 4) == Grade(1.0, True)
    assert grade_option("C", " b ", 4) == Grade(0.0, True)
    assert grade_option("no idea", "B", 4) == Grade(0.0, False)
    # The null option is an answer only where it was offered.
    assert grade_option("None of the above", "D", OPTIONS) == Grade(1.0, True)
    assert grade_option("None of the above", "D", OPTIONS[:3]).parsed is False
    # Two options of the same text name no letter.
    assert parse_option("left", ["left", "Left.", "up"]) is None
    assert parse_option("B. left", ["A. left", "B. right"]) == "B"
    assert parse_option("right", ["A. left", "B. right"]) == "B"


@pytest.mark.parametrize(
    "completion,wanted",
    [
        ("Yes.", True),
        ("no, it does not", False),
        ("<answer> No </answer>", False),
        ("The answer is: **yes**", True),
        ("Yes... but the answer is no", False),
        ("There is no dog", None),
        ("Nothing", None),
        ("", None),
    ],
)
def test_yes_no(completion, wanted):
    assert parse_yes_no(completion) is wanted
    grade = grade_yes_no(completion, True)
    assert grade == Grade(float(wanted is True), wanted is not None)


@pytest.mark.parametrize(
    "completion,wanted",
    [
        ("3", 3),
        ("<answer>-1.5</answer>", -1.5),
        ("about 1,234.5 m", 1234.5),
        ("2e3", 2000),
        (".5", 0.5),
        ("5%", 5),
        ("between 3 and 7, so the answer is 5 m", 5),
        ("3 and 4", None),
        ("3D", None),
        ("3,7", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_numbers(completion, wanted):
    assert parse_number(completion) == wanted


def test_grades_of_numbers():
    assert grade_numeric("3.14159", "3.14") == Grade(1.0, True)
    assert grade_numeric("3.2", 3.14) == Grade(0.0, True)
    assert grade_numeric("3.2", 3.14, decimals=0) == Grade(1.0, True)
    assert grade_numeric("three", 3) == Grade(0.0, False)
    # Video-R1's further demand.
    assert grade_numeric("3.0", "3") == Grade(1.0, True)
    assert grade_numeric("3.0", "3", same_form=True) == Grade(0.0, True)
    assert grade_numeric("1,000", "1,000", same_form=True) == Grade(1.0, True)


def test_relative_accuracy():
    assert relative_accuracy(8.0, 10.0) == pytest.approx(0.8)
    assert relative_accuracy(-10.0, 10.0) == 0.0
    assert (relative_accuracy(0.0, 0.0), relative_accuracy(0.1, 0.0)) == (1.0, 0.0)


def test_mean_relative_accuracy():
    assert mean_relative_accuracy(10, 10) == 1.0
    assert mean_relative_accuracy(12.4, 10) == 0.6  # 0.24: below 0.25, ..., 0.50
    assert mean_relative_accuracy(30, 10) == 0.0
    # Errors on a threshold, 0.1 and 0.05, are decided by the operator and not by rounding.
    assert mean_relative_accuracy(1.1, 1.0) == 0.8
    assert mean_relative_accuracy(1.1, 1.0, strict=False) == 0.9
    assert mean_relative_accuracy(0.95, 1.0) == 0.9
    assert mean_relative_accuracy(0.95, 1.0, strict=False) == 1.0
    assert mean_relative_accuracy(-2.2, -2.0, strict=False) == 0.9
    assert (mean_relative_accuracy(0, 0), mean_relative_accuracy(1, 0)) == (1.0, 0.0)
    assert mean_relative_accuracy(float("nan"), 1) == 0.0


def test_word_error_rate():
    assert word_error_rate("the cat sat", "The cat sat") == 0.0
    assert word_error_rate("the hat", "the cat sat") == pytest.approx(2 / 3)
    assert word_error_rate("a b c d", "b") == 3.0
    assert word_error_rate("kitten sat down", "sat kitten down") == pytest.approx(2 / 3)
    assert (word_error_rate("", ""), word_error_rate("x", "")) == (0.0, 1.0)
    assert ocr_reward("<answer>the hat</answer>", "the cat sat") == pytest.approx(1 / 3)
    assert ocr_reward("a b c d", "b") == 0.0


def test_rouge():
    """Lin 2004: "police killed the gunman" against two summaries, each with an LCS by hand."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(0.5)
    assert rouge_n("the gunman kill police", reference) == pytest.approx(0.75)
    assert rouge_n("the gunman kill police", reference, n=2) == pytest.approx(1 / 3)
    # Precision 2/3, recall 2/4; a repeated word counts once.
    assert rouge_n("the the police", reference) == pytest.approx(4 / 7)
    assert rouge_l("Police, KILLED!", "police killed") == 1.0
    assert (rouge_l("", reference), rouge_l("", ""), rouge_n("x", reference, n=2)) == (0, 0, 0)
    assert rouge_mean("<answer>the gunman kill police</answer>", reference) == pytest.approx(
        (0.75 + 1 / 3 + 0.5) / 3
    )


@pytest.mark.parametrize(
    "completion,wanted",
    [
        ("12.5 to 20", (12.5, 20)),
        ("<answer>[3, 7]</answer>", (3, 7)),
        ("3-7 s", (3, 7)),
        ("from 3 – 7", (3, 7)),
        ("0:12 - 1:20.5", (12, 80.5)),
        ("1:00:01 to 1:00:09", (3601, 3609)),
        ("7 to 3", None),
        ("at 3", None),
        ("3, 5 and 7", None),
        ("", None),
    ],
)
def test_intervals(completion, wanted):
    assert parse_interval(completion) == wanted


def test_temporal_iou():
    assert temporal_iou((0, 10), (5, 15)) == pytest.approx(1 / 3)
    assert temporal_iou((0, 4), (5, 15)) == 0.0
    assert temporal_iou((6, 8), (5, 15)) == pytest.approx(0.2)
    assert temporal_iou((8, 6), (5, 15)) == temporal_iou((6, 6), (5, 15)) == 0.0
    with_ends = temporal_iou((0, 10), (5, 15), duration=20)
    assert with_ends == pytest.approx((1 / 3) * 0.75 * 0.75)
    assert grade_interval("0 to 10", (5, 15)) == Grade(pytest.approx(1 / 3), True)
    assert grade_interval("never", (5, 15)) == Grade(0.0, False)
    assert grade_interval("20 to 30", (5, 15)) == Grade(0.0, True)


@pytest.mark.parametrize(
    "completion,wanted",
    [
        ("<think>a\nb</think>\n<answer>B</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("x <think>a</think><answer>B</answer>", 0.0),
        ("<think>a</think> so <answer>B</answer>", 0.0),
        ("<think>a</think><answer>B</answer> done", 0.0),
        ("<think>a</think><answer>A</answer><answer>B</answer>", 0.0),
        ("<answer>B</answer><think>a</think>", 0.0),
        ("<think>a<answer>B</answer></think>", 0.0),
        ("<answer>B</answer>", 0.0),
        ("B", 0.0),
    ],
)
def test_format(completion, wanted):
    assert format_reward(completion) == wanted


def test_the_judge_is_an_argument():
    asked = []

    def judge(prompt):
        asked.append(prompt)
        return " 0.75"

    assert llm_match("a dog ran", "a dog runs", judge) == Grade(0.75, True)
    assert "a dog ran" in asked[0] and "a dog runs" in asked[0] and asked[0].endswith("Score:")
    assert llm_match("x", "y", lambda prompt: "I cannot say") == Grade(0.0, False)
    replies = ["Score: 0.8/1.0", "1.0", "0", "7/10", "-0.5", "good", ""]
    assert [parse_judge(reply) for reply in replies] == [0.8, 1.0, 0.0, None, None, None, None]


def test_answer_text():
    assert answer_text(" plain ") == "plain"
    assert answer_text("<answer> one </answer> rest") == "one"
    assert answer_text("<answer>one</answer><answer>two") == "two"


HOSTILE = [
    "answer " * 20_000,
    "answer is " + " " * 100_000 + "x",
    "answer is A " * 10_000,
    "1,234" * 20_000,
    "1," * 50_000 + "x",
    "1" * 100_000 + "x",
    "1:" * 50_000,
    ".1" * 50_000,
    "1e" * 50_000,
    "(" * 100_000,
    "-" * 100_000,
    "<answer>" * 20_000,
    "<think>" * 20_000,
]


@pytest.mark.parametrize(
    "parser",
    [lambda text: parse_option(text, 4), parse_yes_no, parse_number, parse_interval, format_reward],
    ids=["option", "yes_no", "number", "interval", "format"],
)
def test_hostile_text_takes_linear_time(parser):
    """The slowest takes some 10 ms; a pattern that backtracks would take minutes."""
    for text in HOSTILE:
        start = time.process_time()
        parser(text)
        assert time.process_time() - start < 2.0, text[:20]


def test_length_bonus():
    lengths = np.array([[319, 320, 512, 513], [400, 400, 400, 400]])
    correct = np.array([[True] * 4, [True, False, False, False]])
    wanted = [[0, 0.2, 0.2, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(o.length_bonus(lengths, correct), wanted)
    np.testing.assert_allclose(o.length_bonus(lengths, correct, at_least=1)[1], [0.2, 0, 0, 0])


def test_overlong_penalty():
    lengths = np.array([50, 80, 85, 90, 100, 101, 5000])
    wanted = [0, 0, -0.25, -0.5, -1, -1, -1]
    np.testing.assert_allclose(o.overlong_penalty(lengths, longest=100, cache=20), wanted)
    hard = o.overlong_penalty(lengths, longest=100, cache=0)
    np.testing.assert_allclose(hard, [0, 0, 0, 0, 0, -1, -1])
    assert float(o.overlong_penalty(np.array([18432]))[0]) == -0.5  # DAPO's own numbers


def test_pairwise_diversity():
    vectors = np.array([[1, 0], [0, 3], [2, 0], [0, 0]], np.float32)
    valid = np.array([True, True, True, False])
    program = value_and_grad(objectives.pairwise_diversity)
    value, gradient = program(vectors, valid)
    assert float(value) == pytest.approx(2 / 3)  # distances 1, 0 and 1
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[3])
    assert float(program(vectors, np.array([True, True, False, True]))[0]) == pytest.approx(1)
    assert float(program(vectors, np.array([True, False, True, False]))[0]) == pytest.approx(0)
    assert float(program(vectors, np.array([True, False, False, False]))[0]) == 0
    assert o.pairwise_diversity(np.stack([vectors, -vectors])) == pytest.approx([5 / 6] * 2)
