"""Each reader on a sample in the published format, on broken ones, and on real files if at hand."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest

from data import annotations
from data.annotations import DataError, without_letters
from data.readers import READERS, read

ASSETS = Path(__file__).resolve().parents[2].parent / "shared/assets/annotations"


def put(path, content):
    """Writes rows in the format that the file's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, content[0])
            writer.writeheader()
            writer.writerows(content)
    elif path.suffix == ".parquet":
        names = dict.fromkeys(name for row in content for name in row)
        rows = [{name: row.get(name) for name in names} for row in content]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(content)
    return path


def one(examples):
    [example] = examples
    return example


TRANSITIONS = {
    "Best Fails 1": {"t": [2.5, 3.5, 3.0], "len": 4.0, "n_notfound": 0},
    "F.O.C.U.S. 2": {"t": [-1.0, 1.0, 2.0], "len": 4.0, "n_notfound": 1},
    "Fails 3": {"t": [-1, -1, 2.0], "len": 4.0, "n_notfound": 2},
    "Fails 4": {"t": [-1, -1, -1], "len": 4.0, "n_notfound": 3},
    "Train 5": {"t": [1, 2, 3], "len": 4.0, "n_notfound": 0},
}


def test_oops_takes_the_median_of_the_workers_who_saw_a_failure(tmp_path):
    put(tmp_path / "transition_times.json", TRANSITIONS)
    put(tmp_path / "val_filtered.txt", "Best Fails 1\nF.O.C.U.S. 2\nFails 3\nFails 4\n")
    found = read("oops", tmp_path, root="/videos")
    assert [(e.id, e.events, e.kind) for e in found] == [
        ("Best Fails 1", ((3.0, 3.0),), "localisation"),
        ("F.O.C.U.S. 2", ((1.5, 1.5),), "localisation"),  # -1 is no time, and no weight either
    ]
    assert found[1].video == "/videos/oops_video/val/F.O.C.U.S. 2.mp4"
    assert found[0].extra == TRANSITIONS["Best Fails 1"]
    everything = read("oops", tmp_path / "transition_times.json")
    assert [e.id for e in everything] == ["Best Fails 1", "F.O.C.U.S. 2", "Train 5"]


def test_oops_held_out_labels_and_unlabelled_training_clips(tmp_path):
    held_out = {"a": {"t": [1.25], "n_notfound": 0}, "b": {"t": [-1], "n_notfound": 1}}
    found = read("oops", put(tmp_path / "heldout_transition_times.json", held_out))
    assert [(e.id, e.events) for e in found] == [("a", ((1.25, 1.25),))]
    put(tmp_path / "transition_times.json", TRANSITIONS)
    names = put(tmp_path / "train_filtered.txt", "Train 5\nnot labelled 6\n")
    assert [e.id for e in read("oops", names)] == ["Train 5"]


def test_oops_in_the_form_of_spike(tmp_path):
    rows = [{"set_id": "0_99", "index": 7, "transition": 3.25}]
    found = one(read("oops", put(tmp_path / "oops.json", rows)))
    assert found.video == str(tmp_path / "0_99_merged/7_E_merged.mp4")
    assert found.events == ((3.25, 3.25),)
    assert found.id == "0_99/7"


FUNQA = {"instruction": "When?", "visual_input": "H_A_1.mp4", "task": "H1", "ID": "test_0"}


@pytest.mark.parametrize(
    ("task", "name", "folder", "seconds"),
    [
        ("H1", "H_A_1.mp4", "test_humor", (2.0, 4.0)),  # frames, 30 a second
        ("M1", "M_A_1.mp4", "test_magic", (2.0, 4.0)),
        ("C1", "C_KT_1.mp4", "test_creative", (60.0, 120.0)),  # seconds
    ],
)
def test_funqa_moments(tmp_path, task, name, folder, seconds):
    row = {**FUNQA, "task": task, "visual_input": name, "output": "[60, 120]"}
    found = one(read("funqa", put(tmp_path / "a.json", [row]), root="/funqa"))
    assert found.events == (pytest.approx(seconds),)
    assert (found.kind, found.answer, found.id) == ("localisation", "[60, 120]", "test_0")
    assert found.video == f"/funqa/{folder}/{name}"


def test_funqa_words_and_the_form_of_lmms_eval(tmp_path):
    row = {**FUNQA, "task": "H2", "output": "A cat."}
    found = one(read("funqa", put(tmp_path / "a.json", [row])))
    assert (found.kind, found.caption, found.answer) == ("caption", "A cat.", "A cat.")
    assert (found.question, found.events) == ("When?", ())
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/H_A_1.MP4").touch()
    row = {"video_name": "H_A_1.mp4", "question": "Why?", "answer": "Fun.", "task": "H3"}
    found = one(read("funqa", put(tmp_path / "b.jsonl", [row])))
    assert (found.kind, found.question, found.answer) == ("text", "Why?", "Fun.")
    assert found.video == str(tmp_path / "videos/H_A_1.MP4")


