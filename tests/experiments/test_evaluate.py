"""`saccade evaluate` with an oracle that knows the world, with records made by hand, with files."""

import functools
import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

import vlm
from data.mp4 import write_mp4
from data.toyquestions import answer_text, prompt, questions
from data.toyscene import EVENTS, expected
from data.toytasks import CAPTION_REQUEST
from data.toywords import caption, clauses, description, sentence, statements
from data.toyworld import BRIEF, make
from data.types import Example
from experiments import annotated, budget, candidates, evaluate, exams, gates, localise, recording
from experiments.arguments import plain, read_config
from experiments.cli import main
from experiments.examiner import Examiner
from experiments.folder import Folder
from experiments.prompts import EMPTY
from experiments.recording import Records, Shelf
from experiments.viewer import State
from surprise import (
    Context,
    Generation,
    Prompts,
    Settings,
    Trace,
    advance,
    kl_divergence,
    stretches,
)
from surprise.record import Step
from surprise.trace import Episode

SETTINGS = Settings(schedule="fixed", steps=16, history="none", hypotheses=4, observation="pair")
PROMPTS = Prompts()


@dataclass
class Seen:
    contexts: list
    observed: list | None = None


class Oracle:
    """An examiner that knows all about what it is shown, and says what is right.

    It expects the usual, or that a red ring does tricks, which never happens.
    """

    batch, dtype, hf_compat = 4, "float32", "none"

    def __init__(self, *clips):
        self.clips = {name: c for c in clips for name in (c.scene.id, f"{c.scene.id}.mp4")}
        self.shown, self.steps_seen = set(), 0

    def show(self, video, frames, seconds, views, *, shown):
        assert len(frames) == len(seconds) and shown
        self.shown.add(video)

    def drop(self, video):
        self.shown.discard(video)

    def look(self, contexts):
        assert len(contexts) <= self.batch and all(context.window for context in contexts)
        assert {context.video for context in contexts} <= self.shown
        return Seen(list(contexts))

    def observe(self, state, observations):
        self.steps_seen += len(observations)
        return Seen(state.contexts, list(observations))

    def _scenes(self, state):
        return [(self.clips[context.video].scene, context.step) for context in state.contexts]

    def generate(self, state, question, sampling):
        rows = []
        for (scene, step), seeds in zip(self._scenes(state), sampling.seeds, strict=True):
            if question == PROMPTS.caption:
                texts = [_happens(scene, step)]
            else:
                usual = _usual(scene, step)
                odd = [f"the red ring does trick {int(seed) % 3}" for seed in seeds[1:]]
                texts = [usual, *odd][: len(seeds)]
            rows.append([Generation(text, True) for text in texts])
        return rows

    def nll(self, state, question, answers):
        sums = np.zeros((len(answers), len(answers[0])))
        for i, ((scene, step), row) in enumerate(zip(self._scenes(state), answers, strict=True)):
            for n, text in enumerate(row):
                if question == recording.MOMENT_QUESTION:
                    sums[i, n] = 5.0 - (int(text) == scene.events[0].step + 1)
                elif state.observed is None:
                    sums[i, n] = 1.0 if text == _usual(scene, step) else 6.0
                else:
                    sums[i, n] = 0.5 if text == _happens(scene, step) else 9.0
        return sums, np.array([[len(text.split()) for text in row] for row in answers])

    def p_yes(self, state, texts, yes, no):
        found = np.full((len(texts), len(texts[0])), 0.5)
        for i, ((scene, step), row) in enumerate(zip(self._scenes(state), texts, strict=True)):
            for n, text in enumerate(row):
                if text:
                    found[i, n] = 0.95 if self._right(scene, step, text) else 0.05
        return found

    def _right(self, scene, step, text):
        at_event = step in [event.step for event in scene.events]
        if text in recording.ODD_QUESTIONS:
            return at_event
        claim = text.split('"')[1]
        if claim == recording.ODD_CLAIM:
            return at_event
        if claim in (_happens(scene, step), *clauses(scene, step)):
            return True
        return not claim.startswith("the red ring does") and _truths(scene, step).get(claim, False)

    def summarize(self, prompts, *, system, max_tokens):
        raise AssertionError("nothing is remembered, so nothing is summarized")

    def answer(self, state, texts, *, max_tokens):
        return [
            self._answer(context, text, state.observed is not None)
            for context, text in zip(state.contexts, texts, strict=True)
        ]

    def _answer(self, context, text, observed):
        clip = self.clips[context.video]
        if text in (PROMPTS.predict, PROMPTS.statement):
            return _usual(clip.scene, context.step)
        if text == PROMPTS.caption:
            assert observed
            return _happens(clip.scene, context.step)
        if text == CAPTION_REQUEST:
            return caption(clip.scene)
        example, answer = _answers(clip.scene.id, self).get(text, (None, "no idea"))
        if example and example.task.startswith("brief_"):
            return answer if exams.Exam(clip, example).seen(context.window) else "no idea"
        return answer


