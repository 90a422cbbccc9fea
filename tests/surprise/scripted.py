"""A `VideoModel` without a network: every answer is a fixed function of what it was shown."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from surprise import Context, Generation

WORDS = ["dog", "cat", "ball", "runs", "falls", "jumps", "red", "blue", "over", "away", "the"]


def chance(*parts) -> np.random.Generator:
    """A generator that depends on the parts alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class State:
    contexts: tuple[Context, ...]
    observations: tuple[tuple[int, ...], ...] | None = None

    def shown(self, row):
        return self.contexts[row], self.observations[row] if self.observations else ()


@dataclass
class ScriptedModel:
    """`answers` maps a question's first word to fixed texts; else words are drawn by seed."""

    answers: dict[str, list[str]] = field(default_factory=dict)
    nan_at: str = ""
    calls: list[tuple] = field(default_factory=list)

    def look(self, contexts):
        self.calls.append(("look", tuple(contexts)))
        return State(tuple(contexts))

    def observe(self, state, observations):
        self.calls.append(("observe", tuple(observations)))
        return State(state.contexts, tuple(observations))

    def generate(self, state, question, sampling):
        self.calls.append(("generate", question, state.observations, sampling))
        rows = []
        for row in range(len(state.contexts)):
            fixed = self.answers.get(question.split()[0])
            texts = fixed or [
                " ".join(chance(state.shown(row), question, int(seed)).choice(WORDS, 3))
                for seed in sampling.seeds[row]
            ]
            rows.append([Generation(text, finished=True) for text in texts])
        return rows

    def nll(self, state, question, answers):
        self.calls.append(("nll", question, state.observations, answers))
        tokens = np.array([[len(text.split()) for text in row] for row in answers], np.int32)
        nll = np.array(
            [
                [
                    chance(state.shown(row), question, text).uniform(0.2, 3.0) if text else np.nan
                    for text in texts
                ]
                for row, texts in enumerate(answers)
            ],
            np.float32,
        )
        for row, context in enumerate(state.contexts):
            if context.video == self.nan_at:
                nll[row] = np.nan
        return nll * tokens, tokens

    def p_yes(self, state, questions, yes, no):
        self.calls.append(("p_yes", state.observations, questions, tuple(yes), tuple(no)))
        return np.array(
            [
                [chance(state.shown(row), text).random() if text else np.nan for text in texts]
                for row, texts in enumerate(questions)
            ],
            np.float32,
        )

    def summarize(self, prompts, *, system, max_tokens):
        self.calls.append(("summarize", tuple(prompts), system, max_tokens))
        return ["a short\naccount" for _ in prompts]