def test_activitynet_captions(tmp_path):
    rows = {
        "v_a": {
            "duration": 9.5,
            "timestamps": [[0, 4.5], [9, 3]],  # the second is the wrong way round
            "sentences": ["One falls.", "  Two laugh. "],
        }
    }
    found = one(read("activitynet_captions", put(tmp_path / "train.json", rows)))
    assert found.caption == "One falls. Two laugh."
    assert found.events == ((0.0, 4.5), (3.0, 9.0))
    assert (found.id, found.kind, found.extra["duration"]) == ("v_a", "caption", 9.5)


def test_exfuntube_takes_the_longest_moment(tmp_path):
    moments = [
        {"start": 1, "end": 3, "explanation": "short"},
        {"start": 4.0, "end": 7.5, "explanation": "long"},
    ]
    rows = [{"youtube_id": "-x_1", "moments": moments}]
    found = one(read("exfuntube", put(tmp_path / "a.json", rows)))
    assert (found.caption, found.events) == ("long", ((4.0, 7.5),))
    assert found.video == str(tmp_path / "-x_1.mp4")
    assert found.extra["moments"] == moments


def test_spike_rl_training_rows(tmp_path):
    row = {"video": "a.mp4", "caption": "It falls.", "duration": 12.0, "source": "oops"}
    found = one(read("spike_rl", put(tmp_path / "a.jsonl", [row])))
    assert (found.caption, found.task, found.kind) == ("It falls.", "oops", "caption")
    assert found.extra == {"duration": 12.0}


def test_laughter(tmp_path):
    peak = {"start_time": 4.0, "end_time": 7.0, "max_volume_db": -21.5}
    curve = [[0.0, 1.0, -40.0], [1.0, 2.0, -30.0]]
    scene = {"scene_file": "bean_3.mp4", "volume_peak_3s": peak, "volume_curve": curve}
    found = one(read("laughter", put(tmp_path / "a.json", {"scenes": [scene]})))
    assert (found.id, found.events, found.kind) == ("bean_3", ((4.0, 7.0),), "localisation")
    assert found.extra["volume_curve"] == curve


BLACKSWAN = {
    "q_id": 12,
    "task": "Detective",
    "difficulty": "hard",
    "default_question": "What happened?",
    "mcq_options": ["It fell.", "It flew.", "It sank."],
    "mcq_gt_option": 2,
    "set_id": "0_99",
    "index": 4,
}


def test_blackswan(tmp_path):
    reporter = {**BLACKSWAN, "q_id": 13, "task": "Reporter", "mcq_gt_option": None}
    spike = {"video_path": "clips/a.mp4", "mcq_options": ["x", "y", "z"], "mcq_gt_option": 0}
    spike |= {"q_id": 14, "task": "Reporter"}
    found = read("blackswan", put(tmp_path / "a.jsonl", [BLACKSWAN, reporter, spike]))
    assert [e.answer for e in found] == ["C", "", "A"]  # the test set's answers are withheld
    names = ["0_99_merged/4_D_merged.mp4", "0_99_merged/4_E_merged.mp4", "clips/a.mp4"]
    assert [e.video for e in found] == [str(tmp_path / name) for name in names]
    assert found[0].question == "What happened?" and found[2].question