@functools.cache
def _usual(scene, step):
    return sentence(scene, step, expected(scene, step))


@functools.cache
def _happens(scene, step):
    return description(scene, step)


@functools.cache
def _truths(scene, step):
    return {one.text: one.true for one in statements(scene, step)}


@functools.cache
def _answers(id, oracle):
    asked = {}
    for example in questions(oracle.clips[id], seed=0):
        for by in ("word", "letter"):
            text, answer = prompt(example, by=by)
            asked[text] = (example, answer)
    return asked


@pytest.fixture
def few_settings(monkeypatch):
    """Fewer settings to choose from, for speed."""
    names = ("difference", "second difference")
    few = {name: dict(list(recording.TUNABLE[name].items())[:1]) for name in names}
    monkeypatch.setattr(recording, "TUNABLE", few)
    monkeypatch.setattr(candidates, "TUNABLE", few)
    monkeypatch.setattr(candidates, "TAUS", (1.0,))
    monkeypatch.setattr(candidates, "COUNTS", (4, 2))


def _config(**changes):
    config = plain(read_config("evaluate.py:toy"))
    small = {"full_validation": 5, "full_test": 6, "brief_validation": 2, "brief_test": 3}
    small |= {"easy_validation": 0, "easy_test": 0, "gate_windows": 4, "gate_clips": 4}
    small |= {"pairs": 0, "moments": 0}
    return config | small | {"budgets": [4]} | changes


def _world(config, gated=True):
    """An oracle for every clip that the configuration will show."""
    sets = [clips for level in ("full", "easy", "brief")
            for clips in evaluate.clip_sets(level, config).values()]  # fmt: skip
    found = [clip for clips in sets for clip in clips.clips()]
    far = gates.FAR
    for n in range(4 * gated):
        found.append(make(far + n, split="test", kinds=EVENTS))
        found.append(make(2 * far + n, split="test"))
    return Oracle(*found)


# The whole evaluation


