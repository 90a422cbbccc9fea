"""What a model is taught about the toy world: what it is shown of a clip, asked, and to answer.

Two kinds of lesson. At one step: what comes next before the step is seen, and after it what
happened, and whether claims about it are right. About a clip: its caption, and questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.annotations import LETTERS
from data.toyquestions import answer_text, lettered, prompt, questions
from data.toyscene import Scene, actions, expected, verb
from data.toywords import (
    ODD,
    Statement,
    caption,
    clause,
    description,
    is_odd,
    oddities,
    sentence,
    statements,
)
from data.toyworld import Clip

KINDS = (
    *("predict", "prior", "posterior", "caption", "claim", "clip_caption", "word", "letter"),
    "lookup",
)
"""Every kind of thing asked. prior and posterior ask the same, before and after the observation."""
CAPTION_REQUEST = "Describe this video in one or two sentences."
STRESS = 5.0
"""Weight of the words that tell what is odd, which are few, in the loss of what is seen."""
_EVENT_SHARE, _EVENT_PRIORS = 0.4, 0.05
_BOUNCE_SHARE = 0.2  # of the other steps: to expect one takes a look at where the wall is
_ODD_FUTURES = 0.1
_DRILLED = 5  # letters asked for in a drill
_LOOKUPS = 0.3  # share of questions by letter that the text answers: how letters are read
_WEIGHTS = {"side": 4.0, "first": 4.0, "new_colour": 4.0, "what": 2.0, "which": 2.0}
"""Of the answers to questions that few clips can be asked or that are hard; of others, 1."""
_SHOWN = 0.85  # of brief clips, whose few frames show the moment; of the rest, some do by chance
_OF_A_FRAME = ("colour", "shape", "count")
_ANSWERABLE = (*_OF_A_FRAME, "brief_colour", "brief_shape", "brief_vanish", "brief_split")
"""Questions that a handful of frames can answer."""


@dataclass(frozen=True)
class Ask:
    """One thing asked: `subject` is the claim, or the question as it is put; "" elsewhere."""

    kind: str
    subject: str
    answer: tuple[tuple[str, float], ...]
    """The answer in parts, each with the weight of its tokens in the loss."""


@dataclass(frozen=True)
class Lesson:
    """What is shown of a clip, by places among its frames, and asked before and after more is."""

    window: tuple[int, ...]
    observation: tuple[int, ...]
    """() where all is asked of the window."""
    before: tuple[Ask, ...]
    after: tuple[Ask, ...] = ()


def step_lesson(
    scene: Scene, rng: np.random.Generator, balance: Counter, *, window: int = 4
) -> Lesson:
    """A lesson at one step of the scene, often one at which something odd happens.

    The observation is the pair (t - 1, t). The claims go by twos, a right one and a wrong one:
    about all that happens and, where something can be told of one thing alone, about that.
    `balance` counts, over the lessons of a batch, how often each predicate was right rather than
    wrong, so that no word gives the answer away.
    """
    doing, steps = actions(scene), range(1, scene.steps)
    odd = [t for t in steps if any(is_odd(row[t]) for row in doing)]
    bounces = [t for t in steps if any(verb(row[t]) == "bounces" for row in doing if row[t])]
    at_event = bool(odd) and rng.random() < _EVENT_SHARE
    if at_event:
        step = int(rng.choice(odd))
    elif bounces and rng.random() < _BOUNCE_SHARE:
        step = int(rng.choice(bounces))
    else:
        step = int(rng.integers(1, scene.steps))
    truth = description(scene, step)
    # Of what is not seen yet no word weighs more than another, or it would seem to be likelier.
    before = Ask("predict", "", ((_future(scene, step, rng), 1.0),))
    if rng.random() < (_EVENT_PRIORS if at_event else 0.5):  # or events would seem to be common
        before = Ask("prior", "", ((truth, 1.0),))
    told = Ask("posterior" if rng.random() < 0.5 else "caption", "", stressed(truth))
    able = statements(scene, step)
    wrong = _wrong_description(scene, step, able, rng, balance)
    claims = (_claim(truth, True), _claim(wrong, False))
    if any(one.true for one in able):
        claims += _claims(able, rng, balance)
    start = max(0, step - window)
    return Lesson(tuple(range(start, step)), (step - 1, step), (before,), (told, *claims))


def clip_lesson(clip: Clip, rng: np.random.Generator, *, number: int = 4) -> Lesson:
    """The caption of a whole clip and `number` questions about it.

    Now and then the first frame is left out, so that what is odd falls within temporal patches as
    well as between them.
    """
    places = tuple(range(int(rng.integers(2)), clip.scene.steps))
    told = Ask("clip_caption", CAPTION_REQUEST, stressed(caption(clip.scene)))
    return Lesson(places, (), (told, *_questions(clip, rng, number, None)))


def brief_lesson(
    clip: Clip, rng: np.random.Generator, *, frames: Sequence[int], number: int = 4
) -> Lesson:
    """Questions about a clip of which a few frames are shown, mostly such that tell enough.

    As many as one of `frames` says: neighbours, or from here and there.
    """
    scene, count = clip.scene, int(rng.choice(frames))
    places = rng.choice(scene.steps, count, replace=False)
    if len(scene.events) == 2 and rng.random() < _SHOWN:
        moment = int(rng.integers(scene.events[0].step, scene.events[1].step))
        others = np.delete(np.arange(scene.steps), moment)
        places = np.append(rng.choice(others, count - 1, replace=False), moment)
        if rng.random() < 0.5:
            start = np.clip(moment - rng.integers(count), 0, scene.steps - count)
            places = start + np.arange(count)
    shown = tuple(sorted(places.tolist()))
    return Lesson(shown, (), _questions(clip, rng, number, _ANSWERABLE))


@dataclass(frozen=True)
class Drill:
    """Options and their letters: texts behind one another, each with a letter to be told there.

    How letters are read, with nothing to see; where a question by letter is answered by what is
    seen, there is too little to learn it from.
    """

    listed: tuple[tuple[str, str], ...]
    """The options. Each tells its own letter, which stands before it; it is not written again."""
    asked: tuple[tuple[str, str], ...]
    """What asks for one of them; the letter is written behind it."""


def drill(clip: Clip, rng: np.random.Generator) -> Drill:
    """A list of options, and several times the question which letter one of them has.

    To find an option's letter it takes two things that are of no use alone: an option that knows
    its letter, and one that is asked for and looks for its like. So the first is taught by itself.
    Each is drawn from all options: were none asked for twice, what is left over would tell half of
    the answers. What is learned first is the short form, of half of what is asked, the option
    alone; and lists of two, which half are, of any options that the clip's questions have.
    """
    able = questions(clip, seed=int(rng.integers(2**31)))
    options = able[rng.integers(len(able))].options
    if rng.random() < 0.5:
        every = sorted({option for example in able for option in example.options})
        options = tuple(rng.choice(every, 2, replace=False).tolist())
    listed = [(f" {lettered([option], at)}", LETTERS[at]) for at, option in enumerate(options)]
    asked = []
    for place in rng.integers(len(options), size=_DRILLED):
        text = options[place] if rng.random() < 0.5 else f"Which one is {options[place]}? "
        asked.append((f" {text}", LETTERS[place]))
    return Drill(tuple(listed), tuple(asked))


def stressed(text: str) -> tuple[tuple[str, float], ...]:
    """A description or a caption in parts: what is odd weighs STRESS, the rest 1."""
    words, parts, odd = text.split(" "), [], False
    for i, word in enumerate(words):
        odd = odd or word in _ODD_FORMS
        parts.append((" " * (i > 0) + word, STRESS if odd else 1.0))
        odd = odd and word[-1] not in ".,"
    joined: list[tuple[str, float]] = []
    for part, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + part, weight)
        else:
            joined.append((part, weight))
    return tuple(joined)


_VERBS = {word.split(" ")[0] for word in ODD} | {"vanish"}
# With and without the ending: two rings split.
_ODD_FORMS = _VERBS | {word.removesuffix("s") for word in _VERBS}
_ODD_FORMS |= {f"{word}{mark}" for word in _ODD_FORMS for mark in ".,"}


def _future(scene: Scene, step: int, rng: np.random.Generator) -> str:
    """What may well happen: mostly what is expected of every object, else one odd thing with it."""
    phrases = expected(scene, step)
    able = [i for i, phrase in enumerate(phrases) if phrase and scene.count[i, step - 1] == 1]
    if able and rng.random() < _ODD_FUTURES:
        i = int(rng.choice(able))
        phrases[i] = _drawn(list(oddities(scene, i, step, phrases[i])), rng)
    return sentence(scene, step, phrases)


def _drawn(phrases: Sequence[str], rng: np.random.Generator) -> str:
    """One phrase, every verb being as likely as any other."""
    kind = str(rng.choice(sorted({verb(phrase) for phrase in phrases})))
    return str(rng.choice([phrase for phrase in phrases if verb(phrase) == kind]))


def _claim(text: str, right: bool) -> Ask:
    return Ask("claim", text, (("yes" if right else "no", 1.0),))


def _claims(
    able: Sequence[Statement], rng: np.random.Generator, balance: Counter
) -> tuple[Ask, Ask]:
    """A right and a wrong statement; what is odd comes first among the right."""
    right = [one for one in able if one.true]
    odd = [one for one in right if is_odd(one.predicate)]
    chosen = _by_predicate(odd or right, rng)
    balance[chosen.predicate] += 1
    wrong = [one for one in able if not one.true]
    most = max(balance[one.predicate] for one in wrong)
    refuted = _by_predicate([one for one in wrong if balance[one.predicate] == most], rng)
    balance[refuted.predicate] -= 1
    return _claim(chosen.text, True), _claim(refuted.text, False)


def _by_predicate(able: Sequence[Statement], rng: np.random.Generator) -> Statement:
    predicate = str(rng.choice(sorted({one.predicate for one in able})))
    among = [one for one in able if one.predicate == predicate]
    return among[rng.integers(len(among))]


def _wrong_description(
    scene: Scene,
    step: int,
    able: Sequence[Statement],
    rng: np.random.Generator,
    balance: Counter,
) -> str:
    """All that happens, with one thing that does not; where something is odd, often without it."""
    truth = [row[step] for row in actions(scene)]
    balance.update(_odd_verbs(truth))
    likely = expected(scene, step)
    changes = [
        (i, likely[i])
        for i, phrase in enumerate(truth)
        if is_odd(phrase) and likely[i] not in ("", phrase)
    ]
    if not changes or rng.random() < 0.5:
        # What is surely wrong of each object, told from the others by its name.
        false = {one.text: one.predicate for one in able if not one.true}
        changes = [
            (i, other)
            for i, phrase in enumerate(truth)
            if phrase
            for text, other in false.items()
            if text == clause(scene, i, step, other)
        ]
    if not changes:  # nothing is there
        return _by_predicate([one for one in able if one.predicate == "absent"], rng).text
    told = [[*truth[:i], other, *truth[i + 1 :]] for i, other in changes]
    debts = [sum(balance[word] for word in _odd_verbs(phrases)) for phrases in told]
    told = [phrases for phrases, debt in zip(told, debts, strict=True) if debt == max(debts)]
    chosen = told[rng.integers(len(told))]
    balance.subtract(_odd_verbs(chosen))
    return sentence(scene, step, chosen)


def _odd_verbs(phrases: Sequence[str]) -> list[tuple[str, str]]:
    """What a balance counts of a description: the verbs of what is odd in it."""
    return [("all", verb(phrase)) for phrase in phrases if is_odd(phrase)]


def _questions(
    clip: Clip, rng: np.random.Generator, number: int, tasks: Sequence[str] | None
) -> tuple[Ask, ...]:
    """Questions by word and by letter: the first of each task before the second of any, and all
    before one is asked again the other way; fewer where fewer can be asked. First of all, both
    ways, what passes: no other clip teaches that.
    """
    able = questions(clip, seed=int(rng.integers(2**31)))
    able = [able[j] for j in rng.permutation(len(able)) if tasks is None or able[j].task in tasks]
    late = rng.random() < 0.5  # what one frame tells is asked most, and learned first
    ranks, seen = [], Counter[str]()
    for task in (example.task for example in able):
        ranks.append((seen[task], late and task in _OF_A_FRAME))
        seen[task] += 1
    able = [able[j] for j in sorted(range(len(able)), key=ranks.__getitem__)]
    letter = rng.random(len(able)) < 0.5
    both = [*zip(able, letter, strict=True), *zip(able, ~letter, strict=True)]
    both.sort(key=lambda ask: not ask[0].task.startswith("brief"))
    asks = []
    for example, by_letter in both[:number]:
        by, weight = "letter" if by_letter else "word", _WEIGHTS.get(example.task, 1.0)
        if by_letter and rng.random() < _LOOKUPS:
            example = example.replace(question=f"Which one is {answer_text(example)}?")
            weight = 1.0
        text, answer = prompt(example, by=by)
        asks.append(Ask(by, text, ((answer, weight),)))
    return tuple(asks)