VIDEO_MME = {
    "video_id": "001",
    "duration": "short",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many?",
    "options": ["A. Apples.", "B. A dog.", "C. U.S. flags.", "D. None."],
    "answer": "C",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_video_mme(tmp_path, suffix):
    found = one(read("video_mme", put(tmp_path / f"test{suffix}", [VIDEO_MME])))
    assert found.options == ("Apples.", "A dog.", "U.S. flags.", "None.")
    assert (found.id, found.answer, found.kind) == ("001-1", "C", "multiple_choice")
    assert found.task == "Counting Problem"
    assert found.video == str(tmp_path / "data/fFjv93ACGo8.mp4")  # the videoID, not the video_id
    assert found.extra == {"video_id": "001", "duration": "short"}


NEXTQA = {
    **{"video": "401", "frame_count": "369", "width": "640", "height": "480"},
    **{"question": "how", "answer": "4", "qid": "6", "type": "CH"},
    **{f"a{i}": text for i, text in enumerate(["roll", "tap", "strum", "hit, with sticks", "pat"])},
}


def test_nextqa_has_five_options_and_a_map(tmp_path):
    path = put(tmp_path / "val.csv", [NEXTQA])
    found = one(read("nextqa", path))
    assert found.options == ("roll", "tap", "strum", "hit, with sticks", "pat")
    assert (found.answer, found.task, found.id) == ("E", "CH", "401_6")
    assert found.video == str(tmp_path / "401.mp4")
    put(tmp_path / "map_vid_vidorID.json", {"401": "1106/401"})
    assert one(read("nextqa", path)).video == str(tmp_path / "1106/401.mp4")


def test_nextqa_open_ended(tmp_path):
    row = {"video": "401", "question": "why", "answer": "to eat", "qid": "1", "type": "CW"}
    found = one(read("nextqa", put(tmp_path / "val.csv", [row])))
    assert (found.options, found.answer, found.kind) == ((), "to eat", "text")


NEXTGQA = {
    **{"id": "48_1", "video": "1104/48.mp4", "question": "why", "duration": 90, "type": "CW"},
    **{"options": ["(A) share", "(B) (quietly) go", "(C) a nap"], "answer": "(C)"},
    "glue": [[13.8, 29.8], [40, 41]],
}


def test_nextgqa(tmp_path):
    found = one(read("nextgqa", put(tmp_path / "val.json", [NEXTGQA])))
    assert found.options == ("share", "(quietly) go", "a nap")
    assert (found.answer, found.events) == ("C", ((13.8, 29.8), (40.0, 41.0)))


TEMPCOMPASS = {
    "multi-choice": {
        "12": {
            "action": [{"question": "What?\nA. A dog runs\nB. walks", "answer": "A. A dog runs"}],
            "direction": [{"question": "Where to?\nA. left\nB. right", "answer": "B. right"}],
        },
        "12_reverse": {
            "direction": [{"question": "Where to?\nA. right\nB. left", "answer": "B. left"}]
        },
    },
    "yes_no": {"12": {"action": [{"question": "Is it running?", "answer": "no"}]}},
    "caption_matching": {
        "12": {
            "order": [
                {"question": "Which?\nOption 1: A.\nOption 2: B.", "answer": "Option 2: B."},
                {"question": "Which?\nCaption A: a.\nCaption B: b.", "answer": "Caption A: a."},
            ]
        }
    },
    "captioning": {
        "12": {
            "speed": [
                {
                    "question": "Write.\nInformation A: {'speed': 'slow'}\nGenerated Caption:",
                    "answer": "A. slow",
                }
            ]
        }
    },
}


def test_tempcompass_has_four_tasks(tmp_path):
    for task, rows in TEMPCOMPASS.items():
        put(tmp_path / f"{task}.json", rows)
    found = {e.id: e for e in read("tempcompass", tmp_path, root="/tc")}
    assert len(found) == 7
    choice = found["multi-choice/12/action/0"]
    assert (choice.question, choice.options) == ("What?", ("A dog runs", "walks"))
    assert (choice.answer, choice.extra, choice.pair) == ("A", {"dim": "action"}, "")
    assert choice.video == "/tc/videos/12.mp4"
    there, back = found["multi-choice/12/direction/0"], found["multi-choice/12_reverse/direction/0"]
    assert there.pair == back.pair != ""
    assert (there.answer, back.answer) == ("B", "B")  # the order of the options differs
    yes_no = found["yes_no/12/action/0"]
    assert (yes_no.kind, yes_no.answer, yes_no.options) == ("yes_no", "no", ())
    matching = [found[f"caption_matching/12/order/{i}"] for i in (0, 1)]
    assert [(e.answer, e.options) for e in matching] == [("B", ("A.", "B.")), ("A", ("a.", "b."))]
    caption = found["captioning/12/speed/0"]
    assert (caption.kind, caption.answer, caption.options) == ("caption", "slow", ())


def test_tempcompass_in_the_form_of_lmms_eval(tmp_path):
    row = {"video_id": "12", "question": "Q?\nA. x\nB. y", "answer": "B", "dim": "speed"}
    found = one(read("tempcompass", put(tmp_path / "test.jsonl", [row])))
    assert (found.options, found.answer, found.task) == (("x", "y"), "B", "multi-choice")


MVBENCH = {"video": "v_1.mp4", "question": "How many?", "candidates": ["3", "2", "4"]}


def test_mvbench(tmp_path):
    put(tmp_path / "json/action_count.json", [{**MVBENCH, "answer": "4"}] * 2)
    timed = {**MVBENCH, "answer": "3", "start": 1.5, "end": 17.1, "subtitle": "hi"}
    put(tmp_path / "json/action_sequence.json", [timed])
    (tmp_path / "videos/star/Charades_v1_480").mkdir(parents=True)
    (tmp_path / "videos/star/Charades_v1_480/v_1.webm").touch()
    first, second, third = read("mvbench", tmp_path / "json", root=tmp_path / "videos")
    assert (first.id, second.id) == ("action_count/0", "action_count/1")
    assert (first.answer, first.options, first.span) == ("C", ("3", "2", "4"), None)
    assert first.video == str(tmp_path / "videos/perception/videos/v_1.mp4")
    assert (third.answer, third.span, third.task) == ("A", (1.5, 17.1), "action_sequence")
    assert third.extra["subtitle"] == "hi"
    assert third.video == str(tmp_path / "videos/star/Charades_v1_480/v_1.webm")


def timeblind_rows():
    choice = "How? Option A: It rises. Option B: It falls."
    instances = [("yes_no", ["Yes", "No", "No", "Yes"]), ("multiple_choice", list("ABBA"))]
    for instance, (kind, answers) in enumerate(instances):
        for role, answer in enumerate(answers):
            question = choice if kind == "multiple_choice" else f"Is it {role // 2}?"
            path = f"TimeBlind/videos/vid_{instance:05}_{role % 2}.mp4"
            yield {
                **{"index": 4 * instance + role, "video_path": path, "type": kind},
                **{"question": question, "answer": answer},
            }


def test_timeblind_instances(tmp_path):
    found = read("timeblind", put(tmp_path / "data.jsonl", list(timeblind_rows())))
    assert [e.pair for e in found] == ["0"] * 4 + ["1"] * 4
    assert [e.extra["role"] for e in found[:4]] == ["q0v0", "q0v1", "q1v0", "q1v1"]
    assert [e.answer for e in found] == ["Yes", "No", "No", "Yes", "A", "B", "B", "A"]
    assert found[0].video == str(tmp_path / "videos/vid_00000_0.mp4")
    assert (found[4].question, found[4].options) == ("How?", ("It rises.", "It falls."))
    assert (found[0].kind, found[0].options) == ("yes_no", ())


def dybench_rows(**columns):
    """Four rows: two questions, each about a video and its flip."""
    return [
        {"video": f"{i}{side}.mp4", "question": f"q{i}?", "options": ["(A) left", "(B) right"]}
        | {"answer": answer}
        | {name: values[2 * i + n] for name, values in columns.items()}
        for i in range(2)
        for n, (side, answer) in enumerate([("", "A"), ("_flip", "right")])
    ]


@pytest.mark.parametrize(
    ("rows", "rule", "pairs"),
    [
        (dybench_rows(pair_id=["x", "x", "y", "y"]), "pair_id", ["x", "x", "y", "y"]),
        (dybench_rows(id=[7, 7, 8, 8]), "id", ["7", "7", "8", "8"]),
        (dybench_rows(id=[1, 2, 3, 4]), "rows", ["0", "0", "1", "1"]),  # each row's own id
        (dybench_rows(), "rows", ["0", "0", "1", "1"]),
        (sorted(dybench_rows(), key=lambda r: r["answer"]), "stems", ["0", "1", "0", "1"]),
    ],
)
def test_dybench_joins_pairs_by_the_first_rule_that_fits(tmp_path, rows, rule, pairs):
    found = read("dybench", put(tmp_path / "moving_direction.json", rows))
    assert [e.pair for e in found] == pairs
    assert {e.extra["paired_by"] for e in found} == {rule}
    assert len({e.id for e in found}) == 4
    assert sorted(e.answer for e in found) == ["A", "A", "B", "B"]
    assert {e.task for e in found} == {"moving_direction"}


def test_dybench_distrusts_neighbours_whose_names_say_otherwise(tmp_path):
    """One question for all: neighbours ask the same, and yet are no pair."""
    rows = sorted(dybench_rows(), key=lambda row: row["answer"])
    for row in rows:
        row["question"] = "Which way?"
    found = read("dybench", put(tmp_path / "a.json", rows))
    assert [(e.pair, e.extra["paired_by"]) for e in found] == [
        ("0", "stems"),
        ("1", "stems"),
        ("0", "stems"),
        ("1", "stems"),
    ]


def test_dybench_refuses_a_row_without_its_other_side(tmp_path):
    rows = [
        {"path": row["video"], "problem": row["question"], "candidates": row["options"]}
        | {"solution": f"<answer>{row['answer']}</answer>"}
        for row in dybench_rows()
    ]
    path, errors = put(tmp_path / "a.jsonl", rows[:3]), []
    found = read("dybench", path, on_error=errors.append)
    assert [e.answer for e in found] == ["A", "B"]
    assert [(e.place, e.column) for e in errors] == [("line 3", "stems")]
    assert "unpaired" in str(errors[0])


PERCEPTION = {
    **{"id": 3, "question": "Still?", "options": ["yes", "no", "unclear"], "answer_id": 1},
    **{"area": "physics", "reasoning": "descriptive", "tag": ["motion"]},
}


def test_perception_test(tmp_path):
    raw = {"video_9": {"metadata": {"split": "valid"}, "mc_question": [PERCEPTION]}, "v": {}}
    found = one(read("perception_test", put(tmp_path / "mc_question_valid.json", raw)))
    assert (found.id, found.answer, found.task) == ("video_9_3", "B", "physics")
    assert found.video == str(tmp_path / "videos/video_9.mp4")
    row = {"video_name": "video_9", "question_id": "3", **PERCEPTION, "answer_id": "2"}
    found = one(read("perception_test", put(tmp_path / "val.jsonl", [row])))
    assert (found.id, found.answer) == ("video_9_3", "C")
    del row["answer_id"]
    assert one(read("perception_test", put(tmp_path / "test.jsonl", [row]))).answer == ""


MMVU = {
    "id": "validation_1",
    "video": "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/Art/0.mp4",
    "question_type": "multiple-choice",
    "question": "Which?",
    "choices": {letter: f"sort {letter}" for letter in "ABCDE"},
    "answer": "E",
}


def test_mmvu(tmp_path):
    question = {"question_type": "open-ended", "choices": dict.fromkeys("ABCDE", "")}
    rows = [MMVU, {**MMVU, **question, "id": "validation_2", "answer": "Dolly Zoom"}]
    choice, opened = read("mmvu", put(tmp_path / "validation.json", rows))
    assert (len(choice.options), choice.options[4], choice.answer) == (5, "sort E", "E")
    assert choice.video == str(tmp_path / "videos/Art/0.mp4")
    assert (opened.options, opened.answer, opened.kind) == ((), "Dolly Zoom", "text")


VSI = {
    **{"id": 5, "dataset": "arkitscenes", "scene_name": "410", "question": "Where?"},
    **{"question_type": "object_rel_distance", "options": ["A. sofa", "B. bed"]},
    "ground_truth": "B",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_vsibench(tmp_path, suffix):
    number = {"question_type": "object_counting", "options": None, "ground_truth": "3"}
    found = read("vsibench", put(tmp_path / f"test{suffix}", [VSI, {**VSI, "id": 6, **number}]))
    assert [(e.answer, e.kind) for e in found] == [("B", "multiple_choice"), ("3", "number")]
    assert found[0].options == ("sofa", "bed")
    assert found[0].video == str(tmp_path / "arkitscenes/410.mp4")


def test_videommmu(tmp_path):
    """Letters are letters even where the options' texts are letters too, as in four questions."""
    adaptation = {
        "0": {"id": "dev_Art_1", "question": "Q", "options": ["D", "C", "A"], "answer": "A"},
        "1": {"id": "dev_Art_2", "question": "Q", "options": [], "answer": "12.97"},
    }
    put(tmp_path / "adaptation_video.json", {"Adaptation": adaptation})
    doubled = ["A: $1, B: $2", "A: $1, B: $3", "A: $1, B: $2"]
    perception = {"0": {"id": "dev_Art_1", "question": "P", "options": doubled, "answer": "C"}}
    put(tmp_path / "perception_video.json", {"Perception": perception})
    (tmp_path / "Art").mkdir()
    (tmp_path / "Art/dev_Art_1.mp4").touch()
    first, second, third = read("videommmu", tmp_path)
    assert (first.id, first.answer, first.options) == ("Adaptation/dev_Art_1", "A", ("D", "C", "A"))
    assert (second.answer, second.kind) == ("12.97", "text")
    assert (third.id, third.options) == ("Perception/dev_Art_1", tuple(doubled))
    assert first.video == str(tmp_path / "Art/dev_Art_1.mp4")


VIDEO_R1 = {
    "problem_id": 2,
    "problem": "What appears?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. A notification", "B. A map"],
    "solution": "<answer>B</answer>",
    "path": "./CLEVRER/train/1.mp4",
    "data_source": "CLEVRER",
}


def test_video_r1(tmp_path):
    image = {**VIDEO_R1, "problem_id": 3, "data_type": "image"}
    number = {**VIDEO_R1, "problem_id": 4, "problem_type": "regression", "options": []}
    number |= {"solution": "<answer>3.5</answer>", "process": "<think>hm</think>"}
    first, second = read("video_r1", put(tmp_path / "260k.json", [VIDEO_R1, image, number]))
    assert (first.options, first.answer) == (("A notification", "A map"), "B")
    assert first.video == str(tmp_path / "CLEVRER/train/1.mp4")
    assert (second.answer, second.kind) == ("3.5", "number")
    assert second.extra["process"] == "<think>hm</think>"


def test_manifest(tmp_path):
    rows = [
        {"video": "a.mp4"},
        {"video": "a.mp4", "question": "Why?", "answer": "because", "weight": 2},
        {"video": "b/c.mp4", "id": "x", "question": "Q", "options": ["A dog", "B flat"]}
        | {"answer": "B flat", "span": [1, 2.5], "pair": "p", "route": "temporal"},
        {"video": "d.mp4", "events": [[1, 2], [3.5, 3.5]]},
        {"video": "e.mp4", "caption": "It falls."},
    ]
    plain, why, choice, moments, caption = read("manifest", put(tmp_path / "m.jsonl", rows))
    assert (plain.id, plain.kind, plain.video) == ("a.mp4", "", str(tmp_path / "a.mp4"))
    assert (why.id, why.kind, why.extra) == ("a.mp4#2", "text", {"weight": 2})
    assert (choice.id, choice.options, choice.answer) == ("x", ("A dog", "B flat"), "B")
    assert (choice.span, choice.pair, choice.route) == ((1.0, 2.5), "p", "temporal")
    assert moments.events == ((1.0, 2.0), (3.5, 3.5)) and moments.kind == "localisation"
    assert (caption.caption, caption.kind) == ("It falls.", "caption")
    moment = {"video": "d.mp4", "events": [3.5]}
    assert one(read("manifest", put(tmp_path / "m.json", [moment]))).events == ((3.5, 3.5),)


def test_manifest_in_parquet_has_nulls_for_what_is_left_out(tmp_path):
    rows = [{"video": "a.mp4"}, {"video": "b.mp4", "events": [[1, 2]], "question": "Q"}]
    plain, asked = read("manifest", put(tmp_path / "m.parquet", rows))
    assert (plain.id, plain.events, plain.question, plain.kind) == ("a.mp4", (), "", "")
    assert (asked.events, asked.question, asked.kind) == (((1.0, 2.0),), "Q", "text")


@pytest.mark.parametrize(
    "name", ["../out.mp4", "/etc/hostname", "in/../../out.mp4", "link.mp4", "up/out.mp4"]
)
def test_a_manifest_stays_in_its_folder(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out.mp4").touch()
    (folder / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (folder / "up").symlink_to(tmp_path)
    path = put(folder / "m.jsonl", [{"video": "good.mp4"}, {"video": name}])
    with pytest.raises(DataError, match=r"m\.jsonl, line 2, column 'video'.*lies outside"):
        read("manifest", path)
    if not name.startswith("/"):
        found = read("manifest", path, root=tmp_path)[1]
        assert found.video == str(tmp_path / "out.mp4")


def test_an_annotation_file_can_not_lead_out_of_the_root(tmp_path):
    row = {**VIDEO_MME, "videoID": "../../secret"}
    with pytest.raises(DataError, match=r"column 'videoID'.*lies outside"):
        read("video_mme", put(tmp_path / "a.jsonl", [row]))


FUNQA_MOMENT = {**FUNQA, "output": "[1, 2]"}
MVBENCH_SPAN = {**MVBENCH, "answer": "4", "start": 1, "end": 2}
CAPTIONS = {"v": {"timestamps": [[0, 1]], "sentences": ["a"]}}
FUNNY = {"youtube_id": "a", "moments": [{"start": 1, "end": 2, "explanation": "x"}]}
SCENE = {"scene_file": "a", "volume_peak_3s": {"start_time": 1, "end_time": 4}}
CHOICE = TEMPCOMPASS["multi-choice"]
ASKED = {"v": {"mc_question": [PERCEPTION]}}
OPENED = {"P": {"4": {"id": "a", "question": "q", "answer": "b"}}}
VAGUE = {"video": "a", "options": ["B", "A"], "question": "q"}
BROKEN = [  # dataset, what the file holds, what to break in it and how, the place to be named
    ("oops", TRANSITIONS, "Fails 3.n_notfound", 1, "key 'Fails 3'"),
    ("oops", TRANSITIONS, "Fails 3.t", [1, "x", 2], "key 'Fails 3'"),
    ("oops", TRANSITIONS, "Fails 3.t", 2.5, "key 'Fails 3'"),
    ("oops", [{"set_id": "a", "index": 1, "transition": 1}], "0.transition", -3, "item 1"),
    ("funqa", [FUNQA_MOMENT], "0.output", "[2", "line 1"),
    ("funqa", [FUNQA_MOMENT], "0.output", "[2, 1]", "line 1"),
    ("funqa", [FUNQA_MOMENT], "0.task", "X1", "line 1"),
    ("activitynet_captions", CAPTIONS, "v.timestamps", [], "key 'v'"),
    ("activitynet_captions", CAPTIONS, "v.timestamps", [[0, float("nan")]], "key 'v'"),
    ("exfuntube", [FUNNY], "0.moments.0.end", 0.5, "line 1, moments 1"),
    ("exfuntube", [FUNNY], "0.moments", [], "line 1"),
    ("spike_rl", [{"video": "a.mp4", "caption": "b"}], "0.caption", "", "line 1"),
    ("laughter", {"scenes": [SCENE]}, "scenes.0.volume_peak_3s.end_time", "x", "scenes 1, volume"),
    ("blackswan", [BLACKSWAN], "0.mcq_gt_option", 3, "line 1"),
    ("blackswan", [BLACKSWAN], "0.task", "Forecaster", "line 1"),
    ("video_mme", [VIDEO_MME] * 2, "1.answer", "E", "line 2"),
    ("video_mme", [VIDEO_MME], "0.options", "A. x", "line 1"),
    ("video_mme", [VIDEO_MME], "0.options", ["A. x"], "line 1"),
    ("video_mme", [VIDEO_MME], "0.question", None, "line 1"),
    ("nextqa", [NEXTQA] * 3, "2.answer", "5", "line 4"),
    ("nextqa", [NEXTQA] * 3, "0.a4", "", "line 2"),  # four of five options
    ("nextgqa", [NEXTGQA], "0.glue", [[2, 1]], "line 1"),
    ("tempcompass", CHOICE, "12.action.0.answer", "C. x", "key '12', action 1"),
    ("tempcompass", CHOICE, "12.action.0.question", "What?", "key '12', action 1"),
    ("tempcompass", CHOICE, "12.action", "What?", "key '12'"),
    ("mvbench", [MVBENCH_SPAN] * 2, "1.answer", "5", "line 2"),
    ("mvbench", [MVBENCH_SPAN], "0.end", 0.5, "line 1"),
    ("timeblind", list(timeblind_rows()), "1.answer", "Maybe", "line 2"),
    ("timeblind", list(timeblind_rows()), "5.question", "?", "line 6"),
    ("timeblind", list(timeblind_rows()), "5.index", 1.5, "line 6"),
    ("dybench", dybench_rows(), "2.answer", "up", "line 3"),
    ("perception_test", ASKED, "v.mc_question.0.answer_id", 3, "key 'v', mc_question 1"),
    ("mmvu", [MMVU], "0.choices.C", "", "line 1, choices"),
    ("vsibench", [VSI], "0.ground_truth", "sofas", "line 1"),
    ("videommmu", OPENED, "P.4.question", None, "key 'P', 4"),
    ("video_r1", [VIDEO_R1], "0.problem_type", "riddle", "line 1"),
    ("video_r1", [VIDEO_R1], "0.solution", "<answer>C</answer>", "line 1"),
    ("manifest", [{"video": "a"}], "0.video", "a\0b", "line 1"),
    ("manifest", [{"video": "a"}], "0.span", [3], "line 1"),
    ("manifest", [{"video": "a"}], "0.span", [-1, 3], "line 1"),
    ("manifest", [{"video": "a"}], "0.events", [float("inf")], "line 1"),
    ("manifest", [{"video": "a"}], "0.events", "at the end", "line 1"),
    ("manifest", [{"video": "a"}], "0.kind", "riddle", "line 1"),
    ("manifest", [VAGUE], "0.question", "", "line 1"),
    ("manifest", [VAGUE], "0.answer", "A", "line 1"),  # the first option, or the second?
]


@pytest.mark.parametrize(("name", "content", "change", "value", "place"), BROKEN)
def test_a_broken_row_is_named_and_the_others_are_kept(
    tmp_path, name, content, change, value, place
):
    suffix = ".csv" if name == "nextqa" else ".jsonl" if isinstance(content, list) else ".json"
    if name == "oops":
        suffix = ".json"
    path = put(tmp_path / f"a{suffix}", content)
    whole = read(name, path)
    broken = json.loads(json.dumps(content))  # no two rows are the same object any more
    *way, column = (int(key) if key.isdigit() else key for key in change.split("."))
    part = broken
    for key in way:
        part = part[key if isinstance(part, list) else str(key)]
    part[column] = value
    put(path, broken)
    with pytest.raises(DataError) as raised:
        read(name, path)
    error = raised.value
    assert (error.file, error.column) == (str(path), column)
    assert error.place.startswith(place)
    assert str(error).startswith(f"{path}, {error.place}, column {column!r}: ")
    errors = []
    rest = read(name, path, on_error=errors.append)
    assert [str(e) for e in errors] == [str(error)]
    assert len(rest) >= len(whole) - 1


def test_a_line_that_is_no_json_costs_only_itself(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"video": "a"}\n{"video": \n\n[1]\n{"video": "b"}\n')
    errors = []
    found = read("manifest", path, on_error=errors.append)
    assert [e.id for e in found] == ["a", "b"]
    assert [e.place for e in errors] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"videoID": "a"},\n {"videoID": ]', "line 2: not JSON"),
        ("a.json", "3", "should be a JSON list"),
        ("a.json", "[]", "no item"),
        ("a.jsonl", "", "no item"),
        ("a.txt", "x", "not a kind that is read here"),
        ("a.csv", "videoID,answer\na\n", "line 2: .* not an object with named columns"),
        ("a.parquet", "PAR1 and no more", "not a parquet file"),
    ],
)
def test_a_file_that_can_not_be_read(tmp_path, name, text, says):
    path = put(tmp_path / "x.txt", text).rename(tmp_path / name)
    with pytest.raises(DataError, match=says):
        read("video_mme", path)
    errors = []
    assert read("video_mme", path, on_error=errors.append) == []
    assert len(errors) == 1


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read("video_mme", tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"no file in it ends in \.parquet"):
        read("video_mme", tmp_path)
    with pytest.raises(ValueError, match="no dataset 'imagenet'; choose from oops"):
        read("imagenet", tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b'{"video": "a"}\n{"video": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read("manifest", tmp_path / "b.jsonl")
    assert put(tmp_path / "c.jsonl", [VIDEO_MME]).rename(tmp_path / "c.json")
    assert len(read("video_mme", tmp_path / "c.json")) == 1  # JSON lines under a list's name


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (["A. cat", "B. dog"], ["cat", "dog"]),
        (["(A) cat", "(B) dog"], ["cat", "dog"]),
        (["A: cat", "B: dog"], ["cat", "dog"]),
        (["A.cat", "B.dog"], ["cat", "dog"]),
        (["A dog", "B flat", "C sharp"], None),
        (["A. Smith", "J. Doe"], None),  # not in order: names, no letters
        (["A: $1, B: $2", "A: $1, B: $3"], None),
        (["Apples.", "Bananas."], None),
        (["A. cat", "dog"], None),
        (["A.", "B."], None),  # nothing would be left
        (["A. A dog", "B. B. King"], ["A dog", "B. King"]),
    ],
)
def test_letters_in_front_of_options(options, bare):
    assert without_letters(options) == tuple(bare or options)