def test_an_oracle_passes_and_is_found_out_where_kl_is_blind(tmp_path, few_settings):
    config = _config()
    oracle = _world(config)
    shelf = Shelf.open(tmp_path / "records", oracle, SETTINGS, model="oracle")
    figures, table = evaluate.examine(oracle, shelf, config, SETTINGS)
    assert all(row["passed"] for row in table if row["part"] == "gates" and "passed" in row)
    assert sum(row.get("passed", False) for row in table) == len(gates.GATES)
    # At an event every hypothesis is refuted alike: evidence sees it, KL by probes can't.
    assert figures["evidence_acc1"] == figures["surprise_acc1"] == 1
    assert figures["all_refuted_event"] == 1 and figures["all_refuted_plain"] == 0
    assert figures["evidence_minus_kl"] == 1 - figures["kl_acc1"]
    local = [row for row in table if row["part"] == "localisation" and row["level"] == "full"]
    rows = {row["score"]: row for row in local}
    assert rows["KL as released"]["acc1"] < 0.5
    held = {(row["score"], row["switch"], row["value"]): row for row in table
            if row["part"] == "switches" and row["level"] == "full"}  # fmt: skip
    assert held["KL", "posterior", "probe"]["acc1"] < 0.5
    assert {"observation", "hypotheses"} & {switch for _, switch, _ in held} == {"hypotheses"}
    assert rows["own caption"]["acc0"] == rows["zero-shot, whole clip"]["acc0"] == 1
    assert rows["zero-shot, step by step"]["auroc"] == 1 and rows["evidence"]["n"] == 6
    assert {row["group"] for row in rows.values()} == {
        *("surprise", "fixed", "model", "pixels", "chance")
    }
    # Truth sees every moment; a question about one that was not shown has no answer.
    spent = {(row["frames"], row["chosen by"]): row for row in table if row["part"] == "budget"}
    assert figures["budget4_truth"] == 1 and spent[4, "truth"]["covered"] == 1
    assert all(row["accuracy"] == row["covered"] for row in spent.values())
    assert figures["budget4_surprise"] == 1
    assert figures["budget4_gain"] == pytest.approx(1 - figures["budget4_uniform"])
    for name in ("surprise_acc1", "best_pixel_acc1", "budget4_surprise", "budget4_uniform"):
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]

    # Killed in the middle and started again: only what is missing is asked, all numbers are equal.
    files = sorted((tmp_path / "records").glob("*-full-*.jsonl"))
    assert len(files) == 2 + 2
    before, oracle.steps_seen = files[0].read_bytes(), 0
    files[0].unlink()
    config |= {"brief_test": 0, "gate_windows": 0, "gate_clips": 0}
    again, rows = evaluate.examine(oracle, shelf, config, SETTINGS)
    assert files[0].read_bytes() == before and oracle.steps_seen == 15 * len(before.splitlines())
    assert again == {name: figures[name] for name in again} and len(again) > 50
    assert rows == [row for row in table if row.get("level") == "full"]


def test_records_of_another_model_or_setting_are_refused(tmp_path):
    oracle = Oracle()
    Shelf.open(tmp_path, oracle, SETTINGS, model="one")
    Shelf.open(tmp_path, oracle, replace(SETTINGS, tau=2.0, posterior="probe"), model="one")
    for settings, model, word in (
        (SETTINGS, "two", "model"),
        (replace(SETTINGS, hypotheses=5), "one", "hypotheses"),
    ):
        with pytest.raises(ValueError, match=word):
            Shelf.open(tmp_path, oracle, settings, model=model)


def test_gates_find_out_who_does_not_look():
    """A model that says yes to everything, and knows no question, fails."""
    scenes = [make(gates.FAR + n, split="test", kinds=EVENTS) for n in range(6)]
    blind = Oracle(*scenes)
    blind._right = lambda scene, step, text: True
    figures, _ = gates.gates(blind, SETTINGS, windows=6, clips=0)
    assert figures["event_true"].value == 1 and figures["event_false"].value == 1
    assert figures["event_balanced"].value == figures["event_balanced_swapped"].value == 0.5
    assert figures["old_motion_refuted"].value == 0
    truths = [name for name in figures if name.startswith("word_") and name.endswith("_true")]
    assert truths and all(figures[name].value == 1 for name in truths)
    figures, _ = gates.gates(Oracle(*scenes), SETTINGS, windows=6, clips=0)
    assert figures["old_motion_refuted"].value == figures["claims"].value == 1
    assert figures["claims_swapped"].value < 0.8


# Records made by hand


