"""The words of SPIKE: prompts, history text, and what is made of the sentences a model writes.

Everything that arrives here from a model or a file is untrusted text. It is cleaned, compared and
put into prompts by plain replacement; it is never evaluated and never used as a format string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKERS = re.compile(r"<\|[^|<>]*\|>")
_LABEL = re.compile(
    r"^(?:[-*•]\s+|\(?\d{1,2}[.)](?!\d)\s*)?(?:(?:hypothesis|prediction|answer|caption)\s*\d*\s*:\s*)?",
    re.IGNORECASE,
)
_NOT_WORD = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True)
class Prompts:
    """Every text that a model is shown, each overridable.

    A prompt is laid out as: `system`; then one user turn of `history` (left out while nothing has
    been captioned), the window, the observation once it is seen, and one of the questions. The
    question `statement` serves the prior and the posterior alike, so that the two differ in the
    observation only.
    """

    system: str = "You are a careful observer of videos."
    history: str = "Earlier in this video: {history}"
    predict: str = (
        "Think of the events so far and of the latest frames. "
        "What will probably happen next? Reply with one sentence of 8 to 10 words."
    )
    statement: str = "What happens right after the first clip? Reply with one short sentence."
    probe: str = (
        'Claim: "{statement}" Is the claim right for the newest frame? Reply with yes or no.'
    )
    caption: str = "What is going on in the newest frame? Reply with one short sentence."
    summary: str = "Shorten this account of a video to at most 50 words: {history}"

    def __post_init__(self):
        for name, place in (
            ("history", "{history}"),
            ("probe", "{statement}"),
            ("summary", "{history}"),
        ):
            if place not in vars(self)[name]:
                raise ValueError(f"prompts.{name} must contain {place}")
        for name in ("predict", "statement", "caption"):
            if not vars(self)[name].strip():
                raise ValueError(f"prompts.{name} must not be empty")

    def history_text(self, history: str) -> str:
        """The wording of a history, "" for none."""
        return self.history.replace("{history}", history) if history else ""

    def probe_text(self, statement: str) -> str:
        """The yes/no question about one hypothesis."""
        return self.probe.replace("{statement}", statement)

    def summary_text(self, history: str) -> str:
        """The request to shorten a history."""
        return self.summary.replace("{history}", history)


@dataclass(frozen=True)
class Hypotheses:
    """N places for the hypotheses of one step: the valid ones first, then "" as padding."""

    texts: tuple[str, ...]
    cut_off: tuple[bool, ...]
    """Per place: the token limit ended the sentence."""
    duplicates: int
    """Samples that repeat an earlier one, whether they were left out or not."""
    empty: int
    """Samples without a word in them; always left out."""

    @property
    def count(self) -> int:
        """How many of the places are valid."""
        return sum(text != "" for text in self.texts)


def clean(text: str) -> str:
    """The sentence in a generated answer: its first line with a word in it, on one line of text.

    A leading list mark or label ("1.", "Hypothesis:") goes, white space collapses, control
    characters and chat markers such as <|im_end|> are dropped: this text enters later prompts.
    """
    for line in _MARKERS.sub(" ", text).splitlines():
        line = "".join(letter if letter.isprintable() else " " for letter in line)
        line = _LABEL.sub("", " ".join(line.split()), count=1).strip(" \"'`*“”")
        if same_form(line):
            return line
    return ""


def same_form(text: str) -> str:
    """What two equal hypotheses have in common: case, punctuation and spacing are left out."""
    return " ".join(_NOT_WORD.sub(" ", text.casefold()).split())


def parse(
    texts: Sequence[str], finished: Sequence[bool] | None = None, *, dedup: bool = True
) -> Hypotheses:
    """Cleans N sampled answers, drops the empty and (with `dedup`) the repeated ones, pads to N."""
    finished = [True] * len(texts) if finished is None else finished
    kept: list[tuple[str, bool]] = []
    seen: set[str] = set()
    duplicates = empty = 0
    for text, whole in zip(texts, finished, strict=True):
        sentence = clean(text)
        form = same_form(sentence)
        if not form:
            empty += 1
            continue
        duplicates += form in seen
        if form in seen and dedup:
            continue
        seen.add(form)
        kept.append((sentence, not whole))
    kept += [("", False)] * (len(texts) - len(kept))
    return Hypotheses(
        texts=tuple(sentence for sentence, _ in kept),
        cut_off=tuple(cut for _, cut in kept),
        duplicates=duplicates,
        empty=empty,
    )


def word_count(text: str) -> int:
    """Words between white space, as the 200-word limit of a history counts them."""
    return len(text.split())


def append(history: tuple[str, ...], caption: str) -> tuple[str, ...]:
    """The history, a tuple of sentences, with one more; an empty caption adds nothing."""
    if not caption:
        return history
    end = "" if caption[-1] in ".!?…" else "."
    return (*history, f"Then, {caption}{end}")


def keep_latest(history: tuple[str, ...], words: int) -> tuple[str, ...]:
    """Drops the oldest sentences until at most `words` are left; the newest one always stays."""
    while len(history) > 1 and word_count(" ".join(history)) > words:
        history = history[1:]
    return history