def test_a_video_with_another_suffix_is_found_by_listing_folders_and_no_file(tmp_path, monkeypatch):
    rows = [{**VIDEO_MME, "videoID": f"v.{i}", "question_id": i} for i in range(50)]
    path = put(tmp_path / "a.jsonl", rows)
    (tmp_path / "data").mkdir()
    for i, suffix in enumerate([".mkv", ".webm", ".mp4", ".MP4"]):
        (tmp_path / f"data/v.{i}{suffix}").touch()
    looked_at, listed = [], []
    stat, scandir = os.stat, os.scandir
    monkeypatch.setattr(
        os, "stat", lambda p, *a, **k: (looked_at.append(str(p)), stat(p, *a, **k))[1]
    )
    monkeypatch.setattr(os, "scandir", lambda p: (listed.append(str(p)), scandir(p))[1])
    found = read("video_mme", path)
    monkeypatch.undo()
    assert [Path(e.video).name for e in found[:5]] == [
        *("v.0.mkv", "v.1.webm", "v.2.mp4", "v.3.MP4", "v.4.mp4")
    ]
    assert not [p for p in looked_at if "/data/" in p]
    assert len(listed) == len(set(listed)) == 4  # data, the root, videos, video


def test_a_name_without_a_suffix_and_with_dots_in_it(tmp_path):
    row = {**MVBENCH, "video": "s08.e07_clip.14", "answer": "3"}
    path = put(tmp_path / "episodic_reasoning.json", [row])
    assert one(read("mvbench", path)).video.endswith("frames_fps3_hq/s08.e07_clip.14")
    (tmp_path / "s08.e07_clip.14.mp4").touch()
    assert one(read("mvbench", path)).video == str(tmp_path / "s08.e07_clip.14.mp4")