def _records(yes, prior, posterior, texts, tokens=None):
    """One clip of two steps with three samples each."""
    line = {
        "id": "a", "kind": "jump", "moments": [2], "seconds": [0.0, 0.25, 0.5],
        "hypotheses": texts, "tokens": tokens or [[1, 1, 1]] * 2,
        "prior_nll": prior, "posterior_nll": posterior, "probe_yes": yes,
        "caption": ["x", "y"], "caption_tokens": [2, 4],
        "caption_prior_nll": [2.0, 12.0], "caption_posterior_nll": [1.0, 2.0],
        "odd": [[0.1, 0.2, 0.3], [0.9, 0.8, 0.1]], "moment": [-3.0, -1.0],
        "pixels": {"difference": {"raw": [1.0, 4.0]}},
    }  # fmt: skip
    return Records([line])


FLAT = [[1.0, 1.0, 1.0]] * 2
TEXTS = [["a", "b", "c"], ["A.", "a", ""]]


def test_published_values_follow_from_a_record():
    yes = [[0.9, 0.9, 0.01], [0.01, 0.02, 0.03]]
    records = _records(yes, FLAT, FLAT, [["a", "b", "c"]] * 2)
    probe = replace(SETTINGS, posterior="probe")
    found = candidates.beliefs(records, probe, 3)
    np.testing.assert_allclose(found.kl, [0.3751, 0.0872], atol=1e-4)
    np.testing.assert_allclose(found.evidence, [0.5053, 3.9120], atol=1e-4)
    # With "something else": prior (.3, .3, .3, .1), products (.27, .27, .003, .05).
    other = candidates.beliefs(records, replace(probe, other=True), 3)
    posterior = np.array([0.27, 0.27, 0.003, 0.05]) / 0.593
    expected_kl = kl_divergence(posterior, np.array([0.3, 0.3, 0.3, 0.1]))
    np.testing.assert_allclose(other.kl[0], expected_kl)


def test_the_first_samples_are_what_fewer_would_have_been():
    records = _records(FLAT, FLAT, FLAT, TEXTS)
    assert records.valid(3).tolist() == [[[True, True, True], [True, False, False]]]
    assert records.valid(2)[0, 0].tolist() == [True, True, False]
    assert records.first[0, 1].tolist() == [0, 0, -1]
    late = _records(FLAT, FLAT, FLAT, [["", "b", "b"]] * 2)
    assert late.valid(3)[0, 0].tolist() == [False, True, False]
    assert not late.valid(1).any()
    assert candidates.beliefs(late, SETTINGS, 1).kl.tolist() == [0, 0]


def test_sum_and_mean_differ_by_the_tokens():
    tokens = [[1, 2, 4]] * 2
    records = _records(FLAT, [[1.0, 2.0, 4.0]] * 2, FLAT, [["a", "b", "c"]] * 2, tokens)
    mean = candidates.beliefs(records, SETTINGS, 3)
    np.testing.assert_allclose(mean.prior[0], 1 / 3)
    total = candidates.beliefs(records, replace(SETTINGS, reduction="sum"), 3)
    weights = np.exp([-1.0, -2, -4])
    np.testing.assert_allclose(total.prior[0], weights / weights.sum())


def test_baselines_from_a_record():
    recorded = {"pair": _records(FLAT, FLAT, FLAT, TEXTS)}
    by_family = {}
    for one in candidates._model("pair"):
        by_family.setdefault(one.family, []).append(one)
    plain_ones = {
        (one.settings.get("of"), one.settings.get("reduction")): one.scores(recorded)[0].tolist()
        for one in by_family["own caption"]
        if (one.settings["form"], one.settings["smooth"], one.settings["from_step"])
        == ("plain", 1, 1)
    }
    assert plain_ones == {
        ("before", "mean"): [1.0, 3.0],
        ("before", "sum"): [2.0, 12.0],
        ("ratio", "mean"): [0.5, 2.5],
        ("ratio", "sum"): [1.0, 10.0],
    }
    asked = [
        one
        for one in by_family["zero-shot, step by step"]
        if (one.settings["smooth"], one.settings["from_step"]) == (1, 1)
    ]
    assert len(by_family["zero-shot, step by step"]) == 54
    assert asked[0].scores(recorded)[0].tolist() == [0.1, 0.9]
    np.testing.assert_allclose(asked[-3].scores(recorded)[0], [0.3, 0.1])


