"""Graders: text against a known answer, lengths, embeddings. Deterministic, and nothing is run.

A parser returns None where it finds no answer; a grader returns `Grade(score, parsed)`, so that an
unparsable answer scores 0 and is still told apart from a wrong one. Text is matched by patterns
that take time linear in its length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from objectives.masked import Array, kept


class Grade(NamedTuple):
    """A score in [0, 1], and whether an answer was found at all (else the score is 0)."""

    score: float
    parsed: bool


UNPARSED = Grade(0.0, False)
Number = int | float

_MARKUP = " \t\r\n*_`\"'$"
_CUE = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is\b\s*:?|\s*:)[\s*_`\"'$]*(?:option\s|choice\s)?",
    re.IGNORECASE,
)
_BARE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,]?")
_LEADING = re.compile(r"\(([A-Z])\)|\[([A-Z])\]|([A-Z])[).:](?=\s)|(?:Option|Choice)\s([A-Z])\b")
_CUED = re.compile(r"\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?![\w'’-])")
# What may follow "the answer is A": else that A is an article.
_NO_NOUN = re.compile(r"\s*(?:[^\w\s]|$)|[ \t]*\n|\s+(?:because|since|as|due|based)\b")
# Trailing word characters are taken along, so that "3D" is met once and thrown away.
_NUMBER = re.compile(
    r"(?<![\w.])([-+]?(?>(?>\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++)(?:[eE][-+]?\d++)?)(\w*+)",
    re.ASCII,
)
_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,2}):(\d{2}(?:\.\d++)?)(?![\d:])", re.ASCII)
_WORD = re.compile(r"[^\W_]+")
_PREFIX = re.compile(r"\(?[A-Z][).:]\s+")


def answer_text(completion: str) -> str:
    """What stands in the last <answer> tag, or the whole completion without one; stripped.

    A last tag that is never closed (a cut-off completion) reaches to the end.
    """
    start = completion.rfind("<answer>")
    if start < 0:
        return completion.strip()
    return completion[start + len("<answer>") :].partition("</answer>")[0].strip()


def parse_option(completion: str, options: Sequence[str] | int) -> str | None:
    """The option letter that a completion chooses, "A" being the first; None if it names none.

    In this order: the whole answer is one letter; a letter after "answer is" and the like, the last
    one counts; a leading "B." or "(B)"; the exact text of one option. The article "A" in running
    text is no answer. `options` are their texts (the null option among them if it was offered), or
    just their number.
    """
    texts = [""] * options if isinstance(options, int) else list(options)
    letters = {chr(ord("A") + index) for index in range(len(texts))}
    answer = answer_text(completion).strip(_MARKUP)
    if answer.startswith("\\boxed{"):
        answer = answer[len("\\boxed{") :].partition("}")[0].strip(_MARKUP)
    for letter in (_bare_letter(answer), _cued_letter(answer, letters), _leading_letter(answer)):
        if letter in letters:
            return letter
    wanted = _plain(answer)
    same = [index for index, text in enumerate(texts) if wanted and _plain(text) == wanted]
    return chr(ord("A") + same[0]) if len(same) == 1 else None


def grade_option(completion: str, correct: str, options: Sequence[str] | int) -> Grade:
    """1 if `parse_option` finds the correct letter (accuracy of multiple choice), else 0."""
    letter = parse_option(completion, options)
    return UNPARSED if letter is None else Grade(float(letter == correct.strip().upper()), True)


def parse_yes_no(completion: str) -> bool | None:
    """True for yes, False for no, from the first word or the one after "answer is"; else None."""
    answer = answer_text(completion).strip(_MARKUP)
    for start in (*reversed([cue.end() for cue in _CUE.finditer(answer)]), 0):
        word = _WORD.match(answer, start)
        if word and word[0].lower() in ("yes", "no"):
            return word[0].lower() == "yes"
    return None


def grade_yes_no(completion: str, correct: bool) -> Grade:
    """1 if the completion says yes or no as it should (TimeBlind's 1 / 0, its -1 is unparsed)."""
    said = parse_yes_no(completion)
    return UNPARSED if said is None else Grade(float(said == correct), True)


def parse_number(completion: str) -> float | None:
    """The one number of the answer, or the first after the last "answer is"; None if unclear.

    "1,234.5", "-3" and "2e3" are numbers; one that is glued to letters ("3D") is not.
    """
    found = _number_text(completion)
    return None if found is None else float(found)


def grade_numeric(
    completion: str, correct: str | Number, *, decimals: int = 2, same_form: bool = False
) -> Grade:
    """1 if the number equals the correct one after rounding to `decimals` (Video-R1, its code).

    same_form=True is that code's further demand that both, or neither, are written with a point.
    """
    found = _number_text(completion)
    if found is None:
        return UNPARSED
    target = str(correct).replace(",", "").strip()
    equal = round(float(found), decimals) == round(float(target), decimals)
    return Grade(float(equal and not (same_form and ("." in found) != ("." in target))), True)


def relative_accuracy(prediction: Number, correct: Number) -> float:
    """max(0, 1 - |prediction - correct| / |correct|), Video-R1's reward for regression.

    With a correct value of 0: 1 if the prediction is 0, else 0.
    """
    if correct == 0:
        return float(prediction == 0)
    return max(0.0, 1.0 - abs(prediction - correct) / abs(correct))


def mean_relative_accuracy(prediction: Number, correct: Number, *, strict: bool = True) -> float:
    """MRA of VSI-Bench (arXiv 2412.14171, eq. 1): tolerance averaged over ten thresholds.

    1/10 Σ_θ 1[|prediction - correct| / |correct| < 1 - θ], θ = 0.50, 0.55, ..., 0.95; `strict`
    False takes <=, as lmms-eval does. Computed exactly on the decimals as written, so that an error
    on a threshold is decided by the operator alone. With a correct value of 0: 1 if the prediction
    is 0, else 0.
    """
    if not (math.isfinite(prediction) and math.isfinite(correct)):
        return 0.0
    p, c = Fraction(repr(float(prediction))), Fraction(repr(float(correct)))
    if c == 0:
        return float(p == 0)
    error = abs(p - c) / abs(c)
    limits = [Fraction(step, 20) for step in range(1, 11)]
    return sum(error < limit if strict else error <= limit for limit in limits) / 10


def word_error_rate(hypothesis: str, reference: str) -> float:
    """Levenshtein distance of the words over the number of reference words; may exceed 1.

    (substitutions + deletions + insertions) / |reference|; of an empty reference, 0 or 1. Words are
    split at white space and compared in lower case.
    """
    ours, theirs = hypothesis.lower().split(), reference.lower().split()
    if not theirs:
        return float(bool(ours))
    row = list(range(len(theirs) + 1))
    for i, word in enumerate(ours, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(theirs, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / len(theirs)


def ocr_reward(completion: str, reference: str) -> float:
    """max(0, 1 - WER) of the answer text (Video-R1's reward for OCR)."""
    return max(0.0, 1.0 - word_error_rate(answer_text(completion), reference))


def rouge_n(hypothesis: str, reference: str, *, n: int = 1) -> float:
    """ROUGE-N F1: overlap of n-grams, each counted at most as often as in the other (Lin 2004).

    2PR / (P + R). Words are runs of letters and digits in lower case, unstemmed.
    """
    ours, theirs = (
        Counter(zip(*(words[i:] for i in range(n)), strict=False))
        for words in (_words(hypothesis), _words(reference))
    )
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(hypothesis: str, reference: str) -> float:
    """ROUGE-L F1: the longest common subsequence of words (Lin 2004); words as in `rouge_n`.

    P = LCS / |hypothesis|, R = LCS / |reference|, 2PR / (P + R). SPIKE-RL's caption reward (its
    released default, there with stemming).
    """
    ours, theirs = _words(hypothesis), _words(reference)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for j, other in enumerate(theirs, start=1):
            longest = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], longest
    return _f1(row[-1], len(ours), len(theirs))


def rouge_mean(completion: str, reference: str) -> float:
    """Mean of ROUGE-1, ROUGE-2 and ROUGE-L of the answer text (Video-R1's free-form reward)."""
    answer = answer_text(completion)
    grams = rouge_n(answer, reference) + rouge_n(answer, reference, n=2)
    return (grams + rouge_l(answer, reference)) / 3


def parse_interval(completion: str) -> tuple[float, float] | None:
    """(start, end) in seconds: the only two numbers of the answer, "12.5 to 20" or "0:12 - 1:20".

    None if there are not exactly two times, or the end is not after the start.
    """
    answer = answer_text(completion)
    clocks = _CLOCK.findall(answer)
    if clocks:
        times = [3600 * int(h or 0) + 60 * int(m) + float(s) for h, m, s in clocks]
    else:
        # A range may be written without spaces: "3-7" is no minus seven.
        times = [float(found) for found in _numbers(answer.replace("-", " ").replace("–", " "))]
    return (times[0], times[1]) if len(times) == 2 and times[0] < times[1] else None


def temporal_iou(
    prediction: tuple[Number, Number],
    correct: tuple[Number, Number],
    *,
    duration: Number | None = None,
) -> float:
    """Overlap of two intervals over their union; 0 if either is empty or reversed.

    max(0, min(e, e') - max(s, s')) / ((e - s) + (e' - s') - overlap). With a `duration`, times
    (1 - |s - s'| / d) (1 - |e - e'| / d), Time-R1's tIoU (arXiv 2503.13377), which ArrowGEV uses.
    """
    (start, end), (s, e) = prediction, correct
    if not (start < end and s < e):
        return 0.0
    overlap = max(0.0, min(end, e) - max(start, s))
    iou = overlap / ((end - start) + (e - s) - overlap)
    if duration is None:
        return iou
    return iou * max(0.0, 1 - abs(start - s) / duration) * max(0.0, 1 - abs(end - e) / duration)


def grade_interval(
    completion: str, correct: tuple[Number, Number], *, duration: Number | None = None
) -> Grade:
    """`temporal_iou` of the interval that the completion names."""
    found = parse_interval(completion)
    if found is None:
        return UNPARSED
    return Grade(temporal_iou(found, correct, duration=duration), True)


def format_reward(completion: str) -> float:
    """1 if the completion is <think>…</think><answer>…</answer> and no more, else 0 (Video-R1).

    Each tag stands exactly once, in this order, with only white space around and between the two
    blocks. (The released pattern also passes repeated tags.)
    """
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(completion.count(tag) != 1 for tag in tags):
        return 0.0
    before, _, rest = completion.partition("<think>")
    _, closed, rest = rest.partition("</think>")
    between, opened, rest = rest.partition("<answer>")
    _, ended, after = rest.partition("</answer>")
    outside = before + between + after
    return float(bool(closed and opened and ended) and not outside.strip())


def judge_prompt(response: str, reference: str) -> str:
    """LLM-Match: what the judge is asked (SPIKE-RL, arXiv 2509.23433, prompt A.2, reworded)."""
    return (
        "Rate how closely the response matches the reference in meaning and in the important "
        "details of the event. Ignore differences of length. Give a number from 0.0 to 1.0: "
        "0-0.3 poor, 0.4-0.6 moderate, 0.7-0.9 good, 1.0 perfect match. "
        "Output only the numerical score (e.g., 0.75).\n"
        f"Reference: {reference}\nResponse: {response}\nScore:"
    )


def parse_judge(reply: str) -> float | None:
    """The first number of the judge's reply if it lies in [0, 1], else None (never 0.5)."""
    found = next(_numbers(reply), None)
    return None if found is None or not 0 <= float(found) <= 1 else float(found)


def llm_match(response: str, reference: str, judge: Callable[[str], str]) -> Grade:
    """The judge's score of a response; `judge` answers a prompt with text, in its own words."""
    score = parse_judge(judge(judge_prompt(response, reference)))
    return UNPARSED if score is None else Grade(score, True)


def length_bonus(
    lengths: Int[Array, "*batch G"],
    correct: Bool[Array, "*batch G"],
    *,
    shortest: int = 320,
    longest: int = 512,
    bonus: float = 0.2,
    at_least: int = 2,
) -> Float[jax.Array, "*batch G"]:
    """Video-R1's bonus for correct answers of a wanted length (arXiv 2503.21776; its code).

    bonus · 1[correct_i] · 1[shortest <= tokens_i <= longest] · 1[Σ_i correct_i >= at_least]
    """
    lengths, correct = jnp.asarray(lengths), jnp.asarray(correct)
    enough = jnp.sum(correct, axis=-1, keepdims=True) >= at_least
    fits = (lengths >= shortest) & (lengths <= longest)
    return jnp.where(correct & fits & enough, bonus, 0.0)


def overlong_penalty(
    lengths: Int[Array, "*batch"], *, longest: int = 20480, cache: int = 4096
) -> Float[jax.Array, "*batch"]:
    """DAPO's soft punishment (arXiv 2503.14476, eq. 13): 0 to -1 over the last `cache` tokens.

    0 if n <= longest - cache; (longest - cache - n) / cache up to longest; -1 beyond
    """
    over = jnp.asarray(lengths).astype(jnp.float32) - float(longest - cache)
    return jnp.where(over > cache, -1.0, -jnp.clip(over / max(cache, 1), 0.0, 1.0))


def pairwise_diversity(
    embeddings: Float[Array, "*batch N D"], valid: Bool[Array, "*batch N"] | None = None
) -> Float[jax.Array, "*batch"]:
    """Mean of 1 - cosine over the pairs of a hypothesis set (SPIKE-RL's diversity), in [0, 2].

    2 / (n (n - 1)) Σ_{i<j} (1 - e_i · e_j / (|e_i| |e_j|)); 0 with fewer than two hypotheses. An
    embedding of length 0 is at a distance of 1 from all.
    """
    shape = jnp.shape(embeddings)
    valid = jnp.ones(shape[:-1], bool) if valid is None else jnp.asarray(valid)
    vectors = kept(embeddings, jnp.broadcast_to(valid[..., None], shape))
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    unit = jnp.where(squares > 0, vectors / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    pairs = valid[..., :, None] & valid[..., None, :]
    pairs = pairs & jnp.broadcast_to(~jnp.eye(shape[-2], dtype=bool), pairs.shape)
    distance = kept(1.0 - jnp.einsum("...id,...jd->...ij", unit, unit), pairs)
    count = jnp.sum(kept(jnp.ones_like(distance), pairs), axis=(-2, -1))
    return jnp.sum(distance, axis=(-2, -1)) / jnp.maximum(count, 1.0)


def _bare_letter(answer: str) -> str | None:
    """The letter that is all of the answer's first line."""
    bare = _BARE.fullmatch(answer.partition("\n")[0].strip(_MARKUP))
    return bare[1].upper() if bare else None


def _cued_letter(answer: str, letters: set[str]) -> str | None:
    """The last letter that follows "answer is" and the like."""
    for cue in reversed(list(_CUE.finditer(answer))):
        found = _CUED.match(answer, cue.end())
        if found is None:
            continue
        article = found[3] in ("A", "I") and not _NO_NOUN.match(answer, found.end())
        if not article and found[found.lastindex] in letters:
            return found[found.lastindex]
    return None


def _leading_letter(answer: str) -> str | None:
    """The letter of a leading "B.", "(B)" or "Option B"."""
    found = _LEADING.match(answer)
    return found[found.lastindex] if found else None


def _plain(text: str) -> str:
    """For comparing option texts: no letter in front, no final stop, one space, no case."""
    text = text.strip(_MARKUP)
    prefix = _PREFIX.match(text)
    text = text[prefix.end() :] if prefix else text
    return " ".join(text.casefold().rstrip(".!").split())


def _numbers(text: str) -> Iterator[str]:
    """The finite numbers of a text as float() reads them."""
    for found in _NUMBER.finditer(text):
        number = found[1].replace(",", "")
        if not found[2] and math.isfinite(float(number)):
            yield number


def _number_text(completion: str) -> str | None:
    answer = answer_text(completion)
    numbers = list(_numbers(answer))
    if len(numbers) == 1:
        return numbers[0]
    cues = list(_CUE.finditer(answer))
    return next(_numbers(answer[cues[-1].end() :]), None) if cues else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _f1(overlap: int, ours: int, theirs: int) -> float:
    return 2 * overlap / (ours + theirs) if overlap else 0.0