def test_errors_travel_between_processes():
    error = DataError("a.json", "item 3", "answer", "is empty")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error) == "a.json, item 3, column 'answer': is empty"


REAL = [  # file, dataset, items, items with a pair
    ("oops/heldout_transition_times.sample.json", "oops", 92, 0),
    ("oops/transition_times.sample.json", "oops", 82, 0),
    ("funqa/reference.json", "funqa", 20, 0),
    ("activitynet_captions/train.sample.json", "activitynet_captions", 100, 0),
    ("activitynet_captions/val_with_phrases.sample.json", "activitynet_captions", 25, 0),
    pytest.param("nextqa/val.csv", "nextqa", 4996, 0, marks=pytest.mark.slow),
    pytest.param("nextqa/test.csv", "nextqa", 8564, 0, marks=pytest.mark.slow),
    ("nextgqa/nextgqa_val.sample.json", "nextgqa", 40, 0),
    ("tempcompass/multi-choice.sample.json", "tempcompass", 105, 36),
    ("tempcompass/yes_no.sample.json", "tempcompass", 186, 48),
    ("tempcompass/captioning.sample.json", "tempcompass", 112, 48),
    ("tempcompass/caption_matching.sample.json", "tempcompass", 84, 36),
    pytest.param("mvbench/json", "mvbench", 4000, 0, marks=pytest.mark.slow),
    ("mvbench/json/episodic_reasoning.json", "mvbench", 200, 0),
    ("mmvu/validation.sample.json", "mmvu", 40, 0),
    ("videommmu", "videommmu", 900, 0),
    ("video_mme/test.sample.jsonl", "video_mme", 9, 0),
    ("video_mme/test.sample.parquet", "video_mme", 9, 0),
    ("video_r1/Video-R1-260k.one_row.json", "video_r1", 1, 0),
    ("video_r1/Video-R1-COT-165k.one_row.json", "video_r1", 1, 0),
]


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the real files are not at hand")
@pytest.mark.parametrize(("path", "name", "count", "paired"), REAL)
def test_real_files(path, name, count, paired):
    if path.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    found = read(name, ASSETS / path)
    assert len(found) == len({e.id for e in found}) == count
    assert sum(bool(e.pair) for e in found) == paired
    for example in found:
        letters = annotations.LETTERS[: len(example.options)]
        assert not example.options or (example.answer in letters and example.question)
        assert example.answer or example.caption or example.events


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the real files are not at hand")
def test_the_head_of_the_real_nextqa_with_its_map(tmp_path):
    lines = (ASSETS / "nextqa/val.csv").read_text().splitlines(keepends=True)
    (tmp_path / "val.csv").write_text("".join(lines[:101]))
    shutil.copy(ASSETS / "nextqa/map_vid_vidorID.json", tmp_path)
    found = read("nextqa", tmp_path / "val.csv")
    assert len(found) == 100
    assert found[0].video == str(tmp_path / "1106/4010069381.mp4")
    assert (found[0].answer, found[0].options[0]) == ("A", "roll the handle")


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the real files are not at hand")
def test_real_oops_and_timeblind_under_their_published_names(tmp_path):
    for kind in ("transition_times.sample.json", "val_filtered.sample.txt"):
        shutil.copy(ASSETS / "oops" / kind, tmp_path / kind.replace(".sample", ""))
    assert len(read("oops", tmp_path)) == 82  # of 118; 36 have too many workers who saw none
    lines = (ASSETS / "timeblind/results_first_instance.sample.jsonl").read_text().splitlines()
    truth = zip(lines, ["Yes", "No", "No", "Yes"], strict=True)
    rows = [{**json.loads(line), "type": "yes_no", "answer": answer} for line, answer in truth]
    found = read("timeblind", put(tmp_path / "data.jsonl", rows))
    assert found[0].question.endswith("puts her cup down?")
    assert {e.pair for e in found} == {"0"}


def test_every_dataset_has_a_test_of_its_own():
    source = Path(__file__).read_text()
    assert [name for name in READERS if f'read("{name}"' not in source] == []