def test_baselines_have_as_many_settings_to_choose_from():
    found = candidates.candidates(replace(SETTINGS, hypotheses=8), ("pair",))
    count = {group: sum(one.group == group for one in found) for group in ("surprise", "pixels")}
    assert count["pixels"] >= count["surprise"] >= 200
    assert len({(one.family, str(one.settings)) for one in found}) == len(found)


class Knowing:
    """Answers questions about videos that it was shown, as `answer(exam, frames)` would."""

    batch = 7

    def __init__(self, answer):
        self._answer, self._exams, self._shown = answer, {}, {}

    def knows(self, asked):
        for exam in asked:
            self._exams[exam.example.video, prompt(exam.example)[0]] = exam

    def show(self, video, frames, seconds, views, *, shown):
        self._shown[video] = frames

    def drop(self, video):
        self._shown.pop(video, None)

    def look(self, contexts):
        return contexts

    def answer(self, state, texts, *, max_tokens):
        found = []
        for context, text in zip(state, texts, strict=True):
            exam = self._exams[context.video, text]
            assert (self._shown[context.video] == exam.clip.frames).all()
            found.append(self._answer(exam, context.window))
        return found


OF_KIND = {"recolor": "colour", "morph": "shape"}  # what is asked of such a moment; or its name


@pytest.fixture
def examined(monkeypatch):
    """Figures of who answers as a function of the exam and the frames shown does."""
    answered = exams.answered

    tasks = set()

    def knowing(examiner, system, asked):
        examiner.knows([exam for exam, _ in asked])
        tasks.update(exam.example.task for exam, _ in asked)
        return answered(examiner, system, asked)

    def figures(answer, kinds=("recolor",)):
        tasks.clear()
        found, _ = exams.figures(Knowing(answer), "", pairs=12, moments=12, kinds=kinds, seed=0)
        about = {f"brief_{OF_KIND.get(kind, kind)}" for kind in kinds}
        assert {task for task in tasks if task.startswith("brief_")} == about
        assert min(found["p_acc"].n, found["agreement"].n) >= 4 and found["brief_acc"].n >= 10
        return {name: estimate.value for name, estimate in found.items()}

    monkeypatch.setattr(exams, "answered", knowing)
    return figures


def test_pairs_tell_who_looks_at_the_video(examined):
    def truth(exam, window):
        return answer_text(exam.example)

    def always_the_same(exam, window):
        return min(exam.example.options)

    def of_what_is_shown(exam, window):
        brief = exam.example.task.startswith("brief_")
        return truth(exam, window) if not brief or exam.seen(window) else "no idea"

    assert set(examined(truth).values()) == {1.0} == set(examined(truth, BRIEF).values())
    found = examined(always_the_same)
    assert found["p_acc"] == 0 < found["i_acc"] <= 0.5 and found["agreement"] == 1
    found = examined(of_what_is_shown)
    assert 0.2 < found.pop("brief_acc") < 1 and set(found.values()) == {1.0}


def test_every_score_may_leave_the_first_step_out():
    recorded = {"pair": _records(FLAT, FLAT, FLAT, TEXTS)}
    found = candidates.candidates(replace(SETTINGS, hypotheses=2), ("pair",))
    by_family = {}
    for one in found:
        if one.group in ("surprise", "model"):
            by_family.setdefault(one.family, []).append(one)
    for ones in by_family.values():
        assert {one.settings["from_step"] for one in ones} == {1, 2}
        for one in ones:
            if one.settings["from_step"] == 2:
                scores = one.scores(recorded)[0]
                assert scores[0] == scores.min()


