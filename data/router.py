"""The task router: which alteration of a video must change the answer, told from the text alone.

CRPO (arXiv 2605.21988, project page) labels every question offline with a text-only model, which
sees question and options and no video. The labels here:

  spatial    mirrored left to right, the answer changes; played backwards, it stays
  temporal   played backwards, it changes; mirrored, it stays
  either     each of the two changes it (spatiotemporal)
  static     neither does

`route_by_rules` needs no model; `route_by_model` asks any; `routed` keeps the labels in a file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from data import cache
from data.types import Example

log = logging.getLogger(__name__)

Label = Literal["spatial", "temporal", "either", "static"]
LABELS: tuple[Label, ...] = get_args(Label)

Ask = Callable[[list[str]], list[str]]
"""A language model: prompts -> replies, one each, in order."""


class Route(NamedTuple):
    """A label and whose it is: `rules`, `model`, or `fallback`: rules after an unparsable reply."""

    label: Label
    by: Literal["rules", "model", "fallback"]
    reply: str = ""
    """What the model said."""


def _cue(words: str, *patterns: str) -> re.Pattern[str]:
    """Any of the words, an asterisk standing for any ending, or of the patterns, from a word on."""
    plain = [word.replace("*", r"\w*") + r"\b" for word in words.split()]
    return re.compile(rf"\b(?:{'|'.join([*plain, *patterns])})")


_MOTION = _cue(
    "mov* motion go goes going went come comes coming head heads headed heading travel* walk* "
    "run* ran fly* flies flew flow* driv* drove roll* rotat* turn* pan pans panned panning "
    "shift* slid* swim* swam spin* spun swing* throw* threw steer* veer* swerv* drift* skat* "
    "ride rides riding jump* push* pull* drag* pass passes passed passing cross* enter* exit* "
    "leav* fall* sweep* tilt* scroll* circl* lean* bend* navigat*"
)
_GOES = rf"{_MOTION.pattern}(?: \w+){{0,3}}"
_THE = "(?:the |his |her |its |their |my |your )?"
_SIDEWAYS = _cue(  # left and right, as directions in which something moves
    "leftward* rightward*",
    r"(?:counter-?|anti-?)?clockwise\b",
    "left[- ]to[- ]right|right[- ]to[- ]left",
    rf"{_GOES} (?:left|right)\b(?! now| away| after| before| behind| of\b)",
    rf"{_GOES} from {_THE}(?:left|right)\b",
)
_PLACE = _cue(  # left and right, as places and sides
    "leftmost rightmost left-hand* right-hand* left-handed right-handed",
    rf"(?:on|at|in|near|along|to|from|by) {_THE}(?:\w+ )?(?:left|right)\b"
    r"(?! (?:answer|option|choice|order|description|one|time|now|after|before|away|kind))",
    r"(?:left|right) (?:hand|arm|leg|foot|eye|ear|knee|shoulder|wrist|thumb|wing|side|corner|half"
    r"|edge|end|lane|part|of)s?\b",
    r"(?:top|bottom|upper|lower|far|front|back|rear)[- ](?:left|right)\b",
    r"(?:which|what) (?:side|hand)\b|left or right|right or left",
)
_BARE = re.compile(  # an option that is nothing but a side
    rf"\W*(?:(?:to|on|at|from) )?{_THE}(?:left|right)[- ]?(?:wards?)?(?: side)?\W*"
)
_DIRECTION = _cue(
    "direction directions trajectory",
    r"(?:which|what) way\b(?! (?:of|to)\b)",
    "where .{0,40}(?:headed|heading)",
)
_RELATIVE = _cue("located position positioned situated placed face faces facing", "relative to")
_UPRIGHT = _cue(
    "up down upward* downward* ris* fall* setting ascend* descend* toward* away forward* "
    "backward* closer"
)
_WHOLE = "(?:video|clip|footage|film|movie|scene|game|event|recording|sequence|action|episode)"
_ORDER = _cue(  # when, and in which order
    "before afterward* then finally initial* eventually previous* earlier later subsequent* "
    "until sequence chronolog* beginning begin begins began begun start*",
    r"(?<!look )(?<!looks )(?<!looking )(?<!named )(?<!one )after\b(?! all\b)",
    r"next\b(?! to\b)",
    r"first(?:ly)?\b(?! (?:name|person|aid|place)\b| \w+ from\b)",
    r"last(?:ly)?\b(?! (?:name|for|long)\b| \w+ from\b)",
    "prior to|followed by|as soon as|about to|going to|will happen|will .{1,40} do",
    r"(?:in|the|correct|what|which) order\b(?! to\b)",
    rf"{_WHOLE} ends?\b|ends? (?:up|\w+ing)\b|the end\b(?! of the (?!{_WHOLE}))|(?:in|at) the end",
    rf"middle of the {_WHOLE}|at (?:what|which) (?:point|time|moment)",
    "^when (?:does|do|did|is|was|are|were|will|has)",
)
_CHANGE = _cue(  # what has, played backwards, another name
    "open* closes closed closing shut* enter enters entered entering exit* leaves leaving "
    "arriv* depart* approach* climb* ascend* descend* rose rise rises rising fall falls falling "
    "fallen fell drop* throw* threw catch* caught lift* lower lowers lowered lowering raise* "
    "raising upward* downward* uphill downhill forward* backward* farther further zoom* "
    "increas* decreas* grow grows growing grown shrink* shrank shrunk expand* squeez* inflat* "
    "deflat* brighten* darken* dimm* fade fades faded fading accelerates accelerating "
    "decelerates decelerating empties emptying emptied pour pours poured pouring load loads "
    "loading unload* fold* unfold* wrapping unwrap* assembl* dismantl* disassembl* attach* "
    "detach* disconnect* unlock* locking freez* melt* collaps* disappear* vanish* emerg* becom* "
    "change changes changed changing transform* transition* revers* rewind* straighten* pushing "
    "pulling insert* remov* added adding cover* uncover* untie* tying undress* plug* unplug* "
    "split* merg* collid* collision* giving gives evolv* intensif* stack* unstack* divest*",
    r"appear(?:s|ed|ing)?\b(?! to\b)|was taken\b|close the\b|sun (?:is )?setting\b",
    r"pick(?:s|ed|ing)?(?: \w+){0,3} up\b",
    r"put(?:s|ting)?(?: \w+){0,3} (?:down|on|in|into|onto|away|back|off|behind|under|inside)\b",
    r"t(?:ake|akes|aking|aken|ook)(?: \w+){0,3} (?:out|off|away|from)\b",
    r"(?:sit|sits|sat|sitting|lie|lies|lay|lying|kneel|kneels|knelt|bend|bent|bending) down\b",
    r"(?:stand|stands|stood|standing|speed|speeds|speeding|slow|slows|slowing) (?:up|down)\b",
    r"(?:get|gets|got|getting) (?:up|down|on|off|in|into|out|onto)\b",
    r"(?:getting|turning|gets|turns) (?!around)\w+(?:er|ed)\b|mov(?:e|es|ed|ing) (?:up|down)\b",
    r"(?:turn|switch)(?:s|es|ed|ing)?(?: \w+){0,2} (?:on|off|into)\b",
    r"fill(?:s|ed|ing)?(?: \w+){0,2} (?:up|with)\b|from \w+ to \w+",
    r"(?<!facing )towards? (?:the|it|him|her|them|you)\b|away from\b|closer to\b",
)
_YES_NO = re.compile(r"(?:is|are|was|were|does|do|did|can|could|has|have|will)\b")
_NOT_CHANGE = re.compile(r"(?:where (?:is|are|was|were)|what is the (?:reason|purpose))\b")
_TEXT = _cue(
    "text subtitle* word words letter letters spell* spelt write* writing written wrote read "
    "reads reading sign signs signboard logo* label* brand* jersey title* headline* scoreboard "
    "score scores slogan* banner* poster* printed inscri* alphabet digit* price* billboard* ocr",
    r"(?:licen[cs]e|number) plate|numbers? (?:on|printed|shown|displayed)",
    r"captions? (?:shown|displayed|on)\b|(?:screen|board|page|shirt) (?:says?|shows?)\b",
    r"names? (?:on|shown|displayed|of the (?:book|channel|shop|store|brand|company|song))",
)

PROMPT = """\
You see a question about a video, not the video. Two altered copies of the video exist: one is \
mirrored left to right, one is played backwards. The question stays as it is. Say for which copy \
the right answer would differ from that for the original:

