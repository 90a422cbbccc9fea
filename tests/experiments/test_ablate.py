"""Rows of an ablation: read, trained where they are missing, compared seed by seed."""

import json

import jax
import numpy as np
import pytest

from experiments import ablate
from experiments.arguments import UsageError, plain, read_config
from experiments.cli import main
from experiments.configs.ablate import get_config
from surprise.localisation import student


def _config(**changes):
    rows = {"one": "grpo.py:tiny steps=2", "two": "crpo.py:tiny"}
    small = {
        "rows": rows,
        "controls": ["one"],
        "seeds": 3,
        "figures": ["exam/p_acc", "train/loss"],
        "base": "",
    }
    return plain(get_config()) | small | changes


@pytest.mark.parametrize("mode", ["crpo", "strive", "spike_rl"])
def test_every_mode_is_of_runs_at_equal_answers(mode):
    config = plain(read_config(f"ablate.py:{mode}"))
    rows, base, exam = ablate._read(config)
    assert exam["dataset"] == "toy"
    assert (base is not None) == (mode != "spike_rl")
    asked, steps = {}, {"crpo": 50, "strive": 100, "spike_rl": 60}[mode]
    for name, row in rows.items():
        views = {"counterfactual": 2, "importance": 2}.get(row["views"], 1)
        watched = row["views"] in ("shuffled", "backwards")
        asked[name] = views * row["num_generations"] + watched * row["watched_generations"]
        asked[name] *= row["batch"]
        untrained = row["learning_rate"] == 0
        assert row["steps"] == (1 if untrained else steps)
    assert len({count for name, count in asked.items() if name not in ("start", "spike")}) == 1


def test_methods_are_run_as_they_are():
    rows, base, exam = ablate._read(plain(read_config("ablate.py:methods")))
    assert base is exam is None and len(rows) == 10
    for name, row in rows.items():
        assert row == plain(read_config(f"{name}.py:tiny"))


def test_metrics_are_summed_up_over_all_steps_and_between_the_ends():
    lines = [{"step": n, "reward": n / 10} for n in range(1, 11)]
    lines[4]["eval/reward"], lines[9]["eval/reward"] = 0.1, 0.4
    found = ablate._summary(lines)
    assert found["eval/reward"] == 0.4 and found["train/reward"] == pytest.approx(0.55)
    assert found["rise/reward"] == pytest.approx(0.95 - 0.15)


def test_a_row_has_the_shared_changes_and_its_own_after_them():
    rows, _, _ = ablate._read(_config(shared="steps=7 batch=4"))
    assert [(row["steps"], row["batch"]) for row in rows.values()] == [(2, 4), (7, 4)]
    assert rows["one"]["views"] == "plain" and rows["two"]["views"] == "counterfactual"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "seeds is 1"),
        ({"controls": ["one", "grop"]}, "controls: no row 'grop'; choose from one, two"),
        ({"figures": ["p_acc"]}, "'p_acc'; write SOURCE/NAME, of exam, eval"),
        ({"rows": {"one": "evaluate.py:toy"}, "shared": ""}, "rows.one: that is no configuration"),
        ({"rows": {"one": "grpo.py:tiny stpes=2"}}, "stpes: no such key; did you mean steps"),
        ({"rows": {"one": "grpo.py processes=2"}}, "processes is not 1"),
        ({"base": "evaluate.py:toy"}, "config.base: that is no configuration"),
        ({"exam": "examine.py"}, "no file examine.py"),
    ],
)
def test_a_wrong_ablation_is_told_before_anything_is_trained(tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        ablate.run(_config(**changes), tmp_path / "out", command="")
    assert not (tmp_path / "out").exists()


def test_what_is_finished_is_compared_seed_by_seed(tmp_path):
    values = {"one": (0.2, 0.4, 0.6), "two": (0.3, 0.6, 0.9)}
    for name, row in values.items():
        for seed, value in enumerate(row):
            folder = tmp_path / name / str(seed)
            folder.mkdir(parents=True)
            (folder / "figures.json").write_text(json.dumps({"exam/p_acc": value}))
    assert ablate.run(_config(), tmp_path, command="saccade ablate") == 0
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    gains = np.array([0.1, 0.2, 0.3])
    # t(2) leaves 2.5 % above 4.3027
    reach = 4.302653 * gains.std(ddof=1) / 3**0.5
    name = "two - one/exam/p_acc"
    assert figures["two/exam/p_acc"] == pytest.approx(0.6)
    assert [figures[name + end] for end in ("", "_low", "_high", "_n")] == pytest.approx(
        [0.2, 0.2 - reach, 0.2 + reach, 3]
    )
    table = (tmp_path / "table.md").read_text()
    assert "minus one, seed by seed" in table and "train/loss" not in table


def test_a_mean_of_few_runs_knows_how_few_they_are():
    assert student([1.0, float("nan")])[:1] == (1.0,) and student([1.0]).n == 1
    assert np.isnan(student([1.0]).low) and np.isnan(student([]).value)
    five = student([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five.high == pytest.approx(3 + 2.776445 * 2.5**0.5 / 5**0.5)


@pytest.mark.slow
def test_rows_are_trained_and_examined_once(tmp_path, caplog):
    changes = [
        *("--config.seeds=2", "--config.controls=start", "--config.figures=exam/p_acc,train/loss"),
        "--config.shared=steps=2 batch=2 max_completion_length=4 frames=2",
        "--config.exam=evaluate.py:toy full_validation=0 full_test=0 easy_test=0 brief_test=0 "
        "gate_windows=0 gate_clips=0 pairs=6 moments=0",
    ]
    argv = ["ablate", "--config=ablate.py:strive", f"--out={tmp_path}", *changes]

    def ablated():
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            return main(argv)

    assert ablated() == 0
    first = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert first["start/exam/p_acc_n"] == 2 and "grpo - start/train/loss" in first
    # Of three rows one learns nothing, by either seed.
    assert len(list((tmp_path / "exams").iterdir())) == 5
    # Again: only what is missing is done, by the same programs, and it comes out the same.
    programs = sorted((tmp_path / "compiled").glob("*-cache"))
    assert programs and not jax.config.jax_compilation_cache_dir
    (tmp_path / "strive" / "1" / "figures.json").unlink()
    caplog.clear()
    with caplog.at_level("INFO"):
        assert ablated() == 0
    assert [m for m in caplog.messages if m.startswith("run ")] == ["run 6 of 6: strive, seed 1"]
    assert json.loads((tmp_path / "results.json").read_text())["figures"] == first
    assert sorted((tmp_path / "compiled").glob("*-cache")) == programs