def test_only_frames_of_the_moment_answer_the_question():
    for index in range(3):
        [exam] = exams.of_moments([make(index, level="brief", kinds=("recolor",))], seed=0)
        colour = exam.clip.scene.colour[exam.clip.scene.events[0].object]
        differs = np.flatnonzero(colour != colour[0]).tolist()
        assert list(exam.moment) == differs and exam.seen([0, differs[-1]])
        assert not exam.seen(sorted({*range(32)} - {*differs}))
        assert exam.seen(budget._truth(exam, 1, 0)) and exam.example.task == "brief_colour"


def test_a_selector_is_chosen_by_what_it_shows():
    [exam] = exams.of_moments([make(0, level="brief", kinds=("recolor",))], seed=0)
    first, *_, last = exam.moment
    scores = np.zeros((1, 32))
    scores[0, first] = 1.0
    share = 1 / len(exam.moment)
    assert budget._best_selector(scores, [(0, exam)], 1) == ("softmax, tau 0.3", (1.0, share))
    # All show it; the peak's neighbours show more of it than its end, which stands out as well.
    scores[0, last + 1] = 0.9
    selector, worth = budget._best_selector(scores, [(0, exam)], 4)
    assert selector == "peaks" and worth == (1.0, exam.shown([first, first + 1]))


def test_settings_are_chosen_by_validation_alone():
    seconds = np.arange(4) * 0.25
    truth = [localise.Video(seconds, ((0.5, 0.5),), ((0.5, 0.5),), 1.0)] * 3
    shapes = {"first": [9.0, 0, 0], "right": [0, 9.0, 0], "also right": [0, 8.0, 1]}

    def one(name):
        rows = np.tile(shapes[name], (3, 1))
        return candidates.Candidate("family", "pixels", {"name": name}, lambda _: rows)

    chosen, shares = localise.choose([one(name) for name in shapes], {}, truth, 0.0)
    assert chosen["family"].candidate.settings == {"name": "right"}
    assert shares == [0, 1, 1] and chosen["family"].tried == 3


def test_metrics_by_hand():
    seconds = np.arange(5) * 0.5
    video = localise.Video(seconds, ((1.0, 2.0),), ((1.0, 2.0),), 2.5, oops=False)
    scores = [np.array([0.0, 0.1, 0.9, 1.0, 0.2])]  # above .8: steps 2 and 3, (0.5, 1.5]
    found = localise.metrics(scores, [video], {"acc": 0.0})
    assert found["acc"].value == 1 and found["iou"].value == pytest.approx(0.5 / 1.5)
    assert found["released_coverage"].value == 1 and found["released_acc"].value == 1
    assert found["auroc"].value == 1  # steps 2 to 4 against step 1
    for raised in (np.array([0.5, 0.6, 0.9, 1.0, 0.55]), scores[0] - 2):  # as is; above the lowest
        assert localise.metrics([raised], [video], {})["iou"].value == found["iou"].value
    moments = replace(video, windows=((1.0, 1.0),))
    assert np.isnan(localise.metrics(scores, [moments], {"acc": 0.0})["iou"].value)


def test_a_window_of_the_toy_world_is_the_frames_that_show_the_event():
    clip = make(3, split="test", level="brief", kinds=("recolor",))
    colours = clip.scene.colour[clip.scene.events[0].object]
    shown = (colours != colours[0]).astype(float)
    [video] = localise.videos(Records([recording.truth(clip)]))
    assert 0 < shown.sum() < 8
    assert localise.metrics([shown], [video], {})["iou"].value == pytest.approx(1)