spatial: only for the mirrored copy (places or sides, left and right)
temporal: only for the copy played backwards (order of events, changes, vertical or depth motion)
either: for each of the two (motion to the left or right, turning clockwise)
static: for neither (objects, colours, counts, people, settings, text on screen)

Question: {question}
{options}
Reply with one word: spatial, temporal, either or static."""

RULES_VERSION = "rules-" + cache.digest(
    1,  # to be raised when `route_by_rules` changes but its patterns do not
    *(cue.pattern for cue in (_MOTION, _SIDEWAYS, _PLACE, _BARE, _DIRECTION, _RELATIVE)),
    *(cue.pattern for cue in (_UPRIGHT, _ORDER, _CHANGE, _YES_NO, _NOT_CHANGE)),
)


def check_label(label: str, what: str = "label") -> Label:
    """The label itself; ValueError, beginning with `what`, if it is none."""
    if label not in LABELS:
        hint = "; route the questions first (data.router.routed)" if not label else ""
        raise ValueError(f"{what} is {label!r}; choose from {', '.join(LABELS)}{hint}")
    return label


def asks_about_text(question: str, options: Sequence[str] = ()) -> bool:
    """Whether the answer may hang on text in the picture. Says so rather too often than not."""
    return any(_TEXT.search(_plain(part)) for part in (question, *options))


def route_by_rules(question: str, options: Sequence[str] = ()) -> Label:
    """A label by words alone: no model, no chance.

    Left, right and clockwise as motion count for both alterations, as a place for the mirror only;
    words of order (before, first, the end) and of change with an opposite (open, put down, rise)
    for the reversal only. In options such words count where half of them have one, left and right
    where any has. A question "why" is about causes: of all these only places count there.
    """
    stem, choices = _plain(question), [_plain(option) for option in options]
    sideways = any(map(_SIDEWAYS.search, (stem, *choices)))
    bare = any(map(_BARE.fullmatch, choices))
    place = bare or any(map(_PLACE.search, (stem, *choices)))
    order = bool(_ORDER.search(stem)) or _half(_ORDER, choices)
    change = bool(_CHANGE.search(stem)) or _half(_CHANGE, choices)
    why, relative = stem.startswith("why"), bool(_RELATIVE.search(stem))
    moves = bool(_MOTION.search(stem)) and not why
    if why:
        sideways = order = change = False
    elif _NOT_CHANGE.match(stem) and not moves:
        order, change = bool(_ORDER.search(stem)), False
    elif _DIRECTION.search(stem) and (moves or not relative):
        # An open question of direction may be answered by left and right; options tell.
        sideways = sideways or place or not (choices or _YES_NO.match(stem))
        change = change or any(map(_UPRIGHT.search, choices))
    sideways = sideways or (moves and bare)
    if sideways or (place and (order or change)):
        return "either"
    if place:
        return "spatial"
    return "temporal" if order or change else "static"


def route_prompt(question: str, options: Sequence[str] = ()) -> str:
    """What a model is asked about one question."""
    lines = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(options)]
    # Plain replacement: the texts are a file's, and may hold braces.
    before, _, rest = PROMPT.partition("{question}")
    between, _, after = rest.partition("{options}\n")
    return before + question + between + "".join(f"{line}\n" for line in lines) + after


def parse_label(reply: str) -> Label | None:
    """The label that a reply consists of, None where it says anything else.

    Allowed around it: a thought closed by </think>, "Label:" or "Answer:", marks, a full stop;
    "spatiotemporal" is `either`.
    """
    answer = reply.rpartition("</think>")[2].strip().casefold()
    answer = re.sub(r"^\W*(?:(?:label|answer)\s*:)?\W*|\W*$", "", answer)
    answer = "either" if answer in ("spatiotemporal", "spatio-temporal") else answer
    return answer if answer in LABELS else None


def route_by_model(ask: Ask, questions: Sequence[tuple[str, Sequence[str]]]) -> list[Route]:
    """Labels of (question, options) pairs by any language model, asked once for all of them.

    A reply that `parse_label` can't read is answered by the rules, `by` "fallback", and counted in
    a warning. Raises ValueError where the model returns another number of replies.
    """
    replies = ask([route_prompt(*question) for question in questions])
    if len(replies) != len(questions):
        raise ValueError(f"the model gave {len(replies)} replies to {len(questions)} prompts")
    routes = []
    for question, reply in zip(questions, replies, strict=True):
        label = parse_label(reply)
        by = "fallback" if label is None else "model"
        routes.append(Route(label or route_by_rules(*question), by, reply))
    lost = sum(route.by == "fallback" for route in routes)
    if lost:
        log.warning("%d of %d replies named no label; rules decided these", lost, len(routes))
    return routes


def routed(
    examples: Iterable[Example],
    path: str | os.PathLike[str] | None = None,
    *,
    ask: Ask | None = None,
    model: str = "",
    batch: int = 64,
) -> list[Example]:
    """The examples with `route` set: by the rules, or by a model where `ask` is given.

    path: a JSONL file of labels, read first and added to after every `batch` questions, so that an
    interruption costs one batch at most; each different question is asked once. Its lines are
    {"key": a hash of question and options, "version", "label", "by", "reply", "question"}; lines of
    other rules, of another prompt or of another `model` (the name under which `ask`'s answers are
    kept) count for nothing. Where a model's reply was unreadable, today's rules are asked anew.
    """
    if ask is not None and not model:
        raise ValueError("name the model that `ask` asks: its labels are kept under this name")
    examples = list(examples)
    version = RULES_VERSION if ask is None else "model-" + cache.digest(PROMPT, model)
    known = {} if path is None else _read_labels(path, version)
    todo = {key: example for example in examples if (key := _key(example)) not in known}
    items = list(todo.items())
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        questions = [(example.question, example.options) for _, example in part]
        if ask is None:
            routes = [Route(route_by_rules(*question), "rules") for question in questions]
        else:
            routes = route_by_model(ask, questions)
        known.update((key, route) for (key, _), route in zip(part, routes, strict=True))
        if path is not None:
            lines = [
                {"key": key, "version": version, **route._asdict(), "question": example.question}
                for (key, example), route in zip(part, routes, strict=True)
            ]
            cache.append(path, lines)
    return [example.replace(route=_label(known[_key(example)], example)) for example in examples]


def with_noise(labels: Sequence[str], rate: float | int, seed: int) -> list[Label]:
    """Each label wrong with probability `rate`, then one of the other three, equally likely.

    For ablations of the router: 0.06 is the error that CRPO reports for its own. Label i's fate
    depends on `seed` and i only, and a label that is wrong at some rate is so at every higher one.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; it must lie in [0, 1]")
    places = [LABELS.index(check_label(label)) for label in labels]
    draws = np.random.default_rng(seed).random((len(places), 2))
    shifts = np.where(draws[:, 0] < rate, 1 + np.floor(3 * draws[:, 1]), 0).astype(int)
    return [LABELS[(place + shift) % 4] for place, shift in zip(places, shifts, strict=True)]


def _read_labels(path: str | os.PathLike[str], version: str) -> dict[str, Route]:
    known = {}
    for number, line in enumerate(cache.read(path), start=1):
        if line.get("version") == version:
            where = f"{path}, line {number}"
            label = check_label(line.get("label", ""), f"{where}: label")
            if not isinstance(line.get("key"), str):
                raise ValueError(f"{where}: no key")
            known[line["key"]] = Route(label, line.get("by", "model"), line.get("reply", ""))
    return known


def _label(route: Route, example: Example) -> Label:
    """The label of a route; a fallback's is never older than the rules."""
    if route.by == "fallback":
        return route_by_rules(example.question, example.options)
    return route.label


def _key(example: Example) -> str:
    return cache.digest(example.question, example.options)


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


def _half(cue: re.Pattern[str], choices: Sequence[str]) -> bool:
    """Whether at least half of the options have such a word."""
    return bool(choices) and 2 * sum(bool(cue.search(choice)) for choice in choices) >= len(choices)
