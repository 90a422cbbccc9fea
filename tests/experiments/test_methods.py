"""`saccade train` with the methods of RL: they run, resume bit by bit, and end well."""

import json
import logging

import jax
import numpy as np
import pupil
import pyarrow.parquet
import pytest

from experiments import train
from experiments.arguments import UsageError
from experiments.bench_score import Compilations

METHODS = (
    *("grpo", "dr_grpo", "dapo", "gspo", "spike_rl", "crpo", "strive", "t_grpo", "arrow_rl"),
    "share_grpo",
)
QUICK = ["--config.steps=4", "--config.save_every=2", "--config.batch=2", "--config.ramp_steps=1",
         "--config.num_generations=2", "--config.learning_rate=0.01"]  # fmt: skip
OF = {
    "gspo": ["--config.batch=4"],
    "spike_rl": ["--config.surprise.steps=4", "--config.surprise.window=2",
                 "--config.surprise.budget=2", "--config.caption_tokens=3",
                 "--config.train_from=2", "--config.surprise.hypotheses=2"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pupil.saved(tmp_path_factory.mktemp("pupil"))


def config(model, method, *changes):
    return pupil.config(method, *QUICK, *OF.get(method, []), f"--config.model={model}", *changes)


def read(out):
    """Lines of metrics by step, without times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("step_time") > 0 and line.pop("videos_per_hour") > 0
    return {line.pop("step"): line for line in lines}


def weights(out):
    return (out / "export" / "model.safetensors").read_bytes()


def interrupted(monkeypatch, model, method, out, *changes):
    """A run that ends without notice after its third step, one after a checkpoint."""
    stream = train._stream

    def killed(make, start, stop):
        for done, prompts in stream(make, start, stop):
            if done == 4:
                raise KeyboardInterrupt
            yield done, prompts

    monkeypatch.setattr(train, "_stream", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run(config(model, method, *changes), out)
    monkeypatch.setattr(train, "_stream", stream)


REWARD = """
seen = []
def varied(prompts, completions, *, completion_ids, place, **columns):
    seen.append(0)
    if len(seen) == {bad}:
        raise RuntimeError("out of paper")
    rows = zip(completions, completion_ids, place)
    return [(sum(map(ord, text)) + sum(ids) + 3 * at[2]) % 7 / 7 for text, ids, at in rows]
def low(prompts, completions, *, completion_ids, **columns):
    return [sum(i < 400 for i in ids) / len(ids) for ids in completion_ids]
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_and_resumes_bit_by_bit(tmp_path, monkeypatch, model, method):
    """With a reward of chance beside its own, for a random model earns nothing else."""
    file = tmp_path / "mine.py"
    file.write_text(REWARD.format(bad=0))
    own = config(model, method)
    names = ",".join([f"{file}:varied", *own["rewards"]])
    weights_of = ",".join(map(str, [1, *own["reward_weights"]])) if own["reward_weights"] else ""
    changes = [f"--config.rewards={names}", f"--config.reward_weights={weights_of}"]
    assert train.run(config(model, method, *changes), tmp_path / "whole") == 0
    interrupted(monkeypatch, model, method, tmp_path / "parts", *changes)
    assert sorted(read(tmp_path / "parts")) == [1, 2, 3]
    assert train.run(config(model, method, *changes), tmp_path / "parts") == 0
    assert read(tmp_path / "whole") == read(tmp_path / "parts")
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    line = read(tmp_path / "whole")[4]
    assert line["sampling/sampling_logp_difference/max"] < 1e-4
    assert line["grad_norm"] > 0 and line["reward_std"] > 0
    names = {"loss", "reward", "frac_reward_zero_std", "entropy", "completions/mean_length"}
    assert names <= set(line)
    kept = [pyarrow.parquet.read_table(tmp_path / part / "completions" / "00004.parquet")
            for part in ("whole", "parts")]  # fmt: skip
    assert kept[0].equals(kept[1])
    trained = [row for row in kept[0].to_pylist() if row["advantage"] is not None]
    assert np.mean([row["reward"] for row in trained]) == pytest.approx(line["reward"])
    assert all(row["frames"] for row in kept[0].to_pylist())
    if method == "spike_rl":  # at each of three steps a trajectory writes two
        assert all([len(said) for said in row["hypotheses"]] == [2, 2, 2] for row in trained)
    assert "<h2>Rollouts</h2>" in (tmp_path / "whole" / "report.html").read_text()


@pytest.mark.slow
def test_programs_are_compiled_in_the_first_step(tmp_path, monkeypatch, model):
    stream, counts = train._stream, []

    def counted(make, start, stop):
        for done, prompts in stream(make, start, stop):
            counts.append(compiled.count)
            yield done, prompts

    monkeypatch.setattr(train, "_stream", counted)
    with Compilations() as compiled:
        assert train.run(config(model, "crpo"), tmp_path / "run") == 0
    assert counts[1] == counts[-1]


@pytest.mark.slow
def test_a_reward_that_fails_loses_nothing(tmp_path, model, caplog):
    file = tmp_path / "mine.py"
    file.write_text(REWARD.format(bad=3))
    changes = [f"--config.rewards={file}:varied", "--config.save_every=100"]
    assert train.run(config(model, "grpo", *changes), tmp_path / "run") == 1
    assert "reward varied failed: RuntimeError: out of paper" in caplog.text
    file.write_text(REWARD.format(bad=0))
    assert train.run(config(model, "grpo", *changes), tmp_path / "run") == 0
    assert train.run(config(model, "grpo", *changes), tmp_path / "whole") == 0
    assert read(tmp_path / "run") == read(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of threads of Orbax that end by the error
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, model, caplog, full_disk):
    interrupted(monkeypatch, model, "grpo", tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    with full_disk(20_000):  # enough for metrics, not for a checkpoint
        assert train.run(config(model, "grpo"), tmp_path / "run") == 1
    assert "no checkpoint can be written: File too large; what was kept" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:2] == before[:2]
    assert train.run(config(model, "grpo"), tmp_path / "run") == 0
    assert train.run(config(model, "grpo"), tmp_path / "whole") == 0
    assert read(tmp_path / "run") == read(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_groups_without_signal_are_explained(tmp_path, model, caplog):
    file = tmp_path / "mine.py"
    file.write_text("def flat(prompts, completions, **columns):\n    return [1] * len(prompts)\n")
    changes = [f"--config.rewards={file}:flat", "--config.patience=4", "--config.steps=2"]
    assert train.run(config(model, "grpo", *changes), tmp_path / "run") == 0
    assert "the last 4 groups had equal rewards each" in caplog.text
    line = read(tmp_path / "run")[2]
    assert line["frac_reward_zero_std"] == line["all_correct"] == 1.0
    assert line["loss"] == line["grad_norm"] == line["all_wrong"] == 0.0


def test_a_dry_run_shows_answers_and_trains_nothing(tmp_path, model, caplog):
    caplog.set_level(logging.INFO)
    assert train.run(config(model, "grpo"), tmp_path / "run", dry_run=True) == 0
    assert not (tmp_path / "run").exists()
    assert "wanted: " in caplog.text and "accuracy 0.00" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("num_generations=1", "num_generations is 1; answers are compared with each other"),
        ("views=sideways", "views is 'sideways'; choose from plain"),
        ("advantage=best", "advantage is 'best'; choose from group"),
        ("loss_type=ppo", "loss_type is 'ppo'; choose from grpo"),
        ("micro_batches=3", "num_minibatches x micro_batches = 3 must divide it"),
        ("tasks=colours", "no task 'colours'; choose from caption"),
        ("reward_weights=1,2", "2 weights for 1 rewards"),
        ("best=reward", "best is 'reward'; an evaluation finds eval/NAME"),
        ("best=eval/reward", "best is 'eval/reward'; set eval_every, or it is never seen"),
        ("recipe=magic", "recipe is 'magic'; choose from sft, rl"),
        ("num_generation=8", "no such key; did you mean num_generations"),
    ],
)
def test_what_makes_no_sense_is_told(tmp_path, model, change, message):
    with pytest.raises(UsageError, match=message):
        train.run(config(model, "grpo", f"--config.{change}"), tmp_path / "run")


@pytest.mark.slow
def test_reward_rises(tmp_path, model):
    """Some tokens are paid for; within 40 steps they are said more often."""
    file = tmp_path / "mine.py"
    file.write_text(REWARD.format(bad=0))
    changes = [f"--config.rewards={file}:low", "--config.steps=40", "--config.num_generations=8"]
    changes += ["--config.learning_rate=0.03"]
    assert train.run(config(model, "grpo", *changes), tmp_path / "run") == 0
    rewards = [line["reward"] for line in read(tmp_path / "run").values()]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1


@pytest.mark.slow
def test_old_logprobs_are_of_the_graph_that_updates(tmp_path):
    """Under remat and bfloat16 too: at no learning rate no ratio leaves GSPO's narrow clip."""
    file = tmp_path / "mine.py"
    file.write_text(REWARD.format(bad=0))
    changes = ("--config.remat=True", "--config.compute_dtype=bfloat16", "--config.steps=2",
               "--config.num_generations=8", "--config.learning_rate=0.0",
               "--config.num_minibatches=1", "--config.num_iterations=2",
               f"--config.rewards={file}:varied")  # fmt: skip
    train.run(config("tiny", "gspo", *changes), tmp_path / "run")
    for line in read(tmp_path / "run").values():
        assert line["reward_std"] > 0 and line["clip_ratio/region_mean"] == 0