def test_records_are_what_scoring_would_have_seen(few_settings):
    """The same hypotheses, captions and beliefs as `surprise.advance` with fewer samples."""
    clip = make(0, split="test", kinds=("jump",))
    id, count = clip.scene.id, clip.scene.steps
    oracle = Oracle(clip)
    [line] = recording.record(oracle, SETTINGS, [clip])
    assert len(line["moment"]) == len(line["odd"]) == 15 and len(line["odd"][0]) == 3
    assert line["moments"] == [np.argmax(line["moment"]) + 1]  # step 0 is left out
    oracle.show(id, clip.frames, np.arange(count) / 4, [], shown=4)
    oracle.batch = count
    episode = Episode(id, tuple(range(count)), tuple((np.arange(count) / 4).tolist()))
    for changes in ({"posterior": "probe"}, {"posterior": "nll", "reduction": "sum"}):
        fewer = replace(SETTINGS, hypotheses=2, tau=2.0, **changes)
        done = advance(oracle, fewer, stretches(fewer, episode)[1:])
        found = candidates.beliefs(Records([line]), fewer, 2)
        for i, [step] in enumerate(viewing.steps for viewing in done):
            assert step.hypotheses == tuple(line["hypotheses"][i][:2])
            assert step.caption == line["caption"][i]
            assert (step.kl, step.js, step.evidence) == (
                found.kl[i], found.js[i], found.evidence[i],
            )  # fmt: skip


# Annotated sets


@pytest.fixture(scope="module")
def oops(tmp_path_factory):
    """Clips with transition times: one file broken, one without a trace, one of a single step."""
    folder = tmp_path_factory.mktemp("oops")
    times, traces = {}, []
    for name, level in (("a", 40), ("b", 200), ("broken", 90), ("untraced", 10), ("single", 60)):
        frames = np.full((8, 32, 48, 3), level, np.uint8)
        frames[5:, 8:24, 8:24] = 255 - level
        path = folder / f"{name}.mp4"
        write_mp4(path, frames, 4)
        if name == "broken":
            path.write_bytes(b"no video")
        times[name] = {"t": [1.25], "n_notfound": 0, "len": 2.0}
        kl = [0, 0.1, 0.2, 0.1, 0.3, 2.0, 0.1, 0.1] if name != "b" else [0, 3, *[0] * 6]
        steps = tuple(
            Step(frame=i, seconds=i / 4, posterior_nll=(), kl=float(s), score=float(s))
            for i, s in enumerate(kl if name != "single" else kl[:1])
        )
        trace = Trace(str(path), f"hash-{name}", 4.0, 8, 2.0, 48, 32, "m", {"score": "kl"}, steps)
        if name != "untraced":
            traces.append(trace.to_line())
    (folder / "times.json").write_text(json.dumps(times))
    (folder / "trace.jsonl").write_text("\n".join([*traces, "{"]) + "\n")
    return folder


def _annotated(folder, out, *more):
    return main(
        [
            "evaluate", f"--out={out}", "--config.dataset=oops",
            f"--config.annotations={folder / 'times.json'}",
            f"--config.traces={folder / 'trace.jsonl'}", *more,
        ]
    )  # fmt: skip


def test_traces_against_annotations(oops, tmp_path):
    assert _annotated(oops, tmp_path) == 1
    result = json.loads((tmp_path / "results.json").read_text())
    figures = result["figures"]
    assert figures["acc_0.25"] == 0.5 and figures["acc_0.25_n"] == 2 and figures["acc_1"] == 1
    assert figures["iou"] is None and figures["released_acc_0.25"] == 0.5
    rows = {row["score"]: row for row in result["table"]}
    assert rows["difference"]["acc_0.25"] == 1 and rows["difference"]["behind score"] == 0
    assert rows["score"]["auroc"] == rows["kl"]["auroc"] < rows["difference"]["auroc"] == 1
    assert {"random", "always the middle", "evidence"} < set(rows)
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert sorted((line["id"], line["stage"]) for line in failures) == [
        (f"{oops / 'trace.jsonl'}:5", "trace"), ("broken", "open"), ("single", "trace"),
        ("untraced", "trace"),
    ]  # fmt: skip
    assert "| difference " in (tmp_path / "table.md").read_text()
    assert result["command"].startswith("saccade evaluate") and result["hardware"]


