"""The ten compositions of the package's docstring: run as they stand, and against plain loops."""

import doctest
import inspect
import re

import numpy as np
import pytest

import objectives


def test_the_docstring_runs():
    outcome = doctest.testmod(objectives)
    assert outcome.failed == 0 and outcome.attempted > 25


def test_the_table_names_what_there_is():
    table = objectives.__doc__.split("-----\n")[1].split("\n\n")[0]
    names = {
        name
        for line in table.splitlines()
        for name in re.findall(r"[a-z_]+", line[56:].split("  ")[0])
    }
    functions = {n for n, f in vars(objectives).items() if inspect.isfunction(f)}
    assert len(names & functions) > 30
    assert names - functions <= {"grade_", "rouge_"}, "families"


# The docstring's batch, in float64.
TOKENS = np.arange(80.0).reshape(16, 5)
LOGP, OLD, REFERENCE = (-1.0 - 0.5 * np.sin(TOKENS * step) for step in (1, 2, 3))
LENGTHS = np.array([int(row[0]) // 5 % 5 + 1 for row in TOKENS])
REWARDS = np.array([1.0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0])


def zscores(rewards, size, eps=1e-4, scale=True):
    """Each run of `size` rewards standardised."""
    out = []
    for start in range(0, len(rewards), size):
        group = rewards[start : start + size]
        std = np.sqrt(sum((r - group.mean()) ** 2 for r in group) / (size - 1)) if scale else 1
        out += [(r - group.mean()) / (std + (eps if scale else 0)) for r in group]
    return out


def clip(ratio, advantage, low=0.2, high=0.2):
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def k3(i, t):
    d = REFERENCE[i, t] - LOGP[i, t]
    return np.exp(d) - d - 1


def per_token(term):
    """[[term(i, t) for the tokens of sequence i] for all i]"""
    return [[term(i, t) for t in range(LENGTHS[i])] for i in range(16)]


def each_sequence(term):
    return np.mean([np.mean(row) for row in per_token(term)])


def each_token(term):
    return np.mean([value for row in per_token(term) for value in row])


def ratio(i, t):
    return np.exp(LOGP[i, t] - OLD[i, t])


def one():
    a = zscores(REWARDS, 4)
    return each_sequence(lambda i, t: clip(ratio(i, t), a[i]) + 0.04 * k3(i, t))


def two():
    a = zscores(REWARDS, 4, scale=False)
    return sum(sum(row) for row in per_token(lambda i, t: clip(ratio(i, t), a[i]))) / 16 / 5


def three():
    penalty = [-0.5 if n == 5 else 0.0 for n in LENGTHS]  # 5 is one past 6 - 2
    a = zscores(REWARDS + np.array(penalty), 4)
    return each_token(lambda i, t: clip(ratio(i, t), a[i], high=0.28))


def four():
    a = zscores(REWARDS, 4)
    s = [np.exp(np.mean((LOGP - OLD)[i, : LENGTHS[i]])) for i in range(16)]
    return np.mean([clip(s[i], a[i], 3e-4, 4e-4) for i in range(16)])


def five():
    a = zscores(REWARDS, 4)

    def term(i, t):
        correction = min(np.exp(OLD[i, t] - REFERENCE[i, t]), 3)
        return -correction * min(ratio(i, t), 5) * a[i] * LOGP[i, t]

    return each_token(term)


def six():
    a = []
    for i in range(16):
        others = [REWARDS[j] for j in range(16) if j // 4 == i // 4 and j != i]
        a.append(REWARDS[i] - np.mean(others))
    return np.mean([-a[i] * LOGP[i, : LENGTHS[i]].sum() for i in range(16)])


def seven():
    a = zscores(REWARDS, 8)
    return each_sequence(lambda i, t: clip(ratio(i, t), a[i]))


def eight():
    rewards = []
    for prompt, dynamic in ((0, True), (1, False)):
        c = REWARDS[8 * prompt : 8 * prompt + 4]
        other = REWARDS[8 * prompt + 4 : 8 * prompt + 8]
        b = 1 - other if dynamic else other
        rewards += [*(c * (1 + 0.5 * b.mean())), *(b * (1 + 0.5 * c.mean()))]
    a = zscores(np.array(rewards), 8)
    return each_sequence(lambda i, t: clip(ratio(i, t), a[i]))


def nine():
    centred = zscores(REWARDS, 4, scale=False)
    sigma = [np.sqrt(np.mean(part**2) - np.mean(part) ** 2) for part in (REWARDS[:8], REWARDS[8:])]
    return each_token(lambda i, t: clip(ratio(i, t), centred[i] / sigma[i // 8], high=0.28))


def ten():
    a = zscores(np.array([0.7, 0.2]), 2, eps=1e-6)
    actions = [sum(LOGP[i, : LENGTHS[i]].sum() for i in range(8 * r, 8 * r + 8)) for r in (0, 1)]
    return np.mean([-a[r] * actions[r] for r in (0, 1)]) + 0.1 * each_token(k3)


BY_HAND = [one, two, three, four, five, six, seven, eight, nine, ten]


@pytest.mark.parametrize("place", range(10), ids=[f.__name__ for f in BY_HAND])
def test_the_values_are_those_of_plain_loops(place):
    printed = re.findall(r"^-?\d+\.\d{4}$", objectives.__doc__, re.MULTILINE)
    assert len(printed) == 10
    assert float(printed[place]) == pytest.approx(BY_HAND[place](), abs=6e-5)