def test_traces_are_joined_by_path_then_id_then_name(tmp_path):
    step = Step(frame=0, seconds=0.0, posterior_nll=())

    def traced(video, id):
        return Trace(video, id, 4.0, 8, 2.0, 48, 32, "m", {}, (step,)).to_dict()

    given = [("/x/a.mp4", "1"), ("/x/b.mp4", "2"), ("/y/c.mp4", "3"), ("/z/c.mp4", "4")]
    folder = Folder(tmp_path, {id: traced(video, id) for video, id in given}, set())
    asked = {
        ("2", "/x/a.mp4"): "1",
        ("2", "/w/none.mp4"): "2",
        ("e", "/w/b.mp4"): "2",
        ("f", "/w/c.mp4"): None,
        ("g", "/w/d.mp4"): None,
    }
    examples = [Example(id=id, video=video) for id, video in asked]
    found = [trace and trace.id for _, trace in annotated._joined(examples, folder)]
    assert found == list(asked.values())


def test_wrong_calls_say_what_is_wrong(tmp_path, capsys):
    cases = {
        "--config.dataset=nothing": "choose from toy",
        "--config.dataset=oops": "no such file",
        "--config=evaluate.py:huge": "no mode",
        "--config.processes=2": "one process",
    }
    for flag, message in cases.items():
        assert main(["evaluate", f"--out={tmp_path}", flag]) == 2
        assert message in capsys.readouterr().err
    toy = ["evaluate", f"--out={tmp_path}", "--config=evaluate.py:demo"]
    for flag, message in (
        ("history=captions", "history none"),
        ("observations=two", "frame, pair"),
        ("moment_kinds=jump", "vanish, recolor, split, morph"),
    ):
        assert main([*toy, f"--config.{flag}"]) == 2
        assert message in capsys.readouterr().err


def _shown(examiner):
    """A state of two clips, one of them backwards."""
    clip, seconds, window = make(0), np.arange(16) / 4, (0, 1)
    examiner.show("a", clip.frames, seconds, [window], shown=2)
    examiner.show("b", clip.frames[::-1], seconds, [window], shown=2)
    return [Context(name, 2, "", "", window) for name in "ab"]


def test_every_video_has_a_question_of_its_own(monkeypatch):
    tiny = vlm.load("tiny", dtype="float32")
    examiner, asked = Examiner(tiny, batch=3), []
    monkeypatch.setattr(examiner, "add", lambda *_: None)
    contexts = tuple(examiner._filled(_shown(examiner)))
    state = State(2, contexts, (EMPTY,) * 3, None)

    def answers(state, rows, how):
        asked.extend(tiny.processor.decode(row.ids) for row in rows)
        return [[Generation(f"1. answer {i}", True)] for i in range(len(rows))]

    monkeypatch.setattr(examiner, "_answers", answers)
    told = examiner.answer(state, ["What is red?", "What is blue?"], max_tokens=3)
    assert told == ["answer 0", "answer 1"]
    assert ["blue" in text for text in asked] == [False, True, False]


@pytest.mark.slow
def test_answers_do_not_depend_on_what_others_are_asked():
    examiner = Examiner(vlm.load("tiny", dtype="float32"), batch=2)
    state = examiner.look(_shown(examiner))
    asked = ["What is red?", "What is blue?"]
    own = examiner.answer(state, asked, max_tokens=3)
    for i, question in enumerate(asked):
        assert examiner.answer(state, [question] * 2, max_tokens=3)[i] == own[i]


@pytest.mark.slow
def test_the_demo_with_a_random_model(tmp_path):
    call = ["evaluate", f"--out={tmp_path}", "--config=evaluate.py:demo", "--model=tiny",
            "--config.full_validation=3", "--config.full_test=3", "--config.batch=3",
            "--config.hypotheses=2", "--config.hypothesis_tokens=4"]  # fmt: skip
    assert main(call) == 0
    first = json.loads((tmp_path / "results.json").read_text())
    shutil.rmtree(tmp_path / "records")
    assert main(call) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert first["figures"] == again["figures"] and first["table"] == again["table"]
    assert first["figures"]["surprise_acc1_n"] == 3
